"""What an unfinished completion is worth to sequential Monte Carlo: log gamma(z_1:t), in nats.

    NoTwist   p(X z_1:t)                          nothing is looked ahead for
    Answer    p(X z_1:t) p(Y | X z_1:t) = R_t     the reward of stopping here
    Flow      F(s_t) = R_t / q(stop | s_t)        a GFlowNet's own flow: its state's share of the total Z
    Value     p(X z_1:t) e^V(s_t)                 a twist that was learnt (Zhao et al. 2024, arXiv:2404.17546)

Any positive gamma gives an unbiased estimate of Z; the best is the sum of R over the completions that begin with
z_1:t, of which Flow is the GFlowNet's own estimate: a policy with zero SubTB loss has u_t = log F(s_t) - log q(z_1:t)
constant, so that no weight ever changes. Answer and Flow know a state where Z may stop, and leave the weight of any
other as it was.
"""

import dataclasses
from typing import Protocol

import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Float

from gfn_jax.policy.head import Head
from gfn_jax.types import Prefix


@struct.dataclass
class States:
    """The states in which rows are, each about to choose a token.

    Attributes:
        prefix: what the reward makes of the rows so far.
        log_stop: log q(stop | s) in nats; meaningful where Z may stop.
        hidden: what the policy's choice is read off.
        may_stop: whether the policy may end Z here.
    """

    prefix: Prefix
    log_stop: Float[Array, " B"]
    hidden: Float[Array, "B E"]
    may_stop: Bool[Array, " B"]


class Twist(Protocol):
    """A choice of gamma."""

    @property
    def answers(self) -> bool:
        """Whether it reads log R of every prefix."""

    def log_potential(self, states: States) -> tuple[Float[Array, " B"], Bool[Array, " B"]]:
        """Log gamma in nats, and where it is known."""


@dataclasses.dataclass(frozen=True)
class NoTwist:
    """gamma = p(X z_1:t): rows compete by how likely they are, and by R at the end alone."""

    answers = False

    def log_potential(self, states: States) -> tuple[Float[Array, " B"], Bool[Array, " B"]]:
        """What the reward gives the tokens so far."""
        return states.prefix.log_prefix, jnp.ones(states.log_stop.shape, bool)


@dataclasses.dataclass(frozen=True)
class Answer:
    """gamma = R_t, the reward of stopping at once."""

    answers = True

    def log_potential(self, states: States) -> tuple[Float[Array, " B"], Bool[Array, " B"]]:
        """Log R."""
        assert states.prefix.log_reward is not None
        return states.prefix.log_reward, states.may_stop


@dataclasses.dataclass(frozen=True)
class Flow:
    """gamma = R_t / q(stop | s_t): q is both the proposal and the twist."""

    answers = True

    def log_potential(self, states: States) -> tuple[Float[Array, " B"], Bool[Array, " B"]]:
        """Log R less the log-probability of stopping."""
        assert states.prefix.log_reward is not None
        return states.prefix.log_reward - states.log_stop, states.may_stop


@dataclasses.dataclass(frozen=True)
class Value:
    """gamma = p(X z_1:t) e^V(s_t), V having been learnt (`algorithms.ctl`).

    Attributes:
        head: of V / `rate`.
        rate: nats a unit of the head's output.
    """

    head: Head
    rate: float = 1.0
    answers = False

    def log_potential(self, states: States) -> tuple[Float[Array, " B"], Bool[Array, " B"]]:
        """Known in every state."""
        return states.prefix.log_prefix + self.rate * self.head(states.hidden), jnp.ones(states.log_stop.shape, bool)
