"""Bytes that a step sends between devices, from its shapes and the sharding rules alone; no device need exist.

What XLA makes of `training/mesh.py` and `models/partition.py`, S being bytes and rings sending them:

    fsdp     every pass over the layers gathers each layer's kernels and its adapter: all-gather, S (f - 1) / f; an
             untied head is gathered once a pass
    tensor   forward, what comes out of o and down is summed, and an embedding that is looked up; backward, the
             gradient of what goes into q, k, v, gate and up, and into the head: all-reduce, 2 S (t - 1) / t, of the
             rows that the device works on
    rows     the adapter's gradient of every pass is summed over data x fsdp: all-reduce, 2 S (n - 1) / n

What an adapter's products sum is counted beside, in rank r. Left out: sums of single numbers a row (softmax, losses,
metrics), and what XLA moves to change a layout. Beside a compiled step on eight virtual devices the sum is within a
fifth (tests/training/test_collectives.py). Where an all-reduce's result is split again, XLA may send half of it
(reduce-scatter).
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from gfn_jax.algorithms.on_task import OnPolicy
from gfn_jax.commands.plan import gathered, merges, read_again, reward_passes
from gfn_jax.models.config import ModelConfig, Remat
from gfn_jax.models.flops import StepShape
from gfn_jax.models.lora import LoraConfig
from gfn_jax.models.partition import ROWS, parts_of
from gfn_jax.policy.constraint import Constants
from gfn_jax.training.mesh import bytes_per_device
from gfn_jax.types import Params, PyTree, TrainState

Sent = dict[str, float]  # kind of collective -> bytes that a device sends


@dataclasses.dataclass(frozen=True)
class Traffic:
    """What passes over a model's layers send, a device.

    Attributes:
        model: its shape.
        lora: the adapter's settings, or None.
        params: the base's weights, as shapes.
        trainable: what is trained, as shapes.
        dtype: of activations.
        mesh: the devices.
    """

    model: ModelConfig
    lora: LoraConfig | None
    params: Params
    trainable: PyTree
    dtype: jnp.dtype
    mesh: jax.sharding.AbstractMesh

    @property
    def rows(self) -> int:
        """Devices that share the rows out."""
        return parts_of(ROWS, self.mesh)

    def layers(self, passes: int, adapter: bool = True) -> Sent:
        """Kernels, and perhaps the adapter, gathered for so many passes."""
        trees = [{"layers": self.params["layers"]}, *([{"trainable": self.trainable}] if adapter else [])]
        return {"all-gather": float(passes * sum(self._missing(tree) for tree in trees))}

    def head(self, passes: int, columns: int) -> Sent:
        """An untied head's columns, gathered for so many passes."""
        missing = self._missing({"head": self.params["head"]}) if "head" in self.params else 0
        return {"all-gather": passes * missing * columns / self.model.vocab_size}

    def forward(self, tokens: int, adapter: bool = True, embedded: bool = True) -> Sent:
        """Sums over the tensor axis of a pass over so many tokens, on all devices together."""
        out = tuple(name for name in ("o", "down") if name in self.params["layers"])
        width = self.model.num_layers * self._width(out, adapter) + embedded * self.model.width
        return self._summed(tokens * width)

    def backward(self, tokens: int, states: int, adapter: bool = True) -> Sent:
        """The same of the pass back, whose head is read at so many states."""
        into = ("q", "k", "v", *(("gate",) if self.model.gated_mlp else ()), "up")
        width = self.model.num_layers * self._width(into, adapter)
        return self._summed(tokens * width + states * self._width(("head",), adapter))

    def gradient(self) -> Sent:
        """What is trained, summed over rows."""
        size = bytes_per_device({"trainable": self.trainable}, gathered(self.mesh))
        return {"all-reduce": _ring(self.rows) * size}

    def again(self, remat: Remat) -> "Traffic":
        """The same over those projections alone that the backward pass computes again."""
        return dataclasses.replace(self, params={**self.params, "layers": read_again(self.params, remat)})

    def _missing(self, tree: PyTree) -> int:
        """Bytes of a tree, as a pass uses it, that a device does not hold."""
        return bytes_per_device(tree, gathered(self.mesh)) - bytes_per_device(tree, self.mesh)

    def _width(self, names: tuple[str, ...], adapter: bool) -> int:
        targets = self.lora.targets if self.lora is not None and adapter else ()
        rank = 0 if self.lora is None else self.lora.rank
        return sum(self.model.width + rank * (name in targets) for name in names)

    def _summed(self, numbers: int) -> Sent:
        return {"all-reduce": _ring(self.mesh.shape["tensor"]) * numbers * self.dtype.itemsize / self.rows}


def sent(
    algorithm: Any,
    constants: Constants,
    state: TrainState,
    shape: StepShape,
    passes: int,
    mesh: jax.sharding.AbstractMesh,
) -> dict[str, Sent]:
    """Part of a step, as `budget.step_flops` has them -> kind -> bytes that a device sends.

    Args:
        algorithm: one that says what it was given.
        constants: of the run, as shapes.
        state: likewise.
        shape: the step's sizes.
        passes: of the reward over the base.
        mesh: the devices.
    """
    sampling, params = algorithm.given.sampling, constants.base.params
    dtype = params["embed"]["tokens"].dtype
    of = Traffic(constants.base.shape, algorithm.given.lora, params, state.trainable, dtype, mesh)
    parts, length, prompts = sampling.micro_batches, shape.horizon - 1, shape.queries * shape.prompt
    found: dict[str, Sent] = {}
    if isinstance(algorithm, OnPolicy):
        fresh = shape.queries * sampling.fresh_samples
        packed = shape.queries * shape.context + fresh * (length + shape.horizon * (shape.answer - 1))
        beside = not merges(algorithm, constants, state, shape)
        scored, again = shape.rows * length + prompts, parts * algorithm.frozen_scores
        found = {
            "rollout": total(  # the last two columns are not read
                of.layers(parts * (shape.horizon - 1), beside),
                of.head(parts, shape.allowed),
                of.forward(prompts + fresh * (length - 1), beside),
            ),
            "reward": total(
                of.layers(passes * reward_passes(algorithm, shape, mesh), adapter=False),
                of.head(parts * passes, of.model.vocab_size),
                of.forward(passes * packed, adapter=False),
            ),
            "scores without gradient": total(
                of.layers(2 * again), of.head(again, shape.allowed), of.forward(algorithm.frozen_scores * scored)
            ),
        }
        found = {part: {k: size / algorithm.updates for k, size in one.items()} for part, one in found.items()}
    learnt = shape.queries * getattr(algorithm, "learnt_samples", shape.samples)
    tokens = prompts + learnt * length
    found["score, update"] = total(
        of.layers(4 * parts),
        of.head(parts, shape.allowed),
        of.forward(tokens),
        of.backward(tokens, learnt * shape.horizon),
        *[of.gradient()] * 2 * parts,  # of the prompts' pass and of the rest's
    )
    again = of.again(algorithm.given.remat)
    found["recomputed"] = total(again.layers(2 * parts), again.forward(tokens, embedded=False))
    return found


def total(*several: Mapping[str, float]) -> Sent:
    """Kind by kind; what is nothing is left out."""
    kinds = {kind for one in several for kind in one}
    sums = {kind: sum(one.get(kind, 0.0) for one in several) for kind in sorted(kinds)}
    return {kind: size for kind, size in sums.items() if size}


def _ring(devices: int) -> float:
    """What a device sends of each byte that is summed."""
    return 2 * (devices - 1) / devices
