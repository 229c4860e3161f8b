"""Likelier sentences at the same diversity? The frontier of a policy and of what the base can do by itself.

    python benchmarks/continuation.py --model=PATH_OF_A_HUGGING_FACE_FOLDER --output=RESULTS.json

Prompts are cut, by the paper's rule, out of texts that the model itself writes; some are held out. For each reward
temperature T a policy is trained with R = p_LM(Z stop | X)^(1/T) (Hu et al. 2024, section 4.1) and 8 sentences a
held-out prompt are measured, beside the base's at many token temperatures and nucleus sizes, greedy and beam search.
For every policy the table says what tempered and nucleus sampling reach *at its diversity*, interpolated.
"""

import json
import pathlib
import tempfile
import time
from collections.abc import Mapping, Sequence

import jax
import ml_collections
import numpy as np
from absl import app, flags

from gfn_jax.commands.progress import progress
from gfn_jax.environments import NoTool
from gfn_jax.evaluation.continuation import COLUMNS, ContinuationEvaluator
from gfn_jax.evaluation.report import table
from gfn_jax.evaluation.sampling import sample_completions
from gfn_jax.models.checkpoint import load_model
from gfn_jax.models.language_model import LanguageModel
from gfn_jax.policy.constraint import Rules, make_constraint
from gfn_jax.runs.config import read_policy_run
from gfn_jax.runs.defaults import policy_config
from gfn_jax.runs.policy import build_policy
from gfn_jax.runs.tasks import make_evaluator, make_task
from gfn_jax.text.batching import pad_left
from gfn_jax.text.loading import load_tokenizer
from gfn_jax.training.loop import train

MODEL = flags.DEFINE_string("model", None, "A Hugging Face folder.", required=True)
STORIES = flags.DEFINE_integer("stories", 700, "How many texts the model writes.")
PROMPTS = flags.DEFINE_integer("prompts", 1000, "Most prompts that are cut out of them, the held-out ones included.")
HELD_OUT = flags.DEFINE_integer("held_out", 100, "Prompts that are held out.")
STEPS = flags.DEFINE_integer("steps", 300, "Training steps.")
TEMPERATURES = flags.DEFINE_list("temperatures", ["0.875", "0.8"], "T of the reward at the end; it starts at 1.")
RATE = flags.DEFINE_float("learning_rate", 1e-3, "Of the adapter.")
LENGTH = flags.DEFINE_integer("max_length", 30, "Most tokens of a sentence.")
SEED = flags.DEFINE_integer("seed", 0, "Of everything.")
OUTPUT = flags.DEFINE_string("output", None, "Where to write the JSON.")

TOKEN_TEMPERATURES = (0.95, 0.9, 0.85, 0.8, 0.75, 0.7, 0.6, 0.5)
COMPARED = ("log_likelihood_max", "log_likelihood_mean", "log_likelihood_token", "length", "diversity", "distinct_2")
NUCLEUS = (0.95, 0.9, 0.8, 0.7, 0.6)


def write_texts(folder: str, count: int, seed: int, length: int = 100) -> str:
    """Texts that the model writes from its begin-of-text on, with empty lines between them."""
    base = LanguageModel(*load_model(folder))
    tokenizer = load_tokenizer(folder)
    stop = tokenizer.eos_token_id
    prompt = pad_left([[tokenizer.bos_token_id]], stop)
    rules = Rules(make_constraint(base.shape.vocab_size, stop, length), NoTool())
    (rows,) = sample_completions(base, prompt, rules, jax.random.key(seed), count, 1.0, 1)
    return "\n\n".join(tokenizer.decode(row).strip() for row in rows)


