"""Pretraining and fine-tuning through their own configs, as `python -m gfn_jax.launch` makes them."""

import dataclasses
import json
import logging
import math
import pathlib
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gfn_jax.algorithms.language_model import Phase, epoch_order, phase_order
from gfn_jax.commands.config_flag import load_config
from gfn_jax.evaluation.perplexity import make_perplexity
from gfn_jax.models.adapters import load_adapter
from gfn_jax.models.checkpoint import load_model, read_config
from gfn_jax.models.config import BaseModelConfig
from gfn_jax.models.language_model import LanguageModel
from gfn_jax.models.lora import LoraConfig
from gfn_jax.runs.build import build
from gfn_jax.runs.finetuning import read_rows, save_finetuned
from gfn_jax.text.loading import SHIPPED, load_tokenizer
from gfn_jax.training.loop import train

ROOT = pathlib.Path(__file__).parents[2]
TEXT = [f"Question: {a} + {b} = ? Answer: {a + b}." for a in range(4) for b in range(5)]


def config_of(name: str):
    return load_config(f"{ROOT}/configs/{name}.py")


def small_pretraining():
    config = config_of("pretrain")
    config.model.update({"width": 16, "num_layers": 1, "num_heads": 2, "num_kv_heads": 2, "head_dim": 8})
    config.model.update({"mlp_width": 24, "max_positions": 64})
    config.update({"batch": 4, "seq_length": 32, "save_every": 2})
    config.optimizer.warmup_steps = 1
    for phase in config.phases.values():
        phase.update({"steps": 2, "documents": 8})
    return config


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory):
    run = build(small_pretraining(), tmp_path_factory.mktemp("pretrained")).run
    trained = train(run)
    run.finish(trained)
    return run, trained


def small_finetuning(pretrained, folder: pathlib.Path, mode: str = "full"):
    """Twenty lines of text, two epochs."""
    (folder / "text.txt").write_text("\n".join(TEXT) + "\n")
    config = config_of("finetune")
    config.mode = mode
    config.epochs = 2.0
    config.update({"batch": 4, "micro_batches": 2})
    config.model.path = str(pretrained[0].workdir / "model")
    config.mesh.data = 1
    config.data.update({"path": str(folder / "text.txt"), "seq_length": 10, "validation": 0.2})
    config.lora.update({"rank": 2, "targets": ("q", "up", "head")})
    config.evaluation.update({"every": 100, "batch": 4})
    config.optimizer.learning_rate = 0.02
    return config


def assert_equal(one, other):
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        np.testing.assert_array_equal(a, b)


def test_pretraining_goes_through_its_phases_and_writes_a_model(pretrained):
    run, trained = pretrained
    assert trained.steps == run.num_steps == 4
    order = np.asarray(run.constants.order)
    assert order[:2].max() < 8 <= order[2:].min()
    config, params = load_model(run.workdir / "model")
    assert config.vocab_size == len(load_tokenizer(run.workdir / "model"))
    assert_equal(params, trained.state.trainable)


def test_two_steps_a_stop_and_two_more_are_four_steps(pretrained, tmp_path):
    first = build(small_pretraining(), tmp_path).run
    train(dataclasses.replace(first, num_steps=2))
    first.checkpointer.close()
    assert_equal(train(build(small_pretraining(), tmp_path).run).state, pretrained[1].state)


def test_the_order_is_not_drawn_with_the_keys_of_dropout(pretrained, tmp_path):
    """Two streams of randomness, two roots: neither run's order comes from what its dropout is drawn with."""
    corpus = pretrained[0].constants
    phases = [Phase(2, 0, 8), Phase(2, 8, 16)]
    assert (phase_order(corpus.root, phases, 4) != corpus.order).any()
    corpus = build(small_finetuning(pretrained, tmp_path), tmp_path / "run").run.constants
    assert (epoch_order(corpus.root, 16, 4, 8) != corpus.order).any()


