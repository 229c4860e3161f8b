"""Rewards of an enumerable world, from a table: what objectives and samplers are tested against."""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from gfn_jax.models.language_model import LanguageModel
from gfn_jax.types import Query, Rollout


@dataclasses.dataclass(frozen=True)
class TableReward:
    """log R of every sequence of an enumerable world, from a table.

    Sequences over A tokens are the nodes of an A-ary tree in breadth-first order: the child of node i by token
    a is A i + a + 1, the empty sequence is node 0.
    """

    table: Float[Array, " nodes"]
    arity: int

    def prepare(self, model: LanguageModel) -> Array:
        """The table itself."""
        return self.table

    def log_reward(self, model: LanguageModel, prepared: Array, query: Query, rollout: Rollout) -> Float[Array, "B T"]:
        """Looks every prefix up."""

        def child(node: Array, token: Array) -> tuple[Array, Array]:
            return jnp.minimum(node * self.arity + token + 1, len(prepared) - 1), node

        start = jnp.zeros(rollout.completion.shape[0], jnp.int32)
        _, nodes = jax.lax.scan(child, start, rollout.completion.T)
        return prepared[nodes.T]
