"""What a base for arithmetic knows before any training: its votes, and its posterior's, by number of operands.

    python benchmarks/arithmetic_base.py --model=tiny-arithmetic-weak

0-shot and k-shot: the vote over 10 samples at temperature 0.1, as in configs/arith.py. Posterior: p(Z | X, Y), by exact
rejection: the base, shown the reward's demonstrations, proposes Z and a proposal is accepted with p(Y | X Z). Its
accuracy is that of its mode, the chain accepted most often; `right` is its mass on right chains, `distinct` how many
different ones were accepted, `entropy` theirs in nats. `prior` is what the same proposals were before Y was known.
"""

import dataclasses
import json
import os
import pathlib
import platform
import sys
import time
from collections import Counter

os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(pathlib.Path.home() / ".cache" / "gfn_jax" / "jax"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.3")

import jax
import numpy as np
from absl import app, flags, logging
from ml_collections import config_flags

from gfn_jax.evaluation.report import table
from gfn_jax.models.checkpoint import load_model
from gfn_jax.models.language_model import LanguageModel
from gfn_jax.policy.constraint import Rules
from gfn_jax.runs.config import read_policy_run
from gfn_jax.runs.tasks import make_evaluator, make_task
from gfn_jax.samplers.sampler import Problem
from gfn_jax.samplers.selection import Rejection, prior
from gfn_jax.tasks.arithmetic import Arithmetic
from gfn_jax.text.loading import load_tokenizer, model_folder
from gfn_jax.types import Tokens

CONFIG = config_flags.DEFINE_config_file("config", "configs/arith.py", "FILE:preset")
MODEL = flags.DEFINE_string("model", None, "The base; that of the config if none is named.")
SPLIT = flags.DEFINE_enum("split", "test", ["validation", "test"], "Whose questions.")
QUESTIONS = flags.DEFINE_integer("questions", 200, "Of each number of operands.")
PROPOSALS = flags.DEFINE_integer("proposals", 256, "Of rejection sampling, a question.")
SEEDS = flags.DEFINE_list("seeds", ["0", "1", "2"], "Of all that is sampled.")
OUTPUT = flags.DEFINE_string("output", None, "Where to write the JSON.")
BATCH = 10  # questions at once


def posterior(task: Arithmetic, base: LanguageModel, rejection: Rejection, split: str, seed: int) -> dict[str, float]:
    """What rejection sampling accepts, in percent but for `distinct` and `entropy`."""
    rules = Rules(task.constraint(training=False), task.environment)
    query = jax.tree.map(lambda x: x[: QUESTIONS.value], task.queries(split))
    # One shape, hence one compilation, for all numbers of operands; nothing reads the policy's prompt.
    query = prior(rejection.reward, dataclasses.replace(query, context=widened(query.context)))
    prepared = jax.jit(rejection.reward.prepare)(base)
    found: dict[str, list[float]] = {name: [] for name in ("mode", "right", "prior", "accepted", "distinct", "entropy")}
    for begin in range(0, QUESTIONS.value, BATCH):
        problem = Problem(prepared, jax.tree.map(lambda x, begin=begin: x[begin : begin + BATCH], query), rules)
        key = jax.random.fold_in(jax.random.key(seed), begin)
        rows = jax.device_get(rejection.compiled(base, problem, PROPOSALS.value, key))
        lengths = rows.rollout.token_mask.sum(1)
        texts = [task.decode(row[:length].tolist()) for row, length in zip(rows.rollout.completion, lengths)]
        accepted = rows.log_weight > -np.inf
        for turn in range(BATCH):
            own = slice(turn * PROPOSALS.value, (turn + 1) * PROPOSALS.value)
            chains = [task.mode(split, begin + turn, text) for text in texts[own]]
            kept = [(text, chain) for text, chain, taken in zip(texts[own], chains, accepted[own]) if taken]
            right = Counter(chain for _, chain in kept if chain is not None)
            share = np.array([*right.values()]) / max(right.total(), 1)
            mode = Counter(text for text, _ in kept).most_common(1)
            found["mode"].append(bool(mode) and task.grade(split, begin + turn, mode[0][0]))
            found["right"].append(right.total() / max(len(kept), 1))
            found["prior"].append(np.mean([chain is not None for chain in chains]))
            found["accepted"].append(len(kept) / PROPOSALS.value)
            found["distinct"].append(len(right))
            found["entropy"].append(-(share * np.log(share)).sum())
    scale = {"distinct": 1.0, "entropy": 1.0}
    return {name: float(scale.get(name, 100.0) * np.mean(values)) for name, values in found.items()}


def widened(tokens: Tokens, columns: int = 32) -> Tokens:
    """Padded further on the left."""
    room = ((0, 0), (columns - tokens.ids.shape[1], 0))
    return jax.tree.map(lambda x: np.pad(np.asarray(x), room), tokens)


def main(_: list[str]) -> None:
    """Measures every seed, prints the table, and writes what there is after every seed."""
    logging.set_verbosity(logging.WARNING)
    config = CONFIG.value.copy_and_resolve_references()
    config.model.path = MODEL.value or config.model.path
    run = read_policy_run(config)
    folder = model_folder(run.model.path)
    base = LanguageModel(*load_model(folder))
    task = make_task(run, load_tokenizer(folder), base.shape)
    evaluator, rejection = make_evaluator(run, task, base.shape), Rejection(task.reward(base.shape))
    shots = run.evaluation.shots
    runs: list[dict] = []
    for seed in map(int, SEEDS.value):
        found: dict = {"seed": seed}
        voting = dataclasses.replace(evaluator, config=dataclasses.replace(evaluator.config, seed=seed))
        for operands in (3, 4, 5):
            split = f"{SPLIT.value}_{operands}"
            found[split] = {
                "0-shot": voting.accuracy(base, split, QUESTIONS.value)[0].voted,
                f"{shots}-shot": voting.accuracy(base, split, QUESTIONS.value, shots)[0].voted,
            }
            exact = posterior(task, base, rejection, split, seed)
            found[split] |= {f"posterior, {name}": value for name, value in exact.items()}
            print(seed, split, {name: round(value, 2) for name, value in found[split].items()}, flush=True)
        runs.append(found)
        if OUTPUT.value:
            facts = {
                "command": " ".join(["python", *sys.argv]),
                "date": time.strftime("%Y-%m-%d"),
                "machine": f"{platform.machine()}, {os.cpu_count()} vCPUs, no accelerator",
                "model": run.model.path,
                "runs": runs,
            }
            pathlib.Path(OUTPUT.value).write_text(json.dumps(facts, indent=1) + "\n")
    splits = [name for name in runs[0] if name != "seed"]
    rows = [
        (name, *(float(np.mean([one[split][name] for one in runs])) for split in splits)) for name in runs[0][splits[0]]
    ]
    print(table(("mean over seeds", *splits), rows))


if __name__ == "__main__":
    app.run(main)
