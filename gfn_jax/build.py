"""From a ConfigDict to a run: the only place that reads configuration.

Every section becomes a frozen dataclass, field by field: a key that no field has, or a field that no key sets,
is an error here, before anything is computed. What is built below knows only those dataclasses.
"""

import dataclasses
import pathlib
import typing
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import ml_collections
import optax

from gfn_jax import replay
from gfn_jax.algorithms.gflownet import Constants, GFlowNet, GFlowNetConfig
from gfn_jax.algorithms.language_model import Corpus, LanguageModeling, Phase
from gfn_jax.evaluation.arithmetic import EvaluationConfig, Evaluator, Report
from gfn_jax.models.checkpoint import load_model, read_config, save_model
from gfn_jax.models.config import ModelConfig
from gfn_jax.models.decoder import init_params
from gfn_jax.models.lora import LoraConfig
from gfn_jax.models.quantize import check_kind, quantize_params
from gfn_jax.models.tensor_files import resolve
from gfn_jax.objectives import Objective
from gfn_jax.policy.teacher import teacher_force
from gfn_jax.rewards import PosteriorReward
from gfn_jax.tasks.arithmetic import Arithmetic, ArithmeticConfig
from gfn_jax.tasks.arithmetic_corpus import CorpusConfig, token_rows
from gfn_jax.text.loading import load_tokenizer, model_folder
from gfn_jax.text.wordlevel import build_tokenizer
from gfn_jax.training import mesh as meshes
from gfn_jax.training.checkpoint import Checkpointer, claim_workdir
from gfn_jax.training.loop import Evaluation, Run, Trained
from gfn_jax.training.optimizer import OptimizerConfig, make_optimizer
from gfn_jax.training.step import ModelState, TrainState, make_language_model_step, make_step
from gfn_jax.training.writers import make_writers
from gfn_jax.types import Tokens, Trajectory

Section = TypeVar("Section")


def section(cls: type[Section], values: Mapping[str, Any], partial: bool = False, **fixed: Any) -> Section:
    """A dataclass from a config section; `fixed` fields come from elsewhere.

    Args:
        cls: the dataclass.
        values: the section; its keys are the fields.
        partial: fields that the section does not name keep their defaults.
        **fixed: fields that are not the section's.

    Raises:
        ValueError: keys and fields differ.
    """
    fields = {field.name for field in dataclasses.fields(typing.cast(Any, cls))} - fixed.keys()
    missing, unknown = sorted(fields - set(values)) * (not partial), sorted(set(values) - fields)
    if missing or unknown:
        raise ValueError(
            f"the config section for {cls.__name__} "
            + " and ".join(
                f"{verb} {', '.join(names)}" for verb, names in (("lacks", missing), ("has unknown", unknown)) if names
            )
        )
    plain = {name: tuple(value) if isinstance(value, list | tuple) else value for name, value in values.items()}
    return cls(**plain, **fixed)


def build(config: ml_collections.ConfigDict, workdir: pathlib.Path) -> Run:
    """The run that a config describes, ready to be trained.

    Raises:
        ValueError, FileNotFoundError: what is wrong with the config, the model or the data, in one line.
    """
    if config.task not in TASKS:
        raise ValueError(f"task {config.task!r} is unknown; there are {', '.join(TASKS)}")
    return TASKS[config.task](config, workdir)


def build_arithmetic(config: ml_collections.ConfigDict, workdir: pathlib.Path) -> Run:
    """GFlowNet fine-tuning on arithmetic with a calculator."""
    check_kind(config.model.quantize)
    digest = claim_workdir(workdir, described(config))
    folder = resolve(model_folder(config.model.path))
    mesh = meshes.make_mesh(section(meshes.MeshConfig, config.mesh))
    dtype = jnp.dtype(config.model.dtype)
    _, shape = read_config(folder)
    abstract = jax.eval_shape(lambda key: init_params(key, shape, dtype), jax.random.key(0))
    placement = meshes.shardings(abstract, mesh)
    model, params = load_model(folder, dtype, placement)
    params = quantize_params(params, config.model.quantize, consume=True)
    task, lora, algorithm, optimizer = arithmetic_parts(config, model, load_tokenizer(folder), mesh)
    settings = algorithm.config
    constants, state = initial(config, algorithm, lora, task, params, optimizer)
    constants, state = (place(tree, mesh) for tree in (constants, state))
    placed = jax.tree.map(lambda x: x.sharding, state)
    rows = meshes.rows_sharding(mesh)
    step = jax.jit(
        make_step(algorithm, optimizer, rows),
        donate_argnums=0,
        out_shardings=(placed, meshes.replicated(mesh)),
    )
    evaluation = section(EvaluationConfig, config.evaluation)
    evaluator = Evaluator(model, task, task.constraint(task.config.eval_max_length), evaluation)
    splits = {f"accuracy_{k}": f"validation_{k}" for k in (3, 4, 5)}
    facts = {"task": config.task, "method": "gflownet", "seed": config.seed, "config_digest": digest}
    tests = {f"accuracy_{k}": f"test_{k}" for k in (3, 4, 5)}
    if task.config.data_dir is not None:
        tests |= {f"accuracy_{k}_decontaminated": f"test_{k}_decontaminated" for k in (3, 4, 5)}
    report = Report(evaluator, facts, workdir, tests)
    return Run(
        workdir=workdir,
        step_fn=step,
        state=state,
        constants=constants,
        num_steps=config.steps,
        samples_per_step=settings.queries * settings.samples,
        checkpointer=Checkpointer(workdir, digest),
        writers=make_writers(workdir, config.tensorboard),
        finish=lambda trained: report.write(
            constants.params, trained.state.trainable.lora, trained.steps, trained.seconds
        ),
        evaluations=(
            Evaluation(
                evaluation.every,
                lambda state, step: evaluator.validate(constants.params, state.trainable.lora, splits),
            ),
        ),
        best_metric="accuracy",
        log_every=config.log_every,
        save_every=config.save_every,
        describe_progress=describe_progress,
    )


