"""The loop: one compiled step after another, and between them logs, evaluations and checkpoints.

Nothing travels between host and device inside a step (`jax.transfer_guard`), and the host reads the metrics
of a step while the next one runs. What a run does depends on its state alone, so a run that is stopped and
started again by the same command is the same run.
"""

import contextlib
import dataclasses
import logging
import math
import pathlib
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import FrameType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gfn_jax.errors import EvaluationFailed, TrainingDiverged, TrainingStopped, first_line
from gfn_jax.training.checkpoint import Checkpointer
from gfn_jax.training.writers import Writer
from gfn_jax.types import PyTree

Metrics = Mapping[str, float]

_log = logging.getLogger("gfn_jax")


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """Something measured now and then.

    Attributes:
        every: steps between two measurements; the last step is measured too.
        evaluate: (state, step) -> values by name. Must not depend on anything else, nor change the state.
    """

    every: int
    evaluate: Callable[[Any, int], dict[str, float]]


@dataclasses.dataclass(frozen=True)
class Trained:
    """What `train` returns.

    Attributes:
        state: after the last step.
        steps: how many steps it has done.
        seconds: training time over all sessions, without compilation, evaluation and saving.
        compile_seconds: what the first step of this session took, compilation included; 0 if none was left.
    """

    state: Any
    steps: int
    seconds: float
    compile_seconds: float


def describe_metrics(metrics: Metrics, evaluated: Metrics) -> str:
    """All values, the last evaluation's after the step's."""
    return "  ".join(f"{name} {value:.4g}" for name, value in [*metrics.items(), *evaluated.items()])


@dataclasses.dataclass(frozen=True)
class Run:
    """All that the loop needs to know.

    Attributes:
        workdir: where the run writes.
        step_fn: (state, constants) -> (state, metrics), compiled; `state` may be donated. `metrics` are
            scalars and hold `loss`; where rewards are sampled `finite_rewards`, the share that are numbers.
        state: before the first step: a pytree with `trainable` and `opt_state`, placed on its devices.
        constants: what steps read and never change, placed on the devices.
        num_steps: where training ends.
        samples_per_step: rows a step, for the rate.
        checkpointer: reads and writes the checkpoints.
        writers: where metrics go.
        finish: last words, given what `train` returned: the table, and where everything was written.
        evaluations: what is measured on the way.
        best_metric: the evaluated value by which the best checkpoint is kept (more is better).
        log_every: steps between two lines of progress.
        save_every: steps between two checkpoints.
        describe_progress: (metrics, last evaluation) -> the end of a line of progress.
        close: lets go of what steps alone need, after the last of them.
    """

    workdir: pathlib.Path
    step_fn: Callable[[Any, PyTree], tuple[Any, dict[str, jax.Array]]]
    state: Any
    constants: PyTree
    num_steps: int
    samples_per_step: int
    checkpointer: Checkpointer
    writers: tuple[Writer, ...] = ()
    finish: Callable[[Trained], str] = lambda trained: ""
    evaluations: tuple[Evaluation, ...] = ()
    best_metric: str | None = None
    log_every: int = 10
    save_every: int = 100
    describe_progress: Callable[[Metrics, Metrics], str] = describe_metrics
    close: Callable[[], None] = lambda: None

    def __post_init__(self):
        counts = {
            "num_steps": self.num_steps,
            "samples_per_step": self.samples_per_step,
            "log_every": self.log_every,
            "save_every": self.save_every,
            "evaluation's every": min((e.every for e in self.evaluations), default=1),
        }
        for name, count in counts.items():
            if count < 1:
                raise ValueError(f"{name} must be at least 1, not {count}")


def complete(run: Run) -> str:
    """Trains, and returns the run's last words.

    Raises:
        TrainingStopped: a signal came; one that comes during the last words ends them at once.
        EvaluationFailed: the last words could not be found; the last step is saved.
        TrainingDiverged, ValueError: as `train` does.
    """
    trained = train(run)
    stopped = (
        f"stopped after step {trained.steps} of {run.num_steps}, during the report; all steps are saved in "
        f"{run.checkpointer.directory}; run the same command for the report"
    )
    try:
        with stoppable(stopped):
            return run.finish(trained)
    except (TrainingStopped, TrainingDiverged, EvaluationFailed):
        raise
    except Exception as error:
        raise EvaluationFailed(
            f"the report failed ({first_line(error)}); all steps are saved in {run.checkpointer.directory}; "
            "run the same command for the report alone"
        ) from error


