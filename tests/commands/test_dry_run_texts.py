"""`--dry_run` of pretraining and fine-tuning."""

import json
import pathlib

import jax
import jax.numpy as jnp
import pytest

from gfn_jax import launch
from gfn_jax.algorithms.language_model import Corpus
from gfn_jax.commands import plan, train
from gfn_jax.commands.dry_run_texts import Texts, finetuning, memory, sent
from gfn_jax.models.language_model import LanguageModel
from gfn_jax.models.lora import LoraConfig, init_lora
from gfn_jax.text.loading import SHIPPED
from gfn_jax.training.optimizer import make_optimizer
from gfn_jax.training.step import make_step
from gfn_jax.types import Tokens, TrainState

CONFIGS = pathlib.Path(__file__).parents[2] / "configs"
# Every preset, and the parameters of its model.
PARAMETERS = {
    "finetune.py:tiny": 472_224,
    "finetune.py:paper": 774_030_080,
    "pretrain.py:arithmetic": 831_360,
    "pretrain.py:numbers": 107_968,
}


def plan_of(*words: str) -> Texts:
    return finetuning(train.parse(["launch", f"--config={CONFIGS}/finetune.py", *words]).config)


@pytest.mark.parametrize("preset", PARAMETERS)
def test_every_preset_is_planned_offline(preset, monkeypatch, capsys):
    """No text is named, and none is needed."""
    monkeypatch.setattr("socket.socket.connect", lambda *args: pytest.fail("the network was asked"))
    monkeypatch.setenv("HF_HUB_CACHE", "/nowhere")
    assert launch.main(["launch", f"--config={CONFIGS}/{preset}", "--dry_run", "--debug"]) == 0
    out = capsys.readouterr().out
    assert f"{PARAMETERS[preset]:,} parameters; trained: all of them" in out
    assert "optimizer" in out
    assert "TFLOP" in out


@pytest.mark.parametrize(
    "words",
    [["--config.mode=full", "--config.model.remat=True", "--config.model.dtype=bfloat16"], ["--config.mode=lora"]],
)
def test_the_estimate_is_what_the_compiler_takes(words):
    """The arrays are counted to the byte; with what XLA works in, the sum is within 20 %."""
    planned = plan_of(*words, "--config.batch=8", "--config.data.seq_length=32", "--config.mesh.data=1")
    optimizer, found = make_optimizer(planned.optimizer), memory(planned)

    def given() -> tuple[TrainState, Corpus]:
        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), (planned.trainable, planned.base))
        texts = Tokens(jnp.zeros((8, 32), jnp.int32), jnp.ones((8, 32), bool))
        state = TrainState(jnp.zeros((), jnp.int32), zeros[0], optimizer.init(zeros[0]), None)
        base = None if zeros[1] is None else LanguageModel(planned.algorithm.shape, zeros[1])
        return state, Corpus(texts, texts.mask, jnp.zeros((1, 8), jnp.int32), jax.random.key(0), base)

    state, corpus = jax.eval_shape(given)
    step = jax.jit(make_step(planned.algorithm, optimizer), donate_argnums=0)
    taken = step.lower(state, corpus).compile().memory_analysis()
    assert found["optimizer"] == sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(state.opt_state))
    assert sum(found.values()) == pytest.approx(taken.temp_size_in_bytes + taken.argument_size_in_bytes, rel=0.2)


def test_a_mesh_divides_it():
    one, eight = (memory(plan_of("--config.mesh.data=1", f"--config.mesh.fsdp={n}")) for n in (1, 8))
    assert eight["activations"] == one["activations"] // 8
    assert one["weights in use"] == 0 < eight["weights in use"]
    assert one["optimizer"] / 8 < eight["optimizer"] < one["optimizer"] / 4
    alone, several = (sent(plan_of("--config.mesh.data=1", f"--config.mesh.fsdp={n}")) for n in (1, 8))
    assert not any(alone.values())
    assert several["forward"].keys() == {"all-gather"}
    # All weights are trained: their gradient, in float32, is summed over all rows.
    assert several["backward"]["all-reduce"] > 2 * 7 / 8 * one["weights"] * 0.99


def test_an_adapter_is_counted_apart():
    planned = plan_of("--config.mode=lora")
    lora = LoraConfig(rank=16, alpha=32.0, targets=("q", "k", "v", "o", "gate", "up", "down"))
    shapes = jax.eval_shape(lambda key: init_lora(key, planned.algorithm.shape, lora), jax.random.key(0))
    assert memory(planned)["adapter"] == 4 * sum(x.size for x in jax.tree.leaves(shapes))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--config.mode=half"], "mode is 'half'; it must be one of full, lora"),
        (["--config.data.seq_length=1000"], "data.seq_length is 1000; the model has 128"),
        (["--config.mesh.fsdp=3", "--config.mesh.data=1"], "micro-batch of documents of 16 does not divide over 3"),
        (["--config.steps=5", "--config.optimizer.warmup_steps=5"], "warmup_steps is 5"),
    ],
)
def test_what_would_be_refused_is_refused(words, message):
    with pytest.raises(ValueError, match=message):
        plan_of(*words)


def test_any_folder_with_a_config_and_any_id_of_the_hub(tmp_path, monkeypatch):
    """A folder needs no weights and no tokenizer; of the hub's models the config.json alone is asked for."""
    text = (SHIPPED / "shapes" / "gpt2.json").read_text()
    (tmp_path / "config.json").write_text(text)
    gpt2, tokenizer = plan.describe_model(str(tmp_path))
    assert tokenizer is None
    (tmp_path / "config.json").write_text(json.dumps({**json.loads(text), "n_layer": 3}))
    asked = []
    monkeypatch.setattr("huggingface_hub.hf_hub_download", lambda *a: asked.append(a) or str(tmp_path / "config.json"))
    shape, _ = plan.describe_model("someone/a-model")
    assert asked == [("someone/a-model", "config.json")]
    assert (gpt2.num_layers, shape.num_layers) == (12, 3)


def test_a_hub_that_is_not_there_is_said(monkeypatch):
    def refuse(*args):
        raise OSError("no route to it\nand more")

    monkeypatch.setattr("huggingface_hub.hf_hub_download", refuse)
    with pytest.raises(ValueError, match=r"someone/a-model is no folder .* shapes are known of .*; the hub: no route"):
        plan.describe_model("someone/a-model")
