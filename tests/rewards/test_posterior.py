import dataclasses
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_worlds import (
    all_sequences,
    coarse_products,
    left_padded,
    query_of,
    random_ids,
    random_params,
    right_padded,
    tiny,
)

from gfn_jax.environments import NoTool
from gfn_jax.models import decoder
from gfn_jax.models.checkpoint import load_model
from gfn_jax.models.language_model import LanguageModel
from gfn_jax.policy.constraint import Rules, make_constraint
from gfn_jax.policy.teacher import teacher_force
from gfn_jax.rewards import PosteriorReward, Product, TableReward, posterior, sequential_log_reward
from gfn_jax.rewards.posterior import token_log_probs
from gfn_jax.types import Tokens

CONFIG = tiny()
PARAMS = random_params(CONFIG, scale=0.3)
MODEL = LanguageModel(CONFIG, PARAMS)
STOP = 5
CONTEXT = left_padded([[3, 4, 5, 6], [7, 8]])
DEMONSTRATIONS = Tokens(ids=random_ids(1, 1, 6), mask=jnp.ones((1, 6), bool))
PENALTY = jnp.where(jnp.arange(23) < 9, 0.0, 7.0)


def rollout_of(seed: int, rows: int, horizon: int):
    rng = np.random.default_rng(seed)
    completion = jnp.asarray(rng.integers(6, 23, (rows, horizon)), jnp.int32)
    length = jnp.asarray(rng.integers(0, horizon, rows)).at[0].set(horizon - 1).at[1].set(0)
    return teacher_force(completion, length, Rules(make_constraint(23, STOP, horizon - 1), NoTool()))


ROLLOUT = rollout_of(0, 6, 5)
CASES = {
    "plain": (PosteriorReward(), ROLLOUT, right_padded([[9, 3, 2], [7]])),
    "demonstrations and penalty": (
        PosteriorReward(DEMONSTRATIONS, PENALTY, released_min_length=2),
        ROLLOUT,
        right_padded([[9, 3], [11, 12, 13, 14]]),
    ),
    "one token of answer": (PosteriorReward(DEMONSTRATIONS), ROLLOUT, right_padded([[STOP], [STOP]])),
    "no answer for one": (PosteriorReward(), rollout_of(3, 4, 3), right_padded([[9, 3], []])),
    "gpt2": (
        PosteriorReward(None, PENALTY),
        rollout_of(2, 4, 4),
        right_padded([[1, 2, 3], [4, 5]]),
    ),
}


PIECES = ("demonstrations and penalty", "one token of answer")  # that are also read two tokens at a time


@pytest.mark.parametrize(("name", "pieces"), [*((name, False) for name in CASES), *((name, True) for name in PIECES)])
def test_the_packed_pass_equals_one_pass_per_prefix(name, pieces, monkeypatch):
    if pieces:
        monkeypatch.setattr(posterior, "LONGEST_AT_ONCE", 3)
        monkeypatch.setattr(posterior, "PIECE", 3)
    reward, rollout, answer = CASES[name]
    config = tiny(norm="layer", positions="learned", tied_head=True) if name == "gpt2" else CONFIG
    model = LanguageModel(config, random_params(config, scale=0.3))
    query = query_of(CONTEXT, answer=answer)

    @jax.jit
    def both(model, query, rollout):
        prepared = reward.prepare(model)
        return tuple(
            score(model, prepared, query, rollout)
            for score in (reward.log_reward, functools.partial(sequential_log_reward, reward))
        )

    packed, sequential = both(model, query, rollout)
    alive = np.asarray(rollout.action_mask)
    np.testing.assert_allclose(np.asarray(packed)[alive], np.asarray(sequential)[alive], atol=1e-4)
    if reward.released_min_length:
        assert (np.asarray(packed)[:, :2] == -99).all()
    else:
        assert (np.asarray(packed)[alive] <= 0).all()
    # The prefixes differ in their rewards, or nothing was compared.
    assert np.ptp(np.asarray(packed)[0]) > 1


