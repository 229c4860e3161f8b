"""One step's time of every method beside SubTB's, at the same shapes: the shipped arithmetic world, 16 x 8 rows.

    XLA_FLAGS="--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1" python benchmarks/methods.py

Steps of all methods are timed in turn, round after round, so that whatever else the machine does falls on all alike;
the numbers are medians over rounds, as ratios to the GFlowNet's with the preset's SubTB. A method that learns from the
same rows several times (GRPO, PPO) is timed over a whole block and divided by its steps; STaR's steps are those of
`sft`, its rounds sample between them. Writes benchmarks/results/methods.json and .md.
"""

import argparse
import datetime
import json
import pathlib
import platform
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from gfn_jax.commands.train import parse
from gfn_jax.models.checkpoint import load_model
from gfn_jax.models.language_model import LanguageModel
from gfn_jax.runs.config import read_policy_run
from gfn_jax.runs.policy import initial, policy_parts
from gfn_jax.text.loading import load_tokenizer, model_folder
from gfn_jax.training import mesh as meshes
from gfn_jax.training.step import make_step

ROOT = pathlib.Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
BASELINE = "gflownet, subtb + vargrad"
# Name -> (algorithm, terms of the objective or changes of its own section).
METHODS: dict[str, tuple[str, dict[str, Any]]] = {
    BASELINE: ("gflownet", {"subtb": 1.0, "vargrad": 0.5}),  # as the preset has it: SubTB alone is refused here
    "gflownet, tb": ("gflownet", {"tb": 1.0}),
    "gflownet, raptb": ("gflownet", {"raptb": 1.0}),
    "gflownet, flowrl": ("gflownet", {"flowrl": 1.0}),
    "gflownet, contrastive": ("gflownet", {"contrastive": 1.0}),
    "sft": ("sft", {}),
    "weighted_sft": ("weighted_sft", {}),
    "reinforce": ("reinforce", {}),
    "rloo": ("rloo", {}),
    "rloo, kl_to_base": ("rloo", {"target": "kl_to_base"}),
    "grpo": ("grpo", {}),
    "ppo": ("ppo", {}),
    "dpo": ("dpo", {}),
}


def block(name: str, tokenizer: Any, base: LanguageModel) -> tuple[Callable[[], None], int]:
    """A call that takes the steps of a block of the method, compiled; and how many they are."""
    algorithm, own = METHODS[name]
    config = parse(["launch", f"--config={ROOT / 'configs' / 'arith.py'}", f"--config.algorithm={algorithm}"]).config
    with config.unlocked():
        if algorithm == "gflownet":
            config.objective.terms = own
        elif own:
            config[algorithm].update(own)
    run = read_policy_run(config)
    parts = policy_parts(run, base.shape, tokenizer, meshes.abstract_mesh(meshes.MeshConfig(1, 1, 1)))
    constants, state = initial(run, parts, base)
    step = jax.jit(make_step(parts.algorithm, parts.optimizer), donate_argnums=0)
    updates, held = getattr(parts.algorithm, "updates", 1), [state]

    def take() -> None:
        for _ in range(updates):
            held[0], metrics = step(held[0], constants)
        jax.block_until_ready(metrics)

    take()
    return take, updates


def main() -> None:
    """Times, prints and writes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--methods", default="", help="comma-separated beginnings of names, beside the baseline")
    parser.add_argument("--out", default=str(RESULTS / "methods"), help="the files, without .json and .md")
    args = parser.parse_args()
    wanted = args.methods.split(",")
    names = [name for name in METHODS if name == BASELINE or any(map(name.startswith, wanted))]
    folder = model_folder("tiny-arithmetic")
    base, tokenizer = LanguageModel(*load_model(folder)), load_tokenizer(folder)
    blocks = {}
    for name in names:
        print(f"compiling {name}", flush=True)
        blocks[name] = block(name, tokenizer, base)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for _ in range(args.rounds):
        for name, (take, updates) in blocks.items():
            began = time.perf_counter()
            take()
            seconds[name].append((time.perf_counter() - began) / updates)
    medians = {name: float(np.median(values)) for name, values in seconds.items()}
    lines = ["| method | a step, ms | beside SubTB's |", "|---|---|---|"]
    lines += [f"| {name} | {1000 * s:.0f} | {s / medians[BASELINE]:.2f} |" for name, s in medians.items()]
    print("\n".join(lines))
    facts = {
        "command": "python benchmarks/methods.py",
        "date": datetime.date.today().isoformat(),
        "machine": f"{platform.machine()}, {jax.default_backend()}, jax {jax.__version__}",
        "rounds": args.rounds,
        "seconds_a_step": medians,
    }
    out = pathlib.Path(args.out)
    out.with_suffix(".json").write_text(json.dumps(facts, indent=1) + "\n")
    out.with_suffix(".md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
