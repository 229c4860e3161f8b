"""What a table says when it is made again, number by number beside docs/results.

    python benchmarks/rerun.py --report=runs/reproduce/report --out=benchmarks/results

Compares the CSV files of a report with those that ship, for the seeds that it has: how many numbers are the same in all
of their digits, and, of those that are not, the one that moved most for its size. Writes rerun.md.
"""

import argparse
import csv
import pathlib
import sys
import time
from typing import NamedTuple

import jax

from gfn_jax.evaluation.report import table

ROOT = pathlib.Path(__file__).resolve().parents[1]


class Key(NamedTuple):
    """Which number of a table."""

    row: str
    metric: str
    seed: str


class Compared(NamedTuple):
    """One table beside its older self.

    Attributes:
        same: how many numbers are.
        moved: those that are not, as (key, shipped, made again), the largest change for its size first.
    """

    same: int
    moved: list[tuple[Key, float, float]]


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--report", type=pathlib.Path, required=True, help="the report that was made again")
    parser.add_argument("--tables", help="names, with commas between; all that both have, if not given")
    parser.add_argument("--shipped", type=pathlib.Path, default=ROOT / "docs" / "results")
    parser.add_argument("--out", type=pathlib.Path, default=ROOT / "benchmarks" / "results")
    return parser.parse_args()


def numbers(file: pathlib.Path) -> dict[Key, float]:
    """The numbers of a table's single runs."""
    with file.open(encoding="utf-8", newline="") as lines:
        found = [(Key(line["row"], line["metric"], line["seed"]), line["value"]) for line in csv.DictReader(lines)]
    return {key: float(value) for key, value in found if value}


def compare(shipped: dict[Key, float], again: dict[Key, float]) -> Compared:
    """The numbers of the seeds that both have.

    Raises:
        ValueError: no seed is in both, or one has a number that the other lacks.
    """
    seeds = {key.seed for key in shipped} & {key.seed for key in again}
    shipped, again = ({key: x for key, x in side.items() if key.seed in seeds} for side in (shipped, again))
    if not seeds or shipped.keys() != again.keys():
        lacking = next(iter(shipped.keys() ^ again.keys()), "no seed in common")
        raise ValueError(f"the two tables are not of the same runs: {lacking}")
    moved = [(key, shipped[key], again[key]) for key in shipped if shipped[key] != again[key]]
    return Compared(len(shipped) - len(moved), sorted(moved, key=lambda one: -_change(*one[1:])))


def _change(before: float, after: float) -> float:
    """Of two different numbers, between 0 and 2."""
    return abs(after - before) / max(abs(after), abs(before))


def line(study: str, compared: Compared) -> list[str]:
    """A table's line of the page."""
    if not compared.moved:
        return [study, str(compared.same), "0", "", "", ""]
    key, *values = compared.moved[0]
    before, after = (f"{value:.4g}" for value in values)
    return [study, str(compared.same), str(len(compared.moved)), f"{key.row}, {key.metric}", before, after]


def main() -> int:
    """Compares every table that both have."""
    options = parse()
    there = sorted(file.stem for file in options.report.glob("*.csv") if (options.shipped / file.name).exists())
    names = options.tables.split(",") if options.tables else there
    try:
        if not names or not set(names) <= set(there):
            raise ValueError(f"{options.report} and {options.shipped} have in common: {', '.join(there) or 'no table'}")
        sides = (options.shipped, options.report)
        rows = [line(name, compare(*(numbers(side / f"{name}.csv") for side in sides))) for name in names]
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    page = table(["table", "the same", "not", "moved most", "shipped", "again"], rows)
    facts = f"{time.strftime('%Y-%m-%d')}, jax {jax.__version__}"
    text = f"```\n{page}\n```\n\n{facts}:\n\n    {' '.join(['python', *sys.argv])}\n"
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "rerun.md").write_text(text)
    print(page)
    return 0


if __name__ == "__main__":
    sys.exit(main())
