"""AdamW with a clipped gradient, and the schedules of a run as pure functions of the step.

Loshchilov & Hutter 2019 (arXiv:1711.05101). The learning rate of step t (counted from 0), with w warm-up
steps of n in all, p = clip((t - w) / (n - w), 0, 1) and f the final fraction:

    rate(t) = learning_rate · min(1, (t + 1) / w) · decay(p)
    decay   = 1 | f + (1 - f)(1 - p) | f + (1 - f)(1 + cos πp) / 2      (constant, linear, cosine)

The step is traced, so a run is one compiled program whatever its schedules say.
"""

import dataclasses
from typing import Annotated, Literal

import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from gfn_jax.sections import Count, Natural, Nonnegative, Positive, Range, Share

# Beyond it 1 - b^t is 0 in float32, and the first update 0 / 0.
Decay = Annotated[float, Range(0, 0.999999)]


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """What `make_optimizer` needs.

    Attributes:
        learning_rate: the peak.
        total_steps: where the decay ends (n); later steps stay at its end.
        warmup_steps: steps of linear rise (w); the first step already moves.
        decay: shape of the fall after the warm-up.
        final_fraction: share of the peak left at the end (f).
        b1: decay of the mean gradient.
        b2: decay of the mean square.
        eps: added to the root of the mean square.
        weight_decay: share of a parameter taken off a step, times the learning rate.
        clip_norm: greatest global norm of a gradient; None leaves it alone.
    """

    learning_rate: Nonnegative
    total_steps: Count
    warmup_steps: Natural = 0
    decay: Literal["constant", "linear", "cosine"] = "cosine"
    final_fraction: Share = 0.0
    b1: Decay = 0.9
    b2: Decay = 0.999
    eps: Annotated[float, Range(1e-30, 1000)] = 1e-8  # 0 would make 0 / 0 of a gradient that is 0
    weight_decay: Nonnegative = 0.0
    clip_norm: Positive | None = 1.0

    def __post_init__(self):
        if not 0 <= self.warmup_steps < self.total_steps:
            raise ValueError(
                f"warmup_steps is {self.warmup_steps}; it must be less than the steps that are learnt in, "
                f"{self.total_steps}"
            )


def learning_rate(config: OptimizerConfig, step: Int[Array, ""] | int) -> Float[Array, ""]:
    """The rate of the step after `step` finished ones."""
    done = jnp.asarray(step, jnp.float32)
    rise = jnp.minimum(1.0, (done + 1) / max(config.warmup_steps, 1))
    share = jnp.clip((done - config.warmup_steps) / (config.total_steps - config.warmup_steps), 0.0, 1.0)
    fall = {
        "constant": jnp.ones(()),
        "linear": config.final_fraction + (1 - config.final_fraction) * (1 - share),
        "cosine": config.final_fraction + (1 - config.final_fraction) * (1 + jnp.cos(jnp.pi * share)) / 2,
    }[config.decay]
    return config.learning_rate * rise * fall


def make_optimizer(config: OptimizerConfig) -> optax.GradientTransformation:
    """Clipping by the global norm, then AdamW at the scheduled rate."""
    clip = optax.identity() if config.clip_norm is None else optax.clip_by_global_norm(config.clip_norm)
    adam = optax.adamw(
        lambda count: learning_rate(config, count),
        b1=config.b1,
        b2=config.b2,
        eps=config.eps,
        weight_decay=config.weight_decay,
    )
    return optax.chain(clip, adam)
