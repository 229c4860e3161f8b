"""What a person reads at the end of a run, and `results.json` for machines."""

import dataclasses
import json
import math
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from gfn_jax.models.language_model import LanguageModel


@dataclasses.dataclass(frozen=True)
class Findings:
    """What a run found, for machines and for people.

    Attributes:
        methods: method -> metric -> value; `metrics` are the trained policy's, `base` the base's.
        page: the table, and what else a person reads.

    Raises:
        ValueError: a value is NaN, which is no finding.
    """

    methods: Mapping[str, Mapping[str, Any]]
    page: str

    def __post_init__(self):
        check_numbers(self.methods)


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
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(results, indent=1) + "\n")
    os.replace(partial, path)
