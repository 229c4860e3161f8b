"""Rewards of an enumerable world, from a table: what objectives and samplers are tested against."""

import dataclasses

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from gfn_jax.models.language_model import LanguageModel
from gfn_jax.rewards.machine import Machine
from gfn_jax.types import Query


@dataclasses.dataclass(frozen=True)
class TableReward(Machine):
    """log R of every sequence of an enumerable world, from a table.

    Sequences over A tokens are the nodes of an A-ary tree in breadth-first order: the child of node i by token
    a is A i + a + 1, the empty sequence is node 0.
    """

    table: Float[Array, " nodes"]
    arity: int

    def prepare(self, model: LanguageModel) -> Array:
        """The table itself."""
        return self.table

    def first(self, query: Query, rows: int) -> Int[Array, " B"]:
        """The empty sequence's node."""
        return jnp.zeros((rows,), jnp.int32)

    def read(self, prepared: Array, state: Int[Array, " B"], token: Int[Array, " B"]) -> Int[Array, " B"]:
        """The node of the sequence with one more token."""
        return jnp.minimum(state * self.arity + token + 1, len(prepared) - 1)

    def worth(self, prepared: Array, state: Int[Array, "*rows"]) -> Float[Array, "*rows"]:
        """The table's entry."""
        return prepared[state]
