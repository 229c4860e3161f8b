"""Rooted prefix balance with absorbed suffixes, after RapTB (arXiv:2603.00454).

The paper's abstract and summary are what we know of it: O(N) constraints a trajectory, each between the root and a
prefix, where the target of a prefix is not the reward of stopping there but is absorbed from the sampled suffix. This
form of it is ours. Of a finished row, for every action k (its stop included):

    residual_k = log Z + sum_{j<=k} log q(z_j) - A_k,      A_k = log R(Z)/T - sum_{j>k} log q(z_j), without gradient

A_k is the log flow through the prefix as this one suffix sees it. In value all residuals of a row are TB's, log Z -
u_n; their gradients are not: that of residual_k reaches the actions 0..k alone, so that an action takes part in as many
as are left from it on, early ones in the most. TB gives all the same.

Optimum: where q is proportional to R^(1/T) and log Z = log sum R^(1/T), A_k is the log flow through the prefix exactly,
whichever suffix was drawn, and every residual is 0; as they are TB's, they all vanish nowhere else. The update is the
gradient of no one loss (targets are held still), so that training gets there is shown by enumeration, in the tests.

Rows which share a prefix need not be looked for: with squares the gradient of their mean target is the mean of their
gradients. The logarithm of the mean of e^A_k over them, the flow by importance, is no better: among rows of
another behaviour its largest summand decides, and in the tests' peaked world it lost the largest mode.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from gfn_jax.objectives.subtb import normalize, penalty
from gfn_jax.types import Weighted


def raptb(
    terminal_potential: Float[Array, " B"],
    finished: Bool[Array, " B"],
    row_mask: Bool[Array, " B"],
    log_z: Float[Array, " B"],
    log_pf: Float[Array, "B T"],
    action_mask: Bool[Array, "B T"],
    *,
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
        normalization: as of SubTB, a row's weight being the number of its actions.
        huber: the residual (nats) from which the penalty is linear, static.

    Returns:
        The penalties' sum and the weight to divide it by, a function of the masks.
    """
    used = finished & row_mask
    counts = action_mask & used[:, None]
    prefix = jnp.cumsum(jnp.where(counts, log_pf, 0), axis=1)
    # log R/T less the suffix's log q is u_n and the prefix's.
    target = jax.lax.stop_gradient(jnp.where(used, terminal_potential, 0)[:, None] + prefix)
    residual = jnp.where(counts, jnp.where(used, log_z, 0)[:, None] + prefix - target, 0)
    sums = jnp.sum(penalty(residual, huber), axis=1), jnp.sum(counts, axis=1, dtype=residual.dtype)
    return normalize(sums, row_mask, normalization)
