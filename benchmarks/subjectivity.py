"""Table 3 and D.4 on synthetic reviews: test accuracy with 10, 20 and 50 labels, over seeds.

    python benchmarks/subjectivity.py --output=benchmarks/results/subjectivity.json
    python benchmarks/subjectivity.py --without_seeds --output=benchmarks/results/subjectivity-without-seeds.json

Every seed draws its own labelled and its own test reviews. Per seed and number of labels: the base asked at once
(zero-shot), after some labelled reviews (few-shot) and with its own rationales; an adapter trained on the labels alone
(supervised); the GFlowNet (E-step of configs/subj.py:em), by vote and by one rationale alone; the GFlowNet with the
M-step's answers. `--without_seeds` leaves the buffer empty at the start (the ablation of Table D.4).
"""

import dataclasses
import json
import os
import pathlib
import platform
import sys
import tempfile
import time

os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(pathlib.Path.home() / ".cache" / "gfn_jax" / "jax"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.3")

import jax
import numpy as np
from absl import app, flags, logging
from ml_collections import config_flags

from gfn_jax.evaluation.report import table
from gfn_jax.models.language_model import LanguageModel
from gfn_jax.runs.config import PolicyRun, read_policy_run
from gfn_jax.runs.em import adapter_run, build_em, evaluator_of, joined_rows
from gfn_jax.tasks.subjectivity import Subjectivity
from gfn_jax.training.loop import train
from gfn_jax.worlds.reviews import bayes_label

CONFIG = config_flags.DEFINE_config_file("config", "configs/subj.py:em", "FILE:preset")
LABELS = flags.DEFINE_list("labels", ["10", "20", "50"], "Numbers of labelled reviews.")
SEEDS = flags.DEFINE_integer("seeds", 3, "How many seeds, 0 and up.")
WITHOUT_SEEDS = flags.DEFINE_bool("without_seeds", False, "No inverse prompting.")
OUTPUT = flags.DEFINE_string("output", None, "Where to write the JSON.")
RESUME = flags.DEFINE_bool("resume", False, "Keep the runs that the output holds already (of the same config).")

COLUMNS = {
    "base, zero-shot": ("zero_shot", "accuracy"),
    "base, few-shot": ("few_shot", "accuracy"),
    "base, its own rationales": ("base", "accuracy"),
    "supervised": ("supervised", "accuracy"),
    "GFlowNet": ("e_step_1", "accuracy"),
    "GFlowNet, one rationale (- aggregation)": ("e_step_1", "accuracy_single"),
    "GFlowNet + M-step": ("m_step_1", "accuracy"),
    "GFlowNet + M-step, one rationale": ("m_step_1", "accuracy_single"),
    "best possible": ("bayes", "accuracy"),
}


def one(labels: int, seed: int) -> dict[str, dict[str, float]]:
    """All methods with one seed."""
    config = CONFIG.value.copy_and_resolve_references()
    config.seed = config.subjectivity.data_seed = seed
    config.subjectivity.labels = labels
    config.evaluation.every = config.save_every = config.steps
    if WITHOUT_SEEDS.value:
        config.subjectivity.seed_samples = 0
    with tempfile.TemporaryDirectory() as folder:
        workdir = pathlib.Path(folder)
        described = read_policy_run(config)
        program = build_em(described, described.em, workdir)
        program.complete()
        found = json.loads((workdir / "results.json").read_text())
        found["supervised"] = supervised(described, workdir, program.run.constants.base)
        e_step = json.loads((workdir / "e_step_1" / "results.json").read_text())
    task = evaluator_of(described, None).task
    guesses = [bayes_label(task.review("test", i)) for i in range(len(task.truth("test")))]
    found["bayes"] = {"accuracy": float(100 * np.mean(np.array(guesses) == task.truth("test")))}
    kept = ("zero_shot", "few_shot", "base", "supervised", "e_step_1", "m_step_1", "bayes", "rationales")
    return {name: found[name] for name in kept} | {"training": {"seconds": e_step["seconds"]}}


def supervised(config: PolicyRun, workdir: pathlib.Path, base: LanguageModel) -> dict[str, float]:
    """The M-step's training on "This review is {label}." alone."""
    evaluator = evaluator_of(config, None)
    task: Subjectivity = evaluator.task
    answers = jax.tree.map(lambda x: x[task.truth("train")], task.direct_answers())
    query = dataclasses.replace(task.queries("train"), answer=answers)
    documents, loss_mask = joined_rows(query, [[[]]] * len(task.truth("train")))
    run = adapter_run(config, config.em, workdir / "supervised", base, documents, loss_mask)
    trained = base.adapted(train(run).state.trainable)
    return evaluator.describe_direct(evaluator.direct(trained, "test"), task.truth("test"))


def main(_: list[str]) -> None:
    """Runs all, prints the table, and writes what there is after every run."""
    logging.set_verbosity(logging.WARNING)
    runs = json.loads(pathlib.Path(OUTPUT.value).read_text())["runs"] if RESUME.value else []
    done = {(run["labels"], run["seed"]) for run in runs}
    for labels in map(int, LABELS.value):
        for seed in range(SEEDS.value):
            if (labels, seed) in done:
                continue
            begin = time.perf_counter()
            found = one(labels, seed)
            found["training"]["wall_seconds"] = round(time.perf_counter() - begin, 1)
            runs.append({"labels": labels, "seed": seed, **found})
            shown = {name: found[key][metric] for name, (key, metric) in COLUMNS.items()}
            print(labels, seed, shown, found["training"], flush=True)
            if OUTPUT.value:
                write(runs)
    header = ("test accuracy, %", *(f"{labels} labels" for labels in LABELS.value))
    rows = [(name, *(cell(runs, int(n), *where) for n in LABELS.value)) for name, where in COLUMNS.items()]
    print(table(header, rows))


def cell(runs: list[dict], labels: int, method: str, metric: str) -> str:
    """Mean and standard deviation over seeds."""
    values = [run[method][metric] for run in runs if run["labels"] == labels]
    return f"{np.mean(values):.1f} ± {np.std(values):.1f}"


def write(runs: list[dict]) -> None:
    """Everything, and the summary."""
    labels = sorted({run["labels"] for run in runs})
    facts = {
        "command": " ".join(["python", *sys.argv]),
        "date": time.strftime("%Y-%m-%d"),
        "machine": f"{platform.machine()}, {os.cpu_count()} vCPUs, no accelerator",
        "summary": {name: {n: cell(runs, n, *where) for n in labels} for name, where in COLUMNS.items()},
        "runs": runs,
    }
    pathlib.Path(OUTPUT.value).write_text(json.dumps(facts, indent=1) + "\n")


if __name__ == "__main__":
    app.run(main)
