"""The report of made-up results: Markdown, CSV and HTML say the same, and the page stands by itself."""

import csv
import dataclasses
import html.parser
import json
import re
import xml.etree.ElementTree

import numpy as np
import pytest
from markdown_it import MarkdownIt

from gfn_jax.evaluation.certificate import Evidence, certificate
from gfn_jax.studies import cells as tables
from gfn_jax.studies import figures, report
from gfn_jax.studies.found import Facts, Found
from gfn_jax.studies.section import section
from gfn_jax.studies.study import Column, Job, Row, Study
from gfn_jax.studies.texts import distributions, told

OPERANDS = (Column("accuracy_3", "3 operands"), Column("accuracy_5", "5 operands", digits=2))
KL = Column("kl", "KL(q|p), nats", better="less", scientific=True)
HARD = 'a <b>&"|*_` ${x}'  # as a title, a text, a path
LOG_Q, LOG_R = np.random.default_rng(1).normal(-5, 1, (2, 2, 40))
CERTIFICATE = certificate(Evidence(LOG_Q, LOG_R)).as_dict() | {"warnings": ["hardly <any> rows (1 of 2 queries)"]}


def jobs(name: str, seeds: int = 3) -> tuple[Job, ...]:
    return tuple(Job(f"{name}/seed-{s}", "gfn_jax.launch", (f"--config.seed={s}",)) for s in range(seeds))


def lesson(cells) -> str:
    one, other = cells["GFlowNet", "accuracy_5"], cells["supervised", "accuracy_5"]
    return (
        f"{'Ahead' if tables.ahead(one, other, OPERANDS[1]) else 'Not ahead'}: {one.mean - other.mean:+.1f} <points>."
    )


TABLE = Study(
    name="table4",
    title=f"Arithmetic {HARD}",
    paper="Table 4",
    setting="50 demonstrations; `--flag` <i>.",
    columns=OPERANDS,
    rows=(
        Row("base", jobs("base", 1)),
        Row("GFlowNet", jobs("gflownet"), paper={"accuracy_3": "95.2", "accuracy_5": "40.7"}, note="A note."),
        Row("supervised", jobs("supervised"), note="A note."),
        Row(HARD, jobs("hard"), note="Another."),
        Row("GPT-J, 3-shot", (), paper={"accuracy_5": "5.4"}),
    ),
    lesson=lesson,
    figure="bars",
    texts=lambda own: [(f"Sampled {HARD}", [f"1 < 2 & {len(own)} jobs", "  indented"])],
)
CURVES = Study(
    name="labels",
    title="Accuracy against labels",
    paper="",
    setting="One line a method.",
    columns=(Column("accuracy", "Accuracy"), KL),
    rows=(
        *(Row(f"{s}, {x}", jobs(f"{s}-{x}"), series=s, x=x) for s in ("GFlowNet", "supervised") for x in (10, 20, 50)),
        Row("base", jobs("base-labels", 1)),
    ),
    lesson=lambda cells: "A line.",
    figure="curves",
    x_title="labels",
    log_x=True,
)
SCATTER = Study(
    name="fig3",
    title="Likelihood against diversity",
    paper="Figure 3",
    setting="Eight samples.",
    columns=(Column("likelihood", "log p", 2), Column("diversity", "diversity", 3), KL),
    rows=tuple(Row(f"sampler {i}", jobs(f"sampler-{i}"), series="tempered" if i < 2 else None) for i in range(4)),
    lesson=lambda cells: "A line.",
    figure="scatter",
    figure_columns=("likelihood", "diversity"),
)
STUDIES = (TABLE, CURVES, SCATTER)
FACTS = Facts("python -m gfn_jax.reproduce", "tiny", (0, 1, 2), "2026-11-24", "two cores", {"jax": "0.10.2"})
TRIALS = [
    {
        "overrides": {"optimizer.learning_rate": 1e-3, "name": "<x>"},
        "score": 61.25,
        "scores": {"10": 61.0, "11": 61.5},
        "seconds": 12.0,
    },
    {
        "overrides": {"optimizer.learning_rate": 3e-3, "name": "<x>"},
        "score": 71.5,
        "scores": {"10": 71.5, "11": 71.5},
        "seconds": 12.0,
    },
]
LEVELS = {"base": 20, "gflownet": 80, "supervised": 50, "hard": 30}


