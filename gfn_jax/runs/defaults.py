"""What the config of every policy's training holds. A file in `configs/` starts from here and says what is different.

The sections are the fields of frozen dataclasses, where they are explained: `mesh` MeshConfig, `lora` LoraConfig,
`sampling`, `exploration` and `replay` in algorithms.sampling, `objective` objectives.Objective, `optimizer`
OptimizerConfig, `reward` runs.rewards.RewardConfig, `certificate` runs.certifying.CertificateConfig; and one for each
algorithm, in its file. Of `exploration`, `replay`, `objective` and the algorithms' own a run keeps those that its
`algorithm` reads. A run takes every value from here or from its config file, never from a dataclass: where one has
defaults (LoraConfig, MeshConfig, OptimizerConfig, Objective), they are for use from Python.
"""

from typing import Any

import ml_collections


def policy_config(task: str) -> ml_collections.ConfigDict:
    """The common sections; the caller adds `config[task]` and `config.evaluation`."""
    config = ml_collections.ConfigDict()
    config.task = task
    config.algorithm = "gflownet"
    config.seed = 0
    config.report = "test"
    config.steps = 1000
    config.start = ml_collections.config_dict.placeholder(str)
    config.log_every = 10
    config.save_every = 100
    config.tensorboard = True
    config.wandb = ml_collections.config_dict.placeholder(str)
    config.model = {
        "path": "",
        "dtype": "float32",
        "remat": False,
        "quantize": "none",
        "remat_policy": ml_collections.config_dict.placeholder(str),
        "cache_dtype": ml_collections.config_dict.placeholder(str),
        "attention": "xla",
    }
    config.data = {"path": ml_collections.config_dict.placeholder(str)}
    config.mesh = {"data": -1, "fsdp": 1, "tensor": 1}
    config.lora = {
        "rank": 32,
        "alpha": 32.0,
        "targets": ("q", "k", "v", "o", "gate", "up", "down", "head"),
        "dropout": 0.0,
        "rank_stabilized": False,
    }
    config.sampling = {
        "queries": 16,
        "samples": 8,
        "micro_batches": 1,
        "reward_temperature_start": 1.0,
        "reward_temperature_end": 1.0,
        "reward_temperature_steps": 1,
    }
    config.exploration = {
        "tempered": 0.667,
        "temperature_low": 0.5,
        "temperature_high": 2.0,
        "exploring": 0.0,
        "uniform_mix": 0.0,
        "steps": ml_collections.config_dict.placeholder(int),
    }
    config.replay = {
        "samples": 4,
        "capacity": 50,
        "tolerance": 0.25,
        "shares": {"reward": 1.0, "recency": 0.0, "uniform": 0.0},
        "recency_steps": 10.0,
        "discovery_steps": 0,
        "ess_alarm": 0.0,
    }
    config.objective = {
        "terms": {
            "subtb": 1.0,
            "db": 0.0,
            "full_pair": 0.0,
            "tb": 0.0,
            "flowrl": 0.0,
            "vargrad": 0.0,
            "contrastive": 0.0,
            "raptb": 0.0,
        },
        "normalization": "released_mean",
        "subtb_lambda": 1.0,
        "window": ml_collections.config_dict.placeholder(int),
        "huber": ml_collections.config_dict.placeholder(float),
        "log_z": "learnt",
        "log_z_rate": 100.0,
        "log_z_samples": 64,
        "ratio_clip": 0.2,
        "contrastive_margin": 0.0,
        "imitation_steps": 0,
        "smoothing_steps": 0,
    }
    config.update(method_sections())
    config.optimizer = {
        "learning_rate": 1e-3,
        "warmup_steps": 10,
        "decay": "cosine",
        "final_fraction": 0.0,
        "b1": 0.9,
        "b2": 0.999,
        "eps": 1e-8,
        "weight_decay": 0.0,
        "clip_norm": 1.0,
    }
    config.asynchronous = {"samplers": 0, "staleness": 1, "local": True}
    config.certificate = {"queries": 4, "samples": 128, "proposals": 1024, "exact": 100, "seed": 0}
    config.reward = {
        "task": 1.0,
        "unconditional": 0.0,
        "reverse": 0.0,
        "required": (),
        "forbidden": (),
        "penalty": 20.0,
        "automaton": ml_collections.config_dict.placeholder(str),
        "automaton_weight": 1.0,
        "function": ml_collections.config_dict.placeholder(str),
    }
    return config


def shortened(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
    """What all `:smoke` presets have in common: a few steps of few rows, on any family's projections; learns nothing.

    Args:
        config: of a policy, which is changed; the caller shortens its task and its evaluation.

    Returns:
        The same config.
    """
    config.update({"steps": 4, "log_every": 1, "save_every": 2})
    config.lora.update({"rank": 4, "targets": ("q", "v")})
    config.sampling.update({"queries": 4, "samples": 8, "micro_batches": 1, "reward_temperature_steps": 2})
    config.exploration.steps = None
    config.replay.update({"samples": 4, "capacity": 8, "discovery_steps": 0})
    config.objective.imitation_steps = 0
    config.optimizer.warmup_steps = 1
    config.certificate.update({"queries": 1, "samples": 32, "proposals": 64, "exact": 10})
    return config


def method_sections() -> dict[str, dict[str, Any]]:
    """The algorithms' own sections."""
    sections: dict[str, dict[str, Any]] = {}
    sections["sft"] = {"learn": "completion"}
    sections["weighted_sft"] = {"proposal": "policy", "control_variate": True}
    sections["ctl"] = {**sections["weighted_sft"], "value_rate": 30.0}
    sections["dpo"] = {"beta": 0.1, "labels": "rank", "ipo": False, "round_steps": 0}
    sections["star"] = {
        "rounds": 3,
        "samples": 4,
        "shots": 0,
        "temperature": 1.0,
        "batch": 100,
        "rationalisation": True,
        "learn": "completion",
        "growth": 1.2,
    }
    returns = {
        "target": "posterior",
        "beta": 0.2,
        "kl_target": ml_collections.config_dict.placeholder(float),
        "kl_horizon": 10_000.0,
    }
    sections["reinforce"] = {**returns, "target": "reward"}
    sections["rloo"] = dict(returns)
    sections["grpo"] = {**returns, "epochs": 2, "minibatches": 1, "clip": 0.2}
    sections["ppo"] = {
        **sections["grpo"],
        "epochs": 4,
        "gae_lambda": 0.95,
        "whiten": True,
        "value_clip": 1.0,
        "value_coefficient": 0.1,
        "value_unit": 1.0,
    }
    return sections
