"""Exact targets: the sums, against log-probabilities read off whole texts; the distances, by hand."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_worlds import left_padded, query_of, random_params, right_padded, tiny

from gfn_jax.bench import exact
from gfn_jax.bench.exact import compare, distances, empirical, exact_log_policy, make_target, noise_floor
from gfn_jax.environments import NoTool
from gfn_jax.evaluation.enumeration import enumerate_completions, listed_rollout
from gfn_jax.models import decoder
from gfn_jax.models.language_model import LanguageModel
from gfn_jax.policy.constraint import Rules, make_constraint
from gfn_jax.rewards import PosteriorReward
from gfn_jax.rewards.support import PENALTY, SupportReward
from gfn_jax.samplers.independent import Ancestral, Importance
from gfn_jax.samplers.sampler import Weighed

X, Y, STOP, WORDS = [[3, 5], [4, 4, 8]], [[2, 7], [2, 9, 6]], 2, (5, 6, 11)
RULES = Rules(make_constraint(23, STOP, max_length=2, token_ids=np.array(WORDS)), NoTool())
QUERIES = query_of(left_padded(X), answer=right_padded(Y))
# Everything that can be written, in an order of its own.
EVERY = [z for n in (2, 0, 1) for z in itertools.product(WORDS, repeat=n)]


@pytest.fixture(scope="module")
def base() -> LanguageModel:
    return LanguageModel(tiny(), random_params(tiny()))


@pytest.fixture(scope="module")
def direct(base) -> np.ndarray:
    """[Q, Z] log p(Z Y | X), read off the softmax of a pass over each whole text."""
    texts = [[*x, *z, *y] for x, y in zip(X, Y) for z in EVERY]
    tokens = left_padded(texts)
    hidden, _ = jax.jit(decoder.prefill)(base, tokens)
    log_p = np.asarray(jax.nn.log_softmax(decoder.logits(decoder.select_head(base), hidden)), np.float64)
    width, found = tokens.ids.shape[1], []
    for number, text in enumerate(texts):
        begin = width - len(text) + len(X[number // len(EVERY)])
        found.append(sum(log_p[number, at - 1, int(tokens.ids[number, at])] for at in range(begin, width)))
    return np.array(found).reshape(2, -1)


@pytest.fixture(scope="module")
def target(base):
    return make_target("tiny", base, PosteriorReward(), RULES, QUERIES, enumerate_completions(RULES))


def test_a_target_is_the_softmax_of_what_whole_texts_are_worth(target, direct):
    np.testing.assert_allclose(target.log_z, np.log(np.exp(direct).sum(axis=1)), rtol=1e-5)
    for query in range(2):
        assert len(target.places[query]) == len(EVERY) == len(target.log_reward[query])
        order = [target.places[query][z] for z in EVERY]
        np.testing.assert_allclose(target.log_reward[query][order], direct[query], rtol=1e-4)
        assert np.exp(target.log_target[query]).sum() == pytest.approx(1.0, abs=1e-12)


def test_modes_are_the_smallest_set_with_most_of_the_mass_where_none_are_named(target):
    for log_p, modes in zip(target.log_target, target.modes):
        kept = np.array([mode is not None for mode in modes])
        p = np.exp(log_p)
        assert p[kept].sum() >= exact.MODE_MASS > p[kept].sum() - p[kept].min()
        assert p[kept].min() >= p[~kept].max()
    assert target.mode_of(0, (19, 19, 19)) is None


def test_a_policys_own_probabilities_add_up_to_one(target, base):
    for log_q in exact_log_policy(target, base):
        assert np.exp(log_q).sum() == pytest.approx(1.0, abs=1e-5)


def test_a_support_takes_its_penalty_off_whatever_a_querys_list_leaves_out(base):
    lists = [{(5,), (6, 6)}, {(), (5,), (11, 5)}]
    reward = SupportReward.of([sorted(rows) for rows in lists])
    rollout = listed_rollout(EVERY * 2, RULES)
    found = np.asarray(jax.jit(reward.log_reward)(base, reward.prepare(base), QUERIES, rollout))
    for number, (z, row) in enumerate(zip(EVERY * 2, found)):
        kept = lists[number // len(EVERY)]
        for length in range(len(z) + 1):
            assert row[length] == (0.0 if z[:length] in kept else -PENALTY)


def test_every_query_may_have_a_list_and_modes_of_its_own(base, target):
    rows = [(5,), (6, 6)], [(), (5,), (11, 5)]
    lists = [listed_rollout(each, RULES) for each in rows]
    found = make_target("lists", base, PosteriorReward(), RULES, QUERIES, lists, lambda query, z: len(z) or None)
    assert found.modes == ((1, 2), (None, 1, 2))
    assert found.mode_of(1, (11, 5)) == 2
    for query, each in enumerate(rows):
        whole = target.log_reward[query][[target.places[query][z] for z in each]]
        np.testing.assert_allclose(found.log_reward[query], whole, rtol=1e-5)


def test_what_is_no_exact_target_is_refused(base):
    def build(rows, unlisted=-np.inf):
        return make_target(
            "wrong", base, PosteriorReward(), RULES, QUERIES, listed_rollout(rows, RULES), None, unlisted
        )

    with pytest.raises(ValueError, match="a listed completion cannot be written"):
        build([(5,), (7,)])
    with pytest.raises(ValueError, match="a completion is listed twice"):
        build([(5,), (5,)])
    with pytest.raises(ValueError, match="what is not listed may have e"):
        build([(5,), (6,)], unlisted=-5.0)
    with pytest.raises(ValueError, match="list holds no completion"):
        SupportReward.of([[(5,)], []])


def test_distances_by_hand():
    q, p = np.array([0.3, 0.3, 0.2, 0.0]), np.array([0.25, 0.25, 0.25, 0.25])
    found = distances(q, np.log(p), ["a", "b", "b", "c"])
    listed = q[:3] / 0.8
    assert found["kl_to_target"] == pytest.approx(np.sum(listed * np.log(listed / 0.25)))
    assert found["kl_from_target"] == np.inf
    assert found["outside"] == pytest.approx(0.2)
    assert found["total_variation"] == pytest.approx((0.05 + 0.05 + 0.05 + 0.25 + 0.2) / 2)
    assert found["coverage"] == pytest.approx(2 / 3)
    assert distances(q, np.log(p), ["a", "b", "b", "c"], found_above=1.1)["coverage"] == pytest.approx(1 / 3)
    same = distances(p, np.log(p), [None] * 4)
    assert (same["kl_to_target"], same["kl_from_target"], same["total_variation"]) == (0, 0, 0)
    assert distances(np.zeros(4), np.log(p), ["a"] * 4)["kl_to_target"] == np.inf


def test_weighted_rows_are_a_distribution_over_the_list(target):
    rows = [(5,), (6,), (5,), (11, 11), (5,), (5,), (6,), (6,)]
    rollout = listed_rollout(rows, RULES)
    log_weight = jnp.array([0.0, jnp.log(2.0), 0.0, -jnp.inf, *[-jnp.inf] * 4])
    zero = jnp.zeros(2, jnp.int32)
    first, second = empirical(target, Weighed(rollout, log_weight, None, None, zero, zero))
    assert first[target.places[0][(5,)]] == pytest.approx(0.5)
    assert first[target.places[0][(6,)]] == pytest.approx(0.5)
    assert first.sum() == pytest.approx(1.0)
    assert second.sum() == 0.0  # none of its rows counts


def test_samplers_come_as_near_as_exact_samples_do(target):
    """Importance sampling converges to the target, ancestral rows to the base's own distribution."""

    def answer(sampler):
        draw = jax.jit(lambda base, problem, key: sampler.sample(base, problem, 4096, key))
        return empirical(target, draw(target.base, target.problem(), jax.random.key(0)))

    weighted, plain = answer(Importance(target.reward)), answer(Ancestral())
    own = dataclasses.replace(target, log_reward=exact_log_policy(target, target.base))  # the base's distribution
    floor = noise_floor(own, 4096)["total_variation"]
    assert compare(own, plain)["total_variation"] < 2 * floor
    assert compare(target, plain)["total_variation"] > 8 * floor
    assert compare(target, weighted)["total_variation"] < 4 * floor


def test_the_noise_floor_is_the_known_bias(base):
    """(k - 1) / 2n of a flat target."""
    flat = make_target("flat", base, SupportReward.of([EVERY] * 2), RULES, QUERIES, enumerate_completions(RULES))
    floor = noise_floor(flat, 1000)
    assert floor["kl_to_target"] == pytest.approx((len(EVERY) - 1) / 2000, rel=0.25)
    assert floor == noise_floor(flat, 1000)
    assert noise_floor(flat, 4)["coverage"] < 0.5 < floor["coverage"] == 1.0
