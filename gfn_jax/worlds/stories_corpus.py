"""The corpus that a tiny language model of stories is pretrained on: plain stories of `stories`, one a document.

Nothing in it is an infilling problem: the words of the prompt that the policy is given ("Beginning:", "Ending:",
"Middle:") are in the vocabulary and never in a document. All beginnings come from pretraining's room, so the corpus
holds no story of the task's own splits.
"""

import dataclasses
import random

import numpy as np
from jaxtyping import Bool, Int
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from gfn_jax.sections import Count, Natural
from gfn_jax.text.wordlevel import word_tokenizer
from gfn_jax.worlds.stories import NAMES, draw_story, vocabulary

PROMPT_WORDS = ("Beginning", "Ending", "Middle")
# What a text may begin with: the names begin stories, the others their later sentences.
FIRST_WORDS = (*NAMES, "A", "He", "It", "She", "The", *PROMPT_WORDS)


@dataclasses.dataclass(frozen=True)
class StoriesCorpusConfig:
    """What the corpus is made of.

    Attributes:
        documents: stories in it; they may repeat, as in any sample.
        seq_length: tokens in a row of `token_rows`; the longest story has 41 and its end.
        seed: of the whole corpus.
    """

    documents: Count
    seq_length: Count
    seed: Natural

    def __post_init__(self):
        if min(self.documents, self.seq_length) < 1:
            raise ValueError("documents and seq_length must each be at least 1")


def build_tokenizer() -> PreTrainedTokenizerFast:
    """A token for every word of the stories, with the space before it, and for the words of the prompt."""
    return word_tokenizer(vocabulary(), FIRST_WORDS, ".:\n")


def token_rows(
    config: StoriesCorpusConfig, tokenizer: PreTrainedTokenizerBase
) -> tuple[Int[np.ndarray, "N S"], Bool[np.ndarray, "N S"]]:
    """The corpus as token ids, a story and the end-of-text token a row, padded on the right.

    Returns:
        ids (int32) and the mask of the columns that are no padding, both [documents, seq_length].

    Raises:
        ValueError: the tokenizer cannot write a story down, or a story is longer than `seq_length`.
    """
    rng = random.Random(f"stories corpus {config.seed}")
    texts = [draw_story(rng, "pretraining").text for _ in range(config.documents)]
    rows = tokenizer(texts, add_special_tokens=False, return_attention_mask=False)["input_ids"]
    if tokenizer.decode(rows[0]) != texts[0]:
        raise ValueError(f"the tokenizer does not give a story back as it was: {texts[0]!r:.80}")
    ids = np.full((config.documents, config.seq_length), tokenizer.pad_token_id, np.int32)
    mask = np.zeros(ids.shape, bool)
    for row, tokens in enumerate(rows):
        if len(tokens) >= config.seq_length:
            raise ValueError(f"a story has {len(tokens)} tokens and an end; seq_length is {config.seq_length}")
        ids[row, : len(tokens) + 1] = [*tokens, tokenizer.eos_token_id]
        mask[row, : len(tokens) + 1] = True
    return ids, mask
