"""Where a run's arrays lie: a base's weights as they are read, and everything else."""

import pathlib

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from gfn_jax.models.checkpoint import load_model
from gfn_jax.models.config import Attention, BaseModelConfig, ModelConfig
from gfn_jax.models.language_model import LanguageModel
from gfn_jax.models.quantize import Kind
from gfn_jax.training import mesh as meshes
from gfn_jax.types import PyTree


def load_base(
    folder: pathlib.Path,
    dtype: DTypeLike,
    mesh: jax.sharding.Mesh,
    quantize: Kind = "none",
    attention: Attention = "xla",
) -> LanguageModel:
    """A model on a mesh, each part of it read where it will lie, and quantised there.

    Raises:
        ValueError, OSError: what is wrong with the folder, in one line.
    """
    shape, params = load_model(folder, jnp.dtype(dtype), lambda tree: meshes.shardings(tree, mesh), quantize)
    return LanguageModel(shape, params, attention=attention)


def check_attention(
    settings: BaseModelConfig, model: ModelConfig, mesh: jax.sharding.Mesh | jax.sharding.AbstractMesh
) -> None:
    """Raises ValueError where the kernel that is asked for is not for this model, or not for these devices."""
    if settings.attention == "xla":
        return
    devices = list(mesh.devices.flat) if isinstance(mesh, jax.sharding.Mesh) else []
    kinds = sorted({device.platform for device in devices} - {"gpu"})
    old = any(float(getattr(device, "compute_capability", 0)) < 9 for device in devices)
    needs = {
        f"an NVIDIA GPU; these devices are {', '.join(kinds)}": bool(kinds),
        "model.dtype=bfloat16 or float16": settings.dtype == "float32",
        "attention without a soft cap": model.attention_softcap is not None,
        f"heads of {128 if old else 256} numbers at most, a multiple of 8; this model's have {model.head_dim}": (
            model.head_dim > (128 if old else 256) or model.head_dim % 8 > 0
        ),
    }
    for need, lacking in needs.items():
        if lacking:
            raise ValueError(f"model.attention is {settings.attention!r}, which needs {need}")


def place(tree: PyTree, mesh: jax.sharding.Mesh) -> PyTree:
    """Every array where the sharding rules put it."""
    return meshes.place(tree, meshes.shardings(tree, mesh, (*meshes.RULES, *meshes.REST_REPLICATED)))
