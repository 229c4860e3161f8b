"""What a policy gradient maximises: the expectation of a completion's return, log R/T less what its tokens cost.

    target       return G(Z)                                        optimum
    posterior    log R(Z)/T - log q(Z)                              R^(1/T), normalised
    kl_to_base   log R(Z)/T - beta (log q(Z) - log p(Z))            p R^(1/(T beta)), normalised
    reward       log R(Z)/T                                         all mass on the greatest R

p is the base under the same rules (vocabulary, length, tool). The first is -KL(q || posterior) but for a constant
(Korbak et al. 2022, arXiv:2205.11275, section 3), the same target as the GFlowNet's; the second is what is known as
RL fine-tuning with a KL penalty (Ziegler et al. 2019, arXiv:1909.08593), of the reward r = log R/T. A task's own
log R = log p_LM(X Z Y) has log p(Z) in it already: kl_to_base then counts it twice, and the posterior at temperature
T is `posterior`.

log q(Z) is a constant in the return: its gradient has expectation 0. Every token pays where it is chosen,
-log q(z_t | z_<t) or -beta (log q - log p)(z_t | z_<t), and log R/T comes with the stop.

beta may follow a controller (Ziegler et al. 2019, section 2.2): with B rows that have the mean KL(q || p)

    e = clip(KL / kl_target - 1, -0.2, 0.2)        beta <- beta (1 + e B / kl_horizon)
"""

import dataclasses
from typing import Literal

import jax.numpy as jnp
from jaxtyping import Array, Float

from gfn_jax.algorithms.on_task import Batch
from gfn_jax.sections import Nonnegative, Positive

LARGEST_ERROR = 0.2  # of the KL, relative: a controller's step is bounded


@dataclasses.dataclass(frozen=True)
class ReturnConfig:
    """What is maximised: the fields that every policy gradient's section has.

    Attributes:
        target: `posterior`, `kl_to_base` or `reward`, as above.
        beta: nats of return that a nat of log q - log p costs, of `kl_to_base`; where it moves, the first.
        kl_target: KL(q || p) of a completion, in nats, that beta is moved for; None leaves beta as it is.
        kl_horizon: rows after which an error of e has changed beta by the factor 1 + e, or so.
    """

    target: Literal["posterior", "kl_to_base", "reward"]
    beta: Nonnegative
    kl_target: Positive | None
    kl_horizon: Positive

    def __post_init__(self):
        if self.kl_target is not None and (self.target != "kl_to_base" or not self.beta):
            received = f"target is {self.target!r} and beta {self.beta}"
            raise ValueError(
                f"kl_target is {self.kl_target}; beta moves where target is 'kl_to_base', from above 0: {received}"
            )

    def rewards(
        self, batch: Batch, beta: Float[Array, ""] | float, log_base: Float[Array, "B T"] | None
    ) -> Float[Array, "B T"]:
        """The reward of every choice, in nats; a row's sum is its return. 0 where there was none.

        Args:
            batch: rows of the policy itself, with tempered rewards.
            beta: of `kl_to_base`.
            log_base: log p of every choice, of `kl_to_base`.
        """
        rollout = batch.trajectory.rollout
        gained = jnp.where(rollout.stop, batch.trajectory.log_reward, 0.0)
        if self.target == "posterior":
            return gained - rollout.log_behavior
        if self.target == "kl_to_base":
            assert log_base is not None
            return gained - beta * (rollout.log_behavior - log_base)
        return gained

    def next_beta(self, beta: Float[Array, ""], kl: Float[Array, ""], rows: int) -> Float[Array, ""]:
        """Beta after that many rows, between which and the base `kl` nats were measured."""
        if self.kl_target is None:
            return beta
        error = jnp.clip(kl / self.kl_target - 1, -LARGEST_ERROR, LARGEST_ERROR)
        return beta * jnp.maximum(1 + error * rows / self.kl_horizon, 0.0)
