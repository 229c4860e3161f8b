"""Objectives of whole trajectories, by the potential u_n of the state they stopped in (`subtb.terminal_potential`).

    TB           (u_n - log Z)^2, where u_n = log R/T - log q(trajectory), with a log Z a query (Malkin et al. 2022)
    FlowRL       w (log Z - u_n / |Z|)^2: its terms a token, its rows weighted by importance (arXiv:2509.15207)
    VarGrad      the variance of u_n over the samples of one query, which needs no log Z (Richter et al. 2020). Its
                 gradient is TB's with log Z estimated from the query's other samples (leave one out).
    contrastive  (u_a - u_b)^2 over pairs of samples of one query, less those of nearly equal rewards
                 (arXiv:2605.00553)

All but FlowRL are zero where q is proportional to R^(1/T) and nowhere else; FlowRL's own optimum is said below.

Optionally a Huber penalty replaces the square. All in nats.
"""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from gfn_jax.objectives.subtb import all_pairs, pair_gaps, pair_sums, penalty
from gfn_jax.types import Weighted


def tb(
    terminal_potential: Float[Array, " B"],
    finished: Bool[Array, " B"],
    row_mask: Bool[Array, " B"],
    log_z: Float[Array, " B"],
    *,
    huber: float | None = None,
) -> Weighted:
    """Trajectory balance (u_n - log Z)^2 with the log Z (nats) of the row's query; weight: finished rows."""
    used = finished & row_mask
    residual = jnp.where(used, terminal_potential, 0) - jnp.where(used, log_z, 0)
    return Weighted(jnp.sum(penalty(residual, huber)), jnp.sum(used, dtype=residual.dtype))


def vargrad(
    terminal_potential: Float[Array, " B"],
    finished: Bool[Array, " B"],
    row_mask: Bool[Array, " B"],
    *,
    samples_per_query: int,
    huber: float | None = None,
) -> Weighted:
    """The variance of u_n within each query, pooled over queries.

    With m finished rows a query's sum of squares about its mean is sum_{a<b} (u_a - u_b)^2 / m, on m - 1
    degrees of freedom: total / weight is the unbiased variance. `huber` acts on the differences u_a - u_b,
    so that one outlier cannot drag the mean that its neighbours are compared with.

    Args:
        terminal_potential: u_n in nats, read only where `finished` and `row_mask` hold.
        finished: the row stopped of itself.
        row_mask: False drops a row.
        samples_per_query: N, static; rows of one query are adjacent.
        huber: |u_a - u_b| from which the penalty is linear, in nats, static.

    Returns:
        The sum over queries and its degrees of freedom.
    """
    used = (finished & row_mask).reshape(-1, samples_per_query)
    log_z_samples = terminal_potential.reshape(used.shape)
    if huber is None:
        total, _ = all_pairs(log_z_samples, used)
    else:
        total, _ = pair_sums(log_z_samples, (pair_gaps(used) > 0).astype(log_z_samples.dtype), huber)
    count = jnp.sum(used, axis=1, dtype=total.dtype)
    return Weighted(jnp.sum(total / jnp.maximum(count, 1)), jnp.sum(jnp.maximum(count - 1, 0)))


