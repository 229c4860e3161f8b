"""Saving and restoring a run, and keeping two configs out of one folder.

    WORKDIR/config.json             the config that owns the folder
    WORKDIR/checkpoints/STEP/       state (orbax, written while training goes on) and a few facts about it
    WORKDIR/unreadable/STEP-TIME/   damaged checkpoints, moved out of the way
    WORKDIR/.lock                   held by the process whose run it is

The newest checkpoints and the best one are kept. Random keys are in none: they are folded from the step's
number. With the facts lies a digest of every array (`digests`), and of the facts themselves: what is restored is
what was saved, or it is not used.
"""

import contextlib
import dataclasses
import hashlib
import json
import logging
import math
import os
import pathlib
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils
from orbax.checkpoint import checkpoint_managers

from gfn_jax.errors import first_line
from gfn_jax.training import lock
from gfn_jax.training.digests import digests
from gfn_jax.types import PyTree

_log = logging.getLogger("gfn_jax")

# Files that are not there: damage, unlike what else the system may answer.
_ABSENT = (FileNotFoundError, NotADirectoryError, IsADirectoryError)
NOT_OWNING = ("evaluation", "certificate", "report")  # what training does not depend on
_STATUS = r"(RESOURCE_EXHAUSTED|PERMISSION_DENIED|UNAVAILABLE|DEADLINE_EXCEEDED|ABORTED|CANCELLED)\b"


def config_digest(config: Mapping[str, Any]) -> str:
    """Twelve hexadecimal digits that name a config; the order of its keys and `NOT_OWNING` do not matter."""
    return hashlib.sha256(_canonical(_owning(config)).encode()).hexdigest()[:12]


def claim_workdir(workdir: pathlib.Path, config: Mapping[str, Any]) -> str:
    """Makes `workdir` this config's own, and returns the config's digest.

    A folder without a checkpoint is nobody's: whoever had it got nowhere, and a corrected config may use it. One that
    another process is writing to is that process's, until it ends.

    Args:
        workdir: where a run writes; created if need be.
        config: what the result depends on, as nested mappings of plain values; how it is measured (`NOT_OWNING`)
            may differ from session to session.

    Raises:
        ValueError: another process is at work there, checkpoints of another config lie there (the keys that differ
            are named), or the folder's config is unreadable.
    """
    if jax.process_index() == 0:
        workdir.mkdir(parents=True, exist_ok=True)
        lock.hold(workdir)
    path = workdir / "config.json"
    if path.exists() and any(step.name.isdigit() for step in (workdir / "checkpoints").glob("*")):
        try:
            owner = json.loads(path.read_text())
        except ValueError as error:
            raise ValueError(f"{path} cannot be read ({error}); use another --workdir") from error
        differing = list(_differences(_owning(owner), _owning(json.loads(_canonical(config)))))
        if differing:
            more = f" (and {len(differing) - 3} more)" if len(differing) > 3 else ""
            raise ValueError(
                f"{workdir} belongs to another config: {'; '.join(differing[:3])}{more}; use another --workdir"
            )
    elif jax.process_index() == 0:
        partial = path.with_suffix(".partial")
        partial.write_text(_canonical(config) + "\n")
        os.replace(partial, path)
    return config_digest(config)


def _owning(config: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in config.items() if name not in NOT_OWNING}


def _canonical(config: Mapping[str, Any]) -> str:
    return json.dumps(config, indent=1, sort_keys=True)


def _differences(there: Any, here: Any, path: str = "") -> Iterator[str]:
    """One phrase a key that differs between two trees of plain values."""
    if isinstance(there, dict) and isinstance(here, dict):
        for key in sorted(there.keys() | here.keys()):
            name = f"{path}.{key}" if path else key
            if key not in here or key not in there:
                yield f"{name} is only {'there' if key in there else 'here'}"
            else:
                yield from _differences(there[key], here[key], name)
    elif there != here:
        yield f"{path} is {there!r} there and {here!r} here"


@dataclasses.dataclass(frozen=True)
class Restored:
    """What a checkpoint held.

    Attributes:
        state: the run's state, placed as the template was.
        step: how many steps it had done.
        seconds: how long they had taken.
    """

    state: PyTree
    step: int
    seconds: float


class DamagedCheckpoint(ValueError):
    """What lies on the disk is not what was saved."""


