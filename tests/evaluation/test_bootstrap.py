"""Intervals against scipy's where a problem has one level, and against worlds whose truth is known."""

import numpy as np
import pytest
from scipy import stats

from gfn_jax.evaluation import bootstrap


@pytest.mark.parametrize("shape", [(1, 400), (12, 1)])
def test_of_one_level_it_is_scipys(shape):
    values = np.random.default_rng(0).exponential(size=shape)
    ours = bootstrap.interval(values)
    theirs = stats.bootstrap((values.ravel(),), np.mean, n_resamples=20_000, method="percentile", rng=1)
    spread = theirs.standard_error
    assert ours.estimate == pytest.approx(values.mean())
    np.testing.assert_allclose([ours.low, ours.high], theirs.confidence_interval, atol=0.06 * spread)


def test_a_paired_difference_is_scipys():
    rng = np.random.default_rng(1)
    one = rng.normal(0, 3, (1, 300))
    other = one + rng.normal(0.1, 0.5, (1, 300))
    ours = bootstrap.difference(other, one)
    theirs = stats.bootstrap(
        (other.ravel(), one.ravel()),
        lambda a, b: np.mean(a) - np.mean(b),
        n_resamples=20_000,
        paired=True,
        vectorized=False,
        method="percentile",
        rng=2,
    )
    np.testing.assert_allclose([ours.low, ours.high], theirs.confidence_interval, atol=0.06 * theirs.standard_error)


def test_an_unpaired_difference_is_scipys():
    rng = np.random.default_rng(3)
    one, other = rng.normal(1, 1, (9, 1)), rng.normal(0, 2, (14, 1))
    ours = bootstrap.difference(one, other)
    theirs = stats.bootstrap(
        (one.ravel(), other.ravel()),
        lambda a, b, axis: np.mean(a, axis) - np.mean(b, axis),
        n_resamples=20_000,
        method="percentile",
        rng=4,
    )
    np.testing.assert_allclose([ours.low, ours.high], theirs.confidence_interval, atol=0.06 * theirs.standard_error)


def test_replicates_are_means_of_drawn_rows_and_columns():
    """The variance over all replicates that there are, rows and columns of a small table listed whole."""
    values = np.random.default_rng(5).normal(size=(3, 2))
    rows = np.stack(np.meshgrid(*[range(3)] * 3)).reshape(3, -1).T
    columns = np.stack(np.meshgrid(*[range(2)] * 2)).reshape(2, -1).T
    every = np.array([values[np.ix_(r, c)].mean() for r in rows for c in columns])
    drawn = bootstrap._means(values, bootstrap.SEEDS, bootstrap.QUESTIONS)
    assert drawn.std() == pytest.approx(every.std(), rel=0.05)
    assert {round(x, 5) for x in drawn} == {round(x, 5) for x in every}


def coverage(draw, repetitions=200) -> float:
    rng = np.random.default_rng(6)
    found = [bootstrap.interval(draw(rng)) for _ in range(repetitions)]
    return sum(one.low <= 0 <= one.high for one in found) / repetitions


def test_coverage_of_questions():
    """Right or wrong with a chance of 0.7, a question's chance being its own under every seed."""

    def draw(rng):
        chance = rng.beta(0.7, 0.3, (1, 60))
        return (rng.random((10, 60)) < chance) - 0.7

    assert 0.91 <= coverage(draw) <= 0.99
    # What the module says of the other way: by 10 x 60 questions of their own the interval would be too narrow.
    rng, held = np.random.default_rng(6), 0
    for _ in range(200):
        values = draw(rng)
        held += abs(values.mean()) <= 1.96 * values.std() / np.sqrt(values.size)
    assert held / 200 < 0.85


@pytest.mark.parametrize(("seeds", "expected"), [(3, 0.75), (5, 0.84), (10, 0.90)])
def test_coverage_of_few_seeds(seeds, expected):
    """As the module says: too narrow."""
    assert abs(coverage(lambda rng: rng.normal(size=(seeds, 1))) - expected) < 0.07


def test_coverage_of_seeds_and_questions():
    def draw(rng):
        return rng.normal(0, 0.3, (10, 1)) + rng.normal(0, 2, (1, 60)) + rng.normal(0, 1, (10, 60))

    assert 0.90 <= coverage(draw) <= 0.99


def test_coverage_of_chance_alone():
    """Every value its own draw: three times the variance, so the limits are wide."""
    assert coverage(lambda rng: rng.normal(size=(10, 60))) >= 0.98


def test_nothing_to_draw_has_no_limits():
    single = bootstrap.interval(np.array([[3.0]]))
    assert (single.estimate, single.low, single.high) == (3.0, None, None)
    apart = bootstrap.difference(np.array([[3.0]]), np.array([[1.0]]))
    assert (apart.estimate, apart.low) == (2.0, None)
    assert bootstrap.interval(np.array([[np.inf], [1.0]])).low is None
    assert bootstrap.difference(np.array([[np.inf], [1.0]]), np.array([[1.0], [1.0]])).low is None
    for bad in (np.zeros((0, 1)), np.array([[np.nan]])):
        with pytest.raises(ValueError, match="needs numbers"):
            bootstrap.interval(bad)


def test_equal_answers_differ_by_exactly_nothing():
    answers = 100.0 * (np.random.default_rng(7).random((3, 90)) < 0.3)
    ahead = answers.copy()
    ahead[0, np.flatnonzero(ahead[0] == 0)[0]] = 100.0  # one question under one seed
    found = bootstrap.difference(ahead, answers)
    assert found.low == 0.0
    assert found.high > 0.0
