"""Sequential Monte Carlo against worlds whose completions can be listed."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import struct
from tiny_worlds import left_padded, query_of, random_lora, random_params, right_padded, tiny

from gfn_jax.evaluation.enumeration import random_world
from gfn_jax.models import decoder
from gfn_jax.models.language_model import LanguageModel
from gfn_jax.models.layers import KeyValues
from gfn_jax.policy.constraint import Rules, make_constraint
from gfn_jax.policy.head import Head
from gfn_jax.policy.score import score
from gfn_jax.policy.teacher import teacher_force
from gfn_jax.rewards import PosteriorReward, Product, TableReward
from gfn_jax.samplers.sampler import Problem, final_log_reward
from gfn_jax.samplers.smc import SMC, systematic
from gfn_jax.samplers.twists import Answer, Flow, NoTwist, Value


def random_head(width, seed=0):
    head, rng = Head.init(jax.random.key(seed), width), np.random.default_rng(seed)
    return dataclasses.replace(head, outer=jnp.asarray(rng.normal(0, 3, head.outer.shape), jnp.float32))


@pytest.fixture(scope="module")
def world():
    """Fifteen completions, a policy that is none too sure of itself, rewards that differ by a few nats."""
    world = random_world(jax.random.key(5), 2, 3, 1.0, width=16, layers=1)
    base = world.constants.base
    params = {**base.params, "head": jax.tree.map(lambda x: 0.3 * x, base.params["head"])}
    constants = dataclasses.replace(world.constants, base=dataclasses.replace(base, params=params))
    return dataclasses.replace(world, constants=constants)


def run(world, sampler, budget, runs, seed=0):
    constants = world.constants
    problem = Problem(constants.prepared, constants.queries, constants.rules)
    one = jax.jit(jax.vmap(lambda key: sampler.sample(constants.base, problem, budget, key)))
    return jax.device_get(one(jax.random.split(jax.random.key(seed), runs)))


TWISTS = {
    "none": (NoTwist(), 0.7, 1),
    "answer": (Answer(), 0.7, 1),
    "always resampled": (Answer(), 1.0, 1),
    "two columns at once": (Answer(), 1.0, 2),
    "flow": (Flow(), 0.9, 1),
    "value": (Value(random_head(16), 0.5), 0.9, 1),
}


@pytest.mark.parametrize("name", TWISTS)
def test_z_is_unbiased_and_weighted_rows_are_the_posterior_s(world, name):
    """1,000 runs of 8 rows: the mean of the estimates of Z, and of Z times the share of every completion."""
    twist, threshold, every = TWISTS[name]
    weighed = run(world, SMC(world.reward, twist, threshold, every), budget=8, runs=1000)
    assert weighed.notes["resampled"].mean() > 0.2  # or importance sampling was tested
    table = np.asarray(world.reward.table, np.float64)
    log_z = np.logaddexp.reduce(table)
    z = np.exp(weighed.log_z[:, 0].astype(np.float64) - log_z)
    rows = [tuple(row) for row in np.asarray(world.completions.completion).tolist()]
    place = {row: i for i, row in enumerate(rows)}
    which = np.array([[place[tuple(row)] for row in run] for run in weighed.rollout.completion.tolist()])
    share = np.exp(weighed.log_weight - np.logaddexp.reduce(weighed.log_weight, axis=1, keepdims=True))
    estimates = np.zeros((len(z), len(rows) + 1))
    np.add.at(estimates, (np.arange(len(z))[:, None], which), z[:, None] * share)
    estimates[:, -1] = z
    expected = np.append(np.exp(table - log_z), 1.0)
    error = estimates.std(axis=0, ddof=1) / np.sqrt(len(z))
    # 16 numbers, of which the largest of as many normal deviations exceeds 3.9 once in 650 times.
    assert np.abs((estimates.mean(axis=0) - expected) / error).max() < 3.9
    assert error[-1] < 0.05


def test_without_resampling_it_is_importance_sampling(world):
    weighed = run(world, SMC(world.reward, Answer(), threshold=0.0), budget=8, runs=20)
    assert (weighed.notes["resampled"] == 0).all()
    assert (weighed.notes["roots"] == 8).all()
    log_q = weighed.rollout.log_behavior.sum(axis=2)
    np.testing.assert_allclose(weighed.log_weight, weighed.log_reward - log_q, atol=1e-5)
    np.testing.assert_allclose(
        weighed.log_z[:, 0], np.logaddexp.reduce(weighed.log_weight, axis=1) - np.log(8), atol=1e-5
    )
    np.testing.assert_array_equal(weighed.generated[:, 0], weighed.rollout.action_mask.sum(axis=(1, 2)))


def test_the_flow_of_a_perfect_policy_never_changes_a_weight(world):
    """R = 7 q: every estimate is log 7, whatever is drawn, and nothing is ever resampled; p's own twist would."""
    log_q = np.asarray(jax.jit(lambda: world.log_policy(world.constants.base))())
    reward = TableReward(jnp.asarray(log_q + np.log(7), jnp.float32), world.reward.arity)
    constants = dataclasses.replace(world.constants, prepared=reward.prepare(None))
    perfect = dataclasses.replace(world, reward=reward, constants=constants)
    weighed = run(perfect, SMC(reward, Flow(), threshold=0.99), budget=8, runs=50)
    np.testing.assert_allclose(weighed.log_z, np.log(7), atol=1e-4)
    assert (weighed.notes["resampled"] == 0).all()
    assert run(perfect, SMC(reward, Answer(), 0.99), 8, 50).notes["resampled"].mean() > 0.5


