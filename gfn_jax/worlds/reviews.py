"""Synthetic movie reviews that are objective or subjective for a latent reason, which the review does not state.

A review of reason k is a row of phrases, "the hidden village and that long film with the lost brother .". Each of its
words (an adjective or a noun) is drawn independently: a word of reason k with probability `SIGNAL`, a neutral word
with `NEUTRAL`, else a word of any reason. Four reasons make a review objective, four subjective. The posterior

    p(k | X) = prod_w p(w | k) / sum_k' prod_w p(w | k')

is known exactly, and so is the best accuracy that anybody can reach (`bayes_label`).
"""

import dataclasses
import hashlib
import math
import random

LABELS = ("objective", "subjective")
SIGNAL, NEUTRAL = 0.45, 0.40  # the rest, 0.15, is noise: a word of any reason
PHRASES = (3, 4)  # a review has so many, each an adjective and a noun
CONNECTIVES = (" and", " with", " then")
ARTICLES = ("the", "that")


@dataclasses.dataclass(frozen=True)
class Reason:
    """Why a review is what it is, and the words that such reviews like."""

    text: str
    label: int
    words: tuple[tuple[str, ...], tuple[str, ...]]  # adjectives, nouns


def _reason(text: str, label: int, adjectives: str, nouns: str) -> Reason:
    return Reason(text, label, (tuple(adjectives.split()), tuple(nouns.split())))


REASONS = (
    _reason("a plot summary", 0, "orphaned stolen hidden lost", "detective village treasure brother"),
    _reason("a historical account", 0, "royal ancient wartime imperial", "king battle treaty empire"),
    _reason("a production note", 0, "digital filmed edited released", "camera budget studio location"),
    _reason("a list of names", 0, "veteran leading supporting returning", "actor role villain director"),
    _reason("full of praise", 1, "brilliant charming radiant flawless", "performance delight masterpiece wit"),
    _reason("full of complaints", 1, "dull tedious clumsy lifeless", "script mess bore failure"),
    _reason("a personal feeling", 1, "tearful giddy nostalgic hopeful", "mood smile memory heart"),
    _reason("a matter of taste", 1, "better weaker smarter funnier", "sequel remake rival original"),
)
NEUTRAL_WORDS = _reason("", -1, "long new second other", "film scene story screen")
ADJECTIVE, NOUN = 0, 1

# Rooms of the held-out split, by hash of the text: shares of 16.
_ROOMS = ("pretraining",) * 11 + ("train", "validation", "test", "test", "test")


@dataclasses.dataclass(frozen=True)
class Review:
    """A review, its label (an index into `LABELS`) and its latent reason (an index into `REASONS`)."""

    text: str
    label: int
    reason: int


def room_of(text: str) -> str:
    """Which split a text belongs to, whoever generates it: a hash of the text decides."""
    return _ROOMS[hashlib.sha256(text.encode()).digest()[0] % len(_ROOMS)]


def draw_review(rng: random.Random, room: str, reason: int | None = None) -> Review:
    """A random review of a room; of a given reason, or of any."""
    while True:
        drawn = rng.randrange(len(REASONS)) if reason is None else reason
        phrases = [
            f"{rng.choice(ARTICLES)} {_word(rng, drawn, ADJECTIVE)} {_word(rng, drawn, NOUN)}"
            for _ in range(rng.choice(PHRASES))
        ]
        text = phrases[0] + "".join(f"{rng.choice(CONNECTIVES)} {phrase}" for phrase in phrases[1:]) + " ."
        if room_of(text) == room:
            return Review(text, REASONS[drawn].label, drawn)


def draw_reviews(room: str, count: int, seed: int) -> list[Review]:
    """`count` distinct reviews of a room; labels alternate, reasons are drawn within them."""
    rng = random.Random(f"reviews {room} {seed}")
    found: dict[str, Review] = {}
    while len(found) < count:
        wanted = [k for k, reason in enumerate(REASONS) if reason.label == len(found) % len(LABELS)]
        review = draw_review(rng, room, rng.choice(wanted))
        found.setdefault(review.text, review)
    return list(found.values())


def reason_posterior(text: str) -> list[float]:
    """p(reason | review), exactly, under equally likely reasons."""
    words = text.split()
    scores = [sum(_log_likelihood(word, reason) for word in words) for reason in REASONS]
    top = max(scores)
    weights = [math.exp(score - top) for score in scores]
    return [weight / sum(weights) for weight in weights]


def bayes_label(text: str) -> int:
    """The label that is right most often, given the review."""
    posterior = reason_posterior(text)
    subjective = sum(p for p, reason in zip(posterior, REASONS, strict=True) if reason.label == 1)
    return int(subjective > 0.5)


def _word(rng: random.Random, reason: int, kind: int) -> str:
    drawn = rng.random()
    if drawn < SIGNAL:
        source = REASONS[reason]
    elif drawn < SIGNAL + NEUTRAL:
        source = NEUTRAL_WORDS
    else:
        source = rng.choice(REASONS)
    return rng.choice(source.words[kind])


def _log_likelihood(word: str, reason: Reason) -> float:
    """Log p(word | reason) among the words that tell reasons apart; 0 for the others."""
    for candidate in REASONS:
        for words in candidate.words:
            if word in words:
                noise = (1 - SIGNAL - NEUTRAL) / len(REASONS)
                return math.log((SIGNAL * (candidate is reason) + noise) / len(words))
    return 0.0
