"""What a run says of itself before it loads anything: how large its model is, and where it will lie."""

import logging
import math

import jax
from jax.sharding import AbstractMesh, Mesh

from gfn_jax.models.config import ModelConfig
from gfn_jax.models.decoder import init_params
from gfn_jax.models.lora import LoraConfig, init_lora
from gfn_jax.types import PyTree

_log = logging.getLogger("gfn_jax")


def announce(model: ModelConfig, lora: LoraConfig | None, mesh: Mesh | AbstractMesh | None = None) -> None:
    """A line on a run's model and its devices; shapes alone are looked at.

    Args:
        model: the base's shape.
        lora: the adapter's settings, or None where all weights are trained.
        mesh: the devices, or None for the first alone.
    """
    key = jax.random.key(0)
    trained = "all of them trained"
    if lora is not None:
        adapter = jax.eval_shape(lambda key: init_lora(key, model, lora), key)
        trained = f"an adapter of {count(adapter):,} (rank {lora.rank})"
    axes = "" if mesh is None else f", mesh {' x '.join(f'{axis}={size}' for axis, size in mesh.shape.items())}"
    devices, kind = 1 if mesh is None else mesh.size, jax.devices()[0].device_kind
    whole = count(jax.eval_shape(lambda key: init_params(key, model), key))
    _log.info("%s parameters, %s; %d x %s%s", f"{whole:,}", trained, devices, kind, axes)


def count(tree: PyTree) -> int:
    """Numbers in all leaves."""
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))
