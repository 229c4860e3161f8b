"""What `gfn train` does of several runs: one after the other, then their table and summary.json."""

import dataclasses
import json
import pathlib
from collections.abc import Iterator, Mapping, Sequence

from gfn_jax.commands.reproduce import check
from gfn_jax.evaluation.report import write_whole
from gfn_jax.studies import beside, plan, pool
from gfn_jax.studies.found import Found
from gfn_jax.studies.tuning import SCORES

SUMMARY = "summary.json"
# Task -> what a sweep is sorted by, where `tuning.SCORES` has none: held-out text of a fine-tuning.
HELD_OUT = {"finetune": ("nll", "less")}


@dataclasses.dataclass(frozen=True)
class Runs:
    """What was asked for.

    Attributes:
        task: of the config.
        command: that repeats it.
        points: overrides of each point of the sweep, a single empty one without a sweep.
        seeds: of each; () for the config's own.
        swept: whether points are compared, on validation.
    """

    task: str
    command: str
    points: tuple[Mapping[str, str], ...]
    seeds: tuple[int, ...]
    swept: bool


def complete(runs: Runs, planned: Sequence[plan.Planned], workers: int, workdir: pathlib.Path) -> Iterator[str]:
    """Runs what is missing, and gives the table of what is there then, which is also in WORKDIR/summary.json.

    Raises:
        TrainingStopped: a signal came; behind the table.
        RuntimeError: runs failed; behind the table.
        ValueError: something else lies in the place of a run.
    """
    outcome = pool.run(planned, workers, pathlib.Path.cwd(), workdir, aloud=True)
    found = plan.found(planned)
    if found:
        yield summary(runs, planned, found, workdir)
    check(outcome, planned)


def summary(runs: Runs, planned: Sequence[plan.Planned], found: Mapping[str, Found], workdir: pathlib.Path) -> str:
    """Writes summary.json, and returns what a person reads."""
    each = max(len(runs.seeds), 1)
    done = [
        tuple(found[one.job.name] for one in planned[first : first + each] if one.job.name in found)
        for first in range(0, len(planned), each)
    ]
    some = next(group for group in done if group)[0]
    if runs.swept:
        groups, metrics = swept(runs, done)
    else:
        metrics = beside.metrics_of(some, beside.own_method(some))
        groups = [beside.Group(method, done[0], method) for method in beside.methods_of(some, metrics)]
    study, cells = beside.as_study(groups, metrics)
    values = {
        "command": runs.command,
        "task": runs.task,
        "seeds": list(runs.seeds),
        "runs": {one.job.name: plan.state(one) for one in planned},
        "rows": beside.as_dict(study, cells),
    }
    if runs.swept:
        values["points"] = {title(point): dict(point) for point in runs.points}
    write_whole(workdir / SUMMARY, json.dumps(values, indent=1) + "\n")
    shown = dataclasses.replace(study, columns=study.columns[: beside.SHOWN])
    lines = [beside.page(shown, cells), ""]
    if runs.swept:
        lines += [choice(runs, groups), ""]
    left = len(planned) - len(found)
    lines += [f"{left} of {len(planned)} runs have not finished and are not in it."] * bool(left)
    return "\n".join([*lines, f"All metrics: {workdir / SUMMARY}; each run: {workdir}/*/"])


def swept(runs: Runs, done: Sequence[tuple[Found, ...]]) -> tuple[list[beside.Group], list[str]]:
    """The points that have finished runs, the best by validation first, and the metrics, that one first."""
    pairs = [(point, group) for point, group in zip(runs.points, done, strict=True) if group]
    own = beside.own_method(pairs[0][1][0])
    metrics = beside.metrics_of(pairs[0][1][0], own)
    metric, better = score_of(runs.task)
    if metric in metrics:
        metrics = [metric, *(name for name in metrics if name != metric)]
        sign = -1 if better == "more" else 1

        def mean(pair: tuple[Mapping[str, str], tuple[Found, ...]]) -> float:
            return sign * sum(run.results[own][metric] for run in pair[1]) / len(pair[1])

        pairs.sort(key=mean)
    return [beside.Group(title(point), group, own) for point, group in pairs], metrics


def score_of(task: str) -> tuple[str | None, str | None]:
    """The validated metric that a task's runs are sorted by, and which way is better; None where nobody has said."""
    return {**SCORES, **HELD_OUT}.get(task, (None, None))


def choice(runs: Runs, groups: Sequence[beside.Group]) -> str:
    """The best point as flags."""
    metric, _ = score_of(runs.task)
    if metric is None:
        return f"Nothing says which run of the task {runs.task} is the better: in the order of the sweep."
    best = next(point for point in runs.points if title(point) == groups[0].title)
    flags = " ".join(f"--{key}={value}" for key, value in best.items())
    return f"Sorted by {metric} on held-out questions; the first: {flags}"


def title(point: Mapping[str, str]) -> str:
    """A point as a person reads it."""
    return ", ".join(f"{key}={value}" for key, value in point.items())
