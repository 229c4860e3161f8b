"""PPO: a choice is worth what came of it, less a learnt value of the state it was made in (Schulman et al. 2017).

    loss = clipped ratio x A_t + value_coefficient x clipped square of (V - G_t) / value_unit    (`objectives.clipped`)

V is linear in the hidden state that the choice was read off, in units of `value_unit`, and learns through the adapter
too: where returns are many nats, a unit of one nat has the values' gradient drown the policy's, and a head that the
optimizer moves by the learning rate never gets there. A_t is the generalised
advantage (`gae_lambda`; undiscounted) over rewards by the choice (`returns`): what the token costs where it is chosen,
log R/T at the stop. With `whiten` advantages have mean 0 and standard deviation 1 over all choices of a block.

With `gae_lambda` 1 the first gradient of a block is REINFORCE's with another baseline, whatever V is; below 1 it is so
where V is right. With the default target, `posterior`, the optimum is R^(1/T), where V(s) is the log of a flow, the sum
of R^(1/T) over all that s may become (but for what s has cost), and every advantage 0. `returns` has the other targets.
"""

import dataclasses

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Float

from gfn_jax.algorithms.entry import AlgorithmEntry
from gfn_jax.algorithms.on_task import Batch
from gfn_jax.algorithms.policy_gradient import Experience, masked_mean, used_rows
from gfn_jax.algorithms.repeated import Repeated, RepeatedConfig, of_choices
from gfn_jax.interfaces import Measure
from gfn_jax.models.lora import Lora
from gfn_jax.objectives.clipped import clipped_square, generalized_advantage
from gfn_jax.policy.constraint import Constants
from gfn_jax.policy.score import score_states
from gfn_jax.sections import Nonnegative, Positive, Share

SMALLEST_DEVIATION = 1e-4  # nats: what is below it is rounding


@dataclasses.dataclass(frozen=True)
class PPOConfig(RepeatedConfig):
    """As of `RepeatedConfig`, and the values.

    Attributes:
        gae_lambda: lambda of the generalised advantages.
        whiten: whether advantages are normalised over the choices of a block.
        value_clip: d, units that a value may move while it learns from a block; None for any number.
        value_coefficient: what the values' loss weighs beside the policy's.
        value_unit: nats, about the deviation of the returns.
    """

    gae_lambda: Share
    whiten: bool
    value_clip: Positive | None
    value_coefficient: Nonnegative
    value_unit: Positive


@struct.dataclass
class ValueHead:
    """V = kernel . h + bias of a hidden state h, in units."""

    kernel: Float[Array, " E"]
    bias: Float[Array, ""]

    def __call__(self, hidden: Float[Array, "B T E"]) -> Float[Array, "B T"]:
        """The value of each state, in units, float32 whatever the model's dtype."""
        return hidden.astype(jnp.float32) @ self.kernel + self.bias


@struct.dataclass
class Trainable:
    """What the optimizer moves: the adapter, and the head beside it."""

    lora: Lora
    value: ValueHead


@struct.dataclass
class Values:
    """What was found of each state as rows were collected: V_old, and what it should have been, G, in units."""

    old: Float[Array, "B T"]
    aim: Float[Array, "B T"]


@dataclasses.dataclass(frozen=True)
class PPO(Repeated):
    """Proximal policy optimisation, as `interfaces.Interruptible` has it."""

    config: PPOConfig

    @property
    def frozen_scores(self) -> int:
        """Once more, for the values."""
        return super().frozen_scores + 1

    def untrained(self, key: jax.Array, constants: Constants) -> Trainable:
        """A fresh adapter; every value is 0."""
        head = ValueHead(jnp.zeros((constants.base.shape.width,)), jnp.zeros(()))
        return Trainable(self.new_lora(key, constants), head)

    def experience(
        self, trainable: Trainable, constants: Constants, batches: Batch, rewards: Float[Array, "P B T"]
    ) -> tuple[Experience, dict[str, Float[Array, ""]]]:
        """Generalised advantages; `explained_variance` is the share of G's variance that V_old knew of."""
        unit = self.config.value_unit
        value = unit * jax.lax.map(lambda batch: self.values(trainable, constants, batch), batches)
        chosen = batches.trajectory.rollout.action_mask & used_rows(batches)[:, :, None]
        advantage = jax.vmap(generalized_advantage, in_axes=(0, 0, 0, None))(
            rewards, value, chosen, self.config.gae_lambda
        )
        aim = advantage + value

        def variance(x: Array) -> Array:
            return masked_mean((x - masked_mean(x, chosen)) ** 2, chosen)

        explained = 1 - variance(aim - value) / jnp.maximum(variance(aim), 1e-9)
        if self.config.whiten:
            deviation = jnp.sqrt(variance(advantage)) + SMALLEST_DEVIATION
            advantage = jnp.where(chosen, (advantage - masked_mean(advantage, chosen)) / deviation, 0.0)
        return Experience(batches, advantage, Values(value / unit, aim / unit)), {"explained_variance": explained}

    def values(self, trainable: Trainable, constants: Constants, batch: Batch) -> Float[Array, "B T"]:
        """V of every state of a micro-batch, in units, nothing being dropped."""
        prompt, rollout = self.spread(batch.query).prompt, batch.trajectory.rollout
        policy = self.policy(trainable, constants)
        return trainable.value(score_states(policy, prompt, rollout, constants.rules)[1])

    def loss(
        self,
        trainable: Trainable,
        constants: Constants,
        batch: Experience,
        weights: dict[str, Float[Array, ""]],
        key: jax.Array,
    ) -> tuple[Float[Array, ""], dict[str, Measure]]:
        """This micro-batch's share of both means over choices."""
        scores, hidden = self.score(trainable, constants, batch.batch, key)
        loss, measured = self.clipped(batch, scores)
        found = clipped_square(trainable.value(hidden), batch.own.old, batch.own.aim, self.config.value_clip)
        value = of_choices(batch.chosen, found)
        loss = (loss + self.config.value_coefficient * value.total) / jnp.maximum(weights["choices"], 1.0)
        return loss, {**measured, "loss_value": value, **self.diagnose(batch.batch, scores)}


ALGORITHM = AlgorithmEntry(make=lambda config, given: PPO(given, config), section="ppo", config=PPOConfig)
