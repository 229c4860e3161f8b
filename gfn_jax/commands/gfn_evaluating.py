"""What `gfn evaluate` does: a run's task and evaluator, made again, and any adapter on the run's base."""

import copy
import dataclasses
import hashlib
import json
import logging
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

from gfn_jax.commands import certifying
from gfn_jax.evaluation.report import Findings, write_results
from gfn_jax.models.checkpoint import read_config
from gfn_jax.models.tensor_files import resolve
from gfn_jax.runs.config import PolicyRun
from gfn_jax.runs.ending import OWN, Report, measured
from gfn_jax.runs.saved import SavedRun, read_run
from gfn_jax.runs.tasks import make_evaluator, make_task
from gfn_jax.runs.weights import load_base
from gfn_jax.studies import beside
from gfn_jax.studies.found import Found
from gfn_jax.text.loading import load_tokenizer, model_folder
from gfn_jax.training import mesh as meshes

_log = logging.getLogger("gfn_jax")


@dataclasses.dataclass(frozen=True)
class Settings:
    """What to measure.

    Attributes:
        workdir: of the run.
        given: key of the run's config -> its value instead.
        seeds: of the evaluator; () for the config's.
        split: test or validation; None for what the run reports.
        step: of the run's checkpoints.
        adapter: another one; "none" for the base.
        model: where the base lies, if not where the run had it.
        out: the file; None for one in the workdir.
        command: that repeats it.
    """

    workdir: str
    given: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    seeds: tuple[int, ...] = ()
    split: Report | None = None
    step: str = "newest"
    adapter: str | None = None
    model: str | None = None
    out: str | None = None
    command: str = ""


def evaluate(settings: Settings) -> Iterator[str]:
    """Reads everything, then measures as the texts are asked for: the table of one seed, or of several.

    Raises:
        ValueError, OSError: what is wrong with the settings or the files, in one line.
    """
    saved = read_run(pathlib.Path(settings.workdir))
    split: Report = settings.split or saved.config.get("report", "test")
    config = certifying.policy_run(changed(saved, {**settings.given, "report": split}))
    configs = [seeded(config, seed) for seed in settings.seeds] or [config]
    folder = resolve(model_folder(settings.model or config.model.path))
    mesh = meshes.use_mesh(config.mesh)
    model_type, shape = read_config(folder)
    _log.info("preparing the task %s", config.values.task)
    task = make_task(config, load_tokenizer(folder), shape)
    evaluators = [make_evaluator(one, task, shape) for one in configs]
    _log.info("reading the base %s", settings.model or config.model.path)
    base = load_base(folder, config.model.dtype, mesh, config.model.quantize)
    whose = certifying.Settings(settings.workdir, settings.step, settings.adapter, settings.model)
    policy, name = certifying.adapted(whose, saved, base, shape, model_type)

    def pages() -> Iterator[str]:
        found = []
        for number, evaluator in enumerate(evaluators):
            seed = f", seed {settings.seeds[number]}" if settings.seeds else ""
            _log.info("evaluating %s on the %s split%s", name, split, seed)
            found.append(measured(evaluator, policy, split))
        facts = {
            "task": config.values.task,
            "policy": name,
            "split": split,
            "seeds": list(settings.seeds),
            "given": dict(settings.given),
            "command": settings.command,
        }
        out = pathlib.Path(settings.out) if settings.out else place(settings, split)
        page, values = summary(found, split)
        write_results(out, {**facts, **values})
        yield f"{page}\n\nWritten: {out}"

    return pages()


def changed(saved: SavedRun, given: Mapping[str, Any]) -> SavedRun:
    """The run with other values in its config."""
    config = copy.deepcopy(saved.config)
    for key, value in given.items():
        *sections, field = key.split(".")
        inside = config
        for name in sections:
            inside = inside[name]
        inside[field] = value
    return dataclasses.replace(saved, config=config)


def seeded(config: PolicyRun, seed: int) -> PolicyRun:
    """The config with another seed of its evaluator.

    Raises:
        ValueError: the evaluator has none.
    """
    if "seed" not in {field.name for field in dataclasses.fields(config.evaluation)}:
        raise ValueError(f"the evaluator of the task {config.values.task} has no seed: leave --seeds out")
    return dataclasses.replace(config, evaluation=dataclasses.replace(config.evaluation, seed=seed))


def place(settings: Settings, split: str) -> pathlib.Path:
    """The file in the workdir: of settings other than the run's, with their digest in its name."""
    other = [dict(settings.given), settings.seeds, settings.adapter, settings.step]
    digest = hashlib.sha256(json.dumps(other, sort_keys=True).encode()).hexdigest()[:8]
    plain = other == [{}, (), None, "newest"]
    return pathlib.Path(settings.workdir) / f"evaluation-{split}{'' if plain else f'-{digest}'}.json"


def summary(found: list[Findings], split: Report) -> tuple[str, dict[str, Any]]:
    """What a person reads, and what the file holds: of one seed the methods, of several their means and each."""
    if len(found) == 1:
        (one,) = found
        questions = {method: {name: list(row) for name, row in rows.items()} for method, rows in one.questions.items()}
        return one.page, {**one.methods, "questions": questions}
    runs = tuple(Found(pathlib.Path(), dict(one.methods), dict(one.questions), {}) for one in found)
    metrics = beside.metrics_of(runs[0], OWN[split])
    groups = [beside.Group(method, runs, method) for method in beside.methods_of(runs[0], metrics)]
    study, cells = beside.as_study(groups, metrics)
    shown = dataclasses.replace(study, columns=study.columns[: beside.SHOWN])
    return beside.page(shown, cells), {"rows": beside.as_dict(study, cells), "each": [one.methods for one in found]}
