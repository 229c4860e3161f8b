"""Constraints as rewards: a finite automaton reads Z token by token and says what stopping there is worth.

log R(z_1:t) = value[state after z_1:t]. A forbidden completion gets a large negative value, not minus infinity:
SubTB compares finite numbers, and the policy learns from how far it is off.
"""

import dataclasses
import re
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from gfn_jax.models.language_model import LanguageModel
from gfn_jax.rewards.machine import Machine
from gfn_jax.types import Query

_LETTER = re.compile(r"\w")
Words = tuple[Int[Array, "*rows"], Int[Array, "*rows"]]  # unfinished word, bit set of words seen


@dataclasses.dataclass(frozen=True)
class AutomatonReward(Machine):
    """A deterministic automaton over token ids.

    Attributes:
        following: [states, V], the state after a token; the first state is 0.
        value: [states], log R of stopping there, in nats.

    Raises:
        ValueError: the tables do not belong together, or name a state that is not there.
    """

    following: Int[np.ndarray, "states V"]
    value: Float[np.ndarray, " states"]

    def __post_init__(self):
        states = len(self.value)
        if len(self.following) != states or self.following.min() < 0 or self.following.max() >= states:
            raise ValueError(f"an automaton's table must have a row for each of {states} states, and name no other")

    def prepare(self, model: LanguageModel) -> tuple[Array, Array]:
        """The tables, on the device."""
        return jnp.asarray(self.following, jnp.int32), jnp.asarray(self.value, jnp.float32)

    def first(self, query: Query, rows: int) -> Int[Array, " B"]:
        """State 0."""
        return jnp.zeros((rows,), jnp.int32)

    def read(self, prepared: tuple[Array, Array], state: Int[Array, " B"], token: Int[Array, " B"]) -> Int[Array, " B"]:
        """As the table says."""
        return prepared[0][state, token]

    def worth(self, prepared: tuple[Array, Array], state: Int[Array, "*rows"]) -> Float[Array, "*rows"]:
        """The state's value."""
        return prepared[1][state]


@dataclasses.dataclass(frozen=True)
class WordReward(Machine):
    """-penalty for every required word that is missing and every forbidden one that is there.

    Words are runs of letters, digits and underscores, whatever their case. The automaton's state is the unfinished
    word (if it may become one of the listed) and the set of listed words seen.

    Attributes:
        following: [K, V], the unfinished word after a token.
        completes: [K, V], bit set of the words that the token completes.
        at_end: [K], bit set of the words that are complete if Z ends here.
        required: bit set; the other words are forbidden.
        penalty: nats a word.
    """

    following: Int[np.ndarray, "K V"]
    completes: Int[np.ndarray, "K V"]
    at_end: Int[np.ndarray, " K"]
    required: int
    penalty: float

    def prepare(self, model: LanguageModel) -> tuple[Array, Array, Array]:
        """The tables, on the device."""
        return jnp.asarray(self.following), jnp.asarray(self.completes), jnp.asarray(self.at_end)

    def first(self, query: Query, rows: int) -> Words:
        """No word begun, none seen."""
        zeros = jnp.zeros((rows,), jnp.int32)
        return zeros, zeros

    def read(self, prepared: tuple[Array, Array, Array], state: Words, token: Int[Array, " B"]) -> Words:
        """The unfinished word after a token, and the words seen."""
        following, completes, _ = prepared
        part, seen = state
        return following[part, token], seen | completes[part, token]

    def worth(self, prepared: tuple[Array, Array, Array], state: Words) -> Float[Array, "*rows"]:
        """The penalties of ending here."""
        part, seen = state
        seen = seen | prepared[2][part]
        wrong = jax.lax.population_count(seen ^ self.required)  # missing ones, and forbidden ones
        return -self.penalty * wrong.astype(jnp.float32)


def word_reward(
    strings: Sequence[str], required: Sequence[str], forbidden: Sequence[str], penalty: float
) -> WordReward:
    """Builds the tables.

    Args:
        strings: the surface text of every token id (`text.tokens.token_strings`), one for each id of the model.
        required: words that must be there.
        forbidden: words that must not.
        penalty: nats a word.

    Raises:
        ValueError: something listed is no single word, or is listed twice; or there are more than 31.
    """
    words = [word.lower() for word in (*required, *forbidden)]
    for word in words:
        if not re.fullmatch(r"\w+", word) or words.count(word) > 1:
            raise ValueError(f"required and forbidden words must be single words, each listed once, not {word!r}")
    if len(words) > 31:
        raise ValueError(f"there may be 31 required and forbidden words, not {len(words)}")
    bit = {word: 1 << place for place, word in enumerate(words)}
    other = "."  # a word that can no longer become one of the listed
    parts = ["", other, *sorted({word[:end] for word in words for end in range(1, len(word) + 1)})]
    number = {part: place for place, part in enumerate(parts)}
    following = np.zeros((len(parts), len(strings)), np.int32)
    completes = np.zeros_like(following)
    for row, part in enumerate(parts):
        for column, text in enumerate(strings):
            now, seen = part, 0
            for character in text.lower():
                if _LETTER.match(character):
                    now = now + character if now + character in number else other
                else:
                    now, seen = "", seen | bit.get(now, 0)
            following[row, column], completes[row, column] = number[now], seen
    at_end = np.asarray([bit.get(part, 0) for part in parts], np.int32)
    return WordReward(following, completes, at_end, (1 << len(required)) - 1, penalty)