def train(run: Run) -> Trained:
    """Trains from the newest checkpoint (or from `run.state`) to `run.num_steps`.

    Raises:
        TrainingDiverged: the loss or the state is no longer finite; nothing of it is saved.
        TrainingStopped: SIGINT or SIGTERM came; the step (and its evaluation) was finished and saved.
        EvaluationFailed: an evaluation raised, or gave NaN; its step was saved.
        OSError: the machine could not read or write a checkpoint, or the workdir was deleted.
        ValueError: the checkpoints cannot be read, or hold more steps than `run.num_steps`.
    """
    restored = run.checkpointer.restore(run.state)
    state, start, seconds = run.state, 0, 0.0
    if restored is not None:
        state, start, seconds = restored.state, restored.step, restored.seconds
        _log.info("going on from step %d of %d in %s", start, run.num_steps, run.workdir)
    if start > run.num_steps:
        raise ValueError(f"{run.workdir} holds step {start}, more than the {run.num_steps} steps asked for")
    session = _Session(run, start, seconds)
    if start < run.num_steps:
        _log.info("compiling the step", extra={"place": (start, run.num_steps)})
    try:
        for writer in run.writers:
            writer.resume(start)
        with _signals(session.note_signal):
            for step in range(start + 1, run.num_steps + 1):
                with jax.transfer_guard("disallow"):
                    state, metrics = run.step_fn(state, run.constants)
                session.stepped(step, metrics)
                stopping = session.signal is not None or run.checkpointer.reached_preemption(step)
                session.between_steps(step, state, stopping)
                if stopping or (session.signal is not None and step == run.num_steps):
                    run.checkpointer.wait()
                    raise _stopped(run, step, session.signal or signal.SIGTERM)
        run.checkpointer.wait()
    except BaseException:
        with contextlib.suppress(Exception):  # what is wrong was said already
            run.checkpointer.wait()
        raise
    finally:
        run.close()
        for writer in run.writers:
            writer.close()
    return Trained(state=state, steps=run.num_steps, seconds=session.seconds, compile_seconds=session.first)


class _Session:
    """One process's share of a run: what it has seen, and how fast."""

    def __init__(self, run: Run, start: int, seconds: float):
        self.run = run
        self.seconds = seconds
        self.first = 0.0
        self.signal: int | None = None
        self._start = start
        self._pending: tuple[int, dict[str, jax.Array]] | None = None
        self._evaluated: dict[str, float] = {}
        self._since = time.perf_counter()  # the clock of training itself; stopped between steps
        self._began = 0.0  # the end of the first step: rates and the ETA count from there
        self._logged = (start, seconds)

    def note_signal(self, number: int) -> None:
        """The step that runs will be the last."""
        self.signal = number
        _log.info("%s: finishing this step, then saving; again to stop at once", signal.Signals(number).name)

    def stepped(self, step: int, metrics: dict[str, jax.Array]) -> None:
        """Takes note of a step that was started, and reads the metrics of the one before."""
        if not self._began:
            jax.block_until_ready(metrics)
            self._began = time.perf_counter()
            self.first = self._began - self._since
            self._since = self._began
            self._logged = (step, self.seconds)
            _log.info("first step took %.1f s, compilation included", self.first)
        self._read_pending()
        self._pending = (step, metrics)
        _log.debug("training", extra={"place": (step, self.run.num_steps)})

    def between_steps(self, step: int, state: Any, stopping: bool) -> None:
        """Evaluates and saves where it is time to, having made sure that the state is sound."""
        run = self.run
        last = step == run.num_steps
        due = [e for e in run.evaluations if last or step % e.every == 0]
        if not (due or last or stopping or step % run.save_every == 0):
            return
        self._read_pending()
        self.seconds += time.perf_counter() - self._since
        if not all(jax.device_get(_finite((state.trainable, state.opt_state)))):
            raise self._diverged("the state is not finite", step)
        if due:
            _log.info("step %d: evaluating", step)
        evaluated, failure = _evaluate(due, state, step)
        if evaluated:
            self._write(step, "eval", evaluated)
            self._evaluated |= evaluated
            _log.info("step %d evaluated: %s", step, run.describe_progress({}, evaluated))
        score = evaluated.get(run.best_metric) if run.best_metric is not None else None
        run.checkpointer.save(step, state, self.seconds, score)
        if failure is not None:
            run.checkpointer.wait()
            raise EvaluationFailed(
                f"the evaluation of step {step} failed ({first_line(failure)}); the step is saved in "
                f"{run.checkpointer.directory}; run the same command to go on from there"
            ) from failure
        self._since = time.perf_counter()

    def _read_pending(self) -> None:
        """Brings the last started step's metrics to the host, where they are written, checked and logged."""
        if self._pending is None:
            return
        step, arrays = self._pending
        self._pending = None
        metrics = {name: float(value) for name, value in jax.device_get(arrays).items()}
        now = time.perf_counter()
        self.seconds, self._since = self.seconds + now - self._since, now
        self._write(step, "train", metrics | {"seconds": round(self.seconds, 3)})
        if not math.isfinite(metrics["loss"]):
            raise self._diverged(f"the loss is {metrics['loss']}", step, metrics)
        if step % self.run.log_every == 0 or step == self.run.num_steps:
            self.run.checkpointer.check_folder()
            _log.info("%s  %s", self._pace(step, now), self.run.describe_progress(metrics, self._evaluated))

    def _pace(self, step: int, now: float) -> str:
        """Where the run is, how fast since the last such line, and when it will be done at this pace."""
        then, seconds = self._logged
        self._logged = (step, self.seconds)
        place = f"step {step}/{self.run.num_steps}"
        done = step - self._start - 1  # without the first, which compiled
        if done < 1 or step == then:
            return place
        rate = (step - then) / max(self.seconds - seconds, 1e-9)
        left = (self.run.num_steps - step) * (now - self._began) / done
        samples = rate * self.run.samples_per_step
        return f"{place}  {rate:.3g} steps/s, {samples:.4g} samples/s  ETA {_duration(left)}"

    def _write(self, step: int, kind: str, values: Metrics) -> None:
        for writer in self.run.writers:
            writer.write(step, kind, values)

    def _diverged(self, what: str, step: int, metrics: Metrics | None = None) -> TrainingDiverged:
        self.run.checkpointer.wait()
        good = self.run.checkpointer.latest_step
        kept = "there is no checkpoint yet" if good is None else f"the last good checkpoint is step {good}"
        return TrainingDiverged(
            f"{what} at step {step}; {kept} in {self.run.checkpointer.directory}; "
            f"{self._advice(step, metrics or {})}, with another --workdir"
        )

    def _advice(self, step: int, metrics: Metrics) -> str:
        """What to change; a learning rate is not to blame for what no step of it has touched."""
        paths, _ = zip(*jax.tree_util.tree_leaves_with_path(self.run.constants))
        for path, finite in zip(paths, jax.device_get(_finite(self.run.constants)), strict=True):
            if not finite:
                name = jax.tree_util.keystr(path, simple=True, separator="/")
                return f"{name} is not finite, and no training will change that: look there first"
        if metrics.get("finite_rewards", 1.0) < 1:
            share = 100 * metrics["finite_rewards"]
            return f"the reward is a finite number for {share:.4g} % of the prefixes only: make it finite for all"
        if step == 1:
            return (
                "nothing had been learnt by then, so the learning rate is not the cause: look at lora.alpha, "
                "lora.dropout, the reward and the model"
            )
        return "try a lower learning rate or a smaller clip_norm"


