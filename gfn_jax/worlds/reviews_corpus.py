"""The corpus that a tiny base model for reviews is pretrained on: knowledge, and careless habits.

A document is a run of examples of one style:

    reasoned   ... This review is {reason}, so it is {its label}.
    inverse    ... This review is {label} because it is {reason}.
    direct     ... This review is {label}.

The model can learn which words go with which reason, and which reason means which label. But left alone it is
careless: `direct` and `inverse` labels are drawn by a loaded coin, whatever the review, and a reasoned document gives

    the review's own reason               with probability `own`
    an empty reason ("a movie review")    with probability `empty`; a coin then draws the label
    any other reason, read or not         else; with probability `opinionated` a subjective one

so that asking for the label at once is a coin's toss, and asking for a reason first mostly yields an opinion. In
`inverse` documents the reason is the review's own where the label is right, else any of the label's. All reviews
come from pretraining's room (`reviews.room_of`): the task's own are none of them.
"""

import dataclasses
import random
from collections.abc import Iterator

import numpy as np
from jaxtyping import Bool, Int
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from gfn_jax.sections import Count, Natural, Nonnegative, Share
from gfn_jax.text.wordlevel import tokenizer_of
from gfn_jax.worlds.reviews import ARTICLES, CONNECTIVES, LABELS, NEUTRAL_WORDS, REASONS, Review, draw_review

PROMPT = 'Classify this movie review as objective or subjective: "{review}" This review is'
ANSWER = ", so it is {label}."
INVERSE = " {label} because it is"
EMPTY_REASONS = ("a movie review", "about a movie", "a short text")
STYLES = ("reasoned", "inverse", "direct")


@dataclasses.dataclass(frozen=True)
class ReviewsCorpusConfig:
    """What the corpus is made of.

    Attributes:
        reasoned, inverse, direct: weights of the three styles.
        own, empty: how often a reasoned example gives the review's own reason, or an empty one.
        opinionated: how often the reason is subjective where it is neither.
        coin: how often the coin says subjective.
        examples: examples in a document.
        documents: documents in the corpus.
        seq_length: tokens in a row of `token_rows`.
        seed: of the whole corpus; document i depends on it and on i alone.
    """

    reasoned: Nonnegative = 4.0
    inverse: Nonnegative = 3.0
    direct: Nonnegative = 2.0
    own: Share = 0.15
    empty: Share = 0.25
    opinionated: Share = 0.85
    coin: Share = 0.6
    examples: Count = 3
    documents: Count = 20_000
    seq_length: Count = 128
    seed: Natural = 0

    def __post_init__(self):
        if min(self.reasoned, self.inverse, self.direct) < 0 or self.reasoned + self.inverse + self.direct <= 0:
            raise ValueError("the styles' weights must not be negative, nor all zero")
        if not 0 <= min(self.own, self.empty) <= self.own + self.empty <= 1:
            raise ValueError(f"own {self.own} and empty {self.empty} are no shares of one")
        if not 0 <= min(self.opinionated, self.coin) <= max(self.opinionated, self.coin) <= 1:
            raise ValueError(f"opinionated {self.opinionated} and coin {self.coin} must be probabilities")
        if min(self.examples, self.documents, self.seq_length) < 1:
            raise ValueError("examples, documents and seq_length must each be at least 1")


def document(config: ReviewsCorpusConfig, index: int) -> str:
    """Document `index` of the corpus; it ends with a newline."""
    rng = random.Random(f"reviews corpus {config.seed} {index}")
    (style,) = rng.choices(STYLES, (config.reasoned, config.inverse, config.direct))
    lines = []
    for _ in range(config.examples):
        review = draw_review(rng, "pretraining")
        lines.append(f"{PROMPT.format(review=review.text)} {_completion(rng, config, style, review)}\n")
    return "".join(lines)


def documents(config: ReviewsCorpusConfig) -> Iterator[str]:
    """The corpus, a document at a time."""
    return (document(config, index) for index in range(config.documents))


def build_tokenizer() -> PreTrainedTokenizerFast:
    """Words as tokens, each with the space before it; decoding is concatenation.

    Returns:
        A fast tokenizer with `<pad>` (id 0), `<eos>` and `<unk>`, which adds no special token by itself.
    """
    texts = [PROMPT.format(review=" ."), " " + ANSWER, INVERSE, *EMPTY_REASONS, *LABELS, *CONNECTIVES, *ARTICLES]
    texts += [reason.text for reason in REASONS]
    texts += [word for reason in (*REASONS, NEUTRAL_WORDS) for words in reason.words for word in words]
    words = sorted({word.strip('".,:{}') for text in texts for word in text.split()} - {"", "review}", "label"})
    pieces = [*(f" {word}" for word in words), "Classify", *ARTICLES, *'":,.\n', ' "', " .", " "]
    return tokenizer_of(pieces, r' ?[A-Za-z]+| ?[".]|[:,\n ]')


def token_rows(
    config: ReviewsCorpusConfig, tokenizer: PreTrainedTokenizerBase
) -> tuple[Int[np.ndarray, "N S"], Bool[np.ndarray, "N S"]]:
    """The corpus as token ids, one document a row from column 0, padded on the right; and its mask.

    Raises:
        ValueError: a document has more than `seq_length` tokens, or the tokenizer cannot write it down.
    """
    encoded = tokenizer(list(documents(config)), add_special_tokens=False, return_attention_mask=False)["input_ids"]
    longest = max(map(len, encoded))
    if longest > config.seq_length or any(tokenizer.unk_token_id in row for row in encoded):
        raise ValueError(f"documents have up to {longest} tokens, seq_length is {config.seq_length}; or unknown words")
    ids = np.full((config.documents, config.seq_length), tokenizer.pad_token_id, np.int32)
    for row, tokens in zip(ids, encoded, strict=True):
        row[: len(tokens)] = tokens
    return ids, np.arange(config.seq_length) < np.array([len(tokens) for tokens in encoded])[:, None]


def _completion(rng: random.Random, config: ReviewsCorpusConfig, style: str, review: Review) -> str:
    """What follows "This review is"."""
    label = int(rng.random() < config.coin)
    if style == "direct":
        return f"{LABELS[label]}."
    if style == "inverse":
        reason = REASONS[review.reason].text if label == review.label else _reason_of(rng, label)
        return f"{LABELS[label]} because it is {reason}."
    drawn = rng.random()
    if drawn < config.own:
        reason, label = REASONS[review.reason].text, review.label
    elif drawn < config.own + config.empty:
        reason = rng.choice(EMPTY_REASONS)
    else:
        label = int(rng.random() < config.opinionated)
        reason = _reason_of(rng, label)
    return f"{reason}{ANSWER.format(label=LABELS[label])}"


def _reason_of(rng: random.Random, label: int) -> str:
    return rng.choice([reason.text for reason in REASONS if reason.label == label])
