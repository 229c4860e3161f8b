"""Expectation maximisation around a GFlowNet: E-steps and M-steps in turn (Hu et al. 2024, section 3.2).

    E-step k    a GFlowNet policy q_k(Z | X) is trained towards p_k(Z | X, Y), p_k being the reward model of the round
    M-step k    p_k+1 = argmax over adapters of  sum_(X, Y)  E_Z~q_k  log p(Z Y | X)

p_1 is the base; every M-step starts from the base with a new adapter, of the policy's shape, fitted to reasons sampled
from q_k for the training queries. Each step is a run of its own, WORKDIR/e_step_K and WORKDIR/m_step_K, and goes on
from its own checkpoints. Any task will do that has answers and a `reward_adapter` in its section.
"""

import dataclasses
import json
import logging
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from jaxtyping import Bool

from gfn_jax.algorithms.gflownet import Constants
from gfn_jax.algorithms.language_model import Corpus, LanguageModeling, epoch_order
from gfn_jax.runs.policy import build_gflownet, place
from gfn_jax.runs.tasks import make_evaluator, make_task
from gfn_jax.evaluation.report import Evaluator, write_results
from gfn_jax.evaluation.sampling import sample_completions
from gfn_jax.models.adapters import save_adapter
from gfn_jax.models.checkpoint import read_config
from gfn_jax.models.config import ModelConfig
from gfn_jax.models.lora import Lora, LoraConfig, init_lora
from gfn_jax.models.tensor_files import resolve, whole_folder
from gfn_jax.sections import Count, Natural, Nonnegative, checked, described, section, values_of
from gfn_jax.text.batching import pad_right
from gfn_jax.text.loading import load_tokenizer, model_folder
from gfn_jax.training import mesh as meshes
from gfn_jax.training.checkpoint import Checkpointer, claim_workdir, config_digest
from gfn_jax.training.language_model import ModelState, make_language_model_step
from gfn_jax.training.loop import Run, Trained, train
from gfn_jax.training.optimizer import OptimizerConfig, make_optimizer
from gfn_jax.training.writers import make_writers
from gfn_jax.types import Params, Query, Tokens

# Streams of an M-step: fold_in(key of the seed, STREAM), behind the E-step's; rounds are added to the last.
ORDER, ADAPTER, DROPOUT, SAMPLE = 3, 4, 5, 1000
_log = logging.getLogger("gfn_jax")


@dataclasses.dataclass(frozen=True)
class EMConfig:
    """The rounds, and what an M-step does.

    Attributes:
        rounds: of an E-step and an M-step each; 0 trains the GFlowNet alone.
        samples: reasons a training query that an M-step reads.
        steps: of an M-step.
        batch: rows (X, Z, Y) a step.
        learning_rate, warmup_steps: of an M-step; the rest of the optimizer is the GFlowNet's.
    """

    rounds: Natural
    samples: Count
    steps: Count
    batch: Count
    learning_rate: Nonnegative
    warmup_steps: Natural

    def __post_init__(self):
        if self.warmup_steps >= self.steps:
            raise ValueError(f"warmup_steps is {self.warmup_steps}; it must be less than em.steps, {self.steps}")


def build_em(config: ml_collections.ConfigDict, workdir: pathlib.Path, command: str = "") -> Run:
    """The first E-step as a run, whose last words are the rest; `command` is what repeats it.

    Raises:
        ValueError, FileNotFoundError: what is wrong with the config, the model or the data, in one line.
    """
    settings = section(EMConfig, config, "em")
    if "reward_adapter" not in config[config.task]:
        raise ValueError(f"em.rounds is {settings.rounds}; the task {config.task!r} has no reward_adapter to learn")
    m_step_optimizer(config, settings)
    meshes.check_rows(settings.batch, meshes.make_mesh(section(meshes.MeshConfig, config, "mesh")), "value of em.batch")
    facts = {"task": config.task, "method": "gflownet_em", "seed": config.seed, "command": command}
    first = build_gflownet(e_step_config(config, None), workdir / "e_step_1", command)
    for number in range(1, settings.rounds + 1):
        claim_workdir(m_step_folder(workdir, number), described(config))

    def finish(trained: Trained) -> str:
        methods, seconds, page = alternate(config, settings, workdir, first, trained)
        write_results(workdir / "results.json", {**facts, "seconds": round(seconds, 1), **methods})
        rounds = {name: found for name, found in methods.items() if name[1:].startswith("_step_")}
        lines = [f"  {name[0].upper()}-step {name[7:]}: {shown(found, first)}" for name, found in rounds.items()]
        return "\n".join([page, "", "Round by round:", *lines, "", f"Results: {workdir / 'results.json'}"])

    return dataclasses.replace(first, finish=finish)