class Checkpointer:
    """The checkpoints of one run: saved while training goes on, the latest and the best kept.

    Args:
        workdir: the run's folder.
        digest: of the config that owns it; a checkpoint of another config is refused.
        keep_latest: how many of the newest to keep, besides the best.
    """

    def __init__(self, workdir: pathlib.Path, digest: str, keep_latest: int = 2):
        self.directory = workdir.absolute() / "checkpoints"
        self._aside = workdir.absolute() / "unreadable"
        self._digest = digest
        # Orbax's own tracking of the best reads every score as it opens the folder, and cannot open it where
        # one is damaged; so the scores lie with the facts and are read here.
        self._policy = _LatestAndBest(keep_latest)
        options = ocp.CheckpointManagerOptions(preservation_policy=self._policy, cleanup_tmp_directories=True)
        self._manager = ocp.CheckpointManager(self.directory, options=options)
        self._folder = os.open(self.directory, os.O_RDONLY)  # while it is open no other folder gets its inode
        for step in self.steps:
            with contextlib.suppress(ValueError, OSError):  # a damaged one is said so when it is restored
                self._policy.scores[step] = read_facts(self.directory / str(step))["score"]

    @property
    def steps(self) -> list[int]:
        """The steps that are saved, or being saved, oldest first."""
        return sorted(self._manager.all_steps())

    @property
    def latest_step(self) -> int | None:
        """The newest step that is saved, or None."""
        return max(self.steps, default=None)

    def save(self, step: int, state: PyTree, seconds: float, score: float | None = None) -> None:
        """Starts saving; returns once `state` is copied and may be donated.

        Args:
            step: steps done.
            state: what to save.
            seconds: training time so far.
            score: how good it is (more is better), where it was evaluated.

        Raises:
            OSError: the folder is gone, or the machine could not write this checkpoint or the one before.
        """
        self.check_folder()
        score = -math.inf if score is None or math.isnan(score) else score
        self._policy.scores[step] = score
        facts = {"config_digest": self._digest, "seconds": seconds, "score": score, "digests": digests(state)}
        facts["digest"] = config_digest(facts)
        arguments = ocp.args.Composite(state=ocp.args.StandardSave(state), facts=ocp.args.JsonSave(facts))
        with self._writing():
            self._manager.save(step, args=arguments)

    def check_folder(self) -> None:
        """Raises FileNotFoundError where the folder was deleted, or another one put in its place."""
        if not self.directory.exists() or not os.path.samestat(os.fstat(self._folder), os.stat(self.directory)):
            raise FileNotFoundError(
                f"{self.directory} was deleted while the run went on: nothing more can be saved there; start again"
            )

    def wait(self) -> None:
        """Returns once everything is on disk; raises OSError for what kept a save in the background from it."""
        with self._writing():
            self._manager.wait_until_finished()

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        """Of a machine that cannot write, what it lacks; the libraries' own account is a page long."""
        try:
            yield
        except Exception as error:
            self.check_folder()
            fault = fault_of_machine(error)
            if fault is None:
                raise
            raise OSError(f"no checkpoint can be written to {self.directory}: {fault}") from error

    def close(self) -> None:
        """Waits, and lets go of the folder."""
        self._manager.close()
        os.close(self._folder)

    def reached_preemption(self, step: int) -> bool:
        """Whether the cluster is about to end this job; all its processes agree on the step."""
        return self._manager.reached_preemption(step)

    def restore(self, template: PyTree) -> Restored | None:
        """The newest checkpoint that is as it was saved, or None where there is none.

        Newer ones that are damaged are named in the log and moved aside; their steps can be saved again.

        Args:
            template: a state of the same structure; the restored one takes its shapes, types and shardings,
                so that a run may go on with another number of devices.

        Raises:
            ValueError: none of the checkpoints can be read, or one belongs to another config.
            OSError: it is the machine that could not read one; nothing is moved.
        """
        wanted = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), template)
        failures: dict[int, str] = {}
        for step in reversed(self.steps):
            try:
                restored = self._read(step, wanted)
            except DamagedCheckpoint as error:
                failures[step] = f"step {step} cannot be read ({error})"
                _log.warning("checkpoint of %s; trying an older one", failures[step])
                continue
            self._put_aside(list(failures))
            return restored
        if failures:
            raise ValueError(
                f"no checkpoint in {self.directory} can be read: {'; '.join(failures.values())}; "
                "move the folder away to start over"
            )
        return None

    def _read(self, step: int, wanted: PyTree) -> Restored:
        """One checkpoint, its digests compared; all processes agree on what became of it.

        Raises:
            DamagedCheckpoint: it is not as it was saved, or another config's.
            OSError: the machine could not read it.
        """
        folder, error, state, facts = self.directory / str(step), None, None, {}
        try:
            facts = read_facts(folder)
            # The manager's own way ends in a barrier, at which a process that could read would wait for ever.
            state = ocp.StandardCheckpointHandler().restore(folder / "state", args=ocp.args.StandardRestore(wanted))
        except Exception as caught:  # whatever a damaged file makes the libraries raise
            error = caught
        fault = None if error is None else fault_of_machine(error)
        damaged, faulty = _anywhere(error is not None, fault is not None)
        if faulty:
            raise OSError(f"step {step} in {self.directory} cannot be read now: {fault or 'another process failed'}")
        if damaged:
            raise DamagedCheckpoint(_reason(error)) from error
        if facts["config_digest"] != self._digest:
            raise DamagedCheckpoint(f"it belongs to config {facts['config_digest']}, not {self._digest}")
        check_digests(state, facts)
        return Restored(state=state, step=step, seconds=facts["seconds"])

    def _put_aside(self, steps: list[int]) -> None:
        if not steps:
            return
        if jax.process_index() == 0:
            self._aside.mkdir(exist_ok=True)
            for step in steps:
                os.rename(self.directory / str(step), self._aside / f"{step}-{time.time_ns()}")
        multihost_utils.sync_global_devices("unreadable checkpoints put aside")
        self._manager.reload()


