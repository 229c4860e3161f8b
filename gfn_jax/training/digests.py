"""A digest of every array of a state: the same for the same bits, however the array is spread over devices.

    d(x) = sum_i mix(bits(x_i) xor mix(i + 1))   mod 2^32        i: the place of x_i in the whole array, row by row

Integers add up exactly in any order, so every device sums its own part and nothing is gathered. `mix` is a bijection
(MurmurHash3's finaliser, Appleby 2011): a change of one element always changes d, any other one does but for 1 in 2^32.
"""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Shaped, UInt32

from gfn_jax.types import PyTree


def digests(tree: PyTree) -> dict[str, int]:
    """The digest of every array by its path ("trainable/lora/layers/q/a"); every process must ask."""
    paths, leaves = zip(*jax.tree_util.tree_leaves_with_path(tree), strict=True)
    names = [jax.tree_util.keystr(path, simple=True, separator="/") for path in paths]
    return dict(zip(names, map(int, jax.device_get(_digests(leaves))), strict=True))


@jax.jit
def _digests(leaves: tuple[Shaped[Array, "..."], ...]) -> list[UInt32[Array, ""]]:
    return [_digest(x) for x in leaves]


def _digest(x: Shaped[Array, "..."]) -> UInt32[Array, ""]:
    if x.dtype != bool:
        x = jax.lax.bitcast_convert_type(x, f"uint{8 * min(x.dtype.itemsize, 4)}")  # of 8 bytes it makes two words
    place = jnp.ones((), jnp.uint32)
    for axis in range(x.ndim):
        stride = math.prod(x.shape[axis + 1 :]) % 2**32
        place += jax.lax.broadcasted_iota(jnp.uint32, x.shape, axis) * jnp.uint32(stride)
    return _mix(x.astype(jnp.uint32) ^ _mix(place)).sum(dtype=jnp.uint32)


def _mix(h: UInt32[Array, "..."]) -> UInt32[Array, "..."]:
    h = (h ^ (h >> 16)) * jnp.uint32(0x85EBCA6B)
    h = (h ^ (h >> 13)) * jnp.uint32(0xC2B2AE35)
    return h ^ (h >> 16)
