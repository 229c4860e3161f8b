"""What stands in the cells of a study's table: means with intervals, and which of them lead."""

import dataclasses
import math
import re
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from gfn_jax.evaluation import bootstrap, limits
from gfn_jax.runs.ending import OWN
from gfn_jax.studies.study import Cells, Column, Interval, Job, Results, Row, Study

# A job's value is the mean of its questions' values, up to how either was rounded: to four digits behind the point.
ROUNDING, ROUNDED = 1e-3, 1e-4
NOT_RUN, NO_VALUE = "not run", "-"
SPENT = "budget."  # what a metric of a run's budget begins with


@dataclasses.dataclass(frozen=True)
class Cell:
    """What a person reads in a cell.

    Attributes:
        mean: over seeds; or that nothing was run, or left.
        interval: "[low, high]", or empty.
        leads: ahead of every other row of ours.
    """

    mean: str
    interval: str = ""
    leads: bool = False


@dataclasses.dataclass(frozen=True)
class Line:
    """A row as a person reads it.

    Attributes:
        title: of the row.
        note: the number of its footnote, or 0.
        seeds: how many of its jobs have finished, "3" or "2 of 3"; empty where it has none.
        cells: a column each; () of a row without jobs, the paper's alone.
        paper: the paper's values, a column each, "" where it has none; () where it has none at all.
    """

    title: str
    note: int
    seeds: str
    cells: tuple[Cell, ...]
    paper: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Table:
    """A study's table as a person reads it: what its columns are called, its lines, its footnotes."""

    header: tuple[str, ...]
    lines: tuple[Line, ...]
    notes: tuple[str, ...]


def cells(study: Study, results: Results) -> Cells:
    """Every value of a study that its jobs have left.

    Raises:
        ValueError: two rows or columns of one name; a finished job without the row's method; a value that is not the
            mean of its questions' values.
    """
    for kind, names in (("rows", [r.title for r in study.rows]), ("columns", [c.metric for c in study.columns])):
        if len(set(names)) < len(names):
            raise ValueError(f"{study.name} has two {kind} of one name")
    found = {
        (row.title, column.metric): _interval(row, column, results) for row in study.rows for column in study.columns
    }
    return {key: value for key, value in found.items() if value is not None}


def missing(study: Study, results: Results) -> tuple[str, ...]:
    """Names of jobs that have not finished."""
    return tuple(job.name for job in study.jobs if job.name not in results)


def difference(one: Interval, other: Interval) -> limits.Interval:
    """`one` less `other`, with a 95 % interval over the same questions and seeds where both have them.

    None where one of them is a single value: nothing is known of how it varies.
    """
    by_question = one.questions and other.questions
    values = _values(one, by_question), _values(other, by_question)
    if min(value.size for value in values) == 1:
        return limits.Interval(one.mean - other.mean)
    return bootstrap.difference(*values)


def ahead(one: Interval, other: Interval, column: Column) -> bool:
    """Whether `one` is better by more than chance: the interval of the difference is beyond 0.

    Raises:
        ValueError: a column in which nothing is better.
    """
    if column.better is None:
        raise ValueError(f"nothing is better or worse in {column.metric}")
    apart = difference(one, other) if column.better == "more" else difference(other, one)
    return apart.low is not None and apart.low > 0


def of_rivals(study: Study, cells: Cells) -> Cells:
    """The cells of rows that may lead."""
    rivals = {row.title for row in study.rows if row.rival}
    return {key: cell for key, cell in cells.items() if key[0] in rivals}


def leaders(study: Study, cells: Cells) -> frozenset[tuple[str, str]]:
    """The cells that are ahead of every other one in their column, of two or more."""
    found, rivals = set(), of_rivals(study, cells)
    for column in study.columns:
        own = {title: cell for (title, metric), cell in rivals.items() if metric == column.metric}
        if column.better is None or len(own) < 2:
            continue
        sign = 1 if column.better == "more" else -1
        best = max(own, key=lambda title: sign * own[title].mean)
        if all(ahead(own[best], other, column) for title, other in own.items() if title != best):
            found.add((best, column.metric))
    return frozenset(found)


def table(study: Study, cells: Cells, results: Results) -> Table:
    """A study's table as a person reads it."""
    best = leaders(study, cells)
    notes = list(dict.fromkeys(row.note for row in study.rows if row.note))
    lines = []
    for row in study.rows:
        done = sum(job.name in results for job in row.jobs)
        shown = []
        for column in study.columns if row.jobs else ():
            key = row.title, column.metric
            if key in cells:
                shown.append(Cell(number(cells[key].mean, column), limits_of(cells[key], column), key in best))
            else:
                shown.append(Cell(NO_VALUE if done else NOT_RUN))
        lines.append(
            Line(
                title=row.title,
                note=notes.index(row.note) + 1 if row.note else 0,
                seeds="" if not row.jobs else str(done) if done == len(row.jobs) else f"{done} of {len(row.jobs)}",
                cells=tuple(shown),
                paper=tuple(row.paper.get(column.metric, "") for column in study.columns) if row.paper else (),
            )
        )
    return Table(tuple(column.title for column in study.columns), tuple(lines), tuple(notes))


