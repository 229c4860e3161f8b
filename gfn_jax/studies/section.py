"""A section of the report: all that is said of one study, before it is said in Markdown or HTML."""

import dataclasses
import pathlib
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from gfn_jax.studies import cells as tables
from gfn_jax.studies import figures
from gfn_jax.studies.cells import Table
from gfn_jax.studies.found import Facts
from gfn_jax.studies.plan import arguments_of, readable_time
from gfn_jax.studies.study import Cells, Job, Results, Study
from gfn_jax.studies.tuning import untuned

WORKDIR = "DIR"  # what a workdir is called in commands


@dataclasses.dataclass(frozen=True)
class Section:
    """What is said of a study.

    Attributes:
        study: which.
        setting: what was done, and what nobody has tuned.
        cells: its values.
        table, legend: they as a person reads them.
        lesson: the rule's line, or what is still to be run.
        figure, caption: None and "" without one.
        texts: what was sampled, as (title, lines).
        certificates: of its runs, by their job's name.
        command: makes the section again.
        runs: commands of its jobs.
        took: how long its finished jobs did.
    """

    study: Study
    setting: str
    cells: Cells
    table: Table
    legend: str
    lesson: str
    figure: figures.Drawn | None
    caption: str
    texts: Sequence[tuple[str, Sequence[str]]]
    certificates: Mapping[str, Mapping[str, Any]]
    command: str
    runs: Sequence[str]
    took: str


def section(study: Study, results: Results, facts: Facts) -> Section:
    """All that is said of a study.

    Raises:
        ValueError: as `cells.cells` and `figures.draw`.
    """
    found = tables.cells(study, results)
    unfinished = tables.missing(study, results)
    own = {job.name: results[job.name] for job in study.jobs if job.name in results}
    drawn = figures.draw(study, found, own) if figures.available() else None
    rest = f"{len(unfinished)} of {len(study.jobs)} runs are missing."
    seconds = sum(one.job.get("seconds", 0.0) for one in own.values())
    return Section(
        study=study,
        setting=" ".join([study.setting, *_untuned(study, facts.preset)]),
        cells=found,
        table=tables.table(study, found, results),
        legend=tables.legend(study, found),
        lesson=rest if unfinished else study.lesson(tables.of_rivals(study, found)),
        figure=drawn,
        caption=_caption(study) if drawn else "",
        texts=study.texts(own) if study.texts and own else (),
        certificates={
            name: one.results["certificate"] for name, one in own.items() if one.results.get("certificate") is not None
        },
        command=f"python -m gfn_jax.reproduce --what={study.name} --preset={facts.preset} "
        f"--seeds={','.join(map(str, facts.seeds))} --workdir={WORKDIR}",
        runs=[command(job) for job in study.jobs],
        took=f"{len(own)} of {len(study.jobs)} finished, in {readable_time(seconds)} of running time together",
    )


def command(job: Job) -> str:
    """What runs a job, folders below WORKDIR."""
    return shlex.join(["python", "-m", job.module, *arguments_of(job, pathlib.PurePath(WORKDIR))])


def _untuned(study: Study, preset: str) -> list[str]:
    if study.tuned and preset == "paper":
        return ["Nothing was tuned: settings are those of the preset's configs."]
    missing = [name for task, names in study.tuned.items() for name in untuned(task, names)]
    return [f"Not tuned on validation: {', '.join(missing)}."] if missing else []


def _caption(study: Study) -> str:
    """What a figure shows."""
    titles = {column.metric: column.title for column in study.columns}
    drawn = [titles[name] for name in study.figure_columns or titles]
    names = "; ".join(drawn)
    match study.figure:
        case "curves":
            return f"{names}, against {study.x_title}. Bands are the table’s intervals; arrows point to what is better."
        case "scatter":
            return (
                f"{drawn[1]}, against {drawn[0]}. Thin lines are the table’s intervals; arrows point to what is better."
            )
        case "distributions":
            return "Exact probabilities, of the first seed; the line is the target. Every panel has its own scale."
        case _:
            return f"{names}. Thin lines are the table’s intervals; arrows point to what is better."
