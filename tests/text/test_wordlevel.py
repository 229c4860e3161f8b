"""The tiny tokenizer: exact round trips, whole numbers, an ordinary folder."""

import json
import random

import pytest
from transformers import AutoTokenizer

from gfn_jax.text.wordlevel import build_tokenizer

LINE = "Question: 6 - 0 - 4 - 8 = ? Answer: 6 - 0 = 6, 6 - 4 = 2, 2 - 8 = -6. The answer is -6.\n"


@pytest.fixture(scope="module")
def tokenizer():
    return build_tokenizer()


def test_example_is_cut_into_words_and_whole_numbers(tokenizer):
    expected = ["Question", ":", " 6", " -", " 0", " -", " 4", " -", " 8", " =", " ?", " Answer", ":"]
    expected += [
        " 6",
        " -",
        " 0",
        " =",
        " 6",
        ",",
        " 6",
        " -",
        " 4",
        " =",
        " 2",
        ",",
        " 2",
        " -",
        " 8",
        " =",
        " -6",
    ]
    expected += [".", " The", " answer", " is", " -6", ".", "\n"]
    assert tokenizer.tokenize(LINE) == expected
    assert tokenizer.tokenize(" -6 - 6") == [" -6", " -", " 6"]


def test_numbers_with_a_space_are_single_tokens(tokenizer):
    for number in range(-60, 61):
        assert len(tokenizer(f" {number}").input_ids) == 1, number
    assert tokenizer.tokenize(" 61 100 -607") == [" 6", "1", " 10", "0", " -60", "7"]


def test_round_trip_of_random_strings_over_the_alphabet(tokenizer):
    rng = random.Random(0)
    words = ["Question", " Question", "Answer", " Answer", "The", " The", " answer", " is", " ", "  ", "\n"]
    pieces = words + list("0123456789+-=?,.:") + [" 6", " -6", " - 6", " -0", " 100", "-59"]
    for _ in range(2_000):
        text = "".join(rng.choices(pieces, k=rng.randrange(12)))
        ids = tokenizer(text).input_ids
        assert tokenizer.unk_token_id not in ids, text
        assert tokenizer.decode(ids) == text


def test_what_lies_outside_the_alphabet_is_unknown(tokenizer):
    assert tokenizer.convert_ids_to_tokens(tokenizer(" 6 * 2").input_ids) == [" 6", " ", "<unk>", " 2"]


@pytest.mark.parametrize("model_type", [None, "gpt2", "gpt_neox", "llama"])
def test_saved_folder_loads_as_any_hugging_face_tokenizer(tokenizer, tmp_path, monkeypatch, model_type):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    tokenizer.save_pretrained(tmp_path)
    if model_type is not None:  # beside a model's config AutoTokenizer may choose another class
        (tmp_path / "config.json").write_text(json.dumps({"model_type": model_type}))
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    assert loaded(LINE).input_ids == tokenizer(LINE).input_ids
    assert loaded.decode(loaded(LINE).input_ids) == LINE
    assert (loaded.pad_token_id, loaded.eos_token_id, loaded.unk_token_id) == (0, 1, 2)
    assert len(loaded) == len(tokenizer) == 155


def test_size_is_a_choice_with_a_lower_bound():
    assert build_tokenizer(largest=99).tokenize(" 99 -99 100") == [" 99", " -99", " 10", "0"]
    with pytest.raises(ValueError, match="at least 9, got 8"):
        build_tokenizer(largest=8)
