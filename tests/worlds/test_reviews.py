"""The synthetic reviews: split by hash, labelled by a reason they do not state, with an exact posterior."""

import pytest

from gfn_jax.worlds.reviews import (
    LABELS,
    NEUTRAL,
    NEUTRAL_WORDS,
    REASONS,
    SIGNAL,
    bayes_label,
    draw_reviews,
    reason_posterior,
    room_of,
)


def test_reviews_are_distinct_balanced_nested_and_in_their_room():
    reviews = draw_reviews("test", 200, seed=3)
    assert len({review.text for review in reviews}) == 200
    assert {room_of(review.text) for review in reviews} == {"test"}
    assert sum(review.label for review in reviews) == 100
    assert draw_reviews("test", 20, seed=3) == reviews[:20]
    assert draw_reviews("test", 20, seed=4) != reviews[:20]


def test_a_label_follows_from_the_reason_and_the_reason_is_not_stated():
    stated = {word for reason in REASONS for word in reason.text.split()} | set(LABELS)
    for review in draw_reviews("train", 50, seed=0):
        assert review.label == REASONS[review.reason].label
        assert not stated & set(review.text.split())


def test_no_word_belongs_to_two_reasons():
    words = [word for reason in (*REASONS, NEUTRAL_WORDS) for kind in reason.words for word in kind]
    assert len(set(words)) == len(words)


def test_posterior_is_that_of_the_generator():
    noise = (1 - SIGNAL - NEUTRAL) / len(REASONS)
    # One telling word (plot) and a neutral one, then two words of one reason against one of another.
    assert reason_posterior("the hidden film .")[0] == pytest.approx((SIGNAL + noise) / (SIGNAL + 8 * noise))
    two = reason_posterior("the dull script and the royal film .")
    assert two[5] / two[1] == pytest.approx((SIGNAL + noise) / noise)
    assert sum(two) == pytest.approx(1.0)
    assert reason_posterior("the new film .") == pytest.approx([1 / 8] * 8)


def test_the_best_guess_is_nearly_always_right():
    reviews = draw_reviews("validation", 1000, seed=0)
    assert 0.94 < sum(bayes_label(review.text) == review.label for review in reviews) / 1000 < 0.99
