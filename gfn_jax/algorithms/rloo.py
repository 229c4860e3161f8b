"""RLOO: a completion is worth its return, less the mean of the other completions of its query.

    grad J = E_q[1/N sum_i (G(Z_i) - b_i) grad log q(Z_i)]        b_i = 1/(N - 1) sum_{j != i} G(Z_j)

(Kool et al. 2019, ICLR workshop; for language models Ahmadian et al. 2024, arXiv:2402.14740.) b_i does not depend on
Z_i, so the gradient is unbiased. With the default target, `posterior`, the optimum is R^(1/T), the GFlowNet's; G is
then the same for every Z, so that no sample has a gradient left: the noise ends with the learning. It is the on-policy
gradient of VarGrad's loss (Richter et al. 2020), but for a factor. `returns` has the other targets.
"""

import dataclasses
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from gfn_jax.algorithms.entry import AlgorithmEntry
from gfn_jax.algorithms.on_task import Batch
from gfn_jax.algorithms.policy_gradient import Experience, PolicyGradient, check_rivals, compared
from gfn_jax.algorithms.returns import ReturnConfig
from gfn_jax.policy.constraint import Constants


@dataclasses.dataclass(frozen=True)
class RLOO(PolicyGradient):
    """REINFORCE leaving one out, as `interfaces.Interruptible` has it.

    Raises:
        ValueError: there is nothing to compare a row with.
    """

    def __post_init__(self):
        check_rivals(self.given.sampling.samples)

    def experience(
        self, trainable: Any, constants: Constants, batches: Batch, rewards: Float[Array, "P B T"]
    ) -> tuple[Experience, dict[str, Float[Array, ""]]]:
        """Returns, less the mean of the query's other rows'."""
        return compared(batches, rewards, self.given.sampling.samples, over_the_others), {}


def over_the_others(returns: Float[Array, "*b N"], used: Bool[Array, "*b N"]) -> Float[Array, "*b N"]:
    """Each used return less the mean of the other used ones; 0 where there is no other."""
    returns = jnp.where(used, returns, 0.0)
    total, count = returns.sum(axis=-1, keepdims=True), used.sum(axis=-1, keepdims=True, dtype=jnp.float32)
    others = (total - returns) / jnp.maximum(count - 1, 1.0)
    return jnp.where(used & (count > 1), returns - others, 0.0)


ALGORITHM = AlgorithmEntry(make=lambda config, given: RLOO(given, config), section="rloo", config=ReturnConfig)
