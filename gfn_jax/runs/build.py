"""From a config to what it describes, ready to be completed: the door behind which no ConfigDict is seen."""

import dataclasses
import pathlib
from collections.abc import Collection
from typing import Protocol

import ml_collections

from gfn_jax.runs.config import Finetuning, PolicyRun, Pretraining, read
from gfn_jax.runs.em import build_em
from gfn_jax.runs.finetuning import build_finetuning
from gfn_jax.runs.policy import build_policy
from gfn_jax.runs.pretraining import build_pretraining
from gfn_jax.runs.sampler import Sampler, sampler_of
from gfn_jax.training.loop import Run, complete


class Program(Protocol):
    """One run, or several in turn."""

    @property
    def run(self) -> Run:
        """The first, built."""

    def complete(self) -> str:
        """Trains all there is to train, and returns the last words; raises what `training.loop.complete` does."""


@dataclasses.dataclass(frozen=True)
class Single:
    """A run alone."""

    run: Run

    def complete(self) -> str:
        """As `training.loop.complete`."""
        return complete(self.run)


def build(
    config: ml_collections.ConfigDict, workdir: pathlib.Path, command: str = "", given: Collection[str] = ()
) -> Program:
    """What a config describes, ready to be completed.

    Args:
        config: the whole of it; its `task` says what kind of run it is.
        workdir: where the run writes.
        command: what repeats the run, for its results.
        given: the keys of the config that the command line has set.

    Raises:
        ValueError, FileNotFoundError: what is wrong with the config, the model or the data, in one line.
    """
    parsed = read(config, given)
    if isinstance(parsed, Pretraining):
        return Single(build_pretraining(parsed, workdir))
    if isinstance(parsed, Finetuning):
        return Single(build_finetuning(parsed, workdir))
    if parsed.method.program is not None:
        program: Program = parsed.method.program(parsed, workdir, command)
        return program
    if parsed.em is not None:
        return build_em(parsed, parsed.em, workdir, command)
    return Single(build_policy(parsed, workdir, command))


def build_sampler(
    config: ml_collections.ConfigDict, workdir: pathlib.Path, number: int, given: Collection[str] = ()
) -> Sampler:
    """One of the samplers of the run that a config describes; arguments as of `build`, and which sampler, from 0.

    Raises:
        ValueError, FileNotFoundError: the run has no such sampler; or as `build`.
    """
    parsed = read(config, given)
    if not isinstance(parsed, PolicyRun):
        raise ValueError(f"--sampler is {number}, and a run of the task {config.task!r} has no samplers")
    return sampler_of(parsed, workdir, number)
