"""Which expression belongs to which split: a hash of its text decides, so nothing needs to be remembered.

Every expression lives in one room. The questions of a split are drawn from that split's room, hence splits
are disjoint, and a pretraining corpus that draws from its own room holds no question of the task. The rooms
are wide enough for 500 of the 4,000 three-operand expressions in each of test, validation and training.
"""

import functools
import hashlib
from typing import Literal

from gfn_jax.worlds.arithmetic_examples import ArithmeticExample, make_example

Room = Literal["test", "validation", "training", "pretraining"]

# The percentage at which each room ends.
_ROOMS: dict[Room, int] = {"test": 15, "validation": 30, "training": 46, "pretraining": 100}

# Split -> its room, its number of questions, and the numbers of operands that take turns in it.
# Demonstrations and training share a room and are drawn one after the other.
SPLITS: dict[str, tuple[Room, int, tuple[int, ...]]] = {
    "demonstrations": ("training", 50, (3, 4)),
    "train": ("training", 1_000, (3, 4)),
    "validation_3": ("validation", 500, (3,)),
    "validation_4": ("validation", 500, (4,)),
    "validation_5": ("validation", 500, (5,)),
    "test_3": ("test", 500, (3,)),
    "test_4": ("test", 500, (4,)),
    "test_5": ("test", 500, (5,)),
}


def room_of(expression: str) -> Room:
    """The room of an expression, the same on every machine and in every version of Python."""
    percent = _digest(f"room of {expression}") % 100
    return next(room for room, end in _ROOMS.items() if percent < end)


def is_held_out(expression: str) -> bool:
    """Whether an expression is kept for validation or test, whatever its number of operands."""
    return room_of(expression) in ("validation", "test")


@functools.lru_cache(maxsize=1)
def generate_splits() -> dict[str, tuple[ArithmeticExample, ...]]:
    """All splits, each in its order: no expression occurs twice, within a split or across them."""
    taken: set[str] = set()
    splits = {}
    for split, (room, size, operands) in SPLITS.items():
        chosen: list[str] = []
        draw = 0
        while len(chosen) < size:
            expression = _draw(f"{split} {draw}", operands[len(chosen) % len(operands)])
            draw += 1
            if room_of(expression) == room and expression not in taken:
                taken.add(expression)
                chosen.append(expression)
        with_rationale = split == "demonstrations"
        splits[split] = tuple(make_example(expression, with_rationale=with_rationale) for expression in chosen)
    return splits


def _draw(seed: str, operands: int) -> str:
    """A random expression of one-digit operands, + and -."""
    number = _digest(seed)
    number, digit = divmod(number, 10)
    expression = str(digit)
    for _ in range(operands - 1):
        number, term = divmod(number, 20)
        expression += f" {'+-'[term // 10]} {term % 10}"
    return expression


def _digest(text: str) -> int:
    """64 stable random bits: Python's own `hash` differs from run to run, `random` between its versions."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")
