"""Where a run's arrays lie: a base's weights as they are read, and everything else."""

import pathlib

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from gfn_jax.models.checkpoint import load_model
from gfn_jax.models.language_model import LanguageModel
from gfn_jax.models.quantize import Kind
from gfn_jax.training import mesh as meshes
from gfn_jax.types import PyTree


def load_base(
    folder: pathlib.Path, dtype: DTypeLike, mesh: jax.sharding.Mesh, quantize: Kind = "none"
) -> LanguageModel:
    """A model on a mesh, each part of it read where it will lie, and quantised there.

    Raises:
        ValueError, OSError: what is wrong with the folder, in one line.
    """
    return LanguageModel(*load_model(folder, jnp.dtype(dtype), lambda tree: meshes.shardings(tree, mesh), quantize))


def place(tree: PyTree, mesh: jax.sharding.Mesh) -> PyTree:
    """Every array where the sharding rules put it."""
    return meshes.place(tree, meshes.shardings(tree, mesh, (*meshes.RULES, *meshes.REST_REPLICATED)))
