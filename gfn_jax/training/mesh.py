"""Where arrays live: a mesh of (data, fsdp, tensor) devices, and rules from tree paths to partitions.

Rows of a batch go over data and fsdp together; weights are split over fsdp (memory) and tensor (arithmetic),
as in Megatron (Shoeybi et al. 2019, arXiv:1909.08053): columns of q, k, v, gate, up and rows of o, down over
tensor. The embedding is split over its vocabulary alone: XLA rematerialises it in full under other
layouts. Optimizer moments mirror the parameters, and a rule is matched against the end of a path, so
`opt_state/1/0/mu/layers/q/a` falls under the rule of `layers/q/a`.
"""

import dataclasses
import functools
import logging
import math
import re
from typing import Annotated

import jax
from jax.experimental.compilation_cache import compilation_cache
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from gfn_jax.models.partition import ROWS, TENSOR, parts_of
from gfn_jax.sections import Range
from gfn_jax.types import PyTree

Devices = Annotated[int, Range(-1, 2**20)]
AXES = (*ROWS, TENSOR)

Rules = tuple[tuple[str, P], ...]

BASE_RULES: Rules = (
    (r"\bembed/tokens$", P("tensor", None)),
    (r"\bembed/positions$", P()),
    (r"\blayers/(q|k|v|gate|up)/kernel(/codes|/scales)?$", P(None, "fsdp", "tensor")),
    (r"\blayers/(o|down)/kernel(/codes|/scales)?$", P(None, "tensor", "fsdp")),
    (r"\blayers/(q|k|v|gate|up)/kernel/scale$", P(None, None, "tensor")),  # int8: one an output
    (r"\blayers/(o|down)/kernel/scale$", P(None, None, "fsdp")),
    (r"\blayers/(q|k|v|gate|up)/bias$", P(None, "tensor")),
    (r"\blayers/(o|down)/bias$", P()),
    (r"norm/(scale|bias)$", P()),
    (r"\bhead/kernel$", P("fsdp", "tensor")),
    (r"\bhead/bias$", P("tensor")),
)
LORA_RULES: Rules = (
    (r"\blayers/(q|k|v|gate|up)/a$", P(None, "fsdp", None)),
    (r"\blayers/(q|k|v|gate|up)/b$", P(None, None, "tensor")),
    (r"\blayers/(o|down)/a$", P(None, "tensor", None)),
    (r"\blayers/(o|down)/b$", P(None, None, "fsdp")),
    (r"\bhead/a$", P("fsdp", None)),
    (r"\bhead/b$", P(None, "tensor")),
    (r"\blog_z(/\w+)?$", P()),
    (r"\blog_z$", P()),
    (r"\bvalue/\w+$", P()),
)
# What an algorithm remembers (a replay buffer) has the table of queries for its leading axis: it grows with the data.
MEMORY_RULES: Rules = ((r"^memory/", P(ROWS)),)
RULES: Rules = (*BASE_RULES, *LORA_RULES, *MEMORY_RULES)
# To end a list with, for trees of which most leaves are small (a run's constants); a state's must be named.
REST_REPLICATED: Rules = ((r"", P()),)
WORTH_A_WARNING = 2**20  # numbers in an array: a smaller one is as well whole on every device

_log = logging.getLogger("gfn_jax")


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """Devices an axis; -1 (at most once) takes what the other two leave.

    Attributes:
        data: copies of the weights, each with its own rows.
        fsdp: parts that the weights are stored in, each with its own rows.
        tensor: parts that each matrix product is split in.
    """

    data: Devices = -1
    fsdp: Devices = 1
    tensor: Devices = 1