@pytest.mark.parametrize("mode", ["full", "lora"])
def test_fine_tuning_makes_held_out_text_likelier_and_writes_that_model(pretrained, tmp_path, mode, caplog):
    with caplog.at_level(logging.INFO, "gfn_jax"):
        run = build(small_finetuning(pretrained, tmp_path, mode), tmp_path / "run").run
    # "Question: 0 + 4 = ? Answer: 4." and its end are 11 tokens.
    assert "training text: 16 documents, 160 tokens; 16 cut at 10" in caplog.text
    assert run.num_steps == 8
    page = run.finish(train(run))
    results = json.loads((tmp_path / "run/results.json").read_text())
    assert (results["task"], results["method"], results["steps"]) == ("finetune", mode, 8)
    assert (results["documents"], results["held_out_documents"]) == (16, 4)
    assert results["policy"]["nll"] < 0.95 * results["base"]["nll"]
    for method in ("policy", "base"):
        assert f"perplexity {results[method]['perplexity']:.3f}" in page
        assert math.isclose(results[method]["perplexity"], math.exp(results[method]["nll"]))
    assert_written(run, pretrained, tmp_path, mode, results)


def assert_written(run, pretrained, tmp_path, mode, results):
    """The folder holds what was measured, and without it the base's number."""

    from gfn_jax.tasks.texts import TextConfig, read_texts

    data = TextConfig("text", str(tmp_path / "text.txt"), "text", 0.2, 10, True)
    rows = read_rows("held out", read_texts(data)[1], data, load_tokenizer(tmp_path / "run/model"))
    measured = make_perplexity(rows, rows.mask, 4)
    merged = LanguageModel(*load_model(tmp_path / "run/model"))
    assert math.isclose(measured(merged)["nll"], results["policy"]["nll"], rel_tol=1e-4)
    base = LanguageModel(*load_model(pretrained[0].workdir / "model"))
    assert math.isclose(measured(base)["nll"], results["base"]["nll"], rel_tol=1e-4)
    assert (tmp_path / "run/adapter").exists() == (mode == "lora")
    if mode == "lora":
        _, lora = load_adapter(tmp_path / "run/adapter", base.shape, read_config(tmp_path / "run/model")[0])
        assert math.isclose(measured(base.adapted(lora))["nll"], results["policy"]["nll"], rel_tol=1e-4)


def test_a_fine_tuned_model_is_there_once_it_is_whole(tmp_path):
    folder = SHIPPED / "tiny-numbers"
    params, tokenizer = load_model(folder)[1], load_tokenizer(folder)
    base = BaseModelConfig(str(folder), "float32", remat=False, quantize="none")
    config = SimpleNamespace(model=base, lora=LoraConfig(2, 4.0, ("q",)))

    class Killed:
        def save_pretrained(self, _):
            raise KeyboardInterrupt

    for expected in ([], ["model"]):
        with pytest.raises(KeyboardInterrupt):
            save_finetuned(config, tmp_path, folder, Killed(), params, None)
        assert [path.name for path in tmp_path.iterdir()] == expected
        save_finetuned(config, tmp_path, folder, tokenizer, params, None)
    load_model(tmp_path / "model")
    load_tokenizer(tmp_path / "model")


def test_steps_count_instead_of_epochs(pretrained, tmp_path):
    config = small_finetuning(pretrained, tmp_path)
    config.steps = 3
    run = build(config, tmp_path / "run").run
    assert run.num_steps == 3
    assert run.constants.order.shape == (3, 4)
    assert jnp.dtype(run.state.trainable["embed"]["tokens"].dtype) == "float32"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mode": "half"}, "mode is 'half'; it must be one of full, lora"),
        ({"micro_batches": 3}, "batch is 4; it does not divide into 3"),
        ({"data": {"path": "absent.txt"}}, r"absent\.txt"),
        ({"data": {"seq_length": 100}}, r"data\.seq_length is 100; the model has 64 positions"),
        ({"model": {"path": "./absent"}}, "there is no folder"),
        ({"lora": {"targets": ("x",)}, "mode": "lora"}, "unknown LoRA target 'x'"),
    ],
)
def test_what_is_wrong_is_one_line(pretrained, tmp_path, changes, message):
    config = small_finetuning(pretrained, tmp_path)
    for name, value in changes.items():
        if isinstance(value, dict):
            config[name].update(value)
        else:
            config[name] = value
    with pytest.raises((ValueError, OSError), match=message) as caught:
        build(config, tmp_path / "run")
    assert "\n" not in str(caught.value)


def test_an_empty_text_is_said(pretrained, tmp_path):
    config = small_finetuning(pretrained, tmp_path)
    (tmp_path / "text.txt").write_text("\n")
    with pytest.raises(ValueError, match=r"text\.txt is empty"):
        build(config, tmp_path / "run")


def test_a_corpus_that_is_not_there(tmp_path):
    config = small_pretraining()
    config.corpus = "poems"
    with pytest.raises(ValueError, match="corpus 'poems' is unknown"):
        build(config, tmp_path)
