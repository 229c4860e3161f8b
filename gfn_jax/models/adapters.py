"""Adapters in PEFT's layout (adapter_config.json, adapter_model.safetensors), read and written.

PEFT stores, for a linear layer W, `lora_A` [r, in] and `lora_B` [out, r] and computes x W + s x A' B' with
s = alpha / r, or alpha / sqrt(r) where `use_rslora`. A fused q/k/v layer has one A of rank r; ours are three
maps. Reading gives each a copy of A and its own columns of B. Writing three different A's takes rank 3 r: the
A's side by side and the B's on the diagonal, with alpha raised so that s stays.
"""

import dataclasses
import json
import math
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from gfn_jax.models.adapter_settings import CONFIG, AdapterSettings, read_adapter_settings
from gfn_jax.models.checkpoint import save_model
from gfn_jax.models.config import ModelConfig
from gfn_jax.models.families import Family, family_of
from gfn_jax.models.families.family import Path, Source
from gfn_jax.models.lora import Lora, LoraConfig, merge_lora
from gfn_jax.models.stacking import assemble, file_tensors, read_shard, whole
from gfn_jax.models.tensor_files import TensorFiles, resolve, weight_files, write_tensors
from gfn_jax.types import Params

WEIGHTS = "adapter_model.safetensors"
ROOT = "base_model.model."


def load_adapter(
    folder: str | pathlib.Path,
    config: ModelConfig,
    model_type: str,
    dtype: DTypeLike = jnp.float32,
    base: str | pathlib.Path | None = None,
) -> tuple[LoraConfig, Lora]:
    """Reads an adapter for a base of that shape, onto the first device.

    Args:
        folder: adapter_config.json and adapter_model.safetensors.
        config: the base's shape.
        model_type: the base's family.
        dtype: of the weights.
        base: the base's folder or hub id, for an adapter that holds an embedding or a head: they must be the base's.

    Raises:
        ValueError: anything missing, damaged, made for another base, unknown or not implemented.
    """
    folder = pathlib.Path(folder)
    settings = read_adapter_settings(folder, config.num_layers)
    family = family_of(model_type)
    used, layers, head = set(), {}, None
    files = TensorFiles([folder / WEIGHTS])
    for module in (*config.projections, "head"):
        sources = _sources(family, config, module)
        if not any(name in files for name in sources["a"].names):
            continue
        pair = _read_pair(files, folder, sources, _size(config, module), settings, dtype)
        used |= {name for source in sources.values() for name in source.names}
        if module == "head":
            head = pair
        elif (own := _own_block(pair, sources["b"], settings.rank)) is not None:
            layers[module] = own
    _refuse_rest(files, folder, family, config, used, base)
    targets = (*layers, "head") if head else tuple(layers)
    if not targets:
        raise ValueError(f"{folder} holds no adapter weight")
    lora = LoraConfig(
        rank=settings.rank,
        alpha=settings.alpha,
        targets=targets,
        dropout=settings.dropout,
        rank_stabilized=settings.rank_stabilized,
    )
    return lora, jax.tree.map(jnp.asarray, Lora(layers=layers, head=head, scale=lora.scale))


def _size(config: ModelConfig, module: str) -> tuple[int, int]:
    return (config.width, config.vocab_size) if module == "head" else config.projections[module]


def _sources(family: Family, config: ModelConfig, module: str) -> dict[str, Source]:
    """Where A and B of a module lie in an adapter's file."""
    stacked = module != "head"
    layers = range(config.num_layers if stacked else 1)
    names = [ROOT + family.modules[module].format(layer) for layer in layers]

    def source(letter: str, fused: tuple[int, int, int] | None) -> Source:
        return Source(tuple(f"{name}.lora_{letter}.weight" for name in names), stacked, True, fused)

    return {"a": source("A", None), "b": source("B", family.fusion(config, module))}


