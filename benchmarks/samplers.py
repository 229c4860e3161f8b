"""What sequential Monte Carlo costs beside a rollout and its packed reward.

    python benchmarks/samplers.py                     # shapes a, b of configs/benchmark.py: results/samplers.json, .md
    python benchmarks/samplers.py --shapes=a --rows=64 --repeats=5

One process, one query, random weights. A rollout of N rows and the packed reward of all their prefixes are timed, then
SMC of N rows with the answer's twist: resampled where its weights have become uneven (threshold 0.5), never, and after
every token (1.0, the worst case: the caches are copied every time). The calls take turns; a ratio is of medians.
Completions have at most `length` tokens and may stop anywhere; with GPT-2's vocabulary random weights hardly ever do.
"""

import argparse
import dataclasses
import datetime
import importlib.util
import json
import os
import pathlib
import platform
import statistics
import time
from typing import Any

import jax

from gfn_jax.commands.benchmark_parts import Ready, ready
from gfn_jax.evaluation.report import table
from gfn_jax.policy.rollout import Behavior, rollout
from gfn_jax.samplers.sampler import Problem
from gfn_jax.samplers.smc import SMC
from gfn_jax.samplers.twists import Answer, NoTwist

ROOT = pathlib.Path(__file__).parents[1]
RESULTS = pathlib.Path(__file__).parent / "results"
SAMPLERS = {
    "SMC, threshold 0.5": (Answer(), 0.5, 1),
    "SMC, never resampled": (Answer(), 0.0, 1),
    "SMC, resampled every token": (Answer(), 1.0, 1),
    "SMC, resampled every 4 tokens": (Answer(), 1.0, 4),
    "SMC without a twist, every token": (NoTwist(), 1.0, 1),
}


def preset(name: str) -> Any:
    """A shape of configs/benchmark.py."""
    spec = importlib.util.spec_from_file_location("benchmark_config", ROOT / "configs" / "benchmark.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get_config(name)


def calls_of(given: Ready, rows: int) -> dict[str, Any]:
    """Name -> a compiled call."""
    constants, policy = given.constants, given.policy
    free = dataclasses.replace(constants.rules.constraint, min_length=0)
    problem = Problem(constants.prepared, constants.queries, dataclasses.replace(constants.rules, constraint=free))
    key = jax.random.key(1)

    @jax.jit
    def write(policy: Any, problem: Problem) -> Any:
        behavior = Behavior.at(1.0, rows)
        return rollout(policy, problem.query.prompt, problem.rules, behavior, key)

    @jax.jit
    def reward(policy: Any, problem: Problem, sampled: Any) -> Any:
        return given.reward.log_reward(policy.base, problem.prepared, problem.query, sampled)

    sampled = write(policy, problem)
    calls = {"rollout": lambda: write(policy, problem), "packed reward": lambda: reward(policy, problem, sampled)}
    for name, settings in SAMPLERS.items():
        sampler = SMC(given.reward, *settings)
        run = jax.jit(lambda policy, problem, sampler=sampler: sampler.sample(policy, problem, rows, key))
        calls[name] = lambda run=run: run(policy, problem)
    return calls


def measure(calls: dict[str, Any], repeats: int) -> tuple[dict[str, dict[str, float]], dict[str, float]]:
    """Seconds of each call, on the clock and of the processors, medians of `repeats` in turn; resamplings of each."""
    resampled = {}
    for name, call in calls.items():
        found = jax.block_until_ready(call())
        resampled[name] = float(found.notes["resampled"].mean()) if hasattr(found, "notes") else 0.0
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in calls}
    for _ in range(repeats):
        for name, call in calls.items():
            start = time.perf_counter(), time.process_time()
            jax.block_until_ready(call())
            times[name].append((time.perf_counter() - start[0], time.process_time() - start[1]))
    medians = {
        name: {"seconds": statistics.median(x for x, _ in found), "cpu_seconds": statistics.median(y for _, y in found)}
        for name, found in times.items()
    }
    return medians, resampled


def main() -> None:
    """Measures and writes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", default="a,b")
    parser.add_argument("--rows", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=pathlib.Path, default=RESULTS)
    args = parser.parse_args()
    device = jax.devices()[0]
    clock = "cpu_seconds" if device.platform == "cpu" else "seconds"
    found: dict[str, Any] = {
        "date": datetime.date.today().isoformat(),
        "machine": f"{device.platform} {device.device_kind} {platform.machine()}, {os.cpu_count()} cores",
        "jax": jax.__version__,
        "rows": args.rows,
        "clock": clock,
        "command": f"python benchmarks/samplers.py --shapes={args.shapes} --rows={args.rows} --repeats={args.repeats}",
        "shapes": {},
    }
    lines = []
    for shape in args.shapes.split(","):
        config = preset(shape)
        config.samples = args.rows
        with jax.default_matmul_precision("default"):
            medians, resampled = measure(calls_of(ready(config), args.rows), args.repeats)
        both = medians["rollout"][clock] + medians["packed reward"][clock]
        found["shapes"][shape] = {"parts": medians, "resampled": resampled}
        rows = [
            (name, f"{1e3 * part[clock]:.0f}", f"{part[clock] / both:.2f}", f"{resampled[name]:.0f}")
            for name, part in medians.items()
        ]
        lines += [
            f"{args.rows} rows, shape {shape} ({config.length} tokens, an answer of {config.answer}):",
            "",
            "```",
            table((f"median {clock.replace('_', ' ')}", "ms", "/ (rollout + reward)", "resampled"), rows),
            "```",
            "",
        ]
        print("\n".join(lines[-6:]), flush=True)
    lines += [f"{found['date']}, {found['machine']}, jax {found['jax']}: `{found['command']}`", ""]
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "samplers.json").write_text(json.dumps(found, indent=1) + "\n")
    (args.out / "samplers.md").write_text("\n".join(lines))


if __name__ == "__main__":
    main()
