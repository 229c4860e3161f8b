"""Random numbers (Hu et al. 2024, section 2): after a prompt, sample an integer from a distribution that is given.

The reward of a text Z that spells the number n, of N in the support of p, is

    log R(Z) = log p(n) + log N - log (token sequences that spell n)

so that the policy's marginal over numbers is p, whatever the tokenizer; for a uniform p and a tokenizer of single
characters it is 0. Everything else has log R(Z) = -penalty * length, in nats.

A number has one spelling as text: decimal digits without leading zeros, "-" in front of a negative one. " 7", "07",
"+7", "-0" and "7." are invalid. How the text is cut into tokens is free: "57" may be one token or two. The reward is an
automaton over tokens whose states are the prefixes of the spellings, which answers alike for any tokenizer.
"""

import dataclasses
import functools
import math
import re
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Annotated, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Array, Bool, Float, Int

from gfn_jax.environments import NoTool
from gfn_jax.evaluation.random_numbers import RandomNumbersEvaluationConfig, RandomNumbersEvaluator
from gfn_jax.models.config import ModelConfig
from gfn_jax.models.language_model import LanguageModel
from gfn_jax.policy.constraint import Constraint, make_constraint
from gfn_jax.rewards.machine import Machine
from gfn_jax.sections import Count, Natural, Nonnegative, Positive, Range
from gfn_jax.tasks.task import TaskEntry
from gfn_jax.text.batching import make_seeds, pad_left, pad_right
from gfn_jax.text.joining import encode_prompt
from gfn_jax.text.tokens import stop_token, token_strings
from gfn_jax.types import Query, Rollout, Seeds

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

# Entries of the automaton's table: a support beyond this is not listed.
LARGEST_TABLE = 20_000_000
LARGEST_SUPPORT = 100_000  # numbers, each of which is spelt out in Python
Number = Annotated[int, Range(-(10**9), 10**9)]


@dataclasses.dataclass(frozen=True)
class RandomNumbersConfig:
    """What may be chosen about the task.

    Attributes:
        prompt: X.
        stop: the token that ends Z: a text or a special token's name; None for the tokenizer's end of text.
        distribution: a name in `DISTRIBUTIONS`, or `table`.
        low, high: the numbers; a distribution that goes on outside is cut off here and renormalised.
        mean: of n - low, before it is cut off: Poisson, binomial (high - low trials) and geometric.
        table: weights by number, where the distribution is `table`: {"7": 1.0, "-3": 2.0}.
        penalty: nats off for every token of an invalid text.
        min_length, max_length: tokens of Z. SubTB and DB compare states that may stop: with a minimum above 0 none of
            them would see how the first token is chosen, so that 0 it is, or TB or VarGrad besides.
        digits_only: only tokens that some spelling is made of may be generated.
        copies: rows of the query table that hold the prompt, each with its own replay buffer: what micro-batches
            and devices divide.
    """

    prompt: str
    stop: str | None
    distribution: str
    low: Number
    high: Number
    mean: float
    table: Mapping[str, Nonnegative]
    penalty: Positive
    min_length: Natural
    max_length: Count
    digits_only: bool
    copies: Count

    def __post_init__(self):
        if self.distribution not in (*DISTRIBUTIONS, "table"):
            raise ValueError(
                f"distribution {self.distribution!r} is unknown; there are {', '.join(DISTRIBUTIONS)} and table"
            )
        if self.distribution != "table" and not 0 <= self.high - self.low < LARGEST_SUPPORT:
            raise ValueError(
                f"high is {self.high} and low {self.low}; the numbers from low to high must be 1 to {LARGEST_SUPPORT}"
            )
        if self.min_length > self.max_length:
            raise ValueError(f"min_length is {self.min_length}; it must be at most max_length, {self.max_length}")
        self.log_target  # noqa: B018  # raises where the parameters give no distribution

    @property
    def log_target(self) -> dict[int, float]:
        """Number -> log p, normalised over the support.

        Raises:
            ValueError: no number has a weight, or a parameter is out of range.
        """
        if self.distribution == "table":
            wrong = [number for number in self.table if not re.fullmatch("-?[0-9]{1,9}", str(number))]
            if wrong:
                raise ValueError(f"table has weights of whole numbers, as in {{'7': 1.0}}; {wrong[0]!r} is none")
            weights = {int(number): float(weight) for number, weight in self.table.items() if weight}
            if min(weights.values(), default=0.0) <= 0:
                raise ValueError("table needs weights, none of them negative")
            log_weights = {number: math.log(weights[number]) for number in sorted(weights)}
        else:
            log_weight = DISTRIBUTIONS[self.distribution](self.mean, self.high - self.low)
            log_weights = {self.low + k: log_weight(k) for k in range(self.high - self.low + 1)}
        total = float(np.logaddexp.reduce(list(log_weights.values())))
        return {number: weight - total for number, weight in log_weights.items()}


