"""How a process of several ends: with the others where all end, else at once, and the others with it."""

import dataclasses
import importlib
import inspect
import os
import pathlib
import subprocess
import sys
import time

import pytest

from gfn_jax.commands import cluster

ROOT = pathlib.Path(__file__).parents[2]
# A process without jax: what it would have made of the meeting is a file.
PROGRAM = """
import pathlib, signal, sys, time, types, os
rank, count, table = int(sys.argv[1]), int(sys.argv[2]), pathlib.Path(sys.argv[3])

def get(key, timeout):
    while not table.exists():
        time.sleep(0.01)
    return table.read_text()

def set(key, value):
    table.with_suffix(".new").write_text(value)
    table.with_suffix(".new").rename(table)

client = types.SimpleNamespace(key_value_set=set, blocking_key_value_get=get)
state = types.SimpleNamespace(client=client, coordinator_address="localhost:1")
sys.modules["jax"] = types.SimpleNamespace(errors=types.SimpleNamespace(JaxRuntimeError=ArithmeticError))
sys.modules["jax._src"] = types.ModuleType("jax._src")
sys.modules["jax._src.distributed"] = types.SimpleNamespace(global_state=state)
from gfn_jax.commands import cluster

def prepare(values):
    cluster._peers = cluster.Peers(rank, count)
    time.sleep(0.5)  # all have met
    yield "begun"
    BODY
    yield "done"

values = types.SimpleNamespace(help=False)
code = cluster.run(sys.argv[:1], "", lambda argv: values, prepare)
print("left", flush=True)
sys.exit(code)
"""


@dataclasses.dataclass(frozen=True)
class Ended:
    code: int
    out: list[str]
    error: list[str]


@pytest.fixture
def ended(tmp_path):
    """How three processes end that do what a line of Python says."""

    def run(body: str) -> list[Ended]:
        table = tmp_path / "table"
        table.unlink(missing_ok=True)
        program = PROGRAM.replace("BODY", body)
        children = [
            subprocess.Popen(
                [sys.executable, "-c", program, str(rank), "3", table],
                env=os.environ | {"PYTHONPATH": str(ROOT)},
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            for rank in range(3)
        ]
        said = [child.communicate(timeout=60) for child in children]
        return [
            Ended(child.returncode, out.split(), error.splitlines())
            for child, (out, error) in zip(children, said, strict=True)
        ]

    return run


def test_all_end_together_and_the_first_speaks(ended):
    first, *others = ended("time.sleep(rank)")
    assert first == Ended(0, ["begun", "done", "left"], [])
    assert others == [Ended(0, ["left"], [])] * 2


@pytest.mark.parametrize("dead", [0, 2])
def test_one_that_is_killed_is_named_by_the_others_wherever_they_are(dead, ended):
    began = time.monotonic()
    found = ended(f"if rank == {dead}: os.kill(os.getpid(), signal.SIGKILL)\n    time.sleep(30)")
    assert time.monotonic() - began < 25
    assert found[dead].code == -9
    for rank in {0, 1, 2} - {dead}:
        assert found[rank].code == 75
        (line,) = found[rank].error
        assert line.startswith(f"error: process {dead} of 3")
        assert line.endswith(" has died; the same command goes on from what was saved")


@pytest.mark.parametrize("failed", [0, 1])
def test_a_reason_is_given_by_who_has_it(failed, ended):
    found = ended(f"if rank == {failed}: raise ValueError('its disk is full')\n    time.sleep(30)")
    assert found[failed].code == 1
    assert found[failed].error == ["error: its disk is full"]
    for rank in {0, 1, 2} - {failed}:
        assert found[rank].code == 75
        (line,) = found[rank].error
        assert line.startswith(f"error: process {failed} of 3 (id ")
        assert line.endswith(" ended with exit code 1; the same command goes on from what was saved")


def test_a_reason_that_all_have_is_given_by_each(ended):
    for each in ended("raise ValueError('no such thing')"):
        assert each.code == 1
        assert each.error == ["error: no such thing"]


def test_a_connection_that_breaks_is_not_the_reason(ended):
    """jax says of a collective that a connection was closed; who closed it is what a person asks."""
    first, second, third = ended(
        "if rank == 1: os.kill(os.getpid(), signal.SIGKILL)\n    time.sleep(0.1)\n"
        "    raise ArithmeticError('connection closed by peer')"
    )
    assert second.code == -9
    for each in (first, third):
        assert each.code == 75
        assert len(each.error) == 1
        assert "process 1 of 3" in each.error[0]


@pytest.mark.parametrize("name", ["benchmark", "posterior_bench", "reproduce", "tune", "baselines", "gfn_evaluate"])
def test_a_command_for_one_process_says_so(name, monkeypatch):
    monkeypatch.setenv("JAX_COORDINATOR_ADDRESS", "localhost:1")
    module = importlib.import_module(f"gfn_jax.commands.{name}")
    arguments = [None] * len(inspect.signature(module.prepare).parameters)
    with pytest.raises(ValueError, match="this command is for one: start it alone"):
        list(module.prepare(*arguments))


def test_in_no_cluster_a_command_is_a_plain_one(capsys, monkeypatch):
    for name in ("JAX_COORDINATOR_ADDRESS", "SLURM_STEP_NODELIST", "OMPI_COMM_WORLD_SIZE", "TPU_WORKER_HOSTNAMES"):
        monkeypatch.delenv(name, raising=False)

    @dataclasses.dataclass
    class Values:
        help: bool = False

    assert cluster.run(["x"], "", lambda argv: Values(), lambda values: ["one", "two"]) == 0
    assert capsys.readouterr().out == "one\ntwo\n"
