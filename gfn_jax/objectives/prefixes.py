"""Rooted prefix balance with absorbed suffixes, after RapTB (arXiv:2603.00454).

The paper's abstract is what we know of it: O(N) constraints a trajectory, each between the root and a prefix, where the
target of a prefix is absorbed from sampled suffixes instead of the reward of stopping there. This form of it is ours.
Of a finished row, for every action k (its stop included), with no gradient through A_k:

    residual_k = log Z + sum_{j<=k} log q(z_j) - A_k
    A_k        = log mean over the rows b of the query that share the columns 0..k, of R_b^(1/T) / q(z_b after k)

A_k estimates the log flow through the prefix, by importance where the suffixes are the policy's own. Where a row shares
its prefix with no other, A_k is log R/T less the row's own suffix, and the residual is TB's, log Z - u_n, whose
gradient then reaches the prefix alone; at the stop that holds for every row. So what is new beside TB is whose gradient
a residual is (early tokens take part in all of them) and that rows which begin alike agree on one target.

Optimum: where q is proportional to R^(1/T) and log Z = log sum R^(1/T), each summand of A_k is exactly the flow through
the prefix, however the rows were drawn, and every residual is 0. Conversely the residuals at the stops are TB's, so all
vanish nowhere else. On the way A_k is biased (log of a mean; rows of another behaviour): a prefix with no gradient
through its target is no gradient of one loss, and what training reaches is shown by enumeration in the tests.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from gfn_jax.objectives.subtb import normalize, penalty
from gfn_jax.types import Weighted


def raptb(
    terminal_potential: Float[Array, " B"],
    finished: Bool[Array, " B"],
    row_mask: Bool[Array, " B"],
    log_z: Float[Array, " B"],
    log_pf: Float[Array, "B T"],
    action_mask: Bool[Array, "B T"],
    token: Int[Array, "B T"],
    *,
    samples_per_query: int,
    normalization: str,
    huber: float | None = None,
) -> Weighted:
    """The penalties of all rooted prefixes.

    Args:
        terminal_potential: u_n in nats, read only where `finished` and `row_mask` hold, as all that follows.
        finished: the row stopped of itself.
        row_mask: False drops a row.
        log_z: of the row's query, nats.
        log_pf: log q of every action.
        action_mask: what the policy chose.
        token: the tokens of Z; -1 for its stop and behind it.
        samples_per_query: N, static; rows of one query are adjacent.
        normalization: as of SubTB, a row's weight being the number of its actions.
        huber: the residual (nats) from which the penalty is linear, static.

    Returns:
        The penalties' sum and the weight to divide it by, a function of the masks.
    """
    used = finished & row_mask
    counts = action_mask & used[:, None]
    prefix = jnp.cumsum(jnp.where(counts, log_pf, 0), axis=1)
    # log R/T less the suffix's log q is u_n plus the prefix's.
    own = jnp.where(used, terminal_potential, 0)[:, None] + prefix
    target = absorbed(jax.lax.stop_gradient(own), shared(token, counts, samples_per_query))
    residual = jnp.where(counts, jnp.where(used, log_z, 0)[:, None] + prefix - target, 0)
    sums = jnp.sum(penalty(residual, huber), axis=1), jnp.sum(counts, axis=1, dtype=residual.dtype)
    return normalize(sums, row_mask, normalization)


def shared(token: Int[Array, "B T"], counts: Bool[Array, "B T"], samples_per_query: int) -> Bool[Array, "Q N N T"]:
    """Whether two rows of a query have both acted in column k and are the same in columns 0..k."""
    token, counts = (x.reshape(-1, samples_per_query, x.shape[1]) for x in (token, counts))
    same = jnp.cumprod(token[:, :, None] == token[:, None], axis=-1, dtype=jnp.int32) > 0
    return same & counts[:, :, None] & counts[:, None]


def absorbed(own: Float[Array, "B T"], shared: Bool[Array, "Q N N T"]) -> Float[Array, "B T"]:
    """The log of the mean of e^own over the rows that share a prefix; 0 where nobody does, not even the row itself."""
    queries, samples, _, horizon = shared.shape
    others = jnp.where(shared, own.reshape(queries, 1, samples, horizon), -jnp.inf)
    count = jnp.sum(shared, axis=2)
    top = jnp.where(count > 0, jnp.max(others, axis=2), 0)
    mean = jnp.sum(jnp.exp(others - top[:, :, None]), axis=2) / jnp.maximum(count, 1)
    return (top + jnp.log(jnp.where(count > 0, mean, 1))).reshape(-1, horizon)
