"""Sampling beside training: processes that draw rows for a learner, by an adapter that is some steps old.

Trajectory balance with asynchrony (TBA, Bartoldson et al., arXiv:2503.18929): losses of a GFlowNet hold for rows of any
policy, so rows may be drawn while the learner learns from others. Here the rows of step n, counted from 1, are drawn by
what was trained after

    max(n - 1 - S, 0) steps,     S the staleness,

so a row is never older than S steps, and what a run computes does not depend on which process was faster: it resumes
bit for bit, and with S = 0 it is the run that samples for itself, in two programs instead of one. Log-probabilities
under the behaviour travel with the rows. Processes meet in WORKDIR/asynchronous, by files that are whole or not there
(`training.exchange`):

    session.json       which run this is, where its learner began, whether it has ended
    policies/N.npz     what was trained after N steps; the learner writes it
    rows/N.npz         what step N learns from; sampler N modulo their number writes it
"""

import contextlib
import dataclasses
import json
import logging
import os
import pathlib
import shlex
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from gfn_jax.evaluation.report import read_json, write_whole
from gfn_jax.sections import Natural
from gfn_jax.training import exchange
from gfn_jax.training.checkpoint import Checkpointer
from gfn_jax.training.step import Metrics, Update
from gfn_jax.types import PyTree, Sampled, TrainState

PARENT = "GFN_JAX_LEARNER"  # in the environment of a sampler that a learner has started: whose process it is
POLL = 0.002  # seconds between two looks for a file
PATIENCE = 8.0  # seconds of waiting without a word
_log = logging.getLogger("gfn_jax")


@dataclasses.dataclass(frozen=True)
class AsynchronousConfig:
    """Who samples.

    Attributes:
        samplers: processes that sample for the learner; 0 for none: every step samples for itself.
        staleness: steps by which the adapter that draws a step's rows is older than the one that learns from them.
        local: the learner starts the samplers, on its own machine; else somebody starts them, by the run's own command
            with `--sampler=0` and so on, where they see the workdir.
    """

    samplers: Natural
    staleness: Natural
    local: bool


@dataclasses.dataclass(frozen=True)
class Session:
    """A learner's, from its start to its end.

    Attributes:
        name: its own.
        digest: of the run's config.
        start: steps that were done before it.
        steps: of the whole run.
        ended: whether no more rows are wanted.
    """

    name: str
    digest: str
    start: int
    steps: int
    ended: bool = False


@dataclasses.dataclass(frozen=True)
class Meeting:
    """Where a learner and its samplers find each other's files."""

    folder: pathlib.Path
    config: AsynchronousConfig

    @classmethod
    def of(cls, workdir: pathlib.Path, config: AsynchronousConfig) -> "Meeting":
        """That of a run, its folders made."""
        found = cls(workdir / "asynchronous", config)
        for name in ("policies", "rows"):
            (found.folder / name).mkdir(parents=True, exist_ok=True)
        return found

    def source(self, step: int) -> int:
        """After how many steps that was trained which draws the rows of a step."""
        return max(step - 1 - self.config.staleness, 0)

    def policy(self, step: int) -> pathlib.Path:
        """The file of what was trained after so many steps."""
        return self.folder / "policies" / f"{step}.npz"

    def rows(self, step: int) -> pathlib.Path:
        """The file of a step's rows."""
        return self.folder / "rows" / f"{step}.npz"

    def announce(self, session: Session) -> None:
        """Says which session it is, in place of any other."""
        write_whole(self.folder / "session.json", json.dumps(dataclasses.asdict(session)) + "\n")

    def session(self) -> Session | None:
        """The one that goes on, or has ended; None where there was none."""
        found: Mapping[str, Any] = read_json(self.folder / "session.json")
        return Session(**found) if found else None


class Samplers:
    """The samplers that a learner starts on its own machine; they end when it does, however it does.

    Args:
        command: of the run, as a person types it.
        count: of them.
        folder: where each leaves what it says, in sampler-N.txt.

    Raises:
        ValueError: nobody says what the command is.
    """

    def __init__(self, command: str, count: int, folder: pathlib.Path):
        if not command:
            raise ValueError(
                "asynchronous.local is True, and nothing says by which command samplers start: run it by "
                "`python -m gfn_jax.launch`, or set it to False and start them yourself"
            )
        self._words, self._count, self._folder = shlex.split(command)[1:], count, folder
        self._processes: list[subprocess.Popen] = []

    def start(self) -> None:
        """Starts all of them; signals of the terminal are the learner's alone."""
        for number in range(self._count):
            with self._said(number).open("wb") as said:
                self._processes.append(
                    subprocess.Popen(
                        [sys.executable, *self._words, f"--sampler={number}"],
                        stdout=said,
                        stderr=subprocess.STDOUT,
                        stdin=subprocess.DEVNULL,
                        env=os.environ | {PARENT: str(os.getpid())},
                        start_new_session=True,
                    )
                )

    def check(self) -> None:
        """Raises RuntimeError where one has ended."""
        for number, process in enumerate(self._processes):
            if process.poll() is not None:
                lines = self._said(number).read_text(errors="replace").strip().splitlines()
                last = lines[-1] if lines else "without a word"
                raise RuntimeError(
                    f"sampler {number} ended with exit code {process.returncode} ({last}); all it said is in "
                    f"{self._said(number)}; run the same command to go on from the newest checkpoint"
                )

    def stop(self) -> None:
        """Ends all of them."""
        for process in self._processes:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            process.wait()
        self._processes = []

    def _said(self, number: int) -> pathlib.Path:
        return self._folder / f"sampler-{number}.txt"