@pytest.mark.parametrize(
    ("rows", "horizon", "answer", "at_once"),
    [(64, 21, 6, 4), (16, 18, 6, 9), (4, 20, 6, 20), (8, 5, 1, 5), (0, 5, 3, 5)],
)
def test_pieces_are_about_as_large_as_each_other(rows, horizon, answer, at_once):
    assert posterior.prefixes_at_once(rows, horizon, answer) == at_once


@pytest.mark.parametrize(
    ("rows", "horizon", "answer", "passes"),
    # The prompts alone; Z too; Y behind all prefixes at once, behind nine at a time; 40 tokens in pieces of 16.
    [(8, 1, 1, 1), (8, 5, 1, 2), (4, 20, 6, 3), (16, 18, 6, 4), (4, 41, 1, 4), (4, 41, 6, 8)],
)
def test_layers_are_gone_through_as_often_as_there_are_pieces(rows, horizon, answer, passes):
    assert posterior.layer_passes(rows, horizon, answer) == passes


@pytest.mark.parametrize("at_once", [1, 2, 3])
def test_answers_are_read_behind_prefixes_that_may_be_completions_and_no_others(at_once, monkeypatch):
    """As many as the row with the most has: 3 here, of 5."""
    reward, rollout, answer = CASES["demonstrations and penalty"]
    reward, query = dataclasses.replace(reward, released_min_length=0), query_of(CONTEXT, answer=answer)
    asked = np.zeros(rollout.state_mask.shape, bool)
    for row, columns in enumerate([(0, 2, 4), (4,), (), (1, 2), (0,), (3, 4)]):
        asked[row, list(columns)] = True
    rollout = dataclasses.replace(rollout, state_mask=jnp.asarray(asked))
    whole = np.asarray(log_reward(reward, query, rollout=rollout))
    monkeypatch.setattr(posterior, "ANSWER_TOKENS", at_once * 6 * 3)
    calls = []
    read = posterior.rest_log_probs
    monkeypatch.setattr(posterior, "rest_log_probs", lambda *given: calls.append(given[4].shape) or read(*given))
    some = np.asarray(log_reward(reward, query, rollout=rollout))
    assert calls == [(6, at_once)]  # traced once
    np.testing.assert_allclose(some[asked], whole[asked], atol=1e-6)
    assert (np.abs(some - whole)[~asked] > 1e-3).all()  # Y's first token alone


def test_no_more_pieces_are_read_than_the_longest_row_has(monkeypatch):
    """Behind them the reward is 0, and nothing there depends on the model."""
    monkeypatch.setattr(posterior, "LONGEST_AT_ONCE", 3)
    monkeypatch.setattr(posterior, "PIECE", 2)
    rules = Rules(make_constraint(23, STOP, 7), NoTool())
    query, reward = query_of(CONTEXT, answer=right_padded([[9, 3], [7, 2]])), PosteriorReward()
    score = jax.jit(lambda rollout: reward.log_reward(MODEL, reward.prepare(MODEL), query, rollout))
    for longest, read in ((0, 0), (1, 2), (2, 2), (3, 4), (7, 7)):
        found = np.asarray(score(teacher_force(random_ids(0, 4, 8), jnp.asarray([longest, 0, 0, 0]), rules)))
        assert (found[:, : read + 1] < 0).all()
        assert not found[:, read + 1 :].any()


def log_reward(reward, query, prepared=None, rollout=ROLLOUT):
    score = jax.jit(lambda model, kept: reward.log_reward(model, kept, query, rollout))
    return score(MODEL, reward.prepare(MODEL) if prepared is None else prepared)


