"""Random numbers (paper section 2, Figure 2): make a language model draw from a distribution that is given.

    python -m gfn_jax.launch --config=configs/rng.py          # :tiny, uniform on 0..100, the model the project ships

Presets:

    :tiny      the model that the project ships, on a laptop (default)
    :poisson, :binomial, :geometric
               the same with another distribution on 0..100
    :paper     instruct GPT-J 6B with the released hyperparameters

Any distribution: --config.random_numbers.distribution=poisson --config.random_numbers.mean=20, or a table of weights
in a config of your own, {"7": 1.0, "-3": 2.0}.
"""

import ml_collections

from gfn_jax.runs.defaults import policy_config

PROMPT = "The following is a random integer drawn {} between 0 and 100: "


def get_config(preset: str = "tiny") -> ml_collections.ConfigDict:
    presets = {
        "tiny": tiny,
        "poisson": lambda: drawn("poisson", "from a Poisson distribution"),
        "binomial": lambda: drawn("binomial", "from a binomial distribution"),
        "geometric": lambda: drawn("geometric", "from a geometric distribution"),
        "paper": paper,
    }
    if preset not in presets:
        raise ValueError(f"preset {preset!r} is unknown; configs/rng.py has {', '.join(presets)}")
    return presets[preset]()


def tiny() -> ml_collections.ConfigDict:
    config = policy_config("random_numbers")
    config.steps = 2000
    config.log_every = 100
    config.save_every = 500
    config.model.path = "tiny-numbers"
    config.random_numbers = {
        "prompt": PROMPT.format("uniformly"),
        "stop": ml_collections.config_dict.placeholder(str),  # the end of text
        "distribution": "uniform",
        "low": 0,
        "high": 100,
        "mean": 30.0,  # of the other distributions
        "table": {},
        "penalty": 10.0,
        "min_length": 0,
        "max_length": 5,
        "digits_only": False,
        "copies": 1,
    }
    config.sampling.update({"queries": 1, "samples": 192})
    config.exploration.tempered = 0.5
    config.replay.update(
        {
            "samples": 96,
            "capacity": 128,
            "tolerance": 0.0,  # 56 and 57 are no near-duplicates
            "shares": {"reward": 0.0, "uniform": 1.0},
            # The buffer is filled by the untouched base: a number that the policy has lost is not found again.
            "discovery_steps": 150,
        }
    )
    config.optimizer.update({"learning_rate": 2e-3, "warmup_steps": 20})
    config.evaluation = {"every": 500, "samples": 51_200, "batch": 2048, "seed": 0}
    return config


def drawn(distribution: str, how: str) -> ml_collections.ConfigDict:
    """Another distribution, and the prompt that says so."""
    config = tiny()
    config.random_numbers.update({"distribution": distribution, "prompt": PROMPT.format(how)})
    return config


def paper() -> ml_collections.ConfigDict:
    """The released settings. Discovery, tempering and replay are ours; so is the marginal over spellings in tokens."""
    config = tiny()
    config.steps = 2560  # 2,048 prompts, 10 times, 8 a step
    config.log_every = 10
    config.save_every = 200
    config.model = {"path": "nlpcloud/instruct-gpt-j-fp16", "dtype": "bfloat16", "remat": True, "quantize": "none"}
    config.lora.update({"rank": 512, "alpha": 32.0, "dropout": 0.1, "targets": ("k", "v")})
    # The released minimum of 1 holds for sampling; its loss has the empty text's state, as ours has with 0.
    config.random_numbers.update({"penalty": 8.0, "copies": 8})
    # "Batch size 8, accumulation 8": the prompt stands 8 times in the table, each with 8 samples.
    config.sampling.update({"queries": 8, "samples": 8, "micro_batches": 8})
    config.replay.samples = 4
    config.optimizer.update({"learning_rate": 5e-4, "warmup_steps": 10, "decay": "linear"})
    config.evaluation.update({"every": 200, "samples": 512_000, "batch": 512})
    return config
