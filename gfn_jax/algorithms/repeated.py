"""Policy gradients that learn from the same rows several times, in one step each: one step is one update.

The steps of a block, `epochs` x `minibatches` of them, share the rows that its first has sampled. The state remembers
these with all that was known of them then (log q, advantages), so that a run which is interrupted within a block goes
on as it would have, and one program does for every step. A step learns from a share of the rows of every query; which,
is a function of its number, and an epoch learns from every row once.

Each step follows the clipped ratio (`objectives.clipped`), summed over choices and divided by their number: all choices
of a step weigh the same, whatever the length of their row.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Float, Int

from gfn_jax.algorithms.on_task import generated
from gfn_jax.algorithms.policy_gradient import Experience, Memory, PolicyGradient
from gfn_jax.algorithms.returns import ReturnConfig
from gfn_jax.interfaces import Measure
from gfn_jax.objectives.clipped import clipped_surrogate
from gfn_jax.policy.constraint import Constants
from gfn_jax.sections import Count, Positive
from gfn_jax.types import Collected, Keys, PolicyScores, Query, Sampled, TrainState, Weighted


@dataclasses.dataclass(frozen=True)
class RepeatedConfig(ReturnConfig):
    """The returns; and how often, and how far, a policy moves on the same rows.

    Attributes:
        epochs: over the rows of a block.
        minibatches: parts of an epoch, of equal shares of every query's rows: so many updates.
        clip: c: a choice whose probability has moved by more than this share, and the right way, is left alone.
    """

    epochs: Count
    minibatches: Count
    clip: Positive


@struct.dataclass
class Held:
    """What the steps of a block share.

    Attributes:
        experience: all rows, [Q, ...] and [B, ...], as they were seen in the block's first step.
        metrics: what was said of them then.
    """

    experience: Experience
    metrics: dict[str, Float[Array, ""]]


@dataclasses.dataclass(frozen=True)
class Repeated(PolicyGradient):
    """Several updates on the same rows, as `interfaces.Interruptible` has it.

    What the host adds to the rewards counts in a block's first step; in the others `store` goes by what is remembered.

    Raises:
        ValueError: the samples of a query do not divide into the minibatches.
    """

    config: RepeatedConfig

    def __post_init__(self):
        samples, minibatches, copies = self.given.sampling.samples, self.config.minibatches, self.given.copies
        if samples % (minibatches * copies):
            shared = f", each of them shared by {copies} devices" if copies > 1 else ""
            raise ValueError(
                f"minibatches is {minibatches}; the {samples} samples of a query do not divide into that many{shared}"
            )

    @property
    def updates(self) -> int:
        """Steps of a block."""
        return self.config.epochs * self.config.minibatches

    @property
    def learnt_samples(self) -> int:
        """A minibatch's share."""
        return self.given.sampling.samples // self.config.minibatches

    def init(self, key: jax.Array, constants: Constants) -> tuple[Any, Memory]:
        """What is trained, the policy starting as the base, the first beta, and room for a block's rows."""
        trainable, memory = super().init(key, constants)
        state, keys = TrainState(jnp.int32(0), trainable, None, memory), Keys.of(constants.root, jnp.int32(0))
        held = jax.eval_shape(self.begin, state, constants, keys).held
        return trainable, dataclasses.replace(memory, held=jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), held))

    def begin(self, state: TrainState, constants: Constants, keys: Keys) -> Memory:
        """What a block's first step remembers."""
        return self.remembered(super().store(state, constants, super().sample(state, constants, keys), keys))

    def remembered(self, collected: Collected) -> Memory:
        """What was collected, as the state holds it: rows behind rows."""
        experience = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), collected.batches)
        metrics = {name: value for name, value in collected.metrics.items() if name != "generated_tokens"}
        return dataclasses.replace(collected.memory, held=Held(experience, metrics))

    def sample(self, state: TrainState, constants: Constants, keys: Keys) -> Sampled:
        """Fresh rows in a block's first step; then those that are held, by which `store` does not go."""
        anew = super().sample

        def held() -> Sampled:
            batch = self.in_parts(state.memory.held.experience).batch
            return Sampled(batch.query, batch.trajectory)

        return jax.lax.cond(self.begins(state), lambda: anew(state, constants, keys), held)

    def store(self, state: TrainState, constants: Constants, sampled: Sampled, keys: Keys) -> Collected:
        """The step's share of the block's rows."""
        anew = super().store

        def first() -> Memory:
            return self.remembered(anew(state, constants, sampled, keys))

        memory = jax.lax.cond(self.begins(state), first, lambda: state.memory)
        share = self.share(memory.held.experience, state.step, constants.root)
        tokens = jax.tree.map(lambda x: jnp.where(self.begins(state), x, 0.0), generated(sampled))
        return Collected(self.in_parts(share), memory, {**memory.held.metrics, **tokens})

    def begins(self, state: TrainState) -> Array:
        """Whether the step is a block's first."""
        return state.step % self.updates == 0

    def in_parts(self, experience: Experience) -> Experience:
        """Rows as P micro-batches."""
        parts = self.given.sampling.micro_batches
        return jax.tree.map(lambda x: x.reshape(parts, -1, *x.shape[1:]), experience)

    def share(self, experience: Experience, step: Int[Array, ""], root: jax.Array) -> Experience:
        """What a step learns from: a part of the rows of every query, another in every step of an epoch."""
        sampling, minibatches = self.given.sampling, self.config.minibatches
        queries, samples = sampling.queries, sampling.samples
        if minibatches == 1:
            return experience
        number, count = step % minibatches, samples // minibatches
        key = Keys.of(root, step - number).replay  # the whole epoch's
        order = jnp.argsort(jax.random.uniform(key, (queries, samples)), axis=1)
        order = jax.lax.dynamic_slice_in_dim(order, number * count, count, axis=1)

        def chosen(x: Query | Array) -> Query | Array:
            if isinstance(x, Query):
                return x  # these stay whole: everything else is of rows
            rows = x.reshape(queries, samples, *x.shape[1:])[jnp.arange(queries)[:, None], order]
            return rows.reshape(-1, *x.shape[1:])

        return jax.tree.map(chosen, experience, is_leaf=lambda x: isinstance(x, Query))

    def weights(self, batch: Any) -> dict[str, Float[Array, ""]]:
        """How many choices of an `Experience` there are."""
        return {"choices": batch.chosen.sum(dtype=jnp.float32)}

    def loss(
        self,
        trainable: Any,
        constants: Constants,
        batch: Experience,
        weights: dict[str, Float[Array, ""]],
        key: jax.Array,
    ) -> tuple[Float[Array, ""], dict[str, Measure]]:
        """This micro-batch's share of the mean over choices."""
        scores, _ = self.score(trainable, constants, batch.batch, key)
        loss, measured = self.clipped(batch, scores)
        return loss / jnp.maximum(weights["choices"], 1.0), {**measured, **self.diagnose(batch.batch, scores)}

    def clipped(self, batch: Experience, scores: PolicyScores) -> tuple[Float[Array, ""], dict[str, Measure]]:
        """The sum of the policy's losses over choices, and what a log says of them.

        `clip_share` is the share of choices that have no gradient; `kl_moved` the mean of r - 1 - log r, r being
        q / q when drawn: an estimate of the KL, in nats a choice, by which the policy has moved since.
        """
        chosen = batch.chosen
        log_ratio = jnp.where(chosen, scores.log_pf - batch.log_drawn, 0.0)
        loss, clipped = clipped_surrogate(log_ratio, batch.advantage, self.config.clip)
        moved = jax.lax.stop_gradient(jnp.expm1(log_ratio) - log_ratio)
        measured = {
            "loss_policy": of_choices(chosen, loss),
            "clip_share": of_choices(chosen, clipped.astype(jnp.float32)),
            "kl_moved": of_choices(chosen, moved),
        }
        return measured["loss_policy"].total, dict(measured)


def of_choices(chosen: Array, values: Float[Array, "B T"]) -> Weighted:
    """A mean over choices."""
    return Weighted(jnp.where(chosen, values, 0.0).sum(), chosen.sum(dtype=jnp.float32))
