"""What every task offers. A task never sees an algorithm: it says what is wanted, not how it is learnt."""

from typing import Protocol, runtime_checkable

import jax
import numpy as np
from jaxtyping import Float

from gfn_jax.interfaces import Environment, Reward
from gfn_jax.models.config import ModelConfig
from gfn_jax.policy.constraint import Constraint
from gfn_jax.types import Params, Query, Seeds


class Task(Protocol):
    """One problem family on one tokenizer: its queries, how completions are written, rewarded and graded."""

    @property
    def environment(self) -> Environment:
        """The tool, or `NoTool`."""

    def queries(self, split: str) -> Query:
        """All of a split's queries; `train` is the table that steps draw from."""

    def query_weight(self) -> Float[np.ndarray, " E"]:
        """How often each training query is drawn, relative to the others."""

    def constraint(self, training: bool = True) -> Constraint:
        """Vocabulary, stop and lengths, while training and at test."""

    def reward(self, model: ModelConfig) -> Reward:
        """What the policy is trained to sample in proportion to, `model` being the base's shape."""

    def seeds(self) -> Seeds:
        """Completions that the replay buffer starts with; none is fine."""

    def decode(self, ids: list[int]) -> str:
        """Z as text."""


@runtime_checkable
class SeededByBase(Protocol):
    """A task whose seeds the base itself writes, instead of `seeds`."""

    def prompted_seeds(self, model: ModelConfig, params: Params, key: jax.Array) -> Seeds:
        """E queries' seeds, the rows of one query adjacent: [E] ids, [E * N, T] completions. Pure in `params`."""
