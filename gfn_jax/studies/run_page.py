"""One run as one page: WORKDIR/report.html, made of what the run has left, and its curves as PNG in WORKDIR/plots.

Any workdir will do, whatever was trained there and whenever; what it lacks is left out.
"""

import itertools
import json
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

from gfn_jax.evaluation.report import RESULTS, SAMPLES, read_json, write_whole
from gfn_jax.runs.ending import methods_of
from gfn_jax.studies import figures
from gfn_jax.studies.curves import curves_of, draw_curves, read_metrics
from gfn_jax.studies.html import command, definitions, details, document, figure, scrolling, text
from gfn_jax.studies.page import certificate_table
from gfn_jax.studies.plan import versions

PAGE, PLOTS = "report.html", "plots"
CAPTIONS = {
    "train": "Training: every step, by its number; long runs as means of neighbouring steps.",
    "eval": "Evaluated on the way, on validation queries.",
}


def write_run_page(workdir: pathlib.Path, words: str = "") -> pathlib.Path:
    """Writes the page and the plots, and returns the page.

    Args:
        workdir: of the run.
        words: the command, where the results do not say it.

    Raises:
        OSError, ValueError: a file cannot be read or written.
    """
    results, config = (read_json(workdir / name) for name in (RESULTS, "config.json"))
    drawn = draw_all(workdir)
    title = _title(results, config)
    certificate = results.get("certificate") or {}
    body = [
        f'<header><h1>{text(title)}</h1><p class="quiet">{text(_about(results, config))}</p></header>',
        "<section><h2>Results</h2>" + result_table(results) + "</section>" if methods_of(results) else "",
        certificate_table({"this run": certificate}) if certificate.get("means") else "",
        *(f"<section><h2>{kind}</h2>{one}</section>" for kind, one in drawn.items()),
        _samples(workdir / SAMPLES),
        _made(results, config, words),
    ]
    write_whole(workdir / PAGE, document(title, body))
    return workdir / PAGE


def draw_all(workdir: pathlib.Path) -> dict[str, str]:
    """Title -> figure as HTML, and a PNG of each in the folder; one remark where matplotlib is not installed."""
    records = read_metrics(workdir)
    if not any(records.values()):
        return {}
    if not figures.available():
        return {"Curves": "<p>matplotlib is not installed: no curves were drawn.</p>"}
    found = {}
    for kind, caption in CAPTIONS.items():
        drawing = draw_curves(curves_of(records, kind), kind)
        if drawing is not None:
            (workdir / PLOTS).mkdir(exist_ok=True)
            (workdir / PLOTS / f"{kind}.png").write_bytes(drawing.png)
            found[{"train": "Training", "eval": "Evaluation"}[kind]] = figure(drawing.inline, caption)
    return found


def result_table(results: Mapping[str, Any]) -> str:
    """A row a metric, a column a method."""
    methods = methods_of(results)
    metrics = dict.fromkeys(itertools.chain.from_iterable(methods.values()))
    rows = []
    for metric in metrics:
        cells = "".join(f"<td>{_shown(values.get(metric))}</td>" for values in methods.values())
        rows.append(f'<tr><th scope="row">{escape(metric)}</th>{cells}</tr>')
    return scrolling(("", *methods), rows, "Results")


def _samples(path: pathlib.Path) -> str:
    """What base and policy have written, beside each other, question by question."""
    lines = path.read_text().splitlines() if path.exists() else []
    samples = [json.loads(line) for line in lines]
    if not samples:
        return ""
    # The base first: what it was like before.
    methods = sorted({sample["method"] for sample in samples}, key=lambda name: (not name.startswith("base"), name))
    parts = []
    splits = dict.fromkeys(sample["split"] for sample in samples)
    for number, split in enumerate(splits):
        own = [sample for sample in samples if sample["split"] == split]
        questions = dict.fromkeys(sample["question"] for sample in own)
        rows = [
            f"<h3>{escape(question)}</h3>" + _beside([s for s in own if s["question"] == question], methods)
            for question in questions
        ]
        first = f"{escape(split)}: {len(questions)} questions"
        parts.append(f"<details{' open' if number == 0 else ''}><summary>{first}</summary>{''.join(rows)}</details>")
    return f"<section><h2>Samples</h2>{''.join(parts)}</section>"


def _beside(samples: Sequence[Mapping[str, Any]], methods: Iterable[str]) -> str:
    """A column a method, under each other where the page is narrow."""
    columns = []
    for method in methods:
        own = [_sample(sample) for sample in samples if sample["method"] == method]
        if own:
            columns.append(f'<div><p class="quiet">{escape(method)}</p><ol class="texts">{"".join(own)}</ol></div>')
    return f'<div class="beside">{"".join(columns)}</div>'


def _sample(sample: Mapping[str, Any]) -> str:
    mark = {True: " ✓", False: " ✗", None: ""}[sample["right"]]
    answer = "" if sample["answer"] is None else f" → {sample['answer']}"
    return f"<li>{escape(sample['completion'] + answer)}{mark}</li>"


def _made(results: Mapping[str, Any], config: Mapping[str, Any], words: str) -> str:
    budget = results.get("budget") or {}
    entries = [
        ("Command", command(results.get("command") or words)),
        *((escape(name), escape(_shown(value))) for name, value in budget.items()),
        ("Config digest", escape(str(results["config_digest"]))) if "config_digest" in results else None,
        ("Versions", escape(", ".join(f"{name} {version}" for name, version in versions().items()))),
    ]
    settings = f"<pre>{escape(json.dumps(config, indent=1, sort_keys=True))}</pre>"
    made = definitions(entry for entry in entries if entry is not None)
    whole = details("The whole config", settings) if config else ""
    return f'<section id="made"><h2>How this was made</h2>{made}{whole}</section>'


def _title(results: Mapping[str, Any], config: Mapping[str, Any]) -> str:
    task = results.get("task") or config.get("task") or "A run"
    method = results.get("method") or config.get("algorithm")
    return f"{task}, {method}" if method else str(task)


def _about(results: Mapping[str, Any], config: Mapping[str, Any]) -> str:
    model = config.get("model") or {}
    facts = {
        "model": model.get("path"),
        "seed": results.get("seed", config.get("seed")),
        "steps": results.get("steps"),
        "seconds of training": results.get("seconds"),
    }
    return "; ".join(f"{name} {value}" for name, value in facts.items() if value is not None)


def _shown(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:,}" if isinstance(value, int) else f"{value:.5g}"
