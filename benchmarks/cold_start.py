"""How long a run takes to its first step, with no compiled program on disk and with all of them.

    python benchmarks/cold_start.py --configs=arith,rng --repeats=3 --out=benchmarks/results

A run is started as a person would and killed at the line that says how long its first step took. `first step` is that
line's number, compilation included; `in all` is from the command to the line; `CPU` is what the process has computed
until then, all threads together. `step's program` is what XLA alone takes to compile the step, CPU seconds, in a
process of its own that has built the run and traced the step before. Linux only. Writes cold_start.md.
"""

import argparse
import importlib.metadata
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
from collections.abc import Sequence

from gfn_jax.commands import cli
from gfn_jax.evaluation.report import table

ROOT = pathlib.Path(__file__).resolve().parents[1]
FIRST = re.compile(r"first step took ([\d.]+) s")


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--configs", default="arith,rng", help="names of files in configs/, NAME or NAME:PRESET")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=pathlib.Path, default=ROOT / "benchmarks" / "results")
    parser.add_argument("--compile", help="compile the step of this one config, and say how long it took")
    return parser.parse_args()


def to_first_step(name: str, programs: pathlib.Path) -> tuple[float, float, float]:
    """Seconds of the first step, of the clock from the command to its end, and of CPU time until then.

    Args:
        name: of the config.
        programs: a folder, where compiled programs are kept.

    Raises:
        RuntimeError: the run ended before.
    """
    with tempfile.TemporaryDirectory() as workdir:
        command = [sys.executable, "-m", "gfn_jax.launch", f"--config={config_of(name)}", f"--workdir={workdir}/run"]
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


def config_of(name: str) -> str:
    """The config that is meant by NAME or NAME:PRESET."""
    file, _, preset = name.partition(":")
    return f"configs/{file}.py" + (f":{preset}" if preset else "")


def compile_step(name: str) -> float:
    """CPU seconds, all threads together, that XLA takes to compile a config's step in this process, as commands do."""
    cli.configure_jax(keep=False)
    from gfn_jax.commands import train
    from gfn_jax.runs.build import build

    with tempfile.TemporaryDirectory() as workdir:
        values = train.parse([sys.argv[0], f"--config={config_of(name)}", f"--workdir={workdir}/run"])
        run = build(values.config, pathlib.Path(values.workdir)).run
        lowered = run.step_fn.lower(run.state, run.constants)
        began = time.process_time()
        lowered.compile()
        return time.process_time() - began


def compiled_in(name: str) -> float:
    """`compile_step` in a process of its own, which finds nothing compiled."""
    command = [sys.executable, __file__, f"--compile={name}"]
    own = {key: value for key, value in os.environ.items() if key != "JAX_COMPILATION_CACHE_DIR"}
    return float(subprocess.run(command, cwd=ROOT, env=own, capture_output=True, text=True, check=True).stdout)


def cpu_seconds(process: int) -> float:
    """User and system time of a process so far."""
    fields = pathlib.Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def middle(values: Sequence[float]) -> str:
    """The median, as it is shown."""
    return f"{statistics.median(values):.1f}"


def main() -> None:
    """Measures every config, cold and then warm, and prints the medians."""
    options = parse()
    if options.compile:
        print(compile_step(options.compile))
        return
    rows = []
    for name in options.configs.split(","):
        found: dict[str, list[tuple[float, float, float]]] = {"cold": [], "warm": []}
        for _ in range(options.repeats):
            with tempfile.TemporaryDirectory() as programs:
                for which in found:
                    found[which].append(to_first_step(name, pathlib.Path(programs)))
        step = {"cold": middle([compiled_in(name) for _ in range(options.repeats)]), "warm": ""}
        for which, runs in found.items():
            rows.append([name, which, *map(middle, zip(*runs, strict=True)), step[which]])
    page = table(["config", "programs", "first step, s", "in all, s", "CPU, s", "step's program, s"], rows)
    versions = f"jax {importlib.metadata.version('jax')}"
    facts = f"{time.strftime('%Y-%m-%d')}, {platform.machine()}, {os.cpu_count()} vCPUs, {versions}"
    text = f"```\n{page}\n```\n\nMedians of {options.repeats}; {facts}:\n\n    {' '.join(['python', *sys.argv])}\n"
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "cold_start.md").write_text(text)
    print(page)


if __name__ == "__main__":
    main()
