"""What the estimates of every kind of run have in common: a model's shape, sizes, and how they are said."""

import dataclasses
import math
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
from jax.extend.core import Literal

from gfn_jax.algorithms.on_task import OnPolicy
from gfn_jax.evaluation.report import table
from gfn_jax.models.checkpoint import read_config
from gfn_jax.models.chips import CHIPS, Chip
from gfn_jax.models.config import KEPT, ModelConfig, Remat
from gfn_jax.models.families import read_settings
from gfn_jax.models.flops import StepShape
from gfn_jax.models.lora import merging_pays
from gfn_jax.models.partition import ROWS, parts_of
from gfn_jax.models.tensor_files import read_json
from gfn_jax.policy.constraint import Constants
from gfn_jax.rewards.posterior import layer_passes
from gfn_jax.text.loading import SHIPPED, load_tokenizer, model_folder
from gfn_jax.training.collectives import KINDS
from gfn_jax.training.mesh import AXES, nbytes
from gfn_jax.types import Params, PyTree, TrainState


def describe_model(path: str) -> tuple[ModelConfig, Any | None]:
    """A model's shape and, where it is at hand, its tokenizer: from a folder, the hub's cache, our notes or the hub.

    Raises:
        ValueError: none of them knows the model.
    """
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    folder = pathlib.Path(model_folder(path)).expanduser()
    if not folder.is_dir() and path.count("/") <= 1:
        cached = try_to_load_from_cache(path, "config.json")
        folder = pathlib.Path(cached).parent if isinstance(cached, str) else folder
    if folder.is_dir():
        try:
            tokenizer = load_tokenizer(folder)
        except FileNotFoundError:
            tokenizer = None
        return read_config(folder)[1], tokenizer
    notes = SHIPPED / "shapes"
    name = path.replace("/", "--") + ".json"
    if (notes / name).is_file():
        return read_settings(read_json(notes, name)), None
    try:
        return read_config(download_config(path))[1], None
    except (HFValidationError, HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        known = ", ".join(sorted(note.stem.replace("--", "/") for note in notes.glob("*.json")))
        raise ValueError(
            f"{path} is no folder and not in the hub's cache; shapes are known of {known}; "
            f"the hub: {str(error).strip().splitlines()[0]}"
        ) from error


def download_config(path: str) -> pathlib.Path:
    """The folder in the hub's cache that holds a model's config.json, a few kilobytes.

    Raises:
        OSError, ValueError: the hub cannot be asked, has no such model, or `path` is no name of one.
    """
    from huggingface_hub import hf_hub_download

    return pathlib.Path(hf_hub_download(path, "config.json")).parent


def left_behind(kept: Callable[..., Any], *given: PyTree) -> int:
    """Bytes of what `kept` returns, apart from what it was given; nothing is computed."""
    traced = jax.make_jaxpr(kept)(*given).jaxpr
    known = {*traced.invars, *traced.constvars}
    left = {var for var in traced.outvars if not isinstance(var, Literal) and var not in known}
    return sum(nbytes(var.aval) for var in left)


def tensor_share(model: ModelConfig, mesh: jax.sharding.AbstractMesh, visible: int) -> float:
    """The share of a token's activations on a device of a tensor group: only heads and inner values are cut.

    Args:
        model: its shape.
        mesh: the devices.
        visible: keys that a token looks at; a score, a weight and a gradient of each are a head's.
    """
    heads = 2 * (model.num_heads + model.num_kv_heads) * model.head_dim + 3 * model.num_heads * visible
    split = heads + (3 if model.gated_mlp else 2) * model.mlp_width
    whole = 4 * model.width
    return (split / mesh.shape["tensor"] + whole) / (split + whole)


def gathered(mesh: jax.sharding.AbstractMesh) -> jax.sharding.AbstractMesh:
    """The mesh as a layer's weights are divided over it while it is used."""
    alone = {axis: 1 if axis == "fsdp" else size for axis, size in mesh.shape.items()}
    return jax.sharding.AbstractMesh(tuple(alone.values()), AXES)


def read_again(params: Params, remat: Remat) -> Params:
    """What of the layers' weights the backward pass reads to compute activations again."""
    kept = KEPT.get(remat, ())
    return {name: weights for name, weights in params["layers"].items() if name not in kept}


def merges(algorithm: Any, constants: Constants, state: TrainState, shape: StepShape) -> bool:
    """Whether a micro-batch is sampled with the adapter merged into the layers' kernels (`policy.rollout`)."""
    sampling = algorithm.given.sampling
    tokens = shape.queries // sampling.micro_batches * sampling.fresh_samples * (shape.horizon - 1)
    return isinstance(algorithm, OnPolicy) and merging_pays(constants.base.params, state.trainable.lora, tokens)


def reward_passes(algorithm: Any, shape: StepShape, mesh: jax.sharding.AbstractMesh) -> int:
    """How often a step's rewards go through the layers of one base, at most."""
    rows = rewarded_at_once(algorithm, shape).rows // parts_of(ROWS, mesh)
    return algorithm.given.sampling.micro_batches * layer_passes(rows, shape.horizon, shape.answer)


def rewarded_at_once(algorithm: Any, shape: StepShape) -> StepShape:
    """The sizes of what one pass of a reward scores: the fresh rows of a micro-batch."""
    sampling = algorithm.given.sampling
    return dataclasses.replace(shape, queries=shape.queries // sampling.micro_batches, samples=sampling.fresh_samples)


def readable(size: float) -> str:
    """Bytes in decimal units."""
    power = min(int(math.log10(size) // 3), 4) if size >= 1 else 0
    return f"{size / 1000**power:.{0 if power == 0 else 2}f} {('B', 'kB', 'MB', 'GB', 'TB')[power]}"


def tables(mesh: Mapping[str, int], memory: Mapping[str, int], flops: Mapping[str, int]) -> list[str]:
    """Lines: bytes a device by kind, and operations a step by part, on all devices together."""
    devices, total = math.prod(mesh.values()), sum(flops.values())
    return [
        f"mesh: {' x '.join(f'{axis}={size}' for axis, size in mesh.items())}; memory a device:",
        *(f"  {kind:<15}{readable(size):>12}" for kind, size in memory.items()),
        f"  {'total':<15}{readable(sum(memory.values())):>12}",
        "matrix products a step:",
        *(f"  {part:<15}{size / 1e12:>9.3f} TFLOP" for part, size in flops.items()),
        f"  {'total':<15}{total / 1e12:>9.3f} TFLOP, {total / devices / 1e12:.3f} a device",
    ]


def exchanged(sent: Mapping[str, Mapping[str, float]]) -> list[str]:
    """Lines: bytes that a device sends to others a step, by kind of collective; none where nothing is sent."""
    kinds = [kind for kind in KINDS if any(one.get(kind) for one in sent.values())]
    if not kinds:
        return []
    rows = [(part, *(readable(one.get(kind, 0)) for kind in kinds)) for part, one in sent.items()]
    sums = (readable(sum(one.get(kind, 0) for one in sent.values())) for kind in kinds)
    lines = table(("", *kinds), [*rows, ("total", *sums)]).splitlines()
    return ["sent to other devices a step, by each (gfn_jax/commands/interconnect.py):", *("  " + x for x in lines)]


def least_seconds(
    chip: Chip,
    devices: int,
    flops: Mapping[str, int],
    traffic: Mapping[str, int],
    dtype: str,
    sent: Mapping[str, Mapping[str, float]],
) -> dict[str, float]:
    """Part of a step -> the least time that it takes on so many of a chip.

    Args:
        chip: what each device is.
        devices: that share the operations.
        flops: part -> operations, on all devices together.
        traffic: part -> bytes that each device reads and writes.
        dtype: of the products.
        sent: part -> kind of collective -> bytes that each device sends.
    """
    links = {part: sum(one.values()) for part, one in sent.items()}
    return {
        part: chip.seconds(count / devices, traffic.get(part, 0), dtype, links.get(part, 0.0))
        for part, count in flops.items()
    }


def times(
    mesh: Mapping[str, int],
    memory: Mapping[str, int],
    flops: Mapping[str, int],
    traffic: Mapping[str, int],
    dtype: str,
    steps: int | None,
    sent: Mapping[str, Mapping[str, float]],
) -> list[str]:
    """Lines: the least time of a step on each chip that is known by name, and of the run where its steps are known.

    Chips that cannot send to others are left out of a mesh of several.
    """
    devices, need = math.prod(mesh.values()), sum(memory.values())
    rows = []
    for chip in CHIPS:
        if devices > 1 and chip.link is None:
            continue
        parts = least_seconds(chip, devices, flops, traffic, dtype, sent)
        total = sum(parts.values())
        whole = () if steps is None else (duration(total * steps),)
        fits = "yes" if need <= chip.memory else f"no, {readable(chip.memory)}"
        rows.append((chip.name, *map(duration, (*parts.values(), total)), *whole, fits))
    whole = () if steps is None else (f"{steps} steps",)
    slower = "slower links between hosts or slices, " if devices > 1 else ""
    count = f"{devices} chips" if devices > 1 else "one chip"
    return [
        f"least time of a step on {count}, from peak figures (gfn_jax/models/chips.py): a bound, not a measurement",
        *("  " + line for line in table(("", *flops, "step", *whole, "fits"), rows).splitlines()),
        f"not counted: {slower}activations, compilation, evaluation",
    ]


def duration(seconds: float) -> str:
    """Of three digits, in a unit that suits."""
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60), ("s", 1), ("ms", 1e-3)):
        if seconds >= length:
            return f"{seconds / length:.3g} {unit}"
    return f"{seconds * 1e6:.3g} us"
