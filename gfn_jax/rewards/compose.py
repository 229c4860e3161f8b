"""Rewards made of rewards: products with exponents, and a query's parts in other places.

With p_LM(X Z Y) as the one factor, products give the targets of Hu et al. 2024, table 1: tempered p^(1/T),
contrastive p(X Z)^a p(Z)^b, and any of them under a constraint.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from gfn_jax.interfaces import Incremental, Reward
from gfn_jax.models.language_model import LanguageModel
from gfn_jax.models.lora import Lora
from gfn_jax.types import Prefix, PyTree, Query, Rollout, Tokens


@dataclasses.dataclass(frozen=True)
class Product:
    """R = prod R_i ^ w_i: tempering (one factor), constraints (several), contrasts (negative weights)."""

    factors: tuple[Reward, ...]
    weights: tuple[float, ...]

    def prepare(self, model: LanguageModel) -> tuple[PyTree, ...]:
        """What each factor keeps."""
        return tuple(factor.prepare(model) for factor in self.factors)

    def log_reward(
        self, model: LanguageModel, prepared: tuple[Any, ...], query: Query, rollout: Rollout
    ) -> Float[Array, "B T"]:
        """The weighted sum of the factors' logarithms."""
        terms = [
            weight * factor.log_reward(model, kept, query, rollout)
            for factor, weight, kept in zip(self.factors, self.weights, prepared, strict=True)
        ]
        return sum(terms[1:], terms[0])

    def begin(
        self, model: LanguageModel, prepared: tuple[Any, ...], query: Query, shape: tuple[int, int, int], answers: bool
    ) -> tuple[PyTree, PyTree, Prefix]:
        """Each factor's own; as `interfaces.Incremental` has it."""
        begun = [
            incremental(factor).begin(model, kept, query, shape, answers)
            for factor, kept in zip(self.factors, prepared, strict=True)
        ]
        fixed, state, prefixes = zip(*begun, strict=True)
        return fixed, state, self._product(prefixes)

    def extend(
        self,
        model: LanguageModel,
        prepared: tuple[Any, ...],
        fixed: tuple[Any, ...],
        state: tuple[Any, ...],
        tokens: Int[Array, "B k"],
        mask: Bool[Array, "B k"],
        column: Int[Array, ""],
    ) -> tuple[PyTree, Prefix]:
        """Each factor's own; as `interfaces.Incremental` has it."""
        extended = [
            incremental(factor).extend(model, kept, common, own, tokens, mask, column)
            for factor, kept, common, own in zip(self.factors, prepared, fixed, state, strict=True)
        ]
        states, prefixes = zip(*extended, strict=True)
        return states, self._product(prefixes)

    def _product(self, prefixes: Sequence[Prefix]) -> Prefix:
        """R = prod R_i ^ w_i of prefixes, and so of what is given without looking ahead."""
        powers = [jax.tree.map(lambda x, w=w: w * x, prefix) for w, prefix in zip(self.weights, prefixes, strict=True)]
        return jax.tree.map(lambda *terms: sum(terms[1:], terms[0]), *powers)


def incremental(reward: Reward) -> Incremental:
    """The reward itself.

    Raises:
        ValueError: it can only be asked about whole completions.
    """
    if not isinstance(reward, Incremental):
        raise ValueError(f"{type(reward).__name__} cannot follow a completion: it has no `begin` and `extend`")
    return reward


@dataclasses.dataclass(frozen=True)
class Adapted:
    """Another reward, by the same model with an adapter of its own (an M-step of EM) instead of the one it is given."""

    reward: Reward
    adapter: Lora

    def prepare(self, model: LanguageModel) -> tuple[Lora, PyTree]:
        """The adapter, and what the other reward keeps."""
        return self.adapter, self.reward.prepare(model.adapted(self.adapter))

    def log_reward(
        self, model: LanguageModel, prepared: tuple[Lora, Any], query: Query, rollout: Rollout
    ) -> Float[Array, "B T"]:
        """Log R of the adapted model."""
        adapter, kept = prepared
        return self.reward.log_reward(model.adapted(adapter), kept, query, rollout)

    def begin(
        self, model: LanguageModel, prepared: tuple[Lora, Any], query: Query, shape: tuple[int, int, int], answers: bool
    ) -> tuple[PyTree, PyTree, Prefix]:
        """As `interfaces.Incremental` has it."""
        adapter, kept = prepared
        return incremental(self.reward).begin(model.adapted(adapter), kept, query, shape, answers)

    def extend(
        self, model: LanguageModel, prepared: tuple[Lora, Any], fixed: PyTree, state: PyTree, *chunk: Array
    ) -> tuple[PyTree, Prefix]:
        """As `interfaces.Incremental` has it."""
        adapter, kept = prepared
        return incremental(self.reward).extend(model.adapted(adapter), kept, fixed, state, *chunk)


@dataclasses.dataclass(frozen=True)
class Rearranged:
    """Another reward, of the query that `arrange` makes of the given one."""

    reward: Reward
    arrange: Callable[[Query], Query]

    def prepare(self, model: LanguageModel) -> PyTree:
        """What the other reward keeps."""
        return self.reward.prepare(model)

    def log_reward(self, model: LanguageModel, prepared: PyTree, query: Query, rollout: Rollout) -> Float[Array, "B T"]:
        """Log R of the rearranged query."""
        return self.reward.log_reward(model, prepared, self.arrange(query), rollout)

    def begin(
        self, model: LanguageModel, prepared: PyTree, query: Query, shape: tuple[int, int, int], answers: bool
    ) -> tuple[PyTree, PyTree, Prefix]:
        """As `interfaces.Incremental` has it."""
        return incremental(self.reward).begin(model, prepared, self.arrange(query), shape, answers)

    def extend(
        self, model: LanguageModel, prepared: PyTree, fixed: PyTree, state: PyTree, *chunk: Array
    ) -> tuple[PyTree, Prefix]:
        """As `interfaces.Incremental` has it."""
        return incremental(self.reward).extend(model, prepared, fixed, state, *chunk)


def without_context(query: Query, start: Int[Array, " S"]) -> Query:
    """Z (Y) after `start` alone: its reward is p_LM(Z Y), whatever X is."""
    return dataclasses.replace(query, context=_repeated(start, query))


def context_last(query: Query, start: Int[Array, " S"]) -> Query:
    """Z then X, after `start`: reverse generation, of what may have come before X.

    A `start` that X begins with itself (a begin-of-text) is left out there: it stands before Z, and nowhere else.
    """
    ids, mask = query.context.ids, query.context.mask
    length = ids.shape[1]
    first = length - mask.sum(1, keepdims=True)  # contexts are padded left, and answers right
    beginning = jnp.take_along_axis(ids, jnp.minimum(first + jnp.arange(len(start)), length - 1), axis=1)
    first += len(start) * (beginning == start).all(1, keepdims=True)
    places = jnp.arange(length)
    moved = jnp.take_along_axis(ids, jnp.minimum(first + places, length - 1), axis=1)
    return dataclasses.replace(query, context=_repeated(start, query), answer=Tokens(moved, places < length - first))


def _repeated(start: Int[Array, " S"], query: Query) -> Tokens:
    rows = (query.example_id.shape[0], len(start))
    return Tokens(ids=jnp.broadcast_to(start, rows), mask=jnp.ones(rows, bool))
