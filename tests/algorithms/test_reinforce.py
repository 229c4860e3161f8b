"""An algorithm from outside the library: it learns what it should, and a config that names it is all it takes."""

import json
import pathlib

import jax
import numpy as np
import pytest
from reinforce import Reinforce
from tiny_worlds import sampling_settings

from gfn_jax.algorithms.entry import Ingredients
from gfn_jax.commands.train import parse
from gfn_jax.evaluation.enumeration import divergences, random_world
from gfn_jax.runs.build import build
from gfn_jax.runs.config import read
from gfn_jax.runs.saved import read_run, restore_adapter
from gfn_jax.training.optimizer import OptimizerConfig, make_optimizer
from gfn_jax.training.step import init_state, make_step

CONFIG = pathlib.Path(__file__).parents[2] / "configs" / "rng.py"
OWN = "reinforce:ALGORITHM"


@pytest.mark.slow
def test_training_reaches_the_target():
    """In the world of `test_enumerable`, within the distance that the balance objectives are held to there.

    The gradient's noise vanishes at the target, so all that is left is what so few steps leave. There -J is
    -log sum R, for every row and so for every batch.
    """
    world, steps = random_world(jax.random.key(0), 4, 3, 0.5), 300
    sampling = sampling_settings(queries=1, samples=64)
    algorithm = Reinforce(Ingredients(world.reward, sampling, world.lora))
    optimizer = make_optimizer(OptimizerConfig(learning_rate=3e-3, total_steps=steps, clip_norm=10.0))

    @jax.jit
    def train(constants):
        state = init_state(algorithm, optimizer, jax.random.key(1), constants)
        step = make_step(algorithm, optimizer)
        return jax.lax.scan(lambda state, _: step(state, constants), state, None, length=steps)

    def total_variation(adapter):
        log_q = world.log_policy(world.constants.base.adapted(adapter))
        return float(divergences(log_q, world.log_target())["total_variation"])

    state, metrics = train(world.constants)
    assert total_variation(None) > 0.4  # the base, where training starts
    assert total_variation(state.trainable.lora) <= 0.01
    np.testing.assert_allclose(metrics["loss_kl"][-1], -jax.nn.logsumexp(world.reward.table), atol=0.01)


@pytest.fixture
def config(monkeypatch):
    """The shipped run of the smallest task, as small as it goes, by this algorithm."""
    monkeypatch.syspath_prepend(str(pathlib.Path(__file__).parent))
    config = parse(["launch", f"--config={CONFIG}"]).config
    with config.unlocked():
        config.algorithm, config.sampling.samples = OWN, 4
        config.steps, config.save_every, config.optimizer.warmup_steps = 2, 2, 0
        config.random_numbers.update({"high": 9, "max_length": 2})
        config.evaluation.update({"every": 2, "samples": 60, "batch": 30})
    return config


@pytest.mark.slow
def test_a_config_that_names_it_is_all_it_takes(config, tmp_path):
    program = build(config, tmp_path, "the command")
    page = program.complete()
    assert str(tmp_path / "results.json") in page
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["method"] == OWN
    assert results["steps"] == 2
    assert {"base", "policy"} <= set(results)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    measured = [line["loss_kl"] for line in lines if "loss_kl" in line]
    assert len(measured) == 2
    assert np.isfinite(measured).all()
    assert (tmp_path / "adapter" / "adapter_config.json").is_file()
    shape = program.run.constants.base.shape
    assert restore_adapter(read_run(tmp_path), 2, shape).layers.keys() == shape.projections.keys()


@pytest.mark.parametrize("key", ["objective.huber", "replay.samples", "exploration.tempered"])
def test_a_value_that_it_would_not_read_is_refused(config, key):
    refused(config, f"{key} is given, and algorithm '{OWN}' does not read it", lambda config: read(config, [key]))
    run = read(config)
    assert not {"objective", "replay", "exploration", "ppo"} & set(run.described)


def test_a_section_that_nobody_reads_is_refused(config):
    with config.unlocked():
        config.samplign = {"queries": 1}
    refused(config, "section 'samplign', which nothing reads")


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("reinforced", "algorithm 'reinforced' is unknown; there are gflownet"),
        ("reinforce:NOTHING", "'reinforce:NOTHING' cannot be imported"),
        ("reinforce:Reinforce", "must be a gfn_jax.algorithms.entry.AlgorithmEntry"),
    ],
)
def test_an_algorithm_that_is_none_is_refused(config, name, problem):
    config.algorithm = name
    refused(config, problem)


def test_its_sections_are_checked(config, tmp_path):
    config.sampling.samples = 1
    refused(config, "sampling.samples is 1", lambda config: build(config, tmp_path))
    with config.unlocked():
        del config.sampling.samples
    refused(config, "section 'sampling' lacks samples")


def test_a_function_of_the_reward_needs_two_halves(config, tmp_path):
    """It runs on the host in the middle of a step, where this algorithm has no seam."""
    with config.unlocked():
        config.reward.function = "math:fsum"
    refused(config, "reward.function .* reinforce:ALGORITHM has no such halves", lambda config: build(config, tmp_path))


def refused(config, problem, reading=read):
    with pytest.raises(ValueError, match=problem) as caught:
        reading(config)
    assert "\n" not in str(caught.value)
