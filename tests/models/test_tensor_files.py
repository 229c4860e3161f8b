"""What is written: readable by whom the umask lets, and whole or not there."""

import os
import signal
import subprocess
import sys

import numpy as np
import pytest
from safetensors.numpy import load_file

from gfn_jax.models.tensor_files import whole_folder, write_tensors


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o027, 0o640), (0o077, 0o600)])
def test_weights_may_be_read_by_whom_the_umask_lets(tmp_path, umask, mode):
    file = tmp_path / "model.safetensors"
    file.touch(0o600)  # of an earlier version
    before = os.umask(umask)
    try:
        write_tensors(file, {"a": np.arange(3.0)})
    finally:
        os.umask(before)
    assert file.stat().st_mode & 0o777 == mode
    np.testing.assert_array_equal(load_file(file)["a"], np.arange(3.0))


def held(folder):
    """Name -> text of all files in a folder, and what is beside it."""
    return {file.name: file.read_text() for file in folder.iterdir()}, sorted(x.name for x in folder.parent.iterdir())


@pytest.mark.parametrize("earlier", [None, {}, {"old": "1", "stale": "2"}])
def test_a_folder_is_replaced_as_a_whole(tmp_path, earlier):
    folder = tmp_path / "run" / "model"
    if earlier is not None:
        folder.mkdir(parents=True)
        for name, text in earlier.items():
            (folder / name).write_text(text)
    with whole_folder(folder) as draft:
        (draft / "old").write_text("3")
        assert folder.exists() == (earlier is not None)
    assert held(folder) == ({"old": "3"}, ["model"])


@pytest.mark.parametrize("error", [OSError("disk full"), KeyboardInterrupt()], ids=["fault", "interrupt"])
def test_an_error_while_writing_leaves_the_earlier_folder(tmp_path, error):
    folder = tmp_path / "model"
    with whole_folder(folder) as draft:
        (draft / "a").write_text("1")

    def half():
        with whole_folder(folder) as draft:
            (draft / "a").write_text("half")
            raise error

    with pytest.raises(type(error)):
        half()
    assert held(folder) == ({"a": "1"}, ["model"])


KILLED = """
import os, pathlib, signal, sys
from gfn_jax.models import tensor_files
rename = pathlib.Path.rename
def renamed(path, new):
    if path.name.endswith(".partial"):
        os.kill(os.getpid(), signal.SIGKILL)
    return rename(path, new)
pathlib.Path.rename = renamed
with tensor_files.whole_folder(sys.argv[1]) as draft:
    (draft / "a").write_text("2")
    if sys.argv[2] == "writing":
        os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize("moment", ["writing", "renaming"])
def test_a_kill_leaves_no_half_of_a_folder(tmp_path, moment):
    folder = tmp_path / "model"
    with whole_folder(folder) as draft:
        (draft / "a").write_text("1")
    done = subprocess.run([sys.executable, "-c", KILLED, folder, moment], timeout=60)
    assert done.returncode == -signal.SIGKILL
    if moment == "writing":
        assert held(folder)[0] == {"a": "1"}
    else:  # not there at all, and restored by the next attempt, even by one that fails
        assert not folder.exists()
    with pytest.raises(OSError, match="full"), whole_folder(folder):
        raise OSError("disk full")
    assert held(folder) == ({"a": "1"}, ["model"])
