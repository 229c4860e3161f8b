"""One of two processes is killed: the other says so and ends, and the same command goes on as if nothing had been."""

import os
import pathlib
import re
import shutil
import subprocess
import sys
import time

import numpy as np
import pytest
from test_loop import assert_same_bits, records
from toy import make_run

from gfn_jax.commands.local import free_port
from gfn_jax.training.loop import train

ROOT = pathlib.Path(__file__).parents[2]
HERE = pathlib.Path(__file__).parent
LOCAL = ROOT / "launch" / "local.py"
WITHIN = 10.0  # seconds from a death to the end of all
STEPS = 6
PLACES = ("step", "save", "restore")


def environment(**own: str) -> dict[str, str]:
    return os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{HERE}"} | own


def locally(devices: int, *words: object) -> subprocess.CompletedProcess:
    command = [sys.executable, LOCAL, "--processes=2", f"--devices={devices}", "--", "-m", *map(str, words)]
    return subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=600)


def crash(place: str, mark: pathlib.Path, devices: int, *words: object) -> None:
    """Process 1 of two dies there; there is one line on it from each who notices, soon, and no page of C++."""
    done = locally(devices, "crashing", place, "1", mark, *words)
    late = time.time() - mark.stat().st_mtime
    assert late < WITHIN
    assert done.returncode == 1
    assert re.search(r"^error: process 1 of 2 \(id \d+ on .*\) has died; the same command goes on", done.stderr, re.M)
    assert re.search(r"^error: process 1 of 2 was killed by SIGKILL, and the others were ended", done.stderr, re.M)
    assert "Traceback" not in done.stderr
    assert "stack trace" not in done.stderr


@pytest.mark.parametrize(
    "place", ["save", *(pytest.param(name, marks=pytest.mark.slow) for name in PLACES if name != "save")]
)
def test_a_death_ends_the_other_and_one_process_goes_on(place, tmp_path):
    if place == "restore":
        train(make_run(tmp_path / "before", 2))  # this process goes on holding its folder
        shutil.copytree(tmp_path / "before", tmp_path / "parts")
    crash(place, tmp_path / "mark", 1, "toy", tmp_path / "parts", STEPS, 0)
    resumed = make_run(tmp_path / "parts", STEPS)
    assert resumed.checkpointer.latest_step < STEPS
    assert_same_bits(train(resumed), train(make_run(tmp_path / "whole", STEPS)))
    assert records(tmp_path / "parts") == records(tmp_path / "whole")


def test_the_first_one_dies_and_nobody_watches(tmp_path):
    with free_port() as port:
        place = {"JAX_COORDINATOR_ADDRESS": f"localhost:{port}", "JAX_NUM_PROCESSES": "2"}
    command = [
        sys.executable,
        HERE / "crashing.py",
        "step",
        "0",
        tmp_path / "mark",
        "toy",
        tmp_path / "run",
        "9",
        "0.1",
    ]
    first, second = (
        subprocess.Popen(command, env=environment(JAX_PROCESS_ID=str(rank), **place), stderr=subprocess.PIPE, text=True)
        for rank in range(2)
    )
    _, said = second.communicate(timeout=100)
    assert time.time() - (tmp_path / "mark").stat().st_mtime < WITHIN
    assert "error: process 0 of 2 has died; the same command goes on from what was saved" in said
    assert second.returncode != 0
    first.communicate()


FLAGS = (
    f"--config={ROOT}/configs/rng.py:smoke",
    f"--config.steps={STEPS}",
    "--config.evaluation.every=2",
    "--config.certificate.queries=0",
)


def measured(workdir: pathlib.Path) -> dict[str, np.ndarray]:
    """Every metric of every step and evaluation, but for what a clock says."""
    found: dict[str, list[float]] = {}
    for record in records(workdir):
        kind = record.pop("kind")
        for name, value in record.items():
            found.setdefault(f"{kind}: {name}", []).append(value)
    return {name: np.array(values) for name, values in found.items()}


@pytest.mark.scale
@pytest.mark.parametrize("place", PLACES)
def test_a_run_that_lost_a_process_measures_what_an_uninterrupted_one_does(place, tmp_path, uninterrupted):
    parts = tmp_path / "parts"
    words = (*FLAGS, f"--workdir={parts}")
    if place == "restore":
        crash("step", tmp_path / "earlier", 4, "launch", *words)
    crash(place, tmp_path / "mark", 4, "launch", *words)
    shutil.copytree(parts, tmp_path / "alone")
    again = locally(4, "gfn_jax.launch", *words)
    assert again.returncode == 0, again.stderr
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8"
    alone = subprocess.run(
        [sys.executable, "-m", "gfn_jax.launch", *FLAGS, f"--workdir={tmp_path / 'alone'}"],
        env=environment(XLA_FLAGS=flags, NPROC="64", PJRT_NPROC="64"),
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert alone.returncode == 0, alone.stderr
    assert "going on from step 2" in again.stdout
    whole = measured(uninterrupted)
    for other in (parts, tmp_path / "alone"):
        found = measured(other)
        assert found.keys() == whole.keys()
        for name, values in whole.items():
            np.testing.assert_allclose(found[name], values, rtol=1e-5, atol=1e-5, err_msg=name)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    """A run on two processes with four devices each."""
    workdir = tmp_path_factory.mktemp("uninterrupted")
    done = locally(4, "gfn_jax.launch", *FLAGS, f"--workdir={workdir}")
    assert done.returncode == 0, done.stderr
    return workdir
