"""The corpus that a tiny base model for Countdown is pretrained on: expressions, of which a share is right.

    Numbers: 2 4 5 7 Target: 19 Answer: 7 + 5 * 2 ... .

A document is a problem with an expression that uses each number once. With probability `right` the target is its value;
else it is another, and the expression is wrong. So the base knows how answers are written, and little of which are
right. All problems come from pretraining's room (`countdown.room_of`): the benchmark's are none of them.
"""

import dataclasses
import random

import numpy as np
from jaxtyping import Bool, Int
from transformers import PreTrainedTokenizerFast

from gfn_jax.sections import Count, Natural, Share
from gfn_jax.text.documents import whole_rows
from gfn_jax.text.wordlevel import tokenizer_of
from gfn_jax.worlds.countdown import (
    LARGEST_TARGET,
    OPERATORS,
    Countdown,
    draw_expression,
    evaluate,
    numbers_of,
    room_of,
)

WORDS = ("Numbers", " Target", " Answer")


@dataclasses.dataclass(frozen=True)
class CountdownCorpusConfig:
    """What the corpus is made of.

    Attributes:
        right: share of documents whose expression has the target's value.
        documents: documents in the corpus.
        seq_length: tokens in a row of `token_rows`.
        seed: of the whole corpus.
    """

    right: Share
    documents: Count
    seq_length: Count
    seed: Natural

    def __post_init__(self):
        if not 0 <= self.right <= 1:
            raise ValueError(f"right must be a share, got {self.right}")
        if min(self.documents, self.seq_length) < 1:
            raise ValueError("documents and seq_length must each be at least 1")


def build_tokenizer() -> PreTrainedTokenizerFast:
    """A token for every number up to the largest target, every operator and every word, with the space before it."""
    numbers = [f" {number}" for number in range(LARGEST_TARGET, -1, -1)]  # largest first: " 14" before " 1"
    pieces = [*numbers, *(f" {operator}" for operator in OPERATORS), *WORDS, *":.\n"]
    return tokenizer_of(pieces, rf"(?:{'|'.join(numbers)})(?![0-9])| [-+*]|{'|'.join(WORDS)}|[:.\n]")


def documents(config: CountdownCorpusConfig) -> list[str]:
    """The texts; each ends with a full stop."""
    rng = random.Random(f"countdown corpus {config.seed}")
    found: list[str] = []
    while len(found) < config.documents:
        text = draw_expression(rng, rng.choice((3, 4)))
        target = evaluate(text) if rng.random() < config.right else rng.randint(1, LARGEST_TARGET)
        problem = Countdown(numbers_of(text), target)
        if room_of(problem) == "pretraining":
            found.append(f"{problem.question} {text}.")
    return found


def token_rows(
    config: CountdownCorpusConfig, tokenizer: PreTrainedTokenizerFast
) -> tuple[Int[np.ndarray, "N S"], Bool[np.ndarray, "N S"]]:
    """The corpus as token ids, a document and the end-of-text token a row, padded on the right.

    Returns:
        ids (int32) and the mask of the columns that are no padding, both [documents, seq_length].

    Raises:
        ValueError: the tokenizer cannot write a document down, or one is longer than `seq_length`.
    """
    return whole_rows(documents(config), tokenizer, config.seq_length)
