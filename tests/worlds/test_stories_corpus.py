"""The corpus of the tiny story model: plain stories, none of them of the task's splits."""

import numpy as np
import pytest

from gfn_jax.worlds.stories import draw_stories
from gfn_jax.worlds.stories_corpus import PROMPT_WORDS, StoriesCorpusConfig, build_tokenizer, token_rows


@pytest.fixture(scope="module")
def tokenizer():
    return build_tokenizer()


@pytest.fixture(scope="module")
def rows(tokenizer):
    return token_rows(StoriesCorpusConfig(documents=500, seq_length=42, seed=0), tokenizer)


def test_stories_are_written_exactly(tokenizer):
    for story in draw_stories("test", 200):
        ids = tokenizer(story.text)["input_ids"]
        assert tokenizer.unk_token_id not in ids
        assert tokenizer.decode(ids) == story.text


def test_the_prompt_is_written_exactly_and_in_whole_words(tokenizer):
    text = "Beginning: Tom took a ball.\nEnding: He ran.\nMiddle:"
    ids = tokenizer(text)["input_ids"]
    assert tokenizer.decode(ids) == text
    assert tokenizer.unk_token_id not in ids
    assert tokenizer.unk_token_id in tokenizer(" a apple")["input_ids"]  # " a" is no part of it
    assert len(tokenizer(" an old")["input_ids"]) == 2


def test_rows_are_stories_with_their_end(tokenizer, rows):
    ids, mask = rows
    assert ids.shape == mask.shape == (500, 42)
    for row, real in zip(ids[:50], mask[:50]):
        length = real.sum()
        assert real[:length].all()
        assert row[length - 1] == tokenizer.eos_token_id
        assert tokenizer.decode(row[: length - 1]).count(".") == 5
        assert (row[length:] == tokenizer.pad_token_id).all()


def test_no_document_is_a_prompt_or_a_held_out_story(tokenizer, rows):
    ids, _ = rows
    prompt_ids = tokenizer.convert_tokens_to_ids([*PROMPT_WORDS, ":", "\n"])
    assert not np.isin(ids, prompt_ids).any()
    held = {story.beginning.text for room in ("test", "validation", "training") for story in draw_stories(room, 500)}
    texts = [tokenizer.decode(row).split("<eos>")[0] for row in ids]
    assert not any(text.startswith(tuple(held)) for text in texts)


def test_the_seed_decides(tokenizer, rows):
    again, _ = token_rows(StoriesCorpusConfig(documents=500, seq_length=42, seed=0), tokenizer)
    other, _ = token_rows(StoriesCorpusConfig(documents=500, seq_length=42, seed=1), tokenizer)
    assert (again == rows[0]).all()
    assert (other != rows[0]).any()


def test_a_row_too_short_is_an_error(tokenizer):
    with pytest.raises(ValueError, match="seq_length is 20"):
        token_rows(StoriesCorpusConfig(documents=3, seq_length=20, seed=0), tokenizer)
