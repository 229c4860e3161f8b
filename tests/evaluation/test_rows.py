"""Parts of an evaluation's rows, on the devices that hold the weights."""

import os
import pathlib
import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import pytest

from gfn_jax.evaluation.rows import copies_of, parts

WEIGHTS = {"kernel": jnp.zeros((8, 8))}


@pytest.mark.parametrize("size", [2, 3, 7, 100])
def test_parts_have_one_shape_and_every_row_once(size):
    rows = {"a": np.arange(7), "b": jnp.arange(14).reshape(7, 2)}
    found = list(parts(rows, size, WEIGHTS))
    assert {len(part["a"]) for part, _ in found} == {min(size, 7)}
    np.testing.assert_array_equal(np.concatenate([part["a"][:count] for part, count in found]), rows["a"])
    np.testing.assert_array_equal(np.concatenate([part["b"][:count] for part, count in found]), rows["b"])
    assert copies_of(size, 8, WEIGHTS) == 1


def test_eight_devices_share_the_rows():
    """The same samples as on one device, every row computed by one of them, whatever the number of prompts."""
    flags = {
        "XLA_FLAGS": f"--xla_force_host_platform_device_count=8 {os.environ.get('XLA_FLAGS', '')}",
        "JAX_PLATFORMS": "cpu",
    }
    flags |= {"NPROC": "64", "PJRT_NPROC": "64"}
    script = pathlib.Path(__file__).with_name("rows_on_eight_devices.py")
    paths = os.pathsep.join([*sys.path, str(script.parents[1])])
    command = [sys.executable, str(script)]
    done = subprocess.run(command, env=os.environ | flags | {"PYTHONPATH": paths}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.strip() == "equal"
