"""Runs jobs as processes, several at once, each on one thread; what they say goes to FOLDER/output.txt.

Children have process groups of their own: Ctrl-C reaches the parent alone, which asks each of them once to stop. Where
the parent is killed, they are too (`process`), and the next run goes on from what they had saved.
"""

import contextlib
import dataclasses
import logging
import os
import pathlib
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import FrameType

from gfn_jax.studies.plan import (
    Expected,
    Planned,
    Record,
    by_the_clock,
    expected,
    new_record,
    read_record,
    readable_time,
    settle,
    state,
    write_record,
)
from gfn_jax.training import lock

POLL_SECONDS = 0.05
OUTPUT = "output.txt"
ONE_THREAD = "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"
LARGE_PAGES = "glibc.malloc.hugetlb=1"
_MAXRSS = 1 if sys.platform == "darwin" else 1024  # bytes that a unit of ru_maxrss is
_log = logging.getLogger("gfn_jax")


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What became of a plan.

    Attributes:
        failed: job -> the last line of what it said.
        skipped: jobs that need one of them.
        signal: that ended the run before all was done; None for none.
    """

    failed: Mapping[str, str]
    skipped: tuple[str, ...]
    signal: int | None


@dataclasses.dataclass(frozen=True)
class _Running:
    planned: Planned
    before: Record
    process: subprocess.Popen
    began: float

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.began


def run(
    plan: Sequence[Planned], workers: int, root: pathlib.Path, workdir: pathlib.Path, aloud: bool = False
) -> Outcome:
    """Runs the jobs that are not done.

    A job whose memory would not fit beside that of those which run waits; one that is too large for the machine runs
    alone. Where one fails the others go on.

    Args:
        plan: in order.
        workers: jobs at once.
        root: the folder that they run in, where configs/ lies.
        workdir: of all; one run at a time may have it.
        aloud: what the jobs say is said here, too, as they say it; and where one runs at a time, it has all threads.

    Raises:
        ValueError: another run has the workdir, or in a job's place is something else.
    """
    workdir.mkdir(parents=True, exist_ok=True)
    lock.hold(workdir)
    for planned in plan:
        settle(planned)
    return _Pool(plan, workers, root, aloud).run()


def environment(environ: Mapping[str, str], one_thread: bool = True) -> dict[str, str]:
    """What a job's process is given: one thread on a CPU, and large pages for large arrays where glibc knows how."""
    flags, tunables = environ.get("XLA_FLAGS", ""), environ.get("GLIBC_TUNABLES", "")
    if "glibc.malloc.hugetlb" not in tunables:
        tunables = f"{tunables}:{LARGE_PAGES}".removeprefix(":")
    if not one_thread:
        return {**environ, "GLIBC_TUNABLES": tunables}
    added = {"XLA_FLAGS": f"{flags} {ONE_THREAD}".strip(), "GLIBC_TUNABLES": tunables}
    return {"OMP_NUM_THREADS": "1", **environ, **added}


