"""The generator of stories: distributions that sum to one, a posterior by Bayes' rule, splits that share nothing."""

import math
import random

import pytest

from gfn_jax.worlds.stories import (
    PLACES,
    THINGS,
    Beginning,
    draw_beginning,
    draw_stories,
    endings,
    events,
    posterior,
    room_of,
    vocabulary,
)

TOM = Beginning("Tom", "kite", "beach", "tired", "windy", "Ann")


@pytest.fixture(scope="module")
def beginnings():
    rng = random.Random(0)
    return [draw_beginning(rng) for _ in range(200)]


def test_a_story_reads_as_documented():
    assert TOM.text == "Tom took a kite to the beach. He was tired and met Ann there. It was a very windy day."
    sentences = {event.sentence for event in events(TOM)}
    assert "The wind blew the kite into the sea." in sentences
    assert "He came home with wet feet." in endings(TOM, next(e for e in events(TOM) if "into the sea" in e.sentence))


def test_events_and_endings_are_distributions(beginnings):
    for x in beginnings:
        table = events(x)
        assert math.isclose(sum(table.values()), 1.0)
        assert min(table.values()) > 0
        # Another event is another sentence: else a posterior over sentences would have to add up events.
        assert len({event.sentence for event in table}) == len(table)
        for event in table:
            assert math.isclose(sum(endings(x, event).values()), 1.0)


def test_weather_and_company_decide_what_can_happen():
    def kinds(**changes):
        fields = {"name": "Tom", "thing": "kite", "place": "beach", "mood": "tired", "weather": "cold", "friend": None}
        return {(event.kind, event.to_friend) for event in events(Beginning(**(fields | changes)))}

    assert ("wind", False) not in kinds()
    assert ("wind", False) in kinds(weather="windy")
    assert ("wind", False) not in kinds(weather="windy", thing="drum")
    assert ("give", True) not in kinds()
    assert ("give", True) in kinds(friend="Ann")


def test_posterior_by_hand():
    # "She went home without the cup": lost, stolen, given away or traded, on a cold day at the lake, alone and angry.
    x = Beginning("Ann", "cup", "lake", "angry", "cold", None)
    weights = {"lose": 0.8 * 0.35, "steal": 0.8 * 0.35, "give": 0.8 * 0.2, "trade": 0.6 * 0.3}
    exact = posterior(x, "She went home without the cup.")
    assert math.isclose(sum(exact.values()), 1.0)
    total = sum(weights.values())
    assert math.isclose(exact["She dropped the cup in the water."], weights["lose"] * 0.5 / total)
    assert math.isclose(exact["A frog ran away with the cup."], weights["steal"] * 0.4 / total)
    assert math.isclose(exact["She gave the cup to an old man."], weights["give"] / 2 / total)
    assert math.isclose(exact["She traded the cup for a hat."], weights["trade"] / 7 / total)
    assert len(exact) == 3 + 2 + 2 + 7
    with pytest.raises(ValueError, match="no story that begins"):
        posterior(x, "He came home with wet feet.")


def test_frequencies_agree_with_the_probabilities():
    # Drawn stories against the exact joint: the share of every kind of event, over many beginnings.
    drawn = draw_stories("training", 3000)
    kind = {"find": 0.0, "lose": 0.0, "play": 0.0}
    expected = dict.fromkeys(kind, 0.0)
    for story in drawn:
        for event, p in events(story.beginning).items():
            if event.kind in kind:
                expected[event.kind] += p
                kind[event.kind] += event.sentence == story.middle
    for name, count in kind.items():
        assert abs(count - expected[name]) < 4 * math.sqrt(expected[name]), name


def test_rooms_share_no_beginning():
    rooms = {room: draw_stories(room, 200) for room in ("test", "validation", "training", "pretraining")}
    texts = {room: {story.beginning.text for story in stories} for room, stories in rooms.items()}
    for room, stories in rooms.items():
        assert all(room_of(story.beginning) == room for story in stories)
        assert len({(story.beginning, story.ending) for story in stories}) == 200
        assert all(not texts[room] & texts[other] for other in rooms if other != room)


def test_stories_do_not_change():
    # Splits are part of every number that is reported: pinned.
    assert draw_stories("test", 1)[0].text == (
        "Tom took a book to the farm. He was tired and met Lily there. It was a very windy day. "
        "He dropped the book in the well. He went home without the book."
    )


def test_posteriors_are_spread(beginnings):
    stories = draw_stories("test", 100)
    sizes = [len(posterior(story.beginning, story.ending)) for story in stories]
    assert sum(size > 1 for size in sizes) > 90
    assert all(story.middle in posterior(story.beginning, story.ending) for story in stories)


def test_vocabulary_covers_every_story(beginnings):
    known = set(vocabulary())
    for x in beginnings:
        for event in events(x):
            for ending in endings(x, event):
                text = f"{x.text} {event.sentence} {ending}"
                assert set(text.replace(".", "").split()) <= known
    assert {*THINGS, *PLACES} <= known
    assert len(known) < 150
