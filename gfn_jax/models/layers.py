"""The parts a decoder is made of: norms, rotary positions, linear maps with an adapter, attention.

Rotary embedding: Su et al. 2021 (arXiv:2104.09864). LoRA: Hu et al. 2021 (arXiv:2106.09685),
y = x W + (alpha / r) x A B. RMS norm: Zhang & Sennrich 2019 (arXiv:1910.07467).
"""

import jax
import jax.numpy as jnp
from flax import struct
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int
from jaxtyping import Int8 as Int8Codes

from gfn_jax.models.config import Attention, ModelConfig, RopeScaling
from gfn_jax.models.partition import repeat_rows
from gfn_jax.models.quantize import multiply
from gfn_jax.types import Params

NEGATIVE = -1e30  # a masked score: finite, so that a row that may look at nothing yields no NaN
COLUMNS_AT_ONCE = {"cpu": 8}  # of a cache that rows look at; of the last some are not written yet
COLUMNS_AT_ONCE_ELSEWHERE = 512  # where the host is asked whether a loop goes on


@struct.dataclass
class Int8Vectors:
    """Keys or values in a byte a number: of every token and head s c, with c in -127..127 and s = max |x| / 127."""

    codes: Int8Codes[Array, "*L G K Z D"]
    scale: Float[Array, "*L G K Z 1"]


Vectors = Float[Array, "*L G K Z D"] | Int8Vectors


def stored(x: Float[Array, "*L G K Z D"], dtype: DTypeLike) -> Vectors:
    """Keys or values as a cache of that type holds them."""
    if jnp.dtype(dtype) != jnp.int8:
        return x.astype(dtype)
    x = x.astype(jnp.float32)
    scale = jnp.abs(x).max(-1, keepdims=True) / 127
    return Int8Vectors(codes=jnp.round(x / jnp.where(scale == 0, 1.0, scale)).astype(jnp.int8), scale=scale)


def restored(x: Vectors, dtype: DTypeLike) -> Float[Array, "*L G K Z D"]:
    """What a cache holds, to be multiplied with numbers of that type: coarser ones are widened, finer ones stay."""
    if isinstance(x, Int8Vectors):
        return (x.codes * x.scale).astype(dtype)
    return x.astype(jnp.promote_types(x.dtype, dtype))


@struct.dataclass
class KeyValues:
    """Keys and values that queries may look at, shared by `B // G` adjacent rows.

    G = 1 is a context shared by all rows (demonstrations), G = Q a prompt shared by a query's samples,
    G = B a row's own tokens. The mask is the group's, or has a line for each of its n rows. In a whole-model cache
    `k` and `v` carry a leading layer axis. A head's keys lie together, as its products with a query read them: a cache
    in the order of the tokens would be turned around at every step.
    """

    k: Vectors
    v: Vectors
    mask: Bool[Array, "G *n S"]
    positions: Int[Array, "G S"]


def norm(config: ModelConfig, weights: Params, x: Float[Array, "*b E"]) -> Float[Array, "*b E"]:
    """Layer or RMS norm over the last axis, computed in float32."""
    x32 = x.astype(jnp.float32)
    if config.norm == "layer":
        x32 = x32 - x32.mean(-1, keepdims=True)
    x32 = x32 * jax.lax.rsqrt(jnp.square(x32).mean(-1, keepdims=True) + config.norm_eps)
    x32 = x32 * (weights["scale"].astype(jnp.float32) + config.norm_offset)
    if "bias" in weights:
        x32 = x32 + weights["bias"].astype(jnp.float32)
    return x32.astype(x.dtype)


def rotary_frequencies(config: ModelConfig, theta: float, scaling: RopeScaling | None) -> Float[Array, " half"]:
    """Radians a position for each rotated pair, stretched as `scaling` says."""
    exponent = jnp.arange(0, config.rotary_dim, 2, dtype=jnp.float32) / config.rotary_dim
    frequency = theta**-exponent
    if scaling is None:
        return frequency
    if scaling.kind == "linear":
        return frequency / scaling.factor
    rotations = scaling.original_max_positions * frequency / (2 * jnp.pi)
    ramp = (rotations - scaling.low_freq_factor) / (scaling.high_freq_factor - scaling.low_freq_factor)
    keep = jnp.clip(ramp, 0.0, 1.0)  # 1: fast enough to be left alone
    return keep * frequency + (1 - keep) * frequency / scaling.factor


