"""Contrastive twist learning: a proposal and a twist for sequential Monte Carlo (Zhao et al. 2024, arXiv:2404.17546).

The twisted targets that SMC goes through (`samplers.twists.Value`) are, at tempered rewards R^(1/T) = p phi,

    gamma_t(z_1:t) = p(z_1:t) e^V(s_t)                      and a completion that has stopped keeps its last one

Zhao et al. learn psi_t(z_1:t) of one network, whose twisted proposal is p psi_t normalised over z_t. With psi_t written
as that proposal times its normaliser, psi_t(z_1:t) = q(z_t | s) e^V(s) / p(z_t | s), the gradient of their loss

    sum_t KL(pi(z_1:t) || gamma_t(z_1:t) / Z_t)

falls apart, since E_q[grad log q] = 0: q learns by maximum likelihood of the posterior (`weighted_sft`, whose rows and
weights these are), and V by

    sum_t [ log sum_i v_t,i - sum_i w_i log v_t,i ] + const,   w_i = W_i / sum_j W_j,   W_i = R(z_i)^(1/T) / g(z_i)
    v_t,i = gamma_t(z_1:t) q(z_t+1: | z_1:t) / g(z_i)       the row's weight at t, were it to go on as q does

with respect to the V's alone. Both expectations are of the same weighted rows; at the optimum e^V(s_t) is proportional
to what p(z_1:t) has to be multiplied by to give the posterior's marginal.
"""

import dataclasses
from typing import Annotated, Any

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Float

from gfn_jax import replay as buffers
from gfn_jax.algorithms.diagnostics import of_rows
from gfn_jax.algorithms.entry import AlgorithmEntry
from gfn_jax.algorithms.on_task import Batch, Memory
from gfn_jax.algorithms.weighted_sft import WeightedSFT, WeightedSFTConfig
from gfn_jax.interfaces import Measure
from gfn_jax.models.lora import Lora
from gfn_jax.policy.constraint import Constants
from gfn_jax.policy.head import Head
from gfn_jax.rewards.compose import incremental
from gfn_jax.sections import Range
from gfn_jax.types import PolicyScores, PyTree, Query, Rollout


@dataclasses.dataclass(frozen=True)
class CTLConfig(WeightedSFTConfig):
    """Its section.

    Attributes:
        value_rate: how many times as fast V moves as the adapter: nats a unit of the head's output.
    """

    value_rate: Annotated[float, Range(0, above=True)]


@struct.dataclass
class Twisted:
    """What the optimizer moves.

    Attributes:
        lora: the proposal's adapter.
        value: of V / `value_rate`.
    """

    lora: Lora
    value: Head


@dataclasses.dataclass(frozen=True)
class CTL(WeightedSFT):
    """Weighted likelihood, and a twist beside it.

    Raises:
        ValueError: the reward cannot follow a completion.
    """

    config: CTLConfig

    def __post_init__(self):
        incremental(self.given.reward)

    def init(self, key: jax.Array, constants: Constants) -> tuple[Twisted, Memory]:
        """V = 0 and a fresh adapter (the proposal starts as the base)."""
        lora, head = jax.random.split(key)
        value = Head.init(head, constants.base.shape.width)
        return Twisted(self.new_lora(lora, constants), value), Memory(self.new_buffer(constants))

    def loss(
        self, trainable: Any, constants: Constants, batch: Batch, weights: dict[str, Float[Array, ""]], key: jax.Array
    ) -> tuple[Float[Array, ""], dict[str, Measure]]:
        """As of weighted likelihood; `twist_gap`: the mean KL(w || v_t) in nats, and `twist` at the prompt's end."""
        scores, hidden = self.score(trainable, constants, batch, key)
        loss, said = self.likelihood(batch, scores, weights)
        value = self.config.value_rate * trainable.value(hidden)
        gap = self.contrast(constants, batch, scores, value)
        found = self.by_query(batch.own.counts).any(axis=1)
        loss = loss + jnp.where(found, gap, 0.0).sum() / jnp.maximum(weights["queries"], 1.0)
        said |= {"twist_gap": of_rows(found, gap), "twist": of_rows(batch.used, value[:, 0])}
        return loss, said

    def contrast(
        self, constants: Constants, batch: Batch, scores: PolicyScores, value: Float[Array, "B T"]
    ) -> Float[Array, " Q"]:
        """The mean KL(w || v_t) of each query over the columns in which any of its rows goes on, in nats."""
        rollout = batch.trajectory.rollout
        query = self.spread(batch.query)
        log_prefix = log_prefixes(self.given.reward, constants, query, rollout) / self.given.sampling.target_temperature
        last = rollout.token_mask.sum(axis=1)  # the state in which the row stops
        # What has stopped stays where it was.
        state = jnp.minimum(jnp.arange(value.shape[1]), last[:, None])
        log_q = scores.log_pf.sum(axis=1, keepdims=True) - jnp.cumsum(scores.log_pf, axis=1) + scores.log_pf  # from t
        level = jax.lax.stop_gradient(log_prefix + log_q) + value
        level = jnp.take_along_axis(level, state, axis=1) - batch.own.log_proposal[:, None]
        counts = self.by_query(batch.own.counts)
        log_weight = self.by_query(batch.log_reward - batch.own.log_proposal)
        # [Q, T, N]: shares are a query's, column by column.
        log_w, log_v = buffers.log_shares(log_weight, counts)[:, None], jnp.swapaxes(self.by_query(level), 1, 2)
        counts = jnp.broadcast_to(counts[:, None], log_v.shape)
        log_v = buffers.log_shares(log_v, counts)
        gap = jnp.where(counts, jnp.exp(log_w) * (log_w - log_v), 0.0).sum(axis=2)
        going = jnp.arange(gap.shape[1]) <= self.by_query(last).max(axis=1, keepdims=True)
        return jnp.where(going, gap, 0.0).sum(axis=1) / going.sum(axis=1)


def log_prefixes(reward: PyTree, constants: Constants, query: Query, rollout: Rollout) -> Float[Array, "B T"]:
    """Log p(z_1:t), what the reward gives every prefix without looking ahead, in nats."""
    rows, horizon = rollout.completion.shape
    shape = (rows, horizon - 1, horizon - 1)
    reward = incremental(reward)
    fixed, state, empty = reward.begin(constants.base, constants.prepared, query, shape, False)
    tokens, mask = rollout.completion[:, :-1], rollout.token_mask[:, :-1]
    _, prefix = reward.extend(constants.base, constants.prepared, fixed, state, tokens, mask, jnp.int32(0))
    return jnp.concatenate([empty.log_prefix[:, None], prefix.log_prefix], axis=1)


ALGORITHM = AlgorithmEntry(
    make=lambda config, given: CTL(given, config), section="ctl", config=CTLConfig, off_policy=True
)
