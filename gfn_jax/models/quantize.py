"""Frozen weights in 8 or 4 bits, dequantised where they are used, with a LoRA adapter on top (QLoRA).

int8, per output channel o:       W[i, o] = s[o] c[i, o],          c in -127..127, s[o] = max_i |W[i, o]| / 127
nf4, per block b of 64 inputs:    W[i, o] = s[b(i), o] l[c[i, o]], c in 0..15,     s[b, o] = max_{i in b} |W[i, o]|

The 16 levels l of NormalFloat are quantiles of a normal distribution, zero among them and scaled to -1..1
(Dettmers et al. 2023, arXiv:2305.14314, section 3). A quantised kernel stands in the tree of parameters where the
float one stood, stacked over layers alike, so that a scan over layers slices it and holds one layer's floats at a time.
"""

import functools
import itertools
import statistics
from typing import Literal, get_args

import jax
import jax.numpy as jnp
from flax import struct
from jax.typing import DTypeLike
from jaxtyping import Array, BFloat16, Float, Float32, Integer, UInt8
from jaxtyping import Int8 as Int8Codes

from gfn_jax.types import Params

Kind = Literal["none", "int8", "nf4"]
BLOCK = 64
# Half a step away from the tails, whose quantiles are infinite: the mean of 1 - 1/32 and 1 - 1/30, for the
# 16 and 15 levels that each half is cut from.
_TAIL = 1 - (1 / 32 + 1 / 30) / 2


def normal_float_levels() -> tuple[float, ...]:
    """The 16 levels of NF4, ascending from -1 to 1: eight above zero, seven below it."""
    quantile = statistics.NormalDist().inv_cdf

    def half(count: int) -> list[float]:
        return [quantile(_TAIL + (0.5 - _TAIL) * i / count) for i in range(count)]

    levels = sorted([*half(8), 0.0, *(-x for x in half(7))])
    return tuple(level / levels[-1] for level in levels)


LEVELS = normal_float_levels()


@struct.dataclass
class Int8:
    """One byte a weight and a scale an output channel."""

    codes: Int8Codes[Array, "*L I O"]
    scale: Float32[Array, "*L 1 O"]

    def dequantize(self, dtype: DTypeLike) -> Float[Array, "*L I O"]:
        """The weights that it stands for; multiplied in float32, so that only the result is rounded."""
        return (self.codes.astype(jnp.float32) * self.scale).astype(dtype)


@struct.dataclass
class NormalFloat4:
    """Half a byte a weight and a scale a block of inputs.

    Attributes:
        codes: inputs 2j in the high bits and 2j + 1 in the low ones; inputs are padded to whole blocks.
        scales: the largest magnitude of each block.
        inputs: I, the inputs that are not padding.
    """

    codes: UInt8[Array, "*L half O"]
    scales: BFloat16[Array, "*L blocks O"]
    inputs: int = struct.field(pytree_node=False)

    def dequantize(self, dtype: DTypeLike) -> Float[Array, "*L I O"]:
        """The weights that it stands for."""
        *stack, blocks, outputs = self.scales.shape
        levels = level_of(unpack(self.codes)).reshape(*stack, blocks, BLOCK, outputs)
        weights = levels * self.scales[..., None, :].astype(jnp.float32)
        return weights.reshape(*stack, blocks * BLOCK, outputs)[..., : self.inputs, :].astype(dtype)


Quantized = Int8 | NormalFloat4


def pack(codes: Integer[Array, "*L I O"]) -> UInt8[Array, "*L half O"]:
    """Codes below 16, two adjacent inputs a byte; I is even."""
    codes = codes.astype(jnp.uint8)
    return (codes[..., 0::2, :] << 4) | codes[..., 1::2, :]


def unpack(packed: UInt8[Array, "*L half O"]) -> UInt8[Array, "*L I O"]:
    """The codes that `pack` packed."""
    *stack, half, outputs = packed.shape
    return jnp.stack([packed >> 4, packed & 15], axis=-2).reshape(*stack, 2 * half, outputs)