def _read_pair(
    files: TensorFiles,
    folder: pathlib.Path,
    sources: Mapping[str, Source],
    size: tuple[int, int],
    settings: AdapterSettings,
    dtype: DTypeLike,
) -> dict[str, np.ndarray]:
    """A and B of one module, stacked over layers, under the adapter's one scale.

    What patterns make of a layer's scale is folded into its B. Layers of a lower rank are padded with zeros.
    """
    modules = [name.removeprefix(ROOT).removesuffix(".lora_A.weight") for name in sources["a"].names]
    ranks = [settings.rank_of(module) for module in modules]
    parts: dict[str, list[np.ndarray]] = {"a": [], "b": []}
    for letter, source in sources.items():
        for name, module, rank in zip(source.names, modules, ranks, strict=True):
            shape = (size[0], rank) if letter == "a" else (rank, size[1])
            one = dataclasses.replace(source, names=(name,), stacked=False)
            _check_tensor(files, folder, name, one.shape(shape), module)
            parts[letter].append(read_shard(files, one, shape[-1], whole(shape), dtype))
    missing = [max(ranks) - rank for rank in ranks]
    a = np.stack([np.pad(part, [(0, 0), (0, more)]) for part, more in zip(parts["a"], missing, strict=True)])
    b = np.stack([np.pad(part, [(0, more), (0, 0)]) for part, more in zip(parts["b"], missing, strict=True)])
    factors = np.array([settings.scale_of(module) / settings.scale for module in modules], np.float64)
    if not np.allclose(factors, 1.0, rtol=1e-12, atol=0.0):  # a float's noise in alpha must not touch the weights
        with np.errstate(over="ignore", invalid="ignore"):
            b = (b * factors.astype(np.float32)[:, None, None]).astype(b.dtype)
        if not np.isfinite(b).all():
            raise ValueError(f"{folder}: lora_alpha and the alpha of {modules[0]} and its like are too far apart")
    pair = {"a": a, "b": b}
    return pair if sources["a"].stacked else {letter: values[0] for letter, values in pair.items()}


def _check_tensor(files: TensorFiles, folder: pathlib.Path, name: str, shape: tuple[int, ...], module: str) -> None:
    """Raises unless the tensor is there, of the rank that the settings name, and of the base's sizes."""
    if name not in files:
        raise ValueError(f"{folder} has no tensor {name}: every layer must have one")
    held = files.shape(name)
    axis = 0 if name.endswith("lora_A.weight") else 1
    if len(held) == 2 and held[axis] != shape[axis]:
        raise ValueError(f"{folder}: {module} has rank {held[axis]} where {CONFIG} says {shape[axis]}")
    try:
        files.check(name, shape)
    except ValueError as error:
        raise ValueError(f"{folder} was made for another base: {error}") from error


def _own_block(pair: dict[str, np.ndarray], source: Source, rank: int) -> dict[str, np.ndarray] | None:
    """Undoes `_fuse`: a fused module's own block of rank, None where the writer's adapter did not have it."""
    if source.fused is None or pair["a"].shape[-1] != source.fused[2] * rank:
        return pair
    own = slice(source.fused[1] * rank, (source.fused[1] + 1) * rank)
    others = np.delete(pair["b"], own, axis=-2)
    if others.any():
        return pair  # another program's wide adapter: every row counts
    block = {"a": pair["a"][..., own], "b": pair["b"][..., own, :]}
    return block if block["a"].any() else None


def _refuse_rest(
    files: TensorFiles,
    folder: pathlib.Path,
    family: Family,
    config: ModelConfig,
    used: set[str],
    base: str | pathlib.Path | None,
) -> None:
    """Raises on tensors that no module took, but for copies of the base's embedding and head.

    PEFT writes those beside an adapter of the head, or when asked to, and puts them into the base that it loads
    the adapter onto: where they differ from the base's, they were trained.
    """
    tokens, head = family.modules["tokens"], family.modules["head"]
    copies: dict[str, Path] = {f"{tokens}.weight": ("embed", "tokens")}
    copies[f"{head}.weight"] = ("embed", "tokens") if config.tied_head else ("head", "kernel")
    if config.head_bias:
        copies[f"{head}.bias"] = ("head", "bias")
    for name in sorted(set(files) - used):
        plain = name.removeprefix(ROOT).replace(".base_layer.", ".")
        if plain not in copies:
            raise ValueError(f"{folder} has the tensor {name}, which adapts nothing that this base has")
        if base is None:
            raise ValueError(f"{folder} has the tensor {name}, and no base is named that it could be a copy of")
        held = TensorFiles(weight_files(resolve(base)))
        (original,) = family.sources(config, present=set(held))[copies[plain]].names
        files.check(name, held.shape(original))
        if not files.equal(name, original, held):
            raise ValueError(
                f"{folder} has a trained {plain}, not that of {base}: that is not implemented in an adapter"
            )


