"""Shapes to time a step at, with random weights.

    python -m gfn_jax.benchmark --config=configs/benchmark.py:a     # continuation: 20 samples of 30 tokens
    python -m gfn_jax.benchmark --config=configs/benchmark.py:b     # arithmetic: 16 samples of 18 tokens, calculator

Presets:

    :a        continuation (default)
    :b        arithmetic
    :tiny     the shape of `configs/arith.py:tiny`, for a quick look
    :gpt2xl   continuation on GPT-2 XL in bfloat16: 8 queries x 8 samples of 30 tokens
    :gptj     arithmetic on GPT-J 6B in bfloat16: 4 queries x 16 samples of 20 tokens, calculator

The first two are 6 layers x 384 with GPT-2's vocabulary of 50,257; the last two are for an accelerator. LoRA is of rank
64 but in `:tiny`. Override any field on the command line.
"""

import ml_collections


def get_config(preset: str = "a") -> ml_collections.ConfigDict:
    presets = {"a": continuation, "b": arithmetic, "tiny": tiny, "gpt2xl": gpt2xl, "gptj": gptj}
    if preset not in presets:
        raise ValueError(f"preset {preset!r} is unknown; configs/benchmark.py has {', '.join(presets)}")
    return presets[preset]()


def continuation() -> ml_collections.ConfigDict:
    config = ml_collections.ConfigDict()
    config.seed = 0
    config.repeats = 5
    config.dtype = "float32"
    config.remat = False
    config.model = {
        "vocab_size": 50257,
        "width": 384,
        "num_layers": 6,
        "num_heads": 6,
        "num_kv_heads": 6,
        "head_dim": 64,
        "mlp_width": 1536,
        "max_positions": 1024,
        "norm": "layer",
        "positions": "learned",
        "activation": "gelu_tanh",
        "gated_mlp": False,
        "qkv_bias": True,
        "out_bias": True,
        "mlp_bias": True,
        "tied_head": True,
    }
    config.lora = {
        "rank": 64,
        "alpha": 16.0,
        "targets": ("q", "k", "v", "o", "up", "down"),
        "dropout": 0.0,
        "rank_stabilized": False,
    }
    config.queries = 1
    config.samples = 20
    config.prompt = 20
    config.context = 20
    config.answer = 1
    config.few_shot = 0
    config.length = 30
    config.calculator = False
    config.capacity = 50
    return config


def arithmetic() -> ml_collections.ConfigDict:
    config = continuation()
    config.samples = 16
    config.prompt = 12
    config.context = 12
    config.answer = 6
    config.few_shot = 105
    config.length = 18
    config.calculator = True
    return config


def tiny() -> ml_collections.ConfigDict:
    config = arithmetic()
    config.model = {
        "vocab_size": 155,
        "width": 128,
        "num_layers": 4,
        "num_heads": 4,
        "num_kv_heads": 4,
        "head_dim": 32,
        "mlp_width": 344,
        "max_positions": 512,
        "rotary_dim": 32,
    }
    config.lora.targets = ("q", "k", "v", "o", "gate", "up", "down", "head")
    config.lora.rank = 32
    config.queries = 16
    config.samples = 4
    config.length = 20
    return config


def gpt2xl() -> ml_collections.ConfigDict:
    config = continuation()
    config.dtype = "bfloat16"
    config.model.update({"width": 1600, "num_layers": 48, "num_heads": 25, "num_kv_heads": 25, "mlp_width": 6400})
    config.queries, config.samples = 8, 8
    return config


def gptj() -> ml_collections.ConfigDict:
    config = arithmetic()
    config.dtype = "bfloat16"
    config.model = {
        "vocab_size": 50400,
        "width": 4096,
        "num_layers": 28,
        "num_heads": 16,
        "num_kv_heads": 16,
        "head_dim": 256,
        "mlp_width": 16384,
        "max_positions": 2048,
        "norm": "layer",
        "norm_placement": "parallel",
        "positions": "rotary",
        "rotary_dim": 64,
        "rotary_interleaved": True,
        "activation": "gelu_tanh",
        "gated_mlp": False,
        "mlp_bias": True,
        "head_bias": True,
        "tied_head": False,
    }
    config.queries, config.samples, config.length = 4, 16, 20
    config.remat = True
    return config
