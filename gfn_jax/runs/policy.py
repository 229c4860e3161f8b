"""A policy's training on any task: base, adapter, reward, algorithm, optimizer, mesh, evaluation, put together."""

import dataclasses
import functools
import logging
import math
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Bool

from gfn_jax.algorithms.entry import Ingredients
from gfn_jax.algorithms.sampling import Sampling
from gfn_jax.errors import EvaluationFailed, TrainingStopped, first_line
from gfn_jax.evaluation.certificate import Certificate
from gfn_jax.evaluation.report import Evaluator
from gfn_jax.evaluation.rows import gather
from gfn_jax.interfaces import Algorithm, Interruptible, Remembering, Reward
from gfn_jax.models.checkpoint import read_config
from gfn_jax.models.config import ModelConfig
from gfn_jax.models.export import Origin, export_run_adapter
from gfn_jax.models.language_model import LanguageModel
from gfn_jax.models.lora import Lora
from gfn_jax.models.partition import ROWS, parts_of
from gfn_jax.models.tensor_files import resolve
from gfn_jax.objectives import Objective
from gfn_jax.objectives.mixture import WHOLE
from gfn_jax.policy.constraint import Constants, Rules
from gfn_jax.policy.teacher import teacher_force
from gfn_jax.runs.asynchronous import Learner, check_one_process
from gfn_jax.runs.budget import run_budget
from gfn_jax.runs.certifying import Certifier, summary
from gfn_jax.runs.config import PolicyRun
from gfn_jax.runs.ending import OWN, leave, measured
from gfn_jax.runs.opening import announce
from gfn_jax.runs.rewards import HostReward, build_host_reward, build_reward
from gfn_jax.runs.starting import load_start, start_digest, start_folder
from gfn_jax.runs.tasks import make_evaluator, make_task
from gfn_jax.runs.weights import check_attention, load_base, place
from gfn_jax.tasks.checking import check_positions
from gfn_jax.tasks.task import SeededByBase, Task, Validating
from gfn_jax.text.loading import load_tokenizer, model_folder
from gfn_jax.training import mesh as meshes
from gfn_jax.training.checkpoint import Checkpointer, claim_workdir
from gfn_jax.training.loop import Evaluation, Run, Trained
from gfn_jax.training.optimizer import make_optimizer
from gfn_jax.training.step import (
    Sample,
    Update,
    hosted_sample,
    init_state,
    make_step,
    make_step_halves,
    make_step_parts,
    step_of_halves,
)
from gfn_jax.training.writers import METRICS, make_writers
from gfn_jax.types import Keys, PyTree, Query, Sampled, Seeds, Tokens, TrainState, Trajectory

# What a line of progress says of the metrics that there are.
PROGRESS = {
    "loss": "loss {:.3g}",
    "log_reward": "log R {:.2f}",
    "reward_temperature": "T {:.2f}",
    "valid": "valid {:.0%}",
    "distinct": "distinct {:.0%}",
    "first_token_entropy": "first token {:.2f} nats",
    "length_bias": "length bias {:+.2f}",
    "buffer_coverage": "buffer {:.0%}",
}
_log = logging.getLogger("gfn_jax")


