"""Adapters against the real peft, in both directions, for every family; merged models in transformers."""

import copy
import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from gfn_jax.models.adapters import export_merged, load_adapter, save_adapter
from gfn_jax.models.checkpoint import load_model
from gfn_jax.models.config import ModelConfig
from gfn_jax.models.families import MODELS
from gfn_jax.models.lora import Lora, LoraConfig, init_lora

TOLERANCE = 1e-4
RANK, ALPHA = 3, 7.0
ADAPTED = ["gpt2", "gptj", "neox", "llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3"]


@pytest.fixture(scope="module", params=ADAPTED)
def base(request, written_variant):
    """(model_type, torch model, config, params) of every family."""
    pytest.importorskip("peft", reason="peft (a test dependency) is not installed")
    model_type, model, folder = written_variant(request.param)
    return model_type, model, *load_model(folder)


def lora_config(config, model_type):
    targets = (*config.projections, "head")
    return LoraConfig(RANK, ALPHA, targets, rank_stabilized=model_type in ("gpt2", "qwen3"))


def random_lora(config, settings):
    """An adapter with no zero in it."""
    lora = init_lora(jax.random.key(1), config, settings)
    leaves, tree = jax.tree.flatten(lora)
    keys = jax.random.split(jax.random.key(2), len(leaves))
    return jax.tree.unflatten(tree, [jax.random.normal(k, x.shape) * 0.3 for k, x in zip(keys, leaves)])


def test_an_adapter_of_peft_is_read(base, tmp_path, ours, torch_logits):
    import peft
    import torch

    model_type, model, config, params = base
    settings = lora_config(config, model_type)
    names = {MODELS[model_type].modules[module].rsplit(".", 1)[-1] for module in settings.targets}
    made = peft.LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=sorted(names), use_rslora=settings.rank_stabilized)
    theirs = peft.get_peft_model(copy.deepcopy(model), made).eval()
    with torch.no_grad():
        for name, parameter in theirs.named_parameters():
            if "lora_" in name:
                parameter.copy_(torch.randn(parameter.shape) * 0.3)
    theirs.save_pretrained(tmp_path)

    read, lora = load_adapter(tmp_path, config, model_type)
    assert read == settings
    expected = torch_logits(theirs)
    assert np.abs(expected - torch_logits(model)).max() > 0.5
    np.testing.assert_allclose(ours.logits(config, params, lora), expected, atol=TOLERANCE)
    real = ours.mask
    padded = torch_logits(theirs, real)[real]
    np.testing.assert_allclose(ours.logits(config, params, lora, real)[real], padded, atol=TOLERANCE)
    np.testing.assert_allclose(ours.step_logits(config, params, lora)[real], padded, atol=TOLERANCE)


def test_an_adapter_for_peft_is_written_and_merged(base, tmp_path, ours, torch_logits):
    import peft
    from transformers import AutoModelForCausalLM

    model_type, model, config, params = base
    settings = lora_config(config, model_type)
    lora = random_lora(config, settings)
    save_adapter(tmp_path / "adapter", config, settings, lora, model_type)
    theirs = peft.PeftModel.from_pretrained(copy.deepcopy(model), tmp_path / "adapter").eval()
    mine = ours.logits(config, params, lora)
    np.testing.assert_allclose(torch_logits(theirs), mine, atol=TOLERANCE)

    read, again = load_adapter(tmp_path / "adapter", config, model_type)
    assert read == settings
    jax.tree.map(np.testing.assert_array_equal, again, lora)

    export_merged(tmp_path / "merged", config, params, lora, model_type)
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", attn_implementation="eager").eval()
    np.testing.assert_allclose(torch_logits(merged), mine, atol=TOLERANCE)
    text = greedy(merged)
    np.testing.assert_array_equal(text, greedy(theirs))
    best = ours.logits(config, params, lora, ids=text).argmax(-1)
    np.testing.assert_array_equal(text[:, 4:], best[:, 3:-1])


def greedy(model):
    """Two prompts of four tokens and the seven likeliest after them."""
    import torch

    prompt = torch.tensor([[5, 17, 3, 40], [8, 2, 60, 33]])
    # 61 is no token: greedy search then never stops early.
    out = model.generate(
        input_ids=prompt, attention_mask=torch.ones_like(prompt), do_sample=False, max_new_tokens=7,
        eos_token_id=61, pad_token_id=0,
    )  # fmt: skip
    return out.numpy()


SMALL = ModelConfig(
    vocab_size=11,
    width=8,
    num_layers=2,
    num_heads=2,
    num_kv_heads=2,
    head_dim=4,
    mlp_width=12,
    max_positions=16,
    norm="layer",
    positions="learned",
    gated_mlp=False,
    qkv_bias=True,
    out_bias=True,
    mlp_bias=True,
    tied_head=True,
)


def small_adapter(folder, targets=("q", "k", "v", "o"), model_type="gpt2"):
    settings = LoraConfig(2, 4.0, targets)
    lora = random_lora(SMALL, settings)
    save_adapter(folder, SMALL, settings, lora, model_type)
    return settings, lora


def edit(folder, **settings):
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))


@pytest.mark.parametrize("targets", [("q", "k", "v"), ("v",), ("q", "v", "down"), ("o",), ("down", "head")])
@pytest.mark.parametrize("model_type", ["gpt2", "gpt_neox"])
def test_part_of_a_fused_projection_keeps_its_parameters(tmp_path, targets, model_type):
    settings, lora = small_adapter(tmp_path, targets, model_type)
    read, again = load_adapter(tmp_path, SMALL, model_type)
    assert read == settings
    jax.tree.map(np.testing.assert_array_equal, again, lora)


