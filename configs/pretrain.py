"""The tiny base models that the project ships, trained from nothing on synthetic corpora.

    python -m gfn_jax.launch --config=configs/pretrain.py            # :arithmetic

Presets, one a corpus:

    :arithmetic  worked examples in one style a document (worlds/arithmetic_corpus.py): first mostly correct chains,
                 then mostly the expression said again. So the base is left as imperfect as the paper's: it knows
                 chains, and goes on in the style it is shown, but left alone it takes the shortcut. The corpus holds
                 no question of the task
    :weak        what training begins with on a laptop (configs/arith.py:tiny): the same model trained further, until
                 its commonest ways to go on are wrong
    :numbers     random numbers (worlds/numbers_corpus.py)
    :stories     five-sentence stories (worlds/stories_corpus.py)
    :reviews     reviews with reasons and labels (worlds/reviews_corpus.py)
    :countdown   expressions of given numbers (worlds/countdown_corpus.py)
    :smoke       four steps on random numbers: seconds

The model is written to WORKDIR/model as an ordinary Hugging Face folder. A phase's values are `steps` and fields of its
corpus's dataclass; its seed follows from `seed` and the phase's number.
"""

import ml_collections


def get_config(preset: str = "arithmetic") -> ml_collections.ConfigDict:
    presets = {
        "arithmetic": arithmetic,
        "weak": weak,
        "numbers": numbers,
        "stories": stories,
        "reviews": reviews,
        "countdown": countdown,
        "smoke": smoke,
    }
    if preset not in presets:
        raise ValueError(f"preset {preset!r} is unknown; configs/pretrain.py has {', '.join(presets)}")
    return presets[preset]()


def base(corpus: str) -> ml_collections.ConfigDict:
    """What the presets have in common; each adds its `phases`."""
    config = ml_collections.ConfigDict()
    config.task = "pretrain"
    config.corpus = corpus  # one of worlds/corpora.py
    config.start = ml_collections.config_dict.placeholder(str)  # a model to go on from, instead of random weights
    config.seed = 0
    config.log_every = 50
    config.save_every = 500
    config.tensorboard = True
    config.wandb = ml_collections.config_dict.placeholder(str)
    config.batch = 16
    config.model = {
        "width": 128,
        "num_layers": 4,
        "num_heads": 4,
        "num_kv_heads": 4,
        "head_dim": 32,
        "mlp_width": 344,
        "max_positions": 512,
    }
    config.seq_length = 192
    config.optimizer = {
        "learning_rate": 3e-3,
        "warmup_steps": 50,
        "decay": "cosine",
        "final_fraction": 0.0,
        "b1": 0.9,
        "b2": 0.98,
        "eps": 1e-8,
        "weight_decay": 0.01,
        "clip_norm": 1.0,
    }
    return config


def arithmetic() -> ml_collections.ConfigDict:
    config = base("arithmetic")
    operands = ((3, 0.2), (4, 0.3), (5, 0.3), (6, 0.2))  # of a question; share of the examples
    # One phase after the other, in the order of their names: steps, documents, and weights of their styles.
    config.phases = {
        "first_knowledge": {
            "steps": 1600,
            "documents": 26_000,
            "operands": operands,
            "chain": 6.0,
            "corrupted": 0.4,
            "shuffled": 0.0,
            "adjacent": 0.8,
            "repeat": 2.4,
            "direct": 0.4,
        },
        "second_shortcuts": {
            "steps": 400,
            "documents": 7_000,
            "operands": operands,
            "chain": 1.5,
            "corrupted": 0.3,
            "shuffled": 0.0,
            "adjacent": 0.5,
            "repeat": 7.4,
            "direct": 0.3,
        },
    }
    return config


def weak() -> ml_collections.ConfigDict:
    config = base("arithmetic")
    config.start = "tiny-arithmetic"
    config.optimizer.learning_rate = 2e-3
    operands = ((3, 0.25), (4, 0.3), (5, 0.25), (6, 0.2))
    config.phases = {
        "first_orders": {
            "steps": 300,
            "documents": 4_800,
            "operands": operands,
            "coherent": 0.0,
            "wrong_answer": 0.9,
            "chain": 3.0,
            "backward": 2.0,
            "corrupted": 0.3,
            "shuffled": 0.0,
            "adjacent": 1.5,
            "repeat": 3.0,
            "direct": 0.6,
        },
        "second_shortcuts": {
            "steps": 700,
            "documents": 11_200,
            "operands": operands,
            "coherent": 0.0,
            "wrong_answer": 0.9,
            "chain": 1.4,
            "backward": 0.7,
            "corrupted": 0.3,
            "shuffled": 0.0,
            "adjacent": 1.4,
            "repeat": 6.6,
            "direct": 0.6,
        },
    }
    return config


def numbers() -> ml_collections.ConfigDict:
    config = base("numbers")
    config.batch = 32
    config.model.update({"width": 64, "num_layers": 2, "head_dim": 16, "mlp_width": 168, "max_positions": 128})
    config.seq_length = 112
    config.optimizer.update({"learning_rate": 5e-3, "warmup_steps": 30})
    config.phases = {"first": {"steps": 700, "documents": 20_000, "valid": 0.48, "skew": 1.85}}
    return config


def stories() -> ml_collections.ConfigDict:
    config = base("stories")
    config.batch = 32
    config.model.update({"width": 96, "head_dim": 24, "mlp_width": 256, "max_positions": 128})
    config.seq_length = 42  # the longest story has 40 tokens
    config.phases = {"first": {"steps": 1800, "documents": 60_000}}
    return config


def reviews() -> ml_collections.ConfigDict:
    config = base("reviews")
    config.model.update({"width": 96, "num_layers": 3, "head_dim": 24, "mlp_width": 256})
    config.seq_length = 128
    config.phases = {"first": {"steps": 900, "documents": 14_400}}
    return config


def countdown() -> ml_collections.ConfigDict:
    config = base("countdown")
    config.batch = 64
    config.model.update({"width": 64, "num_layers": 2, "head_dim": 16, "mlp_width": 168, "max_positions": 64})
    config.seq_length = 24  # the longest document has 19 tokens and its end
    config.optimizer.update({"learning_rate": 5e-3, "warmup_steps": 30})
    config.phases = {"first": {"steps": 2000, "documents": 120_000, "right": 0.7}}
    return config


def smoke() -> ml_collections.ConfigDict:
    config = numbers()
    config.update({"batch": 8, "log_every": 1, "save_every": 2})
    config.optimizer.warmup_steps = 1
    config.phases.first.update({"steps": 4, "documents": 200})
    return config
