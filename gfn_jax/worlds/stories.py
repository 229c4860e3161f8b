"""Short five-sentence stories from a probabilistic program, whose hidden fourth sentence has a computable posterior.

A story is drawn as p(X) p(Z | X) p(Y | X, Z): a beginning X of three sentences (who took what where, in which mood and
weather, with whom), an event Z, an ending Y:

    Tom took a kite to the beach. He was tired and met Ann there. It was a very windy day.      X
    The wind blew the kite into the sea.                                                        Z
    He came home with wet feet.                                                                 Y

Mood, weather, place, thing and company shift what is likely to happen; an event is often one of several that end alike.
So both ends together leave several Z, and p(Z | X, Y) = p(Z | X) p(Y | X, Z) / sum_Z' ... is a sum of a few dozen
terms. Another event is another sentence, hence the posterior over events is the one over sentences.
"""

import dataclasses
import hashlib
import itertools
import random
from typing import Literal

Room = Literal["test", "validation", "training", "pretraining"]

HE, SHE = ("Tom", "Ben", "Sam", "Max"), ("Ann", "Lily", "Mia", "Zoe")
NAMES = (*HE, *SHE)
THINGS = ("ball", "kite", "hat", "book", "cake", "doll", "drum", "cup")
MOODS = ("tired", "angry", "happy", "brave")
WEATHER = ("windy", "rainy", "sunny", "cold")
# Place -> where things end up there (the first is wet), and who lives there.
PLACES: dict[str, tuple[tuple[str, str, str], tuple[str, str]]] = {
    "park": (("pond", "grass", "bushes"), ("dog", "duck")),
    "beach": (("sea", "sand", "cave"), ("gull", "crab")),
    "farm": (("well", "barn", "field"), ("goat", "pig")),
    "forest": (("stream", "leaves", "hole"), ("fox", "bear")),
    "market": (("fountain", "crowd", "street"), ("cat", "monkey")),
    "lake": (("water", "reeds", "boat"), ("swan", "frog")),
}
LIGHT, BRITTLE, SPOILT_BY_RAIN = ("ball", "kite", "hat"), ("kite", "doll", "drum", "cup"), ("hat", "book", "cake")
SPOT_WEIGHTS = (0.5, 0.3, 0.2)
# The percentage at which each room ends.
_ROOMS: dict[Room, int] = {"test": 5, "validation": 10, "training": 25, "pretraining": 100}


@dataclasses.dataclass(frozen=True)
class Beginning:
    """X: all that the later sentences depend on; `friend` is None for somebody who is alone."""

    name: str
    thing: str
    place: str
    mood: str
    weather: str
    friend: str | None

    @property
    def pronoun(self) -> str:
        """Who the story is about, from its second sentence on."""
        return "He" if self.name in HE else "She"

    @property
    def sentences(self) -> tuple[str, str, str]:
        """The first three sentences."""
        company = f"met {self.friend} there" if self.friend else "went there alone"
        return (
            f"{self.name} took a {self.thing} to the {self.place}.",
            f"{self.pronoun} was {self.mood} and {company}.",
            f"It was a very {self.weather} day.",
        )

    @property
    def text(self) -> str:
        """The first three sentences as one text."""
        return " ".join(self.sentences)


@dataclasses.dataclass(frozen=True)
class Event:
    """Z: what happened, in a sentence, and what an ending may depend on."""

    kind: str
    sentence: str
    wet: bool = False
    gained: str | None = None
    to_friend: bool = False


@dataclasses.dataclass(frozen=True)
class Story:
    """A beginning, the hidden sentence and the ending."""

    beginning: Beginning
    middle: str
    ending: str

    @property
    def sentences(self) -> tuple[str, ...]:
        """All five."""
        return (*self.beginning.sentences, self.middle, self.ending)

    @property
    def text(self) -> str:
        """All five as one text."""
        return " ".join(self.sentences)


def events(x: Beginning) -> dict[Event, float]:
    """p(Z | X): every event that can follow, with its probability."""
    spots, animals = PLACES[x.place]
    placed = list(zip(spots, SPOT_WEIGHTS, (True, False, False)))
    he, thing = x.pronoun, x.thing
    others = [other for other in THINGS if other != thing]
    weight: dict[Event, float] = {}

    def add(total: float, outcomes: list[tuple[Event, float]]) -> None:
        """Shares a kind's weight among its outcomes."""
        shares = sum(share for _, share in outcomes)
        weight.update({event: total * share / shares for event, share in outcomes if total})

    add(
        2.0 if x.mood == "tired" else 0.8,
        [(Event("lose", f"{he} dropped the {thing} in the {spot}.", wet), w) for spot, w, wet in placed],
    )
    add(
        2.4 if thing == "cake" else 0.8,
        [(Event("steal", f"A {animal} ran away with the {thing}."), w) for animal, w in zip(animals, (0.6, 0.4))],
    )
    add(
        2.0 * (x.weather == "windy" and thing in LIGHT),
        [(Event("wind", f"The wind blew the {thing} into the {spot}.", wet), w) for spot, w, wet in placed],
    )
    add(
        (2.0 if x.mood == "angry" else 0.8) * (thing in BRITTLE),
        [(Event("break", f"{he} broke the {thing} near the {spot}."), w) for spot, w, _ in placed],
    )
    add(
        1.5 * (x.weather == "rainy" and thing in SPOILT_BY_RAIN), [(Event("break", f"The rain ruined the {thing}."), 1)]
    )
    receivers = [("an old man", 1.0, False), ("a little girl", 1.0, False)]
    receivers += [(x.friend, 2.0, True)] if x.friend else []
    add(
        2.0 if x.mood == "happy" else 0.8,
        [(Event("give", f"{he} gave the {thing} to {who}.", to_friend=friend), w) for who, w, friend in receivers],
    )
    add(
        2.4 if x.place == "market" else 0.6,
        [(Event("trade", f"{he} traded the {thing} for a {other}.", gained=other), 1.0) for other in others],
    )
    add(
        1.6 if x.mood == "brave" else 0.6,
        [
            (Event("find", f"{he} found a {other} in the {spot}.", wet, other), w)
            for other in others
            for spot, w, wet in placed
        ],
    )
    games = [f"{he} played with the {thing} all day."]
    games += [f"{he} and {x.friend} played with the {thing}."] if x.friend else []
    add(2.0 if x.weather == "sunny" else 0.8, [(Event("play", game), 1.0) for game in games])
    total = sum(weight.values())
    return {event: value / total for event, value in weight.items()}


