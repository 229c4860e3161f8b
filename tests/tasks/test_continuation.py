import dataclasses

import jax
import numpy as np
import pytest

from gfn_jax.tasks.continuation import ILLEGAL, Continuation, ContinuationConfig
from gfn_jax.text.tokens import token_strings
from gfn_jax.worlds.stories_corpus import build_tokenizer

CONFIG = ContinuationConfig(
    path=None,
    raw=False,
    count=200,
    validation=20,
    begin_of_text=False,
    stop=".",
    min_length=1,
    max_length=12,
    illegal=tuple(ILLEGAL),
)


@pytest.fixture(scope="module")
def stories():
    tokenizer = build_tokenizer()
    return Continuation(CONFIG, tokenizer, len(tokenizer))


@pytest.mark.parametrize(
    ("rule", "illegal", "legal"),
    [
        ("newlines", ["\n", " \n", "\t"], [" ", " the"]),
        ("urls", [" http", "https", "www", "://"], [" web", ":"]),
        ("repeats", ["--", "!!", " ====", '""', "__", "..."], ["-", " (", '."', "?!", "oo"]),
        ("initials", [" J", "B"], [" I", " A", "a", " Jo"]),
        ("titles", [" Mr", "Dr", " etc"], [" Mrk", " No", " mr"]),
    ],
)
def test_rules_read_the_surface_of_a_token(rule, illegal, legal):
    assert all(map(ILLEGAL[rule], illegal))
    assert not any(map(ILLEGAL[rule], legal))


def test_prompt_and_context_are_the_same_and_the_answer_is_the_stop(stories):
    query = stories.queries("validation")
    assert jax.tree.all(jax.tree.map(lambda a, b: (a == b).all(), query.prompt, query.context))
    np.testing.assert_array_equal(query.answer.ids, np.full((20, 1), stories.stop_id))
    last = np.asarray(query.prompt.ids)[:, -1]
    assert (last == stories.stop_id).all()  # prompts are whole sentences
    text = stories.question("validation", 3)
    row = np.asarray(query.prompt.ids)[3][np.asarray(query.prompt.mask)[3]]
    assert stories.tokenizer.decode(row) == text


def test_splits_share_no_prompt(stories):
    train, validation = stories.splits["train"], stories.splits["validation"]
    assert (len(train), len(validation)) == (180, 20)
    assert not set(train) & set(validation)
    assert {text.count(".") for text in train} == {1, 2, 3}


def test_special_tokens_and_ids_that_no_text_has_are_illegal(stories):
    wider = Continuation(CONFIG, stories.tokenizer, stories.vocab_size + 5)
    ids = set(np.asarray(wider.constraint().token_ids).tolist())
    assert not ids & {*stories.tokenizer.all_special_ids, *range(stories.vocab_size, stories.vocab_size + 5)}
    assert stories.stop_id in ids
    assert (wider.constraint().min_length, wider.constraint().max_length) == (1, 12)


def test_an_unknown_rule_and_a_missing_begin_of_text_are_said(stories):
    with pytest.raises(ValueError, match="unknown emojis"):
        dataclasses.replace(CONFIG, illegal=("emojis",))
    with pytest.raises(ValueError, match="no such token"):
        Continuation(dataclasses.replace(CONFIG, begin_of_text=True), stories.tokenizer, 200).queries("train")


@pytest.mark.parametrize(
    ("name", "fewest", "most"),
    [("byte-level", 40, 50), pytest.param("tokenizers/gpt2", 400, 600, marks=pytest.mark.reference)],
)
def test_tokens_of_bytes_write_one_full_stop_and_nothing_behind_it(name, fewest, most, tokenizer_named):
    tokenizer = tokenizer_named(name)
    task = Continuation(CONFIG, tokenizer, len(tokenizer))
    strings = token_strings(tokenizer)
    legal = np.asarray(task.constraint().token_ids).tolist()
    assert [strings[i] for i in legal if "." in strings[i]] == ["."]
    assert strings[task.stop_id] == "."
    assert fewest < len(tokenizer) - len(legal) < most
    for text in (" the", " I", ",", "!", '"'):
        assert text in {strings[i] for i in legal}
    assert task.decode(tokenizer(" He left")["input_ids"]) == " He left"