def machine_gigabytes() -> float:
    """The machine's memory."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9


def cores() -> int:
    """Those that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class _Pool:
    """The jobs that wait, run, are done, have failed; from a plan whose folders are settled."""

    def __init__(self, plan: Sequence[Planned], workers: int, root: pathlib.Path, aloud: bool):
        self.plan, self.workers, self.root, self.aloud = plan, workers, root, aloud
        self.began = time.monotonic()
        self.memory = machine_gigabytes()
        self.done = {planned.job.name for planned in plan if state(planned) == "done"}
        self.waiting = {planned.job.name: planned for planned in plan if planned.job.name not in self.done}
        self.running: dict[str, _Running] = {}
        self.heard: dict[str, int] = {}  # bytes of a job's output.txt that are said
        self.failed: dict[str, str] = {}
        self.skipped: list[str] = []
        self.expected: dict[str, Expected] = expected(plan)

    def run(self) -> Outcome:
        _log.info(
            "%d jobs, %d of them done; %s on %d workers",
            *(len(self.plan), len(self.done), self.rest(), self.workers),
        )
        heard = 0
        with _signals() as signals:
            try:
                while self.running or (self.waiting and not signals):
                    if not signals:
                        self.start()
                    while heard < len(signals):
                        self.stop(signals[heard], at_once=heard > 0)
                        heard += 1
                    self.repeat()
                    if not self.reap(asked=bool(signals)):
                        time.sleep(POLL_SECONDS)
            finally:
                for one in self.running.values():  # only where something is wrong with us
                    os.killpg(one.process.pid, signal.SIGKILL)
                    one.process.wait()
        return Outcome(self.failed, tuple(self.skipped), signals[0] if signals else None)

    def start(self) -> None:
        """Starts what may run now."""
        for name, planned in list(self.waiting.items()):
            if len(self.running) >= self.workers:
                return
            held = sum(self.expected[other].gigabytes for other in self.running)
            fits = not self.running or held + self.expected[name].gigabytes <= self.memory
            if fits and self.done.issuperset(planned.job.needs):
                self.running[name] = self.launch(self.waiting.pop(name))
                _log.info("started %s", name)

    def launch(self, planned: Planned) -> _Running:
        """A job's process."""
        before = dataclasses.replace(read_record(planned.folder) or new_record(planned), exit_code=None)
        write_record(planned.folder, before)
        own = [sys.executable, "-m", "gfn_jax.studies.process", str(os.getpid())]
        with (planned.folder / OUTPUT).open("ab") as output:
            self.heard[planned.job.name] = output.tell()
            process = subprocess.Popen(
                [*own, planned.job.module, *planned.arguments],
                cwd=self.root,
                env=environment(os.environ, one_thread=not self.aloud or self.workers > 1),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                process_group=0,
            )
        return _Running(planned, before, process, time.monotonic())

    def stop(self, number: int, at_once: bool) -> None:
        """Asks what runs to save and end; or ends it."""
        if at_once:
            for one in self.running.values():
                os.killpg(one.process.pid, signal.SIGKILL)
            return
        name = signal.Signals(number).name
        _log.info("%s: asking %d jobs to save and stop; again to stop at once", name, len(self.running))
        for one in self.running.values():
            one.process.send_signal(signal.SIGINT)

    def reap(self, asked: bool) -> bool:
        """Takes note of the jobs that have ended; whether there are any.

        Args:
            asked: they were asked to stop, so that an exit code other than 0 is no failure.
        """
        ended = []
        for one in list(self.running.values()):
            pid, status, usage = os.wait4(one.process.pid, os.WNOHANG)
            if pid:
                self.repeat()
                ended.append(one.planned.job.name)
                del self.running[ended[-1]]
                code = one.process.returncode = os.waitstatus_to_exitcode(status)
                record = dataclasses.replace(
                    one.before,
                    exit_code=None if asked and code else code,
                    seconds=one.before.seconds + one.seconds,
                    cpu_seconds=one.before.cpu_seconds + usage.ru_utime + usage.ru_stime,
                    gigabytes=max(one.before.gigabytes, usage.ru_maxrss * _MAXRSS / 1e9),
                )
                write_record(one.planned.folder, record)
                self.say(one.planned, record)
        return bool(ended)

    def repeat(self) -> None:
        """Says the whole lines that jobs have said since."""
        for name, one in self.running.items() if self.aloud else ():
            with (one.planned.folder / OUTPUT).open("rb") as file:
                file.seek(self.heard[name])
                text = file.read()
            text = text[: text.rfind(b"\n") + 1]
            self.heard[name] += len(text)
            for line in text.decode(errors="replace").splitlines():
                _log.info("%s  %s", name, line)

    def say(self, planned: Planned, record: Record) -> None:
        """A line on a job that has ended; what needs it waits no longer."""
        name = planned.job.name
        if record.exit_code is None:
            _log.info("stopped %s; it can go on", name)
        elif state(planned) == "done":
            self.done.add(name)
            self.expected = expected(self.plan)
            took = f"{readable_time(record.seconds)}, {record.gigabytes:.1f} GB"
            so_far = f"{readable_time(time.monotonic() - self.began)} so far"
            _log.info(
                "finished %s: %s; %d of %d; %s, %s", name, took, len(self.done), len(self.plan), so_far, self.rest()
            )
        else:
            code = record.exit_code
            how = f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
            self.failed[name] = last_line(planned.folder / OUTPUT) if code else "it left no results.json"
            _log.info("failed %s (%s): %s", name, how, self.failed[name])
            before = len(self.skipped)
            for other in self.plan:
                if other.job.name in self.waiting and {*self.failed, *self.skipped} & {*other.job.needs}:
                    del self.waiting[other.job.name]
                    self.skipped.append(other.job.name)
            if self.skipped[before:]:
                _log.info("skipped %s: %s is needed", ", ".join(self.skipped[before:]), name)

    def rest(self) -> str:
        """How long it will take, in words."""
        left = {name: self.expected[name].seconds for name in self.waiting}
        left |= {name: max(self.expected[name].seconds - one.seconds, 0.0) for name, one in self.running.items()}
        return f"about {readable_time(by_the_clock(left, self.plan, self.workers))} left"


def last_line(path: pathlib.Path, most: int = 4096) -> str:
    """The last line of a file that says something, of its last bytes."""
    with path.open("rb") as file:
        file.seek(max(path.stat().st_size - most, 0))
        lines = file.read().decode(errors="replace").split("\n")
    return next((line.strip()[:300] for line in reversed(lines) if line.strip()), "it said nothing")


@contextlib.contextmanager
def _signals() -> Iterator[list[int]]:
    """The numbers of the SIGINTs and SIGTERMs that come meanwhile, in a list that grows."""
    came: list[int] = []
    with handling_signals(came.append):
        yield came


@contextlib.contextmanager
def handling_signals(react: Callable[[int], None]) -> Iterator[None]:
    """Calls `react` with every SIGINT and SIGTERM that comes meanwhile."""

    def handler(number: int, frame: FrameType | None) -> None:
        react(number)

    before = {number: signal.signal(number, handler) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, previous in before.items():
            signal.signal(number, previous)
