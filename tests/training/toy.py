"""A run small enough to see through: a weight pulled towards noise, and a buffer of what was seen.

As a script it trains in a process of its own: `python toy.py WORKDIR STEPS SECONDS`, the last being what
every evaluation (after each step) takes, so that a signal can be sent in time. Told of other processes by the
environment, it trains with them.
"""

import contextlib
import dataclasses
import functools
import logging
import pathlib
import sys
import time
import types
from collections.abc import Iterator

import jax
import jax.numpy as jnp
from flax import struct

from gfn_jax.sections import RunConfig
from gfn_jax.training.checkpoint import Checkpointer, claim_workdir
from gfn_jax.training.loop import Evaluation, Run
from gfn_jax.training.optimizer import OptimizerConfig, make_optimizer
from gfn_jax.training.writers import make_writers

LOOKING = RunConfig(task="toy", seed=0, log_every=1, save_every=1, tensorboard=False, wandb=None)


@struct.dataclass
class State:
    step: jax.Array
    trainable: dict
    opt_state: tuple
    replay: dict


OPTIMIZER = make_optimizer(OptimizerConfig(learning_rate=0.1, total_steps=10))


def init_state() -> State:
    trainable = {"w": jnp.linspace(-1.0, 1.0, 6)}
    replay = {"seen": jnp.zeros((8, 6)), "priority": jnp.full((8,), -jnp.inf)}
    return State(jnp.zeros((), jnp.int32), trainable, OPTIMIZER.init(trainable), replay)


@functools.partial(jax.jit, donate_argnums=0)
def step_fn(state: State, constants: dict) -> tuple[State, dict]:
    """Noise from the step's own key; the loss is NaN in step `constants["nan_at"]`."""
    noise = jax.random.normal(jax.random.fold_in(constants["key"], state.step), (6,))
    loss, grads = jax.value_and_grad(lambda p: jnp.square(p["w"] - noise).mean())(state.trainable)
    updates, opt_state = OPTIMIZER.update(grads, state.opt_state, state.trainable)
    trainable = {"w": state.trainable["w"] + updates["w"]}
    slot = state.step % 8
    replay = {
        "seen": state.replay["seen"].at[slot].set(noise),
        "priority": state.replay["priority"].at[slot].set(-loss),
    }
    loss = jnp.where(state.step + 1 == constants["nan_at"], jnp.nan, loss)
    trainable = {"w": jnp.where(state.step + 1 == constants["inf_at"], jnp.inf, trainable["w"])}
    metrics = {"loss": loss, "coverage": (replay["priority"] > -jnp.inf).mean()}
    return State(state.step + 1, trainable, opt_state, replay), metrics


def make_run(
    workdir: pathlib.Path, num_steps: int, nan_at: int = -1, inf_at: int = -1, pause: float = 0.0, **settings
) -> Run:
    def evaluate(state: State, step: int) -> dict[str, float]:
        time.sleep(pause)
        return {"height": float(state.trainable["w"].sum())}

    digest = claim_workdir(workdir, {"toy": True})
    constants = {"key": jax.random.key(0), "nan_at": jnp.asarray(nan_at), "inf_at": jnp.asarray(inf_at)}
    return Run(
        **{
            "workdir": workdir,
            "step_fn": step_fn,
            "state": init_state(),
            "constants": constants,
            "num_steps": num_steps,
            "samples_per_step": 4,
            "checkpointer": Checkpointer(workdir, digest),
            "writers": make_writers(workdir, LOOKING),
            "finish": lambda trained: f"finished after {trained.steps} steps",
            "evaluations": (Evaluation(every=1, evaluate=evaluate),),
            "log_every": 1,
            "save_every": 2,
            **settings,
        }
    )


def prepare(words: list[str]) -> Iterator[str]:
    """Trains when its text is asked for."""
    from gfn_jax.commands import cluster
    from gfn_jax.errors import TrainingStopped
    from gfn_jax.training.loop import train
    from gfn_jax.training.mesh import MeshConfig, make_mesh, place, replicated

    cluster.join_if_any()
    logging.basicConfig(level=logging.INFO, format="%(message)s", force=True)
    logging.getLogger("gfn_jax").propagate = True
    logging.getLogger("absl").setLevel(logging.WARNING)
    run = make_run(pathlib.Path(words[0]), int(words[1]), pause=float(words[2]))
    if jax.process_count() > 1:
        everywhere = replicated(make_mesh(MeshConfig()))
        state, constants = place((run.state, run.constants), everywhere)
        run = dataclasses.replace(run, state=state, constants=constants)
    try:
        yield f"trained to step {train(run).steps}"
    except TrainingStopped as stop:
        print(f"stopped: {stop}", flush=True)
        raise


def main() -> int:
    from gfn_jax.commands import cluster

    words = types.SimpleNamespace(help=False, words=sys.argv[1:])
    return cluster.run(
        sys.argv,
        __doc__,
        lambda argv: words,
        lambda given: prepare(given.words),
        listen=lambda given: contextlib.nullcontext(),
    )


if __name__ == "__main__":
    sys.exit(main())