def build_policy(
    config: PolicyRun, workdir: pathlib.Path, command: str = "", demonstrate: "Demonstrate | None" = None
) -> Run:
    """A policy on any task, by any algorithm.

    Args:
        config: what is trained, and how.
        workdir: where the run writes.
        command: what repeats the run, for `results.json` and the adapter's card.
        demonstrate: writes what the algorithm remembers instead of the task's seeds.

    Raises:
        ValueError, FileNotFoundError: what is wrong with the workdir, the model or the data, in one line.
    """
    start = config.values.start and start_folder(config.values.start)
    digest = claim_workdir(workdir, described_of(config))
    check_one_process(config.asynchronous)
    folder = resolve(model_folder(config.model.path))
    mesh = meshes.use_mesh(config.mesh)
    model_type, model = read_config(folder)
    announce(model, config.lora, mesh)
    _log.info("preparing the task %s", config.values.task)
    parts = policy_parts(config, model, load_tokenizer(folder), mesh)
    evaluator = make_evaluator(config, parts.task, model)
    certifier = make_certifier(config, parts)
    first = load_start(start, config.lora, model, model_type, folder) if start else None
    _log.info("reading the base %s", config.model.path)
    # Last: it takes the longest, and anything else may be wrong.
    base = load_base(folder, config.model.dtype, mesh, config.model.quantize, config.model.attention)
    _log.info("preparing the rewards and what is remembered")
    constants, state = (place(tree, mesh) for tree in initial(config, parts, base, demonstrate, first))
    placed = jax.tree.map(lambda x: x.sharding, state)
    checkpointer = Checkpointer(workdir, digest)
    learner = None
    if config.asynchronous.samplers:
        update, rows = make_update(parts, placed, mesh), rows_of(parts, state, constants)
        learner = Learner(config.asynchronous, update, rows, checkpointer, digest, config.values.steps, command)
    facts = {"task": config.values.task, "method": parts.name, "seed": config.values.seed, "config_digest": digest}
    facts["command"] = command

    def finish(trained: Trained) -> str:
        policy = parts.algorithm.policy(trained.state.trainable, constants)
        findings = measured(evaluator, policy, config.values.report)
        spent = run_budget(workdir / METRICS, parts.algorithm, constants, trained.steps, trained.seconds)
        session = {"steps": trained.steps, "seconds": round(trained.seconds, 1), "budget": spent.as_dict()}
        leave(workdir, {**facts, **session}, findings, ("certificate",) if certifier else ())
        metrics = findings.methods[OWN[config.values.report]]
        origin = Origin(config.model.path, config.values.task, digest, metrics, command)
        adapter, page = gather(policy.adapter), findings.page
        if jax.process_index() == 0:
            export_run_adapter(workdir / "adapter", model, config.lora, adapter, model_type, origin)
        if certifier is not None:
            certificate = certified(certifier, policy, workdir)
            leave(workdir, {**facts, **session, "certificate": certificate.as_dict()}, findings)
            page = f"{page}\n\n{summary(certificate)}"
        return f"{page}\n\n{whereabouts(workdir)}"

    return Run(
        workdir=workdir,
        step_fn=learner or make_run_step(parts, placed, mesh),
        state=state,
        constants=constants,
        num_steps=config.values.steps,
        samples_per_step=config.sampling.queries * config.sampling.samples,
        checkpointer=checkpointer,
        writers=make_writers(workdir, config.values),
        finish=finish,
        evaluations=(
            Evaluation(
                evaluator.every,
                lambda state, step: evaluator.validate(parts.algorithm.policy(state.trainable, constants)),
            ),
        ),
        best_metric=evaluator.best_metric,
        log_every=config.values.log_every,
        save_every=config.values.save_every,
        describe_progress=functools.partial(describe_progress, evaluator, alarm_of(config.sampling)),
        close=learner.close if learner else lambda: None,
    )


def described_of(config: PolicyRun) -> Mapping[str, Any]:
    """What a run's workdir belongs to: its config, the adapter that it begins with by its contents.

    Raises:
        ValueError: that adapter is not there.
    """
    start = config.values.start
    return {**config.described, "start": start_digest(start_folder(start))} if start else config.described


@dataclasses.dataclass(frozen=True)
class Parts:
    """What a policy's run is made of, and does not depend on the weights."""

    task: Task
    queries: Query
    name: str
    sampling: Sampling
    reward: Reward
    algorithm: Algorithm
    optimizer: optax.GradientTransformation
    host_reward: HostReward | None