def shown(found: Mapping[str, Any], run: Run) -> str:
    """What a line says of a method: the metric that the run's best checkpoint is kept by or, without one, all numbers.

    Args:
        found: metric -> value, as in `results.json`.
        run: an E-step.
    """
    best = {name: value for name, value in found.items() if name == run.best_metric}
    numbers = {name: value for name, value in found.items() if isinstance(value, int | float)}
    return ", ".join(f"{name} {value:.4g}" for name, value in (best or numbers).items())


def m_step_optimizer(config: ml_collections.ConfigDict, settings: EMConfig) -> OptimizerConfig:
    """The GFlowNet's, with the M-step's own length, rate and warm-up.

    Raises:
        ValueError: a value out of range, in one line.
    """
    own = {"learning_rate": settings.learning_rate, "warmup_steps": settings.warmup_steps}
    return checked(OptimizerConfig, {**values_of(config, "optimizer"), **own}, "em.", total_steps=settings.steps)


def alternate(
    config: ml_collections.ConfigDict, settings: EMConfig, workdir: pathlib.Path, run: Run, trained: Trained
) -> tuple[dict[str, Any], float, str]:
    """Every M-step, and every E-step after the first.

    Returns:
        Method -> metrics: `metrics` after the last M-step, `e_step_1`, `m_step_1` and so on, the base's; seconds of
        the E-steps' training; what a person reads of the last policy with the last answering model.
    """
    rounds: dict[str, Any] = {}
    last: Mapping[str, Any] = {}
    seconds, page = 0.0, ""
    for number in range(1, settings.rounds + 1):
        if number > 1:
            adapter = adapter_folder(workdir, number - 1)
            run = build_gflownet(e_step_config(config, adapter), workdir / f"e_step_{number}")
            trained = train(run)
        run.finish(trained)
        rounds[f"e_step_{number}"] = json.loads((run.workdir / "results.json").read_text())["metrics"]
        seconds += trained.seconds
        policy = trained.state.trainable.lora
        m_step(config, settings, workdir, number, run.constants, policy)
        findings = evaluator_of(config, adapter_folder(workdir, number)).report(run.constants.params, policy)
        rounds[f"m_step_{number}"] = findings.methods["metrics"]
        last, page = findings.methods, findings.page
        e_step, adapted = (shown(found, run) for found in [*rounds.values()][-2:])
        _log.info("round %d: E-step %s; M-step %s", number, e_step, adapted)
    return {**last, **rounds}, seconds, page


def m_step(
    config: ml_collections.ConfigDict,
    settings: EMConfig,
    workdir: pathlib.Path,
    number: int,
    constants: Constants,
    policy: Lora,
) -> None:
    """Fits an adapter to what the policy says, and leaves it in the round's adapter folder."""
    model_type, model = shape_of(config)
    samples = sample_completions(
        model,
        constants.params,
        policy,
        constants.queries.prompt,
        constants.constraint,
        constants.environment,
        jax.random.fold_in(jax.random.key(config.seed), SAMPLE + number),
        settings.samples,
        temperature=1.0,
        batch=config.gflownet.queries,
    )
    documents, loss_mask = joined_rows(constants.queries, samples)
    folder = m_step_folder(workdir, number)
    adapter = fit(config, settings, folder, model, constants.params, documents, loss_mask)
    with whole_folder(adapter_folder(workdir, number)) as draft:
        save_adapter(draft, model, section(LoraConfig, config, "lora"), adapter, model_type)


