"""Runs beside each other: means over seeds, their spread, intervals, and differences from the first.

Each run's metrics are read as a study's cells are (`cells`): the interval is over seeds and, where all runs have left
the values of the same questions, questions too.
"""

import dataclasses
import functools
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from gfn_jax.evaluation.report import QUESTIONS, RESULTS, read_json, table
from gfn_jax.runs import ending
from gfn_jax.studies import cells
from gfn_jax.studies.found import Found
from gfn_jax.studies.study import Cells, Column, Figure, Interval, Job, Row, Study

SHOWN = 4  # metrics of a table, where nobody names them


@dataclasses.dataclass(frozen=True)
class Group:
    """A row.

    Attributes:
        title: what a person reads.
        runs: one a seed.
        method: whose metrics in their results.
    """

    title: str
    runs: tuple[Found, ...]
    method: str = "policy"


def read_found(folder: pathlib.Path) -> Found:
    """What a run has left; its `job` is empty.

    Raises:
        ValueError: it has left no results, or some that cannot be read.
    """

    def read(name: str) -> Any:
        path = folder / name
        try:
            return read_json(path)
        except (ValueError, OSError) as error:
            raise ValueError(f"{path} cannot be read ({error})") from error

    results = read(RESULTS)
    if not results:
        raise ValueError(f"{folder} has no {RESULTS}: there is no run there that has ended")
    return Found(folder, results, read(QUESTIONS) or None, {})


def own_method(found: Found) -> str:
    """What the policy is called in a run's results.

    Raises:
        ValueError: they have none.
    """
    try:
        return ending.own_method(found.results)
    except ValueError as error:
        raise ValueError(f"{found.folder}: {error}") from error


def metrics_of(found: Found, method: str) -> list[str]:
    """The numbers among a method's metrics, in the order of the results."""
    return list(ending.methods_of(found.results).get(method, ()))


def methods_of(found: Found, metrics: Sequence[str]) -> list[str]:
    """The methods of a run's results that have one of the metrics: the policy first, the base and its other ways."""
    own = own_method(found)
    others = [name for name, values in ending.methods_of(found.results).items() if {*metrics} & values.keys()]
    return [own, *(name for name in others if name != own)]


@functools.cache
def known_columns() -> Mapping[str, Column]:
    """Metric -> its column in the paper's tables: digits, and which way is better."""
    from gfn_jax.studies.tables import studies

    return {column.metric: column for study in studies("tiny", (0,)).values() for column in study.columns}


def column_of(metric: str) -> Column:
    """A metric by its own name, with the digits and the better side that the paper's tables give it."""
    known = known_columns().get(metric, Column(metric, metric, digits=3, better=None))
    return dataclasses.replace(known, title=metric)


def as_study(
    groups: Sequence[Group], metrics: Sequence[str], name: str = "beside", figure: Figure | None = None
) -> tuple[Study, Cells]:
    """Runs as a table's rows, and what stands in its cells.

    Raises:
        ValueError: two rows of one title, or numbers that do not fit together (`cells.cells`).
    """
    jobs = {
        group.title: tuple(Job(f"{place}/{number}", "", ()) for number in range(len(group.runs)))
        for place, group in enumerate(groups)
    }
    if len(jobs) < len(groups):
        raise ValueError(f"two rows are called alike, of {', '.join(group.title for group in groups)}: name them apart")
    rows = tuple(Row(group.title, jobs[group.title], group.method) for group in groups)
    columns = tuple(map(column_of, metrics))
    study = Study(name, name, "", "", columns, rows, lambda cells: "", figure=figure)
    results = {job.name: run for group in groups for job, run in zip(jobs[group.title], group.runs, strict=True)}
    return study, cells.cells(study, results)


def spread(cell: Interval) -> float | None:
    """The standard deviation of the seeds (n - 1); None of one."""
    return float(np.std(cell.seeds, ddof=1)) if len(cell.seeds) > 1 else None


def page(study: Study, found: Cells, reference: str | None = None) -> str:
    """A block a metric: mean, spread, interval, seeds and, where there is a `reference`, the difference from it."""
    blocks = []
    for column in study.columns:
        arrow = {"more": ", more is better", "less": ", less is better", None: ""}[column.better]
        header = [f"{column.title}{arrow}", "mean", "spread", "95 % interval", "seeds"]
        header += [f"less {reference}"] * (reference is not None)
        rows = []
        for row in study.rows:
            cell = found.get((row.title, column.metric))
            if cell is None:
                continue
            wide = spread(cell)
            line = [
                row.title,
                cells.number(cell.mean, column),
                "-" if wide is None else cells.number(wide, column),
                cells.limits_of(cell, column) or "-",
                str(len(cell.seeds)),
            ]
            if reference is not None:
                first = found.get((reference, column.metric))
                line.append("" if first is None or row.title == reference else apart(cell, first, column))
            rows.append(line)
        if rows:
            blocks.append(table(header, rows))
    return "\n\n".join(blocks)


def apart(cell: Interval, first: Interval, column: Column) -> str:
    """How far a cell is from another, with the interval of the paired difference."""
    found = cells.difference(cell, first)
    limits = cells.limits_of(Interval(0.0, found.low, found.high, ()), column)
    return f"{cells.number(cell.mean - first.mean, column)} {limits}".rstrip()


def as_dict(study: Study, found: Cells, reference: str | None = None) -> dict[str, Any]:
    """Row -> metric -> mean, spread, low, high, the seeds' values; and the difference from the `reference`."""
    out: dict[str, Any] = {}
    for row in study.rows:
        out[row.title] = {}
        for column in study.columns:
            cell = found.get((row.title, column.metric))
            if cell is None:
                continue
            own: dict[str, Any] = {"mean": cell.mean, "spread": spread(cell), "low": cell.low, "high": cell.high}
            own["seeds"] = list(cell.seeds)
            first = found.get((reference or "", column.metric))
            if first is not None and row.title != reference:
                away = cells.difference(cell, first)
                own["difference"] = {"mean": cell.mean - first.mean, "low": away.low, "high": away.high}
            out[row.title][column.metric] = own
    return out
