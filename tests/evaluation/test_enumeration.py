"""The exact distances: the list of completions, and what is computed from it."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gfn_jax.environments import Calculator, NoTool
from gfn_jax.evaluation.enumeration import divergences, enumerate_completions, listed_rollout, random_world
from gfn_jax.policy.constraint import Rules, make_constraint
from gfn_jax.policy.teacher import teacher_force
from gfn_jax.text.wordlevel import build_tokenizer


def test_every_completion_once_and_within_its_lengths():
    constraint = make_constraint(6, 4, max_length=3, min_length=1, token_ids=np.array([1, 3]))
    completions = enumerate_completions(Rules(constraint, NoTool()))
    rows = [tuple(row) for row in completions.completion.tolist()]
    assert len(rows) == len(set(rows)) == 2 + 4 + 8
    assert rows[:3] == [(1, 4, 4, 4), (3, 4, 4, 4), (1, 1, 4, 4)]
    assert completions.token_mask.sum(1).tolist() == [1] * 2 + [2] * 4 + [3] * 8
    # The state before the first token may not stop.
    assert completions.state_mask.sum(1).tolist() == completions.token_mask.sum(1).tolist()


def test_too_many_completions_are_refused():
    constraint = make_constraint(100, 0, max_length=8)
    with pytest.raises(ValueError, match="completions; 300000 at most"):
        enumerate_completions(Rules(constraint, NoTool()))


def test_target_is_the_tables_softmax_in_the_tables_order():
    """`TableReward` numbers completions its own way (a tree's); the list must be in the same order."""
    world = random_world(jax.random.key(0), 3, 2, 1.0)
    np.testing.assert_allclose(world.log_target(0.5), jax.nn.log_softmax(2 * world.reward.table), atol=1e-5)
    np.testing.assert_allclose(jnp.exp(world.log_policy(world.constants.base)).sum(), 1.0, rtol=1e-5)


def test_divergences_by_hand():
    q, p = np.array([0.5, 0.5, 0.0001]), np.array([0.25, 0.25, 0.5])
    q /= q.sum()
    measured = divergences(jnp.log(q), jnp.log(p))
    assert measured["total_variation"] == pytest.approx(np.maximum(q - p, 0).sum(), rel=1e-4)
    assert measured["kl_q_p"] == pytest.approx(np.sum(q * np.log(q / p)), rel=1e-4)
    assert measured["kl_p_q"] == pytest.approx(np.sum(p * np.log(p / q)), rel=1e-4)
    assert measured["coverage"] == pytest.approx(2 / 3)


def test_a_tool_writes_its_tokens_and_decides_where_a_completion_may_end():
    """Of all sequences of the vocabulary's and the results' tokens, those that could have been written."""
    tokenizer = build_tokenizer()
    environment = Calculator.from_tokenizer(tokenizer, max_abs_value=9)
    vocabulary = tokenizer.convert_tokens_to_ids([" 1", " 3", " +", " ="])
    constraint = make_constraint(
        len(tokenizer),
        tokenizer.eos_token_id,
        max_length=5,
        token_ids=np.array(vocabulary),
        opens_call=np.asarray(environment.triggers),
        call_room=environment.max_result_tokens,
    )
    rules = Rules(constraint, environment)
    listed = enumerate_completions(rules)
    ours = {row[:n] for row, n in zip(map(tuple, listed.completion.tolist()), listed.token_mask.sum(1).tolist())}
    assert len(ours) == len(listed.completion)
    assert (listed.token_mask & ~listed.action_mask).any()  # the calculator has written
    assert bool(listed.stop.any(axis=1).all())

    possible = sorted({token for row in ours for token in row} | set(vocabulary))
    offered = [row for length in range(6) for row in itertools.product(possible, repeat=length)]
    ids = np.full((len(offered), 6), constraint.stop_id, np.int32)
    for row, words in zip(ids, offered):
        row[: len(words)] = words
    forced = jax.jit(teacher_force)(jnp.asarray(ids), jnp.array([len(words) for words in offered]), rules)
    assert ours == {words for words, whole in zip(offered, np.asarray(forced.stop).any(axis=1)) if whole}


def test_a_listed_completion_that_is_too_long_is_refused():
    rules = Rules(make_constraint(6, 4, max_length=2), NoTool())
    assert listed_rollout([(1,), (2, 3)], rules).completion.tolist() == [[1, 4, 4], [2, 3, 4]]
    with pytest.raises(ValueError, match="has 3 tokens; the rules allow 2"):
        listed_rollout([(1, 2, 3)], rules)
