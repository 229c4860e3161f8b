"""Tiny random models written by transformers' own torch implementation, and this library's run of a model."""

import functools
import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gfn_jax.models import decoder
from gfn_jax.models.language_model import LanguageModel
from gfn_jax.types import Tokens

os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

SHAPE = {
    "vocab_size": 61,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "pad_token_id": 0,
}
GROUPED = SHAPE | {"num_key_value_heads": 2}
GPT = {
    "vocab_size": 61,
    "n_embd": 32,
    "n_layer": 3,
    "n_head": 4,
    "n_positions": 64,
    "bos_token_id": 0,
    "eos_token_id": 0,
}
UNTIED = {"tie_word_embeddings": False, "activation_function": "relu", "n_inner": 40}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 100.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
LINEAR = {"rope_type": "linear", "factor": 4.0, "rope_theta": 500.0}
PARTLY_LOCAL = {"use_sliding_window": True, "sliding_window": 3, "max_window_layers": 1}
WINDOW = {"head_dim": 8, "sliding_window": 3, "query_pre_attn_scalar": 13}

# Name -> (model_type, settings): every family, and every setting of one that takes another path.
VARIANTS = {
    "gpt2": ("gpt2", GPT),
    "gpt2-untied": (
        "gpt2",
        GPT | {"tie_word_embeddings": False, "activation_function": "relu", "n_inner": 40},
    ),
    "gptj": ("gptj", GPT | {"rotary_dim": 4}),
    "neox": ("gpt_neox", SHAPE),
    "neox-serial": (
        "gpt_neox",
        SHAPE | {"use_parallel_residual": False, "attention_bias": False, "tie_word_embeddings": True},
    ),
    "llama": ("llama", GROUPED | {"rope_parameters": LLAMA3, "head_dim": 12}),
    "llama-biased": (
        "llama",
        GROUPED | {"rope_parameters": LINEAR, "attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True},
    ),
    "mistral": ("mistral", GROUPED | {"sliding_window": 3}),
    "mistral-global": ("mistral", GROUPED | {"sliding_window": None, "head_dim": 12}),
    "qwen2": (
        "qwen2",
        GROUPED
        | {
            "tie_word_embeddings": True,
            "use_sliding_window": True,
            "sliding_window": 3,
            "max_window_layers": 1,
        },
    ),
    "qwen3": ("qwen3", GROUPED | {"head_dim": 12}),
    "gemma2": ("gemma2", GROUPED | WINDOW | {"attn_logit_softcapping": 2.0, "final_logit_softcapping": 5.0}),
    "gemma3": (
        "gemma3_text",
        GROUPED
        | WINDOW
        | {
            "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
            "rope_parameters": {
                "sliding_attention": {"rope_type": "default", "rope_theta": 50.0},
                "full_attention": LINEAR,
            },
        },
    ),
}


@pytest.fixture(scope="session")
def written_variant(tmp_path_factory):
    """Name -> (model_type, torch model, its folder), the parameters all random; each is made once."""
    torch = pytest.importorskip("torch", reason="torch (a test dependency) is not installed")
    torch.set_num_threads(1)
    from transformers import CONFIG_MAPPING, AutoModelForCausalLM

    @functools.cache
    def written(name):
        model_type, settings = VARIANTS[name]
        torch.manual_seed(len(name))
        config = CONFIG_MAPPING[model_type](**settings)
        model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
        with torch.no_grad():
            for parameter in model.parameters():
                centre = parameter.mean() if parameter.ndim == 1 else 0.0  # a norm's scale stays about one
                parameter.copy_(torch.randn(parameter.shape) * 0.2 + centre)
        folder = tmp_path_factory.mktemp(name)
        model.save_pretrained(folder)
        return model_type, model, folder

    return written


@pytest.fixture(scope="session", params=list(VARIANTS))
def variant(request, written_variant):
    """Every variant in turn."""
    return written_variant(request.param)


IDS = np.random.default_rng(0).integers(1, 61, (2, 11))
MASK = np.arange(11) >= np.array([[3], [0]])  # the first row is padded on the left
ALL = np.ones_like(MASK)


@functools.partial(jax.jit, static_argnums=0)
def prefilled(config, params, lora, ids, mask):
    hidden, past = decoder.prefill(LanguageModel(config, params, lora), Tokens(ids, mask))
    return decoder.logits(decoder.select_head(LanguageModel(config, params, lora)), hidden), past


@functools.partial(jax.jit, static_argnums=0)
def stepped(config, params, lora, token, past, cache, column):
    positions = decoder.past_length((past,), token.shape[0])[:, None] + column
    visible = (jnp.arange(cache.mask.shape[1]) <= column)[None, None]
    hidden, cache = decoder.forward(
        LanguageModel(config, params, lora), token, positions, visible, (past,), cache=cache, column=column
    )
    return decoder.logits(decoder.select_head(LanguageModel(config, params, lora)), hidden), cache


class Ours:
    """This library's logits [2, 11, V] of two sequences, computed in two ways, each compiled once a model."""

    mask = MASK

    @staticmethod
    def logits(config, params, lora, mask=ALL, ids=IDS):
        """All at once."""
        return np.asarray(prefilled(config, params, lora, jnp.asarray(ids), jnp.asarray(mask))[0])

    @staticmethod
    def step_logits(config, params, lora, mask=MASK, start=7):
        """A padded prompt up to `start`, then token by token through the cache."""
        prompt = mask & (np.arange(11) < start)
        first, past = prefilled(config, params, lora, jnp.asarray(IDS), jnp.asarray(prompt))
        cache, columns = decoder.empty_cache(config, 2, 11 - start), [first[:, :start]]
        for column in range(11 - start):
            token = jnp.asarray(IDS[:, start + column][:, None])
            logits, cache = stepped(config, params, lora, token, past, cache, jnp.int32(column))
            columns.append(logits)
        return np.asarray(jnp.concatenate(columns, axis=1))


@pytest.fixture(scope="session")
def ours():
    return Ours


@pytest.fixture(scope="session")
def torch_logits():
    """A torch model's logits, left padding given its mask and positions."""

    def run(model, mask=ALL):
        import torch

        positions = np.maximum(np.cumsum(mask, axis=1) - 1, 0)
        with torch.no_grad():
            out = model(
                input_ids=torch.tensor(IDS),
                attention_mask=torch.tensor(mask.astype(int)),
                position_ids=torch.tensor(positions),
                use_cache=False,
            )
        return out.logits.numpy()

    return run
