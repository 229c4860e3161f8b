import pytest
from tiny_tokenizers import SENTENCEPIECE

from gfn_jax.text.documents import document_rows
from gfn_jax.text.wordlevel import build_tokenizer


def test_a_document_a_row_with_its_end():
    tokenizer = build_tokenizer()
    rows = document_rows(["1 + 2", "1 + 2 = 3 + 4"], tokenizer, 6, end_of_document=True)
    assert rows.cut == 1
    assert rows.mask.sum(1).tolist() == [4, 6]
    assert rows.ids[0, 3] == tokenizer.eos_token_id
    assert tokenizer.eos_token_id not in rows.ids[1]  # its end is not there
    assert tokenizer.decode(rows.ids[1]) == "1 + 2 = 3 +"


def test_a_document_that_loses_only_its_end_is_cut_too():
    assert [document_rows(["1 + 2"], build_tokenizer(), length, True).cut for length in (3, 4)] == [1, 0]


def test_without_an_end():
    rows = document_rows(["1 + 2"], build_tokenizer(), 6, end_of_document=False)
    assert rows.mask.sum() == 3
    assert rows.cut == 0


def test_an_end_that_the_tokenizer_lacks():
    tokenizer = build_tokenizer()
    tokenizer.eos_token = None
    with pytest.raises(ValueError, match="end_of_document"):
        document_rows(["1"], tokenizer, 6, end_of_document=True)


@pytest.mark.parametrize("name", SENTENCEPIECE)
def test_a_document_begins_as_a_prompt_does(name, tokenizer_named):
    tokenizer = tokenizer_named(name)
    rows = document_rows(["Once upon a time"], tokenizer, 20, end_of_document=True)
    assert rows.ids[0, : rows.mask.sum()].tolist() == [
        *tokenizer("Once upon a time")["input_ids"],
        tokenizer.eos_token_id,
    ]
