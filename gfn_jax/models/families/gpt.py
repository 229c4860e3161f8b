"""GPT-2, GPT-J and GPT-NeoX (Pythia): layer norms and ungated MLPs, both with biases."""

from typing import Any

from gfn_jax.models.config import ModelConfig
from gfn_jax.models.families.family import ACTIVATIONS, Family, Settings, activation_name
from gfn_jax.models.families.rope import read_rope, write_rope

_NAMES = {
    "vocab_size": "vocab_size",
    "width": "n_embd",
    "num_layers": "n_layer",
    "num_heads": "n_head",
    "num_kv_heads": "n_head",
    "max_positions": "n_positions",
    "norm_eps": "layer_norm_epsilon",
    "tied_head": "tie_word_embeddings",
}
_CONSTANTS = {"norm": "layer", "gated_mlp": False, "mlp_bias": True}


def _read(settings: Settings) -> dict[str, Any]:
    width, heads = settings.take("n_embd"), settings.take("n_head")
    return {
        "head_dim": width // heads,
        "mlp_width": settings.take("n_inner") or 4 * width,
        "activation": settings.choose("activation_function", ACTIVATIONS),
    }


def _write(config: ModelConfig) -> dict[str, Any]:
    return {"n_inner": config.mlp_width, "activation_function": activation_name(config, "gelu_new")}


GPT2 = Family(
    architecture="GPT2LMHeadModel",
    names=_NAMES,
    constants=_CONSTANTS | {"norm_placement": "pre", "positions": "learned", "qkv_bias": True, "out_bias": True},
    read=_read,
    write=_write,
    modules={
        "tokens": "transformer.wte",
        "positions": "transformer.wpe",
        "attn_norm": "transformer.h.{}.ln_1",
        "q": "transformer.h.{}.attn.c_attn",
        "k": "transformer.h.{}.attn.c_attn",
        "v": "transformer.h.{}.attn.c_attn",
        "o": "transformer.h.{}.attn.c_proj",
        "mlp_norm": "transformer.h.{}.ln_2",
        "up": "transformer.h.{}.mlp.c_fc",
        "down": "transformer.h.{}.mlp.c_proj",
        "final_norm": "transformer.ln_f",
        "head": "lm_head",
    },
    older={"transformer.": ""},
    fused="blocks",
    input_major=True,
    skipped=r"(.*\.)?attn\.(bias|masked_bias)",
)


def _read_gptj(settings: Settings) -> dict[str, Any]:
    fields = _read(settings)
    # transformers' head has a bias either way; here a bias goes with an untied head only.
    if settings.take("tie_word_embeddings"):
        raise settings.refusal("tie_word_embeddings", True)
    if "scale_attn_weights" in settings:  # old files say it; transformers' GPT-J always scales
        settings.choose("scale_attn_weights", {True: True})
    return fields | {"rotary_dim": settings.take("rotary_dim")}


GPTJ = Family(
    architecture="GPTJForCausalLM",
    names=_NAMES,
    constants=_CONSTANTS | {"norm_placement": "parallel", "rotary_interleaved": True, "head_bias": True},
    read=_read_gptj,
    write=lambda config: _write(config) | {"rotary_dim": config.rotary_dim},
    modules={
        "tokens": "transformer.wte",
        "attn_norm": "transformer.h.{}.ln_1",
        "q": "transformer.h.{}.attn.q_proj",
        "k": "transformer.h.{}.attn.k_proj",
        "v": "transformer.h.{}.attn.v_proj",
        "o": "transformer.h.{}.attn.out_proj",
        "up": "transformer.h.{}.mlp.fc_in",
        "down": "transformer.h.{}.mlp.fc_out",
        "final_norm": "transformer.ln_f",
        "head": "lm_head",
    },
    older={"transformer.": ""},
    skipped=r"(.*\.)?attn\.(bias|masked_bias|embed_positions)",
)


def _read_neox(settings: Settings) -> dict[str, Any]:
    rope = dict(settings.take("rope_parameters"))
    theta, scaling = read_rope(settings, {k: v for k, v in rope.items() if k != "partial_rotary_factor"})
    head_dim = settings.take("hidden_size") // settings.take("num_attention_heads")
    bias = settings.take("attention_bias")
    return {
        "head_dim": head_dim,
        "rotary_dim": int(head_dim * rope["partial_rotary_factor"]),
        "rope_theta": theta,
        "rope_scaling": scaling,
        "activation": settings.choose("hidden_act", ACTIVATIONS),
        "norm_placement": "parallel_two" if settings.take("use_parallel_residual") else "pre",
        "qkv_bias": bias,
        "out_bias": bias,
    }


def _write_neox(config: ModelConfig) -> dict[str, Any]:
    partial = {"partial_rotary_factor": config.rotary_dim / config.head_dim}
    return {
        "rope_parameters": write_rope(config.rope_theta, config.rope_scaling) | partial,
        "hidden_act": activation_name(config, "gelu_new"),
        "use_parallel_residual": config.norm_placement == "parallel_two",
        "attention_bias": config.qkv_bias,
    }


GPT_NEOX = Family(
    architecture="GPTNeoXForCausalLM",
    names={
        "vocab_size": "vocab_size",
        "width": "hidden_size",
        "num_layers": "num_hidden_layers",
        "num_heads": "num_attention_heads",
        "num_kv_heads": "num_attention_heads",
        "mlp_width": "intermediate_size",
        "max_positions": "max_position_embeddings",
        "norm_eps": "layer_norm_eps",
        "tied_head": "tie_word_embeddings",
    },
    constants=_CONSTANTS,
    read=_read_neox,
    write=_write_neox,
    modules={
        "tokens": "gpt_neox.embed_in",
        "attn_norm": "gpt_neox.layers.{}.input_layernorm",
        "q": "gpt_neox.layers.{}.attention.query_key_value",
        "k": "gpt_neox.layers.{}.attention.query_key_value",
        "v": "gpt_neox.layers.{}.attention.query_key_value",
        "o": "gpt_neox.layers.{}.attention.dense",
        "mlp_norm": "gpt_neox.layers.{}.post_attention_layernorm",
        "up": "gpt_neox.layers.{}.mlp.dense_h_to_4h",
        "down": "gpt_neox.layers.{}.mlp.dense_4h_to_h",
        "final_norm": "gpt_neox.final_layer_norm",
        "head": "lm_head",
    },
    older={"gpt_neox.": "", "lm_head.": "embed_out."},
    fused="heads",
    skipped=r"(.*\.)?attention\.(bias|masked_bias|rotary_emb\.inv_freq)",
)
