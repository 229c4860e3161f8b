"""What sampling beside training is worth: wall time at equal quality, by staleness, beside a run that samples itself.

    python benchmarks/asynchronous.py --seeds=0                    # results/asynchronous.json, .md

Each run is `configs/continuation.py:tiny`, one after the other on an otherwise idle machine; asynchronous ones have one
sampler beside the learner, and all of them may use every core. Training time is from the first step's rows to the last
update, without compilation, evaluation and saving. Quality is `balance_spread` (nats) on validation prompts and
KL(q | pi) as the run's certificate has it, with its limits; both are 0 for a perfect sampler.
"""

import argparse
import datetime
import json
import os
import pathlib
import platform
import subprocess
import sys
import tempfile
from typing import Any

from gfn_jax.evaluation.report import table
from gfn_jax.studies.plan import versions

CONFIG = "configs/continuation.py:tiny"
OUT = pathlib.Path(__file__).parent / "results"


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--staleness", type=int, nargs="*", default=[0, 1, 4, 16, 64])
    parser.add_argument("--seeds", type=int, nargs="*", default=[0])
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--out", type=pathlib.Path, default=OUT)
    return parser.parse_args()


def measure(workdir: pathlib.Path, steps: int, seed: int, staleness: int | None) -> dict[str, Any]:
    """One run; without a staleness, one that samples for itself."""
    words = [f"--config={CONFIG}", f"--workdir={workdir}", f"--config.steps={steps}", f"--config.seed={seed}"]
    words += ["--config.certificate.queries=8", f"--config.evaluation.every={steps}", f"--config.save_every={steps}"]
    words += ["--config.evaluation.beams=False", "--config.evaluation.diverse_groups=0", "--config.tensorboard=False"]
    if staleness is not None:
        words += ["--config.asynchronous.samplers=1", f"--config.asynchronous.staleness={staleness}"]
    subprocess.run([sys.executable, "-m", "gfn_jax.launch", *words], check=True, stdout=subprocess.DEVNULL)
    results = json.loads((workdir / "results.json").read_text())
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    steps_of = [row for row in rows if row["kind"] == "train"][steps // 2 :]  # the learning rate is past its warm-up
    evaluated = next(row for row in reversed(rows) if row["kind"] == "eval")
    divergence = results["certificate"]["means"]["kl_q_pi"]

    def mean(name: str) -> float | None:
        return round(sum(row[name] for row in steps_of) / len(steps_of), 4) if name in steps_of[0] else None

    return {
        "seed": seed,
        "staleness": staleness,
        "seconds": results["seconds"],
        "waited": mean("waited"),
        "fresh_ess": mean("fresh_ess"),
        "balance_spread": round(evaluated["balance_spread"], 4),
        **{f"kl_{name}": divergence[name] for name in ("estimate", "low", "high")},
    }


def main() -> None:
    """Runs all, prints the table, writes it down."""
    args = parse()
    runs = []
    with tempfile.TemporaryDirectory() as folder:
        for seed in args.seeds:
            for staleness in (None, *args.staleness):
                runs.append(measure(pathlib.Path(folder) / f"{seed}-{staleness}", args.steps, seed, staleness))
                print(json.dumps(runs[-1]), flush=True)
    header = ["staleness", "seed", "seconds", "waited a step", "fresh ESS", "balance spread", "KL(q | pi)"]
    shown = [
        [
            "samples itself" if run["staleness"] is None else str(run["staleness"]),
            *(str(run[name]) for name in ("seed", "seconds", "waited", "fresh_ess", "balance_spread")),
            f"{run['kl_estimate']} [{run['kl_low']}, {run['kl_high']}]",
        ]
        for run in runs
    ]
    page = table(header, shown)
    print(page)
    facts = {
        "command": " ".join(["python", *sys.argv]),
        "date": datetime.date.today().isoformat(),
        "machine": f"{os.cpu_count()} cores, {platform.machine()}, cpu",
        "versions": versions(),
        "steps": args.steps,
        "runs": runs,
    }
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "asynchronous.json").write_text(json.dumps(facts, indent=1) + "\n")
    (args.out / "asynchronous.md").write_text(f"```\n{page}\n```\n")


if __name__ == "__main__":
    main()