def joined_rows(query: Query, samples: Sequence[Sequence[Sequence[int]]]) -> tuple[Tokens, Bool[np.ndarray, "R S"]]:
    """Rows X Z Y of [Q][N] sampled Z, and which of their tokens are to be learnt: those of Z and Y."""

    def rows_of(tokens: Tokens) -> list[list[int]]:
        pairs = zip(np.asarray(tokens.ids), np.asarray(tokens.mask), strict=True)
        return [ids[mask].tolist() for ids, mask in pairs]

    rows, given = [], []
    for context, answer, completions in zip(rows_of(query.context), rows_of(query.answer), samples, strict=True):
        rows += [[*context, *completion, *answer] for completion in completions]
        given += [len(context)] * len(completions)
    documents = pad_right(rows, pad_id=0)
    columns = np.arange(documents.ids.shape[1])
    return documents, np.asarray(documents.mask) & (columns >= np.array(given)[:, None])


def fit(
    config: ml_collections.ConfigDict,
    settings: EMConfig,
    folder: pathlib.Path,
    model: ModelConfig,
    params: Params,
    documents: Tokens,
    loss_mask: Bool[np.ndarray, "R S"],
) -> Lora:
    """Maximum likelihood of the marked tokens, as a run in `folder` that goes on from its checkpoints."""
    lora = section(LoraConfig, config, "lora")
    key = jax.random.key(config.seed)
    mesh = meshes.make_mesh(section(meshes.MeshConfig, config, "mesh"))
    optimizer = make_optimizer(m_step_optimizer(config, settings))
    order = epoch_order(jax.random.fold_in(key, ORDER), len(documents.ids), settings.batch, settings.steps)
    adapter = init_lora(jax.random.fold_in(key, ADAPTER), model, lora)
    algorithm = LanguageModeling(model, dropout=lora.dropout, remat=config.model.remat)
    state = place(ModelState(jnp.zeros((), jnp.int32), adapter, optimizer.init(adapter)), mesh)
    placed = jax.tree.map(lambda x: x.sharding, state)
    step = make_language_model_step(algorithm, optimizer, meshes.rows_sharding(mesh))
    run = Run(
        workdir=folder,
        step_fn=jax.jit(step, donate_argnums=0, out_shardings=(placed, meshes.replicated(mesh))),
        state=state,
        constants=place(
            Corpus(documents, jnp.asarray(loss_mask), order, jax.random.fold_in(key, DROPOUT), params), mesh
        ),
        num_steps=settings.steps,
        samples_per_step=settings.batch,
        checkpointer=Checkpointer(folder, config_digest(described(config))),
        writers=make_writers(folder, config.tensorboard),
        log_every=config.log_every,
        save_every=config.save_every,
    )
    return train(run).state.trainable


def e_step_config(config: ml_collections.ConfigDict, adapter: pathlib.Path | None) -> ml_collections.ConfigDict:
    """The config of one E-step: a plain GFlowNet run against the base with that adapter."""
    own = config.copy_and_resolve_references()
    with own.unlocked():
        own.em.rounds = 0
        own[own.task].reward_adapter = None if adapter is None else str(adapter)
    return own


def evaluator_of(config: ml_collections.ConfigDict, adapter: pathlib.Path | None) -> Evaluator:
    """The evaluator of the config's task, answers coming from the base with that adapter, if any."""
    own = e_step_config(config, adapter)
    _, model = shape_of(own)
    task = make_task(own, load_tokenizer(resolve(model_folder(own.model.path))), model)
    return make_evaluator(own, task, model)


def shape_of(config: ml_collections.ConfigDict) -> tuple[str, ModelConfig]:
    """The base's family and shape."""
    return read_config(resolve(model_folder(config.model.path)))


def m_step_folder(workdir: pathlib.Path, number: int) -> pathlib.Path:
    """Where an M-step runs."""
    return workdir / f"m_step_{number}"


def adapter_folder(workdir: pathlib.Path, number: int) -> pathlib.Path:
    """Where an M-step leaves its adapter."""
    return m_step_folder(workdir, number) / "adapter"
