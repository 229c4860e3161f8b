"""Jobs that count in place of training, studies of them, and the command with these; a process of its own, too.

python fake_studies.py --workdir=DIR     # python -m gfn_jax.reproduce, with `studies` and `write` of here
python -m fake_studies job --steps=3 --workdir=FOLDER     # a job
"""

import json
import os
import pathlib
import signal
import sys
import time
import types

from gfn_jax.studies.study import Column, Job, Row, Study

STEPS = f"--steps={os.environ.get('FAKE_STEPS', '4')}"


def fake_job(name: str, *flags: str, needs: tuple[str, ...] = (), seconds: float = 1.0, **rest) -> Job:
    """Reads the results of what it needs, and counts."""
    reads = tuple(f"--reads={{{need}}}" for need in needs)
    return Job(name, "fake_studies", ("job", *flags, *reads), needs, seconds, **{"gigabytes": 0.1, **rest})


def studies(preset: str, seeds: tuple[int, ...]) -> dict[str, Study]:
    """Two studies that share a base: a tiny one a seed, a mean over it."""
    base = fake_job("base", STEPS)
    runs = tuple(fake_job(f"run/seed-{seed}", STEPS, f"--value={seed}", needs=("base",)) for seed in seeds)
    bad = fake_job("bad", "--fail")
    after = fake_job("after", needs=("bad", "base"))
    return {
        "fine": study("fine", Row("run", runs), others=(base,)),
        "also": study("also", Row("base", (base,))),
        "broken": study("broken", Row("after", (after,)), Row("run", runs), others=(bad,)),
    }


def study(name: str, *rows: Row, others: tuple[Job, ...] = ()) -> Study:
    return Study(name, name, "", "", (Column("count", "count"),), rows, lambda cells: "", others=others)


def write(chosen, results, out: pathlib.Path, facts) -> str:
    """In place of the report: the counts."""
    out.mkdir(parents=True, exist_ok=True)
    text = "\n".join(f"{name} {found.results['policy']['count']}" for name, found in sorted(results.items()))
    (out / "report.md").write_text(text)
    return text


def count(arguments: list[str]) -> int:
    """A job: goes on from what it saved, one number a step; a signal ends it between two."""
    flags: dict[str, list[str]] = {}
    for argument in arguments[1:]:
        name, _, value = argument.removeprefix("--").partition("=")
        flags.setdefault(name, []).append(value)
    folder = pathlib.Path(flags["workdir"][0])
    print("configs are in", pathlib.Path("configs").resolve())
    if "fail" in flags:
        print("this is", "wrong\n", file=sys.stderr)
        return 3
    if "show" in flags:
        print(os.environ[flags["show"][0]])
    asked = []
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda number, frame: asked.append(number))
    values = [json.loads((pathlib.Path(read) / "results.json").read_text()) for read in flags.get("reads", [])]
    total = sum(one["policy"]["count"] for one in values) + int(flags.get("value", ["0"])[0])
    saved = folder / "saved"
    steps = int(flags.get("steps", ["3"])[0])
    done = int(saved.read_text()) if saved.exists() else 0
    with (folder / "steps").open("a") as log:
        for step in range(done, steps):
            if asked:
                return 128 + asked[0]
            time.sleep(0.02)
            log.write(f"{step}\n")
            log.flush()
            replace(saved, str(step + 1))
    if "no_results" not in flags:
        replace(folder / "results.json", json.dumps({"policy": {"count": total + steps}}))
    return 0


def replace(path: pathlib.Path, text: str) -> None:
    partial = path.with_suffix(".new")
    partial.write_text(text)
    os.replace(partial, path)


def module_of(name: str, **values) -> types.ModuleType:
    module = types.ModuleType(name)
    vars(module).update(values)
    return module


def modules(studies=studies) -> dict[str, types.ModuleType]:
    """What the command imports, by name."""
    return {
        "gfn_jax.studies.tables": module_of("gfn_jax.studies.tables", studies=studies, GROUPS={}),
        "gfn_jax.studies.report": module_of("gfn_jax.studies.report", write=write),
    }


if __name__ == "__main__":
    if sys.argv[1:2] == ["job"]:
        sys.exit(count(sys.argv[1:]))
    from gfn_jax import reproduce

    sys.modules.update(modules())
    sys.exit(reproduce.main())
