"""Next-token fine-tuning of an existing model on texts: what a task's base may need before its GFlowNet.

    python -m gfn_jax.launch --config=configs/finetune.py --config.data.path=texts.txt --workdir=runs/mine

Presets:

    :tiny     a model that the project ships, on a .txt with one document a line or a .jsonl (default)
    :paper    all of GPT-2 Large on ROCStories (section 4.2 of the paper: 20 epochs, batch 64 x 32, 5e-4), whose CSV
              files lie in --config.data.path
    :smoke    four steps of an adapter on the project's own stories: seconds on any --config.model.path

A document is a row; what is longer than `data.seq_length` is cut. WORKDIR/model is the result as a Hugging Face folder,
to be named as --config.model.path of another run; with --config.mode=lora the adapter alone is in WORKDIR/adapter.
"""

import ml_collections
from ml_collections.config_dict import placeholder


def get_config(preset: str = "tiny") -> ml_collections.ConfigDict:
    presets = {"tiny": tiny, "paper": paper, "smoke": smoke}
    if preset not in presets:
        raise ValueError(f"preset {preset!r} is unknown; configs/finetune.py has {', '.join(presets)}")
    return presets[preset]()


def tiny() -> ml_collections.ConfigDict:
    config = ml_collections.ConfigDict()
    config.task = "finetune"
    config.seed = 0
    config.log_every = 10
    config.save_every = 100
    config.tensorboard = True
    config.wandb = ml_collections.config_dict.placeholder(str)
    config.mode = "full"  # or "lora"
    config.epochs = 3.0
    config.steps = placeholder(int)  # counts instead of the epochs where it is set
    config.batch = 16  # documents a step, in all micro-batches
    config.micro_batches = 1
    config.model = {"path": "tiny-stories", "dtype": "float32", "remat": False, "remat_policy": placeholder(str)}
    config.mesh = {"data": -1, "fsdp": 1, "tensor": 1}
    config.lora = {
        "rank": 16,
        "alpha": 32.0,
        "targets": ("q", "k", "v", "o", "gate", "up", "down"),
        "dropout": 0.0,
        "rank_stabilized": False,
    }
    config.data = {
        "source": "text",
        "path": placeholder(str),
        "field": "text",
        "validation": 0.1,
        "seq_length": 128,
        "end_of_document": True,
    }
    config.optimizer = {
        "learning_rate": 5e-4,
        "warmup_steps": 0,
        "decay": "cosine",
        "final_fraction": 0.0,
        "b1": 0.9,
        "b2": 0.999,
        "eps": 1e-8,
        "weight_decay": 0.0,
        "clip_norm": 1.0,
    }
    config.evaluation = {"every": 100, "batch": 16}  # steps between two measurements on held-out text; documents a pass
    return config


def smoke() -> ml_collections.ConfigDict:
    config = tiny()
    config.update({"mode": "lora", "steps": 4, "batch": 8, "log_every": 1, "save_every": 2})
    config.lora.update({"rank": 4, "targets": ("q", "v")})
    config.data.update({"source": "stories", "seq_length": 32})
    config.evaluation.update({"every": 4, "batch": 8})
    return config


def paper() -> ml_collections.ConfigDict:
    """Epochs, batch and rate are the paper's; schedule, clipping and row length are ours."""
    config = tiny()
    config.epochs = 20.0
    config.batch = 64 * 32
    config.micro_batches = 32
    config.model.update({"path": "gpt2-large", "dtype": "bfloat16", "remat": True})
    config.lora.targets = ("q", "k", "v", "o", "up", "down")
    config.data.update({"source": "rocstories", "seq_length": 128})
    config.optimizer.update({"warmup_steps": 20, "decay": "linear"})
    config.evaluation.update({"every": 50, "batch": 64})
    return config
