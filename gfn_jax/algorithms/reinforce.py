"""REINFORCE: a completion is worth its return, less the mean of all rows' (Williams 1992).

    grad J = E_q[(G(Z) - b) grad log q(Z)]        b = mean of G over the rows of the step

With the default target, `reward`, the optimum is the completion of the greatest R alone, and nothing keeps the policy
from collapsing before it has found that one: what is sampled less is learnt from less. In small worlds even the exact
gradient, by enumeration, ends on a lesser completion where the best is rare to begin with. `returns` has the targets.
"""

import dataclasses
from typing import Any

from jaxtyping import Array, Float

from gfn_jax.algorithms.entry import AlgorithmEntry
from gfn_jax.algorithms.on_task import Batch
from gfn_jax.algorithms.policy_gradient import Experience, PolicyGradient, masked_mean, per_row, used_rows
from gfn_jax.algorithms.returns import ReturnConfig
from gfn_jax.policy.constraint import Constants


@dataclasses.dataclass(frozen=True)
class Reinforce(PolicyGradient):
    """REINFORCE, as `interfaces.Interruptible` has it."""

    def experience(
        self, trainable: Any, constants: Constants, batches: Batch, rewards: Float[Array, "P B T"]
    ) -> tuple[Experience, dict[str, Float[Array, ""]]]:
        """Returns, less their mean over all rows."""
        returns = rewards.sum(axis=-1)
        return per_row(batches, returns - masked_mean(returns, used_rows(batches))), {}


ALGORITHM = AlgorithmEntry(
    make=lambda config, given: Reinforce(given, config), section="reinforce", config=ReturnConfig
)