def test_cached_demonstrations_equal_a_longer_context():
    answer = right_padded([[9, 3, 2], [7]])
    cached = log_reward(PosteriorReward(DEMONSTRATIONS), query_of(CONTEXT, answer=answer))
    # Demonstrations, padding, context: padding is invisible wherever it is.
    longer = jax.tree.map(
        lambda demo, own: jnp.concatenate([jnp.repeat(demo, 2, axis=0), own], axis=1), DEMONSTRATIONS, CONTEXT
    )
    whole = log_reward(PosteriorReward(), query_of(CONTEXT, context=longer, answer=answer))
    alive = np.asarray(ROLLOUT.action_mask)
    np.testing.assert_allclose(np.asarray(cached)[alive], np.asarray(whole)[alive], atol=1e-4)
    without = log_reward(PosteriorReward(), query_of(CONTEXT, answer=answer))
    assert np.abs(np.asarray(cached) - without)[alive].max() > 1e-2


@pytest.mark.parametrize("penalty", [None, PENALTY], ids=["plain", "penalised"])
def test_a_vocabulary_in_blocks_equals_the_whole_softmax(penalty, monkeypatch):
    hidden = jnp.asarray(np.random.default_rng(0).standard_normal((3, 7, 16)), jnp.float32)
    targets = random_ids(0, 3, 7, 2)
    head = decoder.select_head(LanguageModel(CONFIG, PARAMS))
    whole = token_log_probs(head, hidden, targets, penalty)
    monkeypatch.setattr(decoder, "VOCABULARY_BLOCK", 6)  # 23 columns: the last block overlaps
    blocks = token_log_probs(head, hidden, targets, penalty)
    np.testing.assert_allclose(blocks, whole, rtol=1e-5, atol=1e-5)
    logits = np.asarray(decoder.logits(head, hidden), np.float64)
    lowered = logits - (0 if penalty is None else np.asarray(penalty))
    for candidate, values in enumerate((lowered, logits)):
        log_p = values - np.log(np.exp(values).sum(-1, keepdims=True))
        expected = np.take_along_axis(log_p, np.asarray(targets)[..., candidate, None], -1)[..., 0]
        np.testing.assert_allclose(whole[..., candidate], expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("changes", "coarse"),
    [({}, False), ({}, True), ({"logit_softcap": 30.0}, False)],
    ids=["plain", "coarse products", "soft cap"],
)
def test_no_token_is_likelier_than_certain(changes, coarse, monkeypatch):
    """Every p <= 1 and their sum is 1: the normaliser's numbers are the picked ones, in blocks and in one."""
    if coarse:
        coarse_products(monkeypatch)
    config = tiny(**changes)
    head = decoder.select_head(LanguageModel(config, PARAMS))
    hidden = jnp.asarray(np.random.default_rng(0).standard_normal((40, 16)), jnp.float32)
    hidden *= jnp.where(jnp.arange(40) < 20, 1, 30)[:, None]  # the later ones are nearly certain
    every = jnp.broadcast_to(jnp.arange(23), (40, 23))
    for block in (6, 2048):
        monkeypatch.setattr(decoder, "VOCABULARY_BLOCK", block)
        log_probs = np.asarray(jax.jit(lambda x: token_log_probs(head, x, every))(hidden), np.float64)
        assert -0.01 < log_probs.max() <= 0
        np.testing.assert_allclose(np.exp(log_probs).sum(-1), 1, atol=5e-5)


def enumerated(arity: int, longest: int):
    sequences = all_sequences(arity, longest)
    completion = jnp.asarray([[*s, *[arity] * (longest + 1 - len(s))] for s in sequences])
    length = jnp.asarray([len(s) for s in sequences])
    constraint = make_constraint(arity + 1, arity, longest)
    return sequences, teacher_force(completion, length, Rules(constraint, NoTool()))


def test_a_table_is_read_at_every_prefix():
    sequences, rollout = enumerated(3, 3)
    table = jnp.asarray(np.random.default_rng(0).standard_normal(len(sequences)), jnp.float32)
    reward = TableReward(table, 3)
    out = reward.log_reward(None, reward.prepare(None), None, rollout)
    by_sequence = dict(zip(sequences, np.asarray(table), strict=True))
    for row, sequence in enumerate(sequences):
        expected = [by_sequence[sequence[:t]] for t in range(len(sequence) + 1)]
        np.testing.assert_array_equal(out[row, : len(expected)], expected)


