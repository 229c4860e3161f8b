"""What `gfn sample WORKDIR` does: everything that a run's config says of sampling, unless a flag says otherwise."""

import dataclasses
import logging
import pathlib
from collections.abc import Collection, Iterator
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from gfn_jax.commands import certifying
from gfn_jax.commands.sampling import (
    Sample,
    Settings,
    batches,
    check_query,
    make_calculator,
    make_draw,
    make_query,
    to_context,
    tool_columns,
)
from gfn_jax.environments import CALL, Calculator, NoTool
from gfn_jax.interfaces import Environment, Reward
from gfn_jax.models.checkpoint import read_config
from gfn_jax.models.tensor_files import resolve
from gfn_jax.policy.constraint import Rules, make_constraint
from gfn_jax.rewards import PosteriorReward
from gfn_jax.runs.rewards import build_reward
from gfn_jax.runs.saved import read_run
from gfn_jax.runs.tasks import make_task
from gfn_jax.runs.weights import load_base
from gfn_jax.tasks.task import Task
from gfn_jax.text.joining import Bos
from gfn_jax.text.loading import load_tokenizer, model_folder
from gfn_jax.text.tokens import allowed_ids, stop_token
from gfn_jax.training import mesh as meshes
from gfn_jax.types import Query

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

_log = logging.getLogger("gfn_jax")


@dataclasses.dataclass(frozen=True)
class OfRun:
    """Which run, and which of its questions.

    Attributes:
        workdir: of the run.
        step: of its checkpoints.
        split: whose first questions, where no prompt is given; None for the one that certificates are about.
        queries: how many of them.
    """

    workdir: str
    step: str
    split: str | None
    queries: int


def sample_run(of: OfRun, settings: Settings, given: Collection[str]) -> Iterator[list[Sample]]:
    """Completions batch by batch, of the settings' prompts or, where there are none, of the task's own questions.

    Args:
        of: the run.
        settings: the command's; what is not `given` is as in the run.
        given: names of the settings that somebody has given.

    Raises:
        ValueError, OSError: what is wrong with the settings or the files, in one line.
    """
    saved = read_run(pathlib.Path(of.workdir))
    config = certifying.policy_run(saved)
    own: dict[str, Any] = {"model": config.model.path, "dtype": config.model.dtype, "quantize": config.model.quantize}
    settings = dataclasses.replace(settings, **{name: own[name] for name in own.keys() - {*given}})
    if "max_abs_value" in given and hasattr(config.task, "max_abs_value"):
        section = dataclasses.replace(config.task, max_abs_value=settings.max_abs_value)
        config = dataclasses.replace(config, task=section)
    mesh = meshes.use_mesh(meshes.MeshConfig(settings.data, settings.fsdp, settings.tensor))
    folder = resolve(model_folder(settings.model))
    model_type, shape = read_config(folder)
    tokenizer = load_tokenizer(folder)
    task = make_task(config, tokenizer, shape)
    rules = run_rules(task, tokenizer, shape.vocab_size, settings, given)
    split = of.split or config.entry.certified
    context = None
    if settings.prompts:
        if "bos" not in given:
            settings = dataclasses.replace(settings, bos=begins(task, tokenizer))
        query = make_query(settings, tokenizer, rules.constraint.stop_id)
        context = None if settings.context is None else to_context(settings, tokenizer, settings.context)
        reward: Reward = PosteriorReward(context)
    else:
        query = questions(task, config.values.task, split, of.queries)
        settings = dataclasses.replace(settings, prompts=texts(task, split, query, tokenizer))
        reward = build_reward(config.reward, task, shape, tokenizer)
        if config.reward.function is not None:
            _log.warning("log R leaves reward.function out, which is asked on the host")
    check_query(shape, query, context, rules.constraint.max_length)
    base = load_base(folder, settings.dtype, mesh, settings.quantize)
    whose = certifying.Settings(of.workdir, of.step, settings.adapter, settings.model)
    policy, name = certifying.adapted(whose, saved, base, shape, model_type)
    _log.info("sampling %s", name)
    return batches(settings, tokenizer, query, make_draw(policy, reward, rules, settings), policy)


def run_rules(
    task: Task, tokenizer: "PreTrainedTokenizerFast", vocab_size: int, settings: Settings, given: Collection[str]
) -> Rules:
    """The task's own rules at test, but for what is given of lengths, stop, characters and calculator.

    Raises:
        ValueError: lengths that make no sense, or as the calculator and `make_constraint`.
    """
    own, environment = task.constraint(training=False), task.environment
    lengths = {
        "max_length": settings.max_length if "max_length" in given else own.max_length,
        "min_length": settings.min_length if "min_length" in given else own.min_length,
    }
    calculates = settings.calculator if "calculator" in given else isinstance(environment, Calculator)
    if calculates and not isinstance(environment, Calculator):
        environment = make_calculator(settings, tokenizer, None)
    tool: Environment = environment if calculates or "calculator" not in given else NoTool()
    stop_id = stop_token(tokenizer, settings.stop) if settings.stop is not None else own.stop_id
    ids = None if own.full else np.setdiff1d(np.asarray(own.token_ids), [own.stop_id])
    if settings.characters is not None:
        stop = str(tokenizer.decode([stop_id])) if settings.stop is None else settings.stop
        ids = allowed_ids(tokenizer, settings.characters, stop, CALL)
    calls, room = tool_columns(tool, vocab_size)
    constraint = make_constraint(vocab_size, stop_id, **lengths, token_ids=ids, opens_call=calls, call_room=room)
    return Rules(constraint, tool)


def begins(task: Task, tokenizer: "PreTrainedTokenizerFast") -> Bos:
    """Whether the task's own prompts begin with a begin-of-text token."""
    prompt = task.queries("train").prompt
    first = int(np.asarray(prompt.ids)[0][np.asarray(prompt.mask)[0]][0])
    return "yes" if first == tokenizer.bos_token_id else "no"


def questions(task: Task, name: str, split: str, count: int) -> Query:
    """The first of a split.

    Raises:
        ValueError: the task has no such split.
    """
    try:
        query = task.queries(split)
    except (KeyError, ValueError) as error:
        raise ValueError(f"task {name} has no split {split!r}") from error
    return jax.tree.map(lambda x: x[:count], query)


def texts(task: Any, split: str, query: Query, tokenizer: "PreTrainedTokenizerFast") -> tuple[str, ...]:
    """The questions as people read them; of a task that does not say, its prompts."""
    if hasattr(task, "question"):
        return tuple(task.question(split, number) for number in range(len(query.example_id)))
    rows = zip(np.asarray(query.prompt.ids), np.asarray(query.prompt.mask), strict=True)
    return tuple(str(tokenizer.decode(ids[mask].tolist())) for ids, mask in rows)