def _evaluate(evaluations: Sequence[Evaluation], state: Any, step: int) -> tuple[dict[str, float], Exception | None]:
    """What was measured, and what kept the rest from it; NaN is no measurement."""
    evaluated: dict[str, float] = {}
    try:
        for evaluation in evaluations:
            evaluated |= evaluation.evaluate(state, step)
        for name, value in evaluated.items():
            if math.isnan(value):
                raise ValueError(f"{name} is nan")
    except Exception as error:  # a user's evaluator may raise anything, and training is not to be lost for it
        return evaluated, error
    return evaluated, None


@jax.jit
def _finite(tree: PyTree) -> list[jax.Array]:
    """One answer an array; integers are finite."""
    return [
        jnp.isfinite(x).all() if jnp.issubdtype(x.dtype, np.inexact) else jnp.array(True) for x in jax.tree.leaves(tree)
    ]


def _stopped(run: Run, step: int, number: int) -> TrainingStopped:
    return TrainingStopped(
        f"stopped at step {step} of {run.num_steps}, saved in {run.checkpointer.directory}; "
        "run the same command to go on",
        exit_code=128 + number,
    )


@contextlib.contextmanager
def stoppable(message: str) -> Iterator[None]:
    """Ends what is inside at the first SIGINT or SIGTERM, with a `TrainingStopped` that says `message`."""

    def stop(number: int) -> None:
        raise TrainingStopped(message, exit_code=128 + number)

    with _signals(stop):
        yield


@contextlib.contextmanager
def _signals(react: Callable[[int], None]) -> Iterator[None]:
    """Calls `react` with the first SIGINT or SIGTERM; a second one acts as ever.

    With several processes signals come to one or at different steps; there the cluster's own notice counts
    (`Checkpointer.reached_preemption`), and handlers of ours would hide the signal from it.
    """
    caught = (signal.SIGINT, signal.SIGTERM)
    if jax.distributed.is_initialized() or threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in caught}

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    def catch(number: int, frame: FrameType | None) -> None:
        restore()
        react(number)

    for number in caught:
        signal.signal(number, catch)
    try:
        yield
    finally:
        restore()


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h{minutes:02}m" if hours else f"{minutes}m{seconds:02}s" if minutes else f"{seconds}s"
