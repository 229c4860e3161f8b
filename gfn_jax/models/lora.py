"""The adapter: low-rank maps in a tree of their own, beside the frozen base.

Hu et al. 2021 (arXiv:2106.09685): y = x W + (alpha / r) x A B with B = 0 at the start, so that a new adapter
is the base exactly; rank-stabilised (Kalajdzievski 2023, arXiv:2312.03732) scales by alpha / sqrt(r).
"""

import dataclasses
import math
from typing import Annotated

import jax
import jax.numpy as jnp
from flax import struct

from gfn_jax.models.config import ModelConfig
from gfn_jax.models.quantize import is_quantized
from gfn_jax.sections import Positive, Range
from gfn_jax.types import Params


@dataclasses.dataclass(frozen=True)
class LoraConfig:
    """Rank, scale and targets of an adapter.

    Attributes:
        rank: r.
        alpha: numerator of the scale.
        targets: projections of the block (`q k v o gate up down`) and perhaps `head`.
        dropout: rate at which the adapter's inputs are dropped while training.
        rank_stabilized: scale by alpha / sqrt(r) instead of alpha / r.
    """

    rank: Annotated[int, Range(1, 16384)]
    alpha: Positive
    targets: tuple[str, ...]
    dropout: Annotated[float, Range(0, 1, below=True)] = 0.0
    rank_stabilized: bool = False

    @property
    def scale(self) -> float:
        """The factor on A B."""
        return self.alpha / (math.sqrt(self.rank) if self.rank_stabilized else self.rank)


@struct.dataclass
class Lora:
    """Adapter weights: `layers[name]` has `a` [L, I, r] and `b` [L, r, O]; `head` the same without L, or None."""

    layers: dict[str, Params]
    head: Params | None
    scale: float = struct.field(pytree_node=False)


def check_targets(config: ModelConfig, targets: tuple[str, ...]) -> None:
    """Raises ValueError where a target is no projection of the model."""
    allowed = (*config.projections, "head")
    for name in targets:
        if name not in allowed:
            raise ValueError(f"unknown LoRA target {name!r}; this model has {', '.join(allowed)}")
    if not targets:
        raise ValueError(f"LoRA needs at least one target of {', '.join(allowed)}")


def init_lora(key: jax.Array, config: ModelConfig, lora: LoraConfig, dtype=jnp.float32) -> Lora:
    """A new adapter: A uniform in +-1/sqrt(inputs) (Kaiming, a = sqrt 5), B zero.

    Raises:
        ValueError: a target that the model has not, or a rank below one.
    """
    check_targets(config, lora.targets)
    if lora.rank < 1:
        raise ValueError(f"LoRA rank must be at least 1, not {lora.rank}")

    def pair(key: jax.Array, stack: tuple[int, ...], inputs: int, outputs: int) -> Params:
        bound = 1 / math.sqrt(inputs)
        a = jax.random.uniform(key, (*stack, inputs, lora.rank), dtype, -bound, bound)
        return {"a": a, "b": jnp.zeros((*stack, lora.rank, outputs), dtype)}

    keys = jax.random.split(key, len(config.projections) + 1)
    layers = {
        name: pair(keys[i], (config.num_layers,), *config.projections[name])
        for i, name in enumerate(config.projections)
        if name in lora.targets
    }
    head = pair(keys[-1], (), config.width, config.vocab_size) if "head" in lora.targets else None
    return Lora(layers=layers, head=head, scale=lora.scale)


def merging_pays(params: Params, lora: Lora, tokens: int) -> bool:
    """Whether so many tokens are read with fewer operations once W + scale A B is made of the layers' kernels.

    Made, it costs r I O products a kernel; left alone, r (I + O) a token, in thin products besides. Of float32 kernels
    only: rounded to bfloat16, W + scale A B would be W where the adapter is small, and nothing is added to codes.
    """
    kernels = [params["layers"][name]["kernel"] for name in lora.layers]
    if is_quantized(params) or not kernels or any(kernel.dtype != jnp.float32 for kernel in kernels):
        return False
    sizes = [kernel.shape[-2:] for kernel in kernels]
    return sum(i * o for i, o in sizes) <= tokens * sum(i + o for i, o in sizes)


def merge_lora(config: ModelConfig, params: Params, lora: Lora) -> Params:
    """The base with the adapter added in: the same model without one.

    A tied head becomes a head of its own if the adapter changes it; the caller's config must then be untied.

    Raises:
        ValueError: an adapter on a tied head, or a quantised base.
    """
    if is_quantized(params):
        raise ValueError("an adapter cannot be merged into a quantised base; load the base with quantize=none")
    if lora.head is not None and config.tied_head:
        raise ValueError("an adapter on a tied output head cannot be merged; untie the head first")
    layers = dict(params["layers"])
    for name, pair in lora.layers.items():
        delta = lora.scale * jnp.einsum("lir,lro->lio", pair["a"], pair["b"])
        kernel = layers[name]["kernel"]
        layers[name] = {**layers[name], "kernel": (kernel.astype(jnp.float32) + delta).astype(kernel.dtype)}
    merged = {**params, "layers": layers}
    if lora.head is not None:
        kernel = params["head"]["kernel"]
        delta = lora.scale * lora.head["a"] @ lora.head["b"]
        merged["head"] = {**params["head"], "kernel": (kernel + delta).astype(kernel.dtype)}
    return merged
