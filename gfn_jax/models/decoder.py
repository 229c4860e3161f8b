"""A decoder-only transformer as pure functions over a pytree of stacked layers.

`forward(model, ...)`: a model without an adapter is the frozen base on the same arrays, bit for bit what an adapter
with B = 0 gives. Layers are scanned, so depth costs no compile time. What rows have in common (a prompt,
demonstrations) is passed as `past` and never copied: see `layers.KeyValues`.
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from jax.ad_checkpoint import checkpoint_name
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int, Shaped

from gfn_jax.models import layers as parts
from gfn_jax.models.config import KEPT, Attention, ModelConfig, Remat
from gfn_jax.models.language_model import LanguageModel
from gfn_jax.models.layers import KeyValues
from gfn_jax.models.partition import ROWS, TENSOR, constrain, parts_of, repeat_rows, split_rows
from gfn_jax.types import Params, PyTree, Tokens

VOCABULARY_BLOCK = 2048  # columns of the head whose logits are held at once while only their sum is wanted
LOGITS_AT_ONCE = 2**25  # numbers on a device, float32, while a few of each state are wanted with their gradient
COPIED_COLUMNS = 8  # of a cache that are copied at once


def init_params(key: jax.Array, config: ModelConfig, dtype=jnp.float32) -> Params:
    """Random weights: normal(0, 0.02), residual outputs scaled by 1/sqrt(2 L) (GPT-2), norms at one."""
    keys = iter(jax.random.split(key, 16))

    def normal(*shape: int, std: float = 0.02) -> Array:
        return std * jax.random.normal(next(keys), shape, dtype)

    def norm(*stack: int) -> Params:
        scale = jnp.full((*stack, config.width), 1.0 - config.norm_offset, dtype)
        bias = {"bias": jnp.zeros_like(scale)} if config.norm == "layer" else {}
        return {"scale": scale, **bias}

    depth = config.num_layers
    layers: Params = {name: norm(depth) for name in config.block_norms}
    for name, (inputs, outputs) in config.projections.items():
        std = 0.02 / math.sqrt(2 * depth) if name in ("o", "down") else 0.02
        layers[name] = {"kernel": normal(depth, inputs, outputs, std=std)}
        if name in config.biased:
            layers[name]["bias"] = jnp.zeros((depth, outputs), dtype)
    if config.qk_norm:
        for name in ("q_norm", "k_norm"):
            layers[name] = {"scale": jnp.full((depth, config.head_dim), 1.0 - config.norm_offset, dtype)}
    params: Params = {
        "embed": {"tokens": normal(config.vocab_size, config.width)},
        "layers": layers,
        "final_norm": norm(),
    }
    if config.positions == "learned":
        params["embed"]["positions"] = normal(config.max_positions, config.width)
    if not config.tied_head:
        params["head"] = {"kernel": normal(config.width, config.vocab_size)}
        if config.head_bias:
            params["head"]["bias"] = jnp.zeros((config.vocab_size,), dtype)
    return params


def empty_cache(config: ModelConfig, rows: int, length: int, dtype: DTypeLike = jnp.float32) -> KeyValues:
    """Room for `length` tokens a row, none of them visible yet; int8 has a scale a token and head."""
    shape = (config.num_layers, rows, config.num_kv_heads, length, config.head_dim)
    kept = jax.eval_shape(lambda: parts.stored(jnp.zeros(shape), dtype))
    zeros = jax.tree.map(lambda x: constrain(jnp.zeros(x.shape, x.dtype), None, ROWS), kept)
    return KeyValues(
        k=zeros, v=zeros, mask=jnp.zeros((rows, length), bool), positions=jnp.zeros((rows, length), jnp.int32)
    )


def cached(seen: KeyValues, dtype: DTypeLike) -> KeyValues:
    """Keys and values as a cache of that type holds them."""
    k, v = jax.tree.map(lambda x: parts.stored(x, dtype), (seen.k, seen.v))
    return dataclasses.replace(seen, k=k, v=v)


def follow(tree: PyTree, parents: Int[Array, " B"], columns: Int[Array, ""] | int) -> PyTree:
    """Row b becomes a copy of row `parents[b]`, where the two have their prompts and positions in common.

    Args:
        tree: arrays with B rows leading, and caches of B rows.
        parents: each row's.
        columns: how many columns of the caches hold anything: only those are copied, a few at a time.
    """

    def copy(x: Any) -> Any:
        if not isinstance(x, KeyValues):
            return x[parents]
        length = x.mask.shape[-1]
        width = min(COPIED_COLUMNS, length)

        def piece(number: Array, room: PyTree) -> PyTree:
            begin = jnp.minimum(number * width, length - width)  # the last piece overlaps the one before it
            fresh = (begin + jnp.arange(width) >= number * width)[:, None]
            old = jax.tree.map(lambda part: jax.lax.dynamic_slice_in_dim(part, begin, width, axis=3), room)
            new = jax.tree.map(lambda part: jnp.where(fresh, part[:, parents], part), old)
            write = functools.partial(jax.lax.dynamic_update_slice_in_dim, start_index=begin, axis=3)
            return jax.tree.map(write, room, new)

        k, v = jax.lax.fori_loop(0, -(-columns // width), piece, (x.k, x.v))
        return dataclasses.replace(x, k=k, v=v)

    return jax.tree.map(copy, tree, is_leaf=lambda x: isinstance(x, KeyValues))


@struct.dataclass
class _Context:
    """What every layer of one forward pass shares."""

    angles: tuple[Float[Array, "B S half"], Float[Array, "B S half"]] | None  # global, local
    visible: list[Bool[Array, "*visible"]]  # a segment each, the rows' own last
    near: list[Bool[Array, "*visible"]] | None  # the same within the local window
    column: Int[Array, ""] | int
    scale: float = struct.field(pytree_node=False)
    dropout_rate: float = struct.field(pytree_node=False)
    attention: Attention = struct.field(pytree_node=False)


def forward(
    model: LanguageModel,
    ids: Int[Array, "B S"],
    positions: Int[Array, "B S"],
    visible: Bool[Array, "*B S Z"],
    past: tuple[KeyValues, ...] = (),
    cache: KeyValues | None = None,
    column: Int[Array, ""] | int = 0,
    dropout: tuple[jax.Array, float] | None = None,
    remat: Remat = "none",
) -> tuple[Float[Array, "B S E"], KeyValues]:
    """Runs new tokens through the decoder.

    Args:
        model: weights and adapter.
        ids: the new tokens.
        positions: their positions in the whole sequence, `past` included.
        visible: which of the row's own keys (Z = S, or the cache's length) each token may look at; leading axis B or 1.
            Of a cache only columns that are written, the new ones included, may be looked at: others are not read.
        past: keys that tokens of a group of adjacent rows may all look at, under their own masks.
        cache: room for the row's own keys; the new ones are written from `column` on. None: own keys are the new ones.
        column: where to write in `cache`.
        dropout: a key and a rate for the adapter's inputs; None when sampling or evaluating.
        remat: which of a layer's activations are computed again in the backward pass instead of being kept.

    Returns:
        The final hidden states after the last norm, and the rows' own keys and values (the updated cache).
    """
    config, params, lora = model.shape, model.params, model.adapter
    rows, length = ids.shape
    x = params["embed"]["tokens"][ids]
    if config.embed_scale != 1.0:
        x = x * jnp.asarray(config.embed_scale, x.dtype)
    if config.positions == "learned":
        x = x + params["embed"]["positions"][positions]
    x = split_rows(x)
    own_positions = positions
    if cache is not None:
        own_positions = jax.lax.dynamic_update_slice(cache.positions, positions, (0, column))
    seen = [segment.mask.reshape(len(segment.mask), -1, 1, segment.mask.shape[-1]) for segment in past]
    seen.append(visible[:, None])
    near = None
    if config.local_window is not None:
        key_positions = [*(segment.positions for segment in past), own_positions]
        near = [
            mask & parts.within_window(positions, keys, config.local_window)
            for mask, keys in zip(seen, key_positions, strict=True)
        ]
    angles = None
    if config.positions == "rotary":
        base = parts.rotary_frequencies(config, config.rope_theta, config.rope_scaling)
        local = base
        if config.local_rope_theta is not None:
            local = parts.rotary_frequencies(config, config.local_rope_theta, scaling=None)
        angles = (positions[..., None] * base, positions[..., None] * local)
    context = _Context(
        angles=angles,
        visible=seen,
        near=near,
        column=column,
        scale=1.0 if lora is None else lora.scale,
        dropout_rate=0.0 if dropout is None else dropout[1],
        attention=model.attention,
    )
    block: Callable[..., Any] = functools.partial(_block, config, context)
    if remat != "none":
        policy = jax.checkpoint_policies.save_only_these_names(*KEPT[remat])
        block = jax.checkpoint(block, prevent_cse=False, policy=policy)
    inputs = {
        "number": jnp.arange(config.num_layers),
        "weights": params["layers"],
        "lora": None if lora is None else lora.layers,
        "past": [(segment.k, segment.v) for segment in past],
        "key": None if dropout is None or dropout[1] == 0 else jax.random.split(dropout[0], config.num_layers),
        "local": jnp.asarray(config.local_layers, bool) if config.local_layers else None,
    }
    # The cache is carried, so that a layer writes its new column in place; as an output it would be copied whole.
    (x, room), own_keys = jax.lax.scan(block, (x, None if cache is None else (cache.k, cache.v)), inputs)
    k, v = own_keys if room is None else room
    own_mask = jnp.ones((rows, length), bool) if cache is None else cache.mask
    own = KeyValues(k=k, v=v, mask=own_mask, positions=own_positions)
    return parts.norm(config, params["final_norm"], x), own


def _block(config: ModelConfig, context: _Context, carry: tuple[Float[Array, "B S E"], Any], layer: dict[str, Any]):
    """One layer of the scan: `x` and the cache in and out; without a cache also the layer's keys and values."""
    x, room = carry
    weights, adapters, key = layer["weights"], layer["lora"] or {}, layer["key"]

    def project(name: str, x: Array) -> Array:
        index = list(config.projections).index(name)
        dropout = None if key is None else (jax.random.fold_in(key, index), context.dropout_rate)
        out = split_rows(parts.linear(weights[name], x, adapters.get(name), context.scale, dropout))
        return checkpoint_name(out, name)

    def norm(name: str, x: Array) -> Array:
        return parts.norm(config, weights[name], x)

    def mlp(x: Array) -> Array:
        if config.gated_mlp:
            return project("down", parts.activate(config, project("gate", x)) * project("up", x))
        return project("down", parts.activate(config, project("up", x)))

    h = norm("attn_norm", x)
    attended, room, keys = _attention(config, context, layer, room, project, h)
    attended = project("o", attended.reshape(*x.shape[:2], -1))
    if config.norm_placement == "parallel":
        x = x + attended + mlp(h)
    elif config.norm_placement == "parallel_two":
        x = x + attended + mlp(norm("mlp_norm", x))
    elif config.norm_placement == "sandwich":
        x = x + norm("attn_post_norm", attended)
        x = x + norm("mlp_post_norm", mlp(norm("mlp_norm", x)))
    else:
        x = x + attended
        x = x + mlp(norm("mlp_norm", x))
    return (split_rows(x), room), keys


