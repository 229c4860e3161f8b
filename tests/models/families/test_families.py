"""Every family against transformers' torch implementation, and the refusal of what is not implemented."""

import numpy as np
import pytest

from gfn_jax.models.checkpoint import load_model, save_model
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


def test_a_family_refuses_to_write_what_it_cannot_express():
    llama = read_settings(settings("llama", attention_bias=True))
    with pytest.raises(ValueError, match="qkv_bias"):
        write_settings(llama, "mistral")
