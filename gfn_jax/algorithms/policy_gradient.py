"""What policy gradients have in common: fresh rows, and what every choice in them is worth.

All follow an estimate of grad E_q[G(Z)] (Williams 1992; the return G in `returns`),

    sum_t A_t grad log q(z_t | z_<t),

and differ by the advantage A_t, which is what came of a choice less what was to be expected without it: it is found as
rows are collected, over all of them, and is a constant from there on.
"""

import abc
import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Float

from gfn_jax.algorithms.on_task import Adapter, Batch, OnPolicy
from gfn_jax.algorithms.returns import ReturnConfig
from gfn_jax.interfaces import Measure
from gfn_jax.policy.constraint import Constants
from gfn_jax.policy.score import score
from gfn_jax.types import Collected, Keys, PyTree, Sampled, TrainState


@struct.dataclass
class Experience:
    """Rows, and what their choices are worth.

    Attributes:
        batch: the rows.
        advantage: of every choice, in nats or in standard deviations; 0 where there was none.
        own: whatever else the algorithm has found of each row, or None.
    """

    batch: Batch
    advantage: Float[Array, "B T"]
    own: PyTree = None

    @property
    def chosen(self) -> Bool[Array, "B T"]:
        """Where the policy chose, in rows that count: not what a tool wrote, and not padding."""
        return self.batch.trajectory.rollout.action_mask & self.batch.used[:, None]

    @property
    def log_drawn(self) -> Float[Array, "B T"]:
        """Log q of every choice when it was drawn, in nats."""
        return self.batch.trajectory.rollout.log_behavior


@struct.dataclass
class Memory:
    """What a policy gradient remembers.

    Attributes:
        beta: of the next rows (`returns.ReturnConfig`).
        held: the rows that are being learnt from (`repeated.Held`); None where each is learnt from once.
    """

    beta: Float[Array, ""]
    held: PyTree = None


@dataclasses.dataclass(frozen=True)
class PolicyGradient(OnPolicy):
    """Every row is learnt from once; a subclass says what its choices are worth.

    Attributes:
        config: the algorithm's section.
    """

    config: ReturnConfig

    def init(self, key: jax.Array, constants: Constants) -> tuple[Any, Memory]:
        """What is trained, the policy starting as the base, and the first beta."""
        return self.untrained(key, constants), Memory(jnp.float32(self.config.beta))

    @property
    def frozen_scores(self) -> int:
        """Once by the base, where distance from it costs."""
        return int(self.config.target == "kl_to_base")

    def untrained(self, key: jax.Array, constants: Constants) -> Any:
        """What is trained, before it is."""
        return Adapter(self.new_lora(key, constants))

    def store(self, state: TrainState, constants: Constants, sampled: Sampled, keys: Keys) -> Collected:
        """What was sampled, with the worth of every choice."""
        collected = super().store(state, constants, sampled, keys)
        batches, memory, log_base = collected.batches, state.memory, None
        used, found = used_rows(batches), dict(collected.metrics)
        if self.config.target == "kl_to_base":
            log_base = jax.lax.map(lambda batch: self.base_log_probs(constants, batch), batches)
            log_ratio = (batches.trajectory.rollout.log_behavior - log_base).sum(axis=-1)
            kl = masked_mean(log_ratio, used)
            found |= {"kl_to_base": kl, "beta": memory.beta}
            memory = dataclasses.replace(memory, beta=self.config.next_beta(memory.beta, kl, used.size))
        rewards = jax.vmap(self.config.rewards, in_axes=(0, None, 0))(batches, state.memory.beta, log_base)
        found["return"] = masked_mean(rewards.sum(axis=-1), used)
        experience, described = self.experience(state.trainable, constants, batches, rewards)
        return Collected(experience, memory, {**found, **described})

    def base_log_probs(self, constants: Constants, batch: Batch) -> Float[Array, "B T"]:
        """Log p of every choice of a micro-batch under the base, in nats."""
        prompt = self.spread(batch.query).prompt
        return score(constants.base, prompt, batch.trajectory.rollout, constants.rules).log_pf

    @abc.abstractmethod
    def experience(
        self, trainable: Any, constants: Constants, batches: Batch, rewards: Float[Array, "P B T"]
    ) -> tuple[Experience, dict[str, Float[Array, ""]]]:
        """The worth of every choice in P micro-batches, and what a log says of it.

        Args:
            trainable: of the policy that drew them.
            constants: of the run.
            batches: [P, ...].
            rewards: of every choice, in nats.
        """

    def weights(self, batch: Any) -> dict[str, Float[Array, ""]]:
        """How many rows of an `Experience` count."""
        return super().weights(batch.batch)

    def loss(
        self,
        trainable: Any,
        constants: Constants,
        batch: Experience,
        weights: dict[str, Float[Array, ""]],
        key: jax.Array,
    ) -> tuple[Float[Array, ""], dict[str, Measure]]:
        """Minus the mean of sum_t A_t log q(z_t | z_<t): its gradient is the method, its value says nothing."""
        scores, _ = self.score(trainable, constants, batch.batch, key)
        loss = -jnp.where(batch.chosen, batch.advantage * scores.log_pf, 0.0).sum()
        return loss / jnp.maximum(weights["rows"], 1.0), self.diagnose(batch.batch, scores)


def check_rivals(samples: int) -> None:
    """Raises ValueError where a row has no other of its query to be compared with."""
    if samples < 2:
        raise ValueError(f"sampling.samples is {samples}; a row is compared with the others of its query: 2 or more")


def compared(
    batches: Batch, rewards: Float[Array, "P B T"], samples: int, worth: Callable[[Array, Array], Array]
) -> Experience:
    """Rows that are worth what `worth` makes of a query's returns, [P, Q, N], and of which of them count."""
    returns, used = rewards.sum(axis=-1), used_rows(batches)
    of_query = (*returns.shape[:1], -1, samples)
    return per_row(batches, worth(returns.reshape(of_query), used.reshape(of_query)).reshape(returns.shape))


def used_rows(batches: Batch) -> Bool[Array, "P B"]:
    """The rows that count, of P micro-batches."""
    return jax.vmap(lambda batch: batch.used)(batches)


def masked_mean(values: Float[Array, "*b"], mask: Bool[Array, "*b"]) -> Float[Array, ""]:
    """The mean of those under `mask`; 0 where there is none."""
    return jnp.where(mask, values, 0.0).sum() / jnp.maximum(mask.sum(dtype=jnp.float32), 1.0)


def per_row(batches: Batch, advantage: Float[Array, "P B"]) -> Experience:
    """Rows every choice of which is worth the same."""
    rollout = batches.trajectory.rollout
    chosen = rollout.action_mask & used_rows(batches)[:, :, None]
    return Experience(batches, jnp.where(chosen, advantage[:, :, None], 0.0))
