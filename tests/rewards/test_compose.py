import functools

import jax
import jax.numpy as jnp
import numpy as np
from tiny_worlds import left_padded, query_of, random_params, right_padded, tiny

from gfn_jax.environments import NoTool
from gfn_jax.models.language_model import LanguageModel
from gfn_jax.policy.constraint import Rules, make_constraint
from gfn_jax.policy.teacher import teacher_force
from gfn_jax.rewards import PosteriorReward, Product, Rearranged
from gfn_jax.rewards.compose import context_last, without_context

MODEL = LanguageModel(tiny(), random_params(tiny(), scale=0.3))
START = jnp.asarray([2], jnp.int32)
CONTEXTS = [[3, 4, 9], [7]]
ANSWERS = [[8, 6], [10]]
QUERY = query_of(left_padded(CONTEXTS), answer=right_padded(ANSWERS))
Z = [[11, 12, 13], [14, 15, 16]]
ROLLOUT = teacher_force(
    jnp.asarray([[*z, 5] for z in Z]), jnp.asarray([3, 3]), Rules(make_constraint(23, 5, 3), NoTool())
)


def log_rewards(reward, query):
    return jax.jit(lambda model: reward.log_reward(model, reward.prepare(model), query, ROLLOUT))(MODEL)


def test_contrast_leaves_out_the_context():
    """p(XZY)^1 p(ZY)^-0.5, each factor as the plain reward of a query that is written so from the start."""
    reward = PosteriorReward()
    free = Rearranged(reward, functools.partial(without_context, start=START))
    contrast = log_rewards(Product((reward, free), (1.0, -0.5)), QUERY)
    bare = query_of(left_padded([[2], [2]]), answer=right_padded(ANSWERS))
    expected = log_rewards(reward, QUERY) - 0.5 * log_rewards(reward, bare)
    np.testing.assert_allclose(contrast, expected, atol=2e-5)


def test_reverse_generation_reads_the_context_last():
    reward = PosteriorReward()
    backwards = Rearranged(reward, functools.partial(context_last, start=START))
    expected = log_rewards(reward, query_of(left_padded([[2], [2]]), answer=right_padded(CONTEXTS)))
    np.testing.assert_allclose(log_rewards(backwards, QUERY), expected, atol=2e-5)


def test_reverse_generation_moves_a_begin_of_text_to_the_front():
    """p(BOS Z X), whether X came with the BOS or without; never p(BOS Z BOS X)."""
    reward = PosteriorReward()
    backwards = Rearranged(reward, functools.partial(context_last, start=START))
    begun = query_of(left_padded([[2, *CONTEXTS[0]], CONTEXTS[1]]), answer=right_padded(ANSWERS))
    np.testing.assert_allclose(log_rewards(backwards, begun), log_rewards(backwards, QUERY), atol=2e-5)
    two = jnp.asarray([2, 4], jnp.int32)
    begun = query_of(left_padded([[2, 4, 3, 9], [2, 4]]), answer=right_padded(ANSWERS))
    answer = context_last(begun, two).answer
    assert [ids[mask].tolist() for ids, mask in zip(answer.ids, answer.mask, strict=True)] == [[3, 9], []]
    assert context_last(QUERY, two).answer.mask.sum(1).tolist() == [3, 1]  # half a beginning is none