def arithmetic_parts(
    config: ml_collections.ConfigDict,
    model: ModelConfig,
    tokenizer: Any,
    mesh: jax.sharding.Mesh | jax.sharding.AbstractMesh,
) -> tuple[Arithmetic, LoraConfig, GFlowNet, optax.GradientTransformation]:
    """What does not depend on the weights."""
    task = Arithmetic(section(ArithmeticConfig, config.arithmetic), tokenizer, model.vocab_size)
    settings = section(GFlowNetConfig, config.gflownet)
    meshes.check_rows(settings.queries // settings.micro_batches, mesh, "micro-batch of queries")
    check_positions(model, task)
    lora = section(LoraConfig, config.lora)
    algorithm = GFlowNet(
        model=model,
        reward=PosteriorReward(model, demonstrations=to_device(task.reward_context())),
        objective=build_objective(config.objective, settings.samples),
        config=settings,
        dropout=lora.dropout,
        remat=config.model.remat,
    )
    optimizer = make_optimizer(
        section(OptimizerConfig, config.optimizer, total_steps=config.steps - settings.discovery_steps)
    )
    return task, lora, algorithm, optimizer


def initial(config, algorithm: GFlowNet, lora: LoraConfig, task: Arithmetic, params, optimizer):
    """Constants of the run, and the state before its first step, the buffer seeded with demonstrations."""
    root = jax.random.key(config.seed)
    constraint = task.constraint(task.config.max_length)
    queries = to_device(task.queries("train"))
    seeds, total = len(task.splits["seeds"]), len(task.splits["train"])
    share = config.seed_share if 0 < seeds < total else seeds / total
    weight = jnp.where(jnp.arange(total) < seeds, share / max(seeds, 1), (1 - share) / max(total - seeds, 1))
    constants = Constants(
        params=params,
        prepared=jax.jit(algorithm.reward.prepare)(params),
        queries=queries,
        query_log_weight=jnp.log(jnp.maximum(weight, 1e-30)),
        constraint=constraint,
        environment=task.environment,
        root=jax.random.fold_in(root, 1),
    )
    trainable, buffer = algorithm.init(jax.random.fold_in(root, 0), lora, total, constraint.horizon)
    if seeds:
        buffer = seed_buffer(algorithm, constants, buffer, task)
    state = TrainState(jnp.zeros((), jnp.int32), trainable, optimizer.init(trainable), buffer)
    return constants, state


def seed_buffer(
    algorithm: GFlowNet, constants: Constants, buffer: replay.ReplayBuffer, task: Arithmetic
) -> replay.ReplayBuffer:
    """Puts the demonstrations where the policy's own finds will go, each with its reward."""
    ids, completions, lengths = task.seeds()

    @jax.jit
    def seeded(constants: Constants, buffer: replay.ReplayBuffer) -> replay.ReplayBuffer:
        rollout = teacher_force(completions, lengths, constants.constraint, constants.environment)
        query = jax.tree.map(lambda x: x[ids], constants.queries)
        log_reward = algorithm.reward.log_reward(constants.params, constants.prepared, query, rollout)
        return replay.add(buffer, ids, Trajectory(rollout, log_reward), algorithm.config.buffer_tolerance)

    return seeded(constants, buffer)


def build_objective(values: ml_collections.ConfigDict, samples: int) -> Objective:
    """The objective; its terms are a mapping in a config (name: coefficient, 0 leaves a term out)."""
    terms = tuple((name, float(weight)) for name, weight in values.terms.items() if weight)
    rest = {name: value for name, value in values.items() if name != "terms"}
    return section(Objective, rest, terms=terms, samples_per_query=samples)


def check_positions(model, task: Arithmetic) -> None:
    """Raises ValueError where a prompt, its completion and an answer do not fit into the model."""
    query, context = task.queries("train"), task.reward_context()
    shots = 0 if context is None else context.ids.shape[1]
    needed = shots + query.context.ids.shape[1] + task.config.max_length + query.answer.ids.shape[1]
    if needed > model.max_positions:
        raise ValueError(
            f"demonstrations, question, {task.config.max_length} tokens and answer take {needed} positions; "
            f"the model has {model.max_positions}: lower arithmetic.max_length or arithmetic.reward_shots"
        )


def to_device(tree: Any) -> Any:
    """Host arrays as device arrays."""
    return jax.tree.map(jnp.asarray, tree)


def place(tree: Any, mesh: jax.sharding.Mesh) -> Any:
    """Every array where the sharding rules put it."""
    return meshes.place(tree, meshes.shardings(tree, mesh, (*meshes.RULES, *meshes.REST_REPLICATED)))


def described(config: ml_collections.ConfigDict) -> dict[str, Any]:
    """What the result depends on, as plain values: what a workdir belongs to. How often to look is no part of it."""
    return {
        name: value
        for name, value in config.to_dict().items()
        if name not in ("log_every", "save_every", "tensorboard")
    }


def describe_progress(metrics: Mapping[str, float], evaluated: Mapping[str, float]) -> str:
    """What a person wants to see of a step."""
    shown = []
    if metrics:
        shown += [
            f"loss {metrics['loss']:.3g}",
            f"log R {metrics['log_reward']:.2f}",
            f"T {metrics['reward_temperature']:.2f}",
            f"buffer {100 * metrics['buffer_coverage']:.0f}%",
        ]
    if evaluated:
        shown.append("validation " + " / ".join(f"{evaluated[f'accuracy_{k}']:.0f}" for k in (3, 4, 5)) + " %")
    return "  ".join(shown)


def build_pretraining(config: ml_collections.ConfigDict, workdir: pathlib.Path) -> Run:
    """Training the tiny base model from nothing; it lies in WORKDIR/model at the end."""
    digest = claim_workdir(workdir, described(config))
    tokenizer = build_tokenizer()
    documents, phases = read_corpus(config, tokenizer)
    model = section(
        ModelConfig,
        {**config.model, "vocab_size": len(tokenizer), "rotary_dim": config.model.head_dim},
        partial=True,
    )
    algorithm = LanguageModeling(model, config.batch, phases)
    optimizer = make_optimizer(section(OptimizerConfig, config.optimizer, total_steps=algorithm.steps))
    key = jax.random.key(config.seed)
    params = init_params(jax.random.fold_in(key, 0), model)

    def finish(trained: Trained) -> str:
        save_model(workdir / "model", model, trained.state.trainable, "llama", special_tokens(tokenizer))
        tokenizer.save_pretrained(workdir / "model")
        return f"The model is in {workdir / 'model'}, an ordinary Hugging Face folder."

    return Run(
        workdir=workdir,
        step_fn=jax.jit(make_language_model_step(algorithm, optimizer), donate_argnums=0),
        state=ModelState(jnp.zeros((), jnp.int32), params, optimizer.init(params)),
        constants=Corpus(documents, jax.random.fold_in(key, 1)),
        num_steps=algorithm.steps,
        samples_per_step=config.batch,
        checkpointer=Checkpointer(workdir, digest),
        writers=make_writers(workdir, config.tensorboard),
        finish=finish,
        log_every=config.log_every,
        save_every=config.save_every,
    )


def read_corpus(config: ml_collections.ConfigDict, tokenizer) -> tuple[Tokens, tuple[Phase, ...]]:
    """The documents of all phases, one after the other, and which are whose."""
    operands = tuple((int(count), share) for count, share in config.operands.items())
    parts, phases, first = [], [], 0
    for number, (_, values) in enumerate(sorted(config.phases.items())):
        weights = {name: value for name, value in values.items() if name != "steps"}
        corpus = section(
            CorpusConfig,
            weights,
            partial=True,
            operands=operands,
            seq_length=config.seq_length,
            seed=10 * config.seed + number,
        )
        parts.append(Tokens(*map(jnp.asarray, token_rows(corpus, tokenizer))))
        phases.append(Phase(values.steps, first, first + corpus.documents))
        first += corpus.documents
    return jax.tree.map(lambda *rows: jnp.concatenate(rows), *parts), tuple(phases)


def special_tokens(tokenizer) -> dict[str, int]:
    """What config.json says of a tokenizer's special tokens."""
    return {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}


TASKS: dict[str, Callable[[ml_collections.ConfigDict, pathlib.Path], Run]] = {
    "arithmetic": build_arithmetic,
    "pretrain": build_pretraining,
}
