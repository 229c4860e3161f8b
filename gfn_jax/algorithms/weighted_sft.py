"""Weighted likelihood: the policy learns its own samples and the buffer's, each weighted by the target.

    loss(q) = - mean over queries of  sum_i w_i log q(z_i),      w_i = W_i / sum_j W_j,    W_i = R(z_i)^(1/T) / g(z_i)
    g(z) = n b(z)  of a fresh row, drawn by the behaviour b (n of them), if the buffer does not hold it
    g(z) = r p(z)  of a row that the buffer has drawn with probability p (r of them)

The buffer is a known set, as it was before the fresh rows came: what it holds counts by its own draws and the fresh
rows count for all the rest, so that the sum of the W's is an unbiased estimate of Z and the weighted rows one of the
posterior's. The optimum is q proportional to R^(1/T), the GFlowNet's, by forward KL: reward-weighted regression (Peters
& Schaal 2007); reweighted wake-sleep with a fixed model (Bornschein & Bengio 2015). Dividing by the estimate of Z
leaves a bias of the order of the weights' variance / N.

With `control_variate` the same rows, weighted by v_i = V_i / sum_j V_j, V_i = q(z_i) / g(z_i), are subtracted: the
gradient is that of sum_i (w_i - v_i) log q(z_i), i.e. of KL(w || v). What is subtracted estimates E_q[grad log q] = 0;
at the optimum w = v whatever was drawn, so that noise and bias end with the learning.
"""

import dataclasses
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Float, Int, Shaped

from gfn_jax import replay as buffers
from gfn_jax.algorithms import on_task
from gfn_jax.algorithms.diagnostics import of_rows
from gfn_jax.algorithms.entry import AlgorithmEntry
from gfn_jax.algorithms.on_task import Batch, OffPolicy
from gfn_jax.interfaces import Measure
from gfn_jax.models.language_model import LanguageModel
from gfn_jax.policy.constraint import Constants
from gfn_jax.types import PolicyScores, Query, Trajectory, Weighted


@dataclasses.dataclass(frozen=True)
class WeightedSFTConfig:
    """Its section.

    Attributes:
        proposal: whose samples the fresh rows are: the policy's as it is, or the untouched base's.
        control_variate: subtract what the policy itself makes of the rows.
    """

    proposal: Literal["policy", "base"]
    control_variate: bool


@struct.dataclass
class Proposal:
    """What is known of how rows came to be: log g (nats), and whether they count; a batch's `own`."""

    log_proposal: Float[Array, " B"]
    counts: Bool[Array, " B"]


@dataclasses.dataclass(frozen=True)
class WeightedSFT(OffPolicy):
    """Weighted likelihood, as `interfaces.Interruptible` has it."""

    config: WeightedSFTConfig

    def proposal(self, trainable: Any, constants: Constants) -> LanguageModel:
        """What fresh rows are sampled from."""
        return constants.base if self.config.proposal == "base" else self.policy(trainable, constants)

    def recall(
        self,
        buffer: buffers.ReplayBuffer,
        query: Query,
        fresh: Trajectory,
        key: jax.Array,
        step: Int[Array, ""],
        drawn_at: Int[Array, ""],
    ) -> tuple[Batch, buffers.ReplayBuffer, dict[str, Weighted]]:
        """One micro-batch: rows from the buffer as it is, then the fresh ones into it."""
        sampling, temperature = self.given.sampling, self.given.sampling.reward_temperature(step)
        rows, described = self.fresh_batch(query, fresh, temperature)
        log_proposal = rows.log_behavior + jnp.log(sampling.fresh_samples)
        counts = rows.used
        if self.replay.samples:
            counts &= ~stored(buffer, query.example_id, fresh)
            drawn = self.draw(buffer, key, query, step)
            described |= self.describe_drawn(drawn, step)
            replayed = self.replayed_batch(query, drawn, temperature)
            log_chosen = drawn.log_chosen + jnp.log(sampling.replayed_samples)
            log_proposal, counts = (
                on_task.joined(len(query.example_id), *pair)
                for pair in ((log_proposal, log_chosen), (counts, replayed.used))
            )
            rows = on_task.beside(rows, replayed)
        counts &= jnp.isfinite(rows.log_reward)
        buffer = buffers.add(buffer, query.example_id, fresh, self.replay.tolerance, drawn_at)
        return dataclasses.replace(rows, own=Proposal(log_proposal, counts)), buffer, described

    def weights(self, batch: Batch) -> dict[str, Float[Array, ""]]:
        """How many queries have a row that counts."""
        return {"queries": self.by_query(batch.own.counts).any(axis=1).sum(dtype=jnp.float32)}

    def by_query(self, rows: Shaped[Array, "*rows"]) -> Shaped[Array, "Q N *rest"]:
        """A query's rows side by side."""
        return rows.reshape(-1, self.given.sampling.samples, *rows.shape[1:])

    def loss(
        self, trainable: Any, constants: Constants, batch: Batch, weights: dict[str, Float[Array, ""]], key: jax.Array
    ) -> tuple[Float[Array, ""], dict[str, Measure]]:
        """This micro-batch's share of the loss; `weight_ess`: the w's effective sample size, as a share of N."""
        scores, _ = self.score(trainable, constants, batch, key)
        return self.likelihood(batch, scores, weights)

    def likelihood(
        self, batch: Batch, scores: PolicyScores, weights: dict[str, Float[Array, ""]]
    ) -> tuple[Float[Array, ""], dict[str, Measure]]:
        """The loss of rows that have been scored."""
        log_reward, log_q, log_proposal, counts = map(
            self.by_query, (batch.log_reward, scores.log_pf.sum(axis=1), batch.own.log_proposal, batch.own.counts)
        )
        found = counts.any(axis=1)
        weight = jnp.exp(buffers.log_shares(log_reward - log_proposal, counts))
        fitted = buffers.log_shares(log_q - log_proposal, counts) if self.config.control_variate else log_q
        loss = -jnp.sum(jnp.where(counts, weight * fitted, 0.0)) / jnp.maximum(weights["queries"], 1.0)
        size = 1 / jnp.maximum(jnp.sum(weight**2, axis=1), 1e-9) / weight.shape[1]
        return loss, {"weight_ess": of_rows(found, size), **self.diagnose(batch, scores)}


def stored(buffer: buffers.ReplayBuffer, example_id: Int[Array, " Q"], trajectory: Trajectory) -> Bool[Array, " B"]:
    """Which completions the buffer holds among their query's; rows of one query are adjacent."""
    length = trajectory.rollout.token_mask.sum(axis=1)
    completion = trajectory.rollout.completion.reshape(len(example_id), -1, 1, trajectory.rollout.completion.shape[1])
    held, filled = buffer.completion[example_id][:, None], buffer.filled[example_id][:, None]
    columns = jnp.arange(held.shape[-1])
    inside = columns < length.reshape(len(example_id), -1, 1, 1)
    same = jnp.all((held == completion) | ~inside, axis=-1)
    same &= buffer.length[example_id][:, None] == length.reshape(len(example_id), -1, 1)
    return (same & filled).any(axis=-1).reshape(-1)


ALGORITHM = AlgorithmEntry(
    make=lambda config, given: WeightedSFT(given, config),
    section="weighted_sft",
    config=WeightedSFTConfig,
    off_policy=True,
)
