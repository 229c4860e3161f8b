"""The tiny base model that the project ships, trained from nothing on a synthetic corpus.

    python -m gfn_jax.launch --config=configs/pretrain.py

It reads documents of worked examples in one style each (tasks/arithmetic_corpus.py): first mostly correct chains, then
mostly the expression said again. So it is left as imperfect as the paper's base: it knows chains, and goes on in the
style it is shown, but left alone it takes the shortcut. The corpus holds no question of the task. The model is written
to WORKDIR/model as an ordinary Hugging Face folder.
"""

import ml_collections


def get_config() -> ml_collections.ConfigDict:
    config = ml_collections.ConfigDict()
    config.task = "pretrain"
    config.seed = 0
    config.log_every = 50
    config.save_every = 500
    config.tensorboard = False
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
    config.operands = {"3": 0.2, "4": 0.3, "5": 0.3, "6": 0.2}  # of a question; share of the examples
    # One phase after the other, in the order of their names: steps, documents, and weights of their styles.
    config.phases = {
        "1_knowledge": {
            "steps": 1600,
            "documents": 26_000,
            "chain": 6.0,
            "corrupted": 0.4,
            "shuffled": 0.0,
            "adjacent": 0.8,
            "repeat": 2.4,
            "direct": 0.4,
        },
        "2_shortcuts": {
            "steps": 400,
            "documents": 7_000,
            "chain": 1.5,
            "corrupted": 0.3,
            "shuffled": 0.0,
            "adjacent": 0.5,
            "repeat": 7.4,
            "direct": 0.3,
        },
    }
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