def configure(prompts: str, temperature: float) -> ml_collections.ConfigDict:
    """A run on the model, like configs/continuation.py."""
    config = policy_config("continuation")
    config.seed = SEED.value
    config.steps = config.save_every = STEPS.value
    config.log_every = 20
    config.model.path = MODEL.value
    config.lora.update({"rank": 32, "alpha": 32.0, "targets": ("q", "k", "v", "o", "gate", "up", "down")})
    config.continuation = {
        "prompts": prompts,
        "raw": True,
        "count": PROMPTS.value,
        "validation": HELD_OUT.value,
        "begin_of_text": True,
        "stop": ".",
        "min_length": 1,
        "max_length": LENGTH.value,
        "illegal": ("newlines", "urls", "repeats", "titles"),  # it spells names with capital letters
    }
    config.sampling.update(
        {
            "queries": 8,
            "samples": 8,
            "reward_temperature_start": 1.0,
            "reward_temperature_end": temperature,
            "reward_temperature_steps": max(STEPS.value // 2, 1),
        }
    )
    config.exploration.update({"tempered": 0.5, "temperature_low": 0.5, "temperature_high": 2.0})
    config.replay.update({"samples": 2, "capacity": 25})
    config.objective.terms.vargrad = 1.0
    config.optimizer.update({"learning_rate": RATE.value, "warmup_steps": min(10, STEPS.value - 1)})
    config.evaluation = {
        "every": STEPS.value,
        "prompts": 0,
        "samples": 8,
        "batch": 25,
        "seed": SEED.value,
        "temperatures": TOKEN_TEMPERATURES,
        "nucleus": NUCLEUS,
        "beams": True,
        "diverse_groups": 8,
        "diverse_penalty": 1.0,
        "encoder": None,
    }
    return config


def at_equal(points: Sequence[Mapping[str, float]], key: str, value: float) -> dict[str, float] | None:
    """What a family of samplers reaches where its `key` has a value, between neighbours; None outside its range."""
    points = sorted(points, key=lambda point: point[key])
    xs = [point[key] for point in points]
    if not xs[0] <= value <= xs[-1]:
        return None
    return {other: round(float(np.interp(value, xs, [point[other] for point in points])), 4) for other in COMPARED}


def main(argv: list[str]) -> None:
    """Trains a policy a temperature and prints the comparison."""
    del argv
    seconds: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder, progress():
        texts = pathlib.Path(folder) / "texts.txt"
        texts.write_text(write_texts(MODEL.value, STORIES.value, SEED.value))
        found: dict[str, dict[str, float]] = {}
        for temperature in map(float, TEMPERATURES.value):
            config = read_policy_run(configure(str(texts), temperature))
            run = build_policy(config, pathlib.Path(folder) / f"{temperature:g}")
            base, trained = run.constants.base, train(run)
            policy = base.adapted(trained.state.trainable.lora)
            task = make_task(config, load_tokenizer(MODEL.value), base.shape)
            evaluator: ContinuationEvaluator = make_evaluator(config, task, base.shape)
            query = evaluator.query(0)
            methods = evaluator.methods(policy, query)
            name = f"gflownet_T{temperature:g}"
            seconds[name] = round(trained.seconds, 1)
            found[name] = evaluator.measure(policy, query, methods.pop("policy")()).means
            if "base" not in found:  # log q of what the base wrote: its own, over legal tokens
                found |= {other: evaluator.measure(base, query, write()).means for other, write in methods.items()}
    families = {
        kind: [values for name, values in found.items() if name.startswith(kind) or name == "base"]
        for kind in ("tempered", "nucleus")
    }
    matched = {
        name: {
            f"{kind} at equal {key}": at_equal(points, key, found[name][key])
            for kind, points in families.items()
            for key in ("diversity", "distinct_2")
        }
        for name in seconds
    }
    rows = [(name, *(f"{values[key]:.{digits}f}" for key, _, digits in COLUMNS)) for name, values in found.items()]
    print(table(("", *(title for _, title, _ in COLUMNS)), rows))
    for name, others in matched.items():
        for what, values in others.items():
            print(f"{name}: {what}: {values or 'outside its range'}")
    if OUTPUT.value:
        facts = {
            "seed": SEED.value,
            "steps": STEPS.value,
            "seconds": seconds,
            "embedding": "mean of the base's last hidden states",
            "machine": "2 vCPUs, no accelerator",
            "date": time.strftime("%Y-%m-%d"),
            "held_out_prompts": HELD_OUT.value,
            "methods": found,
            "at_equal": matched,
        }
        pathlib.Path(OUTPUT.value).write_text(json.dumps(facts, indent=1) + "\n")


if __name__ == "__main__":
    app.run(main)
