"""The corpus that the tiny base for random numbers is pretrained on, character by character.

A document is a prompt and what somebody might write after it, then the end-of-text token:

    The following is a random integer drawn uniformly between 0 and 100: 37

About half of the texts are numbers between 0 and 100, by far not uniform: the number of rank r in a fixed order,
which begins with people's favourites, has a weight of r^-skew. The others are numbers out of range, numbers written
another way (" 7", "07", "7.5", "-7", "seven") and words. So the base starts where Hu et al. 2024 (section 2) start
from: it answers with a valid number about half of the time, and then with few of them.
"""

import dataclasses
import itertools
import random
from collections.abc import Callable

import numpy as np
from jaxtyping import Bool, Int
from transformers import PreTrainedTokenizerFast

from gfn_jax.sections import Count, Natural, Nonnegative, Share
from gfn_jax.text.documents import whole_rows
from gfn_jax.text.wordlevel import tokenizer_of

LARGEST = 100
FAVOURITES = (42, 7, 37, 73, 17, 50, 23, 13, 77, 27, 69, 47, 57, 64, 33, 3, 88, 99, 5, 100, 87, 67, 12, 1, 10)
# The prompts of the task, with how often each is drawn.
PROMPTS = {
    "The following is a random integer drawn uniformly between 0 and 100: ": 7.0,
    "The following is a random integer drawn from a Poisson distribution between 0 and 100: ": 1.0,
    "The following is a random integer drawn from a binomial distribution between 0 and 100: ": 1.0,
    "The following is a random integer drawn from a geometric distribution between 0 and 100: ": 1.0,
}
WORDS = (
    "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "twenty", "fifty", "ninety",
    "a number", "any number", "a random number", "the number is", "not known", "I do not know", "let me see", "?",
)  # fmt: skip
CHARACTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789 .,:;?!-+=/()'\"\n"


@dataclasses.dataclass(frozen=True)
class NumbersCorpusConfig:
    """What the corpus is made of.

    Attributes:
        valid: share of documents with a number between 0 and 100.
        skew: exponent of the numbers' weights by rank; 0 is uniform.
        documents: documents in the corpus.
        seq_length: tokens in a row of `token_rows`.
        seed: of the whole corpus.
    """

    valid: Share
    skew: Nonnegative
    documents: Count
    seq_length: Count
    seed: Natural

    def __post_init__(self):
        if not 0 <= self.valid <= 1:
            raise ValueError(f"valid must be a share, got {self.valid}")
        if min(self.documents, self.seq_length) < 1:
            raise ValueError("documents and seq_length must each be at least 1")


def build_tokenizer() -> PreTrainedTokenizerFast:
    """A token for every character."""
    return tokenizer_of(CHARACTERS, r"[\s\S]")


def ranking() -> list[int]:
    """The numbers from the likeliest to the rarest."""
    rest = [number for number in range(LARGEST + 1) if number not in FAVOURITES]
    random.Random("ranking").shuffle(rest)
    return [*FAVOURITES, *rest]


def documents(config: NumbersCorpusConfig) -> list[str]:
    """The texts, without their end."""
    rng = random.Random(f"numbers corpus {config.seed}")
    numbers = ranking()
    weights = list(itertools.accumulate((rank + 1.0) ** -config.skew for rank in range(len(numbers))))
    prompts = rng.choices(list(PROMPTS), list(PROMPTS.values()), k=config.documents)

    def answer() -> str:
        (number,) = rng.choices(numbers, cum_weights=weights)
        return str(number) if rng.random() < config.valid else rng.choice(OTHERS)(rng, number)

    return [prompt + answer() for prompt in prompts]


# What is not a number between 0 and 100, made of a number that is.
OTHERS: tuple[Callable[[random.Random, int], str], ...] = (
    lambda rng, number: str(rng.randint(LARGEST + 1, 999)),
    lambda rng, number: str(rng.choice((1000, 1024, 2000, 1234, 10000))),
    lambda rng, number: f" {number}",
    lambda rng, number: f"{number}.{rng.randint(0, 9)}",
    lambda rng, number: f"{number}{rng.choice(('.', ',', '!', '?', ' ', ' or so', ' and', ';'))}",
    lambda rng, number: f"-{number}",
    lambda rng, number: f"0{number}",
    lambda rng, number: f"{number}, {rng.randint(0, LARGEST)}",
    lambda rng, number: rng.choice(WORDS),
    lambda rng, number: rng.choice(WORDS),
)


def token_rows(
    config: NumbersCorpusConfig, tokenizer: PreTrainedTokenizerFast
) -> tuple[Int[np.ndarray, "N S"], Bool[np.ndarray, "N S"]]:
    """The corpus as token ids, a document and the end-of-text token a row, padded on the right.

    Returns:
        ids (int32) and the mask of the columns that are no padding, both [documents, seq_length].

    Raises:
        ValueError: the tokenizer cannot write a document down, or one is longer than `seq_length`.
    """
    return whole_rows(documents(config), tokenizer, config.seq_length)
