"""Programs of several runs in turn: what expectation maximisation and STaR have in common.

Each run has its own folder and goes on from its own checkpoints; its findings are in its results.json, those of the
last and a row for each in the program's.
"""

import dataclasses
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
from jax.experimental import multihost_utils

from gfn_jax.evaluation.report import (
    QUESTIONS,
    RESULTS,
    SAMPLES,
    read_json,
    write_questions,
    write_results,
    write_whole,
)
from gfn_jax.runs.budget import total
from gfn_jax.runs.config import PolicyRun
from gfn_jax.runs.ending import OWN
from gfn_jax.training.loop import Run, Trained, complete


def completed(run: Run) -> tuple[Trained, str]:
    """Completes a run: what was trained, and its last words; what the first process wrote is there for all to read."""
    kept: list[Trained] = []

    def finish(trained: Trained) -> str:
        kept.append(trained)
        return run.finish(trained)

    words = complete(dataclasses.replace(run, finish=finish))
    multihost_utils.sync_global_devices(str(run.workdir))
    return kept[0], words


def results_of(workdir: pathlib.Path) -> dict[str, Any]:
    """What a run has left in its results.json: facts about it, and method -> metrics."""
    results: dict[str, Any] = json.loads((workdir / RESULTS).read_text())
    return results


def methods_of(workdir: pathlib.Path) -> dict[str, Any]:
    """Method -> metrics, of the results that a run has left; what else there is are facts about the run."""
    return {name: found for name, found in results_of(workdir).items() if isinstance(found, dict)}


def shown(found: Mapping[str, Any], run: Run) -> str:
    """What a line says of a method: the metric that the run's best checkpoint is kept by or, without one, all numbers.

    Args:
        found: metric -> value, as in `results.json`.
        run: a policy's.
    """
    best = {name: value for name, value in found.items() if name == run.best_metric}
    numbers = {name: value for name, value in found.items() if isinstance(value, int | float)}
    return ", ".join(f"{name} {value:.4g}" for name, value in (best or numbers).items())


def write_rounds(
    workdir: pathlib.Path,
    config: PolicyRun,
    method: str,
    command: str,
    seconds: float,
    rows: Mapping[str, Mapping[str, Any]],
    runs: Mapping[str, pathlib.Path],
    between: Sequence[Mapping[str, Any] | None] = (),
) -> None:
    """Writes a program's results.json, questions.json and samples.jsonl: those of the last run, and of each its own.

    Args:
        workdir: the program's.
        config: of its runs.
        method: what it is called there.
        command: what repeats it.
        seconds: training time of all runs.
        rows: name -> metrics, a row for each run.
        runs: the same names -> the runs' folders, in order.
        between: what was spent between the runs (`Budget.as_dict`).
    """
    if jax.process_index() != 0:
        return
    *_, last = runs.values()
    questions, own = read_json(last / QUESTIONS), OWN[config.values.report]
    own_questions = {name: read_json(folder / QUESTIONS).get(own) for name, folder in runs.items()}
    write_questions(workdir / QUESTIONS, questions | {name: found for name, found in own_questions.items() if found})
    if (last / SAMPLES).exists():
        write_whole(workdir / SAMPLES, (last / SAMPLES).read_text())
    facts = {"task": config.values.task, "method": method, "seed": config.values.seed, "command": command}
    spent = total([*(results_of(folder).get("budget") for folder in runs.values()), *between])
    found = {**methods_of(last), **rows, "budget": spent}  # None, not the last run's, where one is not known
    write_results(workdir / RESULTS, {**facts, "seconds": round(seconds, 1), **found})


def last_words(page: str, lines: list[str], workdir: pathlib.Path) -> str:
    """What a person reads at the end: the last run's own words, then a line for each."""
    return "\n".join([page, "", "Round by round:", *lines, "", f"Results: {workdir / 'results.json'}"])