def endings(x: Beginning, event: Event) -> dict[str, float]:
    """p(Y | X, Z): every ending of an event, with its probability."""
    he, him, thing = x.pronoun, "him" if x.pronoun == "He" else "her", x.thing
    without = f"{he} went home without the {thing}."
    looked = f"{he} looked for the {thing} all day."
    ran = f"{he} ran after the {thing} for hours."
    cried = f"{he} cried all the way home."
    wet = f"{he} came home with wet feet."
    lucky = f"{he} felt very lucky that day."
    best = "It was the best day ever."
    kind = f"{he} felt good about being kind."
    match event.kind:
        case "lose":
            return {without: 0.35, cried: 0.15, (wet if event.wet else looked): 0.5}
        case "steal":
            return {without: 0.35, cried: 0.15, ran: 0.5}
        case "wind":
            return {without: 0.3, ran: 0.4, (wet if event.wet else looked): 0.3}
        case "break":
            return {cried: 0.5, f"{he} tried to fix the {thing} later.": 0.5}
        case "give":
            return {without: 0.2, kind: 0.4, (f"{x.friend} said thank you to {him}." if event.to_friend else best): 0.4}
        case "trade":
            return {without: 0.3, f"{he} went home with a new {event.gained}.": 0.7}
        case "find":
            return {f"{he} went home with a new {event.gained}.": 0.6, (wet if event.wet else lucky): 0.4}
    return {best: 0.4, lucky: 0.1, f"{he} came home tired but happy.": 0.5}


def posterior(x: Beginning, ending: str) -> dict[str, float]:
    """p(Z | X, Y): every fourth sentence that both ends allow, with its probability.

    Raises:
        ValueError: the story cannot end so.
    """
    joint = {event.sentence: p * endings(x, event).get(ending, 0.0) for event, p in events(x).items()}
    total = sum(joint.values())
    if not total:
        raise ValueError(f"no story that begins {x.text!r} ends {ending!r}")
    return {sentence: p / total for sentence, p in joint.items() if p}


def draw_beginning(rng: random.Random) -> Beginning:
    """Somebody, something, somewhere: uniform, but for friends, who are there two times in three."""
    name = _one(rng, NAMES)
    friend = _one(rng, [other for other in NAMES if other != name]) if rng.random() < 2 / 3 else None
    return Beginning(name, _one(rng, THINGS), _one(rng, list(PLACES)), _one(rng, MOODS), _one(rng, WEATHER), friend)


def draw_story(rng: random.Random, room: Room) -> Story:
    """A story whose beginning lies in `room`."""
    x = draw_beginning(rng)
    while room_of(x) != room:
        x = draw_beginning(rng)
    event = _weighted(rng, events(x))
    return Story(x, event.sentence, _weighted(rng, endings(x, event)))


def room_of(x: Beginning) -> Room:
    """The room of a beginning, by a hash of its text: rooms share no beginning, so splits of them share no story."""
    digest = hashlib.blake2b(f"room of {x.text}".encode(), digest_size=8).digest()
    percent = int.from_bytes(digest, "little") % 100
    return next(room for room, end in _ROOMS.items() if percent < end)


def draw_stories(room: Room, count: int, seed: int = 0) -> list[Story]:
    """`count` stories of a room, no two with the same beginning and ending."""
    rng = random.Random(f"stories {room} {seed}")  # seeded by the text's SHA-512
    stories: dict[tuple[Beginning, str], Story] = {}
    while len(stories) < count:
        story = draw_story(rng, room)
        stories.setdefault((story.beginning, story.ending), story)
    return list(stories.values())


def vocabulary() -> tuple[str, ...]:
    """Every word of every story, sorted."""
    words: set[str] = set()
    for thing, place, mood, weather in itertools.product(THINGS, PLACES, MOODS[:1], WEATHER):
        for name, friend in (("Tom", "Ann"), ("Ann", "Tom"), ("Ann", None)):
            x = Beginning(name, thing, place, mood, weather, friend)
            for event in events(x):
                for ending in endings(x, event):
                    words.update(Story(x, event.sentence, ending).text.replace(".", "").split())
    return tuple(sorted({*words, *NAMES, *MOODS}))


def _one(rng: random.Random, values):
    """A uniform draw by `random()` alone, whose stream is the same in every version of Python."""
    return values[int(rng.random() * len(values))]


def _weighted(rng: random.Random, weights):
    """A key in proportion to its weight."""
    left = rng.random() * sum(weights.values())
    for key, weight in weights.items():
        left -= weight
        if left < 0:
            return key
    return key
