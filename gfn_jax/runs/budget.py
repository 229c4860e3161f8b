"""What a run has spent: the two budgets by which methods are compared, and the clock.

    generated_tokens    tokens chosen in sampling what is learnt from: stops count, what a tool writes does not
    training_flops      operations of matrix products (`models.flops`): rollout, rewards, scores and the update, of
                        completions at their full length, which is what the compiled shapes compute at most

Evaluation, certificates and the seeds that a base writes before the first step are no part of either.
"""

import dataclasses
import json
import logging
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

from gfn_jax.algorithms.entry import Ingredients
from gfn_jax.algorithms.on_task import OnPolicy
from gfn_jax.algorithms.sft import SupervisedFinetuning
from gfn_jax.evaluation.scoring import padded
from gfn_jax.interfaces import Environment
from gfn_jax.models.config import KEPT, ModelConfig
from gfn_jax.models.flops import (
    Flops,
    StepShape,
    packed_reward_flops,
    rollout_flops,
    score_flops,
    text_flops,
)
from gfn_jax.models.language_model import LanguageModel
from gfn_jax.models.lora import LoraConfig
from gfn_jax.policy.constraint import Constants, Rules
from gfn_jax.rewards.posterior import Context
from gfn_jax.types import PyTree, Tokens

_log = logging.getLogger("gfn_jax")


@dataclasses.dataclass(frozen=True)
class Budget:
    """What was spent; None where it is not known.

    Attributes:
        generated_tokens, training_flops: see above.
        seconds: of training, without compilation, evaluation and saving; of sampling between two runs.
    """

    generated_tokens: int | None
    training_flops: float | None
    seconds: float

    def as_dict(self) -> dict[str, Any]:
        """For results.json."""
        return {**dataclasses.asdict(self), "seconds": round(self.seconds, 1)}


def total(budgets: Iterable[Mapping[str, Any] | None]) -> dict[str, Any] | None:
    """The sum of several, as `Budget.as_dict` has them; None where one is missing, and of what one does not know."""
    kept = list(budgets)
    if not all(kept):
        return None
    found: dict[str, Any] = {}
    for field in dataclasses.fields(Budget):
        values = [budget[field.name] for budget in kept if budget]
        found[field.name] = None if None in values else round(sum(values), 1)
    return found


def run_budget(metrics: pathlib.Path, algorithm: Any, constants: Any, steps: int, seconds: float) -> Budget:
    """That of a policy's run.

    Args:
        metrics: its metrics.jsonl.
        algorithm: any; one of a user's own need not say what it was given, and its operations are not known then.
        constants: of the run.
        steps: done.
        seconds: that they took.
    """
    flops = None
    if isinstance(getattr(algorithm, "given", None), Ingredients):
        passes = len(contexts(constants.prepared))
        parts = step_flops(algorithm, constants.base.shape, step_shape(algorithm, constants), passes)
        flops = float(steps * sum(parts.values()))
    return Budget(recorded_tokens(metrics, steps), flops, seconds)


def recorded_tokens(metrics: pathlib.Path, steps: int) -> int | None:
    """The sum of `generated_tokens` over the steps of a metrics.jsonl; None where it does not have them all."""
    lines = metrics.read_text().splitlines() if metrics.exists() else []
    records = [record for record in map(json.loads, lines) if record["kind"] == "train"]
    counts = [record["generated_tokens"] for record in records if "generated_tokens" in record]
    if len(records) != steps or len(counts) not in (0, steps):
        _log.warning("%s lacks some of the %d steps: how many tokens were generated is not known", metrics, steps)
        return None
    return round(sum(counts))


def sampling_budget(
    model: LanguageModel,
    lora: LoraConfig,
    prompt: Tokens,
    rules: Rules,
    samples: Sequence[Sequence[Sequence[int]]],
    seconds: float,
) -> Budget:
    """That of `[M][N]` completions which were sampled between two runs, for M prompts."""
    shape = StepShape(
        queries=len(samples),
        samples=len(samples[0]),
        prompt=prompt.ids.shape[1],
        context=0,
        answer=0,
        few_shot=0,
        horizon=rules.constraint.horizon,
        allowed=len(rules.constraint.token_ids),
    )
    flops = Flops(model.shape, lora if model.adapter else None)
    ids, lengths = padded(samples, rules.constraint)
    tokens = _chosen(ids.reshape(-1, ids.shape[-1]), lengths.reshape(-1), rules.environment)
    return Budget(int(tokens), float(rollout_flops(flops, shape)), seconds)


