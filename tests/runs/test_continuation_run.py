"""Sentence continuation through its own config, and the paper's prompts through the whole of it."""

import json
import pathlib

import jax
import numpy as np
import pytest
from tiny_tokenizers import BYTE_LEVEL

from gfn_jax.commands.config_flag import load_config
from gfn_jax.models.checkpoint import save_model
from gfn_jax.models.decoder import init_params
from gfn_jax.models.families import read_settings
from gfn_jax.runs.build import build
from gfn_jax.text.loading import SHIPPED
from gfn_jax.training.loop import train

ROOT = pathlib.Path(__file__).parents[2]


def small_config(**continuation):
    config = load_config(f"{ROOT}/configs/continuation.py:tiny")
    config.steps = config.save_every = 2
    config.optimizer.warmup_steps = 1
    config.continuation.update({"count": 24, "validation": 4, "max_length": 6, **continuation})
    config.sampling.update({"queries": 2, "samples": 4, "reward_temperature_steps": 1})
    config.replay.capacity = 4
    config.evaluation.update({"every": 2, "samples": 2, "batch": 4, "beams": False, "nucleus": ()})
    config.evaluation.temperatures = (0.8,)
    config.certificate.queries = 0
    return config


def run_of(config, workdir):
    run = build(config, workdir).run
    page = run.finish(train(run))
    return json.loads((workdir / "results.json").read_text()), page


@pytest.mark.slow
def test_results_hold_every_method_s_metrics_by_name(tmp_path):
    results, page = run_of(small_config(), tmp_path)
    assert results["task"] == "continuation"
    for method in ("policy", "base", "tempered_0.8"):
        assert {"log_likelihood_max", "log_likelihood_mean", "log_policy_mean", "diversity"} <= results[method].keys()
        assert np.isfinite(list(results[method].values())).all()
        assert 1 <= results[method]["length"] <= 6
        assert f"{results[method]['log_likelihood_max']:.2f}" in page


@pytest.mark.slow
@pytest.mark.parametrize("name", BYTE_LEVEL)
def test_prompts_and_tokenizer_of_a_file_with_a_small_random_gpt2(name, request, tokenizer_named, tmp_path):
    """Of our own making, and the paper's."""
    tokenizer = tokenizer_named(name)
    if name == "byte-level":
        prompts = tmp_path / "prompts.txt"
        prompts.write_text("\n".join(f"This is sentence number {n}." for n in range(40)))
    else:
        prompts = request.getfixturevalue("shared") / "data" / "openwebtext" / "prompts.txt"
    shape = json.loads((SHIPPED / "shapes" / "gpt2.json").read_text()) | {"vocab_size": len(tokenizer)}
    model = read_settings(shape | {"n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 160})
    folder = tmp_path / "gpt2"
    save_model(folder, model, init_params(jax.random.key(0), model), "gpt2")
    tokenizer.save_pretrained(folder)
    config = small_config(count=None, validation=4)
    config.data.path = str(prompts)
    config.model.path = str(folder)
    config.lora.update({"rank": 2, "targets": ("q", "k", "v", "o", "up", "down")})
    results, _ = run_of(config, tmp_path / "run")
    # A random model gives each token about the same.
    tokens = results["base"]["length"] + 1
    assert results["base"]["log_likelihood_mean"] == pytest.approx(-tokens * np.log(len(tokenizer)), rel=0.02)
    assert results["policy"]["unique"] > 0.5
