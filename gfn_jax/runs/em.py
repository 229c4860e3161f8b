"""Expectation maximisation around a GFlowNet: E-steps and M-steps in turn (Hu et al. 2024, section 3.2).

    E-step k    a GFlowNet policy q_k(Z | X) is trained towards p_k(Z | X, Y), p_k being the reward model of the round
    M-step k    p_k+1 = argmax over adapters of  sum_(X, Y)  E_Z~q_k  log p(Z Y | X)

p_1 is the base; every M-step starts from the base with a new adapter, of the policy's shape, fitted to reasons sampled
from q_k for the training queries. Each step is a run of its own, WORKDIR/e_step_K and WORKDIR/m_step_K, and goes on
from its own checkpoints; its findings are in its results.json, those of the last M-step and a row for each step in
WORKDIR/results.json. Any task will do that has answers and a `reward_adapter` in its section.
"""

import dataclasses
import logging
import pathlib
import time
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jaxtyping import Bool

from gfn_jax.algorithms.language_model import Corpus, LanguageModeling, epoch_order
from gfn_jax.evaluation.report import Evaluator
from gfn_jax.evaluation.rows import gather
from gfn_jax.evaluation.sampling import sample_completions
from gfn_jax.models.adapters import save_adapter
from gfn_jax.models.checkpoint import read_config
from gfn_jax.models.config import ModelConfig
from gfn_jax.models.language_model import LanguageModel
from gfn_jax.models.tensor_files import resolve, whole_folder
from gfn_jax.policy.constraint import Constants
from gfn_jax.runs.budget import sampling_budget, text_budget, total
from gfn_jax.runs.config import EMConfig, PolicyRun
from gfn_jax.runs.ending import leave, measured, own_metrics
from gfn_jax.runs.finetuning import likelihood_run
from gfn_jax.runs.policy import build_policy
from gfn_jax.runs.rounds import completed, last_words, results_of, shown, write_rounds
from gfn_jax.runs.tasks import make_evaluator, make_task
from gfn_jax.text.batching import pad_right
from gfn_jax.text.loading import load_tokenizer, model_folder
from gfn_jax.training import mesh as meshes
from gfn_jax.training.checkpoint import claim_workdir, config_digest
from gfn_jax.training.loop import Run, Trained, stoppable
from gfn_jax.training.optimizer import OptimizerConfig, make_optimizer
from gfn_jax.training.step import init_state
from gfn_jax.types import Query, Tokens

# Streams of an M-step: fold_in(key of the seed, STREAM), behind the E-step's; rounds are added to the last.
ORDER, ADAPTER, DROPOUT, SAMPLE = 3, 4, 5, 1000
_log = logging.getLogger("gfn_jax")


@dataclasses.dataclass(frozen=True)
class EM:
    """E-step 1, M-step 1, E-step 2 and so on: runs that are completed in turn, each built when the last one is done.

    Attributes:
        config: of the E-steps.
        em: the rounds.
        workdir: of all steps, and of the results.
        command: what repeats it.
        run: E-step 1, built already: what is wrong is found before anything is trained.
    """

    config: PolicyRun
    em: EMConfig
    workdir: pathlib.Path
    command: str
    run: Run

    def complete(self) -> str:
        """Every step; then what a person reads of the last policy with the last answering model, and of each round.

        Raises:
            TrainingStopped, TrainingDiverged, EvaluationFailed, OSError, ValueError: as `training.loop.complete`.
        """
        rounds: dict[str, Any] = {}
        runs: dict[str, pathlib.Path] = {}
        run, seconds, page = self.run, 0.0, ""
        stopped = f"stopped; what the steps of EM have saved is in {self.workdir}; run the same command to go on"
        with stoppable(stopped):  # between two steps, too
            for number in range(1, self.em.rounds + 1):
                if number > 1:
                    run = build_e_step(self.config, self.workdir, number, self.command)
                trained, _ = completed(run)
                seconds += trained.seconds
                rounds[f"e_step_{number}"], runs[f"e_step_{number}"] = own_metrics(results_of(run.workdir)), run.workdir
                policy = run.constants.base.adapted(trained.state.trainable.lora)
                m_step = build_m_step(self.config, self.em, self.workdir, number, run.constants, policy, self.command)
                _, page = completed(m_step)
                name = f"m_step_{number}"
                rounds[name], runs[name] = own_metrics(results_of(m_step.workdir)), m_step.workdir
                e_step, adapted = (shown(found, run) for found in [*rounds.values()][-2:])
                _log.info("round %d: E-step %s; M-step %s", number, e_step, adapted)
            method = f"{self.config.values.algorithm}_em"
            write_rounds(self.workdir, self.config, method, self.command, seconds, rounds, runs)
        lines = [f"  {name[0].upper()}-step {name[7:]}: {shown(found, run)}" for name, found in rounds.items()]
        return last_words(page, lines, self.workdir)


def build_em(config: PolicyRun, em: EMConfig, workdir: pathlib.Path, command: str = "") -> EM:
    """The rounds, ready to be completed; `command` is what repeats them.

    Raises:
        ValueError, FileNotFoundError: what is wrong with a workdir, the model or the data, in one line.
    """
    meshes.check_rows(em.batch, meshes.make_mesh(config.mesh), "value of em.batch")
    first = build_e_step(config, workdir, 1, command)
    for number in range(1, em.rounds + 1):
        claim_workdir(m_step_folder(workdir, number), config.described)
    return EM(config, em, workdir, command, first)


