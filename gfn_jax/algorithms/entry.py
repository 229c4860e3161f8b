"""What an algorithm that trains a policy on a task is made of, and how a config names one."""

import dataclasses
import pathlib
from collections.abc import Callable
from typing import Any

from jaxtyping import Array, Bool

from gfn_jax.algorithms.sampling import Sampling
from gfn_jax.interfaces import Algorithm, Reward
from gfn_jax.models.config import CacheDtype, Remat
from gfn_jax.models.lora import LoraConfig
from gfn_jax.objectives import Objective
from gfn_jax.types import Query, Rollout


@dataclasses.dataclass(frozen=True)
class Ingredients:
    """What a run has ready for its algorithm.

    Attributes:
        reward: log R of every prefix.
        sampling: what a step samples.
        lora: the adapter's shape, and the rate at which its inputs are dropped.
        objective: the config's, for an algorithm that asks for it; else None.
        remat: which activations the backward pass computes again.
        cache_dtype: of the keys and values that fresh rows are sampled with; None for the model's own.
        copies: how often a query's prompt is computed, each time for its share of the query's rows, so that all devices
            have as many: more than once where queries are fewer than the devices that share them. Nothing that is
            drawn depends on it, but for dropout on the prompt.
        steps: of the run.
        end_of_text: the token that ends a text, where the tokenizer has one.
        valid: which completions of some queries are right, where the task knows (`Task.valid`); else None.
        stale: whether fresh rows may have been drawn by an older policy (`runs.asynchronous`).
    """

    reward: Reward
    sampling: Sampling
    lora: LoraConfig
    objective: Objective | None = None
    remat: Remat = "none"
    copies: int = 1
    steps: int = 1
    end_of_text: int | None = None
    valid: Callable[[Query, Rollout], Bool[Array, " B"]] | None = None
    stale: bool = False
    cache_dtype: CacheDtype | None = None


@dataclasses.dataclass(frozen=True)
class AlgorithmEntry:
    """What a config's `algorithm` names.

    What it trains has the policy's adapter as its `lora`: out of a checkpoint nothing else is read for sampling.

    Attributes:
        make: the algorithm, from its own section and what the run has ready.
        section: the name of its own section of a config; None where it has none.
        config: the dataclass that the section is read into.
        off_policy: whether it learns from rows that the policy has not drawn itself: it reads the sections
            `exploration` and `replay`.
        objective: whether it minimises the config's `objective`.
        seeds: whether it needs completions that somebody else wrote (`Task.seeds`).
        rewards: whether it asks for the rewards of what somebody else wrote; without, they are given as 0.
        program: for one that is several runs in turn: from (the `runs.config.PolicyRun`, the workdir, the command that
            repeats it) to a `runs.build.Program`, whose runs have `make`'s algorithm; None for a single run.
    """

    make: Callable[[Any, Ingredients], Algorithm]
    section: str | None = None
    config: type | None = None
    off_policy: bool = False
    objective: bool = False
    seeds: bool = False
    rewards: bool = True
    program: Callable[[Any, pathlib.Path, str], Any] | None = None

    @property
    def reads(self) -> set[str]:
        """The sections of a config that it reads, of those that not every algorithm does."""
        sections = {self.section: bool(self.section), "objective": self.objective}
        sections |= dict.fromkeys(("exploration", "replay"), self.off_policy)
        return {name for name, read in sections.items() if name and read}
