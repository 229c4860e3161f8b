"""The commands on eight (virtual) devices, of one process or of two: they run as they are, without a warning, and learn
what one learns."""

import functools
import json
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest

ROOT = pathlib.Path(__file__).parents[2]
CONFIGS = ROOT / "configs"
LOCAL = [str(ROOT / "launch" / "local.py"), "--processes=2", "--devices=4", "--"]
STEPS = ["--config.steps=5", "--config.optimizer.warmup_steps=1"]
RUNS = {
    "rng": [
        f"--config={CONFIGS}/rng.py",
        "--config.random_numbers.high=9",
        "--config.random_numbers.max_length=2",
        "--config.sampling.samples=16",
        "--config.replay.samples=8",
        "--config.replay.capacity=4",
        "--config.replay.discovery_steps=0",
        "--config.certificate.queries=0",
        "--config.evaluation.samples=60",
        "--config.evaluation.batch=30",
    ],
    "arith": [
        f"--config={CONFIGS}/arith.py:tiny",
        "--config.objective.imitation_steps=0",
        "--config.evaluation.questions=3",
        "--config.evaluation.test_questions=3",
        "--config.evaluation.diverse_questions=0",
        "--config.evaluation.samples=2",
        "--config.evaluation.shots=0",
    ],
    "em": [
        f"--config={CONFIGS}/subj.py:em",
        "--config.certificate.queries=0",
        "--config.em.steps=5",
        "--config.em.samples=2",
        "--config.em.warmup_steps=1",
        "--config.subjectivity.labels=10",
        "--config.subjectivity.test=20",
        "--config.subjectivity.validation=10",
        "--config.evaluation.reviews=10",
        "--config.evaluation.batch=10",
        "--config.evaluation.shots=0",
    ],
}
MESHES = {
    "data": [],  # what a user gets who says nothing
    "processes": [],
    "fsdp": ["--config.mesh.data=1", "--config.mesh.fsdp=8"],
    "all": ["--config.mesh.data=2", "--config.mesh.fsdp=2", "--config.mesh.tensor=2"],
}
# A process with eight devices compiles for half a minute: one pair is enough for every day.
QUICK = ("rng", "processes")
PAIRS = [
    *(("rng", mesh) for mesh in ("data", "processes")),
    *((name, mesh) for name in RUNS for mesh in ("fsdp", "all")),
    ("em", "processes"),
]


def launch(name: str, devices: int, mesh: str, workdir: pathlib.Path) -> str:
    """Runs the command and returns all that it printed."""
    flags = f"--xla_force_host_platform_device_count={devices} {os.environ.get('XLA_FLAGS', '')}"
    # Virtual devices wait for each other in threads. XLA makes no more than there are cores: all of them would wait.
    environment = os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu", "NPROC": "64", "PJRT_NPROC": "64"}
    launcher = LOCAL if mesh == "processes" else ["-m", "gfn_jax.launch"]
    command = [sys.executable, *launcher, *RUNS[name], *STEPS, *MESHES[mesh], f"--workdir={workdir}"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=1200)
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def on_one(tmp_path_factory):
    """The workdir of a run on one device, which is made once."""

    @functools.cache
    def workdir(name: str) -> pathlib.Path:
        folder = tmp_path_factory.mktemp(f"{name}-on-one")
        launch(name, 1, "data", folder)
        return folder

    return workdir


def numbers(workdir: pathlib.Path) -> dict[str, list[float]]:
    """Every metric of every step and evaluation, by file and name, but for what a clock says."""
    found: dict[str, list[float]] = {}
    for path in sorted(workdir.rglob("metrics.jsonl")):
        for line in path.read_text().splitlines():
            for name, value in json.loads(line).items():
                if isinstance(value, int | float) and "second" not in name and name != "time":
                    found.setdefault(f"{path.relative_to(workdir)}: {name}", []).append(value)
    return found


@pytest.mark.parametrize(
    ("name", "mesh"), [pytest.param(*p, marks=() if p == QUICK else pytest.mark.slow, id="-".join(p)) for p in PAIRS]
)
def test_eight_devices_learn_what_one_does(name, mesh, on_one, tmp_path):
    printed = launch(name, 8, mesh, tmp_path)
    assert "not split" not in printed
    assert "arning" not in printed
    one, eight = numbers(on_one(name)), numbers(tmp_path)
    assert one.keys() == eight.keys()
    assert [len(values) for metric, values in one.items() if metric.endswith(": loss")] == [5] * (1 + (name == "em"))
    for metric, values in one.items():
        np.testing.assert_allclose(eight[metric], values, rtol=1e-4, atol=1e-4, err_msg=metric)
        if metric.endswith(": loss"):
            np.testing.assert_allclose(eight[metric], values, rtol=1e-5, err_msg=metric)
    first, second = (json.loads((folder / "results.json").read_text()) for folder in (on_one(name), tmp_path))
    assert first["policy"].keys() == second["policy"].keys()
    for metric, value in first["policy"].items():
        np.testing.assert_allclose(second["policy"][metric], value, rtol=1e-3, atol=1e-3, err_msg=metric)
