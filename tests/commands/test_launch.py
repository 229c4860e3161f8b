import dataclasses
import functools
import pathlib
import re
import resource
import sys
import types

import jax.numpy as jnp
import numpy as np
import pytest

from gfn_jax import launch
from gfn_jax.commands import cluster, train
from gfn_jax.commands.config_flag import with_default

CONFIG = """
from ml_collections import ConfigDict


def get_config(preset="tiny"):
    if preset not in ("tiny", "paper"):
        raise ValueError(f"unknown preset {preset!r}; it is one of tiny, paper")
    return ConfigDict({"seed": 0, "optimizer": {"learning_rate": 1e-3, "warmup_steps": 3}, "trap": ""})
"""


FAULTS = {"key": KeyError("samples"), "type": TypeError("one argument is missing"), "bug": ZeroDivisionError("a fault")}


def build(config, workdir, command):
    """The toy run, or a failure as the config's `trap` says."""
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


def program(config, workdir, command, given):
    """Stands where `gfn_jax.runs.build.build` would."""
    from gfn_jax.training.loop import complete

    return types.SimpleNamespace(complete=functools.partial(complete, build(config, workdir, command)))


@pytest.fixture
def config(tmp_path, monkeypatch) -> pathlib.Path:
    """A stub config in the current folder, and a stub of what builds runs."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(pathlib.Path(__file__).parents[1] / "training"))
    monkeypatch.setitem(sys.modules, "gfn_jax.runs.build", types.SimpleNamespace(build=program))
    monkeypatch.setattr(sys, "unraisablehook", sys.unraisablehook)
    (tmp_path / "stub.py").write_text(CONFIG)
    return tmp_path / "stub.py"


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
        train.parse(["launch", "--config=absent.py"])


def test_the_default_config_gives_way_to_a_named_one():
    assert with_default(["arith.py", "--config.seed=3"], "a.py") == ["arith.py", "--config=a.py", "--config.seed=3"]
    for named in (["--config=b.py"], ["-config=b.py"], ["--config.own=5", "--config", "b.py"]):
        assert with_default(["arith.py", *named], "a.py") == ["arith.py", *named]


@pytest.mark.parametrize(
    ("source", "words", "workdir"),
    [
        ("configs/arith.py", [], "runs/arith-tiny"),
        ("/a/b/arith.py:paper", ["--config.seed=3"], "runs/arith-paper"),
        ("configs/arith.py", ["--config.algorithm=rloo"], "runs/arith-tiny-rloo"),
        ("configs/arith.py", ["--config.algorithm=own.module:ALGORITHM"], "runs/arith-tiny-own-module-ALGORITHM"),
    ],
)
def test_default_workdir(source, words, workdir):
    assert train.default_workdir(source, words) == workdir


def test_a_run_from_start_to_end_and_again(config, capsys):
    command = ["launch", "--config=stub.py:paper", "--config.optimizer.learning_rate=0.5"]
    assert launch.main(command) == 0
    first = capsys.readouterr()
    assert "step 2/2" in first.out
    workdir = config.parent / "runs" / "stub-paper"
    assert "seed 0, rate 0.5, 2 steps\n" in first.out
    assert first.out.endswith("on a page, with its curves: runs/stub-paper/report.html\n")
    assert (workdir / "metrics.jsonl").exists()
    assert (workdir / "report.html").read_text().count("<svg") == 2
    assert re.match(r"[\d:]{8}  seed 0\n[\d:]{8}  starting in runs/stub-paper\n", first.out)
    assert (workdir / "log.txt").read_text() == first.out
    assert launch.main(command) == 0
    again = capsys.readouterr().out
    assert "going on from step 2 of 2" in again
    assert "seed 0, rate 0.5, 2 steps\n" in again
    assert (workdir / "log.txt").read_text() == first.out + again


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
    log = config.parent / "runs" / "stub-tiny" / "log.txt"
    assert log.exists() == (code == 1)  # what is refused before anything is done leaves no trace
    assert code != 1 or log.read_text().splitlines()[-1].startswith("TrainingDiverged: the loss is nan")


def test_a_page_that_fails_is_one_line_behind_the_results(config, capsys, monkeypatch):
    def fail(*args):
        raise ZeroDivisionError("no panel")

    monkeypatch.setattr("gfn_jax.studies.run_page.write_run_page", fail)
    assert launch.main(["launch", "--config=stub.py"]) == 1
    captured = capsys.readouterr()
    assert "seed 0, rate 0.001, 2 steps\n" in captured.out
    line = r"error: the run is done and its page failed \(ZeroDivisionError: no panel\); its results are in runs/"
    assert re.match(line, captured.err)
    assert captured.err.count("\n") == 1


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
    assert cluster.in_cluster(environ) is expected