@struct.dataclass
class Echo:
    """A tool that writes a 2 behind every 0; Z may not end in a 1. The state is the last token."""

    def init(self, rows):
        return jnp.full((rows,), -1, jnp.int32)

    def step(self, state, token):
        return token

    def forced(self, state):
        return jnp.where(state == 0, 2, -1)

    def may_stop(self, state):
        return (state != 0) & (state != 1)


@pytest.fixture(scope="module")
def echo():
    """Two prompts, a tool, a policy with an adapter, and R = p(X Z Y)."""
    model = LanguageModel(tiny(), random_params(tiny(), scale=0.3), random_lora(tiny()))
    query = query_of(left_padded([[6, 7, 8], [9]]), left_padded([[6], [9, 10]]), right_padded([[11, 12, 13], [14]]))
    calls = np.arange(23) == 0
    constraint = make_constraint(23, 5, 8, 2, token_ids=np.arange(5), opens_call=calls, call_room=1)
    return model, query, Rules(constraint, Echo())


@pytest.mark.parametrize(
    ("twist", "every"),
    [(Answer(), 1), (Flow(), 3), (NoTwist(), 2), (Value(random_head(16)), 1)],
    ids=lambda x: str(x)[:6],
)
def test_copies_take_their_past_along(echo, twist, every):
    """After many resamplings: log q and log R of the rows are those of the same tokens, scored afresh; tools obeyed."""
    model, query, rules = echo
    reward = Product((PosteriorReward(),), (0.5,))
    sampler = SMC(reward, twist, threshold=1.0, every=every)

    @jax.jit
    def both(model, key):
        problem = Problem(reward.prepare(model.base), query, rules)
        weighed = sampler.sample(model, problem, 16, key)
        drawn = weighed.rollout
        again = teacher_force(drawn.completion, drawn.token_mask.sum(axis=1), rules)
        log_q = score(model, query.prompt, drawn, rules).log_pf
        return weighed, again, log_q, final_log_reward(reward, model, problem, again)[0]

    weighed, again, log_q, log_reward = jax.device_get(both(model, jax.random.key(3)))
    drawn = weighed.rollout
    assert (weighed.notes["resampled"] >= 2).all()
    assert drawn.stop.any(axis=1).all()
    for name in ("token_mask", "action_mask", "state_mask"):
        np.testing.assert_array_equal(getattr(drawn, name), getattr(again, name))
    assert (drawn.token_mask & ~drawn.action_mask).any()  # the tool wrote something
    np.testing.assert_allclose(drawn.log_behavior, log_q, atol=1e-4)
    np.testing.assert_allclose(weighed.log_reward, log_reward, atol=1e-4)


def test_only_written_columns_are_copied():
    rng = np.random.default_rng(0)
    k, v = (jnp.asarray(rng.normal(size=(2, 4, 1, 19, 3)), jnp.float32) for _ in range(2))
    cache = KeyValues(k, v, jnp.zeros((4, 19), bool), jnp.zeros((4, 19), jnp.int32))
    parents = jnp.array([1, 1, 3, 0])
    follow = jax.jit(functools.partial(decoder.follow))
    for columns, copied in ((0, 0), (3, 8), (8, 8), (17, 19), (19, 19)):
        tree = follow({"cache": cache, "row": jnp.arange(4)}, parents, columns)
        np.testing.assert_array_equal(tree["row"], parents)
        for new, old in ((tree["cache"].k, k), (tree["cache"].v, v)):
            np.testing.assert_array_equal(new[:, :, :, :copied], old[:, parents][:, :, :, :copied])
            np.testing.assert_array_equal(new[:, :, :, copied:], old[:, :, :, copied:])


def test_systematic_parents_are_as_many_as_their_weight_says():
    weight = np.array([[0.5, 0.05, 0.3, 0.15], [0.0, 0.0, 1.0, 0.0]])
    many = np.asarray(jax.vmap(lambda key: systematic(key, jnp.log(weight)))(jax.random.split(jax.random.key(0), 2000)))
    count = (many[..., None] == np.arange(4)).sum(axis=2)
    assert (count >= np.floor(4 * weight)).all()
    assert (count <= np.ceil(4 * weight)).all()
    np.testing.assert_allclose(count.mean(axis=0), 4 * weight, atol=0.05)


@pytest.mark.parametrize("settings", [{"threshold": 1.5}, {"every": 0}])
def test_numbers_out_of_range_are_refused(settings):
    with pytest.raises(ValueError, match="threshold must lie in"):
        SMC(PosteriorReward(), **settings)