def made_up(workdir) -> dict[str, Found]:
    """What all jobs of the studies would leave: the table's with questions, the others' without."""
    rng = np.random.default_rng(0)
    found = {}
    for job in TABLE.jobs:
        level = LEVELS[job.name.split("/")[0]] + rng.normal(0, 2)
        questions = {c.metric: (100.0 * (rng.random(80) < level / 100)).tolist() for c in OPERANDS}
        results = {"policy": {name: float(np.mean(values)) for name, values in questions.items()}}
        if job.name == "gflownet/seed-1":
            results["certificate"] = CERTIFICATE
        found[job.name] = Found(workdir / job.name, results, {"policy": questions}, {"seconds": 40.0})
    for study in (CURVES, SCATTER):
        for job in study.jobs:
            metrics = {c.metric: float(rng.normal(10, 1)) for c in study.columns if c is not KL}
            metrics["kl"] = float(np.exp(rng.normal(-9, 1)))
            found[job.name] = Found(workdir / job.name, {"policy": metrics}, None, {"seconds": 40.0})
    return found


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder = tmp_path_factory.mktemp("written")
    tuned = folder / "tuned"
    tuned.mkdir()
    content = {"task": "arith", "method": "<gflownet>", "trials": TRIALS, "chosen": TRIALS[1]["overrides"]}
    (tuned / "arith.json").write_text(json.dumps(content))
    results = made_up(folder / "work")
    report.write(STUDIES, results, folder / "out", FACTS, tuned)
    return folder / "out", results


