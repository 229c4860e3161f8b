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
import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from safetensors.numpy import save_file

from gfn_jax.models.checkpoint import save_model
from gfn_jax.models.config import ModelConfig
from gfn_jax.models.families import Family, family_of
from gfn_jax.models.families.family import Path, Source
from gfn_jax.models.lora import Lora, LoraConfig, merge_lora
from gfn_jax.models.stacking import assemble, file_tensors, read_shard, whole
from gfn_jax.models.tensor_files import TensorFiles, read_json
from gfn_jax.types import Params

WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"
ROOT = "base_model.model."

# What an adapter_config.json may say beside what is read here. `target_modules` and kin say what to build;
# the tensors that are there say what was built.
_HARMLESS = """
    auto_mapping base_model_name_or_path eva_config exclude_modules fan_in_fan_out inference_mode
    megatron_core peft_version qalora_group_size revision target_modules task_type
"""
HARMLESS = frozenset(_HARMLESS.split())
# Ways of initialising that leave the base as it was; others (PiSSA, OLoRA, CorDA, LoftQ) change it.
INITIALISATIONS = (True, False, "gaussian", "eva", "orthogonal")


def load_adapter(
    folder: str | pathlib.Path, config: ModelConfig, model_type: str, dtype: DTypeLike = jnp.float32
) -> tuple[LoraConfig, Lora]:
    """Reads an adapter for a base of that shape, onto the first device.

    Raises:
        ValueError: anything missing, damaged, made for another base, unknown or not implemented.
    """
    folder = pathlib.Path(folder)
    settings = _read_settings(folder)
    family = family_of(model_type)
    used, layers, head = set(), {}, None
    files = TensorFiles([folder / WEIGHTS])
    for module in (*config.projections, "head"):
        sources = _sources(family, config, module)
        if not any(name in files for name in sources["a"].names):
            continue
        pair = _read_pair(files, folder, sources, _size(config, module), dtype)
        pair = _rescale(pair, settings, [name.removesuffix(".lora_A.weight") for name in sources["a"].names])
        used |= {name for source in sources.values() for name in source.names}
        if module == "head":
            head = pair
        elif (own := _own_block(pair, sources["b"], settings["r"])) is not None:
            layers[module] = own
    _refuse_rest(files, folder, family, config, used)
    targets = (*layers, "head") if head else tuple(layers)
    if not targets:
        raise ValueError(f"{folder} holds no adapter weight")
    lora = LoraConfig(
        rank=settings["r"],
        alpha=float(settings["lora_alpha"]),
        targets=targets,
        dropout=settings["lora_dropout"],
        rank_stabilized=settings["use_rslora"],
    )
    return lora, jax.tree.map(jnp.asarray, Lora(layers=layers, head=head, scale=lora.scale))


def _read_settings(folder: pathlib.Path) -> dict[str, Any]:
    """What adapter_config.json says, with what is not implemented refused by name."""
    raw = read_json(folder, CONFIG)
    # PEFT's own defaults for what older files leave out.
    settings: dict[str, Any] = {
        "use_rslora": False,
        "lora_dropout": 0.0,
        "rank_pattern": {},
        "alpha_pattern": {},
    }
    settings |= {"bias": "none", "init_lora_weights": True, "peft_type": "LORA"}
    settings |= {name: value for name, value in raw.items() if value is not None}
    for name in ("r", "lora_alpha"):
        if name not in settings:
            raise ValueError(f"{folder / CONFIG} lacks {name!r}")
    allowed = {"peft_type": ("LORA",), "bias": ("none",), "init_lora_weights": INITIALISATIONS}
    read = {"r", "lora_alpha", "use_rslora", "lora_dropout", "rank_pattern", "alpha_pattern"}
    for name, value in settings.items():
        known = value in allowed[name] if name in allowed else not value or name in read | HARMLESS
        if not known:
            raise ValueError(f"{folder / CONFIG}: {name} = {value!r} is not implemented")
    return settings


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
    dtype: DTypeLike,
) -> dict[str, np.ndarray]:
    """A and B of one module, stacked over layers; the rank is the file's, the same in every layer."""
    present = next(name for name in sources["a"].names if name in files)
    rank = files.shape(present)[0]
    stack = (len(sources["a"].names),) if sources["a"].stacked else ()
    shapes = {"a": (*stack, size[0], rank), "b": (*stack, rank, size[1])}
    for letter, source in sources.items():
        for name in source.names:
            if name not in files:
                raise ValueError(f"{folder} has no tensor {name}: every layer must have one")
            try:
                files.check(name, source.shape(shapes[letter]))
            except ValueError as error:
                raise ValueError(f"{folder} was made for another base: {error}") from error
    return {
        letter: read_shard(files, source, shapes[letter][-1], whole(shapes[letter]), dtype)
        for letter, source in sources.items()
    }


def _rescale(pair: dict[str, np.ndarray], settings: Mapping[str, Any], modules: list[str]) -> dict[str, np.ndarray]:
    """Folds into B what a pattern makes of a module's scale, compared with the adapter's one scale."""

    def scale(rank: int, alpha: float) -> float:
        return alpha / (math.sqrt(rank) if settings["use_rslora"] else rank)

    def pattern(name: str, module: str, default: Any) -> Any:
        hits = (value for key, value in settings[name].items() if re.fullmatch(rf"(.*\.)?({key})", module))
        return next(hits, default)

    common = scale(settings["r"], settings["lora_alpha"])
    rank = pair["a"].shape[-1]
    factors = []
    for module in modules:
        expected = pattern("rank_pattern", module, settings["r"])
        if expected != rank:
            raise ValueError(f"{module} has rank {rank} where {CONFIG} says {expected}")
        factors.append(scale(rank, pattern("alpha_pattern", module, settings["lora_alpha"])) / common)
    if np.allclose(factors, 1.0, rtol=1e-12, atol=0.0):  # a float's noise in alpha must not touch the weights
        return pair
    per_layer = np.asarray(factors, np.float32).reshape(-1, 1, 1)
    b = (pair["b"] * (per_layer if pair["b"].ndim == 3 else per_layer[0])).astype(pair["b"].dtype)
    return {"a": pair["a"], "b": b}


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


def _refuse_rest(files: TensorFiles, folder: pathlib.Path, family: Family, config: ModelConfig, used: set[str]) -> None:
    """Raises on tensors that no module took, but for the copy of the base that PEFT writes with a head."""
    tokens, head = family.modules["tokens"], family.modules["head"]
    embedding = (config.vocab_size, config.width)
    copies: dict[str, tuple[int, ...]] = {f"{tokens}.weight": embedding, f"{head}.weight": embedding}
    copies[f"{head}.bias"] = embedding[:1]
    for name in sorted(set(files) - used):
        plain = name.removeprefix(ROOT).replace(".base_layer.", ".")
        if plain in copies:
            files.check(name, copies[plain])
        else:
            raise ValueError(f"{folder} has the tensor {name}, which adapts nothing that this base has")


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
    tensors = {name: assemble(flat, parts) for name, parts in file_tensors(sources).items()}
    save_file(tensors, folder / WEIGHTS, {"format": "pt"})


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
