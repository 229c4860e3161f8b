"""How long a run takes to its first step, with no compiled program on disk and with all of them.

    python benchmarks/cold_start.py --configs=arith,rng --repeats=3 --out=benchmarks/results

A run is started as a person would and killed at the line that says how long its first step took. `first step` is that
line's number, compilation included; `in all` is from the command to the line; `CPU` is what the process has computed
until then, all threads together. Linux only. Writes cold_start.md.
"""

import argparse
import os
import pathlib
import platform
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time

import jax

from gfn_jax.evaluation.report import table

ROOT = pathlib.Path(__file__).resolve().parents[1]
FIRST = re.compile(r"first step took ([\d.]+) s")


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--configs", default="arith,rng", help="names of files in configs/, NAME or NAME:PRESET")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=pathlib.Path, default=ROOT / "benchmarks" / "results")
    return parser.parse_args()


def to_first_step(name: str, programs: pathlib.Path) -> tuple[float, float, float]:
    """Seconds of the first step, of the clock from the command to its end, and of CPU time until then.

    Args:
        name: of the config.
        programs: a folder, where compiled programs are kept.

    Raises:
        RuntimeError: the run ended before.
    """
    file, _, preset = name.partition(":")
    config = f"configs/{file}.py" + (f":{preset}" if preset else "")
    with tempfile.TemporaryDirectory() as workdir:
        command = [sys.executable, "-m", "gfn_jax.launch", f"--config={config}", f"--workdir={workdir}/run"]
        own = {"JAX_COMPILATION_CACHE_DIR": str(programs), "PYTHONUNBUFFERED": "1"}
        began = time.monotonic()
        run = subprocess.Popen(
            command, cwd=ROOT, env=os.environ | own, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        assert run.stdout is not None
        lines = []
        for line in run.stdout:
            lines.append(line)
            if found := FIRST.search(line):
                took, spent = time.monotonic() - began, cpu_seconds(run.pid)
                run.send_signal(signal.SIGKILL)
                run.communicate()
                return float(found[1]), took, spent
    raise RuntimeError(f"{name} ended with exit code {run.wait()} before its first step:\n{''.join(lines[-5:])}")


def cpu_seconds(process: int) -> float:
    """User and system time of a process so far."""
    fields = pathlib.Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def main() -> None:
    """Measures every config, cold and then warm, and prints the medians."""
    options = parse()
    rows = []
    for name in options.configs.split(","):
        found: dict[str, list[tuple[float, float, float]]] = {"cold": [], "warm": []}
        for _ in range(options.repeats):
            with tempfile.TemporaryDirectory() as programs:
                for which in found:
                    found[which].append(to_first_step(name, pathlib.Path(programs)))
        for which, runs in found.items():
            medians = [f"{statistics.median(values):.1f}" for values in zip(*runs, strict=True)]
            rows.append([name, which, *medians])
    page = table(["config", "programs", "first step, s", "in all, s", "CPU, s"], rows)
    facts = f"{time.strftime('%Y-%m-%d')}, {platform.machine()}, {os.cpu_count()} vCPUs, jax {jax.__version__}"
    text = f"```\n{page}\n```\n\nMedians of {options.repeats}; {facts}:\n\n    {' '.join(['python', *sys.argv])}\n"
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "cold_start.md").write_text(text)
    print(page)


if __name__ == "__main__":
    main()
