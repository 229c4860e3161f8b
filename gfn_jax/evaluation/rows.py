"""An evaluation's rows: in parts of one shape (one compilation), over the devices that share the rows of a step.

Those devices are read off the weights. What fills up a part comes behind its real rows and repeats the last of them;
what is drawn for a row depends on its place alone, so any number of devices finds the same.
"""

import logging
import math
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec

from gfn_jax.models.partition import ROWS, parts_of
from gfn_jax.types import PyTree

_log = logging.getLogger("gfn_jax")


def parts(rows: PyTree, size: int, weights: PyTree, copies: int = 1) -> Iterator[tuple[PyTree, int]]:
    """Parts of `size` rows, and how many of each are real.

    Args:
        rows: arrays with one leading axis, M rows.
        size: of a part, before it is filled up: the last to its length, each to a multiple of the devices.
        weights: a model, or its parameters, that it will be used with.
        copies: how often each row stands there, adjacent (see `copies_of`).
    """
    count = len(jax.tree.leaves(rows)[0])
    size = min(size, count)
    for begin in range(0, count, size):
        index = np.minimum(np.arange(begin, begin + size), count - 1).repeat(copies)
        index = np.pad(index, (0, -len(index) % _devices(weights)), mode="edge")
        part = jax.tree.map(lambda x, index=index: np.asarray(x)[index], rows)
        yield spread(part, weights), min(size, count - begin)
        _log.debug("evaluating", extra={"place": (min(begin + size, count), count)})


def copies_of(size: int, samples: int, weights: PyTree) -> int:
    """How many devices share the samples of a prompt where a part has fewer prompts than there are devices; else 1."""
    devices = _devices(weights)
    copies = devices // math.gcd(size, devices)
    return copies if size < devices and samples % copies == 0 else 1


def spread(rows: PyTree, weights: PyTree) -> PyTree:
    """Host arrays on the devices, a share of the rows on each; the rows are a multiple of the devices."""
    mesh = _mesh(weights)
    if mesh is None:
        return jax.tree.map(jnp.asarray, rows)
    sharding = NamedSharding(mesh, PartitionSpec(ROWS))
    return jax.tree.map(lambda x: jax.make_array_from_callback(x.shape, sharding, lambda place: x[place]), rows)


def gather(tree: PyTree) -> PyTree:
    """Device arrays as whole host arrays, wherever their shards lie; every process must ask."""
    if jax.process_count() == 1:
        return jax.device_get(tree)
    return multihost_utils.process_allgather(tree, tiled=True)


def _devices(weights: PyTree) -> int:
    mesh = _mesh(weights)
    return 1 if mesh is None else parts_of(ROWS, mesh)


def _mesh(weights: PyTree) -> Mesh | AbstractMesh | None:
    """The mesh of the weights, if it has more than one device."""
    sharding = jax.tree.leaves(weights)[0].sharding
    return sharding.mesh if isinstance(sharding, NamedSharding) and sharding.mesh.size > 1 else None