class Learner:
    """A step that learns from rows which samplers have drawn, as `training.step.Step`.

    Args:
        config: who samples.
        update: the second of `training.step.make_step_halves`, jitted.
        rows: shapes of what a step samples, with its age.
        checkpointer: the run's; policies are kept as long as a run that begins at one of its newest needs them.
        digest: of the run's config.
        steps: of the run.
        command: of the run, by which it starts samplers where they are to be local.

    Raises:
        ValueError: they are, and nobody says what the command is.
    """

    def __init__(
        self,
        config: AsynchronousConfig,
        update: Update,
        rows: Sampled,
        checkpointer: Checkpointer,
        digest: str,
        steps: int,
        command: str,
    ):
        self._meeting = Meeting.of(checkpointer.directory.parent, config)
        self._samplers = Samplers(command, config.samplers, self._meeting.folder) if config.local else None
        self._update, self._rows, self._checkpointer = update, rows, checkpointer
        self._digest, self._steps = digest, steps
        self._session: Session | None = None

    def __call__(self, state: TrainState, constants: Any) -> tuple[TrainState, Metrics]:
        """One step. `waited`: seconds until its rows were there.

        Raises:
            RuntimeError: a sampler ended.
        """
        done = int(jax.device_get(state.step))
        if self._session is None:
            self._session = self._begin(done, state.trainable)
        exchange.put(self._meeting.policy(done), state.trainable)
        self._forget()
        began = time.monotonic()
        sampled = jax.device_put(self._wait(done + 1), state.step.sharding)  # on all devices, whole
        waited = time.monotonic() - began
        state, metrics = self._update(state, constants, sampled)
        if done + 1 == self._steps:
            self._meeting.announce(dataclasses.replace(self._session, ended=True))
        return state, {**metrics, "waited": jax.device_put(np.float32(waited))}

    def close(self) -> None:
        """Ends the samplers that it has started."""
        if self._samplers is not None:
            self._samplers.stop()

    def _begin(self, done: int, trainable: PyTree) -> Session:
        """Makes the folder this session's own; policies that its first steps need are there, or replaced by today's."""
        for step in exchange.numbers(self._meeting.folder / "rows"):
            self._meeting.rows(step).unlink()
        there = exchange.numbers(self._meeting.folder / "policies")
        for step in there:
            if step > done:
                self._meeting.policy(step).unlink()
        lost = [step for step in range(self._meeting.source(done + 1), done) if step not in there]
        for step in lost:
            exchange.put(self._meeting.policy(step), trainable)
        if lost:
            _log.warning(
                "%s has no policies of steps %s: rows that they would have drawn are drawn by that of step %d",
                self._meeting.folder,
                ", ".join(map(str, lost)),
                done,
            )
        session = Session(uuid.uuid4().hex, self._digest, done, self._steps)
        self._meeting.announce(session)
        if self._samplers is not None:
            _log.info("starting %d samplers", self._meeting.config.samplers)
            self._samplers.start()
        return session

    def _forget(self) -> None:
        """Removes policies that no step needs any more, not even one that begins at the checkpoint before the last."""
        saved = self._checkpointer.steps[-2:]
        needed = self._meeting.source(saved[0] + 1) if len(saved) == 2 else 0
        for step in exchange.numbers(self._meeting.folder / "policies"):
            if step < needed:
                self._meeting.policy(step).unlink()

    def _wait(self, step: int) -> Sampled:
        path = self._meeting.rows(step)
        rows: Sampled = waited_for(lambda: exchange.take(path, self._rows), f"the rows of step {step}", self._check)
        path.unlink()
        return rows

    def _check(self) -> None:
        if self._samplers is not None:
            self._samplers.check()


def waited_for(look: Callable[[], Any], what: str, check: Callable[[], Any] = lambda: None) -> Any:
    """What `look` finds, as soon as it finds something; `check` is called before each further look.

    A wait that is long says so.
    """
    said = time.monotonic()
    while (found := look()) is None:
        check()
        if time.monotonic() - said > PATIENCE:
            said = time.monotonic()
            _log.info("waiting for %s", what)
        time.sleep(POLL)
    return found


def check_asynchronous(config: AsynchronousConfig, off_policy: bool, algorithm: str, several: bool) -> None:
    """Raises ValueError where a run cannot learn from samplers' rows: it needs its own, or is several runs."""
    if not config.samplers:
        return
    if not off_policy:
        raise ValueError(
            f"asynchronous.samplers is {config.samplers}; algorithm {algorithm!r} learns from what the policy itself "
            "has drawn, and rows of samplers are older: make it 0"
        )
    if several:
        raise ValueError(f"asynchronous.samplers is {config.samplers}; several runs in turn sample for themselves")


def check_one_process(config: AsynchronousConfig) -> None:
    """Raises ValueError where a learner with samplers is several processes."""
    if config.samplers and jax.process_count() > 1:
        raise ValueError(f"asynchronous.samplers is {config.samplers}; the learner must be one process")


def steps_of(session: Session, number: int, samplers: int) -> Sequence[int]:
    """The steps of a session for which one of the samplers draws rows."""
    return [step for step in range(session.start + 1, session.steps + 1) if step % samplers == number]
