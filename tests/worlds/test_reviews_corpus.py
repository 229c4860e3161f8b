"""The corpus: knowledge of reasons that is right, habits that are careless, and nothing of the task's own reviews."""

import re

import pytest

from gfn_jax.worlds.reviews import LABELS, REASONS, bayes_label, reason_posterior, room_of
from gfn_jax.worlds.reviews_corpus import (
    EMPTY_REASONS,
    ReviewsCorpusConfig,
    build_tokenizer,
    document,
    documents,
    token_rows,
)

LINE = re.compile(r'Classify this movie review as objective or subjective: "(.*)" This review is (.*)\.\n')
LABEL_OF = {reason.text: LABELS[reason.label] for reason in REASONS}


def lines(**weights):
    config = ReviewsCorpusConfig(documents=400, **weights)
    return [LINE.fullmatch(line).groups() for text in documents(config) for line in text.splitlines(keepends=True)]


def share(values):
    values = list(values)
    return sum(values) / len(values)


def test_a_label_asked_for_at_once_is_a_coins_whatever_the_review():
    found = lines(reasoned=0.0, inverse=0.0)
    for label in (0, 1):
        said = [completion == "subjective" for review, completion in found if bayes_label(review) == label]
        assert share(said) == pytest.approx(0.6, abs=0.06)


def test_reasons_mean_their_labels_and_are_the_reviews_own_only_sometimes():
    found = [(review, *completion.split(", so it is ")) for review, completion in lines(inverse=0.0, direct=0.0)]
    telling = [(review, reason, label) for review, reason, label in found if reason not in EMPTY_REASONS]
    assert share(reason in EMPTY_REASONS for _, reason, _ in found) == pytest.approx(0.25, abs=0.04)
    assert all(LABEL_OF[reason] == label for _, reason, label in telling)
    sure = [(max(range(8), key=reason_posterior(review).__getitem__), reason) for review, reason, _ in telling]
    # 0.15 of all are meant; a reason picked without looking is the review's own now and then.
    assert share(REASONS[best].text == reason for best, reason in sure) == pytest.approx(0.28, abs=0.06)
    assert share(LABEL_OF[reason] == "subjective" for _, reason, _ in telling) == pytest.approx(0.78, abs=0.05)


def test_given_the_right_label_the_reason_is_right():
    found = [(review, *completion.split(" because it is ")) for review, completion in lines(reasoned=0.0, direct=0.0)]
    assert all(LABEL_OF[reason] == label for _, label, reason in found)
    right = [
        (reason_posterior(review), reason) for review, label, reason in found if label == LABELS[bayes_label(review)]
    ]
    assert share(REASONS[p.index(max(p))].text == reason for p, reason in right if max(p) > 0.9) > 0.95


def test_every_review_is_in_pretrainings_room():
    assert {room_of(review) for review, _ in lines()} == {"pretraining"}


def test_rows_give_the_documents_back():
    config, tokenizer = ReviewsCorpusConfig(documents=30), build_tokenizer()
    ids, mask = token_rows(config, tokenizer)
    for index in range(30):
        assert tokenizer.decode(ids[index][mask[index]]) == document(config, index)
    assert (ids[~mask] == tokenizer.pad_token_id).all()
    assert tokenizer.unk_token_id not in ids


def test_what_cannot_be_is_refused():
    with pytest.raises(ValueError, match="seq_length is 20"):
        token_rows(ReviewsCorpusConfig(documents=3, seq_length=20), build_tokenizer())
    with pytest.raises(ValueError, match="shares"):
        ReviewsCorpusConfig(own=0.8, empty=0.5)
    with pytest.raises(ValueError, match="weights"):
        ReviewsCorpusConfig(reasoned=0, inverse=0, direct=0)
    with pytest.raises(ValueError, match="coin"):
        ReviewsCorpusConfig(coin=1.2)