def legend(study: Study, cells: Cells) -> str:
    """How a table is to be read: what its intervals are over, and what is bold."""
    if not cells:
        return "Nothing has been run."
    kinds: dict[str, list[str]] = {}
    for column in study.columns:
        own = [cells[row.title, column.metric] for row in study.rows if (row.title, column.metric) in cells]
        if own:
            kinds.setdefault(_over(own), []).append(column.title)
    over = ", ".join(f"{kind} ({'; '.join(titles)})" if len(kinds) > 1 else kind for kind, titles in kinds.items())
    means = "Means over seeds" if any(len(cell.seeds) > 1 for cell in cells.values()) else "One seed"
    text = f"{means}. In brackets 95 % bootstrap intervals over {over}." if set(kinds) != {"nothing"} else f"{means}."
    if leaders(study, cells):
        text += " Bold: ahead of every other row, the 95 % interval of the paired difference being beyond 0."
    return text


def number(value: float, column: Column) -> str:
    """A value with its column's digits; no minus before a 0."""
    if not math.isfinite(value):
        return str(value)
    text = f"{value:.{column.digits}{'e' if column.scientific else 'f'}}"
    text = re.sub(r"e([-+])0*(?=\d)", lambda power: "e" + power[1].strip("+"), text)
    return text.lstrip("-") if float(text) == 0 else text


def limits_of(cell: Interval, column: Column) -> str:
    """An interval as a person reads it; empty where there is none."""
    if cell.low is None or cell.high is None:
        return ""
    return f"[{number(cell.low, column)}, {number(cell.high, column)}]"


def _over(cells: Sequence[Interval]) -> str:
    """What the intervals of a column are over."""
    seeds = max(len(cell.seeds) for cell in cells)
    asked = {len(cell.questions[0]) for cell in cells if cell.questions}
    questions = f"{min(asked):,}" + (f" to {max(asked):,}" if len(asked) > 1 else "") + " questions" if asked else ""
    return " and ".join([*(["seeds"] if seeds > 1 else []), *([questions] if asked else [])]) or "nothing"


def _interval(row: Row, column: Column, results: Results) -> Interval | None:
    """A row's value in a column, over those of its jobs that have finished and left it."""
    known = [one for job in row.jobs if (one := left(job, row.method, column.metric, results)) is not None]
    if not known:
        return None
    seeds = tuple(value for value, _ in known)
    asked = tuple(questions for _, questions in known if questions is not None)
    if len(asked) < len(known) or len({len(one) for one in asked}) > 1:
        asked = ()
    unlimited = Interval(float(np.mean(seeds)), None, None, seeds, asked)
    found = bootstrap.interval(_values(unlimited, asked))
    return dataclasses.replace(unlimited, low=found.low, high=found.high)


def left(job: Job, method: str, metric: str, results: Results) -> tuple[float, tuple[float, ...] | None] | None:
    """A job's value and its questions' values, if these are known; None where it has left no such number."""
    found = results.get(job.name)
    if found is None:
        return None
    if method in found.results.get("left_out", {}):  # with the reason why it cannot be had
        return None
    if method not in found.results:
        raise ValueError(f"{job.name} has left no {method!r} in its results.json")
    if metric.startswith(SPENT):  # of the run that trained the policy, and nobody else's
        spent = found.results.get("budget") if method in OWN.values() else None
        value = (spent or {}).get(metric.removeprefix(SPENT))
    else:
        value = found.results[method].get(metric)
    if not isinstance(value, int | float):
        return None
    questions = (found.questions or {}).get(method, {}).get(metric)
    if not questions:
        return float(value), None
    if not math.isclose(value, np.mean(questions), rel_tol=ROUNDING, abs_tol=ROUNDED):
        raise ValueError(
            f"{job.name}: {method}.{metric} is {value} in results.json, and {np.mean(questions)} is the mean of its "
            "questions.json"
        )
    return float(value), tuple(map(float, questions))


def _values(cell: Interval, by_question: Any) -> Float[np.ndarray, "S Q"]:
    """A cell's values for the bootstrap: of questions, or of seeds alone."""
    return np.array(cell.questions) if by_question else np.array(cell.seeds)[:, None]
