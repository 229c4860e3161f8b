"""Likely next sentences, without searching for them (Hu et al. 2024, section 4.1, Figure 3).

    python -m gfn_jax.launch --config=configs/continuation.py     # :tiny, the model the project ships, on a laptop

Presets:

    :tiny     openings of the project's own stories, and the story model it ships (default)
    :paper    GPT-2 XL with the paper's hyperparameters; --config.data.path=FILE names your prompts, one a
              line (or raw text, with --config.continuation.raw=True)
    :gpt2, :llama (3.2 1B), :qwen (2.5 0.5B)
              the same on another model
    :smoke    four steps on a handful of prompts: seconds on any --config.model.path

--config.sampling.reward_temperature_end=T is the temperature that is learnt: between 0.8 and 0.95 in the paper.
--config.evaluation.encoder=FOLDER measures diversity with your sentence encoder instead of the base's hidden states.
"""

import ml_collections

from gfn_jax.runs.defaults import policy_config, shortened

UNGATED = ("q", "k", "v", "o", "up", "down")
GATED = (*UNGATED, "gate")  # Llama's kind of MLP has one projection more


def get_config(preset: str = "tiny") -> ml_collections.ConfigDict:
    presets = {
        "tiny": tiny,
        "paper": paper,
        "gpt2": lambda: paper("gpt2"),
        "llama": lambda: paper("meta-llama/Llama-3.2-1B", GATED),
        "qwen": lambda: paper("Qwen/Qwen2.5-0.5B", GATED),
        "smoke": smoke,
    }
    if preset not in presets:
        raise ValueError(f"preset {preset!r} is unknown; configs/continuation.py has {', '.join(presets)}")
    return presets[preset]()


def tiny() -> ml_collections.ConfigDict:
    config = policy_config("continuation")
    config.steps = 200
    config.save_every = 50
    config.model.path = "tiny-stories"
    config.continuation = {
        "raw": False,
        "count": 1000,
        "validation": 50,
        "begin_of_text": False,
        "stop": ".",
        "min_length": 1,
        "max_length": 15,
        "illegal": ("newlines", "urls", "repeats", "initials", "titles"),
    }
    config.sampling.update(
        {
            "queries": 16,
            "samples": 8,
            "reward_temperature_start": 1.0,
            "reward_temperature_end": 0.5,  # few sentences can follow here, nearly alike: 0.8 changes little
            "reward_temperature_steps": 100,
        }
    )
    config.exploration.tempered = 0.5
    config.replay.samples = 2
    config.objective.terms.vargrad = 1.0
    config.optimizer.learning_rate = 2e-3
    config.evaluation = {
        "every": 50,
        "prompts": 0,
        "samples": 8,
        "batch": 25,
        "seed": 0,
        "temperatures": (0.8, 0.5),
        "nucleus": (0.95, 0.9),
        "beams": True,
        "diverse_groups": 8,
        "diverse_penalty": 1.0,
        "encoder": ml_collections.config_dict.placeholder(str),
    }
    return config


def smoke() -> ml_collections.ConfigDict:
    config = shortened(tiny())
    config.continuation.update({"count": 16, "validation": 4, "max_length": 8})
    config.evaluation.update({"every": 4, "prompts": 2, "samples": 2, "batch": 8, "diverse_groups": 2})
    config.evaluation.update({"temperatures": (0.5,), "nucleus": (0.9,)})
    return config


def paper(path: str = "gpt2-xl", targets: tuple[str, ...] = UNGATED) -> ml_collections.ConfigDict:
    """Section 4.1 and appendix B of the paper, and the settings released with it; the number of steps is ours."""
    config = tiny()
    config.steps = 1000
    config.save_every = 100
    config.model.update({"path": path, "dtype": "bfloat16", "remat": True})
    config.lora.update({"rank": 64, "alpha": 16.0, "dropout": 0.1, "targets": targets})
    config.continuation.max_length = 30
    config.sampling.update(
        {
            # 8 samples of one prompt, 32 prompts a step: "n_samples 8, accumulation 32".
            "queries": 32,
            "samples": 8,
            "micro_batches": 4,
            "reward_temperature_start": 1.0,
            "reward_temperature_end": 0.875,
            "reward_temperature_steps": 750,
        }
    )
    config.exploration.update({"tempered": 0.666, "temperature_low": 0.5, "temperature_high": 2.0})
    config.replay.update(
        {
            "samples": 2,  # a quarter
            "capacity": 50,
        }
    )
    config.objective.terms.vargrad = 1.0  # SubTB alone would not train the tokens before Z may first stop
    config.optimizer.update({"learning_rate": 1e-4, "warmup_steps": 20, "decay": "constant"})
    config.evaluation.update({"every": 100, "batch": 10, "temperatures": (0.95, 0.8)})
    return config
