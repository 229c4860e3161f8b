import pathlib

import jax
import jax.numpy as jnp
import pytest
from tiny_worlds import given_other

from gfn_jax import launch
from gfn_jax.commands import dry_run, train
from gfn_jax.models.checkpoint import load_model
from gfn_jax.models.decoder import empty_cache
from gfn_jax.models.language_model import LanguageModel
from gfn_jax.models.quantize import quantize_params
from gfn_jax.runs.config import read_policy_run
from gfn_jax.runs.policy import initial, policy_parts
from gfn_jax.runs.weights import place
from gfn_jax.text.loading import load_tokenizer, model_folder
from gfn_jax.training import mesh as meshes

CONFIGS = pathlib.Path(__file__).parents[2] / "configs" / "arith.py"
# Every preset, and the parameters of its base as the publisher counts them.
PARAMETERS = {
    "tiny": 831_360,
    "paper": 6_050_882_784,
    "gpt2": 124_439_808,
    "pythia": 162_322_944,
    "llama": 1_235_814_400,
    "qwen": 494_032_768,
}


def config_of(preset: str, *overrides: str):
    return train.parse(["launch", f"--config={CONFIGS}:{preset}", *overrides]).config


def real(tree) -> int:
    return sum(leaf.nbytes for leaf in jax.tree.leaves(tree))


@pytest.mark.parametrize("kind", ["none", "nf4"])
def test_bytes_are_those_of_the_arrays_themselves(kind):
    config = config_of("tiny", f"--config.model.quantize={kind}", "--config.mesh.data=1")
    plan = dry_run.estimate(config)
    folder = model_folder("tiny-arithmetic")
    model, floats = load_model(folder)
    base = LanguageModel(model, quantize_params(floats, kind))
    run = read_policy_run(config)
    mesh = meshes.make_mesh(run.mesh, jax.devices()[:1])
    parts = policy_parts(run, model, load_tokenizer(folder), mesh)
    constants, state = initial(run, parts, base)
    assert place(constants.base, mesh).params["layers"].keys() == floats["layers"].keys()
    assert plan.memory["base"] == real(base)
    assert plan.memory["adapter"] == plan.adapter_bytes == real(state.trainable)
    assert plan.memory["optimizer"] == real(state.opt_state)
    assert plan.memory["buffer"] == real(state.memory)
    questions = empty_cache(model, 16, constants.queries.context.ids.shape[1])
    assert plan.memory["reward cache"] == real(constants.prepared) + real(questions)
    assert plan.stand_in is None


@pytest.mark.parametrize("preset", PARAMETERS)
def test_every_preset_is_planned_offline(preset, monkeypatch, capsys):
    def refuse(*args, **kwargs):
        raise AssertionError("the network was asked")

    monkeypatch.setattr("socket.socket.connect", refuse)
    monkeypatch.setenv("HF_HUB_CACHE", "/nowhere")
    if preset != "gpt2":  # the estimate of activations traces the whole loss: one is enough here
        monkeypatch.setattr(dry_run, "activations", lambda *args: 0)
    assert launch.main(["launch", f"--config={CONFIGS}:{preset}", "--dry_run", "--debug"]) == 0
    out = capsys.readouterr().out
    assert f"{PARAMETERS[preset]:,} parameters" in out
    assert "optimizer" in out
    assert "TFLOP" in out


