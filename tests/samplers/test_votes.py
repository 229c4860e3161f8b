import math

import pytest

from gfn_jax.samplers.votes import majority, tally


def test_the_most_frequent_answer_wins():
    assert majority([1, 2, 2, None, 3]) == 2
    assert majority([3, 1, 1, 3, 2]) == 3  # the first seen among equals
    assert majority([None, None, None, 7]) == 7  # None wins against no answer
    assert majority([None, None]) is None
    assert majority([]) is None


def test_answers_count_by_their_weights():
    log_weight = [math.log(0.5), math.log(0.3), math.log(0.3), -math.inf, math.log(9.0)]
    assert majority(["a", "b", "b", "a", None], log_weight) == "b"
    shifted = [weight - 2000 for weight in log_weight]  # beyond what exp can hold
    assert tally(["a", "b", "b", "c", None], shifted) == pytest.approx({"a": 0.5 / 9, "b": 0.6 / 9})
    assert majority(["a", "b"], [-math.inf, -math.inf]) is None


@pytest.mark.parametrize("wrong", [[0.0], [0.0, math.nan], [0.0, math.inf]])
def test_weights_that_are_none_are_refused(wrong):
    with pytest.raises(ValueError, match="weight"):
        majority(["a", "b"], wrong)
