"""Maximum likelihood: negative log-probabilities in nats, of the next token or of whole completions."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from gfn_jax.types import Weighted


def next_token(logits: Float[Array, "B S V"], ids: Int[Array, "B S"], mask: Bool[Array, "B S"]) -> Weighted:
    """Sums -log p(ids[t+1] | ids[..t]) over the tokens after the first that `mask` keeps.

    Args:
        logits: after each token.
        ids: the tokens themselves.
        mask: which tokens count as targets.
    """
    log_probs = jax.nn.log_softmax(logits[:, :-1].astype(jnp.float32))
    chosen = jnp.take_along_axis(log_probs, ids[:, 1:, None], axis=-1)[..., 0]
    return Weighted(total=-jnp.where(mask[:, 1:], chosen, 0.0).sum(), weight=mask[:, 1:].sum(dtype=jnp.float32))


def completions(log_pf: Float[Array, "B T"], action_mask: Bool[Array, "B T"], row_mask: Bool[Array, " B"]) -> Weighted:
    """Sums -log q(Z) over the rows that `row_mask` keeps; weight: their number.

    Args:
        log_pf: log q of every action, the stop included.
        action_mask: what the policy chose.
        row_mask: which completions to imitate.
    """
    log_q = jnp.where(action_mask & row_mask[:, None], log_pf, 0.0)
    return Weighted(total=-log_q.sum(), weight=row_mask.sum(dtype=log_pf.dtype))
