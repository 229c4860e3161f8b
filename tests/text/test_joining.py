"""What is tokenised in parts is what the joined text is tokenised to, or the difference is said."""

import pytest
from tiny_tokenizers import BYTE_LEVEL, EVERY

from gfn_jax.text.joining import (
    decode_after,
    encode_answer,
    encode_prompt,
    joining_difference,
    leading_ids,
)
from gfn_jax.text.tokens import encode_after
from gfn_jax.text.wordlevel import build_tokenizer
from gfn_jax.worlds.arithmetic_examples import make_example

EXPRESSIONS = ("6 - 0 - 4 - 8", "1 + 9 + 9 + 9 + 9", "0 - 7 - 8", "3 + 5 - 8", "9 - -2 + 1")


@pytest.fixture(scope="module", params=EVERY)
def tokenizer(request, tokenizer_named):
    return tokenizer_named(request.param)


@pytest.mark.parametrize("expression", EXPRESSIONS)
def test_arithmetic_in_parts_is_the_joined_text(tokenizer, expression):
    example = make_example(expression, with_rationale=True)
    prompt, completion, answer = example.question, example.completion, example.answer_text
    ids = [
        *encode_prompt(tokenizer, prompt),
        *encode_after(tokenizer, prompt, completion),
        *encode_answer(tokenizer, prompt, answer),
    ]
    assert joining_difference(tokenizer, ids, prompt + completion + answer) is None
    assert ids == tokenizer(prompt + completion + answer)["input_ids"]


def test_decoding_keeps_the_space_in_front(tokenizer):
    prompt = encode_prompt(tokenizer, "Question: 6 - 0 = ? Answer:")
    ids = encode_after(tokenizer, "Question: 6 - 0 = ? Answer:", " 6 - 0 = 6, n't")
    assert decode_after(tokenizer, prompt, ids) == " 6 - 0 = 6, n't"


@pytest.mark.parametrize("name", BYTE_LEVEL)
def test_a_difference_is_named(name, tokenizer_named):
    tokenizer = tokenizer_named(name)
    ids = encode_prompt(tokenizer, "a to day") + encode_after(tokenizer, "to day", "light")
    assert joining_difference(tokenizer, ids, "a to daylight") == "apart 'Ġday' 'light', joined 'Ġdaylight'"
    assert joining_difference(tokenizer, ids[:-1], "a to day light") == "apart nothing, joined 'Ġlight'"


def test_special_tokens_stand_in_front():
    tokenizer = build_tokenizer()
    assert leading_ids(tokenizer) == []
    assert encode_prompt(tokenizer, "") == [tokenizer.eos_token_id]
    from tokenizers.processors import TemplateProcessing

    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="<eos> $A", special_tokens=[("<eos>", 1)])
    assert leading_ids(tokenizer) == [1]
    assert encode_prompt(tokenizer, "Answer:") == [1, *encode_after(tokenizer, "", "Answer:")]


def test_an_empty_answer_is_refused():
    with pytest.raises(ValueError, match="answer is empty"):
        encode_answer(build_tokenizer(), "Answer:", "")
