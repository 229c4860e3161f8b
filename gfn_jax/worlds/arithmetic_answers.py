"""Reading answers out of completions, and grading.

The answer of a text is the number it ends with, spaces and full stops aside: the last result of a chain Z,
or the 6 of "The answer is 6.". A text that ends otherwise has no answer, `None`, wrong for every question.
(The paper's code reports -1 there, and so counts an unreadable answer as right where the right one is -1.)
"""

import re
from collections import Counter
from collections.abc import Iterator, Sequence

from gfn_jax.worlds.arithmetic_examples import ArithmeticExample

# ASCII digits, in a word of their own; the bound keeps `int` from raising at thousands of digits.
_ANSWER = re.compile(r"(?:^|[\s=])\.*([+-]?[0-9]{1,1000})[\s.]*\Z")
_STEP = re.compile(r"(-?[0-9]{1,9})([+-])(-?[0-9]{1,9})=(-?[0-9]{1,9})")


def extract_answer(text: str) -> int | None:
    """The number that a chain Z, or a text "... The answer is 6.", ends with; None where there is none."""
    match = _ANSWER.search(text)
    return None if match is None else int(match[1])


def grade(example: ArithmeticExample, completion: str) -> bool:
    """Whether the completion Z, or Z with Y, ends with the example's answer."""
    return extract_answer(completion) == example.answer


def is_correct_chain(example: ArithmeticExample, completion: str) -> bool:
    """Whether Z solves the example step by step, however it is spaced: `right_chain` finds one."""
    return right_chain(example, completion) is not None


def right_chain(example: ArithmeticExample, completion: str) -> str | None:
    """Z without its spaces, if every operand is used once, with its sign, in some order and grouping; else None.

    Stricter than `grade`: a chain may end with the right number by wrong operands. "9 + 4 - 8" is solved by
    "9 + 4 = 13, 13 - 8 = 5", by "9 - 8 = 1, 1 + 4 = 5" and by "8 - 4 = 4, 9 - 4 = 5". Every step's result must be
    there, and right.
    """
    chain = "".join(completion.split()) if not re.search(r"[0-9]\s+[0-9]", completion) else ""
    steps = [_STEP.fullmatch(step) for step in chain.split(",")]
    if not all(steps):
        return None
    calls = [(int(m[1]), m[2], int(m[3]), int(m[4])) for m in steps if m is not None]
    # What is still to be added up, as (sign, number, whether it is an operand and no result).
    first, *rest = example.expression.split(" ")
    pool = Counter(
        [(1, int(first), True), *((-1 if o == "-" else 1, int(n), True) for o, n in zip(rest[::2], rest[1::2]))]
    )
    return chain if len(calls) == pool.total() - 1 and _adds_up(calls, pool) else None


Pool = Counter[tuple[int, int, bool]]


def _adds_up(calls: Sequence[tuple[int, str, int, int]], pool: Pool) -> bool:
    """Whether the calls (left, operator, right, result) use up the pool, to its last number with sign +.

    With sign - a step takes numbers together that are subtracted: in 9 - (4 + 8), "4 + 8 = 12" stands for -12.
    """
    if not calls:
        return next(iter(pool))[0] > 0
    (left, operator, right, result), *later = calls
    turn = 1 if operator == "+" else -1
    return result == left + turn * right and any(
        _adds_up(later, last + Counter([(sign, result, False)]))
        for sign in (1, -1)
        for rest in _without(pool, sign, left)
        for last in _without(rest, sign * turn, right)
    )


def _without(pool: Pool, sign: int, number: int) -> Iterator[Pool]:
    """The pool without sign * number, once for every way to read it: "-4" is also the operand 4 with the other sign."""
    readings = [(sign, number, True), (sign, number, False)]
    if number < 0:
        readings.append((-sign, -number, True))
    for reading in readings:
        if pool[reading]:
            yield pool - Counter([reading])
