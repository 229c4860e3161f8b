import dataclasses
import io
import logging
import pathlib
import re
import resource
import subprocess
import sys
import time
import types
from collections.abc import Iterator

import jax.numpy as jnp
import numpy as np
import pytest

from gfn_jax import launch

CONFIG = """
from ml_collections import ConfigDict


def get_config(preset="tiny"):
    if preset not in ("tiny", "paper"):
        raise ValueError(f"unknown preset {preset!r}; it is one of tiny, paper")
    return ConfigDict({"seed": 0, "optimizer": {"learning_rate": 1e-3, "warmup_steps": 3}, "trap": ""})
"""


FAULTS = {"key": KeyError("samples"), "type": TypeError("one argument is missing"), "bug": ZeroDivisionError("a fault")}


def build(config, workdir, command):
    """Stands where `gfn_jax.runs.build.build` would: makes the toy run, or fails as the config's `trap` says."""
    assert command.startswith("python -m gfn_jax.launch --config="), "what repeats the run"
    if config.trap == "value":
        raise ValueError("a batch of 10 does not divide\nover 4 devices")
    if config.trap in FAULTS:
        raise FAULTS[config.trap]
    from toy import init_state, make_run

    if config.trap == "full":
        noise = jnp.asarray(np.random.default_rng(0).standard_normal(1 << 19), jnp.float32)
        state = init_state().replace(trainable={"w": noise})
        metrics = {"loss": jnp.zeros(())}
        return make_run(workdir, 2, state=state, step_fn=lambda state, _: (state, metrics), save_every=1)
    run = make_run(workdir, 2, nan_at=2 if config.trap == "nan" else -1)
    rate = config.optimizer.learning_rate
    return dataclasses.replace(run, finish=lambda trained: f"seed {config.seed}, rate {rate}, {trained.steps} steps")