def save_adapter(
    folder: str | pathlib.Path,
    config: ModelConfig,
    lora_config: LoraConfig,
    lora: Lora,
    model_type: str,
    base: str | None = None,
) -> None:
    """Writes a folder that PEFT (and `load_adapter`) load.

    Args:
        folder: made if need be.
        config: the base's shape.
        lora_config: rank, alpha and targets.
        lora: the weights.
        model_type: the base's family.
        base: the name or folder of the base, for whoever loads the adapter.

    Raises:
        ValueError: the weights' scale is not the configuration's.
    """
    if not math.isclose(lora.scale, lora_config.scale):
        raise ValueError(f"the adapter's scale {lora.scale} is not that of its configuration, {lora_config.scale}")
    folder, family = pathlib.Path(folder), family_of(model_type)
    pairs: dict[str, Params] = dict(lora.layers)
    if family.fused is not None and (names := [name for name in ("q", "k", "v") if name in pairs]):
        pairs |= _fuse(config, pairs, names)
    if lora.head is not None:
        pairs["head"] = lora.head
    sources: dict[Path, Source] = {}
    flat: dict[Path, jax.Array] = {}
    for module, pair in pairs.items():
        for letter, source in _sources(family, config, module).items():
            sources[module, letter], flat[module, letter] = source, pair[letter]
    ranks = {module: pair["a"].shape[-1] for module, pair in pairs.items()}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / CONFIG).write_text(json.dumps(_settings(family, lora_config, ranks, base), indent=2) + "\n")
    write_tensors(folder / WEIGHTS, {name: assemble(flat, parts) for name, parts in file_tensors(sources).items()})


def _settings(family: Family, lora_config: LoraConfig, ranks: Mapping[str, int], base: str | None) -> dict[str, Any]:
    """adapter_config.json of modules with these ranks, all under the configuration's one scale."""
    targets = _target_names(family, tuple(ranks))
    growth = {module: rank / lora_config.rank for module, rank in ranks.items() if rank != lora_config.rank}
    power = 0.5 if lora_config.rank_stabilized else 1.0
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "inference_mode": True,
        "r": lora_config.rank,
        "lora_alpha": lora_config.alpha,
        "use_rslora": lora_config.rank_stabilized,
        "lora_dropout": lora_config.dropout,
        "rank_pattern": {targets[module]: ranks[module] for module in growth},
        "alpha_pattern": {targets[module]: lora_config.alpha * growth[module] ** power for module in growth},
        "target_modules": sorted(set(targets.values())),
        "fan_in_fan_out": family.input_major,
        "bias": "none",
    }


def _fuse(config: ModelConfig, pairs: Mapping[str, Params], present: Sequence[str]) -> dict[str, Params]:
    """q, k and v with one A between them: the one they share, or all side by side with B's block-diagonal."""
    a = [pairs[name]["a"] for name in present]
    if len(present) == 3 and all(np.array_equal(a[0], other) for other in a[1:]):
        return {name: pairs[name] for name in present}
    rank, like = a[0].shape[-1], pairs[present[0]]
    none = jnp.zeros_like(like["a"])
    wide = jnp.concatenate([pairs[name]["a"] if name in present else none for name in ("q", "k", "v")], axis=-1)
    fused = {}
    for index, name in enumerate(("q", "k", "v")):
        b = jnp.zeros((config.num_layers, 3 * rank, config.projections[name][1]), like["b"].dtype)
        if name in present:
            b = b.at[:, index * rank : (index + 1) * rank].set(pairs[name]["b"])
        fused[name] = {"a": wide, "b": b}
    return fused


def _target_names(family: Family, modules: tuple[str, ...]) -> dict[str, str]:
    """Module -> the shortest end of its name in the family that no other module shares."""
    names = {}
    for module in modules:
        path = family.modules[module]
        short = path.rsplit(".", 1)[-1]
        others = (other for name, other in family.modules.items() if name not in modules)
        ambiguous = any(other.endswith(f".{short}") for other in others if other != path)
        names[module] = ".".join(path.split(".")[-2:]) if ambiguous else short
    return names


def export_merged(
    folder: str | pathlib.Path,
    config: ModelConfig,
    params: Params,
    lora: Lora,
    model_type: str,
    settings: Mapping[str, Any] | None = None,
) -> None:
    """Writes base and adapter as one model without an adapter, which transformers and others load.

    A tied head that the adapter changes becomes a head of its own.

    Raises:
        ValueError: the family cannot express the result.
    """
    if lora.head is not None and config.tied_head:
        config = dataclasses.replace(config, tied_head=False)
        params = {**params, "head": {"kernel": params["embed"]["tokens"].T}}
    save_model(folder, config, merge_lora(config, params, lora), model_type, settings)
