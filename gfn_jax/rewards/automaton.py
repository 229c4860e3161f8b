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
from gfn_jax.types import Query, Rollout

_LETTER = re.compile(r"\w")


@dataclasses.dataclass(frozen=True)
class AutomatonReward:
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

    def log_reward(
        self, model: LanguageModel, prepared: tuple[Array, Array], query: Query, rollout: Rollout
    ) -> Float[Array, "B T"]:
        """The value of every prefix's state."""
        following, value = prepared

        def read(state: Array, token: Array) -> tuple[Array, Array]:
            return following[state, token], state

        start = jnp.zeros(rollout.completion.shape[0], jnp.int32)
        _, states = jax.lax.scan(read, start, rollout.completion.T)
        return value[states.T]


@dataclasses.dataclass(frozen=True)
class WordReward:
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

    def log_reward(
        self, model: LanguageModel, prepared: tuple[Array, Array, Array], query: Query, rollout: Rollout
    ) -> Float[Array, "B T"]:
        """The penalties of every prefix."""
        following, completes, at_end = prepared

        def read(state: tuple[Array, Array], token: Array) -> tuple[tuple[Array, Array], Array]:
            part, seen = state
            return (following[part, token], seen | completes[part, token]), seen | at_end[part]

        start = jnp.zeros(rollout.completion.shape[0], jnp.int32)
        _, seen = jax.lax.scan(read, (start, start), rollout.completion.T)
        wrong = jax.lax.population_count(seen.T ^ self.required)  # missing ones, and forbidden ones
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
