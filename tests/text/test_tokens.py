"""Surface texts join to the text; continuations are what the model would see; who is allowed, and why not."""

import types

import numpy as np
import pytest
from tiny_tokenizers import BYTE_LEVEL, EVERY, SENTENCEPIECE
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from gfn_jax.text.tokens import allowed_ids, encode_after, token_strings

ARITHMETIC = "0123456789+-=, ."
TEXTS = ["6 - 0 = 6, 6 - 4 = 2.", "Zoë’s 3 cats,\nand  no dogs 🙂!", "x=-1 == y", "\tdo .not ' tidy n't ."]


@pytest.fixture(scope="module", params=EVERY)
def tokenizer(request, tokenizer_named):
    return tokenizer_named(request.param)


@pytest.fixture(scope="module", params=BYTE_LEVEL)
def byte_level(request, tokenizer_named):
    return tokenizer_named(request.param)


@pytest.fixture(scope="module", params=SENTENCEPIECE)
def sentencepiece(request, tokenizer_named):
    return tokenizer_named(request.param)


def word_level(*words: str) -> PreTrainedTokenizerFast:
    backend = Tokenizer(models.WordLevel({w: i for i, w in enumerate(["[UNK]", "[EOS]", *words])}, "[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Split(Regex(r" ?[a-z]+| ?[0-9]| ?."), "isolated")
    backend.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="[UNK]", eos_token="[EOS]")


@pytest.mark.parametrize("text", TEXTS)
def test_surface_texts_join_to_the_text(tokenizer, text):
    strings = token_strings(tokenizer)
    ids = encode_after(tokenizer, "a", text)
    if any(not strings[i] for i in ids):  # an emoji in several byte tokens: the bytes alone are no text
        text = text.replace("🙂", "").replace("ë", "").replace("’", "")
        ids = encode_after(tokenizer, "a", text)
    assert "".join(strings[i] for i in ids) == text


def test_surface_texts_keep_spaces_bytes_and_words():
    strings = token_strings(word_level("a", " a", " 6", "6", "=", " ="))
    assert strings == ["", "", "a", " a", " 6", "6", "=", " ="]


def check_surface(tokenizer, expected):
    strings = token_strings(tokenizer)
    assert len(strings) == len(tokenizer)
    assert {t: strings[tokenizer.convert_tokens_to_ids(t)] for t in expected} == expected


def test_surface_texts_of_known_tokens_in_bytes(byte_level):
    check_surface(byte_level, {"Ġ6": " 6", "6": "6", "Ċ": "\n", "Ġ=": " =", "<|endoftext|>": "", "ĺ": ""})


def test_surface_texts_of_known_tokens_of_sentencepiece(sentencepiece):
    known = {"▁": " ", "6": "6", "<0x3D>": "=", "<0x0A>": "\n", "<0xE2>": "", "<s>": "", "<unk>": ""}
    check_surface(sentencepiece, known)


def test_special_tokens_of_the_wrapper_write_nothing():
    tokenizer = word_level("a", "[PAD]")
    assert token_strings(tokenizer)[3] == "[PAD]"
    tokenizer.pad_token = "[PAD]"
    assert token_strings(tokenizer) == ["", "", "a", ""]


def test_tokenizer_without_a_word_is_refused():
    with pytest.raises(ValueError, match="no token that is a word or a digit"):
        token_strings(word_level("=", "-"))


def test_slow_tokenizer_is_refused():
    with pytest.raises(ValueError, match="SimpleNamespace is not a fast tokenizer"):
        token_strings(types.SimpleNamespace(is_fast=False))


@pytest.mark.parametrize(("prefix", "text"), [("1 - 2 =", " -6"), ("6 - 4 = 2", ". The answer is 2.")])
def test_continuation_joins_to_the_whole(tokenizer, prefix, text):
    head, whole = (tokenizer(t, add_special_tokens=False)["input_ids"] for t in (prefix, prefix + text))
    assert head + encode_after(tokenizer, prefix, text) == whole


def test_continuation_differs_from_the_text_alone(sentencepiece):
    alone = sentencepiece(" -6", add_special_tokens=False)["input_ids"]
    after = encode_after(sentencepiece, "1 - 2 =", " -6")
    assert sentencepiece.convert_ids_to_tokens(after) == ["▁", "-", "6"]
    assert after != alone  # at the beginning of a text SentencePiece adds a space


def test_continuation_inside_a_token_is_tokenised_alone(byte_level):
    assert byte_level.convert_ids_to_tokens(encode_after(byte_level, "to day", "light")) == ["light"]
    assert byte_level.convert_ids_to_tokens(encode_after(byte_level, "a ", "to the")) == ["to", "Ġthe"]


def test_allowed_ids_against_every_token(tokenizer):
    strings = token_strings(tokenizer)
    ids = allowed_ids(tokenizer, ARITHMETIC, ".", "=")
    assert ids.dtype == np.int32
    assert (np.diff(ids) > 0).all()
    kept = {strings[i] for i in ids}
    assert all(text and set(text) <= set(ARITHMETIC) for text in kept)
    assert {c for c in ARITHMETIC if c not in " ."} <= {text.strip() for text in kept}
    assert {text for text in kept if "." in text} == {"."}
    assert not any("=" in text[:-1] for text in kept)
    for i in set(range(len(strings))) - set(ids.tolist()):  # every token left out has its reason
        text = strings[i]
        assert not text or set(text) - set(ARITHMETIC) or "." in text or "=" in text[:-1]


def test_allowed_ids_of_a_stop_that_is_a_special_token(byte_level):
    ids = allowed_ids(byte_level, "0123456789", byte_level.eos_token)
    assert byte_level.eos_token_id in ids
    assert len(ids) > 11


def test_missing_characters_are_named():
    with pytest.raises(ValueError, match="no token to write '0', '2'") as error:
        allowed_ids(word_level("1", " 1", "."), "01 2.", ".")
    assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match="'é'"):  # two byte tokens, neither of which is a text
        allowed_ids(word_level("1", "."), "1é", ".")


@pytest.mark.parametrize(("stop", "got"), [("..", r"\['\[UNK\]', '\[UNK\]'\]"), (";", r"\['\[UNK\]'\]"), ("", r"\[\]")])
def test_stop_must_be_one_known_token(stop, got):
    with pytest.raises(ValueError, match=f"must be one token of the tokenizer, it is {got}"):
        allowed_ids(word_level("0", "1"), "01", stop)
