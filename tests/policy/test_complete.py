"""Completions of prompts that have been read, and given tokens up to a cut."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_worlds import calculator_world, left_padded, random_lora, random_params, tiny

from gfn_jax.models import decoder
from gfn_jax.models.language_model import LanguageModel
from gfn_jax.policy.constraint import Rules
from gfn_jax.policy.rollout import Behavior, complete, rollout

ROWS = 1024
TOKENIZER, ENVIRONMENT, CONSTRAINT = calculator_world()
RULES = Rules(CONSTRAINT, ENVIRONMENT)
SHAPE = tiny(vocab_size=len(TOKENIZER))
MODEL = LanguageModel(SHAPE, random_params(SHAPE, seed=3, scale=0.15), random_lora(SHAPE, seed=4))
PROMPT = left_padded([[6, 7, 8], [9, 10]])
# Half of the rows are tempered and mixed: what is given has their probability.
BEHAVIOR = Behavior(jnp.where(jnp.arange(ROWS) % 2, 1.0, 0.6), jnp.where(jnp.arange(ROWS) % 2, 0.0, 0.3))


@jax.jit
def completed(completion, cut, key):
    read = decoder.prefill(MODEL, PROMPT)
    return complete(MODEL, read, RULES, BEHAVIOR, key, given=(completion, cut))


@pytest.fixture(scope="module")
def sampled():
    return jax.jit(lambda key: rollout(MODEL, PROMPT, RULES, BEHAVIOR, key))(jax.random.key(0))


def assert_same(found, expected, columns=slice(None)):
    for name in ("completion", "token_mask", "action_mask", "state_mask"):
        np.testing.assert_array_equal(getattr(found, name)[columns], getattr(expected, name)[columns])
    np.testing.assert_allclose(found.log_behavior[columns], expected.log_behavior[columns], atol=2e-5)


def test_given_to_its_end_a_row_is_itself_whatever_the_key(sampled):
    found = completed(sampled.completion, jnp.full(ROWS, CONSTRAINT.horizon), jax.random.key(7))
    assert_same(found, sampled)
    assert (np.asarray(sampled.token_mask & ~sampled.action_mask)).sum() > 10  # the tool's tokens among it


def test_nothing_given_is_a_rollout(sampled):
    anything = jnp.zeros_like(sampled.completion)
    assert_same(completed(anything, jnp.zeros(ROWS, int), jax.random.key(0)), sampled)


def test_rows_keep_what_is_given_and_write_on(sampled):
    """What a row keeps is its own; what it writes behind its cut is what the key says of that column."""
    cut = jnp.arange(ROWS) % 5
    found = completed(sampled.completion, cut, jax.random.key(7))
    kept = np.arange(CONSTRAINT.horizon) < np.asarray(cut)[:, None]
    assert_same(found, sampled, kept)
    assert (np.asarray(found.stop).sum(1) == 1).all()
    changed = (np.asarray(found.completion) != np.asarray(sampled.completion)).any(1)
    assert changed.mean() > 0.5
    again = completed(found.completion, jnp.full(ROWS, CONSTRAINT.horizon), jax.random.key(1))
    assert_same(again, found)
