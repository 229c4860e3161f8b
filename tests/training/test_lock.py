import os
import shutil
import subprocess
import sys

from gfn_jax.training import lock

TAKE = "import pathlib, sys; from gfn_jax.training import lock; lock.hold(pathlib.Path(sys.argv[1])); print('taken')"


def other_process(folder) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-c", TAKE, folder], capture_output=True, text=True, timeout=60)


def test_a_folder_is_one_process_s_until_it_ends(tmp_path):
    lock.hold(tmp_path)
    lock.hold(tmp_path)  # its own again
    said = other_process(tmp_path).stderr.splitlines()[-1]
    assert said.startswith(f"ValueError: {tmp_path} is in use (process {os.getpid()} on ")
    assert said.endswith("; wait until that run has ended, or use another --workdir")
    free = tmp_path / "free"
    free.mkdir()
    assert [other_process(free).stdout for _ in range(2)] == ["taken\n", "taken\n"]  # both have ended


def test_a_folder_that_was_deleted_and_made_anew_is_taken_anew(tmp_path):
    folder = tmp_path / "run"
    for _ in range(2):
        folder.mkdir()
        lock.hold(folder)
        assert "is in use" in other_process(folder).stderr
        shutil.rmtree(folder)