def test_a_new_adapter_keeps_its_parameters(tmp_path):
    settings = LoraConfig(2, 4.0, ("q", "v"))
    lora = init_lora(jax.random.key(0), SMALL, settings)
    save_adapter(tmp_path, SMALL, settings, lora, "gpt2")
    jax.tree.map(np.testing.assert_array_equal, load_adapter(tmp_path, SMALL, "gpt2")[1], lora)


def test_one_shared_a_takes_no_more_than_its_rank(tmp_path):
    settings, lora = LoraConfig(2, 4.0, ("q", "k", "v")), None
    lora = random_lora(SMALL, settings)
    layers = {name: {"a": lora.layers["q"]["a"], "b": pair["b"]} for name, pair in lora.layers.items()}
    save_adapter(tmp_path, SMALL, settings, Lora(layers, None, settings.scale), "gpt2")
    shapes = {tensor.shape for tensor in load_file(tmp_path / "adapter_model.safetensors").values()}
    assert shapes == {(2, 8), (24, 2)}


def test_targets_name_no_module_that_is_not_adapted(tmp_path):
    small_adapter(tmp_path, ("o",))
    assert json.loads((tmp_path / "adapter_config.json").read_text())["target_modules"] == ["attn.c_proj"]


def test_a_pattern_of_alpha_scales_its_module(tmp_path):
    _, lora = small_adapter(tmp_path, ("o", "up"))
    edit(tmp_path, alpha_pattern={"mlp.c_fc": 12.0})
    again = load_adapter(tmp_path, SMALL, "gpt2")[1]
    np.testing.assert_array_equal(again.layers["o"]["b"], lora.layers["o"]["b"])
    np.testing.assert_allclose(again.layers["up"]["b"], 3 * lora.layers["up"]["b"], rtol=1e-6)


def test_weights_take_the_dtype_asked_for(tmp_path):
    small_adapter(tmp_path)
    _, lora = load_adapter(tmp_path, SMALL, "gpt2", jnp.bfloat16)
    assert {leaf.dtype for leaf in jax.tree.leaves(lora)} == {jnp.dtype("bfloat16")}


@pytest.mark.parametrize(
    "setting",
    [
        {"use_dora": True},
        {"modules_to_save": ["lm_head"]},
        {"bias": "all"},
        {"peft_type": "IA3"},
        {"init_lora_weights": "pissa"},
        {"layers_to_transform": [0]},
        {"lora_bias": True},
        {"trainable_token_indices": [3]},
        {"made_up": 1},
    ],
)
def test_unsupported_settings_are_refused_by_name(tmp_path, setting):
    small_adapter(tmp_path)
    edit(tmp_path, **setting)
    with pytest.raises(ValueError, match=next(iter(setting))):
        load_adapter(tmp_path, SMALL, "gpt2")


def refused(match, folder, config=SMALL, model_type="gpt2"):
    with pytest.raises(ValueError, match=match) as error:
        load_adapter(folder, config, model_type)
    assert "\n" not in str(error.value)


def test_an_adapter_for_another_base_is_refused(tmp_path):
    small_adapter(tmp_path)
    refused(r"another base.*c_attn", tmp_path, dataclasses.replace(SMALL, width=16, head_dim=8))
    refused("every layer", tmp_path, dataclasses.replace(SMALL, num_layers=3))
    refused("adapts nothing", tmp_path, dataclasses.replace(SMALL, num_layers=1))
    refused("adapts nothing", tmp_path, SMALL, "gptj")


def test_another_name_of_the_base_is_no_error(tmp_path):
    """As in PEFT: shapes decide, not names, which are paths on another machine more often than not."""
    settings, lora = small_adapter(tmp_path)
    edit(tmp_path, base_model_name_or_path="someone/another-base")
    read, again = load_adapter(tmp_path, SMALL, "gpt2")
    assert read == settings
    jax.tree.map(np.testing.assert_array_equal, again, lora)


def test_unknown_targets_are_refused(tmp_path):
    small_adapter(tmp_path)
    file = tmp_path / "adapter_model.safetensors"
    tensors = load_file(file)
    tensors["base_model.model.transformer.h.0.attn.rotor.lora_A.weight"] = np.zeros((2, 8), np.float32)
    save_file(tensors, file)
    refused("rotor", tmp_path)


def test_a_rank_that_the_settings_do_not_name_is_refused(tmp_path):
    small_adapter(tmp_path, ("o",))
    edit(tmp_path, r=5)
    with pytest.raises(ValueError, match="rank 2 where"):
        load_adapter(tmp_path, SMALL, "gpt2")


def test_missing_files_are_named(tmp_path):
    with pytest.raises(ValueError, match=r"adapter_config\.json"):
        load_adapter(tmp_path, SMALL, "gpt2")
    small_adapter(tmp_path)
    (tmp_path / "adapter_model.safetensors").unlink()
    with pytest.raises(ValueError, match=r"adapter_model\.safetensors"):
        load_adapter(tmp_path, SMALL, "gpt2")


def test_a_scale_that_its_configuration_denies_is_not_written(tmp_path):
    settings = LoraConfig(2, 4.0, ("q",))
    lora = random_lora(SMALL, settings).replace(scale=1.0)
    with pytest.raises(ValueError, match="scale"):
        save_adapter(tmp_path, SMALL, settings, lora, "gpt2")
