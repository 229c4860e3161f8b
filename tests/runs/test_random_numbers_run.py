"""Random numbers through its own config, as `python -m gfn_jax.launch --config=configs/rng.py` runs it."""

import json
import pathlib

import pytest

from gfn_jax import launch

CONFIG = pathlib.Path(__file__).parents[2] / "configs" / "rng.py"


@pytest.mark.slow
def test_the_tiny_run_becomes_a_uniform_sampler(tmp_path):
    assert launch.main(["launch", f"--config={CONFIG}", "--config.seed=11", f"--workdir={tmp_path}"]) == 0
    results = json.loads((tmp_path / "results.json").read_text())
    metrics, base = results["policy"], results["base"]
    assert base["valid_mass"] < 0.6
    assert base["kl_to_target"] > 2
    assert metrics["kl_to_target"] <= 1e-4
    assert metrics["valid_mass"] >= 0.999
    assert metrics["covered"] == 101
    assert metrics["sampled_kl"] < 1.5 * metrics["sampled_noise_floor"]
