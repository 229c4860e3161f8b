"""Posterior predictive and its uncertainty against values worked out by hand."""

import math

import numpy as np
import pytest

from gfn_jax.evaluation.predictive import (
    decompose,
    entropy,
    posterior_predictive,
    summarize,
    summarize_votes,
    vote_entropy,
    vote_histogram,
)

# Two rationales, two answers: rationales that are certain and disagree, and rationales that leave all open.
DISAGREE, OPEN = [[1.0, 0.0], [0.0, 1.0]], [[0.5, 0.5], [0.5, 0.5]]


def test_disagreement_is_mutual_information_and_an_open_answer_is_conditional_entropy():
    found = decompose(np.array([DISAGREE, OPEN]))
    np.testing.assert_allclose(found.total, [math.log(2)] * 2)
    np.testing.assert_allclose(found.conditional, [0.0, math.log(2)])
    np.testing.assert_allclose(found.mutual_information, [math.log(2), 0.0], atol=1e-12)


def test_predictive_averages_over_rationales():
    np.testing.assert_allclose(posterior_predictive(np.array([[[0.9, 0.1], [0.5, 0.5]]])), [[0.7, 0.3]])


def test_entropy_of_a_certain_row_is_zero():
    np.testing.assert_array_equal(entropy(np.array([[1.0, 0.0, 0.0]])), [0.0])


@pytest.mark.parametrize(
    "conditionals", [np.zeros((2, 0, 2)), np.full((1, 2, 2), 0.4), np.array([[[1.5, -0.5]]]), np.ones((2, 2))]
)
def test_what_is_no_distribution_is_refused(conditionals):
    with pytest.raises(ValueError, match="p\\(Y"):
        posterior_predictive(conditionals)


def test_votes():
    assert vote_histogram([3, None, 4, 3]) == {3: 2 / 3, 4: 1 / 3}
    assert vote_histogram([None]) == {}
    entropies = vote_entropy([[1, 1, 1, 1], [1, 2, 1, 2], [None, None, None, None], [5, None, None, None]])
    np.testing.assert_allclose(entropies, [0.0, math.log(2), math.log(4), 0.0])


def test_summaries_name_what_they_hold():
    found = summarize(np.array([DISAGREE, [[0.9, 0.1], [0.7, 0.3]]]), truth=np.array([1, 0]))
    np.testing.assert_allclose(found["predictive_log_loss"], [-math.log(0.5), -math.log(0.8)])
    assert found["predictive_accuracy"].tolist() == [0.0, 100.0]  # the first is a tie, which goes to the first answer
    parts = found["conditional_entropy"] + found["mutual_information"]
    np.testing.assert_allclose(found["predictive_entropy"], parts)
    votes = summarize_votes([[1, 1], [1, 2]], right=[True, False])
    assert votes["vote_entropy_right"] == 0.0
    assert votes["vote_entropy_wrong"] == pytest.approx(math.log(2))
    assert "vote_entropy_wrong" not in summarize_votes([[1, 1]], right=[True])
    assert votes["vote_entropy"] == pytest.approx(math.log(2) / 2)
