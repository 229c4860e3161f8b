"""Heads of a distribution over the allowed tokens: which of them may be drawn.

Filters take tempered logits and a mask and return a smaller mask, of one token at least; what is left is drawn from in
proportion, so that a filter after a filter sees the distribution that the first one left.

    top-k  the k likeliest (Fan et al. 2018, arXiv:1805.04833)
    top-p  the fewest likeliest that hold a share p of the probability (Holtzman et al. 2019, arXiv:1904.09751)
    min-p  those at least p times as likely as the likeliest (Nguyen et al. 2024, arXiv:2407.01082)

Tokens that are exactly as likely as the last one kept are kept too: `transformers` does so in top-k and min-p; in top-p
it keeps as many of them as are needed, by their ids.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from gfn_jax.models.layers import NEGATIVE


def top_k(logits: Float[Array, "B A"], kept: Bool[Array, "B A"], k: int) -> Bool[Array, "B A"]:
    """The k likeliest; all where there are fewer."""
    logits = jnp.where(kept, logits, NEGATIVE)
    least = jax.lax.top_k(logits, min(k, logits.shape[-1]))[0][..., -1:]
    return kept & (logits >= least)


def top_p(logits: Float[Array, "B A"], kept: Bool[Array, "B A"], p: Float[Array, ""] | float) -> Bool[Array, "B A"]:
    """The fewest likeliest whose probabilities sum to p at least."""
    probs = jax.nn.softmax(jnp.where(kept, logits, NEGATIVE))

    def halve(_, bounds: tuple[Array, Array]) -> tuple[Array, Array]:
        """The head is all tokens above a bound; the highest bound that leaves it its share is wanted."""
        low, high = bounds
        middle = (low + high) / 2
        enough = jnp.where(probs >= middle, probs, 0.0).sum(-1, keepdims=True) >= p
        return jnp.where(enough, middle, low), jnp.where(enough, high, middle)

    # Halving 40 times is exact to float32, and far cheaper than sorting a vocabulary.
    most = probs.max(-1, keepdims=True)
    least, _ = jax.lax.fori_loop(0, 40, halve, (jnp.zeros_like(most), 2 * most))
    return kept & (probs >= least)


def min_p(logits: Float[Array, "B A"], kept: Bool[Array, "B A"], p: Float[Array, ""] | float) -> Bool[Array, "B A"]:
    """Those at least p times as likely as the likeliest."""
    logits = jnp.where(kept, logits, NEGATIVE)
    return kept & (logits >= logits.max(-1, keepdims=True) + jnp.log(p))