def level_of(codes: UInt8[Array, "*b"]) -> Float32[Array, "*b"]:
    """The level of every code, by 15 selections that fuse into their use: TPUs gather slowly from tables."""
    candidates = [jnp.float32(level) for level in LEVELS]
    for bit in range(4):
        odd = (codes >> bit) & 1 == 1
        candidates = [jnp.where(odd, high, low) for low, high in zip(candidates[::2], candidates[1::2], strict=True)]
    return candidates[0]


def to_int8(kernel: Float[Array, "I O"]) -> Int8:
    """Quantises one layer's kernel."""
    weights = kernel.astype(jnp.float32)
    scale = jnp.abs(weights).max(0, keepdims=True) / 127
    codes = jnp.round(weights / jnp.where(scale > 0, scale, 1.0))
    return Int8(codes=codes.astype(jnp.int8), scale=scale)


def to_nf4(kernel: Float[Array, "I O"]) -> NormalFloat4:
    """Quantises one layer's kernel, each weight to the level nearest to it."""
    inputs, outputs = kernel.shape
    weights = jnp.pad(kernel.astype(jnp.float32), ((0, -inputs % BLOCK), (0, 0)))
    weights = weights.reshape(-1, BLOCK, outputs)
    # Rounded first: codes are chosen for the scale that is kept.
    scales = jnp.abs(weights).max(1).astype(jnp.bfloat16)
    divisor = scales.astype(jnp.float32)[:, None]
    between = jnp.asarray([(a + b) / 2 for a, b in itertools.pairwise(LEVELS)])
    codes = jnp.searchsorted(between, weights / jnp.where(divisor > 0, divisor, 1.0))
    return NormalFloat4(codes=pack(codes.reshape(-1, outputs)), scales=scales, inputs=inputs)


@functools.partial(jax.jit, static_argnums=1)
def quantize_stack(kernel: Float[Array, "L I O"], kind: Kind) -> Quantized:
    """Quantises the kernels of some layers, split over devices as they are split."""
    return jax.lax.map({"int8": to_int8, "nf4": to_nf4}[kind], kernel)


def check_kind(kind: str) -> None:
    """Raises ValueError where `kind` is none of `Kind`."""
    if kind not in get_args(Kind):
        raise ValueError(f"quantize {kind!r} is unknown; it is one of {', '.join(get_args(Kind))}")


def quantize_params(params: Params, kind: Kind) -> Params:
    """The base with the kernels of its blocks' projections quantised; embeddings, norms, biases and head stay.

    Args:
        params: the float base.
        kind: `int8`, `nf4`, or `none`, which returns `params`.

    Raises:
        ValueError: an unknown kind, or a base that is quantised already.
    """
    check_kind(kind)
    if kind == "none":
        return params
    if is_quantized(params):
        raise ValueError("the base is quantised already")
    layers = dict(params["layers"])
    for name, weights in layers.items():
        if "kernel" in weights:
            layers[name] = {**weights, "kernel": quantize_stack(weights["kernel"], kind)}
    return {**params, "layers": layers}


def is_quantized(params: Params) -> bool:
    """Whether any kernel of a block is not floats."""
    return any(isinstance(weights.get("kernel"), Quantized) for weights in params["layers"].values())


def multiply(
    x: Float[Array, "*b I"], kernel: Float[Array, "I O"] | Quantized, dtype: DTypeLike
) -> Float[Array, "*b O"]:
    """X W with sums of `dtype`, W floats or quantised.

    A quantised W is dequantised again in the backward pass: kept, the floats of all layers would take the
    memory that quantising them saved.
    """

    def product(kernel: Float[Array, "I O"] | Quantized, x: Float[Array, "*b I"]) -> Float[Array, "*b O"]:
        return jnp.matmul(x, weights_of(kernel, x.dtype), preferred_element_type=dtype)

    if isinstance(kernel, Quantized):
        return jax.checkpoint(product, prevent_cse=False)(kernel, x)
    return product(kernel, x)


def weights_of(kernel: Array | Quantized, dtype: DTypeLike) -> Float[Array, "I O"]:
    """A kernel's weights as floats of `dtype`."""
    if isinstance(kernel, Quantized):
        return kernel.dequantize(dtype)
    return kernel.astype(dtype)
