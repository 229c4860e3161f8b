"""A reward that keeps a target to a list: what is not on it is worth `PENALTY` nats less."""

import dataclasses
from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from gfn_jax.models.language_model import LanguageModel
from gfn_jax.models.partition import repeat_rows
from gfn_jax.rewards.machine import Machine
from gfn_jax.types import Query

PENALTY = 60.0
Place = tuple[Int[Array, "*rows"], Int[Array, "*rows"]]  # the query's row in the table, the state in its trie


@dataclasses.dataclass(frozen=True)
class SupportReward(Machine):
    """log R(Z) = 0 of what a query's list holds, -`PENALTY` of everything else: a trie of each list over token ids.

    The penalty is finite, since balance conditions compare finite numbers. Times a p_LM(X Z Y) that adds up to at most
    one over all Z, what is not listed has at most e^-`PENALTY` of Z altogether.

    Attributes:
        following: [E, states, V], the state after a token, for each query of the table; the first is 0.
        listed: [E, states], whether a listed completion ends there.
    """

    following: Int[np.ndarray, "E states V"]
    listed: np.ndarray

    @classmethod
    def of(cls, lists: Sequence[Sequence[Sequence[int]]], vocab_size: int) -> "SupportReward":
        """The tries of the queries' lists.

        Raises:
            ValueError: a list is empty.
        """
        if not all(lists):
            raise ValueError("a query's list holds no completion")
        tries = [_trie(completions) for completions in lists]
        states = max(map(len, tries)) + 1  # the last is that of no listed beginning, and stays
        following = np.full((len(lists), states, vocab_size), states - 1, np.int32)
        listed = np.zeros((len(lists), states), bool)
        for query, (trie, completions) in enumerate(zip(tries, lists)):
            for prefix, state in trie.items():
                if prefix:
                    following[query, trie[prefix[:-1]], prefix[-1]] = state
            listed[query, [trie[tuple(completion)] for completion in completions]] = True
        return cls(following, listed)

    def prepare(self, model: LanguageModel) -> tuple[Array, Array]:
        """The tables, on the device."""
        return jnp.asarray(self.following), jnp.where(jnp.asarray(self.listed), 0.0, -PENALTY)

    def first(self, query: Query, rows: int) -> Place:
        """The root of its query's trie."""
        return repeat_rows(query.example_id, rows // len(query.example_id)), jnp.zeros((rows,), jnp.int32)

    def read(self, prepared: tuple[Array, Array], state: Place, token: Int[Array, " B"]) -> Place:
        """One token further."""
        return state[0], prepared[0][*state, token]

    def worth(self, prepared: tuple[Array, Array], state: Place) -> Float[Array, "*rows"]:
        """0 or -`PENALTY` nats."""
        return prepared[1][state]


def _trie(completions: Sequence[Sequence[int]]) -> dict[tuple[int, ...], int]:
    """Prefix -> its state, the empty one first."""
    prefixes = dict.fromkeys(tuple(row[:end]) for row in completions for end in range(len(row) + 1))
    return {prefix: state for state, prefix in enumerate(sorted(prefixes, key=len))}