def policy_parts(
    config: PolicyRun,
    model: ModelConfig,
    tokenizer: Any,
    mesh: jax.sharding.Mesh | jax.sharding.AbstractMesh,
) -> Parts:
    """The parts that a config describes.

    Raises:
        ValueError: what is wrong with the task, the reward or the mesh, in one line.
    """
    check_attention(config.model, model, mesh)
    task, name, sampling = make_task(config, tokenizer, model), config.values.algorithm, config.sampling
    copies = prompt_copies(sampling, mesh)
    queries, constraint = task.queries("train"), task.constraint()
    if sampling.queries > len(queries.example_id):
        there = f"the task has {len(queries.example_id)} to draw from"
        raise ValueError(f"sampling.queries is {sampling.queries}; {there}")
    check_tokenizer(tokenizer, queries.prompt)
    check_positions(model, queries, constraint.max_length)
    if config.objective is not None:
        check_first_tokens(config.objective, task)
    if config.method.seeds and not isinstance(task, SeededByBase):
        check_demonstrations(config, task.seeds())
    reward = build_reward(config.reward, task, model, tokenizer)
    valid = task.valid if isinstance(task, Validating) else None
    given = Ingredients(
        reward,
        sampling,
        config.lora,
        config.objective,
        config.model.recomputed,
        copies,
        steps=config.values.steps,
        end_of_text=tokenizer.eos_token_id,
        valid=valid,
        stale=config.asynchronous.samplers > 0,
        cache_dtype=config.model.cache_dtype,
    )
    algorithm = config.method.make(config.algorithm, given)
    host_reward = build_host_reward(config.reward, task, tokenizer)
    if host_reward is not None and not isinstance(algorithm, Interruptible):
        raise ValueError(f"reward.function is asked between two halves of a step; {name} has no such halves")
    if host_reward is not None and config.objective and config.objective.log_z == "frozen":
        raise ValueError("objective.log_z is 'frozen', estimated on the device, where reward.function has no say")
    optimizer = make_optimizer(config.optimizer)
    return Parts(task, queries, name, sampling, reward, algorithm, optimizer, host_reward)


def make_certifier(config: PolicyRun, parts: Parts) -> Certifier | None:
    """What measures a policy against its posterior; None where nobody asks, or the reward is partly on the host.

    Raises:
        ValueError: it would read test questions, and the run is to report on validation.
    """
    if not config.certificate.queries or parts.host_reward is not None:
        return None
    if config.values.report == "validation" and config.entry.certified.startswith("test"):
        split = f"the certificate of {config.values.task} is about the split {config.entry.certified!r}"
        raise ValueError(f"{split}, which report='validation' does not read: set certificate.queries to 0")
    temperature = config.sampling.target_temperature
    return Certifier(parts.task, config.entry.certified, parts.reward, temperature, config.certificate)


def certified(certifier: Certifier, policy: LanguageModel, workdir: pathlib.Path) -> Certificate:
    """The certificate.

    Raises:
        EvaluationFailed: it could not be made; all that was found before is written.
    """
    _log.info("certifying the policy on %d queries of %s", certifier.config.queries, certifier.split)
    try:
        return certifier(policy)
    except TrainingStopped:
        raise
    except Exception as error:  # whatever the samplers raise, or a user's reward
        raise EvaluationFailed(
            f"the certificate failed ({first_line(error)}); all other results and the adapter are in {workdir}; run "
            "the same command for it, with --config.certificate.queries=0 to go without"
        ) from error


def prompt_copies(sampling: Sampling, mesh: jax.sharding.Mesh | jax.sharding.AbstractMesh) -> int:
    """Devices that share the samples of a query, where the queries of a micro-batch alone do not divide; else 1.

    Raises:
        ValueError: neither the queries nor the samples of each divide.
    """
    queries, parts = sampling.queries // sampling.micro_batches, parts_of(ROWS, mesh)
    copies = parts // math.gcd(queries, parts)
    if sampling.fresh_samples % copies or sampling.samples % copies:
        raise ValueError(
            f"a micro-batch of queries of {queries} does not divide over {parts} devices (data={mesh.shape['data']} x "
            f"fsdp={mesh.shape['fsdp']}), and {copies} devices cannot share the {sampling.samples} samples of a query, "
            f"{sampling.fresh_samples} of them fresh: change sampling.queries, micro_batches or samples"
        )
    return copies


def make_run_step(parts: Parts, placed: PyTree, mesh: jax.sharding.Mesh) -> Callable:
    """One compiled program a step; with a reward on the host, one on either side of it.

    Where processes share their CPUs, one collects and one learns. There XLA begins what is sent behind a loop while the
    loop is still sending, on some devices and not on others: what one sends as a row of the buffer another may take for
    a gradient, or all wait for ever (seen with `ctl` and `weighted_sft`).
    """
    out, first = (placed, meshes.replicated(mesh)), parts.sampling.first_update
    if parts.host_reward is not None:
        return step_of_halves(make_sample(parts), make_update(parts, placed, mesh))
    if meshes.processes_of_cpus():
        collect, learn = make_step_parts(parts.algorithm, parts.optimizer, first)
        return step_of_halves(jax.jit(collect), jax.jit(learn, donate_argnums=0, out_shardings=out))
    return jax.jit(make_step(parts.algorithm, parts.optimizer, first), donate_argnums=0, out_shardings=out)


