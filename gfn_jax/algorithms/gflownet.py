"""GFlowNet fine-tuning: sample from a behaviour mix, keep the best, balance the flow (Hu et al. 2024, section 3).

Each query gets N rows a step: N - R fresh ones, each from the policy itself, the policy at a temperature drawn
from an interval, or the policy mixed with a uniform; and R from the replay buffer. On all of them the objective's terms
are minimised (`objectives.mixture`); where they vanish q is proportional to R^(1/T). The first `imitation_steps` that
learn and the last `smoothing_steps` of a run imitate the replayed rows instead.
"""

import dataclasses

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Float

from gfn_jax.algorithms import log_z as log_zs
from gfn_jax.algorithms.diagnostics import Norm, of_rows
from gfn_jax.algorithms.entry import AlgorithmEntry
from gfn_jax.algorithms.on_task import Batch, Memory, OffPolicy
from gfn_jax.interfaces import Measure
from gfn_jax.models.lora import Lora
from gfn_jax.objectives.likelihood import completions
from gfn_jax.objectives.mixture import Objective
from gfn_jax.objectives.subtb import ratio
from gfn_jax.policy.constraint import Constants
from gfn_jax.types import Collected, Keys, PolicyScores, Sampled, TrainState, Weighted


@struct.dataclass
class Trainable:
    """What the optimizer moves: the adapter, and what is learnt of log Z (scaled by 1 / log_z_rate)."""

    lora: Lora
    log_z: log_zs.LogZ


@struct.dataclass
class OfStep:
    """What a batch takes along: each row's frozen log Z, if it is frozen, and whether this step imitates."""

    log_z: Float[Array, " B"] | None
    imitating: Bool[Array, ""]


@dataclasses.dataclass(frozen=True)
class GFlowNet(OffPolicy):
    """GFlowNet fine-tuning, as `interfaces.Interruptible` has it."""

    @property
    def objective(self) -> Objective:
        """What is minimised."""
        assert self.given.objective is not None
        return self.given.objective

    def init(self, key: jax.Array, constants: Constants) -> tuple[Trainable, Memory]:
        """A fresh adapter (the policy starts as the base), log Z, and an empty buffer."""
        log_z = log_zs.trained(self.objective, jax.random.fold_in(key, 1), constants)
        frozen = log_zs.remembered(self, self.objective, jax.random.fold_in(key, 2), constants)
        return Trainable(self.new_lora(key, constants), log_z), Memory(self.new_buffer(constants), frozen)

    def store(self, state: TrainState, constants: Constants, sampled: Sampled, keys: Keys) -> Collected:
        """As every algorithm with a buffer; its batches know what of this step the loss depends on."""
        collected, frozen = super().store(state, constants, sampled, keys), state.memory.own
        if frozen is None and not self.objective.imitates:
            return collected
        queries = collected.batches.query.example_id
        log_z = None if frozen is None else jnp.repeat(frozen[queries], self.given.sampling.samples, axis=1)
        begun = self.given.sampling.first_update + self.objective.imitation_steps
        imitating = (state.step < begun) | (state.step >= self.given.steps - self.objective.smoothing_steps)
        own = OfStep(log_z, jnp.broadcast_to(imitating, queries.shape[:1]))
        return dataclasses.replace(collected, batches=dataclasses.replace(collected.batches, own=own))

    def weights(self, batch: Batch) -> dict[str, Float[Array, ""]]:
        """The normalisers on these rows, of the objective and of imitation."""
        replayed = (batch.used & ~batch.fresh).sum(dtype=jnp.float32)
        return {**self.objective.weights(batch.trajectory, 1.0, batch.row_mask), "imitation": replayed}

    def loss(
        self,
        trainable: Trainable,
        constants: Constants,
        batch: Batch,
        weights: dict[str, Float[Array, ""]],
        key: jax.Array,
    ) -> tuple[Float[Array, ""], dict[str, Measure]]:
        """This micro-batch's share of the loss; each term of it and, where there are several, its gradient.

        `log_z_drift`: by how much the log Z that terms read is above what the rows say, log R/T - log q, in nats.
        """
        scores, hidden = self.score(trainable, constants, batch, key)
        log_z = self.log_z(trainable, batch, hidden)
        measured = self.measure(batch, scores, log_z)
        loss, said = self.objective.loss(measured, weights), self.diagnose(batch, scores)
        if log_z is not None and "flowrl" not in measured:  # whose log Z is another number
            said["log_z_drift"] = of_rows(batch.used, jax.lax.stop_gradient(log_z) - batch.excess(scores))
        if len(measured) > 1:
            said |= self.gradients(batch, scores, log_z, weights)
        if self.objective.imitates and batch.own is not None:
            actions = batch.trajectory.rollout.action_mask
            imitated = completions(scores.log_pf, actions, batch.used & ~batch.fresh)
            loss = jnp.where(batch.own.imitating, ratio(imitated.total, weights["imitation"]), loss)
            said["loss_imitation"] = imitated
        return loss, {**{f"loss_{name}": term for name, term in measured.items()}, **said}

    def log_z(self, trainable: Trainable, batch: Batch, hidden: Float[Array, "B T E"]) -> Float[Array, " B"] | None:
        """Of each row's query, in nats."""
        if trainable.log_z is None:
            return None if batch.own is None else batch.own.log_z
        if isinstance(trainable.log_z, log_zs.Head):
            return trainable.log_z(hidden[:, 0]) * self.objective.log_z_rate
        each = jnp.repeat(trainable.log_z[batch.query.example_id], self.given.sampling.samples)
        return each * self.objective.log_z_rate

    def measure(self, batch: Batch, scores: PolicyScores, log_z: Float[Array, " B"] | None) -> dict[str, Weighted]:
        """Each term of the objective on these rows."""
        known = (batch.log_behavior, batch.known)
        return self.objective.measure(batch.trajectory, scores, 1.0, batch.row_mask, log_z, *known)

    def gradients(
        self, batch: Batch, scores: PolicyScores, log_z: Float[Array, " B"] | None, weights: dict[str, Float[Array, ""]]
    ) -> dict[str, Measure]:
        """`gradient_*`: the Euclidean norm of the gradient of coefficient x term by all log_pf and log_pterm.

        How hard each term pulls at the policy's scores (1 / nats of them): no pass through the model is needed, and
        what the model makes of it, or of two terms that pull apart, is not in it.
        """
        scores, log_z = jax.lax.stop_gradient((scores, log_z))
        shares, pull = jax.vjp(lambda s: self.objective.shares(self.measure(batch, s, log_z), weights), scores)
        found: dict[str, Measure] = {}
        for name in shares:
            (by_score,) = pull({other: jnp.full_like(x, other == name) for other, x in shares.items()})
            found[f"gradient_{name}"] = Norm(jnp.sum(by_score.log_pf**2) + jnp.sum(by_score.log_pterm**2))
        return found


ALGORITHM = AlgorithmEntry(make=lambda config, given: GFlowNet(given), off_policy=True, objective=True)
