"""Story infilling: the fourth of five sentences, given the others (paper section 4.2, Table 2).

    python -m gfn_jax.launch --config=configs/infill.py         # :tiny, the model the project ships, on a laptop

Presets:

    :tiny        generated stories whose hidden sentence has a computable posterior (default)
    :supervised  its rival: the generator's own sentences, learnt as they are
    :paper       GPT-2 Large fine-tuned on ROCStories (configs/finetune.py:paper makes it; its folder is
                 --config.model.path), the paper's hyperparameters; --config.data.path is the folder of the CSV
                 files
    :stories     ROCStories on any small model: --config.model.path and --config.data.path
    :smoke       four steps on a handful of generated stories: seconds on any --config.model.path

A judge of the infills: --config.evaluation.judge_url=http://host:port/v1 --config.evaluation.judge_model=NAME.
"""

import ml_collections
from ml_collections.config_dict import placeholder

from gfn_jax.runs.defaults import policy_config, shortened


def get_config(preset: str = "tiny") -> ml_collections.ConfigDict:
    presets = {"tiny": tiny, "supervised": supervised, "paper": paper, "stories": stories, "smoke": smoke}
    if preset not in presets:
        raise ValueError(f"preset {preset!r} is unknown; configs/infill.py has {', '.join(presets)}")
    return presets[preset]()


def tiny() -> ml_collections.ConfigDict:
    config = policy_config("infilling")
    config.steps = 1000
    config.log_every = 20
    config.save_every = 100
    config.model.path = "tiny-stories"
    config.infilling = {
        "train_stories": 3000,
        "validation_stories": 100,
        "test_stories": 100,
        "seed_stories": 3000,
        "min_length": 4,
        "max_length": 8,
        # What cannot happen in these stories is about 12 % of the base's posterior: no part of the target.
        "unlisted": 10.0,
    }
    config.sampling.update(
        {
            "queries": 32,
            "samples": 4,
            "reward_temperature_start": 1.0,
            "reward_temperature_end": 1.0,
        }
    )
    config.exploration.update({"tempered": 0.3, "temperature_high": 1.2, "steps": 400})
    config.replay.update(
        {
            "samples": 2,
            "capacity": 25,
            # Sentences that differ in one word are different events here.
            "tolerance": 0.0,
        }
    )
    # The base makes nothing of the prompt: at first most of the policy's own sentences are far off. So it begins by
    # imitating the buffer, in proportion to R, for half of its steps; after that Huber's loss bounds what is left of
    # such residuals, and VarGrad compares whole sentences (SubTB would also ask for the right probability of stops that
    # are never taken).
    config.objective.imitation_steps = 500
    config.objective.terms.update({"subtb": 0.0, "vargrad": 1.0})
    config.objective.huber = 4.0
    config.optimizer.update({"learning_rate": 5e-3, "b2": 0.99})
    config.evaluation = {
        "every": 100,
        "stories": 40,
        "test_stories": 0,
        "samples": 10,
        "temperature": 1.0,
        "batch": 10,
        "seed": 0,
        "bert_folder": placeholder(str),
        "bert_layer": 1,
        "judge_url": placeholder(str),
        "judge_model": placeholder(str),
        "judge_samples": 1,
    }
    return config


def supervised() -> ml_collections.ConfigDict:
    """On validation 300 steps are better than 700, which learn the sentences by heart."""
    config = tiny()
    config.algorithm = "sft"
    config.steps = 300
    return config


def smoke() -> ml_collections.ConfigDict:
    """Long enough for the generated sentences in any tokenizer."""
    config = shortened(tiny())
    config.infilling.update({"train_stories": 8, "seed_stories": 8, "validation_stories": 4, "test_stories": 4})
    config.infilling.update({"min_length": 1, "max_length": 20})
    config.evaluation.update({"every": 4, "stories": 2, "samples": 2, "batch": 8})
    return config


def paper(path: str = "gpt2-large") -> ml_collections.ConfigDict:
    """Table C.2 of the paper. What it does not say (shares of the behaviours, warm-up, clipping) is ours."""
    config = tiny()
    config.steps = 1000
    config.save_every = 100
    config.model.update({"path": path, "dtype": "bfloat16", "remat": True})
    config.lora.update({"rank": 64, "alpha": 16.0, "dropout": 0.1, "targets": ("q", "k", "v", "o", "up", "down")})
    config.infilling.update(
        {"train_stories": 900, "seed_stories": 900, "min_length": 5, "max_length": 25, "unlisted": 0.0}
    )
    config.sampling.update(
        {
            # "Batch size 64, accumulation 16": 64 samples of one story, 16 times a step.
            "queries": 16,
            "samples": 64,
            "micro_batches": 4,
            "reward_temperature_start": 1.1,
            "reward_temperature_end": 0.85,
            "reward_temperature_steps": 100,
        }
    )
    config.exploration.update({"tempered": 0.667, "temperature_low": 0.5, "temperature_high": 2.0, "steps": None})
    config.replay.update({"samples": 16, "tolerance": 0.25})
    # The paper has SubTB alone, which would not train the tokens before Z may first stop.
    config.objective.terms.update({"subtb": 1.0, "vargrad": 1.0})
    config.objective.update({"huber": None, "imitation_steps": 0})
    config.optimizer.update({"learning_rate": 1e-4, "warmup_steps": 20, "decay": "constant", "b2": 0.999})
    config.evaluation.update({"every": 100, "temperature": 0.8, "judge_samples": 10})
    return config


def stories() -> ml_collections.ConfigDict:
    """ROCStories on a small model in float32, on a laptop."""
    config = tiny()
    config.steps = 150
    config.log_every = 10
    config.infilling.update(
        {"train_stories": 900, "seed_stories": 200, "min_length": 5, "max_length": 25, "unlisted": 0.0}
    )
    config.sampling.update(
        {
            "queries": 4,
            "samples": 8,
            "reward_temperature_start": 1.1,
            "reward_temperature_end": 0.85,
            "reward_temperature_steps": 100,
        }
    )
    config.exploration.steps = None
    config.replay.update({"samples": 4, "tolerance": 0.25})
    config.objective.imitation_steps = 0
    config.objective.terms.update({"subtb": 1.0, "vargrad": 0.5})
    config.optimizer.update({"learning_rate": 1e-3, "b2": 0.999})
    config.evaluation.update({"every": 50, "stories": 20, "samples": 4, "temperature": 0.8})
    return config
