"""A reward that keeps a target to a list: what is not on it is worth some nats less."""

import dataclasses
from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from gfn_jax.models.language_model import LanguageModel
from gfn_jax.models.partition import repeat_rows
from gfn_jax.rewards.machine import Machine
from gfn_jax.types import Query

PENALTY = 60.0
# The query's row in the table, which of its completions begin so, the tokens so far.
Place = tuple[Int[Array, "*rows"], Bool[Array, "*rows K"], Int[Array, "*rows"]]


@dataclasses.dataclass(frozen=True)
class SupportReward(Machine):
    """log R(Z) = 0 of what a query's list holds, -`penalty` of everything else.

    The penalty is finite, since balance conditions compare finite numbers. Times a p_LM(X Z Y) that adds up to at most
    one over all Z, what is not listed has at most e^-`penalty` of Z altogether.

    Attributes:
        completions: [E, K, T], the lists of all queries of the table.
        lengths: [E, K], of the completions in tokens; -1 where a list has ended.
        penalty: in nats.
    """

    completions: Int[np.ndarray, "E K T"]
    lengths: Int[np.ndarray, "E K"]
    penalty: float = PENALTY

    @classmethod
    def of(cls, lists: Sequence[Sequence[Sequence[int]]], penalty: float = PENALTY) -> "SupportReward":
        """The queries' lists as arrays.

        Raises:
            ValueError: a list is empty.
        """
        if not all(lists):
            raise ValueError("a query's list holds no completion")
        most, longest = max(map(len, lists)), max(1, *(len(row) for rows in lists for row in rows))
        completions = np.zeros((len(lists), most, longest), np.int32)
        lengths = np.full((len(lists), most), -1, np.int32)
        for query, rows in enumerate(lists):
            for k, row in enumerate(rows):
                completions[query, k, : len(row)], lengths[query, k] = row, len(row)
        return cls(completions, lengths, penalty)

    def prepare(self, model: LanguageModel) -> tuple[Array, Array]:
        """The lists, on the device."""
        return jnp.asarray(self.completions), jnp.asarray(self.lengths)

    def first(self, query: Query, rows: int) -> Place:
        """Nothing written: everything that is listed begins so."""
        place = repeat_rows(query.example_id, rows // len(query.example_id))
        return place, jnp.ones((rows, self.lengths.shape[1]), bool), jnp.zeros((rows,), jnp.int32)

    def read(self, prepared: tuple[Array, Array], state: Place, token: Int[Array, " B"]) -> Place:
        """One token further."""
        place, begun, column = state
        # Behind the longest completion it reads its last token again; no length is as large then.
        said = prepared[0].at[place, :, column].get(mode="clip")
        return place, begun & (said == token[:, None]), column + 1

    def worth(self, prepared: tuple[Array, Array], state: Place) -> Float[Array, "*rows"]:
        """0 or -`penalty` nats."""
        place, begun, column = state
        listed = (begun & (prepared[1][place] == column[..., None])).any(axis=-1)
        return jnp.where(listed, 0.0, -self.penalty)