def build_e_step(config: PolicyRun, workdir: pathlib.Path, number: int, command: str) -> Run:
    """A plain run against the base with the adapter of the last M-step, if there was one."""
    adapter = adapter_folder(workdir, number - 1) if number > 1 else None
    return build_policy(e_step_config(config, adapter), workdir / f"e_step_{number}", command)


def e_step_config(config: PolicyRun, adapter: pathlib.Path | None) -> PolicyRun:
    """The config of one E-step: a plain run's, the reward model being the base with that adapter."""
    folder = None if adapter is None else str(adapter)
    described, section = dict(config.described), config.entry.section
    described["em"] = {**described["em"], "rounds": 0}
    described[section] = {**described[section], "reward_adapter": folder}
    task = dataclasses.replace(config.task, reward_adapter=folder)
    return dataclasses.replace(config, em=None, task=task, described=described)


def build_m_step(
    config: PolicyRun,
    em: EMConfig,
    workdir: pathlib.Path,
    number: int,
    constants: Constants,
    policy: LanguageModel,
    command: str,
) -> Run:
    """Fits an adapter to what the round's policy says; it lies in the round's adapter folder at the end.

    Args:
        config: of the E-steps.
        em: the rounds.
        workdir: of all steps.
        number: of the round, from 1.
        constants: of the round's E-step.
        policy: what the E-step has trained.
        command: what repeats it.
    """
    model_type, _ = shape_of(config)
    began = time.perf_counter()
    samples = sample_completions(
        policy,
        constants.queries.prompt,
        constants.rules,
        jax.random.fold_in(jax.random.key(config.values.seed), SAMPLE + number),
        em.samples,
        temperature=1.0,
        batch=config.sampling.queries,
    )
    sampled_in = time.perf_counter() - began
    documents, loss_mask = joined_rows(constants.queries, samples)
    folder = m_step_folder(workdir, number)
    run = adapter_run(config, em, folder, constants.base, documents, loss_mask)

    def finish(trained: Trained) -> str:
        adapter = gather(trained.state.trainable)
        if jax.process_index() == 0:
            with whole_folder(adapter_folder(workdir, number)) as draft:
                save_adapter(draft, constants.base.shape, config.lora, adapter, model_type)
        multihost_utils.sync_global_devices(f"adapter {number}")
        plain, evaluator = (evaluator_of(config, path) for path in (None, adapter_folder(workdir, number)))
        findings = measured(evaluator, policy, config.values.report, plain)
        values, rules = config.values, constants.rules
        facts = {"task": values.task, "method": "m_step", "seed": values.seed, "command": command}
        spent = (
            sampling_budget(policy, config.lora, constants.queries.prompt, rules, samples, sampled_in),
            text_budget(policy.shape, config.lora, documents, em.batch, em.steps, trained.seconds),
        )
        session = {"steps": trained.steps, "seconds": round(trained.seconds, 1)}
        leave(folder, {**facts, **session, "budget": total(each.as_dict() for each in spent)}, findings)
        return findings.page

    return dataclasses.replace(run, finish=finish)


def joined_rows(query: Query, samples: Sequence[Sequence[Sequence[int]]]) -> tuple[Tokens, Bool[np.ndarray, "R S"]]:
    """Rows X Z Y of `[Q][N]` sampled Z, and which of their tokens are to be learnt: those of Z and Y."""

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


def adapter_run(
    config: PolicyRun,
    em: EMConfig,
    folder: pathlib.Path,
    base: LanguageModel,
    documents: Tokens,
    loss_mask: Bool[np.ndarray, "R S"],
) -> Run:
    """Maximum likelihood of the marked tokens under the base with a new adapter, as a run in `folder`."""
    key = jax.random.key(config.values.seed)
    order = epoch_order(jax.random.fold_in(key, ORDER), len(documents.ids), em.batch, em.steps)
    corpus = Corpus(documents, jnp.asarray(loss_mask), order, jax.random.fold_in(key, DROPOUT), base)
    algorithm = LanguageModeling(base.shape, config.lora, remat=config.model.recomputed)
    optimizer = make_optimizer(m_step_optimizer(config.optimizer, em))
    state = init_state(algorithm, optimizer, jax.random.fold_in(key, ADAPTER), corpus)
    digest, mesh = config_digest(config.described), meshes.make_mesh(config.mesh)
    return likelihood_run(config.values, folder, digest, mesh, algorithm, optimizer, state, corpus)


def m_step_optimizer(e_step: OptimizerConfig, em: EMConfig) -> OptimizerConfig:
    """The E-step's, with the M-step's own length, rate and warm-up."""
    return dataclasses.replace(
        e_step, learning_rate=em.learning_rate, warmup_steps=em.warmup_steps, total_steps=em.steps
    )


def evaluator_of(config: PolicyRun, adapter: pathlib.Path | None) -> Evaluator:
    """The evaluator of the config's task, answers coming from the base with that adapter, if any."""
    own = e_step_config(config, adapter)
    _, model = shape_of(own)
    task = make_task(own, load_tokenizer(resolve(model_folder(own.model.path))), model)
    return make_evaluator(own, task, model)


def shape_of(config: PolicyRun) -> tuple[str, ModelConfig]:
    """The base's family and shape."""
    return read_config(resolve(model_folder(config.model.path)))


def m_step_folder(workdir: pathlib.Path, number: int) -> pathlib.Path:
    """Where an M-step runs."""
    return workdir / f"m_step_{number}"


def adapter_folder(workdir: pathlib.Path, number: int) -> pathlib.Path:
    """Where an M-step leaves its adapter."""
    return m_step_folder(workdir, number) / "adapter"