@pytest.fixture
def config(tmp_path, monkeypatch) -> Iterator[pathlib.Path]:
    """A stub config in the current folder, and a stub of what builds runs; leaves logging as it was."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(pathlib.Path(__file__).with_name("training")))
    monkeypatch.setitem(sys.modules, "gfn_jax.runs.build", types.SimpleNamespace(build=build))
    monkeypatch.setattr(sys, "unraisablehook", sys.unraisablehook)
    (tmp_path / "stub.py").write_text(CONFIG)
    logger = logging.getLogger("gfn_jax")
    before = logger.handlers, logger.propagate, logger.level
    yield tmp_path / "stub.py"
    logger.handlers, logger.propagate = before[:2]
    logger.setLevel(before[2])


def test_silence_is_broken_by_what_takes_so_long():
    stream = io.StringIO()
    logger = logging.Logger("gfn_jax.test")
    handler = launch.Progress(stream, patience=0.02)
    logger.addHandler(handler)
    logger.info("compiling the step")
    waited = time.monotonic() + 5
    while stream.getvalue().count("still: compiling the step") < 2 and time.monotonic() < waited:
        time.sleep(0.01)
    handler.close()
    lines = stream.getvalue().splitlines()
    assert lines[0] == "compiling the step"
    assert set(lines[1:]) == {"  still: compiling the step (0 s)"}
    assert len(lines) >= 3
    time.sleep(0.1)
    assert len(stream.getvalue().splitlines()) <= len(lines) + 1  # closed, it is silent


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (
            ["--config=stub.py", "--config.sed=1"],
            """unknown key 'sed'. Did you mean "seed" instead of "sed"?""",
        ),
        (["--config=stub.py", "--config.optimizer.learning_rat=1"], 'unknown key .* mean "learning_rate" .*'),
        (["--config=stub.py", "--config.optimzer.warmup_steps=1"], 'unknown key .* mean "optimizer" .*'),
        (
            ["--config=stub.py", "--config.optimizer.warmup_steps=x"],
            "flag --config.optimizer.warmup_steps=x: inv.*",
        ),
        (["--config=stub.py", "--config.optimizer=3"], "flag --config.optimizer=3: .* `3` is not a dict."),
        (["--config=stub.py", "--workdri=x"], "Unknown command line flag 'workdri'.*"),
        (["--config=stub.py", "workdir=x"], "'workdir=x' is no flag; write .*"),
        (["--config=stub.py:tinny"], "unknown preset 'tinny'; it is one of tiny, paper"),
        (["--config=absent.py"], "No such file or directory: '.*absent.py'"),
        (["--config=absent.py", "--config.seed=1"], "No such file or directory: '.*absent.py'"),
        ([], "no config; name one, for instance --config=configs/arith.py"),
    ],
)
def test_a_wrong_command_is_one_line(config, capsys, arguments, line):
    assert launch.main(["launch", *arguments]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert re.fullmatch(f"error: {line}\n".replace("?", r"\?"), captured.err)


def test_a_config_file_that_is_not_there_is_said_before_anything_is_built():
    with pytest.raises(OSError, match=r"absent\.py"):
        launch.parse(["launch", "--config=absent.py"])


def test_debug_shows_the_traceback(config, monkeypatch):
    monkeypatch.setenv("GFN_JAX_DEBUG", "1")
    with pytest.raises(AttributeError):
        launch.main(["launch", "--config=stub.py", "--config.sed=1"])


def test_help(capsys):
    assert launch.main(["launch", "--help"]) == 0
    out = capsys.readouterr().out
    assert "python -m gfn_jax.launch --config=configs/arith.py" in out
    assert "--workdir" in out


def test_the_default_config_gives_way_to_a_named_one(config):
    (config.parent / "other.py").write_text(CONFIG.replace('"seed": 0', '"seed": 7, "own": 1'))
    assert launch.parse(["launch"], default_config="stub.py").config.seed == 0
    assert launch.parse(["launch", "--config.seed=3"], default_config="stub.py").config.seed == 3
    assert launch.parse(["launch", "--config=other.py"], default_config="absent.py").config.seed == 7
    overridden = ["launch", "--config=other.py", "--config.own=5"]
    assert launch.parse(overridden, default_config="stub.py").config.own == 5


@pytest.mark.parametrize(
    ("source", "workdir"),
    [("configs/arith.py", "runs/arith-tiny"), ("/a/b/arith.py:paper", "runs/arith-paper")],
)
def test_default_workdir(source, workdir):
    assert launch.default_workdir(source) == workdir


def test_a_run_from_start_to_end_and_again(config, capsys):
    command = ["launch", "--config=stub.py:paper", "--config.optimizer.learning_rate=0.5"]
    assert launch.main(command) == 0
    first = capsys.readouterr()
    assert "step 2/2" in first.out
    assert first.out.endswith("seed 0, rate 0.5, 2 steps\n")
    assert (config.parent / "runs" / "stub-paper" / "metrics.jsonl").exists()
    assert launch.main(command) == 0
    again = capsys.readouterr().out
    assert "going on from step 2 of 2" in again
    assert again.endswith("seed 0, rate 0.5, 2 steps\n")


@pytest.mark.parametrize(
    ("trap", "code", "line"),
    [
        ("value", 2, "error: a batch of 10 does not divide over 4 devices\n"),
        ("nan", 1, "error: the loss is nan at step 2; the last good checkpoint is step 1"),
    ],
)
def test_what_goes_wrong_later_is_one_line(config, capsys, trap, code, line):
    assert launch.main(["launch", "--config=stub.py", f"--config.trap={trap}"]) == code
    err = capsys.readouterr().err
    assert err.startswith(line)
    assert err.count("\n") == 1


def test_a_full_disk_is_one_line(config, capfd, caplog):
    """A limit on the size of files stands for it: the same answer of the system, with another number."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, hard))
    try:
        assert launch.main(["launch", "--config=stub.py", "--config.trap=full"]) == 1
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    line = r"error: no checkpoint can be written to .*runs/stub-tiny/checkpoints: File too large\n"
    assert re.fullmatch(line, capfd.readouterr().err)
    assert [record for record in caplog.records if record.name == "absl"] == []


@pytest.mark.parametrize("trap", FAULTS)
def test_our_own_faults_keep_their_traceback(config, trap):
    with pytest.raises(type(FAULTS[trap])):
        launch.main(["launch", "--config=stub.py", f"--config.trap={trap}"])


def test_a_misspelt_key_in_a_process_of_its_own(config):
    """What a person sees: one line, at once (nothing heavy is imported before the flags are read)."""
    command = [
        sys.executable,
        "-X",
        "importtime",
        "-m",
        "gfn_jax.launch",
        "--config=stub.py",
        "--config.sed=1",
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2
    lines = [line for line in done.stderr.splitlines() if not line.startswith("import time:")]
    assert lines[-1:] == ["""error: unknown key 'sed'. Did you mean "seed" instead of "sed"?"""]
    imported = {line.rsplit("|", 1)[-1].strip() for line in done.stderr.splitlines() if "import time:" in line}
    assert not imported & {"jax", "orbax.checkpoint", "transformers", "numpy"}


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({}, False),
        ({"SLURM_NTASKS": "4"}, False),  # the batch script itself
        ({"SLURM_NTASKS": "4", "SLURM_STEP_NODELIST": "n[1-4]"}, True),
        ({"SLURM_NTASKS": "1", "SLURM_STEP_NODELIST": "n1"}, False),
        ({"TPU_WORKER_HOSTNAMES": "localhost"}, False),
        ({"TPU_WORKER_HOSTNAMES": "a,b"}, True),
        ({"OMPI_COMM_WORLD_SIZE": "2"}, True),
        ({"JAX_COORDINATOR_ADDRESS": "a:1"}, True),
    ],
)
def test_in_cluster(environ, expected):
    assert launch.in_cluster(environ) is expected
