"""Objective or subjective, and why: GFlowNet fine-tuning on 10, 20 or 50 labels (paper section 4.3, Tables 3 and D.4).

    python -m gfn_jax.launch --config=configs/subj.py                       # :tiny, synthetic reviews, on a laptop
    python -m gfn_jax.launch --config=configs/subj.py:em                    # GFlowNet, then the M-step on its samples
    python -m gfn_jax.launch --config=configs/subj.py --config.subjectivity.labels=10
    python -m gfn_jax.launch --config=configs/subj.py --config.subjectivity.seed_samples=0     # - seed buffer
    python -m gfn_jax.launch --config=configs/subj.py --config.evaluation.samples=1            # - aggregation

Presets:

    :tiny     synthetic reviews and the model that the project ships for them (default); 50 labels
    :em       the same, then `em.rounds` rounds of expectation maximisation
    :paper    instruct GPT-J 6B and SUBJ with the paper's hyperparameters; --config.data.path=FOLDER names
              the original files, --config.em.rounds=1 adds the M-step
    :smoke    four steps on a handful of synthetic reviews: seconds on any --config.model.path
"""

import ml_collections

from gfn_jax.runs.defaults import policy_config, shortened


def get_config(preset: str = "tiny") -> ml_collections.ConfigDict:
    presets = {"tiny": tiny, "em": em, "paper": paper, "smoke": smoke}
    if preset not in presets:
        raise ValueError(f"preset {preset!r} is unknown; configs/subj.py has {', '.join(presets)}")
    return presets[preset]()


def tiny() -> ml_collections.ConfigDict:
    config = policy_config("subjectivity")
    config.steps = 120
    config.save_every = 60
    config.model.path = "tiny-reviews"
    config.subjectivity = {
        "labels": 50,
        "data_seed": 0,
        "validation": 100,
        "test": 500,
        "min_length": 1,
        "max_length": 5,
        "forbidden": ("objective", "subjective"),
        "seed_samples": 4,
        "wrong_label_penalty": 0.0,
        "reward_adapter": ml_collections.config_dict.placeholder(str),
    }
    config.lora.rank = 16
    config.lora.alpha = 16.0
    config.sampling.update(
        {
            "queries": 8,
            "samples": 16,
            "reward_temperature_start": 1.2,
            "reward_temperature_end": 1.0,
            "reward_temperature_steps": 50,
        }
    )
    config.replay.samples = 4
    config.objective.terms.vargrad = 1.0
    config.optimizer.learning_rate = 3e-3
    config.em = {"rounds": 0, "samples": 16, "steps": 120, "batch": 32, "learning_rate": 3e-3, "warmup_steps": 10}
    config.evaluation = {
        "every": 60,
        "reviews": 100,
        "samples": 10,
        "temperature": 1.0,
        "batch": 100,
        "shots": 4,
        "frequent": 7,
        "seed": 0,
    }
    return config


def em() -> ml_collections.ConfigDict:
    config = tiny()
    config.em.rounds = 1
    return config


def smoke() -> ml_collections.ConfigDict:
    config = shortened(tiny())
    config.subjectivity.update({"labels": 8, "validation": 4, "test": 4, "seed_samples": 1})
    config.em.update({"samples": 2, "steps": 4, "batch": 8, "warmup_steps": 1})
    config.evaluation.update({"every": 4, "reviews": 4, "samples": 2, "batch": 8, "shots": 2, "frequent": 2})
    return config


def paper() -> ml_collections.ConfigDict:
    """Table D.3 of the paper and section 4.3's data; shares of the behaviours, clipping and the M-step's are ours."""
    config = tiny()
    config.steps = 1000
    config.save_every = 100
    config.model.update({"path": "nlpcloud/instruct-gpt-j-fp16", "dtype": "bfloat16", "remat": True})
    config.subjectivity.update({"validation": 200, "test": 2000, "forbidden": ()})
    config.lora.update({"rank": 256, "alpha": 16.0, "targets": ("q", "k", "v", "o", "up", "down")})
    config.sampling.update(
        {
            "queries": 8,
            "samples": 64,
            "micro_batches": 2,
            "reward_temperature_start": 1.2,
            "reward_temperature_end": 1.0,
            "reward_temperature_steps": 150,
        }
    )
    config.exploration.update({"temperature_low": 0.5, "temperature_high": 2.0})
    config.replay.samples = 16
    config.objective.terms.vargrad = 1.0  # SubTB alone would not train the tokens before Z may first stop
    config.optimizer.update({"learning_rate": 5e-4, "warmup_steps": 200, "decay": "constant"})
    config.em.update({"samples": 32, "steps": 100, "batch": 32, "learning_rate": 1e-4, "warmup_steps": 10})
    config.evaluation.update({"every": 100, "reviews": 200, "batch": 20})
    return config
