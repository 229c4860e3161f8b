"""Rewards that read Z token by token and know nothing else: log R is what the state after a prefix is worth."""

import abc
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from gfn_jax.models.language_model import LanguageModel
from gfn_jax.types import Prefix, PyTree, Query, Rollout


class Machine(abc.ABC):
    """A state machine as a reward, of whole completions and of growing ones (`interfaces.Incremental`).

    It gives a prefix nothing but what stopping there is worth: `Prefix.log_prefix` is 0.
    """

    @abc.abstractmethod
    def first(self, query: Query, rows: int) -> PyTree:
        """The state before the first token, rows of a query adjacent."""

    @abc.abstractmethod
    def read(self, prepared: Any, state: Any, token: Int[Array, " B"]) -> PyTree:
        """The state after one more token."""

    @abc.abstractmethod
    def worth(self, prepared: Any, state: Any) -> Float[Array, "*rows"]:
        """Log R of stopping in a state, in nats."""

    def log_reward(self, model: LanguageModel, prepared: PyTree, query: Query, rollout: Rollout) -> Float[Array, "B T"]:
        """What the state after every prefix is worth."""

        def read(state: PyTree, token: Array) -> tuple[PyTree, PyTree]:
            return self.read(prepared, state, token), state

        _, states = jax.lax.scan(read, self.first(query, len(rollout.completion)), rollout.completion.T)
        return self.worth(prepared, states).T

    def begin(
        self, model: LanguageModel, prepared: PyTree, query: Query, shape: tuple[int, int, int], answers: bool
    ) -> tuple[PyTree, PyTree, Prefix]:
        """As `interfaces.Incremental` has it."""
        state = self.first(query, shape[0])
        return answers, state, Prefix(jnp.zeros((shape[0],)), self.worth(prepared, state) if answers else None)

    def extend(
        self,
        model: LanguageModel,
        prepared: PyTree,
        fixed: bool,
        state: PyTree,
        tokens: Int[Array, "B k"],
        mask: Bool[Array, "B k"],
        column: Int[Array, ""],
    ) -> tuple[PyTree, Prefix]:
        """As `interfaces.Incremental` has it."""

        def read(state: PyTree, token: Array) -> tuple[PyTree, PyTree]:
            state = self.read(prepared, state, token)
            return state, state

        state, states = jax.lax.scan(read, state, tokens.T)
        return state, Prefix(jnp.zeros(tokens.shape), self.worth(prepared, states).T if fixed else None)
