"""Gemma 2 and 3 (text): norms before and after each branch, scaled embeddings, alternating windows."""

from typing import Any

from gfn_jax.models.config import ModelConfig
from gfn_jax.models.families.family import ACTIVATIONS, Family, Settings, activation_name
from gfn_jax.models.families.llama import CONSTANTS, MODULES, NAMES, QK_NORMS
from gfn_jax.models.families.rope import read_rope, write_rope
from gfn_jax.models.families.window import GLOBAL, LOCAL, read_window, write_window

_NAMES = NAMES | {"head_dim": "head_dim", "logit_softcap": "final_logit_softcapping"}
_CONSTANTS = CONSTANTS | {"norm_offset": 1.0, "norm_placement": "sandwich"}
_MODULES = MODULES | {
    "attn_post_norm": "model.layers.{}.post_attention_layernorm",
    "mlp_norm": "model.layers.{}.pre_feedforward_layernorm",
    "mlp_post_norm": "model.layers.{}.post_feedforward_layernorm",
}


def _read(settings: Settings) -> dict[str, Any]:
    settings.drop("hidden_act")  # hidden_activation is what counts
    head_dim, scalar = settings.take("head_dim"), settings.take("query_pre_attn_scalar")
    bias = settings.take("attention_bias")
    return {
        "rotary_dim": head_dim,
        "query_scale": None if scalar == head_dim else scalar**-0.5,
        "embed_scale": settings.take("hidden_size") ** 0.5,
        "activation": settings.choose("hidden_activation", ACTIVATIONS),
        "qkv_bias": bias,
        "out_bias": bias,
        **read_window(settings),
    }


def _write(config: ModelConfig) -> dict[str, Any]:
    scalar = config.head_dim if config.query_scale is None else round(config.query_scale**-2)
    return {
        "query_pre_attn_scalar": scalar,
        "hidden_activation": activation_name(config),
        "attention_bias": config.qkv_bias,
        **write_window(config),
    }


def _read_gemma2(settings: Settings) -> dict[str, Any]:
    theta, scaling = read_rope(settings, settings.take("rope_parameters"))
    return _read(settings) | {"rope_theta": theta, "rope_scaling": scaling}


def _read_gemma3(settings: Settings) -> dict[str, Any]:
    settings.choose("attn_logit_softcapping", {None: None})  # transformers' Gemma 3 has the setting and ignores it
    rope = settings.take("rope_parameters")
    theta, scaling = read_rope(settings, rope[GLOBAL])
    local_theta, local_scaling = read_rope(settings, rope[LOCAL])
    if local_scaling is not None:
        raise settings.refusal(f"rope_parameters.{LOCAL}", rope[LOCAL])
    return _read(settings) | {"rope_theta": theta, "rope_scaling": scaling, "local_rope_theta": local_theta}


def _write_gemma3(config: ModelConfig) -> dict[str, Any]:
    local = config.rope_theta if config.local_rope_theta is None else config.local_rope_theta
    rope = {GLOBAL: write_rope(config.rope_theta, config.rope_scaling), LOCAL: write_rope(local, None)}
    return _write(config) | {"rope_parameters": rope}


GEMMA2 = Family(
    architecture="Gemma2ForCausalLM",
    names=_NAMES | {"attention_softcap": "attn_logit_softcapping"},
    constants=_CONSTANTS,
    read=_read_gemma2,
    write=lambda c: _write(c) | {"rope_parameters": write_rope(c.rope_theta, c.rope_scaling)},
    modules=_MODULES,
    older={"model.": ""},
)
GEMMA3 = Family(
    architecture="Gemma3ForCausalLM",
    names=_NAMES,
    constants=_CONSTANTS | {"qk_norm": True},
    read=_read_gemma3,
    write=_write_gemma3,
    modules=_MODULES | QK_NORMS,
    older={"model.": ""},
)