def flowrl(
    terminal_potential: Float[Array, " B"],
    finished: Bool[Array, " B"],
    row_mask: Bool[Array, " B"],
    log_z: Float[Array, " B"],
    actions: Float[Array, " B"],
    log_ratio: Float[Array, " B"],
    *,
    ratio_clip: float,
    huber: float | None = None,
) -> Weighted:
    """FlowRL's balance a token, w (log Z + (log q(Z) - log R(Z)/T) / |Z|)^2 (arXiv:2509.15207 and its public code).

    Theirs has log Z + mean log q - beta r - mean log p_ref, means over the tokens: with log R/T = log p_ref(Z) +
    |Z| beta r it is this one. w = clip(q now / q behaviour, 1 - ratio_clip, 1 + ratio_clip), without gradient.

    Its optimum is no posterior. All residuals vanish where q(Z) = R(Z)^(1/T) z^(-|Z|) with z = e^(log Z), and q sums to
    1 at one z alone, the root of

        sum_Z R(Z)^(1/T) z^(-|Z|) = 1.

    So its Z normalises in that sense only. It is sum R^(1/T) where every |Z| is 1; and q is proportional to R^(1/T)
    where all |Z| are equal, then z^|Z| = sum R^(1/T). Elsewhere a completion's share falls by log Z nats a token.

    Args:
        terminal_potential: u_n in nats, read only where `finished` and `row_mask` hold, as all that follows.
        finished: the row stopped of itself.
        row_mask: False drops a row.
        log_z: of the row's query, nats a token.
        actions: |Z|, what the policy chose, its stop included.
        log_ratio: log of q now / q behaviour of the whole completion, without gradient; 0 where that is unknown.
        ratio_clip: how far w may be from 1, static.
        huber: the residual (nats a token) from which the penalty is linear, static.

    Returns:
        The weighted sum, and the number of finished rows: a function of the masks alone, as w is not.
    """
    used = finished & row_mask
    residual = jnp.where(used, log_z, 0) - jnp.where(used, terminal_potential, 0) / jnp.where(used, actions, 1)
    # Nothing above e is needed, and e^log_ratio may overflow.
    ratio = jnp.clip(jnp.exp(jnp.minimum(jnp.where(used, log_ratio, 0), 1.0)), 1 - ratio_clip, 1 + ratio_clip)
    return Weighted(jnp.sum(ratio * penalty(residual, huber)), jnp.sum(used, dtype=residual.dtype))


def contrastive(
    terminal_potential: Float[Array, " B"],
    finished: Bool[Array, " B"],
    row_mask: Bool[Array, " B"],
    log_reward: Float[Array, " B"],
    *,
    samples_per_query: int,
    margin: float = 0.0,
    huber: float | None = None,
) -> Weighted:
    """Pairwise trajectory balance: (u_a - u_b)^2 over the pairs of a query's rows (Stable-GFlowNet, arXiv:2605.00553).

    u_a - u_b = log R_a/T - log R_b/T - log q_a + log q_b: log Z cancels. It is zero where q is proportional to R^(1/T),
    and only there if the pairs that are kept connect all completions. Pairs whose log R/T differ by less than `margin`
    are left out: there a noisy reward says which of two is better by chance. The paper prunes noisy pairs; this rule
    (a threshold on rewards alone) is ours.

    With `margin` 0 it is VarGrad up to normalisation: of m rows, sum_{a<b} (u_a - u_b)^2 is m times their sum of
    squares about the mean. A mean over pairs is twice the unbiased variance, and a query with more finished rows
    weighs m (m - 1) / 2 here, m - 1 there.

    Args:
        terminal_potential: u_n in nats, read only where `finished` and `row_mask` hold.
        finished: the row stopped of itself.
        row_mask: False drops a row.
        log_reward: log R/T of the completion in nats, read as u_n.
        samples_per_query: N, static; rows of one query are adjacent.
        margin: nats, static.
        huber: |u_a - u_b| from which the penalty is linear, in nats, static.

    Returns:
        The sum over pairs and the number of those that are kept: a function of masks and rewards, not of scores.
    """
    used = (finished & row_mask).reshape(-1, samples_per_query)
    u, log_reward = (jnp.where(used, x.reshape(used.shape), 0) for x in (terminal_potential, log_reward))
    kept = pair_gaps(used) > 0
    if margin:
        kept &= jnp.abs(log_reward[:, :, None] - log_reward[:, None, :]) >= margin
    total, weight = pair_sums(u, kept.astype(u.dtype), huber)
    return Weighted(jnp.sum(total), jnp.sum(weight))
