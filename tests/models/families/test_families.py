"""Every family against transformers' torch implementation, and the refusal of what is not implemented."""

import json

import numpy as np
import pytest

from gfn_jax.models.checkpoint import load_model, read_config, save_model
from gfn_jax.models.config import RopeScaling
from gfn_jax.models.families import MODELS, read_settings, write_settings
from gfn_jax.text.loading import SHIPPED

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
        *((settings(model_type, is_causal=off), "is_causal") for model_type in MODELS for off in (False, None, 0)),
        *((settings(model_type, made_up={}), "made_up") for model_type in MODELS),
        *((settings(model_type, rope_interleaved=True), "rope_interleaved") for model_type in MODELS),
        (settings("gemma3_text", attn_logit_softcapping=50.0), "attn_logit_softcapping"),
        (settings("gemma3_text", attn_logit_softcapping=0.0), "attn_logit_softcapping"),
        (settings("mistral", sliding_window=0), "sliding_window = 0"),
        (settings("mistral", sliding_window=-1), "sliding_window = -1"),
        (settings("gemma2", sliding_window=0), "sliding_window = 0"),
        (settings("qwen2", use_sliding_window=True, sliding_window=-1, max_window_layers=0), "sliding_window = -1"),
        (settings("gptj", rotary_dim=63), "rotary_dim 63"),
        (settings("gptj", rotary_dim=0), "rotary_dim 0"),
        (settings("gptj", rotary_dim=None), "rotary_dim"),
        (settings("gpt_neox", rotary_pct=0.2), "rotary_dim 19"),
        (settings("gpt_neox", rotary_pct=0.0), "rotary_dim 0"),
        (settings("llama", head_dim=7), "7"),
        ({}, "model_type"),
    ],
)
def test_refusals_name_what_they_refuse(raw, named):
    with pytest.raises(ValueError, match=named) as caught:
        read_settings(raw)
    assert "\n" not in str(caught.value)


