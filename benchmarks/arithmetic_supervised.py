"""Arithmetic without a GFlowNet: an adapter trained on the same 47 demonstrations; the same test, the same vote.

    python benchmarks/arithmetic_supervised.py --seeds=0,1 --output=benchmarks/results/arithmetic_supervised.json

A row is a demonstration X Z Y, "Question: 6 - 0 - 4 = ? Answer: 6 - 0 = 6, 6 - 4 = 2. The answer is 2.", and its end of
text, all of it learnt by next-token likelihood as in configs/finetune.py: rank 16, alpha 32, no head, 16 rows a step,
no warm-up; here 60 steps at 1.5e-3. Questions, samples, vote and calculator are those of configs/arith.py.
"""

import json
import os
import pathlib
import platform
import sys
import tempfile
import time

os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(pathlib.Path.home() / ".cache" / "gfn_jax" / "jax"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.3")

import numpy as np
from absl import app, flags, logging
from ml_collections import config_flags

from gfn_jax.evaluation.report import table
from gfn_jax.models.checkpoint import load_model
from gfn_jax.models.language_model import LanguageModel
from gfn_jax.runs.config import EMConfig, PolicyRun, read_policy_run
from gfn_jax.runs.em import adapter_run
from gfn_jax.runs.tasks import make_evaluator, make_task
from gfn_jax.tasks.arithmetic import Arithmetic
from gfn_jax.text.documents import document_rows
from gfn_jax.text.loading import load_tokenizer, model_folder
from gfn_jax.training.loop import train
from gfn_jax.types import Tokens

CONFIG = config_flags.DEFINE_config_file("config", "configs/arith.py", "FILE:preset")
SEEDS = flags.DEFINE_list("seeds", ["0", "1"], "Seeds of the adapter.")
RANK = flags.DEFINE_integer("rank", 16, "Of the adapter.")
ALPHA = flags.DEFINE_float("alpha", 32.0, "Of the adapter.")
STEPS = flags.DEFINE_integer("steps", 60, "Of training.")
BATCH = flags.DEFINE_integer("batch", 16, "Demonstrations a step.")
RATE = flags.DEFINE_float("rate", 1.5e-3, "Learning rate.")
OUTPUT = flags.DEFINE_string("output", None, "Where to write the JSON.")


def one(seed: int) -> dict[str, float]:
    """Test accuracy in percent by number of operands with one seed, and the seconds of its training."""
    config = CONFIG.value.copy_and_resolve_references()
    config.seed = seed
    targets = tuple(name for name in config.lora.targets if name != "head")
    config.lora.update({"rank": RANK.value, "alpha": ALPHA.value, "targets": targets})
    run = read_policy_run(config)
    folder = model_folder(run.model.path)
    base = LanguageModel(*load_model(folder))
    task = make_task(run, load_tokenizer(folder), base.shape)
    evaluator = make_evaluator(run, task, base.shape)
    start = time.perf_counter()
    trained = supervised(run, task, base)
    seconds = round(time.perf_counter() - start, 1)
    questions = run.evaluation.test_questions
    found = {name: evaluator.accuracy(trained, split, questions) for name, split in evaluator.test.items()}
    return {"seed": seed, **{name: round(graded.voted, 2) for name, (graded, _) in found.items()}, "seconds": seconds}


def supervised(config: PolicyRun, task: Arithmetic, base: LanguageModel) -> LanguageModel:
    """Next-token training on the demonstrations that seed the GFlowNet's buffer."""
    texts = [example.demonstration.rstrip() for example in task.splits["seeds"]]
    rows = document_rows(texts, task.tokenizer, seq_length=128, end_of_document=True)
    settings = EMConfig(
        rounds=0, samples=1, steps=STEPS.value, batch=BATCH.value, learning_rate=RATE.value, warmup_steps=0
    )
    with tempfile.TemporaryDirectory() as workdir:
        documents = Tokens(rows.ids, rows.mask)
        run = adapter_run(config, settings, pathlib.Path(workdir), base, documents, rows.mask)
        return base.adapted(train(run).state.trainable)


def main(_: list[str]) -> None:
    """Runs all seeds, prints the table, and writes what there is after every seed."""
    logging.set_verbosity(logging.WARNING)
    runs: list[dict[str, float]] = []
    for seed in map(int, SEEDS.value):
        runs.append(one(seed))
        print(runs[-1], flush=True)
        if OUTPUT.value:
            write(runs)
    print(table(("accuracy, %", "mean", "every seed"), [(n, m, str(v)) for n, m, v in summary(runs)]))


def summary(runs: list[dict[str, float]]) -> list[tuple[str, float, list[float]]]:
    """(metric, mean over seeds, the seeds' values)."""
    names = [name for name in runs[0] if name.startswith("accuracy")]
    columns = {name: [run[name] for run in runs] for name in names}
    return [(name, round(float(np.mean(values)), 2), values) for name, values in columns.items()]


def write(runs: list[dict[str, float]]) -> None:
    """Everything, and the means."""
    facts = {
        "command": " ".join(["python", *sys.argv]),
        "date": time.strftime("%Y-%m-%d"),
        "machine": f"{platform.machine()}, {os.cpu_count()} vCPUs, no accelerator",
        "mean": {name: mean for name, mean, _ in summary(runs)},
        "runs": runs,
    }
    pathlib.Path(OUTPUT.value).write_text(json.dumps(facts, indent=1) + "\n")


if __name__ == "__main__":
    app.run(main)