@jax.jit
def _chosen(ids: Int[Array, "B T"], lengths: Int[Array, " B"], environment: Environment) -> Int[Array, ""]:
    """How many tokens of sampled completions were chosen, their stops included, and not written by the tool."""

    def step(tool: PyTree, token: Int[Array, " B"]) -> tuple[PyTree, Array]:
        return environment.step(tool, token), environment.forced(tool) < 0

    _, decides = jax.lax.scan(step, environment.init(len(ids)), jnp.asarray(ids).T)
    return (decides.T & (jnp.arange(ids.shape[1]) <= lengths[:, None])).sum()


def text_budget(shape: ModelConfig, lora: LoraConfig, rows: Tokens, batch: int, steps: int, seconds: float) -> Budget:
    """That of next-token training of an adapter, `batch` of the rows a step; nothing is generated."""
    flops = text_flops(Flops(shape, lora), batch, np.shape(rows.ids)[1], backward=True)
    return Budget(0, float(steps * flops), seconds)


def contexts(prepared: PyTree) -> list[Context]:
    """What the rewards that read the base keep; none where the reward has no use for it."""
    leaves = jax.tree.leaves(prepared, is_leaf=lambda x: isinstance(x, Context))
    return [leaf for leaf in leaves if isinstance(leaf, Context)]


def step_shape(algorithm: Any, constants: Constants) -> StepShape:
    """The sizes of a step, all samples of a query counted."""
    kept = contexts(constants.prepared)
    demonstrations = kept[0].demonstrations if kept else None
    query, columns = constants.queries, constants.rules.constraint.token_ids
    return StepShape(
        queries=algorithm.given.sampling.queries,
        samples=algorithm.given.sampling.samples,
        prompt=query.prompt.ids.shape[1],
        context=query.context.ids.shape[1],
        answer=query.answer.ids.shape[1],
        few_shot=0 if demonstrations is None else demonstrations.mask.shape[1],
        horizon=constants.rules.constraint.horizon,
        allowed=columns.shape[0],
    )


def step_flops(algorithm: Any, model: ModelConfig, shape: StepShape, reward_passes: int = 1) -> dict[str, int]:
    """Matrix products a step, on average; replayed rows are scored by the policy but neither sampled nor rewarded."""
    policy, base = Flops(model, algorithm.given.lora), Flops(model)
    if isinstance(algorithm, SupervisedFinetuning):
        return supervised_flops(algorithm, policy, shape)
    fresh = dataclasses.replace(shape, samples=algorithm.given.sampling.fresh_samples)
    learnt = shape
    sampled: dict[str, int] = {}
    if isinstance(algorithm, OnPolicy):  # else nothing is sampled
        learnt = dataclasses.replace(shape, samples=algorithm.learnt_samples)
        sampled = {
            "rollout": rollout_flops(policy, fresh),
            "reward": reward_passes * packed_reward_flops(base, fresh),
            "scores without gradient": algorithm.frozen_scores * rollout_flops(policy, shape),
        }
        sampled = {part: count // algorithm.updates for part, count in sampled.items() if count}
    parts = {**sampled, "score, update": score_flops(policy, learnt)}
    if algorithm.given.remat != "none":  # the layers once more, the head not
        again = dataclasses.replace(policy, kept=KEPT[algorithm.given.remat])
        parts["recomputed"] = rollout_flops(again, dataclasses.replace(learnt, allowed=0))
    return parts


def supervised_flops(algorithm: SupervisedFinetuning, policy: Flops, shape: StepShape) -> dict[str, int]:
    """Of demonstrations, each row with a prompt of its own; of whole texts over the whole vocabulary."""
    rows = dataclasses.replace(shape, queries=shape.rows, samples=1)
    remat = algorithm.given.remat
    other = dataclasses.replace(policy, kept=KEPT.get(remat, ()))
    learnt, again = score_flops(policy, rows), rollout_flops(other, dataclasses.replace(rows, allowed=0))
    if algorithm.config.learn != "completion":
        length = shape.prompt + shape.horizon + shape.answer
        learnt = text_flops(policy, shape.rows, length, backward=True)
        again = text_flops(other, shape.rows, length, head=False)
    return {"score, update": learnt, **({} if remat == "none" else {"recomputed": again})}
