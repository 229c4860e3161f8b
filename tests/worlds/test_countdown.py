"""Countdown: every right expression, by a search that shares no code with the world; and its corpus."""

import itertools
import operator

import pytest

from gfn_jax.worlds import countdown
from gfn_jax.worlds.countdown import Countdown, draw_problems, evaluate, form, room_of, solutions
from gfn_jax.worlds.countdown_corpus import CountdownCorpusConfig, build_tokenizer, documents, token_rows

CONFIG = CountdownCorpusConfig(right=0.7, documents=400, seq_length=24, seed=0)
OPERATIONS = {"+": operator.add, "-": operator.sub, "*": operator.mul}


def brute_force(numbers, target):
    """Every sequence of the numbers' and operators' words of the right length, which is then looked at."""
    found = set()
    for order in set(itertools.permutations(numbers)):
        for signs in itertools.product(OPERATIONS, repeat=len(numbers) - 1):
            value, text = order[0], str(order[0])
            for sign, number in zip(signs, order[1:]):
                value, text = OPERATIONS[sign](value, number), f"{text} {sign} {number}"
            if value == target:
                found.add(text)
    return found


@pytest.mark.parametrize(
    "problem", [Countdown((2, 4, 5), 30), Countdown((1, 1, 9, 9), 19), Countdown((3, 3, 8, 8), 24)]
)
def test_solutions_are_those_of_a_brute_force_each_once(problem):
    found = solutions(problem)
    assert len(found) == len(set(found))
    assert set(found) == brute_force(problem.numbers, problem.target)


def test_an_expression_is_worked_out_from_left_to_right():
    assert evaluate("2 + 4 * 5") == 30
    assert evaluate("7 - 9") == -2
    with pytest.raises(ValueError, match=r"expected an expression like .* got '2 \+'"):
        evaluate("2 +")


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("2 + 4 * 5", "4 + 2 * 5", True),  # commutation
        ("2 * 3 * 4", "4 * 2 * 3", True),  # and association
        ("3 - 2 + 5", "5 + 3 - 2", True),
        ("3 - 2 * 5", "2 - 3 * 5", False),
        ("2 * 3 + 4", "2 + 3 * 4", False),
        ("8 - 2 - 3", "8 - 3 + 2", False),
    ],
)
def test_solutions_that_commutation_and_association_make_alike(one, other, same):
    assert (form(one) == form(other)) is same


def test_forms_that_are_alike_have_one_value():
    values = {}
    for text in countdown.expressions((2, 3, 5, 7)):
        assert values.setdefault(form(text), evaluate(text)) == evaluate(text)
    assert 1 < len(values) < len(countdown.expressions((2, 3, 5, 7)))


def test_problems_are_of_their_room_have_several_solutions_and_are_drawn_again():
    problems = draw_problems("bench", 3)
    assert problems == draw_problems("bench", 4)[:3]
    for problem in problems:
        assert room_of(problem) == "bench"
        assert len({form(text) for text in solutions(problem)}) >= 4


def test_the_corpus_holds_no_problem_of_the_benchmark_and_a_share_of_right_expressions():
    right = 0
    for text in documents(CONFIG):
        question, expression = text.removesuffix(".").split(" Answer: ")
        numbers, target = question.removeprefix("Numbers: ").split(" Target: ")
        problem = Countdown(tuple(map(int, numbers.split())), int(target))
        assert f"{problem.question} {expression}." == text
        assert room_of(problem) == "pretraining"
        assert sorted(map(int, expression.split()[::2])) == list(problem.numbers)
        right += evaluate(expression) == problem.target
    assert 0.65 < right / CONFIG.documents < 0.8
    assert documents(CONFIG) == documents(CONFIG)


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="longer than seq_length"):
        token_rows(CountdownCorpusConfig(0.7, 20, 12, 0), build_tokenizer())
    with pytest.raises(ValueError, match="right must be a share"):
        CountdownCorpusConfig(1.5, 20, 24, 0)