LogWeight = Callable[[int], float]


def _poisson(mean: float, largest: int) -> LogWeight:
    _check_mean(mean > 0, mean, "positive")
    return lambda k: k * math.log(mean) - math.lgamma(k + 1)


def _binomial(mean: float, largest: int) -> LogWeight:
    _check_mean(0 < mean < largest, mean, f"between 0 and high - low = {largest}")
    odds = math.log(mean) - math.log(largest - mean)
    return lambda k: k * odds - math.lgamma(k + 1) - math.lgamma(largest - k + 1)


def _geometric(mean: float, largest: int) -> LogWeight:
    _check_mean(mean > 0, mean, "positive")
    return lambda k: k * (math.log(mean) - math.log1p(mean))


def _check_mean(valid: bool, mean: float, allowed: str) -> None:
    if not valid:
        raise ValueError(f"mean is {mean}; it must be {allowed}")


# Unnormalised log p of k = n - low, given the mean of k and the largest k.
DISTRIBUTIONS: dict[str, Callable[[float, int], LogWeight]] = {
    "uniform": lambda mean, largest: lambda k: 0.0,
    "poisson": _poisson,
    "binomial": _binomial,
    "geometric": _geometric,
}


Spelt = tuple[Int[Array, "*rows"], Int[Array, "*rows"]]


@struct.dataclass
class Speller:
    """The automaton that reads tokens: its states are the prefixes of the spellings, 0 the empty one.

    Attributes:
        token_class: per id of the vocabulary, the column of its text; class 0 is in no spelling.
        following: the state after a token of a class; the last state is that of no spelling, and stays.
        log_reward: log R of stopping in a state, NaN where its text is no number of the support.
    """

    token_class: Int[Array, " V"]
    following: Int[Array, "S K"]
    log_reward: Float[Array, " S"]

    def states(self, completion: Int[Array, "B T"]) -> Int[Array, "B T"]:
        """The state in which each token was chosen."""

        def read(state: Array, token: Array) -> tuple[Array, Array]:
            return self.following[state, self.token_class[token]], state

        _, states = jax.lax.scan(read, jnp.zeros(completion.shape[0], jnp.int32), completion.T)
        return states.T


@dataclasses.dataclass(frozen=True)
class NumberReward(Machine):
    """log R of every prefix, by the automaton; a state is the automaton's, and the tokens so far."""

    speller: Speller
    penalty: float

    def prepare(self, model: LanguageModel) -> Speller:
        """The automaton's tables."""
        return self.speller

    def first(self, query: Query, rows: int) -> Spelt:
        """Nothing written."""
        zeros = jnp.zeros((rows,), jnp.int32)
        return zeros, zeros

    def read(self, prepared: Speller, state: Spelt, token: Int[Array, " B"]) -> Spelt:
        """One token more."""
        return prepared.following[state[0], prepared.token_class[token]], state[1] + 1

    def worth(self, prepared: Speller, state: Spelt) -> Float[Array, "*rows"]:
        """The target's log-probability of a number, or the penalty of each token."""
        log_reward = prepared.log_reward[state[0]]
        return jnp.where(jnp.isnan(log_reward), -self.penalty * jnp.maximum(state[1], 1), log_reward)


