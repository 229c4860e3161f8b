import re

import jax.numpy as jnp
import numpy as np
import pytest

from gfn_jax.environments import NoTool
from gfn_jax.policy.constraint import Rules, make_constraint
from gfn_jax.policy.teacher import teacher_force
from gfn_jax.rewards.automaton import AutomatonReward, word_reward

# Surface texts: words whole and in pieces, capitals, an apostrophe, punctuation.
STRINGS = [" the", " cat", "cat", "s", " Dog", " d", "og", "gy", ".", "'", " ", "<stop>"]
STOP = 11
WORDS = {"required": ("cat", "the"), "forbidden": ("dog", "s")}


def rollout_of(ids, lengths):
    return teacher_force(
        jnp.asarray(ids), jnp.asarray(lengths), Rules(make_constraint(len(STRINGS), STOP, len(ids[0]) - 1), NoTool())
    )


def values(reward, ids, lengths):
    return np.asarray(reward.log_reward(None, reward.prepare(None), None, rollout_of(ids, lengths)))


def test_words_are_those_of_the_decoded_text():
    rng = np.random.default_rng(0)
    ids = rng.integers(0, STOP, (200, 7))
    ids[:, -1] = STOP
    measured = values(word_reward(STRINGS, penalty=3.0, **WORDS), ids, [6] * 200)
    wrong = 0
    for row, found in zip(ids, measured, strict=True):
        for t in range(7):
            words = re.findall(r"\w+", "".join(STRINGS[i] for i in row[:t]).lower())
            wrong += sum(word not in words for word in WORDS["required"])
            wrong += sum(word in words for word in WORDS["forbidden"])
            assert found[t] == -3.0 * wrong, (row[:t], words)
            wrong = 0


@pytest.mark.parametrize("words", [("two words",), ("cat", "Cat"), ("",), ("it's",)])
def test_what_is_no_word_is_refused(words):
    with pytest.raises(ValueError, match="single words"):
        word_reward(STRINGS, words, (), 1.0)


def test_more_words_than_bits_are_refused():
    with pytest.raises(ValueError, match="31"):
        word_reward(STRINGS, [f"w{i}" for i in range(32)], (), 1.0)


def test_an_automaton_counts():
    """Even or odd numbers of token 3."""
    following = np.zeros((2, len(STRINGS)), int)
    following[1] = 1
    following[:, 3] = [1, 0]
    reward = AutomatonReward(following, np.asarray([0.0, -2.0]))
    assert values(reward, [[3, 1, 3, 3, 2, STOP]], [5]).tolist() == [[0, -2, -2, 0, -2, -2]]


def test_a_table_that_leads_nowhere_is_refused():
    with pytest.raises(ValueError, match="2 states"):
        AutomatonReward(np.full((2, 4), 2), np.zeros(2))
    with pytest.raises(ValueError, match="3 states"):
        AutomatonReward(np.zeros((2, 4), int), np.zeros(3))