# What config.json files of well-known models say, but for sizes that change nothing here.
OLD_GPT = {
    "activation_function": "gelu_new",
    "attn_pdrop": 0.1,
    "bos_token_id": 50256,
    "embd_pdrop": 0.1,
    "eos_token_id": 50256,
    "gradient_checkpointing": False,
    "initializer_range": 0.02,
    "layer_norm_epsilon": 1e-05,
    "n_ctx": 1024,
    "n_inner": None,
    "resid_pdrop": 0.1,
    "summary_activation": None,
    "summary_first_dropout": 0.1,
    "summary_proj_to_labels": True,
    "summary_type": "cls_index",
    "summary_use_proj": True,
    "task_specific_params": {"text-generation": {"do_sample": True, "max_length": 50}},
    "use_cache": True,
}
LLAMA = {
    "attention_bias": False,
    "attention_dropout": 0.0,
    "bos_token_id": 128000,
    "eos_token_id": [128001, 128008, 128009],
    "hidden_act": "silu",
    "initializer_range": 0.02,
    "mlp_bias": False,
    "model_type": "llama",
    "pretraining_tp": 1,
    "rms_norm_eps": 1e-05,
    "rope_scaling": None,
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.45.0.dev0",
    "use_cache": True,
}
QWEN = {"attention_dropout": 0.0, "max_window_layers": 28, "rope_theta": 1000000.0, "use_sliding_window": False}
KNOWN = {
    "gpt2": OLD_GPT | {"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"]},
    "gpt2-medium": OLD_GPT | {"model_type": "gpt2", "n_special": 0, "predict_special_tokens": True},
    "gpt2-xl": OLD_GPT | {"model_type": "gpt2", "output_past": True, "reorder_and_upcast_attn": False},
    "distilgpt2": OLD_GPT
    | {"model_type": "gpt2", "_num_labels": 1, "id2label": {"0": "LABEL_0"}, "label2id": {"LABEL_0": 0}},
    "gpt-j": OLD_GPT
    | {"model_type": "gptj", "rotary": True, "rotary_dim": 64, "scale_attn_weights": True, "n_positions": 2048}
    | {"tokenizer_class": "GPT2Tokenizer", "tie_word_embeddings": False},
    "pythia": {
        "model_type": "gpt_neox",
        "hidden_act": "gelu",
        "rotary_pct": 0.25,
        "rotary_emb_base": 10000,
        "tie_word_embeddings": False,
        "torch_dtype": "float16",
        "use_parallel_residual": True,
    },
    "gpt-neox-20b": {
        "model_type": "gpt_neox",
        "attention_probs_dropout_prob": 0,
        "hidden_act": "gelu_fast",
        "hidden_dropout_prob": 0,
        "rotary_pct": 0.25,
        "rotary_emb_base": 10000,
    },
    "llama-3.2": LLAMA
    | {
        "max_position_embeddings": 131072,
        "rope_theta": 500000.0,
        "rope_scaling": {
            "rope_type": "llama3",
            "factor": 32.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
        },
    },
    "llama-3.2-unsloth": LLAMA | {"pad_token_id": 128004, "unsloth_fixed": True, "unsloth_version": "2025.3.3"},
    "llama-2": LLAMA | {"max_length": 4096, "temperature": 0.6, "top_p": 0.9, "do_sample": True},
    "smollm2": LLAMA
    | {
        "is_llama_config": True,
        "rope_interleaved": False,
        "rope_theta": 100000,
        "transformers.js_config": {"dtype": "q4", "kv_cache_dtype": {"fp16": "float16", "q4f16": "float16"}},
    },
    "mistral": {
        "model_type": "mistral",
        "attention_dropout": 0.0,
        "rope_theta": 10000.0,
        "sliding_window": 4096,
        "tie_word_embeddings": False,
    },
    "mistral-0.3": {"model_type": "mistral", "rope_theta": 1000000.0, "sliding_window": None, "head_dim": 128},
    "qwen2.5": QWEN | {"model_type": "qwen2", "use_mrope": False, "sliding_window": 32768},
    "qwen3": QWEN
    | {"model_type": "qwen3", "attention_bias": False, "head_dim": 128, "rope_scaling": None, "sliding_window": None},
    "gemma-2": {
        "model_type": "gemma2",
        "attn_logit_softcapping": 50.0,
        "cache_implementation": "hybrid",
        "final_logit_softcapping": 30.0,
        "hidden_act": "gelu_pytorch_tanh",
        "hidden_activation": "gelu_pytorch_tanh",
        "query_pre_attn_scalar": 256,
        "sliding_window": 4096,
        "sliding_window_size": 4096,
    },
    "gemma-3": {
        "model_type": "gemma3_text",
        "attn_logit_softcapping": None,
        "cache_implementation": "hybrid",
        "final_logit_softcapping": None,
        "sliding_window": 512,
        "sliding_window_pattern": 6,
        "rope_theta": 1000000,
        "rope_local_base_freq": 10000,
        "rope_scaling": None,
    },
}
# What older versions of transformers wrote of every model, asked for all that they knew.
OLD_DEFAULTS = {
    "add_cross_attention": False,
    "bad_words_ids": None,
    "begin_suppress_tokens": None,
    "chunk_size_feed_forward": 0,
    "cross_attention_hidden_size": None,
    "decoder_start_token_id": None,
    "diversity_penalty": 0.0,
    "do_sample": False,
    "early_stopping": False,
    "encoder_no_repeat_ngram_size": 0,
    "exponential_decay_length_penalty": None,
    "finetuning_task": None,
    "forced_bos_token_id": None,
    "forced_eos_token_id": None,
    "is_decoder": False,
    "is_encoder_decoder": False,
    "length_penalty": 1.0,
    "max_length": 20,
    "min_length": 0,
    "no_repeat_ngram_size": 0,
    "num_beam_groups": 1,
    "num_beams": 1,
    "num_return_sequences": 1,
    "output_scores": False,
    "prefix": None,
    "problem_type": None,
    "pruned_heads": {},
    "remove_invalid_values": False,
    "repetition_penalty": 1.0,
    "return_dict_in_generate": False,
    "sep_token_id": None,
    "suppress_tokens": None,
    "temperature": 1.0,
    "tf_legacy_loss": False,
    "tie_encoder_decoder": False,
    "tokenizer_class": None,
    "top_k": 50,
    "top_p": 1.0,
    "torchscript": False,
    "typical_p": 1.0,
    "use_bfloat16": False,
}


@pytest.mark.parametrize("model_type", MODELS)
def test_all_that_transformers_writes_is_read(model_type, tmp_path):
    from transformers import CONFIG_MAPPING

    configuration = CONFIG_MAPPING[model_type]()
    configuration.save_pretrained(tmp_path)
    config = read_config(tmp_path)[1]
    assert config == read_settings(configuration.to_dict())
    assert config == read_settings(json.loads(configuration.to_json_string(use_diff=False)))
    assert config == read_settings(configuration.to_dict() | OLD_DEFAULTS)


@pytest.mark.parametrize("file", sorted((SHIPPED / "shapes").glob("*.json")), ids=lambda file: file.stem)
def test_shapes_that_the_project_ships_are_read(file):
    read_settings(json.loads(file.read_text()))


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
