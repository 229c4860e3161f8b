"""Where activations live on a mesh of (data, fsdp, tensor) devices: their rows over data and fsdp, always.

The weights' partitions are rules over a tree (`training/mesh.py`). Left to itself XLA lets them decide over the
activations too: a kernel stored in 8 parts over its inputs then means that every device computes all rows on an eighth
of the inputs and sums activations and logits over devices, instead of gathering the kernel, which is smaller. So rows
are pinned at every block, forward and (through the transpose of the constraint) backward. Tensor parallelism is left
to propagate from the weights.

The mesh is the ambient one (`jax.set_mesh`); without one nothing happens.
"""

import math

import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh, Mesh
from jax.sharding import PartitionSpec as P
from jaxtyping import Array

ROWS = ("data", "fsdp")
TENSOR = "tensor"

Axes = str | tuple[str, ...] | None


def constrain(x: Array, *spec: Axes) -> Array:
    """Pins the leading dimensions of `x`: to mesh axes, or (None) to be whole on every device.

    The dimensions behind them are left to the compiler, and so is one that its axes do not divide: a shared context
    of one row stays whole.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1:
        return x
    kept = [axes if size % parts_of(axes) == 0 else P.UNCONSTRAINED for size, axes in zip(x.shape, spec)]
    return jax.lax.with_sharding_constraint(x, P(*kept, *[P.UNCONSTRAINED] * (x.ndim - len(kept))))


def split_rows(x: Array) -> Array:
    """`x` with its leading dimension, rows, over data and fsdp."""
    return constrain(x, ROWS)


def parts_of(axes: Axes, mesh: Mesh | AbstractMesh | None = None) -> int:
    """Into how many parts a mesh, by default the ambient one, splits what lies over `axes`; 1 without a mesh.

    Raises:
        KeyError: the mesh has no such axis.
    """
    shape = (jax.sharding.get_abstract_mesh() if mesh is None else mesh).shape
    names = () if axes is None or not shape else (axes,) if isinstance(axes, str) else axes
    return math.prod(shape[name] for name in names)


def repeat_rows(x: Array, repeats: int) -> Array:
    """Every row `repeats` times, adjacent: what a query has in common, for each of its samples.

    A broadcast, where `jnp.repeat` may gather, which would bring all rows to every device.
    """
    return jnp.broadcast_to(x[:, None], (len(x), repeats, *x.shape[1:])).reshape(-1, *x.shape[1:])
