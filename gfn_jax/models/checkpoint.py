"""Base weights in Hugging Face's layout: a folder of config.json and safetensors, read straight onto a mesh.

A parameter is stacked over layers in memory and one tensor a layer in the file. Each distinct shard of a
stacked parameter is assembled from slices of the file: a small one on the host, a large one on its devices, to which
the host sends a layer at a time. So the host never holds more than one tensor, or 16 million numbers. A kernel that is
to be quantised is read and quantised a layer at a time: no more of the blocks than that is ever held as floats.
"""

import functools
import json
import math
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util
from jax.sharding import Sharding, SingleDeviceSharding
from jax.typing import DTypeLike

from gfn_jax.models.config import ModelConfig
from gfn_jax.models.families import Family, family_of, read_settings, write_settings
from gfn_jax.models.families.family import Path, Source, abstract_params
from gfn_jax.models.quantize import Kind, Quantized, check_kind, quantize_stack
from gfn_jax.models.stacking import assemble, file_tensors, read_shard
from gfn_jax.models.tensor_files import INDEX, SINGLE, TensorFiles, read_json, weight_files, write_tensors
from gfn_jax.types import Params, PyTree

ONE_GO = 2**24  # numbers of a shard that are read and sent at once


def read_config(folder: str | pathlib.Path) -> tuple[str, ModelConfig]:
    """(model_type, config) of a checkpoint's folder; no weight is read.

    Raises:
        ValueError: no such folder or file, or a setting that is not implemented.
    """
    raw = read_json(pathlib.Path(folder), "config.json")
    config = read_settings(raw)
    return raw["model_type"], config


def load_model(
    folder: str | pathlib.Path,
    dtype: DTypeLike = jnp.float32,
    shardings: Callable[[PyTree], PyTree] | PyTree | None = None,
    quantize: Kind = "none",
) -> tuple[ModelConfig, Params]:
    """Reads a checkpoint onto devices.

    Args:
        folder: config.json and safetensors, in one file or in indexed shards.
        dtype: what every parameter becomes, whatever float the file holds.
        shardings: a tree of `jax.sharding.Sharding` shaped like the float parameters, or what gives one for the
            parameters' shapes; None: the first device.
        quantize: what becomes of the kernels of the blocks' projections while they are read, split as they were.

    Raises:
        ValueError: anything missing, damaged, of the wrong shape, unknown or not implemented.
    """
    check_kind(quantize)
    folder = pathlib.Path(folder)
    model_type, config = read_config(folder)
    family = family_of(model_type)
    abstract = abstract_params(config, dtype)
    if shardings is None:
        flat_shardings = dict.fromkeys(abstract, SingleDeviceSharding(jax.local_devices()[0]))
    else:
        if callable(shardings):
            shardings = shardings(traverse_util.unflatten_dict(abstract))
        flat_shardings = traverse_util.flatten_dict(shardings)
    files = TensorFiles(weight_files(folder))
    sources = family.sources(config, present=set(files))
    _check_tensors(files, folder, family, config, sources)
    params: dict[Path, Any] = {}
    for path, leaf in abstract.items():
        read = functools.partial(read_shard, files, sources[path], leaf.shape[-1], dtype=leaf.dtype)
        if quantize != "none" and path[0] == "layers" and path[-1] == "kernel":
            params[path] = _read_quantized(leaf.shape, flat_shardings[path], read, quantize)
        else:
            params[path] = place(leaf.shape, flat_shardings[path], read)
    return config, traverse_util.unflatten_dict(params)


def _read_quantized(
    shape: tuple[int, ...], sharding: Sharding, read: Callable[[tuple[slice, ...]], np.ndarray], kind: Kind
) -> Quantized:
    """A stacked kernel, of which one layer at a time is floats; `sharding` leaves the axis of layers whole."""

    def read_layer(layer: int, index: tuple[slice, ...]) -> np.ndarray:
        return read((slice(layer, layer + 1), *index[1:]))

    layers = []
    for layer in range(shape[0]):
        floats = place((1, *shape[1:]), sharding, functools.partial(read_layer, layer))
        layers.append(jax.block_until_ready(quantize_stack(floats, kind)))
        floats.delete()
    return _concatenate(layers)


@jax.jit
def _concatenate(parts: list[Quantized]) -> Quantized:
    """Layers of codes as one stack."""
    return jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *parts)


