"""Drawing one of very many tokens with few random numbers.

A vocabulary of A tokens is cut into about sqrt(A) blocks; a block is drawn by its total probability, then a token by
its share of the block. The distribution is exactly softmax(logits), the random numbers are 2 sqrt(A) instead of A, and
the blocks' totals give the normaliser on the way.
"""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from gfn_jax.models.layers import NEGATIVE


def draw(key: jax.Array, logits: Float[Array, "B A"]) -> tuple[Int[Array, " B"], Int[Array, " B"], Float[Array, " B"]]:
    """A token of every row from softmax(logits), the likeliest token, and log sum exp of the row.

    Logits of about -1e30 (masked) are never drawn while a row has any other.
    """
    rows, count = logits.shape
    width = math.isqrt(count - 1) + 1
    blocks = -(-count // width)
    padded = jnp.pad(logits, ((0, 0), (0, blocks * width - count)), constant_values=NEGATIVE)
    padded = padded.reshape(rows, blocks, width)
    top = padded.max(-1)
    total = top + jnp.log(jnp.exp(padded - top[..., None]).sum(-1))
    which, within = jax.random.split(key)

    def inside(block: Int[Array, " B"]) -> Float[Array, "B width"]:
        return jnp.take_along_axis(padded, block[:, None, None], axis=1)[:, 0]

    block = jax.random.categorical(which, total)
    drawn = block * width + jax.random.categorical(within, inside(block))
    best_block = jnp.argmax(top, axis=-1)
    best = best_block * width + jnp.argmax(inside(best_block), axis=-1)
    return drawn, best, jax.nn.logsumexp(total, axis=-1)
