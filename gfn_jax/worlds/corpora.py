"""The synthetic corpora that tiny bases are pretrained on, by name."""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
from jaxtyping import Bool, Int
from transformers import PreTrainedTokenizerFast

from gfn_jax.text import wordlevel
from gfn_jax.worlds import arithmetic_corpus, countdown_corpus, numbers_corpus, reviews_corpus, stories_corpus


@dataclasses.dataclass(frozen=True)
class CorpusKind:
    """How to make one.

    Attributes:
        config: the frozen dataclass that describes it; `documents`, `seq_length` and `seed` are among its fields.
        build_tokenizer: the tokenizer of the models that are trained on it.
        token_rows: (config, tokenizer) -> ids and mask, [documents, seq_length] each, one document a row.
    """

    config: type
    build_tokenizer: Callable[[], PreTrainedTokenizerFast]
    token_rows: Callable[
        [Any, PreTrainedTokenizerFast], tuple[Int[np.ndarray, "documents S"], Bool[np.ndarray, "documents S"]]
    ]


CORPORA: dict[str, CorpusKind] = {
    "arithmetic": CorpusKind(arithmetic_corpus.CorpusConfig, wordlevel.build_tokenizer, arithmetic_corpus.token_rows),
    "numbers": CorpusKind(
        numbers_corpus.NumbersCorpusConfig, numbers_corpus.build_tokenizer, numbers_corpus.token_rows
    ),
    "stories": CorpusKind(
        stories_corpus.StoriesCorpusConfig, stories_corpus.build_tokenizer, stories_corpus.token_rows
    ),
    "reviews": CorpusKind(
        reviews_corpus.ReviewsCorpusConfig, reviews_corpus.build_tokenizer, reviews_corpus.token_rows
    ),
    "countdown": CorpusKind(
        countdown_corpus.CountdownCorpusConfig, countdown_corpus.build_tokenizer, countdown_corpus.token_rows
    ),
}


def corpus_kind(name: str) -> CorpusKind:
    """The corpus of that name.

    Raises:
        ValueError: there is none.
    """
    if name not in CORPORA:
        raise ValueError(f"corpus {name!r} is unknown; there are {', '.join(CORPORA)}")
    return CORPORA[name]