def rotate(
    config: ModelConfig, x: Float[Array, "B S N D"], angles: Float[Array, "B S half"]
) -> Float[Array, "B S N D"]:
    """Turns the first `rotary_dim` dimensions of every head by its position's angles."""
    half = config.rotary_dim // 2
    cos, sin = jnp.cos(angles)[:, :, None], jnp.sin(angles)[:, :, None]
    turned, rest = x[..., : config.rotary_dim].astype(jnp.float32), x[..., config.rotary_dim :]
    if config.rotary_interleaved:
        pairs = turned.reshape(*turned.shape[:-1], half, 2)
        a, b = pairs[..., 0], pairs[..., 1]
        turned = jnp.stack([a * cos - b * sin, b * cos + a * sin], axis=-1).reshape(turned.shape)
    else:
        a, b = turned[..., :half], turned[..., half:]
        turned = jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)
    return jnp.concatenate([turned.astype(x.dtype), rest], axis=-1)


def linear(
    weights: Params,
    x: Float[Array, "*b I"],
    adapter: Params | None = None,
    scale: float = 1.0,
    dropout: tuple[jax.Array, float] | None = None,
    dtype: DTypeLike | None = None,
) -> Float[Array, "*b O"]:
    """X W + bias, plus the adapter's scale * dropout(x) A B where there is one.

    Args:
        weights: `kernel` [I, O], floats or quantised, and perhaps `bias` [O].
        x: the input.
        adapter: `a` [I, r] and `b` [r, O], or None for the frozen map alone.
        scale: alpha / r.
        dropout: a key and the rate at which the adapter's inputs are dropped.
        dtype: of the output (and of the sums); the input's where None.
    """
    dtype = dtype or x.dtype
    y = multiply(x, weights["kernel"], dtype)
    if "bias" in weights:
        y = y + weights["bias"].astype(dtype)
    if adapter is None:
        return y
    if dropout is not None:
        key, rate = dropout
        x = jnp.where(jax.random.bernoulli(key, 1 - rate, x.shape), x / (1 - rate), jnp.zeros_like(x))
    low = jnp.matmul(x @ adapter["a"].astype(x.dtype), adapter["b"].astype(x.dtype), preferred_element_type=dtype)
    return y + scale * low


@struct.dataclass
class Written:
    """The rows' own keys where they lie in a cache of all layers, longer than `columns_at_once`.

    `visible` is over the whole cache; what lies at or behind `columns` is not written, and seen by nobody.
    """

    k: Vectors
    v: Vectors
    visible: Bool[Array, "*visible"]
    layer: Int[Array, ""]
    columns: Int[Array, ""] | int


def columns_at_once() -> int:
    """How many columns of a cache are read at a time; shorter ones are read whole."""
    return COLUMNS_AT_ONCE.get(jax.default_backend(), COLUMNS_AT_ONCE_ELSEWHERE)


Segment = tuple[Vectors, Vectors, Bool[Array, "*visible"]]


