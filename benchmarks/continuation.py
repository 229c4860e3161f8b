"""A continuation policy on any small language model: does it sample likelier sentences than the model itself?

    python benchmarks/continuation.py --model=PATH_OF_A_HUGGING_FACE_FOLDER --steps=150

The next sentence Z after a prompt X is rewarded with R = p_LM(Z stop | X)^(1/T) (Hu et al. 2024, section 4.1). The
prompts are openings that the model itself writes; a quarter of them is held out. Reported on those, for ancestral
samples of the base, tempered samples of the base and samples of the policy: log p_LM(Z stop | X), which tempering by T
should raise, and distinct bigrams, which it should not destroy.
"""

import dataclasses
import itertools
import json
import pathlib
import platform
import time

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags

from gfn_jax.algorithms.gflownet import Constants, GFlowNet, GFlowNetConfig
from gfn_jax.environments import NoTool
from gfn_jax.evaluation.sampling import sample_completions
from gfn_jax.models.checkpoint import load_model
from gfn_jax.models.lora import Lora, LoraConfig
from gfn_jax.objectives import Objective
from gfn_jax.policy.constraint import Constraint, make_constraint
from gfn_jax.policy.teacher import teacher_force
from gfn_jax.rewards import PosteriorReward
from gfn_jax.text.batching import pad_left, pad_right
from gfn_jax.text.loading import load_tokenizer
from gfn_jax.text.tokens import encode_after
from gfn_jax.training.optimizer import OptimizerConfig, make_optimizer
from gfn_jax.training.step import TrainState, make_step
from gfn_jax.types import Query

MODEL = flags.DEFINE_string("model", None, "A Hugging Face folder.", required=True)
OPENING = flags.DEFINE_string("opening", "Once upon a time", "What every prompt begins with.")
PROMPTS = flags.DEFINE_integer("prompts", 64, "How many prompts the model writes.")
STEPS = flags.DEFINE_integer("steps", 150, "Training steps.")
TEMPERATURE = flags.DEFINE_float("temperature", 0.8, "T of the reward at the end; it starts at 1.")
LENGTH = flags.DEFINE_integer("max_length", 30, "Most tokens of a sentence.")
SEED = flags.DEFINE_integer("seed", 0, "Of everything.")
OUTPUT = flags.DEFINE_string("output", None, "Where to write the JSON.")


@dataclasses.dataclass(frozen=True)
class Setting:
    """What sampling and scoring need."""

    algorithm: GFlowNet
    constants: Constants

    def sample(self, query: Query, lora: Lora | None, temperature: float) -> list[list[list[int]]]:
        """Eight sentences a prompt."""
        constants = self.constants
        return sample_completions(
            self.algorithm.model,
            constants.params,
            lora,
            query.prompt,
            constants.constraint,
            constants.environment,
            jax.random.key(SEED.value + 1),
            samples=8,
            temperature=temperature,
            batch=16,
        )

    def measure(self, query: Query, samples: list[list[list[int]]]) -> dict[str, float]:
        """Log-likelihood under the base (nats) and diversity of the samples."""
        constraint = self.constants.constraint
        rows = [row for group in samples for row in group]
        lengths = jnp.asarray([len(row) for row in rows])
        completion = np.zeros((len(rows), constraint.horizon), np.int32)
        for padded, row in zip(completion, rows, strict=True):
            padded[: len(row)] = row
        rollout = teacher_force(jnp.asarray(completion), lengths, constraint, NoTool())
        log_reward = self.algorithm.reward.log_reward(self.constants.params, self.constants.prepared, query, rollout)
        final = np.asarray(log_reward)[np.arange(len(rows)), np.asarray(lengths)].reshape(len(samples), -1)
        distinct = [
            len({pair for row in group for pair in itertools.pairwise(row)})
            / max(sum(max(len(row) - 1, 0) for row in group), 1)
            for group in samples
        ]
        return {
            "mean_log_likelihood": float(final.mean()),
            "max_log_likelihood": float(final.max(1).mean()),
            "mean_length": float(np.mean(np.asarray(lengths))),
            "distinct_bigrams": float(np.mean(distinct)),
        }


