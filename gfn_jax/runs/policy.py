"""A GFlowNet run on any task: base, adapter, reward, optimizer, mesh, evaluation, put together from a config."""

import dataclasses
import functools
import logging
import math
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax
from jaxtyping import Bool

from gfn_jax import replay
from gfn_jax.algorithms.gflownet import Constants, GFlowNet, GFlowNetConfig
from gfn_jax.runs.rewards import HostReward, build_host_reward, build_reward
from gfn_jax.runs.config import read_sections
from gfn_jax.runs.tasks import make_evaluator, make_task
from gfn_jax.evaluation.report import Evaluator, write_results
from gfn_jax.evaluation.rows import gather
from gfn_jax.models.checkpoint import load_model, read_config
from gfn_jax.models.config import ModelConfig
from gfn_jax.models.decoder import init_params
from gfn_jax.models.export import Origin, export_run_adapter
from gfn_jax.models.lora import LoraConfig
from gfn_jax.models.tensor_files import resolve
from gfn_jax.objectives import Objective
from gfn_jax.policy.teacher import teacher_force
from gfn_jax.rewards.posterior import check_positions
from gfn_jax.sections import described
from gfn_jax.tasks.task import SeededByBase, Task
from gfn_jax.text.loading import load_tokenizer, model_folder
from gfn_jax.training import mesh as meshes
from gfn_jax.training.checkpoint import Checkpointer, claim_workdir
from gfn_jax.training.loop import Evaluation, Run, Trained
from gfn_jax.training.optimizer import make_optimizer
from gfn_jax.training.step import TrainState, hosted_step, make_step, make_step_halves
from gfn_jax.training.writers import make_writers
from gfn_jax.types import Params, PyTree, Seeds, Tokens, Trajectory

_log = logging.getLogger("gfn_jax")


def build_gflownet(config: ml_collections.ConfigDict, workdir: pathlib.Path, command: str = "") -> Run:
    """GFlowNet fine-tuning on any task.

    Args:
        config: the whole of it.
        workdir: where the run writes.
        command: what repeats the run, for `results.json` and the adapter's card.

    Raises:
        ValueError, FileNotFoundError: what is wrong with the config, the model or the data, in one line.
    """
    sections = read_sections(config)
    digest = claim_workdir(workdir, described(config))
    folder = resolve(model_folder(config.model.path))
    mesh = meshes.use_mesh(sections.mesh)
    model_type, model = read_config(folder)
    _log.info("preparing the task %s", config.task)
    parts = gflownet_parts(config, model, load_tokenizer(folder), mesh)
    evaluator = make_evaluator(config, parts.task, model)
    _log.info("reading the base %s", config.model.path)
    params = load_base(config, folder, mesh)  # last: it takes the longest, and anything else may be wrong
    _log.info("preparing the rewards and the replay buffer")
    constants, state = (place(tree, mesh) for tree in initial(config, parts, params))
    placed = jax.tree.map(lambda x: x.sharding, state)
    step = make_run_step(parts, placed, mesh)
    facts = {"task": config.task, "method": "gflownet", "seed": config.seed, "config_digest": digest}
    facts["command"] = command

    def finish(trained: Trained) -> str:
        lora = trained.state.trainable.lora
        findings = evaluator.report(constants.params, lora)
        results = {**facts, "steps": trained.steps, "seconds": round(trained.seconds, 1), **findings.methods}
        origin = Origin(config.model.path, config.task, digest, findings.methods["metrics"], command)
        adapter = gather(lora)
        if jax.process_index() == 0:
            write_results(workdir / "results.json", results)
            export_run_adapter(workdir / "adapter", model, parts.lora, adapter, model_type, origin)
        return f"{findings.page}\n\n{whereabouts(workdir)}"

    return Run(
        workdir=workdir,
        step_fn=step,
        state=state,
        constants=constants,
        num_steps=config.steps,
        samples_per_step=parts.algorithm.config.queries * parts.algorithm.config.samples,
        checkpointer=Checkpointer(workdir, digest),
        writers=make_writers(workdir, config.tensorboard),
        finish=finish,
        evaluations=(
            Evaluation(
                evaluator.every,
                lambda state, step: evaluator.validate(constants.params, state.trainable.lora),
            ),
        ),
        best_metric=evaluator.best_metric,
        log_every=config.log_every,
        save_every=config.save_every,
        describe_progress=functools.partial(describe_progress, evaluator),
    )


def load_base(config: ml_collections.ConfigDict, folder: pathlib.Path, mesh: jax.sharding.Mesh) -> Params:
    """The weights of `config.model` on a mesh."""
    dtype = jnp.dtype(config.model.dtype)
    _, shape = read_config(folder)
    abstract = jax.eval_shape(lambda key: init_params(key, shape, dtype), jax.random.key(0))
    return load_model(folder, dtype, meshes.shardings(abstract, mesh), config.model.quantize)[1]


