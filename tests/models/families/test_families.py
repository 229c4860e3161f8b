"""Every family against transformers' torch implementation, and the refusal of what is not implemented."""

import numpy as np
import pytest

from gfn_jax.models.checkpoint import load_model, save_model
from gfn_jax.models.config import RopeScaling
from gfn_jax.models.families import MODELS, read_settings, write_settings

TOLERANCE = 1e-4


def test_logits_are_those_of_torch(variant, ours, torch_logits):
    _, model, folder = variant
    config, params = load_model(folder)
    theirs = torch_logits(model)
    assert theirs.std() > 0.5  # a model whose logits hardly vary would agree with anything
    np.testing.assert_allclose(ours.logits(config, params, None), theirs, atol=TOLERANCE)

    real = ours.mask
    padded = torch_logits(model, real)[real]
    np.testing.assert_allclose(ours.logits(config, params, None, real)[real], padded, atol=TOLERANCE)
    np.testing.assert_allclose(ours.step_logits(config, params, None)[real], padded, atol=TOLERANCE)


def test_what_is_written_is_what_transformers_reads(variant, tmp_path, torch_logits):
    from transformers import AutoModelForCausalLM

    model_type, model, folder = variant
    config, params = load_model(folder)
    save_model(tmp_path, config, params, model_type)
    again = AutoModelForCausalLM.from_pretrained(tmp_path, attn_implementation="eager").eval()
    np.testing.assert_array_equal(torch_logits(again), torch_logits(model))


def settings(model_type, **more):
    return {"model_type": model_type, **more}


@pytest.mark.parametrize("model_type", MODELS)
def test_default_settings_round_trip(model_type):
    config = read_settings(settings(model_type))
    assert read_settings(write_settings(config, model_type)) == config


@pytest.mark.parametrize(
    ("raw", "named"),
    [
        (settings("mamba"), "mamba"),
        (settings("llama", hidden_act="tanhshrink"), "tanhshrink"),
        (settings("llama", rope_scaling={"rope_type": "yarn", "factor": 2.0}), "yarn"),
        (settings("llama", rope_scaling={"rope_type": "linear", "factor": 2.0, "beta": 3}), "beta"),
        (settings("llama", quantization_config={"bits": 4}), "quantization_config"),
        (settings("llama", made_up_attention=True), "made_up_attention"),
        (settings("mistral", layer_types=["sliding_attention"] * 32), "layer_types"),
        (settings("gpt2", scale_attn_by_inverse_layer_idx=True), "scale_attn_by_inverse_layer_idx"),
        (settings("gpt2", scale_attn_weights=False), "scale_attn_weights"),
        (settings("gpt2", add_cross_attention=True), "add_cross_attention"),
        (settings("gptj", tie_word_embeddings=True), "tie_word_embeddings"),
        (settings("gemma2", use_bidirectional_attention=True), "use_bidirectional_attention"),
        (settings("qwen2", layer_types=["chunked_attention"] * 32), "chunked_attention"),
        (settings("llama", hidden_size="wide"), "hidden_size"),
        ({}, "model_type"),
    ],
)
def test_refusals_name_what_they_refuse(raw, named):
    with pytest.raises(ValueError, match=named) as caught:
        read_settings(raw)
    assert "\n" not in str(caught.value)


# What config.json files of well-known models say beside sizes and token ids.
OLD_GPT = {"n_ctx": 1024, "summary_type": "cls_index", "task_specific_params": {"text-generation": {}}}
KNOWN = {
    "gpt2": OLD_GPT | {"model_type": "gpt2"},
    "gpt-j": OLD_GPT
    | {"model_type": "gptj", "rotary": True, "scale_attn_weights": True, "tokenizer_class": "GPT2Tokenizer"},
    "pythia": {"model_type": "gpt_neox", "rotary_pct": 0.25, "rotary_emb_base": 10000, "torch_dtype": "float16"},
    "llama-3.2": {
        "model_type": "llama",
        "max_position_embeddings": 131072,
        "rope_theta": 500000.0,
        "rope_scaling": {
            "rope_type": "llama3",
            "factor": 32.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
        },
        "pretraining_tp": 1,
    },
    "smollm2": {
        "model_type": "llama",
        "is_llama_config": True,
        "rope_interleaved": False,
        "transformers.js_config": {"dtype": "q4"},
    },
    "mistral": {"model_type": "mistral", "rope_theta": 10000.0, "sliding_window": 4096},
    "qwen2.5": {"model_type": "qwen2", "use_mrope": False, "use_sliding_window": False, "sliding_window": 32768},
    "gemma-2": {
        "model_type": "gemma2",
        "hidden_act": "gelu_pytorch_tanh",
        "cache_implementation": "hybrid",
    },
    "gemma-3": {
        "model_type": "gemma3_text",
        "sliding_window_pattern": 6,
        "rope_theta": 1000000,
        "rope_local_base_freq": 10000,
        "rope_scaling": None,
        "cache_implementation": "hybrid",
    },
}


@pytest.mark.parametrize("name", KNOWN)
def test_settings_of_known_models_are_read(name):
    config = read_settings(KNOWN[name])
    expected = {
        "pythia": {"rotary_dim": 24, "rope_theta": 10000.0},
        "llama-3.2": {"rope_theta": 500000.0, "rope_scaling": RopeScaling("llama3", 32.0, 1.0, 4.0, 8192)},
        "mistral": {"local_window": 4096},
        "qwen2.5": {"local_window": None},
        "gemma-3": {
            "rope_theta": 1e6,
            "local_rope_theta": 1e4,
            "local_layers": (*([True] * 5), False) * 4 + (True,) * 2,
        },
    }
    for field, value in expected.get(name, {}).items():
        assert vars(config)[field] == value


def test_a_family_refuses_to_write_what_it_cannot_express():
    llama = read_settings(settings("llama", attention_bias=True))
    with pytest.raises(ValueError, match="qkv_bias"):
        write_settings(llama, "mistral")
