"""Sampling with coarser keys and values: close to the policy, and honest about what was drawn from."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_worlds import left_padded, random_lora, random_params, tiny

from gfn_jax.environments import NoTool
from gfn_jax.models import decoder, layers
from gfn_jax.models.language_model import LanguageModel
from gfn_jax.policy.constraint import Rules, make_constraint
from gfn_jax.policy.rollout import Behavior, complete, rollout
from gfn_jax.policy.score import score

ARITY, STOP, LONGEST, ROWS = 3, 5, 6, 256
CONFIG = tiny()
MODEL = LanguageModel(CONFIG, random_params(CONFIG, scale=0.3), random_lora(CONFIG))
PROMPT = left_padded([[6, 7, 8], [9, 10]])
RULES = Rules(make_constraint(23, STOP, LONGEST, token_ids=np.arange(ARITY)), NoTool())
# Largest error of a log-probability here, in nats; a float32 cache's is 2e-5.
NEAR = {"bfloat16": 0.05, "int8": 0.2}


@functools.partial(jax.jit, static_argnames="dtype")
def sample(model, key, dtype):
    return rollout(model, PROMPT, RULES, Behavior.at(1.0, ROWS), key, cache_dtype=dtype)


@functools.partial(jax.jit, static_argnames="dtype")
def completed(model, completion, cut, dtype):
    read = decoder.prefill(model, PROMPT)
    key, behavior = jax.random.key(0), Behavior.at(1.0, ROWS)
    return complete(model, read, RULES, behavior, key, given=(completion, cut), cache_dtype=dtype)


@pytest.mark.parametrize("dtype", NEAR)
def test_it_is_near_the_policy_that_is_scored(dtype):
    sampled = sample(MODEL, jax.random.key(1), dtype)
    scored = jax.jit(score)(MODEL, PROMPT, sampled, RULES)
    error = np.abs(scored.log_pf - sampled.log_behavior)
    assert 1e-4 < error.max() < NEAR[dtype]
    assert error.mean() < NEAR[dtype] / 10


@pytest.mark.parametrize("dtype", NEAR)
def test_log_behavior_is_of_the_distribution_that_was_drawn_from(dtype):
    """In every state, by enumeration: with the other tokens' in their place, the reported probabilities sum to one."""
    base = MODEL.base
    sampled = sample(base, jax.random.key(2), dtype)
    checked = 0
    for t in range(LONGEST):
        actions = jnp.asarray([*range(ARITY), STOP])
        others = [sampled.completion.at[:, t].set(action) for action in actions]
        log_q = np.stack([completed(base, other, jnp.full(ROWS, t + 1), dtype).log_behavior[:, t] for other in others])
        rows = np.asarray(sampled.action_mask[:, t])
        np.testing.assert_allclose(np.exp(log_q).sum(0)[rows], 1.0, atol=1e-6)
        taken = (np.asarray(actions)[:, None] == np.asarray(sampled.completion[:, t])).argmax(0)
        found = np.take_along_axis(log_q, taken[None], axis=0)[0]
        np.testing.assert_allclose(found[rows], sampled.log_behavior[:, t][rows], atol=1e-6)
        checked += rows.sum()
    assert checked > 2 * ROWS


@pytest.mark.parametrize("dtype", NEAR)
def test_in_pieces_it_is_the_same(dtype, monkeypatch):
    completion = sample(MODEL, jax.random.key(3), dtype).completion
    whole = completed(MODEL, completion, jnp.full(ROWS, LONGEST + 1), dtype)
    monkeypatch.setattr(layers, "columns_at_once", lambda: 2)
    pieces = completed.__wrapped__(MODEL, completion, jnp.full(ROWS, LONGEST + 1), dtype)
    np.testing.assert_allclose(pieces.log_behavior, whole.log_behavior, atol=NEAR[dtype] / 5)


def test_a_byte_is_half_a_step_off_at_most():
    x = jax.random.normal(jax.random.key(0), (2, 3, 4, 5)).at[0, 0, 0].set(0.0)
    kept = layers.stored(x, "int8")
    assert kept.codes.dtype == jnp.int8
    step = np.abs(x).max(-1, keepdims=True) / 127
    assert (np.abs(layers.restored(kept, jnp.float32) - x) <= step / 2 + 1e-7).all()
    assert np.abs(kept.codes).max() == 127
    assert layers.restored(kept, jnp.bfloat16).dtype == jnp.bfloat16
    coarse = layers.stored(x, "bfloat16")
    assert coarse.dtype == jnp.bfloat16
    assert layers.restored(coarse, jnp.float32).dtype == jnp.float32
    assert layers.restored(x, jnp.bfloat16) is x
