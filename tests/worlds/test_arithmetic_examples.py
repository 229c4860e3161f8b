"""Expressions, chains and the text of examples."""

import random

import pytest

from gfn_jax.worlds.arithmetic_examples import (
    ArithmeticExample,
    evaluate,
    fill_results,
    make_example,
    strip_results,
    worked_chain,
)


def test_texts_of_the_papers_first_demonstration():
    example = make_example("6 - 0 - 4 - 8", with_rationale=True)
    assert example == ArithmeticExample(
        question="Question: 6 - 0 - 4 - 8 = ? Answer:",
        answer=-6,
        rationale="6 - 0 = 6, 6 - 4 = 2, 2 - 8 = -6",
    )
    assert example.expression == "6 - 0 - 4 - 8"
    assert example.completion == " 6 - 0 = 6, 6 - 4 = 2, 2 - 8 = -6"
    assert example.written_completion == " 6 - 0 =, 6 - 4 =, 2 - 8 ="
    assert example.answer_text == ". The answer is -6."
    assert example.demonstration == (
        "Question: 6 - 0 - 4 - 8 = ? Answer: 6 - 0 = 6, 6 - 4 = 2, 2 - 8 = -6. The answer is -6.\n"
    )


def test_evaluation_agrees_with_python():
    rng = random.Random(0)
    for _ in range(2_000):
        text = str(rng.randint(-30, 30))
        for _ in range(rng.randint(1, 6)):
            text += f" {rng.choice('+-')} {rng.randint(-30, 30)}"
        assert evaluate(text) == eval(text)
        assert worked_chain(text).endswith(f" = {evaluate(text)}")


def test_results_are_filled_in_and_stripped():
    written = "5 - 9 =, -4 - 3 ="
    assert fill_results(written) == "5 - 9 = -4, -4 - 3 = -7" == worked_chain("5 - 9 - 3")
    assert strip_results(fill_results(written)) == written
    assert fill_results("5 - 9 = 7") == "5 - 9 = -4"  # the tool's word, not the text's


@pytest.mark.parametrize("text", ["", "6", "6 -", "6 - 0 -", "6-0", "6 * 2", " 6 - 0", "6 - 0 ", "6 - x", "6 - 0\n"])
def test_text_that_is_no_expression_is_refused(text):
    with pytest.raises(ValueError, match="expected an expression like"):
        evaluate(text)


def test_other_malformed_texts_are_refused():
    with pytest.raises(ValueError, match="expected a question like"):
        ArithmeticExample("6 - 0 - 4 = ?", 2).expression  # noqa: B018
    with pytest.raises(ValueError, match="expected a chain like"):
        fill_results("6 - 0 =, 6 - 4")
    with pytest.raises(ValueError, match="not a demonstration"):
        make_example("6 - 0").completion  # noqa: B018
