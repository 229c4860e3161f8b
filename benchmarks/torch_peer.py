"""gfn_jax's step beside the same step in PyTorch: same weights, shapes and device, one run, alternating.

    python benchmarks/torch_peer.py                                # both problems, on one CPU thread each
    python benchmarks/torch_peer.py --problems=continuation --repeats=3
    python benchmarks/torch_peer.py --problems=gpt2xl,gptj --device=cuda

Needs torch, transformers and peft beside gfn_jax (requirements-torch.txt); `make torch-peer` installs them and runs
the first line. Three processes, one a side: gfn_jax; `peer`, what a good engineer would write today; `released`, the
way the paper's code goes (benchmarks/peer/theirs.py says what that is). First all must agree on gfn_jax's completions:
log-probabilities, rewards of all prefixes and loss within 1e-4 of max(1, |value|). Then each computes a step in turn:
medians of `--repeats`, seconds of CPU time (on a GPU, of the clock). Writes torch_peer.json and .md into `--out`.

gfn_jax's step also keeps its completions in a replay buffer, which the other two do not have. Its q, k and v have an
adapter of rank r each; PEFT's GPT-2 has one of rank r for the three.
"""

import argparse
import json
import os
import pathlib
import platform
import shlex
import statistics
import subprocess
import sys
import tempfile
import time

HERE = pathlib.Path(__file__).resolve().parent
PROBLEMS = {"continuation": "a", "arithmetic": "b", "gpt2xl": "gpt2xl", "gptj": "gptj"}  # of configs/benchmark.py
SIDES = ("jax", "peer", "released")
PARTS = ("rollout", "reward", "update", "step")
TOLERANCE = {"float32": 1e-4, "bfloat16": 0.1}  # in bfloat16 each side rounds a number in its own places
ONE_THREAD = {
    "JAX_PLATFORMS": "cpu",
    "XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1",
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
}


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--problems", default="continuation,arithmetic", help=f"{', '.join(PROBLEMS)}, or FILE:preset")
    parser.add_argument("--sides", default=",".join(SIDES), help="who computes, in this order")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--out", type=pathlib.Path, default=HERE / "results")
    return parser.parse_args()


class Side:
    """A process that computes one side (peer/worker.py)."""

    def __init__(self, name: str, config: str, folder: str, device: str):
        self.name = name
        self.process = subprocess.Popen(
            command(name, config, folder, device),
            env=environment(device),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.answer()

    def answer(self) -> dict:
        """What it says next."""
        line = self.process.stdout.readline()
        if not line:
            sys.exit(f"error: the process of {self.name} ended with {self.process.wait()}")
        return json.loads(line)

    def ask(self, **asked) -> dict:
        """Tells it what to do, and waits."""
        self.process.stdin.write(json.dumps(asked) + "\n")
        self.process.stdin.flush()
        return self.answer()

    def end(self) -> None:
        """No more is asked."""
        self.process.stdin.close()
        self.process.wait()


def command(name: str, config: str, folder: str, device: str) -> list[str]:
    """Of a process."""
    return [sys.executable, "-m", "peer.worker", name, config, folder, device]


def environment(device: str) -> dict[str, str]:
    """Of all processes: one thread each on a CPU; on a GPU memory as it is needed, for several share it."""
    paths = os.pathsep.join([str(HERE), str(HERE.parent), os.environ.get("PYTHONPATH", "")])
    own = ONE_THREAD if device == "cpu" else {"JAX_PLATFORMS": "cuda", "XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
    return os.environ | own | {"PYTHONPATH": paths, "TOKENIZERS_PARALLELISM": "false"}


def run(problem: str, args: argparse.Namespace) -> dict:
    """One problem: the check, the timings, the facts."""
    config = f"{HERE.parent}/configs/benchmark.py:{PROBLEMS[problem]}" if problem in PROBLEMS else problem
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run(command("write", config, folder, args.device), env=environment(args.device), check=True)
        dtype = json.loads(pathlib.Path(folder, "problem.json").read_text())["dtype"]
        sides = [Side(name, config, folder, args.device) for name in args.sides.split(",")]
        apart = {side.name: side.ask(do="differences") for side in sides if side.name != "jax"}
        for name, found in apart.items():
            said = ", ".join(f"{quantity} {value:.1e}" for quantity, value in found.items())
            print(f"{problem}: {name} and gfn_jax differ by {said}", flush=True)
            if not max(found.values()) <= TOLERANCE[dtype]:
                sys.exit(f"error: {name} does not compute what gfn_jax does")
        clock = "cpu" if args.device == "cpu" else "wall"
        times: dict[str, list[dict]] = {side.name: [] for side in sides}
        for turn in range(args.repeats + 1):
            for side in sides:
                seconds = side.ask(do="step", clock=clock)
                if turn:  # the first compiles and warms up
                    times[side.name].append(seconds)
        facts = {side.name: side.ask(do="facts") for side in sides}
        for side in sides:
            side.end()
    return {"clock": clock, "differences": apart, "sides": {n: summary(times[n]) | facts[n] for n in times}}


def summary(times: list[dict]) -> dict:
    """Median, minimum and maximum of every part."""
    of = {part: [turn[part] for turn in times] for part in PARTS}
    return {"seconds": {p: {"median": statistics.median(x), "min": min(x), "max": max(x)} for p, x in of.items()}}


def page(results: dict) -> str:
    """A table a problem."""
    lines = []
    for problem, result in results["problems"].items():
        names = {name: "gfn_jax" if name == "jax" else name for name in result["sides"]}
        first = next(iter(names))
        ours = result["sides"][first]["seconds"]["step"]["median"]
        unit = "s of CPU time" if result["clock"] == "cpu" else "s"
        lines += [f"| {problem}, {unit} | {' | '.join(PARTS)} | min to max | x {names[first]} | peak MiB |"]
        lines += ["|---|" + "---|" * (len(PARTS) + 3)]
        for name, side in result["sides"].items():
            seconds, peak = side["seconds"], side["peak_mib"]
            step = seconds["step"]
            cells = [f"{seconds[part]['median']:.2f}" for part in PARTS]
            cells += [f"{step['min']:.2f} to {step['max']:.2f}", f"{step['median'] / ours:.2f}"]
            cells += [f"{peak['device'] or peak['process']:.0f}"]
            lines.append(f"| {names[name]} | {' | '.join(cells)} |")
        lines.append("")
    return "\n".join(lines)


def main() -> None:
    """Runs the problems and writes what was found."""
    args = parse()
    if unknown := [name for name in args.problems.split(",") if name not in PROBLEMS and ":" not in name]:
        sys.exit(f"error: no problem {', '.join(unknown)}; there are {', '.join(PROBLEMS)}, and FILE:preset")
    if unknown := sorted(set(args.sides.split(",")) - set(SIDES)):
        sys.exit(f"error: no side {', '.join(unknown)}; there are {', '.join(SIDES)}")
    results: dict = {
        "command": shlex.join(["python", "benchmarks/torch_peer.py", *sys.argv[1:]]),
        "date": time.strftime("%Y-%m-%d"),
        "machine": f"{os.cpu_count()} {platform.machine()} cores, {args.device}",
        "load": os.getloadavg()[0],
        "problems": {},
    }
    args.out.mkdir(parents=True, exist_ok=True)
    for problem in args.problems.split(","):
        results["problems"][problem] = run(problem, args)
        (args.out / "torch_peer.json").write_text(json.dumps(results, indent=1) + "\n")
        (args.out / "torch_peer.md").write_text(page(results))
    print(page(results))


if __name__ == "__main__":
    main()
