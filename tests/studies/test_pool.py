"""Jobs as processes: in order, reused, beside each other; failing, interrupted, and killed with their parent."""

import dataclasses
import logging
import os
import pathlib
import random
import re
import signal
import subprocess
import sys
import time

import pytest
from fake_studies import fake_job

from gfn_jax.studies import plan, pool

linux = pytest.mark.skipif(sys.platform != "linux", reason="prctl and /proc are Linux's")
ROOT = pathlib.Path(__file__).parents[2]
HERE = pathlib.Path(__file__).parent


@pytest.fixture(autouse=True)
def _importable(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", f"{ROOT}{os.pathsep}{HERE}")


@pytest.fixture
def said(caplog):
    caplog.set_level(logging.INFO, "gfn_jax")
    return lambda: [re.sub(r"finished (\S+):.*", r"finished \1", text) for text in caplog.messages]


def run(workdir, *jobs, workers=2):
    """What became of jobs, and their counts."""
    planned = plan.make_plan(plan.ordered(jobs), workdir, lambda job: job.arguments)
    outcome = pool.run(planned, workers, ROOT, workdir)
    return outcome, {name: one.results["policy"]["count"] for name, one in plan.found(planned).items()}


def steps_of(folder: pathlib.Path) -> list[int]:
    return [int(line) for line in (folder / "steps").read_text().splitlines()]


def test_what_a_job_says_is_said_aloud_as_it_says_it(tmp_path, said):
    planned = plan.make_plan([fake_job("base")], tmp_path, lambda job: job.arguments)
    assert pool.run(planned, 1, ROOT, tmp_path, aloud=True) == pool.Outcome({}, (), None)
    own = (tmp_path / "base" / "output.txt").read_text().splitlines()
    assert own
    assert [text.removeprefix("base  ") for text in said() if text.startswith("base  ")] == own
    assert said().index(f"base  {own[-1]}") < said().index("finished base")


def test_jobs_run_in_order_and_once(tmp_path, said):
    base, middle = fake_job("base"), fake_job("x/middle", "--value=2", needs=("base",))
    last = fake_job("last", needs=("base", "x/middle"))
    outcome, counts = run(tmp_path, last, middle, base)
    assert outcome == pool.Outcome({}, (), None)
    assert counts == {"base": 3, "x/middle": 8, "last": 14}
    assert said()[0].startswith("3 jobs, 0 of them done; about 3 s left on 2 workers")
    assert said()[1:] == [f"{verb} {name}" for name in ("base", "x/middle", "last") for verb in ("started", "finished")]
    record = plan.read_record(tmp_path / "base")
    assert record.exit_code == 0
    assert record.seconds > 0.06
    assert record.cpu_seconds > 0
    assert record.gigabytes > 0.001  # what forks a child is counted until it runs something else
    assert f"configs are in {ROOT}/configs" in (tmp_path / "base" / "output.txt").read_text()
    before = len(said())
    assert run(tmp_path, last, middle, base)[1] == counts
    assert said()[before:] == ["3 jobs, 3 of them done; about 0 s left on 2 workers"]
    # Another argument: the job and what needs it run anew, and it is found again when the change is taken back.
    changed = fake_job("x/middle", "--value=3", needs=("base",))
    assert run(tmp_path, last, changed, base)[1] == {"base": 3, "x/middle": 9, "last": 15}
    assert steps_of(tmp_path / "base") == steps_of(tmp_path / "last") == [0, 1, 2]
    before = len(said())
    assert run(tmp_path, last, middle, base)[1] == counts
    assert len(said()[before:]) == 1


def test_one_that_fails_is_said_and_the_others_go_on(tmp_path, said):
    bad, silent = fake_job("bad", "--fail", seconds=9), fake_job("silent", "--no_results")
    after = fake_job("after", needs=("bad", "fine"))
    outcome, counts = run(tmp_path, bad, after, fake_job("later", needs=("after",)), fake_job("fine"), silent)
    assert outcome.failed == {"bad": "this is wrong", "silent": "it left no results.json"}
    assert outcome.skipped == ("after", "later")
    assert counts == {"fine": 3}
    assert "failed bad (exit code 3): this is wrong" in said()
    assert "skipped after, later: bad is needed" in said()
    assert plan.read_record(tmp_path / "bad").exit_code == 3
    outcome, _ = run(tmp_path, bad)  # it is tried again
    assert list(outcome.failed) == ["bad"]
    assert (tmp_path / "bad" / "output.txt").read_text().count("this is wrong") == 2


def most_at_once(lines: list[str]) -> int:
    running, most = 0, 0
    for line in lines:
        running += line.startswith("started") - line.startswith("finished")
        most = max(most, running)
    return most


@pytest.mark.parametrize(("gigabytes", "most"), [(1.0, 3), (4.0, 2), (6.0, 1), (99.0, 1)])
def test_no_more_run_than_workers_and_memory_allow(tmp_path, said, monkeypatch, gigabytes, most):
    monkeypatch.setattr(pool, "machine_gigabytes", lambda: 10.0)
    _, counts = run(tmp_path, *(fake_job(f"j{i}", gigabytes=gigabytes) for i in range(4)), workers=3)
    assert len(counts) == 4
    assert most_at_once(said()) == most


def test_a_jobs_process_has_one_thread(tmp_path, monkeypatch):
    assert pool.environment({}) == {
        "OMP_NUM_THREADS": "1",
        "XLA_FLAGS": pool.ONE_THREAD,
        "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1",
    }
    given = {"XLA_FLAGS": "--own=1", "GLIBC_TUNABLES": "glibc.malloc.perturb=1", "OMP_NUM_THREADS": "4", "A": "b"}
    assert pool.environment(given) == {
        **given,
        "XLA_FLAGS": f"--own=1 {pool.ONE_THREAD}",
        "GLIBC_TUNABLES": "glibc.malloc.perturb=1:glibc.malloc.hugetlb=1",
    }
    assert pool.environment({"XLA_FLAGS": "--a"}, one_thread=False) == {
        "XLA_FLAGS": "--a",
        "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1",
    }
    assert pool.environment({"GLIBC_TUNABLES": "glibc.malloc.hugetlb=2"})["GLIBC_TUNABLES"] == "glibc.malloc.hugetlb=2"
    monkeypatch.setenv("XLA_FLAGS", "--own=1")
    run(tmp_path, fake_job("a", "--show=XLA_FLAGS"))
    assert f"--own=1 {pool.ONE_THREAD}" in (tmp_path / "a" / "output.txt").read_text()


def test_the_last_line_that_says_something(tmp_path):
    path = tmp_path / "output.txt"
    for text, line in (("", "it said nothing"), ("one\n two \n\n", "two"), ("x" * 5000 + "\nerror: y", "error: y")):
        path.write_text(text)
        assert pool.last_line(path) == line
    path.write_bytes(b"\xff\xfe broken\n")
    assert pool.last_line(path).endswith("broken")


@linux
def test_a_process_without_its_parent_does_not_begin(tmp_path):
    command = [sys.executable, "-m", "gfn_jax.studies.process", "1", "fake_studies", "job", f"--workdir={tmp_path}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=ROOT)
    assert done.returncode == 1
    assert done.stderr == "process 1, which started this one, has ended\n"
    assert list(tmp_path.iterdir()) == []


# From here on: the command as a process of its own.


def command(workdir: pathlib.Path, *arguments: str, steps: int = 40) -> subprocess.Popen:
    """The command on fake studies."""
    return subprocess.Popen(
        [
            sys.executable,
            str(HERE / "fake_studies.py"),
            "--what=fine",
            "--seeds=0,1",
            f"--workdir={workdir}",
            *arguments,
        ],
        env=os.environ | {"FAKE_STEPS": str(steps), "JAX_PLATFORMS": "cpu"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_until(condition, seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def children(workdir: pathlib.Path) -> list[str]:
    """Command lines of processes that write below a folder, the command's own aside."""
    lines = []
    for path in pathlib.Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = path.read_bytes().replace(b"\0", b" ").decode()
        except OSError:  # it has just ended
            continue
        if f"--workdir={workdir}/" in line:
            lines.append(line)
    return lines


EXPECTED = "base 40\nrun/seed-0 80\nrun/seed-1 81"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_has_jobs_save_and_the_next_run_goes_on(tmp_path, number):
    first = command(tmp_path)
    wait_until(lambda: all((tmp_path / f"run/seed-{seed}/saved").exists() for seed in (0, 1)))
    first.send_signal(number)
    out, err = first.communicate(timeout=60)
    assert first.returncode == 128 + number
    assert out == "base 40\n"  # a report of what is there
    assert "asking 2 jobs to save and stop; again to stop at once" in err
    assert err.endswith("stopped; run the same command to go on\n")
    for seed in (0, 1):
        record = plan.read_record(tmp_path / f"run/seed-{seed}")
        assert record.exit_code is None
        assert record.seconds > 0
        done = steps_of(tmp_path / f"run/seed-{seed}")
        assert 0 < len(done) < 40
        assert int((tmp_path / f"run/seed-{seed}/saved").read_text()) == len(done)
    second = command(tmp_path)
    out, err = second.communicate(timeout=60)
    assert (second.returncode, out.strip()) == (0, EXPECTED)
    assert "3 jobs, 1 of them done" in err
    assert steps_of(tmp_path / "run/seed-1") == list(range(40))
    assert plan.read_record(tmp_path / "run/seed-1").seconds > record.seconds


@linux
def test_a_second_signal_stops_at_once(tmp_path):
    first = command(tmp_path, "--workers=1", steps=3000)
    wait_until(lambda: (tmp_path / "base/saved").exists())
    (job,) = children(tmp_path)
    stuck = next(
        int(path.parent.name)
        for path in pathlib.Path("/proc").glob("[0-9]*/cmdline")
        if path.read_bytes().replace(b"\0", b" ").decode() == job
    )
    os.kill(stuck, signal.SIGSTOP)  # it does not answer
    first.send_signal(signal.SIGINT)
    assert "asking 1 jobs" in next(line for line in first.stderr if "asking" in line)
    first.send_signal(signal.SIGINT)
    first.communicate(timeout=60)
    assert first.returncode == 130
    assert children(tmp_path) == []
    assert plan.read_record(tmp_path / "base").exit_code is None


@linux
def test_killed_at_random_it_ends_in_the_same_report(tmp_path):
    whole = command(tmp_path / "whole")
    assert whole.communicate(timeout=60)[0].strip() == EXPECTED
    draw, kills = random.Random(0), 0
    killed = tmp_path / "killed"
    for _ in range(6):
        one = command(killed)
        try:
            one.communicate(timeout=draw.uniform(0.2, 0.8))
        except subprocess.TimeoutExpired:
            one.kill()
            one.communicate()
            kills += 1
            wait_until(lambda: not children(killed))  # they end with it
    assert kills > 2
    last = command(killed)
    out, _ = last.communicate(timeout=60)
    assert (last.returncode, out.strip()) == (0, EXPECTED)
    files = [
        sorted(path.relative_to(folder) for path in folder.rglob("*.json")) for folder in (killed, tmp_path / "whole")
    ]
    assert files[0] == files[1]
    assert (killed / "report/report.md").read_text() == (tmp_path / "whole/report/report.md").read_text()
    for folder in ("base", "run/seed-0", "run/seed-1"):
        texts = [(root / folder / "results.json").read_text() for root in (killed, tmp_path / "whole")]
        assert texts[0] == texts[1]
        assert sorted(set(steps_of(killed / folder))) == list(range(40))


def test_one_run_at_a_time_has_the_workdir(tmp_path):
    first = command(tmp_path, steps=3000)
    wait_until(lambda: (tmp_path / "base/saved").exists())
    second = command(tmp_path)
    err = second.communicate(timeout=60)[1]
    assert second.returncode == 1
    assert re.fullmatch(rf"error: {tmp_path} is in use \(process {first.pid} on .*\); wait until .*\n", err)
    first.send_signal(signal.SIGINT)
    first.communicate(timeout=60)
    assert dataclasses.asdict(plan.read_record(tmp_path / "base"))["exit_code"] is None
