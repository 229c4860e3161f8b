"""Maximum likelihood: negative log-probabilities of whole completions, in nats."""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from gfn_jax.types import Weighted


def completions(log_pf: Float[Array, "B T"], action_mask: Bool[Array, "B T"], row_mask: Bool[Array, " B"]) -> Weighted:
    """Sums -log q(Z) over the rows that `row_mask` keeps; weight: their number.

    Args:
        log_pf: log q of every action, the stop included.
        action_mask: what the policy chose.
        row_mask: which completions to imitate.
    """
    log_q = jnp.where(action_mask & row_mask[:, None], log_pf, 0.0)
    return Weighted(total=-log_q.sum(), weight=row_mask.sum(dtype=log_pf.dtype))
