"""What an algorithm that trains a policy on a task is made of, and how a config names one."""

import dataclasses
from collections.abc import Callable
from typing import Any

from gfn_jax.interfaces import Algorithm, Reward
from gfn_jax.models.lora import LoraConfig
from gfn_jax.sections import Count


@dataclasses.dataclass(frozen=True)
class SamplingConfig:
    """What the section of every such algorithm has; its own fields come behind.

    Attributes:
        queries: Q, queries a step.
        samples: N, rows a query.
        micro_batches: parts of whole queries that a step is computed in, to bound memory.
    """

    queries: Count
    samples: Count
    micro_batches: Count

    def __post_init__(self):
        if self.queries % self.micro_batches:
            raise ValueError(f"queries is {self.queries}; they do not divide into {self.micro_batches} micro_batches")

    @property
    def fresh_samples(self) -> int:
        """Rows a query that are sampled anew."""
        return self.samples

    @property
    def first_update(self) -> int:
        """Steps that only collect, before the first that learns."""
        return 0

    @property
    def target_temperature(self) -> float:
        """T at the end of training: the policy is to sample in proportion to R^(1/T)."""
        return 1.0


@dataclasses.dataclass(frozen=True)
class Ingredients:
    """What a run has ready for its algorithm.

    Attributes:
        reward: log R of every prefix.
        lora: the adapter's shape, and the rate at which its inputs are dropped.
        remat: recompute activations in the backward pass.
        copies: how often a query's prompt is computed, each time for its share of the query's rows, so that all devices
            have as many.
        objective: the config's `Objective`, for an algorithm that asks for it; else None.
    """

    reward: Reward
    lora: LoraConfig
    remat: bool
    copies: int
    objective: Any


@dataclasses.dataclass(frozen=True)
class AlgorithmEntry:
    """What a config's `algorithm` names.

    What it trains has the policy's adapter as its `lora`: out of a checkpoint nothing else is read for sampling.

    Attributes:
        section: the name of its own section of a config.
        config: the dataclass that it is read into, a `SamplingConfig`.
        make: the algorithm, from its section and what the run has ready.
        objective: whether it minimises the config's `objective`.
    """

    section: str
    config: type[SamplingConfig]
    make: Callable[[Any, Ingredients], Algorithm]
    objective: bool = False
