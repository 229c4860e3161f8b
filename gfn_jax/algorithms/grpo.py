"""GRPO: a completion is worth its return in standard deviations of its query's, learnt from several times.

    A_i = (G(Z_i) - mean_j G(Z_j)) / std_j G(Z_j)        j over the N rows of the query

for every choice of Z_i, with the clipped ratio (Shao et al. 2024, arXiv:2402.03300). Two things are otherwise than
there: the divergence from the base is a part of the return (`returns`), not a second term of the loss; and choices are
averaged over all rows together, since an average within each row first would make those of long rows count for less
(Yu et al. 2025, arXiv:2503.14476, and Liu et al. 2025, arXiv:2503.20783).

With the default target, `posterior`, the optimum is R^(1/T): there all returns are the same. Dividing by what little
they still differ near it keeps the steps as long as they were, so it is the learning rate that has to fall.
"""

import dataclasses
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from gfn_jax.algorithms.entry import AlgorithmEntry
from gfn_jax.algorithms.on_task import Batch
from gfn_jax.algorithms.policy_gradient import Experience, check_rivals, compared
from gfn_jax.algorithms.repeated import Repeated, RepeatedConfig
from gfn_jax.policy.constraint import Constants

SMALLEST_DEVIATION = 1e-4  # nats: what is below it is rounding


@dataclasses.dataclass(frozen=True)
class GRPO(Repeated):
    """Group-relative policy optimisation, as `interfaces.Interruptible` has it.

    Raises:
        ValueError: there is nothing to compare a row with, or the rows do not divide into the minibatches.
    """

    def __post_init__(self):
        super().__post_init__()
        check_rivals(self.given.sampling.samples)

    def experience(
        self, trainable: Any, constants: Constants, batches: Batch, rewards: Float[Array, "P B T"]
    ) -> tuple[Experience, dict[str, Float[Array, ""]]]:
        """Returns, normalised within each query."""
        return compared(batches, rewards, self.given.sampling.samples, normalised), {}


def normalised(returns: Float[Array, "*b N"], used: Bool[Array, "*b N"]) -> Float[Array, "*b N"]:
    """Used returns with mean 0 and standard deviation 1, or nearly; 0 for the others."""
    count = jnp.maximum(used.sum(axis=-1, keepdims=True, dtype=jnp.float32), 1.0)
    returns = jnp.where(used, returns, 0.0)
    excess = jnp.where(used, returns - returns.sum(axis=-1, keepdims=True) / count, 0.0)
    deviation = jnp.sqrt((excess**2).sum(axis=-1, keepdims=True) / count)
    return excess / (deviation + SMALLEST_DEVIATION)


ALGORITHM = AlgorithmEntry(make=lambda config, given: GRPO(given, config), section="grpo", config=RepeatedConfig)
