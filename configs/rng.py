"""Random numbers (paper section 2, Figure 2): make a language model draw from a distribution that is given.

    python -m gfn_jax.launch --config=configs/rng.py          # :tiny, uniform on 0..100, the model the project ships

Presets:

    :tiny      the model that the project ships, on a laptop (default)
    :poisson, :binomial, :geometric
               the same with another distribution on 0..100
    :ppo       the same by PPO, as the paper has it: a KL penalty towards the base, which prefers some numbers
    :paper, :paper_ppo
               instruct GPT-J 6B with the released hyperparameters, and its PPO
    :smoke     four steps: seconds on any --config.model.path

Any distribution: --config.random_numbers.distribution=poisson --config.random_numbers.mean=20, or a table of weights
in a config of your own, {"7": 1.0, "-3": 2.0}.
"""

import ml_collections

from gfn_jax.runs.defaults import policy_config, shortened

PROMPT = "The following is a random integer drawn {} between 0 and 100: "


def get_config(preset: str = "tiny") -> ml_collections.ConfigDict:
    presets = {
        "tiny": tiny,
        "poisson": lambda: drawn("poisson", "from a Poisson distribution"),
        "binomial": lambda: drawn("binomial", "from a binomial distribution"),
        "geometric": lambda: drawn("geometric", "from a geometric distribution"),
        "ppo": lambda: by_ppo(tiny(), 1000),
        "paper": paper,
        "paper_ppo": lambda: by_ppo(paper(), 2560),
        "smoke": smoke,
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
        # Nats a token of what is no number. It leaves invalid texts R as well, 71 e^-penalty beside 101 in the main: a
        # floor of 5.8e-7 in KL(p || q), 3.2e-5 at 10.
        "penalty": 14.0,
        "min_length": 0,
        "max_length": 5,
        "digits_only": False,
        "copies": 1,
    }
    config.sampling.update({"queries": 1, "samples": 192})
    # Explored rows show what is invalid and still likely, so that it is unlearnt. Their residuals are of nats where the
    # numbers' are of thousandths, so that the run ends without them: its noise then vanishes with the residuals.
    config.exploration.update({"tempered": 0.5, "temperature_low": 1.0, "temperature_high": 2.0, "steps": 1100})
    # VarGrad alone compares whole numbers; SubTB would also ask for the right share of texts that end too soon.
    config.objective.terms.update({"subtb": 0.0, "vargrad": 1.0})
    config.objective.huber = 4.0
    config.replay.update(
        {
            "samples": 96,
            "capacity": 101,  # every number once, and nothing else
            "tolerance": 0.0,  # 56 and 57 are no near-duplicates
            "shares": {"reward": 0.0, "uniform": 1.0},
            # The buffer is filled by the untouched base: a number that the policy has lost is not found again.
            "discovery_steps": 150,
        }
    )
    config.optimizer.update({"learning_rate": 2e-3, "warmup_steps": 20, "b2": 0.99})
    config.evaluation = {"every": 500, "samples": 51_200, "batch": 2048, "seed": 0}
    return config


def smoke() -> ml_collections.ConfigDict:
    config = shortened(tiny())
    config.sampling.update({"queries": 1, "samples": 32})
    config.replay.samples = 16
    config.evaluation.update({"every": 4, "samples": 256, "batch": 256})
    return config


def drawn(distribution: str, how: str) -> ml_collections.ConfigDict:
    """Another distribution, and the prompt that says so."""
    config = tiny()
    config.random_numbers.update({"distribution": distribution, "prompt": PROMPT.format(how)})
    return config


def by_ppo(config: ml_collections.ConfigDict, steps: int) -> ml_collections.ConfigDict:
    """PPO with trl's kind of target, log R less beta KL to the base: its optimum is the base's own taste in numbers."""
    config.algorithm = "ppo"
    config.steps = steps
    config.ppo.update({"target": "kl_to_base", "beta": 0.2, "kl_target": 6.0, "kl_horizon": 10_000.0})
    config.ppo.update({"epochs": 4, "minibatches": 1, "clip": 0.2, "value_clip": 0.2})
    return config


def paper() -> ml_collections.ConfigDict:
    """The released settings. Discovery, tempering and replay are ours; so is the marginal over spellings in tokens."""
    config = tiny()
    config.steps = 2560  # 2,048 prompts, 10 times, 8 a step
    config.log_every = 10
    config.save_every = 200
    config.model.update({"path": "nlpcloud/instruct-gpt-j-fp16", "dtype": "bfloat16", "remat": True})
    config.lora.update({"rank": 512, "alpha": 32.0, "dropout": 0.1, "targets": ("k", "v")})
    # The released minimum of 1 holds for sampling; its loss has the empty text's state, as ours has with 0.
    config.random_numbers.update({"penalty": 8.0, "copies": 8})
    config.objective.terms.update({"subtb": 1.0, "vargrad": 0.0})
    config.objective.huber = None
    config.exploration.update({"temperature_low": 0.5, "steps": None})
    # "Batch size 8, accumulation 8": the prompt stands 8 times in the table, each with 8 samples.
    config.sampling.update({"queries": 8, "samples": 8, "micro_batches": 8})
    config.replay.update({"samples": 4, "capacity": 128})
    config.optimizer.update({"learning_rate": 5e-4, "warmup_steps": 10, "decay": "linear", "b2": 0.999})
    config.evaluation.update({"every": 200, "samples": 512_000, "batch": 512})
    return config