def _attention(config: ModelConfig, context: _Context, layer: dict[str, Any], room, project, h: Float[Array, "B S E"]):
    """Queries of the new tokens over the shared segments and the rows' own keys, which go to `room` if there is one."""
    rows, length, _ = h.shape
    q = project("q", h).reshape(rows, length, config.num_heads, config.head_dim)
    k = project("k", h).reshape(rows, length, config.num_kv_heads, config.head_dim)
    v = project("v", h).reshape(rows, length, config.num_kv_heads, config.head_dim)
    if config.qk_norm:
        q = parts.norm(config, layer["weights"]["q_norm"], q)
        k = parts.norm(config, layer["weights"]["k_norm"], k)
    visible = context.visible
    local = layer["local"]
    if context.angles is not None:
        angles = context.angles[0] if local is None else jnp.where(local, context.angles[1], context.angles[0])
        q, k = parts.rotate(config, q, angles), parts.rotate(config, k, angles)
    if local is not None and context.near is not None:
        visible = [jnp.where(local, near, seen) for near, seen in zip(context.near, context.visible, strict=True)]
    k, v = jnp.swapaxes(k, 1, 2), jnp.swapaxes(v, 1, 2)
    if room is not None:
        place = (layer["number"], 0, 0, context.column, 0)
        kind = jnp.int8 if isinstance(room[0], parts.Int8Vectors) else room[0].dtype
        new = (parts.stored(k, kind), parts.stored(v, kind))
        room = jax.tree.map(lambda old, new: jax.lax.dynamic_update_slice(old, new[None], place), room, new)
        if visible[-1].shape[-1] > parts.columns_at_once():
            written = parts.Written(room[0], room[1], visible[-1], layer["number"], context.column + length)
            past = [(*keys, seen) for keys, seen in zip(layer["past"], visible[:-1], strict=True)]
            return parts.attend(config, q, past, written), room, None
        k, v = jax.tree.map(lambda x: jax.lax.dynamic_index_in_dim(x, layer["number"], keepdims=False), room)
    segments = [(*keys, seen) for keys, seen in zip([*layer["past"], (k, v)], visible, strict=True)]
    if room is None and context.attention != "xla":
        return parts.attend_joined(config, q, segments, context.attention), room, (k, v)
    return parts.attend(config, q, segments), room, (k, v) if room is None else None


