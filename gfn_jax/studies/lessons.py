"""One line drawn from a table's numbers by rule. A row leads where the paired difference's interval is beyond 0."""

from typing import Literal

from gfn_jax.studies import cells as table
from gfn_jax.studies.study import Cells, Column, Interval

Better = Literal["more", "less"]
NOTHING = "Nothing has been run yet."


def ahead(cells: Cells, first: str, second: str, metric: str, better: Better, what: str) -> str:
    """Which of two rows leads in a metric, or that they cannot be told apart."""
    one, other = cells.get((first, metric)), cells.get((second, metric))
    if one is None or other is None:
        return NOTHING
    if _leads(other, one, better):
        first, second, one, other = second, first, other, one
    elif not _leads(one, other, better):
        return f"{what}: {first} ({written(one)}) and {second} ({written(other)}) cannot be told apart."
    return f"{what}: {first} is ahead, {written(one)} against {written(other)} of {second}{once(one, other)}."


def best(cells: Cells, metric: str, better: Better, what: str, within: str = "") -> str:
    """Which row leads, and which cannot be told apart from it.

    Args:
        cells: of the table.
        metric: of the column.
        better: which way is.
        what: the column in words.
        within: only rows whose title ends so.
    """
    rows = {row: cell for (row, name), cell in cells.items() if name == metric and row.endswith(within)}
    if not rows:
        return NOTHING
    sign = 1 if better == "more" else -1
    first = max(rows, key=lambda row: sign * rows[row].mean)
    near = [row for row, cell in rows.items() if row != first and not _leads(rows[first], cell, better)]
    also = f"; not told apart from it: {', '.join(near)}" if near else ""
    return f"{what}: best is {first}, {written(rows[first])}{also}{once(rows[first])}."


def worth(cells: Cells, there: str, without: str, metric: str, what: str) -> str:
    """What is lost without something."""
    one, other = cells.get((there, metric)), cells.get((without, metric))
    if one is None or other is None:
        return NOTHING
    clear = _leads(one, other, "more") or _leads(other, one, "more")
    return (
        f"{what} is worth {one.mean - other.mean:+.1f} points ({written(one)} against {written(other)})"
        f"{'' if clear else ', which is within the intervals'}."
    )


def says(cells: Cells, metric: str, what: str) -> str:
    """The first row's number in a sentence: "0.5 of its samples differ"."""
    found = next((cell for (_, name), cell in cells.items() if name == metric), None)
    return NOTHING if found is None else f"{written(found)} {what}."


def reaches(cells: Cells, row: str, metric: str, better: Better, bound: float, what: str) -> str:
    """Whether every seed of a row keeps a bound."""
    found = cells.get((row, metric))
    if found is None:
        return NOTHING
    kept = [value <= bound if better == "less" else value >= bound for value in found.seeds]
    verdict = "every seed reaches" if all(kept) else f"{sum(kept)} of {len(kept)} seeds reach"
    return f"{row}: {verdict} {what} ({written(found)})."


def written(cell: Interval) -> str:
    """A mean with its interval, if it has one."""
    if cell.low is None or cell.high is None:
        return f"{cell.mean:.3g}"
    return f"{cell.mean:.3g} [{cell.low:.3g}, {cell.high:.3g}]"


def once(*cells: Interval) -> str:
    """What is said of a lead that a single seed has."""
    return " (one seed: over its questions alone)" if min(len(cell.seeds) for cell in cells) < 2 else ""


def _leads(one: Interval, other: Interval, better: Better) -> bool:
    """Whether the first is better by more than chance."""
    return table.ahead(one, other, Column("", "", better=better))