@dataclasses.dataclass(frozen=True)
class Parts:
    """What a GFlowNet run is made of, and does not depend on the weights."""

    task: Task
    lora: LoraConfig
    algorithm: GFlowNet
    optimizer: optax.GradientTransformation
    host_reward: HostReward | None


def gflownet_parts(
    config: ml_collections.ConfigDict,
    model: ModelConfig,
    tokenizer: Any,
    mesh: jax.sharding.Mesh | jax.sharding.AbstractMesh,
) -> Parts:
    """The parts that a config describes.

    Raises:
        ValueError: what is wrong with a section, in one line.
    """
    sections = read_sections(config)
    task = make_task(config, tokenizer, model)
    settings = sections.gflownet
    copies = prompt_copies(settings, mesh)
    queries, constraint = task.queries("train"), task.constraint()
    if settings.queries > len(queries.example_id):
        raise ValueError(f"gflownet.queries is {settings.queries}; the task has {len(queries.example_id)} to draw from")
    check_tokenizer(tokenizer, queries.prompt)
    check_positions(model, queries, constraint.max_length)
    check_first_tokens(sections.objective, task)
    algorithm = GFlowNet(
        model=model,
        reward=build_reward(sections.reward, task, model, tokenizer),
        objective=sections.objective,
        config=settings,
        dropout=sections.lora.dropout,
        remat=sections.model.remat,
        copies=copies,
    )
    host_reward = build_host_reward(sections.reward, task, tokenizer)
    return Parts(task, sections.lora, algorithm, make_optimizer(sections.optimizer), host_reward)


def prompt_copies(settings: GFlowNetConfig, mesh: jax.sharding.Mesh | jax.sharding.AbstractMesh) -> int:
    """Devices that share the samples of a query, where the queries of a micro-batch alone do not divide; else 1.

    Raises:
        ValueError: neither the queries nor the samples of each divide.
    """
    queries, parts = settings.queries // settings.micro_batches, math.prod(mesh.shape[axis] for axis in meshes.ROWS)
    copies = parts // math.gcd(queries, parts)
    if settings.fresh_samples % copies or settings.samples % copies:
        raise ValueError(
            f"a micro-batch of queries of {queries} does not divide over {parts} devices (data={mesh.shape['data']} x "
            f"fsdp={mesh.shape['fsdp']}), and {copies} devices cannot share the {settings.samples} samples of a query, "
            f"{settings.fresh_samples} of them fresh: change gflownet.queries, micro_batches, samples or replay_samples"
        )
    return copies


def make_run_step(parts: Parts, placed: PyTree, mesh: jax.sharding.Mesh) -> Callable:
    """One compiled program a step; with a reward on the host, one on either side of it."""
    rows, out = meshes.rows_sharding(mesh), (placed, meshes.replicated(mesh))
    if parts.host_reward is None:
        return jax.jit(make_step(parts.algorithm, parts.optimizer, rows), donate_argnums=0, out_shardings=out)
    collect, update = make_step_halves(parts.algorithm, parts.optimizer, rows)
    return hosted_step(jax.jit(collect), parts.host_reward, jax.jit(update, donate_argnums=0, out_shardings=out))


def initial(config: ml_collections.ConfigDict, parts: Parts, params: Params) -> tuple[Constants, TrainState]:
    """Constants of the run, and the state before its first step, the buffer holding the task's seeds."""
    task, algorithm = parts.task, parts.algorithm
    root = jax.random.key(config.seed)
    constraint = task.constraint()
    constants = Constants(
        params=params,
        prepared=jax.jit(algorithm.reward.prepare)(params),
        queries=to_device(task.queries("train")),
        query_log_weight=jnp.log(jnp.maximum(jnp.asarray(task.query_weight(), jnp.float32), 1e-30)),
        constraint=constraint,
        environment=task.environment,
        root=jax.random.fold_in(root, 1),
    )
    count = len(constants.queries.example_id)
    trainable, buffer = algorithm.init(jax.random.fold_in(root, 0), parts.lora, count, constraint.horizon)
    seeds = task.seeds()
    if isinstance(task, SeededByBase):
        seeds = jax.jit(task.prompted_seeds, static_argnums=0)(algorithm.model, params, jax.random.fold_in(root, 2))
    if len(seeds.length):
        buffer = seed_buffer(parts, constants, buffer, seeds)
    return constants, TrainState(jnp.zeros((), jnp.int32), trainable, parts.optimizer.init(trainable), buffer)