class Spellings(NamedTuple):
    """All token sequences that spell a number of the support, within the lengths allowed."""

    completion: Int[np.ndarray, "S T"]  # filled up with the stop
    length: Int[np.ndarray, " S"]
    number: Int[np.ndarray, " S"]  # place in the support, in ascending order


@dataclasses.dataclass(frozen=True)
class RandomNumbers:
    """The task on one tokenizer and one model's vocabulary."""

    config: RandomNumbersConfig
    tokenizer: "PreTrainedTokenizerFast"
    vocab_size: int

    @property
    def environment(self) -> NoTool:
        """No tool."""
        return NoTool()

    @functools.cached_property
    def log_target(self) -> dict[int, float]:
        """Number -> log p, in ascending order."""
        return self.config.log_target

    @functools.cached_property
    def stop_id(self) -> int:
        """The token that ends Z.

        Raises:
            ValueError: the text is not one token, or the tokenizer has no end of text.
        """
        if self.config.stop is not None:
            return stop_token(self.tokenizer, self.config.stop)
        if self.tokenizer.eos_token_id is None:
            raise ValueError("the tokenizer has no end-of-text token: name a random_numbers.stop")
        return int(self.tokenizer.eos_token_id)

    @functools.cached_property
    def tokens_of(self) -> dict[str, list[int]]:
        """Text -> the ids that write it, for the texts that are part of a spelling; the stop writes nothing."""
        parts = {
            text[i:j]
            for text in map(str, self.log_target)
            for i in range(len(text))
            for j in range(i + 1, len(text) + 1)
        }
        found: dict[str, list[int]] = {}
        for i, text in enumerate(token_strings(self.tokenizer)[: self.vocab_size]):
            if text in parts and i != self.stop_id:
                found.setdefault(text, []).append(i)
        return found

    def token_sequences(self, text: str) -> Iterator[tuple[int, ...]]:
        """All ways to write a text in tokens, of any length."""
        if not text:
            yield ()
        for end in range(1, len(text) + 1):
            for token in self.tokens_of.get(text[:end], ()):
                for rest in self.token_sequences(text[end:]):
                    yield (token, *rest)

    @functools.cached_property
    def spellings(self) -> Spellings:
        """What exact probabilities are sums over.

        Raises:
            ValueError: a number of the support cannot be written within the lengths allowed.
        """
        lengths = range(self.config.min_length, self.config.max_length + 1)
        found = []
        for place, number in enumerate(self.log_target):
            ways = [ids for ids in self.token_sequences(str(number)) if len(ids) in lengths]
            if not ways:
                raise ValueError(
                    f"the tokenizer cannot write {number} in {lengths.start} to {self.config.max_length} tokens"
                )
            found += [(place, ids) for ids in ways]
        stops = (self.stop_id,) * (self.config.max_length + 1)
        return Spellings(
            completion=np.array([(*ids, *stops)[: len(stops)] for _, ids in found], np.int32),
            length=np.array([len(ids) for _, ids in found], np.int32),
            number=np.array([place for place, _ in found], np.int32),
        )

    @functools.cached_property
    def floor(self) -> float:
        """KL(p || R / Z) in nats: what a policy keeps for invalid texts that samples in proportion to R exactly.

        It is log(1 + R of all texts that are no number of the support / R of all numbers). A number's spellings have
        N p(n) together; of the A^L texts of L tokens, those that spell nothing have e^(-penalty max(L, 1)) each.
        """
        constraint = self.constraint()
        choices = int((~np.asarray(constraint.is_stop)).sum())
        spelt = np.bincount(self.spellings.length, minlength=self.config.max_length + 1)
        invalid = [
            math.log(texts) - self.config.penalty * max(length, 1)
            for length in range(self.config.min_length, self.config.max_length + 1)
            if (texts := choices**length - int(spelt[length]))
        ]
        return float(np.logaddexp.reduce([0.0, *(worth - math.log(len(self.log_target)) for worth in invalid)]))

    @functools.cached_property
    def speller(self) -> Speller:
        """The automaton on this tokenizer.

        Raises:
            ValueError: the support is too large to be listed.
        """
        texts = [str(number) for number in self.log_target]
        prefixes = sorted({text[:end] for text in texts for end in range(len(text) + 1)})  # "" first
        classes = sorted(self.tokens_of)
        if len(prefixes) * len(classes) > LARGEST_TABLE:
            raise ValueError(f"{len(texts)} numbers make an automaton of more than {LARGEST_TABLE} entries")
        place = {prefix: state for state, prefix in enumerate(prefixes)}
        nowhere = len(prefixes)
        following = np.full((nowhere + 1, len(classes) + 1), nowhere, np.int32)
        token_class = np.zeros(self.vocab_size, np.int32)
        for column, text in enumerate(classes, 1):
            token_class[self.tokens_of[text]] = column
            following[:-1, column] = [place.get(prefix + text, nowhere) for prefix in prefixes]
        log_reward = np.full(nowhere + 1, np.nan, np.float32)
        ways = np.bincount(self.spellings.number)
        for text, log_p, count in zip(texts, self.log_target.values(), ways, strict=True):
            log_reward[place[text]] = log_p + math.log(len(texts)) - math.log(count)
        return Speller(jnp.asarray(token_class), jnp.asarray(following), jnp.asarray(log_reward))

    def reward(self, model: ModelConfig) -> NumberReward:
        """The logarithm of p on the spellings of numbers, the penalty elsewhere; the base has no say in it."""
        del model
        return NumberReward(self.speller, self.config.penalty)

    def valid(self, query: Query, rollout: Rollout) -> Bool[Array, " B"]:
        """Whether Z is a number of the support."""
        del query
        states = self.speller.states(rollout.completion)
        number = ~jnp.isnan(self.speller.log_reward[states])
        return jnp.where(rollout.stop, number, False).any(axis=1)

    def constraint(self, training: bool = True) -> Constraint:
        """The lengths; the vocabulary is free unless `digits_only`. Training and test are alike."""
        del training
        digits = [i for ids in self.tokens_of.values() for i in ids]
        return make_constraint(
            self.vocab_size,
            stop_id=self.stop_id,
            max_length=self.config.max_length,
            min_length=self.config.min_length,
            token_ids=np.array(digits, np.int32) if self.config.digits_only else None,
        )

    def queries(self, split: str) -> Query:
        """The one prompt, `copies` times for training."""
        rows = self.config.copies if split == "train" else 1
        ids = encode_prompt(self.tokenizer, self.config.prompt)
        prompt = pad_left([ids] * rows, self.stop_id)
        answer = pad_right([[self.stop_id]] * rows, self.stop_id)  # the reward reads neither
        return Query(example_id=jnp.arange(rows), prompt=prompt, context=prompt, answer=answer)

    def query_weight(self) -> Float[np.ndarray, " E"]:
        """All alike."""
        return np.ones(self.config.copies, np.float32)

    def seeds(self) -> Seeds:
        """None: the numbers are to be found."""
        return make_seeds([], [], self.stop_id, self.config.max_length)

    def question(self, split: str, example: int) -> str:
        """X as text."""
        return self.config.prompt

    def decode(self, ids: list[int]) -> str:
        """Z as text."""
        return str(self.tokenizer.decode(ids))

    def mode(self, split: str, example: int, completion: str) -> str | None:
        """The number; None of what spells none of the support."""
        return completion if completion in self.texts else None

    def modes(self, split: str, example: int) -> int:
        """The support."""
        return len(self.texts)

    def grade(self, split: str, example: int, completion: str) -> bool:
        """Whether Z spells a number of the support: there is no other right and wrong."""
        return completion in self.texts

    @functools.cached_property
    def texts(self) -> frozenset[str]:
        """The numbers of the support, spelt."""
        return frozenset(map(str, self.log_target))


TASK = TaskEntry(
    section="random_numbers",
    config=RandomNumbersConfig,
    evaluation=RandomNumbersEvaluationConfig,
    task=lambda config, tokenizer, model: RandomNumbers(config, tokenizer, model.vocab_size),
    evaluator=lambda config, task, model, temperature: RandomNumbersEvaluator(task, config),
    stand_in="tiny-numbers",
    certified="validation",
)
