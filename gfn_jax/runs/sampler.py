"""A sampler: a process that draws rows for a learner in another one (`runs.asynchronous`)."""

import dataclasses
import functools
import logging
import os
import pathlib
from collections.abc import Callable

import jax
import jax.numpy as jnp

from gfn_jax.errors import TrainingStopped
from gfn_jax.models.checkpoint import read_config
from gfn_jax.models.tensor_files import resolve
from gfn_jax.policy.constraint import Constants
from gfn_jax.runs.asynchronous import PARENT, Meeting, Session, steps_of, waited_for
from gfn_jax.runs.config import PolicyRun
from gfn_jax.runs.policy import constants_of, described_of, make_sample, policy_parts
from gfn_jax.runs.weights import load_base, place
from gfn_jax.text.loading import load_tokenizer, model_folder
from gfn_jax.training import exchange
from gfn_jax.training import mesh as meshes
from gfn_jax.training.checkpoint import config_digest
from gfn_jax.types import PyTree, Sampled, TrainState

_log = logging.getLogger("gfn_jax")


@dataclasses.dataclass(frozen=True)
class Sampler:
    """One of a run's samplers, ready.

    Attributes:
        number: which, from 0.
        meeting: where it meets the learner.
        digest: of the run's config.
        constants: what steps read and never change.
        trainable: shapes of what is trained.
        sample: (state, constants) -> rows.
    """

    number: int
    meeting: Meeting
    digest: str
    constants: Constants
    trainable: PyTree
    sample: Callable[[TrainState, Constants], Sampled]

    def complete(self) -> str:
        """Draws rows until the run has ended.

        Raises:
            ValueError: the learner there is of another config.
            TrainingStopped: the learner that has started this process is gone.
        """
        drawn = 0
        session = waited_for(self.meeting.session, f"a learner in {self.meeting.folder}", self._check)
        while not session.ended:
            if session.digest != self.digest:
                config = f"config {session.digest}, and this sampler's is {self.digest}"
                raise ValueError(f"{self.meeting.folder} is a learner's of {config}: start it by the run's own command")
            drawn += self.serve(session)
            session = waited_for(functools.partial(self._other, session), "the learner's end", self._check)
        return f"the run has ended; this sampler drew rows for {drawn} steps"

    def serve(self, session: Session) -> int:
        """Draws the rows of a session's steps, and returns of how many, until all are drawn or the session is over."""
        drawn = 0
        for step in steps_of(session, self.number, self.meeting.config.samplers):
            source = self.meeting.source(step)
            look = functools.partial(self._policy, session, source)
            trainable = waited_for(look, f"what is trained after {source} steps", self._check)
            if trainable is False:
                break
            state = TrainState(jnp.int32(step - 1), jax.tree.map(jnp.asarray, trainable), None, None)
            sampled = self.sample(state, self.constants)
            exchange.put(self.meeting.rows(step), dataclasses.replace(sampled, age=jnp.int32(step - 1 - source)))
            drawn += 1
        return drawn

    def _policy(self, session: Session, step: int) -> PyTree | bool | None:
        """What is trained after so many steps; None before that, False once the session is over."""
        found = exchange.take(self.meeting.policy(step), self.trainable)
        if found is None and self._other(session) is not None:
            return False
        return found

    def _other(self, session: Session) -> Session | None:
        """What has come after a session; None while it goes on."""
        found = self.meeting.session()
        return None if found == session else found

    def _check(self) -> None:
        parent = os.environ.get(PARENT)
        if parent is not None and os.getppid() != int(parent):
            raise TrainingStopped("the learner is gone", exit_code=1)


def sampler_of(config: PolicyRun, workdir: pathlib.Path, number: int) -> Sampler:
    """A sampler of the run that a config describes.

    Args:
        config: the learner's own.
        workdir: the learner's own.
        number: which sampler this is, from 0.

    Raises:
        ValueError, FileNotFoundError: the run has no such sampler; what is wrong with model or data, in one line.
    """
    samplers = config.asynchronous.samplers
    if number >= samplers:
        why = "they are counted from 0" if samplers else "the run samples for itself"
        raise ValueError(f"--sampler is {number} and asynchronous.samplers is {samplers}: {why}")
    folder = resolve(model_folder(config.model.path))
    mesh = meshes.use_mesh(config.mesh)
    _, model = read_config(folder)
    parts = policy_parts(config, model, load_tokenizer(folder), mesh)
    base = load_base(folder, config.model.dtype, mesh, config.model.quantize, config.model.attention)
    constants = place(constants_of(config, parts, base), mesh)
    trainable, _ = jax.eval_shape(parts.algorithm.init, jax.random.key(0), constants)
    _log.info("sampler %d of %d for the learner in %s", number, samplers, workdir)
    meeting, digest = Meeting.of(workdir, config.asynchronous), config_digest(described_of(config))
    return Sampler(number, meeting, digest, constants, trainable, make_sample(parts))
