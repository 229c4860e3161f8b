"""Subtrajectory and detailed balance as differences of one potential.

Every state may stop, so no flow network is needed: F(s_t) = R(s_t stop)^(1/T) / q(stop | s_t) (Hu et al.,
"Amortizing intractable inference in large language models", ICLR 2024, Eq. 3). With the potential

    u_t = log R_t / T - log q(stop | s_t) - sum_{k<t} log q(z_k | z_<k)

the residual of the subtrajectory i..j is u_i - u_j, and q is proportional to R^(1/T) exactly where u is the
same in every state: then u = log Z. The objectives are weightings of the same pairs:

    SubTB(lambda)  sum_{i<j} lambda^(j-i-1) (u_i - u_j)^2, where j - i counts *terminable* states: tokens a
                   tool wrote and states that may not stop are stepped over, they do not discount.
    window w       its pairs of at most w terminable states' distance alone; at w = 1 it is DB.
    DB             the pairs of neighbours: lambda = 0.
    full pair      first and last state: trajectory balance with log Z read off the first state.

Whole trajectories are compared in `objectives/trajectory.py`, prefixes in `objectives/prefixes.py`.

Optionally a Huber penalty replaces the square. Every function returns a sum and its weight, to be added over
micro-batches and devices before one is divided by the other; the weight is a function of the masks alone.
All quantities are in nats; arithmetic is in the dtype of the inputs.
"""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from gfn_jax.types import Weighted

# What the sum over pairs is divided by. S and W are a row's weighted sum and the sum of its weights.
#   paper_sum      Eq. 3: sum of S / number of rows
#   released_mean  the released code's SubTB: sum of S / sum of W, so long rows dominate
#   row_mean       the released code's DB: the mean of S / W over the rows that have a pair
NORMALIZATIONS = ("paper_sum", "released_mean", "row_mean")

RowSums = tuple[Float[Array, " B"], Float[Array, " B"]]


def log_flow(
    log_reward: Float[Array, "B T"],
    log_pterm: Float[Array, "B T"],
    reward_temperature: Float[Array, ""] | float,
    state_mask: Bool[Array, "B T"],
) -> Float[Array, "B T"]:
    """Log F(s_t) = log R_t / temperature - log q(stop | s_t), in nats; 0 where `state_mask` is False."""
    reward = jnp.where(state_mask, log_reward, 0) / reward_temperature
    return reward - jnp.where(state_mask, log_pterm, 0)


def potential(
    log_flow: Float[Array, "B T"],
    log_pf: Float[Array, "B T"],
    action_mask: Bool[Array, "B T"],
    state_mask: Bool[Array, "B T"],
) -> Float[Array, "B T"]:
    """u_t = log F(s_t) - the sum of log_pf over the actions before t, in nats; 0 outside `state_mask`."""
    chosen = jnp.where(action_mask, log_pf, 0)
    # Shifted, not cumsum - chosen: the token chosen in state t is no part of u_t, not even by rounding.
    before = jnp.cumsum(jnp.pad(chosen[:, :-1], ((0, 0), (1, 0))), axis=1)
    return jnp.where(state_mask, log_flow - before, 0)


def terminal_potential(
    potential: Float[Array, "B T"],
    state_mask: Bool[Array, "B T"],
    action_mask: Bool[Array, "B T"],
    token_mask: Bool[Array, "B T"],
) -> tuple[Float[Array, " B"], Bool[Array, " B"]]:
    """The potential u_n of the state in which each row stopped, and whether it did.

    Returns:
        u_n = log R/T - log q(trajectory with its stop) in nats, 0 for a row that was cut off, and `finished`.
    """
    terminal = state_mask & action_mask & ~token_mask  # the stop is the one action that is no token of Z
    return jnp.sum(jnp.where(terminal, potential, 0), axis=1), jnp.any(terminal, axis=1)


def subtb(
    potential: Float[Array, "B T"],
    state_mask: Bool[Array, "B T"],
    row_mask: Bool[Array, " B"],
    *,
    normalization: str,
    subtb_lambda: float = 1.0,
    window: int | None = None,
    huber: float | None = None,
) -> Weighted:
    """SubTB(lambda) over all pairs of terminable states, or those that are close.

    Args:
        potential: u_t in nats, read only under `state_mask`.
        state_mask: the states that may stop.
        row_mask: False drops a row (an empty replay slot).
        normalization: one of `NORMALIZATIONS`.
        subtb_lambda: the discount a terminable state, static, >= 0; 0 ** 0 = 1.
        window: the largest j - i, static, >= 1; None for all pairs.
        huber: |u_i - u_j| from which the penalty is linear, in nats, static; None for the plain square.

    Returns:
        The penalties' sum and the weight to divide it by (0 where no row has a pair; so is the sum then).
    """
    alive = state_mask & row_mask[:, None]
    if subtb_lambda == 1 and huber is None and window is None:
        sums = all_pairs(potential, alive)
    else:
        gap = pair_gaps(alive)
        gap = gap if window is None else jnp.where(gap <= window, gap, 0)
        sums = pair_sums(potential, discounts(gap, subtb_lambda, potential.dtype), huber)
    return normalize(sums, row_mask, normalization)


