"""Llama and what descends from it: RMS norms, rotary positions, gated MLPs, grouped heads."""

from typing import Any

from gfn_jax.models.config import ModelConfig
from gfn_jax.models.families.family import ACTIVATIONS, Family, Settings, activation_name
from gfn_jax.models.families.rope import read_rope, write_rope
from gfn_jax.models.families.window import checked_width, read_window, write_window

NAMES = {
    "vocab_size": "vocab_size",
    "width": "hidden_size",
    "num_layers": "num_hidden_layers",
    "num_heads": "num_attention_heads",
    "num_kv_heads": "num_key_value_heads",
    "mlp_width": "intermediate_size",
    "max_positions": "max_position_embeddings",
    "norm_eps": "rms_norm_eps",
    "tied_head": "tie_word_embeddings",
}
CONSTANTS = {"norm": "rms", "positions": "rotary", "gated_mlp": True}
MODULES = {
    "tokens": "model.embed_tokens",
    "attn_norm": "model.layers.{}.input_layernorm",
    "q": "model.layers.{}.self_attn.q_proj",
    "k": "model.layers.{}.self_attn.k_proj",
    "v": "model.layers.{}.self_attn.v_proj",
    "o": "model.layers.{}.self_attn.o_proj",
    "mlp_norm": "model.layers.{}.post_attention_layernorm",
    "gate": "model.layers.{}.mlp.gate_proj",
    "up": "model.layers.{}.mlp.up_proj",
    "down": "model.layers.{}.mlp.down_proj",
    "final_norm": "model.norm",
    "head": "lm_head",
}
QK_NORMS = {"q_norm": "model.layers.{}.self_attn.q_norm", "k_norm": "model.layers.{}.self_attn.k_norm"}


def read_heads(settings: Settings) -> dict[str, Any]:
    """Head size, activation and rotary settings, which the whole clan spells alike."""
    theta, scaling = read_rope(settings, settings.take("rope_parameters"))
    # Qwen 2 has no head_dim of its own but takes one that is given; elsewhere null means the same.
    given = settings.take("head_dim") if "head_dim" in settings else None
    head_dim = given or settings.take("hidden_size") // settings.take("num_attention_heads")
    return {
        "activation": settings.choose("hidden_act", ACTIVATIONS),
        "rope_theta": theta,
        "rope_scaling": scaling,
        "head_dim": head_dim,
        "rotary_dim": head_dim,
    }


def write_heads(config: ModelConfig) -> dict[str, Any]:
    """What `read_heads` reads."""
    return {
        "hidden_act": activation_name(config),
        "rope_parameters": write_rope(config.rope_theta, config.rope_scaling),
        "head_dim": config.head_dim,
    }


def _read_llama(settings: Settings) -> dict[str, Any]:
    bias = settings.take("attention_bias")
    return {**read_heads(settings), "qkv_bias": bias, "out_bias": bias, "mlp_bias": settings.take("mlp_bias")}


LLAMA = Family(
    architecture="LlamaForCausalLM",
    names=NAMES,
    constants=CONSTANTS,
    read=_read_llama,
    write=lambda c: write_heads(c) | {"attention_bias": c.qkv_bias, "mlp_bias": c.mlp_bias},
    modules=MODULES,
    older={"model.": ""},
)


def _read_mistral(settings: Settings) -> dict[str, Any]:
    width, layers = settings.take("sliding_window"), settings.take("num_hidden_layers")
    if width is None:
        return read_heads(settings)
    return read_heads(settings) | {"local_window": checked_width(settings, width), "local_layers": (True,) * layers}


MISTRAL = Family(
    architecture="MistralForCausalLM",
    names=NAMES,
    constants=CONSTANTS,
    read=_read_mistral,
    write=lambda c: write_heads(c) | {"sliding_window": c.local_window},
    modules=MODULES,
    older={"model.": ""},
)


def _read_qwen(settings: Settings) -> dict[str, Any]:
    settings.drop("use_sliding_window", "max_window_layers")  # transformers makes `layer_types` of them
    return read_heads(settings) | read_window(settings)


def _write_qwen(config: ModelConfig) -> dict[str, Any]:
    local = sum(config.local_layers)
    more = {"use_sliding_window": local > 0, "max_window_layers": config.num_layers - local}
    return write_heads(config) | write_window(config) | more


def _read_qwen3(settings: Settings) -> dict[str, Any]:
    bias = settings.take("attention_bias")
    return _read_qwen(settings) | {"qkv_bias": bias, "out_bias": bias}


QWEN2 = Family(
    architecture="Qwen2ForCausalLM",
    names=NAMES,
    constants=CONSTANTS | {"qkv_bias": True},
    read=_read_qwen,
    write=_write_qwen,
    modules=MODULES,
    older={"model.": ""},
)
QWEN3 = Family(
    architecture="Qwen3ForCausalLM",
    names=NAMES,
    constants=CONSTANTS | {"qk_norm": True},
    read=_read_qwen3,
    write=lambda c: _write_qwen(c) | {"attention_bias": c.qkv_bias},
    modules=MODULES | QK_NORMS,
    older={"model.": ""},
)
