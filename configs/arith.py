"""Arithmetic with a calculator: GFlowNet fine-tuning on 50 demonstrations (paper section 4.4, Table 4).

    python -m gfn_jax.launch --config=configs/arith.py          # :tiny, the model the project ships, on a laptop

Presets: `:tiny` (default).
"""

import ml_collections


def get_config(preset: str = "tiny") -> ml_collections.ConfigDict:
    presets = {"tiny": tiny}
    if preset not in presets:
        raise ValueError(f"preset {preset!r} is unknown; configs/arith.py has {', '.join(presets)}")
    return presets[preset]()


def tiny() -> ml_collections.ConfigDict:
    config = ml_collections.ConfigDict()
    config.task = "arithmetic"
    config.seed = 0
    config.steps = 150
    config.log_every = 10
    config.save_every = 50
    config.tensorboard = False
    config.model = {"path": "tiny-arithmetic", "dtype": "float32", "remat": False}
    config.mesh = {"data": -1, "fsdp": 1, "tensor": 1}
    config.lora = {
        "rank": 32,
        "alpha": 32.0,
        "targets": ("q", "k", "v", "o", "gate", "up", "down", "head"),
        "dropout": 0.0,
        "rank_stabilized": False,
    }
    config.arithmetic = {
        "data_dir": ml_collections.config_dict.placeholder(str),
        "seed_demonstrations": 47,
        "reward_shots": 3,
        "min_length": 5,
        "max_length": 20,
        "eval_max_length": 30,
        "max_abs_value": 60,
        "stop_after_number": True,
    }
    config.seed_share = 0.7
    config.gflownet = {
        "queries": 16,
        "samples": 8,
        "replay_samples": 4,
        "micro_batches": 1,
        "tempered": 0.667,
        "temperature_low": 0.5,
        "temperature_high": 1.3,
        "exploring": 0.0,
        "uniform_mix": 0.0,
        "buffer_capacity": 50,
        "buffer_tolerance": 0.25,
        "replay_mode": "reward",
        "discovery_steps": 0,
        "reward_temperature_start": 1.1,
        "reward_temperature_end": 0.9,
        "reward_temperature_steps": 45,
        "log_z_rate": 100.0,
    }
    config.objective = {
        "terms": {"subtb": 1.0, "vargrad": 0.5},
        "normalization": "released_mean",
        "subtb_lambda": 1.0,
        "huber": 4.0,
    }
    config.optimizer = {
        "learning_rate": 1.5e-3,
        "warmup_steps": 10,
        "decay": "cosine",
        "final_fraction": 0.0,
        "b1": 0.9,
        "b2": 0.999,
        "eps": 1e-8,
        "weight_decay": 0.0,
        "clip_norm": 1.0,
    }
    config.evaluation = {
        "every": 50,
        "questions": 100,
        "samples": 10,
        "temperature": 0.1,
        "batch": 100,
        "test_questions": 0,
        "shots": 3,
        "seed": 0,
    }
    return config