def mesh_sizes(config: MeshConfig, devices: int) -> tuple[int, ...]:
    """Devices an axis, with -1 filled in.

    Raises:
        ValueError: a size that is neither positive nor -1, or -1 twice.
    """
    sizes = [config.data, config.fsdp, config.tensor]
    if sizes.count(-1) > 1 or any(size < 1 and size != -1 for size in sizes):
        raise ValueError(f"mesh {_asked(config)}: sizes must be positive, and at most one may be -1")
    if -1 in sizes:
        sizes[sizes.index(-1)] = max(devices // math.prod(size for size in sizes if size != -1), 1)
    return tuple(sizes)


def make_mesh(config: MeshConfig, devices: list[jax.Device] | None = None) -> Mesh:
    """The mesh of `devices` (all of them by default), its axes automatic: XLA places what no rule names.

    Raises:
        ValueError: the sizes do not multiply to the number of devices.
    """
    devices = list(jax.devices()) if devices is None else devices
    sizes = mesh_sizes(config, len(devices))
    if math.prod(sizes) != len(devices):
        raise ValueError(f"mesh {_asked(config)} does not fit {len(devices)} devices: the sizes must multiply to that")
    return jax.make_mesh(sizes, AXES, axis_types=(AxisType.Auto,) * len(AXES), devices=devices)


def use_mesh(config: MeshConfig) -> Mesh:
    """The mesh of all devices, from here on the process's own: `models.partition` keeps rows split over it.

    Raises:
        ValueError: the sizes do not multiply to the number of devices.
    """
    mesh = make_mesh(config)
    jax.set_mesh(mesh)
    if mesh.size > 1 and jax.default_backend() == "cpu":
        keep_no_programs()
    return mesh


def keep_no_programs() -> None:
    """From here on jax reads no compiled program from disk, and writes none.

    What a program of several CPUs sends is sent in one order by all. XLA (jaxlib 0.10.2) holds a program to it that it
    has just compiled, but not the same program read back, which may wait for ever in its first step.
    """
    jax.config.update("jax_enable_compilation_cache", False)
    compilation_cache.reset_cache()  # which asks the flag once


def processes_of_cpus() -> bool:
    """Whether several processes compute on CPUs, which send to each other by Gloo."""
    return jax.process_count() > 1 and jax.default_backend() == "cpu"


def abstract_mesh(config: MeshConfig) -> AbstractMesh:
    """The mesh without its devices, to plan for machines that are not here; -1 counts those that are."""
    return AbstractMesh(mesh_sizes(config, jax.device_count()), AXES)


def partition(path: str, shape: tuple[int, ...], mesh: Mesh | AbstractMesh, rules: Rules) -> P:
    """The partition of one array: the first rule found in its path, less the axes that do not divide it.

    Args:
        path: its place in the tree, joined by `/`.
        shape: its shape; scalars are replicated without a rule.
        mesh: the devices.
        rules: (regular expression, partition) pairs; the first that is found in the path counts.

    Raises:
        ValueError: no rule covers the path, or the rule has more dimensions than the array.
    """
    if not shape:
        return P()
    spec = next((spec for pattern, spec in rules if re.search(pattern, path)), None)
    if spec is None:
        raise ValueError(f"no sharding rule covers {path!r} of shape {shape}; add one to the rules")
    if len(spec) > len(shape):
        raise ValueError(f"the sharding rule {spec} has more dimensions than {path!r} of shape {shape}")
    kept = []
    for size, axes in zip(shape, spec):
        parts = parts_of(axes, mesh)
        if size % parts:
            _log_dropped(path, shape, size, axes, parts)
            axes = None
        kept.append(axes)
    return P(*kept)


def bytes_per_device(tree: PyTree, mesh: Mesh | AbstractMesh, rules: Rules = RULES) -> int:
    """What each device holds of `tree` (arrays or shapes) under the rules.

    Raises:
        ValueError: a leaf that no rule covers.
    """
    total = 0
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        spec = partition(name, leaf.shape, mesh, rules)
        total += nbytes(leaf) // math.prod(parts_of(axes, mesh) for axes in spec)
    return total


def nbytes(tree: PyTree) -> int:
    """Bytes of all leaves (arrays or shapes)."""
    return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def shardings(tree: PyTree, mesh: Mesh, rules: Rules = RULES) -> PyTree:
    """A `NamedSharding` for every leaf of `tree` (arrays or shapes), for `jax.device_put` and `jax.jit`.

    Raises:
        ValueError: a leaf that no rule covers.
    """

    def one(path: tuple, leaf) -> NamedSharding:
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        return NamedSharding(mesh, partition(name, leaf.shape, mesh, rules))

    return jax.tree_util.tree_map_with_path(one, tree)


def place(tree: PyTree, placement: PyTree) -> PyTree:
    """Puts every array where `placement` (shardings, or one for all) says.

    With several processes each must hold the same values; `jax.device_put` does not reach another's devices.
    """
    if jax.process_count() == 1:
        return jax.device_put(tree, placement)
    return jax.jit(lambda whole: whole, out_shardings=placement)(tree)


def replicated(mesh: Mesh) -> NamedSharding:
    """The same array on every device."""
    return NamedSharding(mesh, P())


def check_rows(rows: int, mesh: Mesh | AbstractMesh, what: str = "batch") -> None:
    """Raises ValueError where `rows` do not divide over the devices that share them."""
    parts = parts_of(ROWS, mesh)
    if rows % parts:
        raise ValueError(
            f"a {what} of {rows} does not divide over {parts} devices (data={mesh.shape['data']} x "
            f"fsdp={mesh.shape['fsdp']}); make it a multiple of {parts} or give those axes fewer devices"
        )


def _asked(config: MeshConfig) -> str:
    return " x ".join(f"{axis}={size}" for axis, size in dataclasses.asdict(config).items())


@functools.cache  # says it once, however often the tree is looked at
def _log_dropped(path: str, shape: tuple[int, ...], size: int, axes: str | tuple[str, ...], parts: int) -> None:
    level = logging.WARNING if math.prod(shape) >= WORTH_A_WARNING else logging.DEBUG
    _log.log(level, "%s: a dimension of %d does not divide by %s=%d and is not split", path, size, axes, parts)
