"""Contrastive twist learning in a world whose completions can be listed."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_worlds import sampling_settings

from gfn_jax.algorithms.ctl import CTL, CTLConfig
from gfn_jax.algorithms.entry import Ingredients
from gfn_jax.evaluation.enumeration import divergences, random_world
from gfn_jax.policy.head import Head
from gfn_jax.policy.score import score_states
from gfn_jax.samplers.sampler import Problem
from gfn_jax.samplers.smc import SMC
from gfn_jax.samplers.twists import Value
from gfn_jax.training.optimizer import OptimizerConfig, make_optimizer
from gfn_jax.training.step import init_state, make_step
from gfn_jax.types import Keys

OPTIMISED = {"xla_backend_optimization_level": 3, "xla_cpu_use_fusion_emitters": True}
STEPS, RATE = 300, 30.0


@pytest.fixture(scope="module")
def world():
    return random_world(jax.random.key(0), 3, 3, 0.7, width=16, layers=1)


@pytest.fixture(scope="module", params=["own rows", "rows of the buffer, too"])
def learnt(world, request):
    """What was trained, and the metrics of every step."""
    replayed = 32 if request.param != "own rows" else 0
    settings = {"queries": 1, "samples": 128 + replayed, "replay_samples": replayed, "replay_capacity": 12}
    settings |= {"replay_tolerance": 0.0, "tempered": 0.3, "temperature_low": 1.0, "temperature_high": 1.5}
    sampling = sampling_settings(**settings)
    algorithm = CTL(Ingredients(world.reward, sampling, world.lora), CTLConfig("policy", True, RATE))
    optimizer = make_optimizer(OptimizerConfig(learning_rate=1e-2, total_steps=STEPS, clip_norm=10.0))

    @functools.partial(jax.jit, compiler_options=OPTIMISED)
    def train(constants):
        state = init_state(algorithm, optimizer, jax.random.key(1), constants)
        step = make_step(algorithm, optimizer)
        return jax.lax.scan(lambda state, _: step(state, constants), state, None, length=STEPS)

    state, metrics = train(world.constants)
    return state.trainable, jax.device_get(metrics)


@pytest.mark.slow
def test_the_proposal_is_the_posterior_and_the_twist_its_flow(world, learnt):
    """V(s_t) = log of the sum of R over what begins with z_1:t, up to one constant; before training V = 0."""
    trainable, metrics = learnt
    constants = world.constants
    policy = constants.base.adapted(trainable.lora)

    @jax.jit
    def look(policy):
        _, hidden = score_states(policy, constants.queries.prompt, world.completions, constants.rules)
        return world.log_policy(policy), RATE * trainable.value(hidden)

    log_q, value = look(policy)
    assert divergences(log_q, world.log_target())["total_variation"] < 0.01
    rows, alive = np.asarray(world.completions.completion), np.asarray(world.completions.action_mask)
    table = np.asarray(world.reward.table, np.float64)
    flows = {}
    for row, states, reward in zip(rows, alive, table, strict=True):
        for t in np.flatnonzero(states):
            flows[tuple(row[:t])] = np.logaddexp(flows.get(tuple(row[:t]), -np.inf), reward)
    log_flow = np.zeros(rows.shape)
    for place in np.argwhere(alive):
        log_flow[tuple(place)] = flows[tuple(rows[place[0], : place[1]])]
    share = np.where(alive, np.exp(log_flow), 0.0)
    share /= share.sum()

    def spread(x):
        return np.sqrt((share * (x - (share * x).sum()) ** 2).sum())

    assert spread(log_flow) > 0.7
    assert spread(np.asarray(value) - log_flow) < 0.15
    # Of N equal weights, the w's and v's are noise of about 1 / N nats each.
    assert metrics["twist_gap"][-20:].mean() < 0.05 < 0.5 < metrics["twist_gap"][0]


@pytest.mark.slow
def test_a_learnt_twist_serves_monte_carlo_better_than_none(world, learnt):
    """Resampled after every token, the same proposal's estimates of log Z miss by a third less."""
    trainable, _ = learnt
    constants = world.constants
    problem = Problem(constants.prepared, constants.queries, constants.rules)
    policy = constants.base.adapted(trainable.lora)

    @jax.jit
    def errors(head):
        sampler = SMC(world.reward, Value(head, RATE), threshold=1.0)
        keys = jax.random.split(jax.random.key(0), 200)
        return jax.vmap(lambda key: sampler.sample(policy, problem, 8, key))(keys).log_z - exact

    exact = np.logaddexp.reduce(np.asarray(world.reward.table, np.float64))
    learnt_head, no_head = (np.abs(errors(head)).mean() for head in (trainable.value, Head.init(jax.random.key(0), 16)))
    assert learnt_head < 0.67 * no_head


def test_what_stops_early_counts_as_it_stopped(world):
    """`contrast` of one query by hand, column by column."""
    sampling = sampling_settings(queries=1, samples=5, replay_samples=0)
    algorithm = CTL(Ingredients(world.reward, sampling, world.lora), CTLConfig("policy", True, RATE))
    collected = jax.jit(
        lambda: algorithm.collect(
            init_state(algorithm, make_optimizer(OptimizerConfig(1e-3, 1)), jax.random.key(0), world.constants),
            world.constants,
            Keys.of(jax.random.key(4), jnp.int32(0)),
        )
    )()
    batch = jax.tree.map(lambda x: x[0], collected.batches)
    rollout = batch.trajectory.rollout
    lengths = np.asarray(rollout.token_mask.sum(axis=1))
    assert len(set(lengths.tolist())) > 1
    rng = np.random.default_rng(0)
    value = jnp.asarray(rng.normal(size=rollout.completion.shape), jnp.float32)
    scores = algorithm.score(
        algorithm.init(jax.random.key(0), world.constants)[0], world.constants, batch, jax.random.key(0)
    )[0]
    found = algorithm.contrast(world.constants, batch, scores, value)
    log_q, log_g = np.asarray(scores.log_pf, np.float64), np.asarray(batch.own.log_proposal, np.float64)
    log_w = np.asarray(batch.log_reward, np.float64) - log_g
    log_w -= np.logaddexp.reduce(log_w)
    gaps = []
    for t in range(lengths.max() + 1):
        log_v = []
        for row, length in enumerate(lengths):
            state = min(t, length)  # this world's prefixes are worth 0 nats
            log_v.append(float(value[row, state]) + log_q[row, state:].sum() - log_g[row])
        log_v = np.array(log_v) - np.logaddexp.reduce(log_v)
        gaps.append((np.exp(log_w) * (log_w - log_v)).sum())
    np.testing.assert_allclose(found[0], np.mean(gaps), rtol=1e-4)
