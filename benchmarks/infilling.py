"""The tiny infilling run beside supervised fine-tuning on the same stories, and its KL over steps.

    python -m gfn_jax.launch --config=configs/infill.py --workdir=runs/infill
    python benchmarks/infilling.py --workdir=runs/infill --out=benchmarks/results

The supervised baseline learns the authors' fourth sentences from the policy's own prompt by next-token likelihood: the
same adapter, stories, learning rate and number of steps, all rows of a step being different stories. It is measured by
the evaluator of the run. Writes infilling.json and, where matplotlib is installed, infilling.png.
"""

import argparse
import dataclasses
import json
import os
import pathlib
import platform
import shlex
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from gfn_jax.algorithms.language_model import Corpus, LanguageModeling, epoch_order
from gfn_jax.models.checkpoint import load_model
from gfn_jax.models.language_model import LanguageModel
from gfn_jax.runs.config import PolicyRun, read_policy_run
from gfn_jax.runs.tasks import make_evaluator, make_task
from gfn_jax.tasks.infilling import Infilling
from gfn_jax.text.batching import pad_right
from gfn_jax.text.joining import encode_prompt
from gfn_jax.text.loading import load_tokenizer, model_folder
from gfn_jax.training.optimizer import make_optimizer
from gfn_jax.training.step import init_state, make_step


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workdir", type=pathlib.Path, required=True, help="of a finished run of configs/infill.py")
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("benchmarks/results"))
    return parser.parse_args()


def demonstrations(task: Infilling, steps: int, batch: int, key: jax.Array, base: LanguageModel) -> Corpus:
    """The training stories as prompt and completion; only the completion and its stop are learnt."""
    rows, begins = [], []
    for problem in task.splits["train"]:
        completion = task.encode_middle(problem, problem.middle)
        if completion is not None:
            prompt = encode_prompt(task.tokenizer, problem.prompt)
            rows.append([*prompt, *completion, task.stop_id])
            begins.append(len(prompt))
    documents = pad_right(rows, task.pad_id)
    learnt = np.arange(documents.ids.shape[1]) >= np.asarray(begins)[:, None]
    return Corpus(documents, jnp.asarray(learnt), epoch_order(key, len(rows), batch, steps), key, base)


def supervise(config: PolicyRun, task: Infilling, base: LanguageModel) -> tuple[LanguageModel, float]:
    """The base with an adapter trained on the demonstrations, and the seconds it took."""
    key, steps = jax.random.key(config.values.seed), config.values.steps
    batch = config.algorithm.queries * config.algorithm.samples
    corpus = demonstrations(task, steps, batch, jax.random.fold_in(key, 1), base)
    optimizer = make_optimizer(dataclasses.replace(config.optimizer, total_steps=steps))
    algorithm = LanguageModeling(base.shape, config.lora)
    step = jax.jit(make_step(algorithm, optimizer), donate_argnums=0)
    state = init_state(algorithm, optimizer, jax.random.fold_in(key, 0), corpus)
    start = time.perf_counter()
    for number in range(steps):
        state, metrics = step(state, corpus)
        if number % 50 == 0 or number == steps - 1:
            print(f"step {number + 1}  loss {float(metrics['loss']):.3f}", flush=True)
    return algorithm.policy(state.trainable, corpus), time.perf_counter() - start


def curve_of(workdir: pathlib.Path) -> list[dict[str, float]]:
    """What the run validated, by step."""
    lines = (json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines())
    return [{k: line[k] for k in ("step", "kl", "consistency")} for line in lines if line["kind"] == "eval"]


def draw(results: dict, path: pathlib.Path) -> None:
    """KL over steps, the other writers as lines."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(5.5, 3.5))
    curve = results["curve"]
    axes.plot([point["step"] for point in curve], [point["kl"] for point in curve], marker="o", label="GFlowNet")
    lines = {"base": "base, prompted", "base_continuation": "base, told X alone", "supervised": "supervised (end)"}
    for style, (name, label) in zip(("--", ":", "-."), lines.items()):
        axes.axhline(results["methods"][name]["kl"], linestyle=style, color="gray", label=label)
    axes.set(xlabel="step", ylabel="KL(posterior | policy), nats", yscale="log")
    axes.legend()
    figure.tight_layout()
    figure.savefig(path, dpi=150)


def main() -> None:
    """Trains the baseline, measures it, writes both runs down."""
    args = parse()
    looking = {"log_every": 1, "save_every": 1, "tensorboard": False}  # what config.json leaves out
    config = read_policy_run(ConfigDict(looking | json.loads((args.workdir / "config.json").read_text())))
    finished = json.loads((args.workdir / "results.json").read_text())
    folder = model_folder(config.model.path)
    base = LanguageModel(*load_model(folder))
    task = make_task(config, load_tokenizer(folder), base.shape)
    evaluator = make_evaluator(config, task, base.shape)
    trained, seconds = supervise(config, task, base)
    findings = evaluator.report(trained)
    methods = {name: finished[name] for name in ("base", "base_continuation", "posterior")}
    results = {
        "command": shlex.join(["python", *sys.argv]),
        "run": finished["command"],
        "date": time.strftime("%Y-%m-%d"),
        "machine": f"{os.cpu_count()}-core {platform.machine()}, {jax.default_backend()}",
        "seed": config.values.seed,
        "seconds": {"gflownet": finished["seconds"], "supervised": round(seconds, 1)},
        "methods": {**methods, "supervised": findings.methods["metrics"], "gflownet": finished["metrics"]},
        "curve": curve_of(args.workdir),
    }
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "infilling.json").write_text(json.dumps(results, indent=1) + "\n")
    draw(results, args.out / "infilling.png")
    for name, values in results["methods"].items():
        print(f"{name:<18}", {key: round(value, 3) for key, value in values.items()})


if __name__ == "__main__":
    main()