def test_a_mesh_that_is_not_here(monkeypatch):
    monkeypatch.setattr(dry_run, "activations", lambda *args: 8_000)
    alone = dry_run.estimate(config_of("paper"))
    config = config_of("paper", "--config.mesh.fsdp=8", "--config.mesh.data=1")
    several = dry_run.estimate(config)
    one, eight = alone.memory, several.memory
    assert jax.device_count() < 8
    # Embedding and norms are whole on every device under fsdp, the projections and the head are not.
    whole = 2 * 50400 * 4096
    assert one["base"] / 8 < eight["base"] < (one["base"] - whole) / 8 + 1.01 * whole
    assert eight["rollout cache"] * 8 == one["rollout cache"]
    assert eight["activations"] == 1_000
    assert one["weights in use"] == 0
    assert eight["weights in use"] > 2 * 12 * 4096**2
    assert not any(alone.sent.values())
    assert "sent to other" not in dry_run.report(alone)
    assert "sent to other devices a step, by each" in dry_run.report(several)
    assert "laptop" not in dry_run.report(several)  # it has no link
    # Each of a micro-batch's T - 1 passes gathers seven eighths of 12 E^2 kernels a layer, in halves, and an adapter.
    kernels = config.sampling.micro_batches * (several.shape.horizon - 1) * 7 / 8 * 2 * 28 * 12 * 4096**2
    assert kernels < several.sent["rollout"]["all-gather"] < 1.1 * kernels
    assert several.sent["rollout"].keys() == {"all-gather"}
    assert several.sent["score, update"]["all-reduce"] > several.adapter_bytes
    bytes_a_head = dry_run.estimate(config_of("paper", "--config.model.cache_dtype=int8")).memory
    for cache in ("rollout cache", "prompt cache"):
        assert bytes_a_head[cache] / one[cache] == pytest.approx((256 + 4) / 512, rel=0.01)
    assert bytes_a_head["reward cache"] == one["reward cache"]
    halves = config_of("paper", "--config.model.quantize=nf4")
    assert 0.27 < dry_run.estimate(halves).memory["base"] / one["base"] < 0.35


def test_a_micro_batch_must_divide_over_the_mesh():
    config = config_of("paper", "--config.mesh.fsdp=8", "--config.sampling.micro_batches=32")
    with pytest.raises(ValueError, match="micro-batch of queries of 1 does not divide over 8 devices"):
        dry_run.estimate(config)


def test_remat_keeps_less():
    """What the backward pass is left with, with and without: depth counts only without."""
    run = read_policy_run(config_of("tiny", "--config.sampling.queries=2", "--config.sampling.samples=6"))
    model, tokenizer = dry_run.describe_model(run.model.path)
    parts = policy_parts(run, model, tokenizer, meshes.abstract_mesh(run.mesh))
    algorithm = parts.algorithm
    constants, state = initial(run, parts, LanguageModel(*load_model(model_folder("tiny-arithmetic"))))
    without = dry_run.kept_for_backward(algorithm, constants, state)
    full, some, dots = (
        dry_run.kept_for_backward(given_other(algorithm, remat=name), constants, state)
        for name in ("full", "dots_except_mlp", "dots")
    )
    tokens = model.num_layers * (2 * 13 + 12 * 20) * 4
    assert some - full == tokens * 4 * model.width  # q, k, v and o
    assert dots - some == tokens * 2 * model.mlp_width  # gate and up: what comes out of down is only added
    assert tokens * model.width < full < without / 3
    assert full < real(constants.base)  # what was given does not count: the base alone is more
    assert without > jnp.dtype(jnp.float32).itemsize * model.num_layers * 12 * 20 * model.mlp_width


def test_what_is_not_known_is_said(monkeypatch):
    def refuse(*args):
        raise OSError("no network")

    monkeypatch.setattr("huggingface_hub.hf_hub_download", refuse)  # which would try for half a minute
    with pytest.raises(ValueError, match=r"no/such-model is no folder .* shapes are known of EleutherAI/pythia"):
        dry_run.estimate(config_of("paper", "--config.model.path=no/such-model"))
    with pytest.raises(
        ValueError, match=r"remat_policy is 'most'; it must be one of none, dots, dots_except_mlp, full or"
    ):
        dry_run.estimate(config_of("paper", "--config.model.remat_policy=most"))
    with pytest.raises(ValueError, match=r"cache_dtype is 'int4'; it must be one of bfloat16, int8 or unset"):
        dry_run.estimate(config_of("paper", "--config.model.cache_dtype=int4"))
    with pytest.raises(ValueError, match=r"model\.quantize is 'int3'; it must be one of none, int8, nf4"):
        dry_run.estimate(config_of("paper", "--config.model.quantize=int3"))


@pytest.mark.parametrize(
    ("size", "text"), [(0, "0 B"), (999, "999 B"), (1000, "1.00 kB"), (12_101_765_568, "12.10 GB")]
)
def test_readable(size, text):
    assert dry_run.readable(size) == text
