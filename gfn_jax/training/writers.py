"""Where metrics go: a line of JSON each, always, and TensorBoard and Weights & Biases where asked for.

A record is `{"step": 12, "kind": "train", "loss": 3.1, ...}`; its step counts finished steps. A run that goes
on from step s first drops what was written after s, so that no step is there twice.
"""

import importlib.util
import json
import logging
import math
import os
import pathlib
import uuid
from collections.abc import Mapping
from typing import Any, Protocol, TextIO

import jax

from gfn_jax.sections import RunConfig
from gfn_jax.text.files import read_text

METRICS = "metrics.jsonl"
_log = logging.getLogger("gfn_jax")


class Writer(Protocol):
    """A place for metrics."""

    def resume(self, step: int) -> None:
        """Opens, and forgets what lies after `step`. Called once, before anything is written."""

    def write(self, step: int, kind: str, values: Mapping[str, float]) -> None:
        """Keeps the values of one step; `kind` is `train` or `eval`."""

    def close(self) -> None:
        """Flushes and closes; does nothing to a writer that was never opened."""


class JsonlWriter:
    """One JSON object a line; a value that is not finite is written as null."""

    def __init__(self, path: pathlib.Path):
        self.path = path
        self._file: TextIO | None = None

    def resume(self, step: int) -> None:
        """Raises ValueError, naming the line, where an older record is damaged."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        if self.path.exists():
            lines = read_text(self.path).splitlines(keepends=True)
            partial = self.path.with_suffix(".partial")
            kept = [line for number, line in enumerate(lines, 1) if self._keeps(number, line, step)]
            partial.write_text("".join(kept))
            os.replace(partial, self.path)
        self._file = self.path.open("a", buffering=1)

    def _keeps(self, number: int, line: str, step: int) -> bool:
        try:
            # A line without its end is the last one, which the run was writing as it was killed.
            return line.endswith("\n") and json.loads(line)["step"] <= step
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{self.path}, line {number}: not a record of metrics ({error})") from error

    def write(self, step: int, kind: str, values: Mapping[str, float]) -> None:
        finite = {name: value if math.isfinite(value) else None for name, value in values.items()}
        record: dict[str, Any] = {"step": step, "kind": kind, **finite}
        assert self._file is not None, "resume() opens the file"
        try:
            self._file.write(json.dumps(record) + "\n")
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(self.path)) from error

    def close(self) -> None:
        if self._file is not None:
            self._file.close()


class TensorBoardWriter:
    """Scalars for TensorBoard, written by tensorboardX."""

    def __init__(self, directory: pathlib.Path):
        self.directory = directory
        self._board: Any = None

    def resume(self, step: int) -> None:
        import tensorboardX  # slow to import, and optional

        # purge_step makes TensorBoard hide what an earlier run of this folder wrote from there on.
        self._board = tensorboardX.SummaryWriter(str(self.directory), purge_step=step + 1)

    def write(self, step: int, kind: str, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._board.add_scalar(f"{kind}/{name}", value, step)

    def close(self) -> None:
        if self._board is not None:
            self._board.close()


class WandbWriter:
    """Scalars for Weights & Biases: one run there for one workdir here, however often it is gone on with.

    Where it goes is W&B's own business: WANDB_MODE=offline leaves it in the folder, for `wandb sync`. What a run that
    goes on says again of a step, W&B leaves as it was: the same command computes the same.
    """

    def __init__(self, project: str, workdir: pathlib.Path):
        self.project, self.workdir = project, workdir
        self._run: Any = None

    def resume(self, step: int) -> None:
        import wandb

        kept, config = self.workdir / "wandb" / "id", self.workdir / "config.json"
        kept.parent.mkdir(parents=True, exist_ok=True)
        if not kept.exists():
            kept.write_text(uuid.uuid4().hex)
        self._run = wandb.init(
            project=self.project,
            name=self.workdir.resolve().name,
            id=kept.read_text(),
            resume="allow",
            dir=str(self.workdir),
            config=json.loads(config.read_text()) if config.exists() else {},
        )

    def write(self, step: int, kind: str, values: Mapping[str, float]) -> None:
        self._run.log({f"{kind}/{name}": value for name, value in values.items()}, step=step)

    def close(self) -> None:
        if self._run is not None:
            self._run.finish()


def make_writers(workdir: pathlib.Path, config: RunConfig) -> tuple[Writer, ...]:
    """The writers of a run; none on processes but the first, which speaks for all."""
    if jax.process_index() != 0:
        return ()
    writers: list[Writer] = [JsonlWriter(workdir / METRICS)]
    if config.tensorboard and importlib.util.find_spec("tensorboardX") is None:
        _log.warning("nothing is written for TensorBoard: tensorboardX is not installed")
    elif config.tensorboard:
        writers.append(TensorBoardWriter(workdir / "tensorboard"))
    if config.wandb is not None:
        writers.append(WandbWriter(config.wandb, workdir))
    return tuple(writers)
