"""Between two layouts of a parameter: stacked over layers in memory, one tensor a layer in a file."""

from collections.abc import Mapping

import jax
import numpy as np
from jax.typing import DTypeLike

from gfn_jax.models.families.family import Path, Source
from gfn_jax.models.tensor_files import TensorFiles

Parts = list[tuple[Path, int, Source]]  # parameter, layer, where it lies


def read_shard(
    files: TensorFiles, source: Source, outputs: int, index: tuple[slice, ...], dtype: DTypeLike
) -> np.ndarray:
    """The part `index` of a parameter, reading no more of the files than it needs.

    Args:
        files: what holds the parameter.
        source: where it lies in them.
        outputs: size of the whole parameter's last axis.
        index: bounds on every axis of the parameter.
        dtype: of the result.

    Raises:
        ValueError: a number that is not finite, in the file or in `dtype`.
    """
    shard = np.empty([part.stop - part.start for part in index], dtype)
    layers, inner = (index[0], index[1:]) if source.stacked else (slice(0, 1), index)
    stack = shard if source.stacked else shard[None]
    for layer, name in zip(stack, source.names[layers], strict=True):
        view, filled = files.slices(name), 0
        for span in source.spans(inner[-1].start, inner[-1].stop, outputs):
            where = (*inner[:-1], span)
            columns = slice(filled, filled + span.stop - span.start)
            with np.errstate(over="ignore"):  # what becomes infinite in `dtype` is refused below
                layer[..., columns] = view[where[::-1]].T if source.transposed else view[where]
            filled = columns.stop
        if not np.isfinite(layer).all():
            raise ValueError(f"{files.path(name)}: tensor {name} holds NaN or infinity (read as {layer.dtype})")
    return shard


def whole(shape: tuple[int, ...]) -> tuple[slice, ...]:
    """The index of all of an array."""
    return tuple(slice(0, size) for size in shape)


def file_tensors(sources: Mapping[Path, Source]) -> dict[str, Parts]:
    """File tensor -> the parameters (and layer) it is made of, in the order of a fused tensor."""
    tensors: dict[str, Parts] = {}
    for path, source in sources.items():
        for layer, name in enumerate(source.names):
            tensors.setdefault(name, []).append((path, layer, source))
    return {name: sorted(parts, key=lambda part: part[2].fused or ()) for name, parts in tensors.items()}


def assemble(flat: Mapping[Path, jax.Array], parts: Parts) -> np.ndarray:
    """One tensor of a file, from the parameters it is made of."""
    pieces = [np.asarray(flat[path][layer] if source.stacked else flat[path]) for path, layer, source in parts]
    source, tensor = parts[0][2], pieces[0]
    if source.fused:
        grouped = [piece.reshape(*piece.shape[:-1], source.fused[0], -1) for piece in pieces]
        tensor = np.stack(grouped, axis=-2).reshape(*tensor.shape[:-1], -1)
    return np.ascontiguousarray(tensor.T if source.transposed else tensor)
