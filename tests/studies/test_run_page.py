"""A run's page: made of what the run has left, and of nothing else."""

import html.parser
import json
import re

import pytest

from gfn_jax.studies import figures
from gfn_jax.studies.curves import curves_of, draw_curves, read_metrics, thinned
from gfn_jax.studies.run_page import methods_of, write_run_page

RESULTS = {
    "task": "arithmetic",
    "method": "gflownet",
    "seed": 3,
    "steps": 2,
    "command": "python -m gfn_jax.launch --config=a.py --config.note='<b>'",
    "config_digest": "abc",
    "budget": {"generated_tokens": 1234, "training_flops": None},
    "base": {"accuracy_3": 6.4, "length": 5},
    "policy": {"accuracy_3": 97.25, "nested": {"a": 1}, "seen": True},
}
SAMPLES = [
    {
        "method": "policy",
        "split": "3",
        "question": "1 + 2 < 4",
        "completion": "1 + 2 = 3",
        "right": True,
        "answer": None,
    },
    {"method": "base", "split": "3", "question": "1 + 2 < 4", "completion": "1 + 2", "right": False, "answer": "7"},
]
RECORDS = [
    {"step": 1, "kind": "train", "extra": 1.0, "loss": 3.0, "seconds": 0.1},
    {"step": 2, "kind": "train", "extra": None, "loss": 2.0, "seconds": 0.2},
    {"step": 2, "kind": "eval", "accuracy": 0.5},
]


class Page(html.parser.HTMLParser):
    """Tags that are open at every text, and what they refer to."""

    def __init__(self, text: str):
        super().__init__()
        self.text, self.referred, self.rows = "", [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.referred += [value for name, value in attributes if name in ("src", "href")]
        if tag == "tr":
            self.rows.append([])

    def handle_data(self, data):
        self.text += data
        if self.rows and self.lasttag in ("th", "td") and data.strip():
            self.rows[-1].append(data)


def leave(folder, **files):
    folder.mkdir(exist_ok=True)
    for name, content in files.items():
        lines = [json.dumps(line) + "\n" for line in content] if isinstance(content, list) else [json.dumps(content)]
        (folder / {"results": "results.json", "config": "config.json"}.get(name, f"{name}.jsonl")).write_text(
            "".join(lines)
        )


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    config = {"task": "arithmetic", "model": {"path": "tiny"}, "seed": 3}
    leave(folder, results=RESULTS, config=config, samples=SAMPLES, metrics=RECORDS)
    return write_run_page(folder)


def test_it_holds_what_the_run_has_left_and_asks_for_nothing(written):
    text = written.read_text()
    page = Page(text)
    assert all(one.startswith("#") for one in page.referred)
    assert "url(http" not in text.replace(" ", "")
    assert "<script" not in text
    assert 'name="viewport"' in text
    assert ["accuracy_3", "97.25", "6.4"] in page.rows
    assert ["length", "-", "5"] in page.rows
    assert "nested" not in page.text
    for shown in ("arithmetic, gflownet", "model tiny; seed 3; steps 2", "1 + 2 < 4", "--config.note='<b>'", "1,234"):
        assert shown in page.text
    assert page.text.index("1 + 2 → 7 ✗") < page.text.index("1 + 2 = 3 ✓")  # the base first
    assert '"path": "tiny"' in page.text
    assert "jax 0." in page.text


def test_the_curves_are_pictures_in_the_folder_and_in_the_page(written):
    for kind in ("train", "eval"):
        assert (written.parent / "plots" / f"{kind}.png").read_bytes().startswith(b"\x89PNG")
    assert written.read_text().count("<svg") == 2


def test_a_folder_with_nothing_but_metrics_has_a_page(tmp_path, monkeypatch):
    monkeypatch.setattr(figures, "available", lambda: False)
    leave(tmp_path, metrics=RECORDS)
    page = Page(write_run_page(tmp_path, "the command").read_text())
    assert "the command" in page.text
    assert "matplotlib is not installed" in page.text
    assert not (tmp_path / "plots").exists()


def test_several_runs_of_one_program_are_lines_of_one_panel(tmp_path):
    for name in ("round-2", "round-1"):
        leave(tmp_path / name, metrics=RECORDS)
    curves = curves_of(read_metrics(tmp_path), "train")
    assert list(curves) == ["loss", "extra"]  # what matters comes first, and the clock is no metric
    assert curves["loss"] == {"round-1": [(1, 3.0), (2, 2.0)], "round-2": [(1, 3.0), (2, 2.0)]}
    assert curves["extra"]["round-1"] == [(1, 1.0)]


def test_a_panel_that_nothing_is_drawn_in_is_not_there():
    for count in (1, 2, 3):
        svg = draw_curves({f"metric_{i}": {"run": [(1, 1.0), (2, 2.0)]} for i in range(count)}, "train").svg.decode()
        assert len(re.findall(r'id="matplotlib.axis_\d+"', svg)) == 2 * count  # an x and a y axis each


def test_a_long_line_is_thinned_to_means():
    assert thinned([(step, float(step)) for step in range(1, 11)], most=4) == [
        (2.0, 2.0),
        (5.0, 5.0),
        (8.0, 8.0),
        (10.0, 10.0),
    ]
    assert thinned([(1, 2.0)]) == [(1.0, 2.0)]


def test_facts_are_no_methods():
    found = methods_of(RESULTS)
    assert found == {"policy": {"accuracy_3": 97.25}, "base": {"accuracy_3": 6.4, "length": 5}}
    assert list(found) == ["policy", "base"]