def attend(
    config: ModelConfig, query: Float[Array, "B S H D"], segments: list[Segment], written: Written | None = None
) -> Float[Array, "B S H D"]:
    """Softmax attention over several key sets, merged exactly by log-sum-exp.

    Each segment is (keys, values, visible); G divides B and row b looks at group b // (B // G), so a prompt
    shared by many samples is neither copied nor masked. `visible` is [G, 1 or B // G, 1 or S, Z]. Of a cache that is
    `written` in part, a few columns are read at a time, with running sums (as in Dao et al. 2022, arXiv:2205.14135).
    """
    rows, length, heads, dim = query.shape
    kv_heads = config.num_kv_heads
    scale = config.head_dim**-0.5 if config.query_scale is None else config.query_scale
    query = (query * jnp.asarray(scale, query.dtype)).reshape(rows, length, kv_heads, heads // kv_heads, dim)

    def scores_of(keys: Vectors, visible: Bool[Array, "*visible"]) -> Float[Array, "B K R S Z"]:
        keys = restored(keys, query.dtype)
        groups = keys.shape[0]
        grouped = query.reshape(groups, rows // groups, *query.shape[1:])
        score = jnp.einsum("gnskrd,gkzd->gnkrsz", grouped, keys, preferred_element_type=jnp.float32)
        if config.attention_softcap is not None:
            score = config.attention_softcap * jnp.tanh(score / config.attention_softcap)
        score = jnp.where(visible[:, :, None, None], score, NEGATIVE)
        return score.reshape(rows, *score.shape[2:])

    def mix(weight: Float[Array, "B K R S Z"], values: Vectors) -> Float[Array, "B S K R D"]:
        values = restored(values, query.dtype)
        groups = values.shape[0]
        weight = weight.astype(values.dtype).reshape(groups, rows // groups, *weight.shape[1:])
        part = jnp.einsum("gnkrsz,gkzd->gnskrd", weight, values, preferred_element_type=jnp.float32)
        return part.reshape(rows, *part.shape[2:])

    shape = (rows, kv_heads, heads // kv_heads, length)
    top, total = jnp.full(shape, NEGATIVE), jnp.zeros(shape)
    mixed = jnp.zeros((rows, length, kv_heads, heads // kv_heads, dim))
    if segments:
        scores = [scores_of(keys, visible) for keys, _, visible in segments]
        top = jax.lax.stop_gradient(jnp.max(jnp.stack([score.max(-1) for score in scores]), axis=0))
        for score, (_, values, _) in zip(scores, segments, strict=True):
            weight = jnp.exp(score - top[..., None])
            total, mixed = total + weight.sum(-1), mixed + mix(weight, values)
    if written is not None:
        room, size = written.visible.shape[-1], columns_at_once()

        def piece(number: Array, sums: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
            top, total, mixed = sums
            begin = jnp.minimum(number * size, room - size)  # the last piece overlaps the one before it
            place = (written.layer, 0, 0, begin, 0)

            def cut(x: Array) -> Array:
                return jax.lax.dynamic_slice(x, place, (1, rows, kv_heads, size, x.shape[-1]))[0]

            keys, values = jax.tree.map(cut, (written.k, written.v))
            visible = jax.lax.dynamic_slice_in_dim(written.visible, begin, size, axis=-1)
            score = scores_of(keys, visible & (begin + jnp.arange(size) >= number * size))
            higher = jnp.maximum(top, score.max(-1))
            kept, weight = jnp.exp(top - higher), jnp.exp(score - higher[..., None])
            mixed = mixed * jnp.moveaxis(kept, 3, 1)[..., None] + mix(weight, values)
            return higher, total * kept + weight.sum(-1), mixed

        top, total, mixed = jax.lax.fori_loop(0, -(-written.columns // size), piece, (top, total, mixed))
    out = mixed / jnp.moveaxis(total, 3, 1)[..., None]
    return out.reshape(rows, length, heads, dim).astype(query.dtype)


def attend_joined(
    config: ModelConfig, query: Float[Array, "B S H D"], segments: list[Segment], kernel: Attention
) -> Float[Array, "B S H D"]:
    """`attend` by `jax.nn.dot_product_attention`, over the segments one behind the other, copied for every row.

    cuDNN's kernel holds no scores (Dao et al. 2022, arXiv:2205.14135). With a mask it learns from even numbers of
    queries and keys alone, so one of each is added where need be. It knows no soft cap. Tested with `kernel` xla, jax's
    own plain products: cudnn itself, which needs an NVIDIA GPU, was never run.
    """
    rows, length = query.shape[:2]

    def whole(x: Vectors) -> Float[Array, "B Z K D"]:
        x = restored(x, query.dtype)
        return jnp.swapaxes(repeat_rows(x, rows // len(x)), 1, 2)

    def each(keys: Vectors, visible: Bool[Array, "*visible"]) -> Bool[Array, "B 1 S Z"]:
        groups, width = jax.tree.leaves(keys)[0].shape[0], visible.shape[-1]
        return jnp.broadcast_to(visible, (groups, rows // groups, length, width)).reshape(rows, 1, length, width)

    keys, values = (jnp.concatenate([whole(segment[part]) for segment in segments], axis=1) for part in (0, 1))
    visible = jnp.concatenate([each(keys, seen) for keys, _, seen in segments], axis=-1)
    more, further = length % 2, keys.shape[1] % 2
    keys, values = (jnp.pad(x, ((0, 0), (0, further), (0, 0), (0, 0))) for x in (keys, values))
    visible = jnp.pad(visible, ((0, 0), (0, 0), (0, more), (0, further)))
    query = jnp.pad(query, ((0, 0), (0, more), (0, 0), (0, 0)))
    scale = config.head_dim**-0.5 if config.query_scale is None else config.query_scale
    out = jax.nn.dot_product_attention(query, keys, values, mask=visible, scale=scale, implementation=kernel)
    return out[:, :length]


def activate(config: ModelConfig, x: Float[Array, "*b"]) -> Float[Array, "*b"]:
    """The MLP's non-linearity."""
    if config.activation == "silu":
        return jax.nn.silu(x)
    if config.activation == "relu":
        return jax.nn.relu(x)
    return jax.nn.gelu(x, approximate=config.activation == "gelu_tanh")


def within_window(
    query_positions: Int[Array, "B S"], key_positions: Int[Array, "G Z"], window: int
) -> Bool[Array, "G n S Z"]:
    """Which keys lie within a sliding window behind each query."""
    rows, length = query_positions.shape
    groups = key_positions.shape[0]
    queries = query_positions.reshape(groups, rows // groups, length, 1)
    return queries - key_positions[:, None, None, :] < window