def db(
    potential: Float[Array, "B T"],
    state_mask: Bool[Array, "B T"],
    row_mask: Bool[Array, " B"],
    *,
    normalization: str,
    huber: float | None = None,
) -> Weighted:
    """Detailed balance: `subtb` over consecutive terminable states only."""
    return subtb(potential, state_mask, row_mask, normalization=normalization, subtb_lambda=0.0, huber=huber)


def full_pair(
    potential: Float[Array, "B T"],
    state_mask: Bool[Array, "B T"],
    row_mask: Bool[Array, " B"],
    *,
    normalization: str,
    huber: float | None = None,
) -> Weighted:
    """`subtb` over each row's longest pair only: trajectory balance whose log Z is the first state's u.

    It pins q down only where all trajectories of a query share their first terminable state.
    """
    gap = pair_gaps(state_mask & row_mask[:, None])
    longest = (gap > 0) & (gap == gap.max(axis=(1, 2), keepdims=True))
    return normalize(pair_sums(potential, longest.astype(potential.dtype), huber), row_mask, normalization)


def pair_gaps(state_mask: Bool[Array, "B T"]) -> Int[Array, "B T T"]:
    """How many terminable states state j (last axis) is after state i; 0 where (i, j) is no pair i < j."""
    rank = jnp.cumsum(state_mask, axis=1)
    both = state_mask[:, :, None] & state_mask[:, None, :]
    return jnp.where(both, jnp.maximum(rank[:, None, :] - rank[:, :, None], 0), 0)


def discounts(gap: Int[Array, "B T T"], subtb_lambda: float, dtype: jnp.dtype) -> Float[Array, "B T T"]:
    """The pair weights lambda^(gap - 1), and 0 where there is no pair."""
    return jnp.where(gap > 0, jnp.asarray(subtb_lambda, dtype) ** jnp.maximum(gap - 1, 0), 0)


def pair_sums(
    potential: Float[Array, "B T"], pair_weight: Float[Array, "B T T"], huber: float | None = None
) -> RowSums:
    """Each row's sum over pairs of weight x penalty(u_i - u_j), and of the weights: the broadcast form."""
    difference = potential[:, :, None] - potential[:, None, :]
    cost = penalty(jnp.where(pair_weight > 0, difference, 0), huber)
    return jnp.sum(pair_weight * cost, axis=(1, 2)), jnp.sum(pair_weight, axis=(1, 2))


def all_pairs(potential: Float[Array, "B T"], state_mask: Bool[Array, "B T"]) -> RowSums:
    """`pair_sums` for equal weights and the square, in O(T): n sum u^2 - (sum u)^2, and n (n - 1) / 2.

    Taken about the mean, where the second term vanishes: u is of the order of log Z, the differences are not.
    """
    count = jnp.sum(state_mask, axis=1, dtype=potential.dtype)
    inside = jnp.where(state_mask, potential, 0)
    mean = jnp.sum(inside, axis=1) / jnp.maximum(count, 1)
    centred = jnp.where(state_mask, inside - mean[:, None], 0)
    return count * jnp.sum(centred**2, axis=1), count * (count - 1) / 2


def penalty(residual: Float[Array, "..."], huber: float | None) -> Float[Array, "..."]:
    """residual^2; with `huber` = d it goes on as the tangent 2 d |residual| - d^2 beyond d."""
    if huber is None:
        return residual**2
    near = jnp.clip(residual, -huber, huber)
    return near * (2 * residual - near)


def normalize(sums: RowSums, row_mask: Bool[Array, " B"], normalization: str) -> Weighted:
    """The batch's sum and weight under one of `NORMALIZATIONS`.

    Raises:
        ValueError: `normalization` is none of them.
    """
    total, weight = sums
    if normalization == "paper_sum":
        return Weighted(jnp.sum(total), jnp.sum(row_mask, dtype=total.dtype))
    if normalization == "released_mean":
        return Weighted(jnp.sum(total), jnp.sum(weight))
    if normalization == "row_mean":
        return Weighted(jnp.sum(ratio(total, weight)), jnp.sum(weight > 0, dtype=total.dtype))
    raise ValueError(f"normalization is {normalization!r}; it is one of {', '.join(NORMALIZATIONS)}")


def ratio(total: Float[Array, "..."], weight: Float[Array, "..."]) -> Float[Array, "..."]:
    """Total / weight, and 0 (with gradient 0) where nothing was weighed."""
    return jnp.where(weight > 0, total, 0) / jnp.where(weight > 0, weight, 1)
