"""Countdown: an expression of given numbers with a given value, every right one of which can be listed.

    Numbers: 2 4 5 7 Target: 24 Answer: 7 - 5 * 2 ...        X, and Z, an expression that ends with a full stop

Each number is used exactly once, between two of them stands + - or *, and an expression is worked out from left to
right, as a pocket calculator does: 2 + 4 * 5 is 30. So no parentheses are needed, and n numbers have at most
n! 3^(n-1) expressions. Two right ones are the same solution where they differ by commutation and association alone:
2 + 4 * 5 is 4 + 2 * 5, and 2 * 3 * 4 in any order is one.
"""

import dataclasses
import hashlib
import itertools
import random
import re
from typing import Any, Literal

OPERATORS = ("+", "-", "*")
DIGITS = tuple(range(1, 10))
LARGEST_TARGET = 40
_EXPRESSION = re.compile(r"-?[0-9]{1,9}(?: [-+*] [0-9]{1,9})*")

Room = Literal["bench", "pretraining"]
# A number, or the name of a sum or product with its parts in order, each with its sign.
Form = int | tuple[str, tuple[Any, ...]]


@dataclasses.dataclass(frozen=True)
class Countdown:
    """The numbers, in ascending order, and the value that is wanted."""

    numbers: tuple[int, ...]
    target: int

    @property
    def question(self) -> str:
        """X."""
        return f"Numbers: {' '.join(map(str, self.numbers))} Target: {self.target} Answer:"


def evaluate(expression: str) -> int:
    """The value of "7 - 5 * 2", from left to right.

    Raises:
        ValueError: it is no such expression.
    """
    if not _EXPRESSION.fullmatch(expression):
        raise ValueError(f"expected an expression like '7 - 5 * 2', got {expression!r}")
    first, *rest = expression.split()
    value = int(first)
    for operator, number in zip(rest[::2], map(int, rest[1::2]), strict=True):
        value = value + number if operator == "+" else value - number if operator == "-" else value * number
    return value


def expressions(numbers: tuple[int, ...]) -> list[str]:
    """Everything that can be written with each of the numbers once, each once."""
    found: dict[str, None] = {}
    for order in itertools.permutations(numbers):
        for operators in itertools.product(OPERATORS, repeat=len(numbers) - 1):
            pairs = zip(operators, order[1:], strict=True)
            found[" ".join([str(order[0]), *(f"{operator} {number}" for operator, number in pairs)])] = None
    return list(found)


def solutions(problem: Countdown) -> list[str]:
    """Every right expression."""
    return [text for text in expressions(problem.numbers) if evaluate(text) == problem.target]


def form(expression: str) -> Form:
    """The solution that an expression is: the same for all that differ by commutation and association alone."""
    first, *rest = expression.split()
    value: Form = int(first)
    for operator, number in zip(rest[::2], map(int, rest[1::2]), strict=True):
        name, first_sign = ("product", "*") if operator == "*" else ("sum", "+")
        parts = value[1] if isinstance(value, tuple) and value[0] == name else ((first_sign, value),)
        value = (name, tuple(sorted((*parts, (operator, number)), key=repr)))
    return value


def room_of(problem: Countdown) -> Room:
    """A hash of the question decides: pretraining sees none of the benchmark's."""
    return "bench" if hashlib.sha256(problem.question.encode()).digest()[0] < 16 else "pretraining"


def draw_expression(rng: random.Random, count: int) -> str:
    """Random numbers and operators, with a value between 1 and `LARGEST_TARGET`."""
    while True:
        words = [str(rng.choice(DIGITS))]
        for _ in range(count - 1):
            words += [rng.choice(OPERATORS), str(rng.choice(DIGITS))]
        text = " ".join(words)
        if 1 <= evaluate(text) <= LARGEST_TARGET:
            return text


def numbers_of(expression: str) -> tuple[int, ...]:
    """The numbers that it uses, in ascending order."""
    return tuple(sorted(map(int, expression.split()[::2])))


def draw_problems(room: Room, count: int, numbers: int = 4, least_forms: int = 4, seed: int = 0) -> list[Countdown]:
    """Distinct problems of a room, with `least_forms` different solutions at least."""
    rng = random.Random(f"countdown {room} {numbers} {seed}")
    found: dict[Countdown, None] = {}
    while len(found) < count:
        text = draw_expression(rng, numbers)
        problem = Countdown(numbers_of(text), evaluate(text))
        if room_of(problem) == room and len(set(map(form, solutions(problem)))) >= least_forms:
            found[problem] = None
    return list(found)
