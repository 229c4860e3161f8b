"""A weighted sum of balance objectives, each with its own normaliser.

    loss = sum_name coefficient_name * total_name / weight_name

over the whole batch. The weights depend on masks alone, so the step asks for the full batch's first
(`weights`) and then adds up the gradients of `loss(measure(micro-batch), weights)`: micro-batches and devices
change nothing.
"""

import dataclasses
from collections.abc import Callable, Mapping

import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Float

from gfn_jax.objectives import subtb, trajectory
from gfn_jax.types import PolicyScores, Rollout, Trajectory, Weighted


@struct.dataclass
class Balance:
    """What every objective is computed from.

    Attributes:
        potential: u_t in nats, 0 outside `state_mask`.
        state_mask: the states that may stop.
        terminal_potential: u_n in nats.
        finished: the row stopped of itself.
        row_mask: False drops a row, whatever its arrays hold.
        log_z: the learnt log Z of each row's query in nats; only TB reads it.
    """

    potential: Float[Array, "B T"]
    state_mask: Bool[Array, "B T"]
    terminal_potential: Float[Array, " B"]
    finished: Bool[Array, " B"]
    row_mask: Bool[Array, " B"]
    log_z: Float[Array, " B"] | None


@dataclasses.dataclass(frozen=True)
class Objective:
    """Which objectives are minimised, and how.

    Attributes:
        terms: (name in `OBJECTIVES`, coefficient) pairs.
        normalization: what SubTB, DB and the full pair are divided by, one of `subtb.NORMALIZATIONS`. TB and
            VarGrad have one residual a trajectory and their own weight (finished rows; degrees of freedom).
        subtb_lambda: SubTB's discount a terminable state.
        huber: the residual (nats) from which every penalty is linear; None for squares.
        samples_per_query: N; rows of one query are adjacent.
        log_z_rate: learning rate of TB's log Z, as a multiple of the adapter's.

    Raises:
        ValueError: an unknown name or a value out of range.
    """

    terms: tuple[tuple[str, float], ...]
    normalization: str
    subtb_lambda: float = 1.0
    huber: float | None = None
    samples_per_query: int = 1
    log_z_rate: float = 100.0

    def __post_init__(self):
        names = [name for name, _ in self.terms]
        for name in names:
            if name not in OBJECTIVES:
                raise ValueError(f"objective {name!r} is unknown; there are {', '.join(OBJECTIVES)}")
        if not names or len(set(names)) < len(names):
            raise ValueError(f"objective terms are {names}; at least one is needed, and each at most once")
        if self.normalization not in subtb.NORMALIZATIONS:
            allowed = ", ".join(subtb.NORMALIZATIONS)
            raise ValueError(f"normalization is {self.normalization!r}; it is one of {allowed}")
        if self.subtb_lambda < 0:
            raise ValueError(f"subtb_lambda is {self.subtb_lambda}; it must be at least 0")
        if self.huber is not None and self.huber <= 0:
            raise ValueError(f"huber is {self.huber}; it must be positive, or None for squares")
        if "vargrad" in names and self.samples_per_query < 2:
            raise ValueError(f"vargrad needs 2 samples a query or more; samples_per_query is {self.samples_per_query}")

    def measure(
        self,
        trajectory: Trajectory,
        scores: PolicyScores,
        reward_temperature: Float[Array, ""] | float,
        row_mask: Bool[Array, " B"],
        log_z: Float[Array, " B"] | None = None,
    ) -> dict[str, Weighted]:
        """Each term's sum and weight on these rows (whole queries where VarGrad is among the terms).

        Raises:
            ValueError: TB is among the terms and `log_z` is None.
        """
        rollout = trajectory.rollout
        states, actions = rollout.state_mask, rollout.action_mask
        flow = subtb.log_flow(trajectory.log_reward, scores.log_pterm, reward_temperature, states)
        u = subtb.potential(flow, scores.log_pf, actions, states)
        u_n, finished = subtb.terminal_potential(u, states, actions, rollout.token_mask)
        balance = Balance(u, states, u_n, finished, row_mask, log_z)
        return {name: OBJECTIVES[name](self, balance) for name, _ in self.terms}

    def weights(self, rollout: Rollout, row_mask: Bool[Array, " B"]) -> dict[str, Float[Array, ""]]:
        """Each term's weight on these rows, before any score or reward is known."""
        zeros = jnp.zeros(rollout.state_mask.shape)
        blank = Trajectory(rollout=rollout, log_reward=zeros)
        measured = self.measure(blank, PolicyScores(zeros, zeros), jnp.ones(()), row_mask, zeros[:, 0])
        return {name: term.weight for name, term in measured.items()}

    def loss(self, measured: Mapping[str, Weighted], weights: Mapping[str, Float[Array, ""]]) -> Float[Array, ""]:
        """The sum of coefficient x total / weight, `weights` being the full batch's; weight 0 adds 0."""
        parts = [c * subtb.ratio(measured[name].total, weights[name]) for name, c in self.terms]
        return jnp.sum(jnp.stack(parts))


def _subtb(objective: Objective, balance: Balance) -> Weighted:
    return subtb.subtb(
        balance.potential,
        balance.state_mask,
        balance.row_mask,
        normalization=objective.normalization,
        subtb_lambda=objective.subtb_lambda,
        huber=objective.huber,
    )


def _pairs(pairs: Callable[..., Weighted]) -> Callable[[Objective, Balance], Weighted]:
    def term(objective: Objective, balance: Balance) -> Weighted:
        rows = (balance.potential, balance.state_mask, balance.row_mask)
        return pairs(*rows, normalization=objective.normalization, huber=objective.huber)

    return term


def _tb(objective: Objective, balance: Balance) -> Weighted:
    if balance.log_z is None:
        raise ValueError("the tb objective needs log_z, the learnt log Z of each row's query")
    rows = (balance.terminal_potential, balance.finished, balance.row_mask)
    return trajectory.tb(*rows, balance.log_z, huber=objective.huber)


def _vargrad(objective: Objective, balance: Balance) -> Weighted:
    rows = (balance.terminal_potential, balance.finished, balance.row_mask)
    return trajectory.vargrad(*rows, samples_per_query=objective.samples_per_query, huber=objective.huber)


OBJECTIVES: dict[str, Callable[[Objective, Balance], Weighted]] = {
    "subtb": _subtb,
    "db": _pairs(subtb.db),
    "full_pair": _pairs(subtb.full_pair),
    "tb": _tb,
    "vargrad": _vargrad,
}
