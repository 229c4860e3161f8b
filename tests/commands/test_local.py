"""Several processes of a command on one machine. The commands here are a few lines of Python without jax."""

import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest

from gfn_jax.commands import local

LAUNCHER = pathlib.Path(__file__).parents[2] / "launch" / "local.py"
WITHIN = 10.0  # seconds from a death to the end of all


@pytest.fixture
def command(tmp_path):
    """Starts two processes of a program, and returns the launcher's own."""

    def run(program: str, *flags: str) -> subprocess.Popen:
        (tmp_path / "program.py").write_text(
            f"import os, pathlib, signal, sys, time\nrank = int(os.environ['JAX_PROCESS_ID'])\n{program}\n"
        )
        path = f"{tmp_path}{os.pathsep}{LAUNCHER.parents[1]}"
        words = [sys.executable, LAUNCHER, *flags, "--", "-m", "program", "word"]
        return subprocess.Popen(
            words,
            env=os.environ | {"PYTHONPATH": path},
            cwd=tmp_path,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    return run


def test_the_first_speaks_and_the_others_with_their_rank(command):
    program = """
said = ("JAX_NUM_PROCESSES", "JAX_COORDINATOR_ADDRESS", "XLA_FLAGS")
print("[Gloo] Rank 0 is connected to 1 peer ranks.", file=sys.stderr)
print(rank, *sys.argv[1:], *(os.environ[name] for name in said), file=sys.stderr if rank == 2 else sys.stdout)
"""
    child = command(program, "--processes=3", "--devices=5")
    out, error = child.communicate(timeout=60)
    assert child.returncode == 0
    assert out.startswith("0 word 3 localhost:")
    assert out.endswith("--xla_force_host_platform_device_count=5\n")
    assert sorted(line[:13] for line in error.splitlines()) == ["[1] 1 word 3 ", "[2] 2 word 3 "]


@pytest.mark.parametrize(
    ("end", "said"),
    [
        (
            "os.kill(os.getpid(), signal.SIGKILL)",
            "error: process 1 of 2 was killed by SIGKILL, and the others were ended",
        ),
        ("sys.exit(3)", "error: process 1 of 2 ended with exit code 3, and the others were ended"),
    ],
)
def test_one_that_dies_ends_the_others_even_if_they_do_not_listen(end, said, command):
    program = f"""
signal.signal(signal.SIGTERM, signal.SIG_IGN)
if rank == 0:
    pathlib.Path("deaf").touch()
    time.sleep(60)
while not pathlib.Path("deaf").exists():
    time.sleep(0.01)
{end}
"""
    began = time.monotonic()
    child = command(program)
    _, error = child.communicate(timeout=60)
    assert time.monotonic() - began < WITHIN + 5
    assert child.returncode == 1
    assert error.startswith(said)
    assert len(error.splitlines()) == 1


def test_who_fails_is_named_not_who_ends_because_of_it(command):
    program = """
if rank == 1:
    pathlib.Path("ended").touch()
    sys.exit(75)
while not pathlib.Path("ended").exists():
    time.sleep(0.01)
time.sleep(0.3)
sys.exit(2)
"""
    child = command(program)
    _, error = child.communicate(timeout=60)
    assert child.returncode == 1
    assert error.startswith("error: process 0 of 2 ended with exit code 2, and the others were ended")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_is_passed_on_and_all_stop(number, command, tmp_path):
    program = """
def stop(number, frame):
    print("saved", number)
    sys.exit(128 + number)
signal.signal(signal.SIGTERM, stop)
signal.signal(signal.SIGINT, signal.SIG_IGN)
pathlib.Path(f"ready{rank}").touch()
time.sleep(60)
"""
    child = command(program)
    while not all((tmp_path / f"ready{rank}").exists() for rank in range(2)):
        time.sleep(0.02)
    child.send_signal(number)
    out, error = child.communicate(timeout=60)
    assert child.returncode == 143
    assert out == "saved 15\n"
    assert sorted(error.splitlines()) == ["[1] saved 15", "all 2 processes have stopped"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "no command; write the command's own flags behind --"),
        (["--processes=0", "--", "--config=a.py"], "--processes is 0; it must be 1 or more"),
        (["--config=a.py"], "Unknown command line flag 'config'"),
        (["--", "-m"], "no command"),
        (["a.py", "--", "--config=a.py"], "'a.py' is no flag"),
    ],
)
def test_what_is_wrong_with_the_command_is_said_in_a_line(words, said, capsys):
    assert local.main(["local.py", *words], "") == 2
    error = capsys.readouterr().err
    assert said in error
    assert len(error.splitlines()) == 1


def test_help(capsys):
    assert local.main(["local.py", "--help"], "What it does.") == 0
    out = capsys.readouterr().out
    assert "What it does." in out
    assert "--processes" in out


def test_programs_are_kept_for_one_process_and_not_for_two(command, tmp_path):
    """On CPUs the first alone would read them: it, and who compiled them anew, could wait for each other for ever."""
    programs = tmp_path / "programs"
    program = f"""
os.environ |= {{"JAX_COMPILATION_CACHE_DIR": "{programs}", "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}}
from gfn_jax.commands import cluster
cluster.join_if_any()
import jax
print(jax.jit(lambda x: 2 * x)(jax.process_count()))
"""
    for processes in (2, 1):
        child = command(program, f"--processes={processes}")
        out, error = child.communicate(timeout=120)
        assert (child.returncode, out) == (0, f"{2 * processes}\n"), error
        assert programs.exists() == (processes == 1)