def seed_buffer(parts: Parts, constants: Constants, buffer: replay.ReplayBuffer, seeds: Seeds) -> replay.ReplayBuffer:
    """Puts completions where the policy's own finds will go, each with its reward: as many at once as a step has."""
    algorithm, settings = parts.algorithm, parts.algorithm.config

    @jax.jit
    def rewarded(constants: Constants, seeds: Seeds) -> Trajectory:
        rollout = teacher_force(seeds.completion, seeds.length, constants.constraint, constants.environment)
        query = jax.tree.map(lambda x: x[seeds.example_id], constants.queries)
        return Trajectory(rollout, algorithm.reward.log_reward(constants.params, constants.prepared, query, rollout))

    queries = len(seeds.example_id)
    each = len(seeds.length) // queries
    size = max(settings.queries * settings.samples // (settings.micro_batches * each), 1)
    chunks = []
    for begin in range(0, queries, size):
        query = np.minimum(np.arange(begin, begin + size), queries - 1)  # the last chunk is filled up
        row = (query[:, None] * each + np.arange(each)).ravel()
        chunks.append(rewarded(constants, Seeds(seeds.example_id[query], seeds.completion[row], seeds.length[row])))
    trajectory = jax.tree.map(lambda *parts: jnp.concatenate(parts)[: queries * each], *chunks)
    accepted = trajectory.rollout.action_mask.any(1)
    if not isinstance(accepted, jax.core.Tracer):  # a dry run has shapes alone
        check_seeds(parts.task, *gather((seeds, accepted)))
    if parts.host_reward is not None:
        rows = np.repeat(np.asarray(seeds.example_id), len(seeds.length) // len(seeds.example_id))
        added = parts.host_reward(rows, trajectory.rollout)
        trajectory = dataclasses.replace(trajectory, log_reward=trajectory.log_reward + added)
    return jax.jit(replay.add)(buffer, seeds.example_id, trajectory, settings.buffer_tolerance)


def check_seeds(task: Task, seeds: Seeds, accepted: Bool[np.ndarray, " B"]) -> None:
    """Says how many seeds the rules refuse, and which is the first; `accepted` as `teacher_force` has it.

    Raises:
        ValueError: all of them are refused, so that the buffer would start empty.
    """
    refused = np.flatnonzero(~accepted)
    if not len(refused):
        return
    first = refused[0]
    text = task.decode(seeds.completion[first, : seeds.length[first]].tolist())
    example = seeds.example_id[first * len(seeds.example_id) // len(accepted)]
    count = f"{len(refused)} of {len(accepted)} seeds of the replay buffer are refused"
    reason = (
        f"a token, a length or a tool's result that the task does not allow (the first is {text!r}, query {example})"
    )
    if len(refused) == len(accepted):
        raise ValueError(f"{count}: {reason}; ask for no seeds, or for some that may be written")
    _log.warning("%s: %s", count, reason)


def check_tokenizer(tokenizer: Any, prompt: Tokens) -> None:
    """Raises ValueError where the tokenizer does not know the words of the task's prompts."""
    unknown = (np.asarray(prompt.ids) == tokenizer.unk_token_id) & np.asarray(prompt.mask)
    count = int(unknown.any(1).sum())
    if tokenizer.unk_token_id is not None and count > len(unknown) / 10:
        raise ValueError(
            f"{count} of {len(unknown)} prompts hold words that the model's tokenizer does not know "
            f"({tokenizer.unk_token}): is model.path a model for this task?"
        )


def check_first_tokens(objective: Objective, task: Task) -> None:
    """Raises ValueError where nothing would train the first tokens.

    SubTB and DB compare states that may stop. What a completion chose before the first of them cancels out of every
    pair; only TB and VarGrad compare whole completions.
    """
    minimum, environment = task.constraint().min_length, task.environment
    stops_at_once = minimum == 0 and bool(environment.may_stop(environment.init(1))[0])
    if not stops_at_once and not {"tb", "vargrad"} & {name for name, _ in objective.terms}:
        raise ValueError(
            f"objective.terms has neither tb nor vargrad, and Z may not stop at once (min_length {minimum}, or the "
            "environment): nothing would train its first tokens"
        )


def to_device(tree: Any) -> Any:
    """Host arrays as device arrays."""
    return jax.tree.map(jnp.asarray, tree)


def place(tree: Any, mesh: jax.sharding.Mesh) -> Any:
    """Every array where the sharding rules put it."""
    return meshes.place(tree, meshes.shardings(tree, mesh, (*meshes.RULES, *meshes.REST_REPLICATED)))


def describe_progress(evaluator: Evaluator, metrics: Mapping[str, float], evaluated: Mapping[str, float]) -> str:
    """What a person wants to see of a step."""
    shown = []
    if metrics:
        shown += [
            f"loss {metrics['loss']:.3g}",
            f"log R {metrics['log_reward']:.2f}",
            f"T {metrics['reward_temperature']:.2f}",
            f"buffer {100 * metrics['buffer_coverage']:.0f}%",
        ]
    return "  ".join([*shown, evaluator.describe(evaluated)] if evaluated else shown)


def whereabouts(workdir: pathlib.Path) -> str:
    """What a run has left, and where."""
    return (
        f"Results: {workdir / 'results.json'}; metrics of every step: {workdir / 'metrics.jsonl'}; "
        f"adapter (PEFT): {workdir / 'adapter'}; with optimizer and buffer: {workdir / 'checkpoints'}"
    )
