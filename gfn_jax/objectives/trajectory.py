"""Objectives of whole trajectories, by the potential u_n of the state they stopped in (`subtb.terminal_potential`).

    TB       (u_n - log Z)^2, where u_n = log R/T - log q(trajectory), with a learnt log Z (Malkin et al. 2022)
    VarGrad  the variance of u_n over the samples of one query, which needs no log Z (Richter et al. 2020). Its gradient
             is TB's with log Z estimated from the query's other samples (leave one out).

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