def queries_of(tokenizer, texts: list[str], stop_id: int) -> Query:
    """Prompts for policy and reward alike; Y is the stop."""
    rows = [encode_after(tokenizer, "", text) for text in texts]
    rows = [[tokenizer.bos_token_id, *row] if tokenizer.bos_token_id is not None else row for row in rows]
    prompt = pad_left(rows, stop_id)
    answer = pad_right([[stop_id]] * len(rows), stop_id)
    return Query(example_id=jnp.arange(len(rows)), prompt=prompt, context=prompt, answer=answer)


def write_prompts(algorithm, params, constraint: Constraint, tokenizer, stop_id: int) -> list[str]:
    """Openings of one sentence that the model writes."""
    opening = queries_of(tokenizer, [OPENING.value], stop_id)
    (samples,) = sample_completions(
        algorithm.model,
        params,
        None,
        opening.prompt,
        constraint,
        NoTool(),
        jax.random.key(SEED.value),
        samples=2 * PROMPTS.value,
        temperature=0.9,
        batch=1,
    )
    texts = dict.fromkeys(OPENING.value + tokenizer.decode(row) + "." for row in samples)
    return list(texts)[: PROMPTS.value]


def main(argv: list[str]) -> None:
    """Trains and prints the comparison."""
    del argv
    model, params = load_model(MODEL.value)
    tokenizer = load_tokenizer(MODEL.value)
    stop_id = encode_after(tokenizer, "the end", ".")[-1]
    constraint = make_constraint(model.vocab_size, stop_id, LENGTH.value, min_length=3)
    settings = GFlowNetConfig(
        queries=8,
        samples=8,
        replay_samples=2,
        tempered=0.5,
        buffer_capacity=25,
        reward_temperature_start=1.0,
        reward_temperature_end=TEMPERATURE.value,
        reward_temperature_steps=max(STEPS.value // 2, 1),
    )
    objective = Objective((("subtb", 1.0),), "released_mean")
    algorithm = GFlowNet(model, PosteriorReward(model), objective, settings)
    texts = write_prompts(algorithm, params, constraint, tokenizer, stop_id)
    held_out = len(texts) // 4
    training, test = (queries_of(tokenizer, part, stop_id) for part in (texts[held_out:], texts[:held_out]))
    constants = Constants(
        params=params,
        prepared=algorithm.reward.prepare(params),
        queries=training,
        query_log_weight=jnp.zeros(len(texts) - held_out),
        constraint=constraint,
        environment=NoTool(),
        root=jax.random.key(SEED.value + 2),
    )
    lora = LoraConfig(rank=32, alpha=32.0, targets=(*model.projections, "head")[: None if not model.tied_head else -1])
    trainable, buffer = algorithm.init(jax.random.key(SEED.value + 3), lora, len(texts) - held_out, constraint.horizon)
    optimizer = make_optimizer(OptimizerConfig(1e-3, STEPS.value, warmup_steps=min(10, STEPS.value - 1)))
    state = TrainState(jnp.zeros((), jnp.int32), trainable, optimizer.init(trainable), buffer)
    step = jax.jit(make_step(algorithm, optimizer), donate_argnums=0)
    start = time.perf_counter()
    for number in range(STEPS.value):
        state, metrics = step(state, constants)
        if number % 10 == 0 or number == STEPS.value - 1:
            print(f"step {number + 1}  loss {metrics['loss']:.2f}  log R {metrics['log_reward']:.2f}", flush=True)
    seconds = time.perf_counter() - start
    setting = Setting(algorithm, constants)
    adapter = state.trainable.lora
    methods = {
        "base, temperature 1": setting.sample(test, None, 1.0),
        f"base, temperature {TEMPERATURE.value}": setting.sample(test, None, TEMPERATURE.value),
        "GFlowNet, temperature 1": setting.sample(test, adapter, 1.0),
    }
    found = {name: setting.measure(test, samples) for name, samples in methods.items()}
    for name, values in found.items():
        print(name, {key: round(value, 3) for key, value in values.items()})
        print("  ", tokenizer.decode(methods[name][0][0]))
    if OUTPUT.value:
        facts = {
            "seed": SEED.value,
            "steps": STEPS.value,
            "seconds": round(seconds, 1),
            "reward_temperature": TEMPERATURE.value,
            "machine": platform.machine(),
            "date": time.strftime("%Y-%m-%d"),
            "held_out_prompts": held_out,
            "methods": found,
        }
        pathlib.Path(OUTPUT.value).write_text(json.dumps(facts, indent=1) + "\n")


if __name__ == "__main__":
    app.run(main)
