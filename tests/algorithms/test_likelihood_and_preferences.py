"""Weighted likelihood and preferences reach what their modules promise, in a world whose completions can be listed."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_worlds import sampling_settings

from gfn_jax import replay
from gfn_jax.algorithms.dpo import DPO, DPOConfig
from gfn_jax.algorithms.entry import Ingredients
from gfn_jax.algorithms.weighted_sft import WeightedSFT, WeightedSFTConfig, stored
from gfn_jax.evaluation.enumeration import divergences, random_world
from gfn_jax.training.optimizer import OptimizerConfig, make_optimizer
from gfn_jax.training.step import init_state, make_step
from gfn_jax.types import Trajectory

OPTIMISED = {"xla_backend_optimization_level": 3, "xla_cpu_use_fusion_emitters": True}
OWN_ROWS = {"replay_samples": 0, "replay_capacity": 1, "tempered": 0.0}


@pytest.fixture(scope="module")
def world():
    return random_world(jax.random.key(0), 4, 3, 0.5)


@pytest.fixture(scope="module")
def log_base(world):
    return np.asarray(jax.jit(lambda: world.log_policy(world.constants.base))())


def trained(world, algorithm, steps, rate=3e-3):
    """log q of every completion, once trained."""
    optimizer = make_optimizer(OptimizerConfig(learning_rate=rate, total_steps=steps, clip_norm=10.0))

    @functools.partial(jax.jit, compiler_options=OPTIMISED)
    def train(constants):
        state = init_state(algorithm, optimizer, jax.random.key(1), constants)
        step = make_step(algorithm, optimizer)
        state, metrics = jax.lax.scan(lambda state, _: step(state, constants), state, None, length=steps)
        return world.log_policy(algorithm.policy(state.trainable, constants)), metrics

    log_q, metrics = train(world.constants)
    return np.asarray(log_q), jax.device_get(metrics)


def distance(log_q, log_p):
    log_p = log_p - np.logaddexp.reduce(log_p)
    return float(divergences(jnp.asarray(log_q), jnp.asarray(log_p))["total_variation"])


# Weighted likelihood.


@pytest.mark.slow
@pytest.mark.parametrize(
    ("proposal", "settings"),
    [
        ("policy", OWN_ROWS),
        pytest.param("base", OWN_ROWS | {"samples": 1024}, marks=pytest.mark.slow),
        pytest.param(
            "policy",
            {"replay_samples": 64, "replay_capacity": 24, "replay_tolerance": 0.0, "samples": 192},
            marks=pytest.mark.slow,
        ),
    ],
    ids=["its own rows", "rows of the base", "rows of the buffer, too"],
)
def test_weighted_likelihood_reaches_the_posterior(world, log_base, proposal, settings):
    """Whatever the rows: all rewards to the power 1/T count, each once."""
    temperature = {"reward_temperature_start": 0.5, "reward_temperature_end": 0.5}
    sampling = sampling_settings(**{"queries": 1, "samples": 128, **settings, **temperature})
    algorithm = WeightedSFT(
        Ingredients(world.reward, sampling, world.lora), WeightedSFTConfig(proposal, control_variate=True)
    )
    log_q, metrics = trained(world, algorithm, steps=600)
    target = np.asarray(world.log_target(0.5))
    assert distance(log_base, target) > 0.4
    assert distance(log_q, target) <= 0.01
    assert distance(log_q, np.asarray(world.log_target(1.0))) > 0.1
    if proposal == "policy" and not sampling.replayed_samples:
        assert metrics["weight_ess"][-1] > 0.999  # at the optimum all weights are alike


def test_what_the_buffer_holds_is_known(world):
    """The same tokens and length, of the same query; two queries hold different things."""
    completions = jax.tree.map(lambda x: x[:20], world.completions)
    rows = Trajectory(completions, jnp.zeros(completions.completion.shape))
    first = jax.tree.map(lambda x: jnp.concatenate([x[:4], x[10:14]]), rows)
    buffer = replay.add(replay.init(2, 4, completions.completion.shape[1]), jnp.arange(2), first, 0.0)
    twice = jax.tree.map(lambda x: jnp.concatenate([x, x]), rows)
    held = np.asarray(stored(buffer, jnp.arange(2), twice)).reshape(2, 20)
    assert np.flatnonzero(held[0]).tolist() == [0, 1, 2, 3]
    assert np.flatnonzero(held[1]).tolist() == [10, 11, 12, 13]


# Preferences.


def preferences(world, uniform=False, **changes):
    config = {"beta": 0.5, "labels": "bradley_terry", "ipo": False, "round_steps": 0, **changes}
    behavior = {"exploring": 1.0, "uniform_mix": 1.0} if uniform else {"exploring": 0.5, "uniform_mix": 0.5}
    sampling = sampling_settings(**{"queries": 1, "samples": 256, **OWN_ROWS, **behavior})
    return DPO(Ingredients(world.reward, sampling, world.lora), DPOConfig(**config))


@pytest.mark.slow
def test_dpo_reaches_its_closed_form(world, log_base):
    """q proportional to p R^(1/beta): not the posterior, and not the base."""
    log_q, metrics = trained(world, preferences(world), steps=1000)
    table = np.asarray(world.reward.table)
    assert distance(log_q, log_base + table / 0.5) <= 0.01
    assert distance(log_q, table) > 0.1
    assert metrics["ranked"][-1] > 0.95


@pytest.mark.slow
def test_ipo_reaches_its_closed_form(world, log_base):
    """By ranks alone: log q/p = (Pr[worse] - Pr[better]) / (2 beta), over pairs of uniformly written completions."""
    algorithm = preferences(world, uniform=True, ipo=True, labels="rank")
    log_q, _ = trained(world, algorithm, steps=1500)
    table, completion = np.asarray(world.reward.table), world.completions
    actions = np.asarray(completion.action_mask.sum(axis=1))
    # The last column has the stop alone, the others four letters and the stop.
    mass = 5.0 ** -np.minimum(actions, 3)
    assert np.isclose(mass.sum(), 1.0)
    better = (table[:, None] < table[None, :]) @ mass
    worse = (table[:, None] > table[None, :]) @ mass
    assert distance(log_q, log_base + (worse - better) / (2 * 0.5)) <= 0.01


@pytest.mark.slow
@pytest.mark.parametrize("change", [{"labels": "rank"}, {"round_steps": 40}])
def test_ranks_and_rounds_go_to_the_best_completion(world, log_base, change):
    """Neither has an optimum short of it: the share of the best grows, far beyond the closed form."""
    log_q, _ = trained(world, preferences(world, **change), steps=600)
    table = np.asarray(world.reward.table)
    top = table.argmax()
    assert log_q.argmax() == top
    once = log_base + table / change.get("beta", 0.5)
    assert np.exp(log_q[top]) > 2 * np.exp(once - np.logaddexp.reduce(once))[top]


def test_rows_that_do_not_pair_up_are_refused(world):
    with pytest.raises(ValueError, match=r"sampling\.samples is 3; rows are paired: it must be even"):
        DPO(Ingredients(world.reward, sampling_settings(samples=3, replay_samples=0), world.lora), None)