class _LatestAndBest:
    """Which checkpoints to keep: the newest few, and the one of the highest score (of equals the newest)."""

    def __init__(self, keep_latest: int):
        self.keep_latest = keep_latest
        self.scores: dict[int, float] = {}

    def should_preserve(
        self,
        checkpoints: Sequence[checkpoint_managers.PolicyCheckpointInfo],
        *,
        context: checkpoint_managers.PreservationContext,
    ) -> Sequence[bool]:
        """One answer a checkpoint; they come oldest first."""
        steps = [checkpoint.step for checkpoint in checkpoints]
        best = max(steps, key=lambda step: (self.scores.get(step, -math.inf), step), default=None)
        return [step == best or step in steps[-self.keep_latest :] for step in steps]


def read_facts(folder: pathlib.Path) -> dict[str, Any]:
    """What a checkpoint's folder says of it: `config_digest`, `seconds`, `score` and the `digests` of its arrays.

    Raises:
        DamagedCheckpoint: they are gone, or not as they were saved.
        OSError: the machine cannot read them.
    """
    try:
        facts = json.loads((folder / "facts" / "metadata").read_bytes())
        intact = facts.pop("digest") == config_digest(facts)
    except (*_ABSENT, ValueError, KeyError, AttributeError, TypeError) as error:
        raise DamagedCheckpoint(f"its facts are damaged: {first_line(error)}") from error
    if not intact:
        raise DamagedCheckpoint("its facts are not those that were saved")
    return facts


def check_digests(state: PyTree, facts: Mapping[str, Any]) -> None:
    """Raises DamagedCheckpoint, naming them, where arrays of a checkpoint (or of a part of it) are others."""
    differing = [name for name, digest in digests(state).items() if facts["digests"].get(name) != digest]
    if differing:
        more = f" and {len(differing) - 3} more" if len(differing) > 3 else ""
        raise DamagedCheckpoint(f"{', '.join(differing[:3])}{more}: not the numbers that were saved")


def fault_of_machine(error: BaseException | None) -> str | None:
    """What the machine lacked or failed at, where that is why something was not read or written; else None."""
    while error is not None:
        if isinstance(error, MemoryError):
            return "out of memory"
        if isinstance(error, OSError) and not isinstance(error, _ABSENT):
            return first_line(error)
        code = re.search(r"os_error_code='(\d+)'", str(error))
        if code and not isinstance(OSError(int(code[1]), ""), _ABSENT):
            return os.strerror(int(code[1]))
        if isinstance(error, jax.errors.JaxRuntimeError) or re.match(_STATUS, str(error)):
            return first_line(error)
        error = error.__cause__ or error.__context__
    return None


def _reason(error: BaseException | None) -> str:
    if error is None:
        return "in another process"
    return str(error) if isinstance(error, DamagedCheckpoint) else first_line(error)


def _anywhere(*found: bool) -> list[bool]:
    """Whether each was found in any process."""
    if jax.process_count() == 1:
        return list(found)
    return multihost_utils.process_allgather(np.array(found)).any(axis=0).tolist()
