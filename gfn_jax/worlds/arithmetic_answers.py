"""Reading answers out of completions, and grading.

The answer of a text is the number it ends with, spaces and full stops aside: the last result of a chain Z,
or the 6 of "The answer is 6.". A text that ends otherwise has no answer, `None`, wrong for every question.
(The paper's code reports -1 there, and so counts an unreadable answer as right where the right one is -1.)
"""

import re

from gfn_jax.worlds.arithmetic_examples import ArithmeticExample, worked_chain

# ASCII digits, in a word of their own; the bound keeps `int` from raising at thousands of digits.
_ANSWER = re.compile(r"(?:^|[\s=])\.*([+-]?[0-9]{1,1000})[\s.]*\Z")


def extract_answer(text: str) -> int | None:
    """The number that a chain Z, or a text "... The answer is 6.", ends with; None where there is none."""
    match = _ANSWER.search(text)
    return None if match is None else int(match[1])


def grade(example: ArithmeticExample, completion: str) -> bool:
    """Whether the completion Z, or Z with Y, ends with the example's answer."""
    return extract_answer(completion) == example.answer


def is_correct_chain(example: ArithmeticExample, completion: str) -> bool:
    """Whether Z is the chain that solves the example step by step, however it is spaced.

    Stricter than `grade`: a chain may end with the right number by wrong operands.
    """
    return _marks(completion) == _marks(worked_chain(example.expression))


def _marks(text: str) -> list[str]:
    """The numbers and signs of a text, without the space between them."""
    return re.findall(r"[0-9]+|\S", text)
