import contextlib
import dataclasses
import functools
import os
import pathlib
import subprocess
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_worlds import all_sequences, given_other, left_padded, query_of, random_params, sampling_settings, tiny

from gfn_jax.algorithms.entry import Ingredients
from gfn_jax.algorithms.gflownet import GFlowNet
from gfn_jax.environments import NoTool
from gfn_jax.models.language_model import LanguageModel
from gfn_jax.models.lora import LoraConfig
from gfn_jax.objectives.mixture import Objective
from gfn_jax.policy.constraint import Constants, Rules, make_constraint
from gfn_jax.rewards import TableReward
from gfn_jax.runs.policy import make_run_step
from gfn_jax.training import mesh as meshes
from gfn_jax.training.optimizer import OptimizerConfig, make_optimizer
from gfn_jax.training.step import hosted_sample, init_state, make_step, make_step_halves, step_of_halves

ARITY, STOP, LONGEST = 3, 5, 3
CONFIG = tiny()
QUERIES = query_of(left_padded([[6, 7, 8], [9, 10], [11], [12, 6, 6], [8], [7, 7]]))
STEPS = 4


def tables():
    rng = np.random.default_rng(0)
    return jnp.asarray(rng.standard_normal(len(all_sequences(ARITY, LONGEST))) * 2, jnp.float32)


def build(known=QUERIES, table=None, **changes):
    """A step with everything in it, its constants and its first state."""
    settings = {
        "queries": 4,
        "samples": 4,
        "replay_samples": 1,
        "micro_batches": 2,
        "tempered": 0.3,
        "exploring": 0.3,
        "uniform_mix": 0.5,
        "replay_capacity": 3,
        "discovery_steps": 1,
        "reward_temperature_start": 2.0,
        "reward_temperature_end": 1.0,
        "reward_temperature_steps": 2,
    }
    config = sampling_settings(**(settings | changes))
    objective = Objective((("subtb", 1.0), ("tb", 0.1)), "released_mean", samples_per_query=config.samples)
    reward = TableReward(tables() if table is None else table, ARITY)
    algorithm = GFlowNet(Ingredients(reward, config, LoraConfig(3, 6, ("q", "down", "head"), dropout=0.2), objective))
    optimizer = make_optimizer(OptimizerConfig(0.05, total_steps=20))
    rows = known.example_id.shape[0]
    constants = Constants(
        base=LanguageModel(CONFIG, random_params(CONFIG)),
        prepared=reward.prepare(None),
        queries=known,
        query_log_weight=jnp.zeros(rows),
        rules=Rules(make_constraint(23, STOP, LONGEST, token_ids=np.arange(ARITY)), NoTool()),
        root=jax.random.key(5),
    )
    return algorithm, optimizer, constants, init_state(algorithm, optimizer, jax.random.key(0), constants)


def step_of(algorithm, optimizer):
    return make_step(algorithm, optimizer, algorithm.given.sampling.first_update)


def to_host(tree):
    return jax.tree.map(np.array, tree)


def to_device(tree):
    return jax.tree.map(jnp.array, tree)


def equal(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


@pytest.fixture(scope="module")
def run():
    """The compiled step, its constants, and the states and metrics of a run of four steps, on the host."""
    algorithm, optimizer, constants, state = build()
    step = jax.jit(step_of(algorithm, optimizer), donate_argnums=0)
    states, metrics = [to_host(state)], []
    for _ in range(STEPS):
        with jax.transfer_guard("allow" if not metrics else "disallow"):  # the first call compiles
            state, measured = step(state, constants)
        states.append(to_host(state))
        metrics.append(to_host(measured))
    return step, constants, states, metrics


def test_a_run_is_one_program_and_moves_nothing_between_host_and_device(run):
    step, constants, states, _ = run
    state = to_device(states[0])
    with jax.transfer_guard("disallow"):
        for _ in range(2):
            state, _ = step(state, constants)
    assert step._cache_size() == 1


def test_the_guard_would_see_a_transfer(run):
    """Numpy arguments must be moved: the guard above is not a dead letter."""
    step, constants, states, _ = run
    with pytest.raises(Exception, match="Disallowed host-to-device transfer"), jax.transfer_guard("disallow"):
        step(states[0], constants)


def test_four_steps_are_two_a_restart_and_two(run):
    step, constants, states, metrics = run
    state = to_device(states[2])
    again = []
    for _ in range(2):
        state, measured = step(state, constants)
        again.append(to_host(measured))
    equal(to_host(state), states[4])
    equal(again, metrics[2:])


def test_every_step_draws_anew_and_another_root_is_another_run(run):
    step, constants, states, metrics = run
    assert len({float(m["loss"]) for m in metrics}) == STEPS
    _, other = step(to_device(states[0]), constants.replace(root=jax.random.key(6)))
    assert other["loss"] != metrics[0]["loss"]


def test_while_discovering_only_the_buffer_fills(run):
    _, _, states, metrics = run
    first, second, third = states[:3]
    equal(second.trainable, first.trainable)
    equal(second.opt_state, first.opt_state)
    assert (second.memory.buffer.priority > -np.inf).sum() > 0
    assert second.step == 1
    assert metrics[0]["gradient_norm"] > 0
    moved = jax.tree.map(lambda a, b: bool((a != b).any()), third.trainable, second.trainable)
    # A moves one step after B, whose zeros keep the gradient from it.
    assert all(pair["b"] for pair in [*moved.lora.layers.values(), moved.lora.head])
    assert moved.log_z


def test_a_learnt_log_z_moves_for_the_queries_that_were_seen(run):
    _, _, states, _ = run
    seen = (states[2].memory.buffer.priority > -np.inf).any(1) & ~(states[1].memory.buffer.priority > -np.inf).any(1)
    changed = states[2].trainable.log_z != states[1].trainable.log_z
    assert changed.sum() == 4
    assert changed[seen[: len(changed)]].all()  # the buffer has room for more queries than there are


def test_the_rewards_temperature_follows_its_schedule(run):
    assert [float(m["reward_temperature"]) for m in run[3]] == [2.0, 1.5, 1.0, 1.0]


def test_every_number_is_finite(run):
    _, _, states, metrics = run
    for value in jax.tree.leaves([metrics, [state.trainable for state in states]]):
        assert np.isfinite(value).all()
    assert metrics[-1]["finished"] == 1.0
    assert 0 < metrics[-1]["buffer_filled"] <= 1


def test_a_reward_near_zero_makes_no_nan(run):
    """log R = -1e5 for all sequences but one: enormous residuals, a clipped gradient, finite numbers."""
    step, constants, states, _ = run
    steep = jnp.full_like(constants.prepared, -1e5).at[2].set(0.0)
    state = to_device(states[1])
    for _ in range(2):
        state, metrics = step(state, constants.replace(prepared=steep))
    for value in jax.tree.leaves((metrics, state.trainable, state.opt_state)):
        assert np.isfinite(value).all()
    assert metrics["loss"] > 1e6


@pytest.mark.slow
def test_two_micro_batches_make_the_step_of_one():
    """The same collected rows: greedy ones, which no key changes, and none from the buffer."""
    fixed = {
        "replay_samples": 0,
        "discovery_steps": 0,
        "tempered": 1.0,
        "exploring": 0.0,
        "temperature_low": 1e-3,
        "temperature_high": 1e-3,
    }
    out = []
    for parts in (1, 2):
        algorithm, optimizer, constants, state = build(micro_batches=parts, **fixed)
        algorithm = given_other(algorithm, lora=dataclasses.replace(algorithm.given.lora, dropout=0.0))
        state, metrics = jax.jit(step_of(algorithm, optimizer))(state, constants)
        out.append((metrics, state.trainable))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), *out)


