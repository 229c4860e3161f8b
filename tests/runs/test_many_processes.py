"""Five steps lead one device, eight, and two processes of four to the same losses and adapters; `make test-scale`."""

import functools
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest
from five_steps import CASES, MESHES

HERE = pathlib.Path(__file__).parent
ROOT = HERE.parents[1]
QUICK = ("finetune", "processes", "data")  # the rest is for `make test-scale`
SPREAD = [("devices", mesh) for mesh in MESHES] + [("processes", mesh) for mesh in MESHES]


@pytest.fixture(scope="module")
def five_steps(tmp_path_factory):
    """(case, on what, mesh) -> what five steps have led to; each is computed once."""

    @functools.cache
    def run(name: str, on: str, mesh: str) -> dict[str, np.ndarray]:
        folder = tmp_path_factory.mktemp(f"{name}-{on}-{mesh}")
        words = [str(folder), mesh, name]
        devices = 8 if on == "devices" else 1
        command = [sys.executable, "-m", "five_steps", *words]
        if on == "processes":
            local = ROOT / "launch" / "local.py"
            command = [sys.executable, local, "--processes=2", "--devices=4", "--", "-m", "five_steps", *words]
        flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={devices}"
        own = {"XLA_FLAGS": flags, "NPROC": "64", "PJRT_NPROC": "64", "PYTHONPATH": f"{ROOT}{os.pathsep}{HERE}"}
        done = subprocess.run(command, env=os.environ | own, capture_output=True, text=True, timeout=1200)
        assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
        return dict(np.load(folder / f"{name}.npz"))

    return run


EVERY = [
    pytest.param(
        name, *spread, marks=() if (name, *spread) == QUICK else pytest.mark.scale, id="-".join((name, *spread))
    )
    for name in CASES
    for spread in SPREAD
    if name != "pretrain" or spread[1] == "data"  # it has no mesh
]


@pytest.mark.parametrize(("name", "on", "mesh"), EVERY)
def test_many_learn_what_one_does(name, on, mesh, five_steps):
    one, many = five_steps(name, "one", "data"), five_steps(name, on, mesh)
    assert one.keys() == many.keys()
    losses = {key for key in one if key.endswith("loss")}
    assert losses
    assert len(one) > len(losses)
    for key in one:
        np.testing.assert_allclose(many[key], one[key], rtol=1e-5, atol=1e-5, err_msg=key)
