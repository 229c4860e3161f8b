"""GFlowNet fine-tuning: sample from a behaviour mix, keep the best, balance the flow (Hu et al. 2024, section 3).

Each query gets N rows a step: N - R fresh ones, each from the policy itself, the policy at a temperature drawn
from an interval, or the policy mixed with a uniform; and R from the replay buffer. On all of them the objective's terms
are minimised (`objectives.mixture`); where they vanish q is proportional to R^(1/T).
"""

import dataclasses

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Float

from gfn_jax.algorithms.entry import AlgorithmEntry
from gfn_jax.algorithms.on_task import Batch, Memory, OffPolicy
from gfn_jax.interfaces import Measure
from gfn_jax.models.lora import Lora
from gfn_jax.objectives.mixture import Objective
from gfn_jax.policy.constraint import Constants


@struct.dataclass
class Trainable:
    """What the optimizer moves: the adapter and, for TB, log Z of every query (scaled by 1 / log_z_rate)."""

    lora: Lora
    log_z: Float[Array, " E"] | None


@dataclasses.dataclass(frozen=True)
class GFlowNet(OffPolicy):
    """GFlowNet fine-tuning, as `interfaces.Interruptible` has it."""

    @property
    def objective(self) -> Objective:
        """What is minimised."""
        assert self.given.objective is not None
        return self.given.objective

    def init(self, key: jax.Array, constants: Constants) -> tuple[Trainable, Memory]:
        """A fresh adapter (the policy starts as the base) and an empty buffer."""
        learns_log_z = any(name == "tb" for name, _ in self.objective.terms)
        log_z = jnp.zeros((len(constants.queries.example_id),)) if learns_log_z else None
        return Trainable(self.new_lora(key, constants), log_z), Memory(self.new_buffer(constants))

    def weights(self, batch: Batch) -> dict[str, Float[Array, ""]]:
        """The objective's normalisers on these rows."""
        return self.objective.weights(batch.trajectory.rollout, batch.row_mask)

    def loss(
        self,
        trainable: Trainable,
        constants: Constants,
        batch: Batch,
        weights: dict[str, Float[Array, ""]],
        key: jax.Array,
    ) -> tuple[Float[Array, ""], dict[str, Measure]]:
        """This micro-batch's share of the loss, and each term of it."""
        scores, _ = self.score(trainable, constants, batch, key)
        log_z = None
        if trainable.log_z is not None:
            each = jnp.repeat(trainable.log_z[batch.query.example_id], self.given.sampling.samples)
            log_z = each * self.objective.log_z_rate
        measured = self.objective.measure(batch.trajectory, scores, 1.0, batch.row_mask, log_z)
        terms = {f"loss_{name}": term for name, term in measured.items()}
        return self.objective.loss(measured, weights), {**terms, **self.diagnose(batch, scores)}


ALGORITHM = AlgorithmEntry(make=lambda config, given: GFlowNet(given), off_policy=True, objective=True)
