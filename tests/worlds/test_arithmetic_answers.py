"""Reading answers, voting, grading."""

import itertools
import json

import pytest

from gfn_jax.worlds.arithmetic_answers import extract_answer, grade, is_correct_chain, right_chain
from gfn_jax.worlds.arithmetic_examples import make_example

# Where this reading differs from the paper's code on purpose, its -1 for "unreadable" aside:
DELIBERATE = {
    "= 1_000": (1000, None),  # underscores are Python's, not arithmetic's
    "= ５": (5, None),  # a full-width digit: only ASCII digits can be generated
}
# The texts that the paper's code reads as -1 because they say -1, and not for want of an answer.
SAYS_MINUS_ONE = {"-1", "The answer is -1."}


def test_against_the_papers_code(golden_folder):
    cases = json.loads((golden_folder / "answers.json").read_text())
    assert len(cases) == 61
    for case in cases:
        text, theirs = case["text"], case["extracted"]
        ours = extract_answer(text)
        if text in DELIBERATE:
            assert (theirs, ours) == DELIBERATE[text]
        elif theirs == -1 and text not in SAYS_MINUS_ONE:
            assert ours is None, text
        else:
            assert ours == theirs, text


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (" 6 - 0 = 6, 6 - 4 = 2, 2 - 8 = -6", -6),
        (" 6 - 0 = 6, 6 - 4 = 2, 2 - 8 = -6. The answer is -6.", -6),
        (" 6 - 0 - 4", 4),
        (" 5 + 9 =14", 14),
        (" -1", -1),
        (" 6 - 0 = 6, 6 - 4 =", None),
        (" 6 - 0 = 6,", None),
        (" 5.5", None),
        ("", None),
    ],
)
def test_answer_is_the_number_a_text_ends_with(text, answer):
    assert extract_answer(text) == answer


def test_unreadably_long_numbers_do_not_raise():
    assert extract_answer("= " + "5" * 5_000) is None


def test_grading():
    example = make_example("6 - 0 - 4")
    assert grade(example, " 6 - 0 = 6, 6 - 4 = 2")
    assert grade(example, " 9 - 7 = 2")
    assert not grade(example, " 6 - 0 = 6")
    minus_one = make_example("1 + 5 - 7")
    assert grade(minus_one, " 6 - 7 = -1")
    assert not grade(minus_one, " 1 + 5 =")  # unreadable is wrong even where the answer is -1


def test_chain_is_right_in_any_order_and_grouping():
    """Every chain that the corpus calls right, and groupings; a chain that ends right by luck is none."""
    example = make_example("9 - 4 - 8")
    for right in (
        " 9 - 4 = 5, 5 - 8 = -3",
        " 9 - 8 = 1, 1 - 4 = -3",
        " 4 + 8 = 12, 9 - 12 = -3",
        " -8 + 9 = 1, 1 - 4 = -3",
    ):
        assert right_chain(example, right) == right.replace(" ", "")
    for wrong in (
        " 4 + 8 = 12, 12 - 9 = 3",  # the wrong sign at the end
        " 4 - 8 = -4, 9 - -4 = 13",
        " 9 - 4 = 5, 9 - 8 = 1",
        " 9 - 4 = 5, 5 - 8 = -2",
        " 9 - 4 = 5, 5 - 8 =",
        " 9 - 12 = -3",
    ):
        assert right_chain(example, wrong) is None, wrong


@pytest.mark.parametrize("operands", [3, 4])
def test_right_chains_are_all_binary_trees(operands):
    """Against brute force: of all chains over a few numbers, those whose symbolic sum is the question's."""
    signs = [1, -1, -1, 1][:operands]
    digits = [7, 2, 5, 3][:operands]
    expression = " ".join([str(digits[0])] + [f"{'+' if s > 0 else '-'} {d}" for s, d in zip(signs[1:], digits[1:])])
    example = make_example(expression)

    def chains(pool):
        """(text, whether it is the question's sum) of every way to combine a pool of (value, coefficients)."""
        if len(pool) == 1:
            yield "", pool[0][1] == tuple(signs)
            return
        for a, b in itertools.permutations(range(len(pool)), 2):
            (left, x), (right, y) = pool[a], pool[b]
            rest = [each for place, each in enumerate(pool) if place not in (a, b)]
            for operator, turn in (("+", 1), ("-", -1)):
                made = (left + turn * right, tuple(p + turn * q for p, q in zip(x, y)))
                for text, right_sum in chains([*rest, made]):
                    yield f"{left} {operator} {right} = {made[0]}{', ' if text else ''}{text}", right_sum

    units = [tuple(int(i == j) for j in range(operands)) for i in range(operands)]
    verdicts: dict[str, bool] = {}
    for written in itertools.product([1, -1], repeat=operands):  # an operand may be written with its sign
        pool = [(turn * digit, tuple(turn * x for x in unit)) for turn, digit, unit in zip(written, digits, units)]
        for text, right_sum in chains(pool):
            verdicts[text] = verdicts.get(text, False) or right_sum  # equal numbers: some reading of it is right
    assert sum(verdicts.values()) > operands
    for text, expected in verdicts.items():
        assert is_correct_chain(example, text) == expected, text


def test_chain_is_right_only_with_the_right_steps():
    example = make_example("6 - 0 - 4")
    assert is_correct_chain(example, " 6 - 0 = 6, 6 - 4 = 2")
    assert is_correct_chain(example, "6-0=6,6-4=2")
    for wrong in (
        " 9 - 7 = 2",
        " 6 - 0 = 6, 6 - 4 = 2, 2 + 0 = 2",
        " 6 - 0 = 6",
        "",
    ):
        assert not is_correct_chain(example, wrong), wrong
    assert not is_correct_chain(make_example("1 + 4 + 2"), " 1 + 4 = 5, 5 + 2 = 7, 7")
    assert not is_correct_chain(make_example("5 + 9 - 3"), " 5 + 9 = 1 4, 1 4 - 3 = 1 1")