def make_sample(parts: Parts) -> Sample:
    """What samples a step's rows, with their whole reward."""
    assert isinstance(parts.algorithm, Interruptible)
    sample, _ = make_step_halves(parts.algorithm, parts.optimizer, parts.sampling.first_update)
    compiled = jax.jit(sample)
    return compiled if parts.host_reward is None else hosted_sample(compiled, parts.host_reward)


def make_update(parts: Parts, placed: PyTree, mesh: jax.sharding.Mesh) -> Update:
    """What learns from a step's rows."""
    assert isinstance(parts.algorithm, Interruptible)
    _, update = make_step_halves(parts.algorithm, parts.optimizer, parts.sampling.first_update)
    return jax.jit(update, donate_argnums=0, out_shardings=(placed, meshes.replicated(mesh)))


def rows_of(parts: Parts, state: TrainState, constants: Constants) -> Sampled:
    """Shapes of what a step learns from where other processes sample, its age included."""

    def sampled(state: TrainState, constants: Constants) -> Sampled:
        assert isinstance(parts.algorithm, Interruptible)
        rows = parts.algorithm.sample(state, constants, Keys.of(constants.root, state.step))
        return dataclasses.replace(rows, age=state.step)

    rows: Sampled = jax.eval_shape(sampled, state, constants)
    return rows


# From what a run is made of, and the base on its devices, to completions.
Demonstrate = Callable[[Parts, LanguageModel], Seeds]


def initial(
    config: PolicyRun,
    parts: Parts,
    base: LanguageModel,
    demonstrate: Demonstrate | None = None,
    start: Lora | None = None,
) -> tuple[Constants, TrainState]:
    """Constants of the run, and the state before its first step, the algorithm knowing what others wrote.

    That is what `demonstrate` writes or, without it, the task's seeds. The policy begins with the adapter `start`, or
    with the algorithm's own.
    """
    task, algorithm = parts.task, parts.algorithm
    root = jax.random.key(config.values.seed)
    constants = constants_of(config, parts, base)
    state = init_state(algorithm, parts.optimizer, jax.random.fold_in(root, 0), constants)
    if start is not None:
        state = dataclasses.replace(state, trainable=dataclasses.replace(state.trainable, lora=start))
    if not isinstance(algorithm, Remembering):
        return constants, state
    if demonstrate is not None:
        seeds = demonstrate(parts, base)
    elif isinstance(task, SeededByBase):
        seeds = jax.jit(task.prompted_seeds)(base, jax.random.fold_in(root, 2))
    else:
        seeds = task.seeds()
    if config.method.seeds:
        check_demonstrations(config, seeds)
    if not len(seeds.length):
        return constants, state
    trajectory = rewarded_seeds(parts, constants, seeds, config.method.rewards)
    memory = jax.jit(algorithm.remember)(state.memory, seeds.example_id, trajectory)
    return constants, dataclasses.replace(state, memory=memory)


def constants_of(config: PolicyRun, parts: Parts, base: LanguageModel) -> Constants:
    """What the steps of a run read and never change."""
    task, root = parts.task, jax.random.key(config.values.seed)
    return Constants(
        base=base,
        prepared=jax.jit(parts.reward.prepare)(base),
        queries=to_device(parts.queries),
        query_log_weight=jnp.log(jnp.maximum(jnp.asarray(task.query_weight(), jnp.float32), 1e-30)),
        rules=Rules(task.constraint(), task.environment),
        root=jax.random.fold_in(root, 1),
    )


