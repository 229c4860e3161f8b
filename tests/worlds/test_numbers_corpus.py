"""The corpus of the tiny base for random numbers: half valid, skewed, and written down exactly."""

import collections
import dataclasses
import random

import numpy as np
import pytest

from gfn_jax.worlds.numbers_corpus import (
    LARGEST,
    OTHERS,
    PROMPTS,
    NumbersCorpusConfig,
    build_tokenizer,
    documents,
    ranking,
    token_rows,
)

CONFIG = NumbersCorpusConfig(valid=0.5, skew=1.5, documents=3000, seq_length=112, seed=0)
VALID = {str(number) for number in range(LARGEST + 1)}


def answers(config: NumbersCorpusConfig) -> list[str]:
    texts = documents(config)
    prompts = [next(prompt for prompt in PROMPTS if text.startswith(prompt)) for text in texts]
    return [text.removeprefix(prompt) for text, prompt in zip(texts, prompts, strict=True)]


def test_half_of_the_answers_are_numbers_and_few_of_those_are_common():
    counts = collections.Counter(answers(CONFIG))
    valid = {text: count for text, count in counts.items() if text in VALID}
    assert 0.46 < sum(valid.values()) / CONFIG.documents < 0.54
    assert max(valid, key=valid.get) == str(ranking()[0])
    assert sorted(valid.values())[-8:] > [20] * 8
    assert len(valid) > 60


def test_other_answers_are_no_valid_numbers():
    rng = random.Random(0)
    assert not VALID & {other(rng, number) for other in OTHERS for number in range(LARGEST + 1) for _ in range(5)}


def test_the_corpus_depends_on_its_seed_alone():
    assert sorted(ranking()) == list(range(LARGEST + 1))
    assert documents(CONFIG) == documents(CONFIG)
    assert documents(CONFIG) != documents(dataclasses.replace(CONFIG, seed=1))


def test_rows_hold_a_document_and_its_end():
    tokenizer = build_tokenizer()
    few = dataclasses.replace(CONFIG, documents=200)
    ids, mask = token_rows(few, tokenizer)
    for text, row, real in zip(documents(few), ids, mask, strict=True):
        assert tokenizer.decode(row[real][:-1]) == text
        assert row[real][-1] == tokenizer.eos_token_id
        assert (row[~real] == tokenizer.pad_token_id).all()
        assert (np.diff(real.astype(int)) <= 0).all()
    assert tokenizer.unk_token_id not in ids
    with pytest.raises(ValueError, match="longer than seq_length"):
        token_rows(dataclasses.replace(few, seq_length=80), tokenizer)