def _check_tensors(
    files: TensorFiles,
    folder: pathlib.Path,
    family: Family,
    config: ModelConfig,
    sources: Mapping[Path, Source],
) -> None:
    """Raises unless every parameter has its tensors, and every tensor a parameter or a reason to be left out."""
    unused = set(files)
    for path, leaf in abstract_params(config).items():
        for name in sources[path].names:
            if name not in files:
                raise ValueError(f"{folder} has no tensor {name}, which parameter {'/'.join(path)} needs")
            files.check(name, sources[path].shape(leaf.shape))
            unused.discard(name)
    tied = f"{family.modules['head']}.weight"
    if config.tied_head and tied in unused:
        unused.discard(tied)
        (embedding,) = sources["embed", "tokens"].names
        files.check(tied, (config.vocab_size, config.width))
        if not files.equal(tied, embedding):
            raise ValueError(f"{folder} ties {tied} to {embedding} in config.json but holds another")
    for name in sorted(unused):
        if not family.skips(name):
            raise ValueError(f"{folder} has the tensor {name}, which its model_type does not use")


def place(shape: tuple[int, ...], sharding: Sharding, read: Callable[[tuple[slice, ...]], np.ndarray]) -> jax.Array:
    """An array on devices, one distinct shard at a time: `read(index)` is the host's copy of a shard."""
    owners: dict[tuple[tuple[int, int], ...], list[jax.Device]] = {}
    for device, index in sharding.addressable_devices_indices_map(shape).items():
        bounds = tuple(part.indices(size)[:2] for part, size in zip(index or (), shape, strict=True))
        owners.setdefault(bounds, []).append(device)
    shards = []
    for bounds, devices in owners.items():
        shards += _place_shard(tuple(slice(*pair) for pair in bounds), devices, read)
    return jax.make_array_from_single_device_arrays(shape, sharding, shards)


def _place_shard(
    index: tuple[slice, ...], devices: list[jax.Device], read: Callable[[tuple[slice, ...]], np.ndarray]
) -> list[jax.Array]:
    """One shard on all the devices that hold it; of a large stack of matrices the host holds one at a time."""
    sizes = [part.stop - part.start for part in index]
    if len(sizes) < 3 or sizes[0] == 1 or math.prod(sizes) <= ONE_GO:
        host = read(index)
        return jax.block_until_ready([jax.device_put(host, device) for device in devices])
    stacks: list[jax.Array] = []
    for number in range(sizes[0]):
        layer = slice(index[0].start + number, index[0].start + number + 1)
        host = read((layer, *index[1:]))
        if not stacks:
            stacks = [jnp.zeros(sizes, host.dtype, device=device) for device in devices]
        parts = [jax.device_put(host, device) for device in devices]
        stacks = jax.block_until_ready([_put(stack, part, number) for stack, part in zip(stacks, parts, strict=True)])
    return stacks


@functools.partial(jax.jit, donate_argnums=0)
def _put(stack: jax.Array, part: jax.Array, number: int) -> jax.Array:
    """The stack with one of its layers written, in place."""
    return jax.lax.dynamic_update_slice_in_dim(stack, part, number, axis=0)


def save_model(
    folder: str | pathlib.Path,
    config: ModelConfig,
    params: Params,
    model_type: str,
    settings: Mapping[str, Any] | None = None,
    shard_bytes: int = 4 * 2**30,
) -> None:
    """Writes a folder that transformers (and `load_model`) load.

    Args:
        folder: made if need be.
        config: the model's shape.
        params: its weights, in the dtype that is written.
        model_type: the family, which must be able to express `config`.
        settings: more of config.json (special token ids), as they are.
        shard_bytes: where a file is closed and the next begun; the host holds one at a time.

    Raises:
        ValueError: unknown family, or one that cannot express the configuration.
    """
    folder = pathlib.Path(folder)
    flat = traverse_util.flatten_dict(params)
    written = write_settings(config, model_type) | {"dtype": flat["embed", "tokens"].dtype.name}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(written | dict(settings or {}), indent=2) + "\n")
    tensors = file_tensors(family_of(model_type).sources(config))
    groups: list[list[str]] = [[]]
    room = shard_bytes
    for name, parts in tensors.items():
        size = sum(flat[path].nbytes // (flat[path].shape[0] if source.stacked else 1) for path, _, source in parts)
        if size > room and groups[-1]:
            groups.append([])
            room = shard_bytes
        groups[-1].append(name)
        room -= size
    names = (
        [SINGLE]
        if len(groups) == 1
        else [f"model-{i + 1:05}-of-{len(groups):05}.safetensors" for i in range(len(groups))]
    )
    for file, group in zip(names, groups, strict=True):
        write_tensors(folder / file, {name: assemble(flat, tensors[name]) for name in group})
    if len(groups) > 1:
        index = {name: file for file, group in zip(names, groups, strict=True) for name in group}
        total = sum(leaf.nbytes for leaf in flat.values())
        (folder / INDEX).write_text(json.dumps({"metadata": {"total_size": total}, "weight_map": index}, indent=2))
