"""Shapes to time a step at, with random weights.

    python -m gfn_jax.benchmark --config=configs/benchmark.py:a     # continuation: 20 samples of 30 tokens
    python -m gfn_jax.benchmark --config=configs/benchmark.py:b     # arithmetic: 16 samples of 18 tokens, calculator

Presets:

    :a        continuation (default)
    :b        arithmetic
    :tiny     the shape of `configs/arith.py:tiny`, for a quick look

The first two are 6 layers x 384 with GPT-2's vocabulary of 50,257 and LoRA of rank 64; override any field on the
command line.
"""

import ml_collections


def get_config(preset: str = "a") -> ml_collections.ConfigDict:
    presets = {"a": continuation, "b": arithmetic, "tiny": tiny}
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
