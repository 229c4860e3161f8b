"""The targets of the bench, small: their lists and log Z, by loops that share no code with them."""

import functools
import itertools

import jax
import numpy as np
import pytest
from tiny_worlds import left_padded

from gfn_jax.bench.exact import ExactTarget, exact_log_policy, token_rows
from gfn_jax.bench.targets import TARGETS, Size, arithmetic, short
from gfn_jax.bench.targets import Base as BaseModel
from gfn_jax.evaluation.enumeration import listed_rollout
from gfn_jax.models import decoder
from gfn_jax.text.loading import load_tokenizer, model_folder
from gfn_jax.worlds import countdown
from gfn_jax.worlds.stories import draw_stories, endings, events

SIZE = Size(vocabulary=4, queries=1)
# Target -> the exponent of p_LM in its reward.
POSTERIORS = {"stories-power": 2.0, "countdown": 1.0, "arithmetic": 1 / 3}
SLOW = [
    pytest.param(name, marks=pytest.mark.slow)
    for name in ("stories-infill", "reviews-answer", "review-world", "story-world")
]


@functools.cache
def built(name: str) -> ExactTarget:
    """A target, as small as it gets: a sum of one number with itself needs few tokens."""
    return arithmetic(SIZE, "3 + 3") if name == "arithmetic" else TARGETS[name](SIZE)


def texts(target, model: str) -> list[str]:
    tokenizer = load_tokenizer(model_folder(model))
    return [tokenizer.decode(list(row)) for row in token_rows(target.listed[0])]


def direct(target, completions) -> np.ndarray:
    """Log p(Z Y | X), read off the softmax of one pass over each whole text."""
    x, y = (
        np.asarray(tokens.ids)[0][np.asarray(tokens.mask)[0]]
        for tokens in (target.queries.context, target.queries.answer)
    )
    whole = [[*x, *z, *y] for z in completions]
    tokens = left_padded(whole)
    run = jax.jit(lambda base, tokens: decoder.logits(decoder.select_head(base), decoder.prefill(base, tokens)[0]))
    log_p = np.asarray(jax.nn.log_softmax(run(target.base, tokens)), np.float64)
    width, found = tokens.ids.shape[1], []
    for row, text in zip(log_p, whole):
        places = range(width - len(text) + len(x), width)
        found.append(sum(row[place - 1, text[place - width]] for place in places))
    return np.array(found)


@pytest.mark.parametrize("name", [*POSTERIORS, *SLOW])
def test_log_z_is_the_sum_of_one_pass_a_completion(name):
    target = built(name)
    rows, log_reward = token_rows(target.listed[0]), target.log_reward[0]
    assert len(rows) == len(set(rows))
    likely = np.argsort(-log_reward)[:100]
    found = POSTERIORS.get(name, 1.0) * direct(target, [rows[place] for place in likely])
    np.testing.assert_allclose(log_reward[likely], found, rtol=1e-4, atol=1e-3)
    assert np.logaddexp.reduce([*found, *np.delete(log_reward, likely)]) == pytest.approx(target.log_z[0], abs=1e-3)
    assert np.exp(target.log_target[0]).sum() == pytest.approx(1.0, abs=1e-12)
    # The base's own mass on the list: all of it where the list is whole.
    mass = np.exp(exact_log_policy(target, target.base)[0]).sum()
    assert mass == pytest.approx(1.0, abs=1e-4) if target.unlisted == -np.inf else 0 < mass < 1


def test_short_targets_list_every_sequence_of_at_most_two_tokens():
    target = built("stories-power")
    words = sorted({token for row in token_rows(target.listed[0]) for token in row})
    assert len(words) == SIZE.vocabulary
    wanted = {z for length in range(3) for z in itertools.product(words, repeat=length)}
    assert set(token_rows(target.listed[0])) == wanted


def test_numbers_list_every_sequence_of_digits():
    target = built("numbers")
    found = texts(target, "tiny-numbers")
    assert sorted(found) == sorted("".join(z) for n in range(4) for z in itertools.product("0123456789", repeat=n))
    valid = {str(number) for number in range(101)}
    for text, log_reward, mode in zip(found, target.log_reward[0], target.modes[0]):
        assert (mode == text) is (text in valid)
        assert log_reward == pytest.approx(0.0 if text in valid else -10.0 * max(len(text), 1), abs=1e-5)
    wrong = [-10.0 * max(len(text), 1) for text in found if text not in valid]
    assert target.log_z[0] == pytest.approx(np.log(101 + np.exp(wrong).sum()), abs=1e-6)


@pytest.mark.slow
def test_the_story_world_lists_what_its_generator_can_write_and_names_what_fits_the_ending():
    target = built("story-world")
    (story,) = draw_stories("test", 1)
    fits = {event.sentence: story.ending in endings(story.beginning, event) for event in events(story.beginning)}
    found = {f"{text.strip()}.": mode for text, mode in zip(texts(target, "tiny-stories"), target.modes[0])}
    assert {text: mode is not None for text, mode in found.items()} == fits
    assert len(set(found.values()) - {None}) == sum(fits.values()) > 1


def test_countdown_lists_the_right_expressions():
    target = built("countdown")
    (problem,) = countdown.draw_problems("bench", 1)
    wanted = set()
    for order in itertools.permutations(problem.numbers):
        for signs in itertools.product("+-*", repeat=3):
            value = order[0]
            for sign, number in zip(signs, order[1:]):
                value = {"+": value + number, "-": value - number, "*": value * number}[sign]
            if value == problem.target:
                wanted.add(" ".join(map(str, [order[0], *itertools.chain(*zip(signs, order[1:]))])))
    assert {text.strip() for text in texts(target, "tiny-countdown")} == wanted
    assert target.modes[0] == tuple(countdown.form(text.strip()) for text in texts(target, "tiny-countdown"))


def test_arithmetic_lists_what_the_calculator_lets_be_written():
    target = built("arithmetic")
    found = texts(target, "tiny-arithmetic")
    # What follows an "=" is the value of the two operands before it, and nothing ends without a number.
    assert " 3 + 3 = 6" in found
    assert " 3 + 3 =" not in found
    ended = [text for text, row in zip(found, token_rows(target.listed[0])) if len(row) < 5]
    assert all(text[-1].isdigit() for text in ended)  # at the maximum length every completion ends
    called = [text for text in found if "=" in text]
    assert {text.split("=")[1].split()[0] for text in called if text.startswith(" 3 + 3 =")} == {"6"}


def test_what_is_not_there_is_none_and_what_is_wrong_is_refused():
    assert TARGETS["stories260k-infill"](SIZE) is None
    with pytest.raises((ValueError, OSError)):
        TARGETS["stories260k-infill"](Size(stories260k="/absent"))


@pytest.mark.reference
def test_all_of_at_most_two_tokens_of_a_real_model(shared):
    base = BaseModel.read(str(shared / "models" / "stories260k"))
    target = short("real", base, "Once upon a time, there was a little", " named Lily. She", Size(vocabulary=None))
    assert len(target.log_reward[0]) > 100_000
    assert np.exp(exact_log_policy(target, base.model)[0]).sum() == pytest.approx(1.0, abs=1e-3)
    assert listed_rollout([()], target.rules).completion.shape == (1, 3)