def test_a_product_is_the_weighted_sum_of_logarithms():
    sequences, rollout = enumerated(2, 2)
    rng = np.random.default_rng(0)
    tables = [jnp.asarray(rng.standard_normal(len(sequences)), jnp.float32) for _ in range(2)]
    one, other = (TableReward(table, 2) for table in tables)
    product = Product((one, other), (0.5, -2.0))
    out = product.log_reward(None, product.prepare(None), None, rollout)
    expected = [factor.log_reward(None, factor.table, None, rollout) for factor in (one, other)]
    np.testing.assert_allclose(out, 0.5 * expected[0] - 2.0 * expected[1], rtol=1e-6)
    tempered = Product((one,), (1 / 3,))
    np.testing.assert_allclose(
        tempered.log_reward(None, tempered.prepare(None), None, rollout), expected[0] / 3, rtol=1e-6
    )


# The released code's rewards where it says what a completion below the minimum length is worth. All cases of all
# models, that apart, are in tests/models/test_golden_vectors.py.
RELEASED = [
    ("gpt2", "ns_score", "minlen3"),
    ("gpt2", "infill_score", "nice99_minlen5"),
    ("llama", "infill_score", "cache_nice99_minlen5"),
]


@pytest.fixture(scope="module")
def golden(golden_folder):
    cases = json.loads((golden_folder / "model_vectors.json").read_text())
    return cases, dict(np.load(golden_folder / "model_vectors.npz"))


def until(stop: int, rows: np.ndarray):
    """The rollout of completions that end before their first `stop`."""
    padded = np.concatenate([rows, np.full((len(rows), 1), stop)], axis=1)
    length = (padded == stop).argmax(1)
    constraint = make_constraint(101, stop, rows.shape[1])
    return teacher_force(jnp.asarray(padded), jnp.asarray(length), Rules(constraint, NoTool()))


@pytest.mark.parametrize(("model", "kind", "name"), RELEASED)
def test_rewards_are_those_of_the_released_code(model, kind, name, golden_folder, golden):
    meta, arrays = golden
    settings = next(case for case in meta["cases"] if case["key"] == f"{model}/{kind}/{name}")
    group = f"{model}/{kind}"
    if kind == "ns_score":
        stop, encoded = meta["sentence_token_id"], arrays[f"{group}/{name}/encoded_input"]
        context, completion, answer = encoded[:, :6].tolist(), encoded[:, 6:], [stop]
        demonstrations = arrays[f"{group}/{name}/prompt_cache_ids"]
    else:
        stop, completion = meta["eos_token_id"], arrays[f"{group}/generated"]
        context, answer = [arrays[f"{group}/query"].tolist()] * 5, arrays[f"{group}/solution"].tolist()
        demonstrations = arrays[f"{group}/fewshot_prompt"][None] if settings["prompt_cache"] else np.zeros((0, 0))
    penalty = None
    if settings["mask"] is not None:
        named = np.isin(np.arange(101), meta[f"{settings['mask']}_ids"])
        outside = named if settings["mask"] == "naughty" else ~named
        penalty = jnp.where(outside, -float(settings["vocab_alpha"]), 0.0)
    before = None
    if demonstrations.size:
        before = Tokens(ids=jnp.asarray(demonstrations), mask=jnp.ones(demonstrations.shape, bool))
    config, params = load_model(golden_folder / "models" / model)
    reward = PosteriorReward(before, penalty, settings.get("min_len", 0))
    rollout = until(stop, completion)
    query = query_of(left_padded(context), answer=right_padded([answer] * 5))
    score = jax.jit(lambda model: reward.log_reward(model, reward.prepare(model), query, rollout))
    alive = np.asarray(rollout.action_mask)
    assert alive.sum() > 20
    expected = arrays[f"{group}/{name}/reward_f64"]
    np.testing.assert_allclose(np.asarray(score(LanguageModel(config, params)))[alive], expected[alive], atol=2e-4)
