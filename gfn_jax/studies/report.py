"""The report of studies: tables for people and for machines, figures, and one page that holds everything.

OUT/report.html is the page and OUT/report.md what is printed. Of every study there are NAME.md (its table, which the
documents take over), NAME.csv (each seed's value) and, where matplotlib is installed, NAME.png and NAME.svg;
jobs.tar.xz holds what the jobs have left (`packed`). Equal results and facts make equal bytes, wherever the workdir
lies: no file names a folder outside of it.
"""

import csv
import io
import json
import pathlib
from collections.abc import Sequence
from typing import Any

from gfn_jax.studies import cells as tables
from gfn_jax.studies import figures, markdown, packed
from gfn_jax.studies.found import Facts
from gfn_jax.studies.page import TITLE, about, page
from gfn_jax.studies.section import WORKDIR, Section, section
from gfn_jax.studies.study import SEED, Results, Study
from gfn_jax.studies.tuning import TUNED

NO_FIGURES = "There are no figures: matplotlib is not installed (pip install matplotlib)."
CSV_HEAD = (
    "study", "row", "metric", "job", "seed", "value", "mean", "low", "high", "questions", "paper", "shown_value",
    "shown",
)  # fmt: skip


def write(
    studies: Sequence[Study], results: Results, out: pathlib.Path, facts: Facts, tuned: pathlib.Path = TUNED
) -> str:
    """Writes the report of studies, finished or not.

    Args:
        studies: in the order of the report.
        results: what finished jobs have left.
        out: the report's folder; what it holds already is replaced where it has the same name.
        facts: what was run where.
        tuned: the folder of tuning's files, {"task", "method", "trials", "chosen"}; it may be missing.

    Returns:
        report.md, for the screen.

    Raises:
        ValueError: as `section.section`.
    """
    sections = [section(study, results, facts) for study in studies]
    remark = "" if figures.available() else NO_FIGURES
    trials = [json.loads(path.read_text()) for path in sorted(tuned.glob("*.json"))]
    texts = {"report.md": _markdown(sections, facts, remark), "report.html": page(sections, facts, trials, remark)}
    for one in sections:
        texts[f"{one.study.name}.csv"] = _csv(one, results)
        texts[f"{one.study.name}.md"] = f"{_lesson(one)}\n\n{_table(one)}\n"
    out.mkdir(parents=True, exist_ok=True)
    texts = {name: _relative(text, results, out) for name, text in texts.items()}
    for name, text in texts.items():
        (out / name).write_text(text, encoding="utf-8")
    if results:
        (out / packed.NAME).write_bytes(packed.packed(results))
    for one in sections:
        if one.figure:
            (out / f"{one.study.name}.png").write_bytes(one.figure.png)
            (out / f"{one.study.name}.svg").write_bytes(one.figure.svg)
    return texts["report.md"]


def _lesson(one: Section) -> str:
    return f"**{markdown.plain(one.lesson)}**"


def _table(one: Section) -> str:
    return f"{markdown.table(one.table)}\n\n{markdown.plain(one.legend)}"


def _markdown(sections: Sequence[Section], facts: Facts, remark: str) -> str:
    parts = [f"# {TITLE}", markdown.plain(about(facts)), remark]
    for one in sections:
        study = one.study
        parts += [
            f"## {markdown.plain(study.title)}",
            f"The twin of {markdown.plain(study.paper)}." if study.paper else "",
            _lesson(one),
            markdown.plain(one.setting),
            _table(one),
            f"![{markdown.plain(one.caption)}]({study.name}.png)" if one.figure else "",
        ]
        for title, lines in one.texts:
            parts += [f"{markdown.plain(title)}:", markdown.verbatim(lines)]
        parts.append(f"`{one.command}`")
    return "\n\n".join(filter(None, parts)) + "\n"


def _csv(one: Section, results: Results) -> str:
    """A line a job and cell, with the cell's numbers; empty where nothing was run; the paper's alone have one too."""
    text = io.StringIO()
    writer = csv.DictWriter(text, CSV_HEAD, lineterminator="\n")
    writer.writeheader()
    for row, line in zip(one.study.rows, one.table.lines):
        for place, column in enumerate(one.study.columns):
            common: dict[str, Any] = {"study": one.study.name, "row": row.title, "metric": column.metric}
            common["paper"] = row.paper.get(column.metric)
            cell = one.cells.get((row.title, column.metric))
            if cell is not None:
                common |= {"mean": cell.mean, "low": cell.low, "high": cell.high}
                common["questions"] = len(cell.questions[0]) if cell.questions else None
            if line.cells:
                common["shown"] = f"{line.cells[place].mean} {line.cells[place].interval}".rstrip()
            if not row.jobs:
                writer.writerow(common)
            for job in row.jobs:
                seed = SEED.search(job.name)
                own: dict[str, Any] = {"job": job.name, "seed": seed and seed[1]}
                left = tables.left(job, row.method, column.metric, results)
                if left is not None:
                    own |= {"value": left[0], "shown_value": tables.number(left[0], column)}
                writer.writerow(common | own)
    return text.getvalue()


def _relative(text: str, results: Results, out: pathlib.Path) -> str:
    """A text that names no folder outside of the workdir, nor the report's."""
    roots = {str(one.folder.absolute()).removesuffix(f"/{name}"): WORKDIR for name, one in results.items()}
    for root, name in (roots | {str(out.absolute()): "OUT"}).items():
        text = text.replace(root, name)
    return text