def rewarded_seeds(parts: Parts, constants: Constants, seeds: Seeds, rewards: bool = True) -> Trajectory:
    """Completions that somebody else wrote, with their rewards, or 0 for all: as many at once as a step has."""
    sampling = parts.sampling

    @jax.jit
    def rewarded(constants: Constants, seeds: Seeds) -> Trajectory:
        rollout = teacher_force(seeds.completion, seeds.length, constants.rules)
        if not rewards:
            return Trajectory(rollout, jnp.zeros(rollout.completion.shape))
        query = jax.tree.map(lambda x: x[seeds.example_id], constants.queries)
        return Trajectory(rollout, parts.reward.log_reward(constants.base, constants.prepared, query, rollout))

    queries = len(seeds.example_id)
    each = len(seeds.length) // queries
    size = max(sampling.queries * sampling.samples // (sampling.micro_batches * each), 1)
    chunks = []
    for begin in range(0, queries, size):
        query = np.minimum(np.arange(begin, begin + size), queries - 1)  # the last chunk is filled up
        row = (query[:, None] * each + np.arange(each)).ravel()
        chunks.append(rewarded(constants, Seeds(seeds.example_id[query], seeds.completion[row], seeds.length[row])))
    trajectory = jax.tree.map(lambda *parts: jnp.concatenate(parts)[: queries * each], *chunks)
    accepted = trajectory.rollout.action_mask.any(1)
    if not isinstance(accepted, jax.core.Tracer):  # a dry run has shapes alone
        check_seeds(parts.task, *gather((seeds, accepted)))
    if parts.host_reward is not None and rewards:
        rows = np.repeat(np.asarray(seeds.example_id), len(seeds.length) // len(seeds.example_id))
        added = parts.host_reward(rows, trajectory.rollout)
        trajectory = dataclasses.replace(trajectory, log_reward=trajectory.log_reward + added)
    return trajectory


def check_demonstrations(config: PolicyRun, seeds: Seeds) -> None:
    """Raises ValueError where there are no seeds."""
    if not len(seeds.length):
        values = config.values
        raise ValueError(f"algorithm {values.algorithm} needs demonstrations; the task {values.task} has none")


def check_seeds(task: Task, seeds: Seeds, accepted: Bool[np.ndarray, " B"]) -> None:
    """Says how many seeds the rules refuse, and which is the first; `accepted` as `teacher_force` has it.

    Raises:
        ValueError: all of them are refused, so that nothing would be remembered.
    """
    refused = np.flatnonzero(~accepted)
    if not len(refused):
        return
    first = refused[0]
    text = task.decode(seeds.completion[first, : seeds.length[first]].tolist())
    example = seeds.example_id[first * len(seeds.example_id) // len(accepted)]
    count = f"{len(refused)} of {len(accepted)} seeds are refused"
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
    pair; only terms in `WHOLE` look at whole completions.
    """
    minimum, environment = task.constraint().min_length, task.environment
    stops_at_once = minimum == 0 and bool(environment.may_stop(environment.init(1))[0])
    if not stops_at_once and not any(name in WHOLE for name, _ in objective.terms):
        raise ValueError(
            f"objective.terms has none of {', '.join(WHOLE)}, and Z may not stop at once (min_length {minimum}, or the "
            "environment): nothing would train its first tokens"
        )


def to_device(tree: Any) -> Any:
    """Host arrays as device arrays."""
    return jax.tree.map(jnp.asarray, tree)


def alarm_of(sampling: Sampling) -> float:
    """The effective sample size of replayed rows, as a share of them, under which a line of progress says so."""
    return sampling.replay.ess_alarm if sampling.replay else 0.0


def describe_progress(
    evaluator: Evaluator, alarm: float, metrics: Mapping[str, float], evaluated: Mapping[str, float]
) -> str:
    """What a person wants to see of a step."""
    shown = []
    if metrics:
        shown = [written.format(metrics[name]) for name, written in PROGRESS.items() if name in metrics]
        if metrics.get("replay_ess", 1.0) < alarm:
            shown.append(f"STALE REPLAY: effective sample size {metrics['replay_ess']:.0%} < {alarm:.0%}")
    return "  ".join([*shown, evaluator.describe(evaluated)] if evaluated else shown)


def whereabouts(workdir: pathlib.Path) -> str:
    """What a run has left, and where."""
    return (
        f"Results: {workdir / 'results.json'}; metrics of every step: {workdir / 'metrics.jsonl'}; "
        f"adapter (PEFT): {workdir / 'adapter'}; with optimizer and buffer: {workdir / 'checkpoints'}"
    )