def compare_devices():
    """Two steps on one device and on eight; run where there are eight."""
    queries = query_of(left_padded([[6, i, 8] for i in range(8)]))
    algorithm, optimizer, constants, state = build(queries, queries=8, micro_batches=1, discovery_steps=0)
    mesh = meshes.make_mesh(meshes.MeshConfig(data=2, fsdp=2, tensor=2))

    def placed(tree):
        return jax.device_put(tree, meshes.shardings(tree, mesh))

    out = []
    for own, carry, kept in [
        (contextlib.nullcontext(), state, constants),
        (jax.set_mesh(mesh), placed(state), constants.replace(base=placed(constants.base))),
    ]:
        with own:
            step = jax.jit(step_of(algorithm, optimizer))
            for _ in range(2):
                carry, metrics = step(carry, kept)
            out.append(to_host((carry, metrics)))
    assert len(carry.trainable.lora.layers["q"]["a"].sharding.device_set) == 8
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4), *out)


def test_eight_devices_make_the_step_of_one():
    here = pathlib.Path(__file__).parent
    done = subprocess.run(
        [sys.executable, "-c", "import test_step; test_step.compare_devices()"],
        env=os.environ
        | {
            "XLA_FLAGS": f"--xla_force_host_platform_device_count=8 {os.environ.get('XLA_FLAGS', '')}",
            "PYTHONPATH": os.pathsep.join(map(str, (here, here.parent, here.parents[1]))),
        },
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]


def test_processes_of_cpus_collect_by_one_program_and_learn_by_another(monkeypatch):
    """In one program XLA would mix up what they send; the step is the same."""
    algorithm, optimizer, constants, state = build()
    mesh = meshes.make_mesh(meshes.MeshConfig())
    placed = jax.tree.map(lambda x: x.sharding, state)
    parts = types.SimpleNamespace(
        algorithm=algorithm, optimizer=optimizer, sampling=algorithm.given.sampling, host_reward=None
    )
    whole = make_run_step(parts, placed, mesh)
    monkeypatch.setattr(meshes, "processes_of_cpus", lambda: True)
    two = make_run_step(parts, placed, mesh)
    assert hasattr(whole, "lower")
    assert not hasattr(two, "lower")
    copied = jax.tree.map(jnp.copy, state)  # the steps are given away what they start from
    (one_state, one_metrics), (two_state, two_metrics) = whole(state, constants), two(copied, constants)
    assert one_metrics.keys() == two_metrics.keys()
    jax.tree.map(
        functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6),
        (one_state.trainable, one_state.memory, one_metrics),
        (two_state.trainable, two_state.memory, two_metrics),
    )


def test_what_the_host_adds_is_part_of_the_reward():
    """Two halves with the host between them are the one step, its stored rewards raised by what the host says."""
    algorithm, optimizer, constants, state = build()
    collect, update = make_step_halves(algorithm, optimizer, algorithm.given.sampling.first_update)
    asked = []

    def host_reward(example_id, rollout):
        asked.append((example_id, rollout))
        return np.full(rollout.completion.shape, 3.0)

    whole, _ = jax.jit(step_of(algorithm, optimizer))(state, constants)
    halves, _ = step_of_halves(hosted_sample(jax.jit(collect), host_reward), jax.jit(update))(state, constants)
    ((example_id, rollout),) = asked
    assert len(example_id) == len(rollout.completion) == 4 * algorithm.given.sampling.fresh_samples
    assert len(set(example_id.tolist())) == 4
    filled = np.asarray(whole.memory.buffer.filled)
    assert filled.any()
    np.testing.assert_allclose(
        np.asarray(halves.memory.buffer.log_reward)[filled],
        np.asarray(whole.memory.buffer.log_reward)[filled] + 3.0,
        rtol=1e-6,
    )
