"""What a person reads at the end of a run, and `results.json` for machines."""

import dataclasses
import json
import math
import os
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol, TypeVar, runtime_checkable

from gfn_jax.models.language_model import LanguageModel

RESULTS, QUESTIONS, SAMPLES = "results.json", "questions.json", "samples.jsonl"
GAP = "[...]"  # in a question whose completion does not come last
T = TypeVar("T")
SHOWN_QUESTIONS, SHOWN_SAMPLES = 20, 4  # of each split, and of each of these


@dataclasses.dataclass(frozen=True)
class Sample:
    """A completion that was written for a final report.

    Attributes:
        method: who wrote it, as in `Findings.methods`.
        split: of the question.
        question: X as text, and what follows Z, if anything does, behind GAP.
        completion: Z as text.
        right: whether it is; None where the task does not grade.
        answer: what was answered after it, where that is no part of it.
    """

    method: str
    split: str
    question: str
    completion: str
    right: bool | None = None
    answer: str | None = None


@dataclasses.dataclass(frozen=True)
class Findings:
    """What a run found, for machines and for people.

    Attributes:
        methods: method -> metric -> value; `metrics` are the trained policy's, `base` the base's.
        page: the table, and what else a person reads.
        questions: method -> metric -> a value a question, in the order of the split; their mean is the metric in
            `methods` (but for rounding). What is no mean over questions is not there.
        samples: what the policy and the base have written, the first of each split.

    Raises:
        ValueError: a value is NaN, which is no finding.
    """

    methods: Mapping[str, Mapping[str, Any]]
    page: str
    questions: Mapping[str, Mapping[str, Sequence[float]]] = dataclasses.field(default_factory=dict)
    samples: Sequence[Sample] = ()

    def __post_init__(self):
        check_numbers(self.methods)
        check_numbers(self.questions)


def shown(samples: Sequence[Sequence[T]]) -> Iterator[tuple[int, T]]:
    """Those that are kept of each question's samples, with the question's number: the first of the first."""
    return ((number, sample) for number, own in enumerate(samples[:SHOWN_QUESTIONS]) for sample in own[:SHOWN_SAMPLES])


class Evaluator(Protocol):
    """Measures a policy on its task: now and then on few queries, at the end on all of the test's.

    It is made before training: what it needs and cannot find (a package, a folder, a judge) it says then.
    """

    @property
    def every(self) -> int:
        """Steps between two validations."""

    @property
    def best_metric(self) -> str | None:
        """The validated value by which the best checkpoint is kept (more is better)."""

    def validate(self, model: LanguageModel) -> dict[str, float]:
        """Metrics by name; depends on nothing but the arguments."""

    def describe(self, validated: Mapping[str, float]) -> str:
        """The same for a line of progress."""

    def report(self, model: LanguageModel) -> Findings:
        """The final measurement, of the base too."""


@runtime_checkable
class Questioned(Evaluator, Protocol):
    """One that can tell what it validates with question by question."""

    def validated(self, model: LanguageModel) -> tuple[dict[str, float], dict[str, Sequence[float]]]:
        """What `validate` says, and some of those metrics as a value a question."""


def table(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """Plain text columns: the first left, the others right, numbers with one decimal."""

    def cell(value: Any) -> str:
        return f"{value:.1f}" if isinstance(value, float) else str(value)

    cells = [list(map(cell, row)) for row in (header, *rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(header))]
    lines = [
        "  ".join(text.rjust(width) if i else text.ljust(width) for i, (text, width) in enumerate(zip(row, widths)))
        for row in cells
    ]
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:]])


def check_numbers(found: Any, name: str = "") -> None:
    """Raises ValueError where one of nested mappings' and sequences' numbers is NaN; infinity is a number."""
    if isinstance(found, float) and math.isnan(found):
        raise ValueError(f"{name} is nan")
    if isinstance(found, Mapping):
        for key, value in found.items():
            check_numbers(value, f"{name}.{key}" if name else str(key))
    elif isinstance(found, list | tuple):
        for value in found:
            check_numbers(value, name)


def write_results(path: pathlib.Path, results: Mapping[str, Any]) -> None:
    """Writes `results.json` whole or not at all; raises ValueError where a number of it is NaN."""
    check_numbers(results)
    write_whole(path, json.dumps(results, indent=1) + "\n")


def write_evidence(folder: pathlib.Path, findings: Findings) -> None:
    """Writes what results.json is a summary of: questions.json and samples.jsonl, each whole or not at all."""
    write_questions(folder / QUESTIONS, findings.questions)
    lines = [json.dumps(dataclasses.asdict(sample)) + "\n" for sample in findings.samples]
    write_whole(folder / SAMPLES, "".join(lines))


def write_questions(path: pathlib.Path, questions: Mapping[str, Mapping[str, Sequence[float]]]) -> None:
    """Writes `questions.json`, of six digits behind the point, a line a metric, whole or not at all."""
    methods = []
    for method, metrics in questions.items():
        rows = [
            f"  {json.dumps(name)}: {json.dumps([round(float(x), 6) for x in row])}" for name, row in metrics.items()
        ]
        methods.append(f" {json.dumps(method)}: {{\n" + ",\n".join(rows) + "\n }")
    write_whole(path, "{\n" + ",\n".join(methods) + "\n}\n")


def read_json(path: pathlib.Path) -> dict[str, Any]:
    """What a file holds; nothing where there is none."""
    found: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    return found


def write_whole(path: pathlib.Path, text: str) -> None:
    """Writes a file whole or not at all."""
    partial = path.with_suffix(".partial")
    partial.write_text(text)
    os.replace(partial, path)