class Page(html.parser.HTMLParser):
    """Every element, with what lies open above it; fails where one is closed that is not open."""

    VOID = frozenset({"meta", "br", "link", "img"})

    def __init__(self, text: str):
        super().__init__()
        self.open: list[str] = []
        self.found: list[tuple[str, dict, tuple[str, ...]]] = []
        self.rows: list[list[str]] = []
        self.text = ""
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs), tuple(self.open)))
        if tag not in self.VOID:
            self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_startendtag(self, tag, attrs):
        self.found.append((tag, dict(attrs), tuple(self.open)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if not {"style", "svg"} & set(self.open):
            self.text += data
        if {"td", "th"} & set(self.open) and "sup" not in self.open:
            self.rows[-1][-1] += data


def csv_lines(path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def markdown_rows(text: str) -> list[list[str]]:
    """Cells of all tables, as a reader of Markdown that is not ours makes them."""
    rendered = MarkdownIt("commonmark").enable("table").render(text)
    return [[cell.strip() for cell in row] for row in Page(rendered).rows]


@pytest.mark.parametrize("study", STUDIES, ids=lambda study: study.name)
def test_markdown_csv_and_page_say_the_same(written, study):
    out, results = written
    cells = tables.cells(study, results)
    in_markdown = {row[0]: row[1:] for row in markdown_rows((out / f"{study.name}.md").read_text())}
    in_page = [row for row in Page((out / "report.html").read_text()).rows if row]
    lines = csv_lines(out / f"{study.name}.csv")
    for row in study.rows:
        for place, column in enumerate(study.columns):
            own = [line for line in lines if (line["row"], line["metric"]) == (row.title, column.metric)]
            assert {line["paper"] for line in own} == {row.paper.get(column.metric, "")}
            if not row.jobs:
                continue
            cell = cells[row.title, column.metric]
            values = [results[job.name].results["policy"][column.metric] for job in row.jobs]
            assert [float(line["value"]) for line in own] == values == list(cell.seeds)
            assert [line["seed"] for line in own] == [str(seed) for seed in range(len(values))]
            assert {float(line["mean"]) for line in own} == {cell.mean} == {float(np.mean(values))}
            digits = f".{column.digits}{'e' if column.scientific else 'f'}"
            shown = own[0]["shown"]
            assert float(shown.split(" ")[0]) == float(f"{cell.mean:{digits}}")
            if cell.low is not None:
                low, high = (float(text) for text in re.findall(r"[-\d.e]+", shown)[1:])
                assert (low, high) == (float(f"{cell.low:{digits}}"), float(f"{cell.high:{digits}}"))
                assert float(own[0]["low"]) <= cell.mean <= float(own[0]["high"])
            assert in_markdown[row.title.replace("\n", " ")][place] == shown
            assert any(line[0] == row.title and line[1 + place : 2 + place] == [shown] for line in in_page)


def test_the_papers_numbers_are_beside_ours(written):
    out, _ = written
    rows = markdown_rows((out / "table4.md").read_text())
    titles = [row[0] for row in rows]
    assert rows[titles.index("GFlowNet") + 1] == ["paper", "95.2", "40.7", ""]
    assert rows[titles.index("GPT-J, 3-shot")] == ["GPT-J, 3-shot", "", "5.4", ""]
    page = Page((out / "report.html").read_text())
    assert ["paper", "95.2", "40.7", ""] in page.rows
    assert ["GPT-J, 3-shot", "", "5.4", ""] in page.rows


def test_bold_is_what_leads_every_other_row(written):
    out, results = written
    text = (out / "table4.md").read_text()
    cells = tables.cells(TABLE, results)
    assert tables.leaders(TABLE, cells) == {("GFlowNet", column.metric) for column in OPERANDS}
    assert len(re.findall(r"\*\*[\d.]+\*\*", text)) == 2
    assert all(f"**{tables.number(cells['GFlowNet', c.metric].mean, c)}**" in text for c in OPERANDS)
    # The same questions under the same seeds: what is ahead by one answer alone is not bold.
    tie = {name: one for name, one in results.items() if not name.startswith("supervised")}
    for name in [name for name in results if name.startswith("gflownet")]:
        tie[name.replace("gflownet", "supervised")] = results[name]
    assert tables.leaders(TABLE, tables.cells(TABLE, tie)) == frozenset()
    told = [dataclasses.replace(row, rival=row.title != "GFlowNet") for row in TABLE.rows]
    assert "GFlowNet" not in {row for row, _ in tables.leaders(dataclasses.replace(TABLE, rows=tuple(told)), cells)}


def test_less_is_better_where_it_is(tmp_path):
    study = Study("kl", "KL", "", "", (KL,), (Row("a", jobs("a")), Row("b", jobs("b"))), lambda cells: "")
    values = {"a": (1e-5, 2e-5, 3e-5), "b": (1e-3, 2e-3, 3e-3)}
    found = {
        f"{name}/seed-{seed}": Found(tmp_path, {"policy": {"kl": value}}, None, {})
        for name, own in values.items()
        for seed, value in enumerate(own)
    }
    cells = tables.cells(study, found)
    assert tables.leaders(study, cells) == {("a", "kl")}
    assert tables.number(cells["a", "kl"].mean, KL) == "2.0e-5"
    assert not tables.ahead(cells["b", "kl"], cells["a", "kl"], KL)
    # A single run is ahead of nothing, and nothing of it.
    cells = tables.cells(study, {name: one for name, one in found.items() if name not in ("b/seed-1", "b/seed-2")})
    assert tables.difference(cells["b", "kl"], cells["a", "kl"]).estimate == pytest.approx(1e-3 - 2e-5)
    assert tables.leaders(study, cells) == frozenset()
    with pytest.raises(ValueError, match="nothing is better"):
        tables.ahead(cells["a", "kl"], cells["b", "kl"], Column("kl", "", better=None))


def test_the_page_stands_by_itself(written):
    out, _ = written
    text = (out / "report.html").read_text()
    page = Page(text)
    tags = [tag for tag, _, _ in page.found]
    assert not {"script", "link", "img", "iframe", "object", "embed", "base", "image", "foreignobject"} & set(tags)
    for tag, attributes, _ in page.found:
        assert not {"src", "srcset", "data", "poster", "onload", "background"} & set(attributes)
        reference = attributes.get("href", attributes.get("xlink:href", "#"))
        assert reference.startswith("#") or tag == "a"
    assert all(match.startswith("#") for match in re.findall(r"url\(['\"]?([^)]*)\)", text))
    assert "@import" not in text
    ids = [attributes["id"] for _, attributes, _ in page.found if "id" in attributes]
    assert len(set(ids)) == len(ids)
    referred = {a["href"][1:] for _, a, _ in page.found if a.get("href", "").startswith("#")}
    assert referred | set(re.findall(r"url\(#([^)]*)\)", text)) <= set(ids)
    assert tags.count("svg") == len(STUDIES)
    # Whatever is wide scrolls in a box of its own.
    assert all("div" in above for tag, _, above in page.found if tag in ("table", "svg"))
    assert [a["id"] for tag, a, _ in page.found if tag == "section"] == ["table4", "labels", "fig3", "tuning", "made"]


def test_the_page_holds_all_that_was_found(written):
    out, _ = written
    page = Page((out / "report.html").read_text())
    for study in STUDIES:
        assert study.title.replace("`", "") in page.text.replace("`", "")
        assert f"--what={study.name} --preset=tiny --seeds=0,1,2 --workdir=DIR" in page.text
        assert study.lesson(tables.cells(study, written[1])) in page.text
    assert "python -m gfn_jax.launch --config.seed=2 --workdir=DIR/gflownet/seed-2" in page.text
    assert "1 < 2 & 10 jobs" in page.text
    assert "10 of 10 finished, in 7 min" in page.text
    assert CERTIFICATE["verdict"] in page.text
    assert CERTIFICATE["warnings"][0] in page.text
    row = next(row for row in page.rows if row[0] == "gflownet/seed-1")
    found = CERTIFICATE["means"]["kl_q_pi"]
    assert found["low"] is not None
    assert row[1] == f"{found['estimate']:.3g} [{found['low']:.3g}, -]"
    assert row[2] == "-"  # no exact sample, so nothing is known of it
    for trial in TRIALS:
        learning_rate = trial["overrides"]["optimizer.learning_rate"]
        overrides = f"optimizer.learning_rate={learning_rate}, name=<x>"
        assert [overrides, f"{trial['score']:g}", "10, 11", "12"] in page.rows
    assert "Taken: optimizer.learning_rate=0.003, name=<x>" in page.text
    for fact in (FACTS.command, FACTS.date, FACTS.machine, "jax 0.10.2"):
        assert fact in page.text


def test_figures_are_there_as_files_too(written):
    out, _ = written
    for study in STUDIES:
        assert (out / f"{study.name}.png").read_bytes().startswith(b"\x89PNG")
        root = xml.etree.ElementTree.parse(out / f"{study.name}.svg").getroot()
        assert root.tag.endswith("svg")
        assert f"({study.name}.png)" in (out / "report.md").read_text()
    texts = (out / "table4.svg").read_text()
    assert "GFlowNet" in texts
    assert "GPT-J" not in texts  # nothing of ours to draw


def test_what_is_drawn_is_what_the_cells_say(written):
    from matplotlib.figure import Figure

    _, results = written
    cells = tables.cells(TABLE, results)
    figure = Figure()
    figures.bars(figure, TABLE, OPERANDS, cells)
    for panel, column in zip(figure.axes, OPERANDS):
        own = [cells[row.title, column.metric] for row in TABLE.rows if row.jobs]
        assert [bar.get_width() for bar in panel.patches] == [cell.mean for cell in own]
        ends = [line.get_segments()[0][:, 0].tolist() for line in panel.collections]
        np.testing.assert_allclose(ends, [(cell.low, cell.high) for cell in own])
    cells = tables.cells(CURVES, results)
    figure = Figure()
    figures.curves(figure, CURVES, CURVES.columns[:1], cells)
    line = next(line for line in figure.axes[0].lines if line.get_label() == "supervised")
    assert line.get_xydata().tolist() == [[x, cells[f"supervised, {x}", "accuracy"].mean] for x in (10, 20, 50)]
    cells = tables.cells(SCATTER, results)
    figure = Figure()
    figures.scatter(figure, SCATTER, SCATTER.columns[:2], cells)
    drawn = [point for line in figure.axes[0].lines for point in line.get_xydata().tolist()]
    assert drawn == [[cells[row.title, m].mean for m in ("likelihood", "diversity")] for row in SCATTER.rows]


def test_equal_results_make_equal_bytes_wherever_they_lie(written, tmp_path):
    out, _ = written
    facts = Facts(f"python -m gfn_jax.reproduce --workdir={tmp_path / 'else'}", *list(vars(FACTS).values())[1:])
    report.write(STUDIES, made_up(tmp_path / "else"), tmp_path / "again", facts, tmp_path / "none")
    names = sorted(path.name for path in out.iterdir())
    assert names == sorted(path.name for path in (tmp_path / "again").iterdir())
    for name in names:
        old, new = (out / name).read_bytes(), (tmp_path / "again" / name).read_bytes()
        assert str(tmp_path).encode() not in new
        assert old == new or name == "report.html"
    assert "--workdir=DIR" in Page((tmp_path / "again" / "report.html").read_text()).text


def test_what_has_not_been_run_says_so(tmp_path):
    results = made_up(tmp_path / "work")
    some = {name: one for name, one in results.items() if name not in ("gflownet/seed-1", *_of("supervised"))}
    text = report.write([TABLE], some, tmp_path / "out", FACTS, tmp_path)
    assert "**4 of 10 runs are missing.**" in text
    rows = {row[0]: row for row in markdown_rows(text)}
    assert rows["supervised"] == ["supervised", "not run", "not run", "0 of 3"]
    assert rows["GFlowNet"][-1] == "2 of 3"
    lines = csv_lines(tmp_path / "out" / "table4.csv")
    assert {(line["value"], line["mean"], line["shown"]) for line in lines if line["row"] == "supervised"} == {
        ("", "", "not run")
    }
    assert "4 of 10 runs are missing." in Page((tmp_path / "out" / "report.html").read_text()).text
    # Nothing at all: no figure, and no word of one.
    text = report.write([TABLE], {}, tmp_path / "empty", FACTS, tmp_path)
    assert "Nothing has been run." in text
    assert sorted(path.name for path in (tmp_path / "empty").iterdir()) == [
        "report.html", "report.md", "table4.csv", "table4.md",
    ]  # fmt: skip
    assert "<svg" not in (tmp_path / "empty" / "report.html").read_text()
    assert ".png" not in text


def _of(method: str) -> list[str]:
    return [job.name for job in jobs(method)]


def test_one_seed_has_an_interval_over_questions_or_none(tmp_path):
    results = {name: one for name, one in made_up(tmp_path).items() if name.endswith("seed-0")}
    cells = tables.cells(TABLE, results)
    assert all(cell.low < cell.mean < cell.high for cell in cells.values())
    assert "One seed. In brackets 95 % bootstrap intervals over 80 questions." in tables.legend(TABLE, cells)
    cells = tables.cells(CURVES, results)
    assert all(cell.low is None and cell.high is None for cell in cells.values())
    assert tables.legend(CURVES, cells) == "One seed."
    assert tables.leaders(CURVES, cells) == frozenset()
    text = report.write([CURVES], results, tmp_path / "out", FACTS, tmp_path)
    assert re.search(r"\| GFlowNet, 10 \| [\d.]+ \| [\d.]+e-\d \| 1 of 3 \|", text)


def test_intervals_say_what_they_are_over(written):
    _, results = written
    assert "over seeds and 80 questions." in tables.legend(TABLE, tables.cells(TABLE, results))
    without = dict(results)
    for name in results:
        if name.split("/")[0] in LEVELS:
            one = results[name]
            questions = {"policy": {"accuracy_3": one.questions["policy"]["accuracy_3"]}}
            without[name] = Found(one.folder, one.results, questions, one.job)
    legend = tables.legend(TABLE, tables.cells(TABLE, without))
    assert "over seeds and 80 questions (3 operands), seeds (5 operands)." in legend


def test_what_does_not_fit_is_refused(tmp_path):
    results = made_up(tmp_path)
    one = results["base/seed-0"]
    wrong = {**results, "base/seed-0": Found(one.folder, {"other": {}}, None, {})}
    with pytest.raises(ValueError, match="base/seed-0 has left no 'policy'"):
        tables.cells(TABLE, wrong)
    said = {**results, "base/seed-0": Found(one.folder, {"left_out": {"policy": "the model is too small"}}, None, {})}
    assert tables.cells(TABLE, said).keys() < tables.cells(TABLE, results).keys()
    shares = {"policy": {"accuracy_3": [1.0, 0.0]}}  # of 1 where the value is in percent
    wrong = {**results, "base/seed-0": Found(one.folder, one.results, shares, {})}
    with pytest.raises(ValueError, match=r"base/seed-0: policy.accuracy_3 is .* and 0.5 is the mean"):
        tables.cells(TABLE, wrong)
    twice = Study("x", "", "", "", OPERANDS, (TABLE.rows[0], TABLE.rows[0]), lesson)
    with pytest.raises(ValueError, match="x has two rows of one name"):
        tables.cells(twice, results)
    unknown = Study("x", "", "", "", OPERANDS, TABLE.rows, lesson, "bars", figure_columns=("accuracy_9",))
    with pytest.raises(ValueError, match="x draws accuracy_9, which its table lacks"):
        figures.draw(unknown, tables.cells(TABLE, results), results)


def test_infinite_values_are_shown_and_not_drawn(tmp_path):
    study = Study("kl", "KL", "", "", (KL,), (Row("a", jobs("a", 2)), Row("b", jobs("b", 2))), lambda cells: "", "bars")
    values = {"a": (float("inf"), 1.0), "b": (1.0, 2.0)}
    found = {
        f"{name}/seed-{seed}": Found(tmp_path, {"policy": {"kl": value}}, None, {})
        for name, own in values.items()
        for seed, value in enumerate(own)
    }
    assert markdown_rows(report.write([study], found, tmp_path / "out", FACTS, tmp_path))[1] == ["a", "inf", "2"]


def test_without_matplotlib_there_are_no_figures(tmp_path, monkeypatch):
    monkeypatch.setattr(figures, "available", lambda: False)
    text = report.write([TABLE], made_up(tmp_path / "work"), tmp_path / "out", FACTS, tmp_path)
    assert report.NO_FIGURES in text
    page = (tmp_path / "out" / "report.html").read_text()
    assert report.NO_FIGURES in Page(page).text
    assert "<svg" not in page
    assert list((tmp_path / "out").glob("*.png")) == []


def test_methods_that_nobody_has_tuned_are_named():
    study = dataclasses.replace(SCATTER, tuned={"arithmetic": ("nobodys", "own")})
    assert section(study, {}, FACTS).setting == "Eight samples. Not tuned on validation: nobodys, own."
    assert section(SCATTER, {}, FACTS).setting == "Eight samples."
    untuned = section(study, {}, dataclasses.replace(FACTS, preset="paper")).setting
    assert untuned == "Eight samples. Nothing was tuned: settings are those of the preset's configs."


def test_distributions_are_drawn_beside_their_target(tmp_path):
    left = {"kl": 0.1}, {"policy": [0.5, 0.4, 0.1], "base": [0.0, 0.9, 0.1], "target": [1 / 3] * 3}
    results = {
        f"{name}/seed-0": Found(tmp_path, {"policy": left[0], "distribution": left[1]}, None, {}) for name in "ab"
    }
    study = Study(
        "fig2",
        "Numbers",
        "",
        "",
        (KL,),
        (Row("a", jobs("a", 1)), Row("b", jobs("b", 1))),
        lambda cells: "",
        figure="distributions",
        x_title="the number",
        distributions=lambda found: distributions(found, {"base": jobs("a"), "a": jobs("a"), "later": jobs("c")}),
    )
    drawn = figures.draw(study, tables.cells(study, results), results)
    assert drawn.png.startswith(b"\x89PNG")
    texts = " ".join(re.findall(r">([^<>\n]+)</text>", drawn.svg.decode()))
    assert "base: the likeliest has 90.0 %" in texts
    assert "a: the likeliest has 50.0 %" in texts
    assert {"target", "the number"} <= set(re.findall(r">([^<>\n]+)</text>", drawn.svg.decode()))
    assert "later" not in texts
    none = dataclasses.replace(study, distributions=lambda found: {})
    assert figures.draw(none, tables.cells(study, results), results) is None


@pytest.mark.parametrize(
    ("question", "shown"), [("1 + 1 =", "1 + 1 = 2"), ("He left. [...] He came back.", "He left. [ 2] He came back.")]
)
def test_a_sample_is_told_behind_its_question_or_in_its_gap(question, shown):
    assert told(question, " 2") == shown
