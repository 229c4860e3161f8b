"""Likelihoods at equal length: by hand, against a difference of log p that is known, and against shortness alone."""

import numpy as np
import pytest

from gfn_jax.evaluation.equal_length import gain_at_equal_length


def test_by_hand_on_the_lengths_that_both_have():
    reference, lengths = np.array([[-2.0, -4.0], [-6.0, -9.0]]), np.array([[1, 2], [2, 4]])
    found = gain_at_equal_length(np.array([[-1.0], [-3.0]]), np.array([[1], [2]]), reference, lengths)
    # Length 1: -1 against -2, a quarter of the reference; length 2: -3 against -5, a half; length 4: nobody else's.
    assert found.gain == pytest.approx((0.25 * 1 + 0.5 * 2) / 0.75)
    assert found.covered == pytest.approx(0.75)


def test_without_a_common_length_there_is_no_gain():
    found = gain_at_equal_length(np.array([[-1.0]]), np.array([[3]]), np.array([[-1.0]]), np.array([[2]]))
    assert (found.gain, found.low, found.high, found.covered) == (None, None, None, 0)


@pytest.fixture(scope="module")
def writers():
    """Log p falls by 2 nats a token; the reference's lengths, a writer of short ones, and one 0.7 nats likelier."""
    rng = np.random.default_rng(0)

    def write(low, high, more):
        lengths = rng.integers(low, high, (60, 8))
        return -2.0 * lengths + more + rng.normal(0, 0.5, lengths.shape), lengths

    return write(1, 12, 0.0), write(1, 4, 0.0), write(1, 12, 0.7)


def test_shortness_alone_gains_nothing(writers):
    reference, short, likelier = writers
    assert short[0].mean() > likelier[0].mean() > reference[0].mean()  # what the plain mean says
    found = gain_at_equal_length(*short, *reference)
    assert found.low < 0 < found.high
    assert found.covered == pytest.approx(3 / 11, abs=0.05)


def test_the_interval_holds_what_is_gained(writers):
    reference, _, likelier = writers
    found = gain_at_equal_length(*likelier, *reference)
    assert 0.5 < found.low < 0.7 < found.high < 0.9
    assert found == gain_at_equal_length(*likelier, *reference)
