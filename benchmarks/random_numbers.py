"""Can a language model draw a random number? The base and the GFlowNet policy on several seeds, exactly measured.

    python benchmarks/random_numbers.py                                  # uniform on 0..100, seeds 0 to 4
    python benchmarks/random_numbers.py --preset poisson --seeds 0

Every run is the command that a person would give, `python -m gfn_jax.launch --config=configs/rng.py:PRESET`; what it
wrote to results.json is collected here. Writes random_numbers.json (or random_numbers-PRESET.json) and, where
matplotlib is installed, the figure: the probability of every number, on a logarithmic scale (Hu et al. 2024, Figure 2).
A run that is in its folder already is read, not repeated.
"""

import argparse
import json
import os
import pathlib
import platform
import resource
import shlex
import subprocess
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parents[1]
SHOWN = ("kl_to_target", "kl_from_target", "total_variation", "valid_mass", "covered", "sampled_kl")


def parse() -> tuple[argparse.Namespace, list[str]]:
    """The command line; flags that are not named here go to the launcher."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--preset", default="tiny")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2, 3, 4])
    parser.add_argument("--out", type=pathlib.Path, default=ROOT / "benchmarks" / "results")
    parser.add_argument("--runs", type=pathlib.Path, default=ROOT / "runs", help="where the runs' folders go")
    return parser.parse_known_args()


def run(preset: str, seed: int, folder: pathlib.Path, flags: list[str]) -> dict:
    """One run's results.json, with what it took: seconds of the clock and of all cores."""
    command = [sys.executable, "-m", "gfn_jax.launch", f"--config={ROOT / 'configs' / 'rng.py'}:{preset}"]
    command += [f"--config.seed={seed}", f"--workdir={folder}", *flags]
    measured = folder / "took.json"
    if not measured.is_file():
        began, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run(command, check=True, cwd=ROOT)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        measured.write_text(json.dumps({"wall_seconds": round(time.perf_counter() - began), "cpu_seconds": round(cpu)}))
    return {**json.loads((folder / "results.json").read_text()), **json.loads(measured.read_text())}


def print_table(runs: list[dict]) -> None:
    """The base, then a line a seed."""
    print(f"\n{'':10}" + "".join(f"{name:>17}" for name in (*SHOWN, "wall, CPU s")))
    for title, values, took in [
        ("base", runs[0]["base"], ""),
        *((f"seed {r['seed']}", r["policy"], f"{r['wall_seconds']}, {r['cpu_seconds']}") for r in runs),
    ]:
        print(f"{title:10}" + "".join(f"{values[name]:17.5g}" for name in SHOWN) + f"{took:>17}")
    print(f"{'floor':10}" + " " * 17 * (len(SHOWN) - 1) + f"{runs[0]['policy']['sampled_noise_floor']:17.5g}")


def plot(runs: list[dict], path: pathlib.Path) -> None:
    """Two panels, base and policy; every seed is drawn."""
    try:
        import matplotlib
    except ImportError:
        print("no figure: matplotlib is not installed (pip install matplotlib)", file=sys.stderr)
        return
    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 2, figsize=(10, 3.4), sharey=True)
    listed = runs[0]["distribution"]
    for axis, method, title in zip(axes, ("base", "policy"), ("base model", "GFlowNet"), strict=True):
        for one in runs if method == "policy" else runs[:1]:
            axis.scatter(one["distribution"]["number"], one["distribution"][method], s=9, alpha=0.7, linewidths=0)
        axis.plot(listed["number"], listed["target"], color="black", linewidth=0.8, label="target")
        found = [one["base" if method == "base" else "policy"] for one in runs]
        valid, worst = min(one["valid_mass"] for one in found), max(one["kl_to_target"] for one in found)
        seeds = f", worst of {len(runs)} seeds" if method == "policy" and len(runs) > 1 else ""
        axis.set_title(f"{title}: {100 * valid:.3f} % valid, KL {worst:.2g}{seeds}", fontsize=10)
        axis.set_xlabel("number")
        axis.set_yscale("log")
        axis.grid(alpha=0.2)
    smallest = min(min(listed["base"]), 1e-5)
    axes[0].set_ylim(max(smallest / 2, 1e-9), 1)
    axes[0].set_ylabel("probability")
    axes[0].legend()
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    print(f"wrote {path}")


def main() -> None:
    """Runs, prints, writes; the record is written after every run, so that a stopped one keeps what it has."""
    args, flags = parse()
    args.out.mkdir(parents=True, exist_ok=True)
    name = "random_numbers" + ("" if args.preset == "tiny" else f"-{args.preset}")
    record = {
        "command": f"python benchmarks/random_numbers.py --preset {args.preset} --seeds "
        + shlex.join([*map(str, args.seeds), *flags]),
        "xla_flags": os.environ.get("XLA_FLAGS", ""),
        "date": time.strftime("%Y-%m-%d"),
        "machine": f"{os.cpu_count()}-core {platform.machine()}",
        "preset": args.preset,
    }
    runs: list[dict] = []
    for seed in args.seeds:
        one = run(args.preset, seed, args.runs / f"rng-{args.preset}-{seed}", flags)
        kept = ("seed", "steps", "seconds", "wall_seconds", "cpu_seconds", "policy", "base", "distribution")
        runs.append({key: one[key] for key in kept})
        # The base and the target are the same for every seed: their numbers are listed once.
        listed = [{**r["distribution"]} for r in runs]
        for later in listed[1:]:
            later.pop("number"), later.pop("target"), later.pop("base")
        compact = [{**r, "distribution": d} for r, d in zip(runs, listed, strict=True)]
        (args.out / f"{name}.json").write_text(json.dumps({**record, "runs": compact}) + "\n")
    print_table(runs)
    print(f"wrote {args.out / f'{name}.json'}")
    plot(runs, args.out / f"{name}.png")


if __name__ == "__main__":
    main()
