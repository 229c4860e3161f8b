"""What a study is: a table or figure, the jobs that it needs, and where its cells are read.

A job is one process that owns one folder and leaves a results.json there, method -> metric -> value; where it also
leaves questions.json, method -> metric -> a value a question, intervals are over questions and seeds, else over seeds.
Jobs are the unit of everything that can be interrupted, repeated or reused; several studies may share one.
"""

import dataclasses
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

from gfn_jax.studies.found import Found

LAUNCH = "gfn_jax.launch"
SEED = re.compile(r"\bseed-(\d+)\b")  # of a job's name
Figure = Literal["bars", "curves", "scatter", "distributions"]


def config_words(settings: Mapping[str, Any]) -> tuple[str, ...]:
    """A config's settings as flags, `--config.steps=40`."""
    return tuple(f"--config.{key}={value}" for key, value in settings.items())


@dataclasses.dataclass(frozen=True)
class Job:
    """One process.

    Attributes:
        name: its folder below the workdir of all studies, "arith/gflownet-50/seed-0".
        module: what is run: `python -m MODULE ARGUMENTS --workdir=FOLDER`.
        arguments: flags; "{NAME}" in one stands for the folder of a job in `needs`.
        needs: names of the jobs that must have finished.
        seconds: what it takes on one core, roughly, nothing cached.
        gigabytes: the most memory that it holds, roughly.
    """

    name: str
    module: str
    arguments: tuple[str, ...]
    needs: tuple[str, ...] = ()
    seconds: float = 60.0
    gigabytes: float = 1.5


@dataclasses.dataclass(frozen=True)
class Column:
    """A measure.

    Attributes:
        metric: its name in results.json.
        title: what a person reads.
        digits: behind the point.
        better: which way is better; None where neither is.
        scientific: is written as 4.4e-5, and drawn on a logarithmic axis.
    """

    metric: str
    title: str
    digits: int = 1
    better: Literal["more", "less"] | None = "more"
    scientific: bool = False


@dataclasses.dataclass(frozen=True)
class Row:
    """A method with its settings, over seeds.

    Attributes:
        title: what a person reads.
        jobs: one a seed.
        method: whose metrics in their results.json.
        paper: column's metric -> what the paper says there.
        series, x: of a curve: the line that the row is a point of, and where on the x axis.
        note: a footnote.
        rival: whether it may lead, in the table and in the lesson; not one that knows the answer, nor a floor.
    """

    title: str
    jobs: tuple[Job, ...]
    method: str = "policy"
    paper: Mapping[str, str] = dataclasses.field(default_factory=dict)
    series: str | None = None
    x: float | None = None
    note: str = ""
    rival: bool = True


@dataclasses.dataclass(frozen=True)
class Interval:
    """A mean over seeds with its 95 % bootstrap interval; None where nothing can be resampled.

    Attributes:
        mean: of the seeds.
        low, high: limits; over questions too, where these are known.
        seeds: the seeds' own values.
        questions: of each seed, the values of the same questions in the same order; () where they are not known.
    """

    mean: float
    low: float | None
    high: float | None
    seeds: tuple[float, ...]
    questions: tuple[tuple[float, ...], ...] = ()


# (row's title, column's metric) -> its value; absent where no job of the row has left it.
Cells = Mapping[tuple[str, str], Interval]
# Job's name -> what it has left; absent while it has not finished.
Results = Mapping[str, Found]


@dataclasses.dataclass(frozen=True)
class Study:
    """A table or figure.

    Attributes:
        name: what `--what` calls it.
        title: of its section in the report.
        paper: which table or figure of the paper it is the twin of; empty where it is ours.
        setting: what was done, in a few sentences.
        columns, rows: of the table.
        lesson: one line drawn from the rivals' cells by rule, once all jobs have finished.
        figure: how the table is drawn; None for not at all.
        x_title, log_x: of curves.
        figure_columns: metrics that are drawn; a scatter has two, x and y. Empty for all columns.
        distributions: what such a figure draws, from what its jobs have left: title -> probabilities of 0, 1, ...; the
            target, which is drawn into all panels, is called "target".
        texts: what is sampled, as (title, lines), from what those of its jobs have left that have finished.
        others: jobs that those of the rows need, and that no row shows.
        differing: keys of the config in which its rows may differ, though they are compared (`protocol`): what it is
            about.
        tuned: task -> methods that are compared, so that each must have been tuned with as many trials (`protocol`).
    """

    name: str
    title: str
    paper: str
    setting: str
    columns: tuple[Column, ...]
    rows: tuple[Row, ...]
    lesson: Callable[[Cells], str]
    figure: Figure | None = None
    x_title: str = ""
    log_x: bool = False
    figure_columns: tuple[str, ...] = ()
    distributions: Callable[[Results], Mapping[str, Sequence[float]]] | None = None
    texts: Callable[[Results], Sequence[tuple[str, Sequence[str]]]] | None = None
    others: tuple[Job, ...] = ()
    differing: tuple[str, ...] = ()
    tuned: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)

    @property
    def jobs(self) -> tuple[Job, ...]:
        """Those of all rows and the others, each once."""
        return tuple(dict.fromkeys((*self.others, *(job for row in self.rows for job in row.jobs))))
