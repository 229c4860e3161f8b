"""Rewards that follow a completion while it is written say of every prefix what they say of the whole."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_worlds import left_padded, query_of, random_ids, random_lora, random_params, right_padded, tiny

from gfn_jax.environments import NoTool
from gfn_jax.interfaces import Incremental
from gfn_jax.models.language_model import LanguageModel
from gfn_jax.policy.constraint import Rules, make_constraint
from gfn_jax.policy.teacher import teacher_force
from gfn_jax.rewards import Adapted, AutomatonReward, PosteriorReward, Product, Rearranged, TableReward
from gfn_jax.rewards.automaton import word_reward
from gfn_jax.rewards.compose import context_last, incremental
from gfn_jax.types import Tokens

MODEL = LanguageModel(tiny(local_window=3), random_params(tiny(), scale=0.3))
STOP, HORIZON = 5, 6
CONTEXT = left_padded([[3, 4, 9, 6], [7, 8]])
DEMONSTRATIONS = Tokens(ids=random_ids(1, 1, 6), mask=jnp.ones((1, 6), bool))
PENALTY = jnp.where(jnp.arange(23) < 9, 0.0, 7.0)
LENGTHS = [5, 0, 3, 2, 5, 4]
ROLLOUT = teacher_force(
    random_ids(0, 6, HORIZON, vocab=5), jnp.asarray(LENGTHS), Rules(make_constraint(23, STOP, HORIZON - 1), NoTool())
)
POSTERIOR = PosteriorReward(DEMONSTRATIONS, PENALTY)
AUTOMATON = AutomatonReward(np.arange(2 * 23).reshape(2, 23) % 2, np.array([0.5, -3.0]))
WORDS = word_reward([f" w{i}" for i in range(23)], required=["w1"], forbidden=["w2"], penalty=4.0)
TABLE = TableReward(jnp.asarray(np.random.default_rng(0).standard_normal(500), jnp.float32), 5)
CASES = {
    "posterior": (POSTERIOR, [[9, 3, 2], [7]]),
    "one token of answer": (PosteriorReward(), [[STOP], [STOP]]),
    "no answer for one": (PosteriorReward(), [[9, 3], []]),
    "table": (TABLE, [[1], [1]]),
    "automaton": (AUTOMATON, [[1], [1]]),
    "words": (WORDS, [[1], [1]]),
    "product": (Product((POSTERIOR, AUTOMATON), (0.5, 2.0)), [[9, 3], [7]]),
    "adapted": (Adapted(POSTERIOR, random_lora(tiny())), [[9, 3], [7]]),
    "rearranged": (
        Rearranged(PosteriorReward(), functools.partial(context_last, start=jnp.asarray([2], jnp.int32))),
        [[9], [7]],
    ),
}


SLOW = ("one token of answer", "product", "adapted", "rearranged")  # compilation is all of their time


@pytest.mark.parametrize("name", [pytest.param(n, marks=[pytest.mark.slow] * (n in SLOW)) for n in CASES])
def test_prefixes_are_worth_what_the_whole_reward_says(name):
    reward, answers = CASES[name]
    query = query_of(CONTEXT, answer=right_padded(answers))
    assert isinstance(reward, Incremental)

    @functools.partial(jax.jit, static_argnums=(1, 2))
    def followed(model, chunk, answers):
        prepared = reward.prepare(model)
        rows, columns = len(LENGTHS), HORIZON - 1
        fixed, state, prefix = reward.begin(model, prepared, query, (rows, columns, chunk), answers)
        prefixes = [jax.tree.map(lambda x: x[:, None], prefix)]
        pad = ((0, 0), (0, chunk))
        tokens, mask = jnp.pad(ROLLOUT.completion, pad), jnp.pad(ROLLOUT.token_mask, pad)
        for column in range(0, columns, chunk):
            part = slice(column, column + chunk)
            state, prefix = reward.extend(
                model, prepared, fixed, state, tokens[:, part], mask[:, part], jnp.int32(column)
            )
            prefixes.append(prefix)
        return jax.tree.map(lambda *x: jnp.concatenate(x, axis=1)[:, :HORIZON], *prefixes)

    whole = jax.jit(lambda model: reward.log_reward(model, reward.prepare(model), query, ROLLOUT))(MODEL)
    alive = np.asarray(ROLLOUT.action_mask)
    found = [followed(MODEL, chunk, True) for chunk in (1, 2, HORIZON - 1)]
    for prefix in found:
        np.testing.assert_allclose(np.asarray(prefix.log_reward)[alive], np.asarray(whole)[alive], atol=1e-4)
    bare = followed(MODEL, 2, False)
    assert bare.log_reward is None
    np.testing.assert_allclose(np.asarray(bare.log_prefix)[alive], np.asarray(found[0].log_prefix)[alive], atol=1e-4)
    assert np.ptp(np.asarray(whole)[alive]) > 0.5  # or nothing was compared


def test_a_prefix_without_its_answer_is_the_probability_of_its_tokens():
    """log p(z_1:t | X) by a reward whose answer is empty."""
    empty = query_of(CONTEXT, answer=right_padded([[], []], width=1))
    query = query_of(CONTEXT, answer=right_padded([[9, 3, 2], [7]]))

    def follow(model):
        fixed, state, _ = POSTERIOR.begin(model, POSTERIOR.prepare(model), query, (6, HORIZON - 1, HORIZON - 1), True)
        tokens, mask = ROLLOUT.completion[:, :-1], ROLLOUT.token_mask[:, :-1]
        prefix = POSTERIOR.extend(model, POSTERIOR.prepare(model), fixed, state, tokens, mask, jnp.int32(0))[1]
        return prefix.log_prefix, POSTERIOR.log_reward(model, POSTERIOR.prepare(model), empty, ROLLOUT)

    log_prefix, expected = map(np.asarray, jax.jit(follow)(MODEL))
    alive = np.asarray(ROLLOUT.action_mask)[:, 1:]
    np.testing.assert_allclose(log_prefix[alive], expected[:, 1:][alive], atol=1e-4)


def test_rewards_that_cannot_follow_are_refused():
    class Whole:
        def prepare(self, model): ...

        def log_reward(self, model, prepared, query, rollout): ...

    with pytest.raises(ValueError, match="Whole cannot follow a completion"):
        incremental(Whole())
    query = query_of(CONTEXT, answer=right_padded([[1], [1]]))
    with pytest.raises(ValueError, match="released_min_length"):
        PosteriorReward(released_min_length=2).begin(MODEL, None, query, (2, 3, 1), True)