def prefill(
    model: LanguageModel,
    tokens: Tokens,
    past: tuple[KeyValues, ...] = (),
    dropout: tuple[jax.Array, float] | None = None,
    remat: Remat = "none",
) -> tuple[Float[Array, "G S E"], KeyValues]:
    """Runs padded sequences causally, after what `past` holds; padding is invisible and takes no position.

    Returns:
        Hidden states [G, S, E] and the keys to pass on as `past`.
    """
    mask = tokens.mask
    groups, length = mask.shape
    positions = past_length(past, groups)[:, None] + jnp.maximum(jnp.cumsum(mask, axis=1) - 1, 0)
    causal = jnp.tril(jnp.ones((length, length), bool))
    visible = causal & mask[:, None, :]
    hidden, own = forward(model, tokens.ids, positions, visible, past=past, dropout=dropout, remat=remat)
    return hidden, dataclasses.replace(own, mask=mask)


def past_length(past: tuple[KeyValues, ...], rows: int) -> Int[Array, " rows"]:
    """How many real tokens precede each row's own."""
    total = jnp.zeros((rows,), jnp.int32)
    for segment in past:
        lengths = segment.mask.sum(1, dtype=jnp.int32)
        total = total + repeat_rows(lengths, rows // len(lengths))
    return total


@struct.dataclass
class Head:
    """The output head, or the columns of it that a constraint allows."""

    weights: Params
    adapter: Params | None
    scale: float = struct.field(pytree_node=False)
    softcap: float | None = struct.field(pytree_node=False)


def select_head(model: LanguageModel, columns: Int[Array, " A"] | None = None) -> Head:
    """The output head, gathered once to `columns` so that only allowed logits are ever computed."""
    config, params, lora = model.shape, model.params, model.adapter
    weights = {"kernel": params["embed"]["tokens"].T} if config.tied_head else params["head"]
    adapter = None if lora is None else lora.head
    if columns is not None:
        weights = {name: value[..., columns] for name, value in weights.items()}
        adapter = None if adapter is None else {"a": adapter["a"], "b": adapter["b"][:, columns]}
    # Gathered over fsdp here, once: what reads the head reads it in a loop.
    weights = {name: constrain(value, *[None] * (value.ndim - 1), TENSOR) for name, value in weights.items()}
    return Head(weights, adapter, scale=1.0 if lora is None else lora.scale, softcap=config.logit_softcap)


def logits(head: Head, hidden: Float[Array, "*b E"]) -> Float[Array, "*b A"]:
    """Unnormalised log-probabilities in float32."""
    out = parts.linear(head.weights, split_rows(hidden), head.adapter, head.scale, dtype=jnp.float32)
    return out if head.softcap is None else head.softcap * jnp.tanh(out / head.softcap)


def by_columns(
    read: Callable[..., Float[Array, "B c *m"]], *arrays: Shaped[Array, "B T ..."], width: int
) -> Float[Array, "B T *m"]:
    """What is read off [B, T] states one by one, the logits of a few columns being held at once.

    Where all of them are more than `LOGITS_AT_ONCE` numbers on a device, as many columns as are not: one after the
    other, and once more in the backward pass. Rows are never cut, for a mesh splits them.

    Args:
        read: from the arrays' columns; it holds `width` logits a state, of which it picks a few.
        arrays: [B, T, ...] each.
        width: columns of the head.
    """
    rows, length = arrays[0].shape[:2]
    held = rows * length * width // (parts_of(ROWS) * parts_of(TENSOR))
    columns = -(-length // max(-(-held // LOGITS_AT_ONCE), 1))
    if columns == length:
        return read(*arrays)
    pieces = -(-length // columns)

    def cut(x: Shaped[Array, "B T ..."]) -> Shaped[Array, "n B c ..."]:
        padded = jnp.pad(x, ((0, 0), (0, pieces * columns - length), *[(0, 0)] * (x.ndim - 2)))
        return jnp.moveaxis(padded.reshape(rows, pieces, columns, *x.shape[2:]), 1, 0)

    found = jax.lax.map(lambda own: jax.checkpoint(read)(*own), tuple(map(cut, arrays)))
    return jnp.moveaxis(found, 0, 1).reshape(rows, pieces * columns, *found.shape[3:])[:, :length]


def logit_of(
    head: Head, hidden: Float[Array, "N E"], column: Int[Array, " N"], penalty: Float[Array, " A"] | None = None
) -> Float[Array, " N"]:
    """One logit of every state, at a column of its own, without the others'."""

    def one(state: Float[Array, " E"], column: Int[Array, ""]) -> Float[Array, ""]:
        own = jax.tree.map(lambda x: jnp.take(x, column[None], axis=-1), head.weights)
        adapter = None if head.adapter is None else {**head.adapter, "b": head.adapter["b"][:, column[None]]}
        return logits(dataclasses.replace(head, weights=own, adapter=adapter), state[None])[0, 0]

    found = jax.vmap(one)(hidden, column)
    return found if penalty is None else found - penalty[column]


def log_probs_at(
    head: Head,
    hidden: Float[Array, "N E"],
    columns: Int[Array, "N M"],
    penalty: Float[Array, " A"] | None = None,
) -> Float[Array, "N M"]:
    """Log softmax of all logits (less a penalty a column) at a few columns, a block of the vocabulary at a time.

    Neither [N, V] logits nor a second pass over the head's weights: the running maximum and sum are corrected as
    blocks come in (Milakov & Gimelshein 2018, arXiv:1805.02867), and the wanted logits are taken from those very
    blocks, so that no probability exceeds 1 at any precision of the products. Meant for scoring without gradient.
    """
    picked, total = logits_at(head, hidden, columns, penalty)
    return picked - total[:, None]


def logits_at(
    head: Head,
    hidden: Float[Array, "N E"],
    columns: Int[Array, "N M"],
    penalty: Float[Array, " A"] | None = None,
) -> tuple[Float[Array, "N M"], Float[Array, " N"]]:
    """The two parts of `log_probs_at`: the wanted logits, and the normaliser that all of a state's have in common."""
    count = head.weights["kernel"].shape[1]
    # A head that is split over its vocabulary is cut within every part, so that no device needs another's columns.
    splits = parts_of(TENSOR) if count % parts_of(TENSOR) == 0 else 1
    width = count // splits
    block = min(VOCABULARY_BLOCK, width)

    def one(carry: tuple[Array, Array, Array], number: Int[Array, ""]) -> tuple[tuple[Array, Array, Array], None]:
        top, total, picked = carry
        begin = jnp.minimum(number * block, width - block)  # the last block overlaps the one before it

        def part_of(x: Array) -> Array:
            cut = jax.lax.dynamic_slice_in_dim(x.reshape(*x.shape[:-1], splits, width), begin, block, axis=-1)
            return cut.reshape(*x.shape[:-1], splits * block)

        adapter = None if head.adapter is None else {**head.adapter, "b": part_of(head.adapter["b"])}
        own = dataclasses.replace(head, weights=jax.tree.map(part_of, head.weights), adapter=adapter)
        scores = logits(own, hidden)
        if penalty is not None:
            scores = scores - part_of(penalty)
        inside = jnp.clip(columns % width - begin, 0, block - 1)
        found = jnp.take_along_axis(scores, columns // width * block + inside, axis=-1)
        picked = jnp.where(columns % width // block == number, found, picked)
        fresh = begin + jnp.arange(block) >= number * block
        scores = jnp.where(jnp.tile(fresh, splits), scores, parts.NEGATIVE)
        higher = jnp.maximum(top, scores.max(-1))
        total = total * jnp.exp(top - higher) + jnp.exp(scores - higher[:, None]).sum(-1)
        return (higher, total, picked), None

    hidden = split_rows(hidden)
    start = (jnp.full(len(hidden), parts.NEGATIVE), jnp.zeros(len(hidden)), jnp.zeros(columns.shape))
    (top, total, picked), _ = jax.lax.scan(one, start, jnp.arange(-(-width // block)))
    return picked, top + jnp.log(total)
