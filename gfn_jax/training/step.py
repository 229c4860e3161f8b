"""One training step as one compiled program: select, collect, balance, update.

Randomness is fold_in(fold_in(root, step), STREAM): nothing is stored and a resumed run is the same run. All
micro-batches are collected first; the objective's normalisers are then known for the whole batch, so the gradient
accumulated over micro-batches is the full batch's exactly, whatever the normalisation.
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import struct
from jaxtyping import Array, Float, Int

from gfn_jax import replay
from gfn_jax.algorithms.gflownet import (
    BEHAVIOR,
    DROPOUT,
    REPLAY,
    SAMPLE,
    SELECT,
    Batch,
    Constants,
    GFlowNet,
    Trainable,
)
from gfn_jax.training.optimizer import linear_anneal
from gfn_jax.types import PyTree, Query, Rollout, Trajectory, Weighted

Metrics = dict[str, Float[Array, ""]]
Step = Callable[["TrainState", Constants], tuple["TrainState", Metrics]]


@struct.dataclass
class TrainState:
    """All that changes: what a checkpoint holds."""

    step: Int[Array, ""]
    trainable: Trainable
    opt_state: PyTree
    replay: replay.ReplayBuffer


def mean(weighted: Weighted) -> Float[Array, ""]:
    """Total / weight; 0 where nothing was weighed."""
    return weighted.total / jnp.maximum(weighted.weight, 1e-9)


@struct.dataclass
class Collected:
    """What a step has sampled, before anything is learnt: P micro-batches of Q / P queries."""

    query: Query  # [P, Q / P, ...]
    trajectory: Trajectory  # [P, rows, T]


Collect = Callable[[TrainState, Constants], Collected]
Update = Callable[[TrainState, Constants, Collected], tuple[TrainState, Metrics]]


def make_step(
    algorithm: GFlowNet,
    optimizer: optax.GradientTransformation,
    rows_sharding: jax.sharding.Sharding | None = None,
) -> Step:
    """The step function, to be jitted with its state donated.

    Args:
        algorithm: what to collect and to minimise.
        optimizer: from the adapter's gradient to its update.
        rows_sharding: how queries are spread over devices; None leaves it to the compiler.
    """
    collect, update = make_step_halves(algorithm, optimizer, rows_sharding)
    return lambda state, constants: update(state, constants, collect(state, constants))


def hosted_step(collect: Collect, host_reward: Callable[[np.ndarray, Rollout], np.ndarray], update: Update) -> Step:
    """A step in two compiled halves, between which the host adds a factor of the reward.

    Args:
        collect: the first of `make_step_halves`, jitted.
        update: the second, jitted.
        host_reward: (example ids [B], rollouts [B, T]) -> nats to be added to log R, [B, T].
    """

    def step(state: TrainState, constants: Constants) -> tuple[TrainState, Metrics]:
        collected = collect(state, constants)
        log_reward = collected.trajectory.log_reward
        ids, rollout = jax.device_get((collected.query.example_id, collected.trajectory.rollout))
        rows = jax.tree.map(lambda x: x.reshape(-1, x.shape[-1]), rollout)
        added = host_reward(np.repeat(ids.ravel(), len(rows.completion) // ids.size), rows)
        added = jax.device_put(np.asarray(added, np.float32).reshape(log_reward.shape), log_reward.sharding)
        trajectory = dataclasses.replace(collected.trajectory, log_reward=log_reward + added)
        return update(state, constants, dataclasses.replace(collected, trajectory=trajectory))

    return step


def make_step_halves(
    algorithm: GFlowNet,
    optimizer: optax.GradientTransformation,
    rows_sharding: jax.sharding.Sharding | None = None,
) -> tuple[Collect, Update]:
    """A step's two halves: sampling (which changes nothing), and storing, balancing, updating."""
    config = algorithm.config
    parts = config.micro_batches

    def streams(state: TrainState, constants: Constants) -> dict[int, jax.Array]:
        root = jax.random.fold_in(constants.root, state.step)
        return {stream: jax.random.fold_in(root, stream) for stream in range(DROPOUT + 1)}

    def collect(state: TrainState, constants: Constants) -> Collected:
        keys = streams(state, constants)
        queries = algorithm.select(constants, keys[SELECT])
        queries = jax.tree.map(lambda x: x.reshape(parts, -1, *x.shape[1:]), queries)

        def sample(_: None, part: tuple) -> tuple[None, Trajectory]:
            number, query = part[0], algorithm.spread(part[1])
            if rows_sharding is not None:
                query = jax.lax.with_sharding_constraint(query, rows_sharding)
            own = {stream: jax.random.fold_in(keys[stream], number) for stream in (BEHAVIOR, SAMPLE)}
            return None, algorithm.sample(constants, state.trainable, query, own)

        _, trajectory = jax.lax.scan(sample, None, (jnp.arange(parts), queries))
        return Collected(queries, trajectory)

    def update(state: TrainState, constants: Constants, collected: Collected) -> tuple[TrainState, Metrics]:
        keys = streams(state, constants)
        temperature = linear_anneal(
            state.step,
            config.reward_temperature_start,
            config.reward_temperature_end,
            config.reward_temperature_steps,
        )

        def store(buffer: replay.ReplayBuffer, part: tuple) -> tuple:
            number, query, fresh = part
            key = jax.random.fold_in(keys[REPLAY], number)
            batch, buffer, metrics = algorithm.store(buffer, query, fresh, key, temperature)
            return buffer, (batch, metrics)

        batches: Batch
        described: dict[str, Weighted]
        given = (jnp.arange(parts), collected.query, collected.trajectory)
        buffer, (batches, described) = jax.lax.scan(store, state.replay, given)
        weights = jax.tree.map(lambda x: x.sum(0), jax.vmap(algorithm.weights)(batches))

        def accumulate(total: PyTree, part: tuple) -> tuple[PyTree, None]:
            number, batch = part
            key = jax.random.fold_in(keys[DROPOUT], number)
            value_and_grad = jax.value_and_grad(algorithm.loss, has_aux=True)
            out = value_and_grad(state.trainable, constants, batch, weights, temperature, key)
            return jax.tree.map(jnp.add, total, out), None

        zeros = jax.tree.map(jnp.zeros_like, ((jnp.zeros(()), weights), state.trainable))
        ((loss, terms), grads), _ = jax.lax.scan(accumulate, zeros, (jnp.arange(parts), batches))
        trainable, opt_state = learn(state, grads)
        table = len(constants.queries.example_id)
        metrics = {
            "loss": loss,
            **{f"loss_{name}": value for name, value in terms.items()},
            **{name: mean(jax.tree.map(jnp.sum, value)) for name, value in described.items()},
            **{f"buffer_{name}": value for name, value in replay.statistics(buffer, table).items()},
            "gradient_norm": optax.global_norm(grads),
            "reward_temperature": temperature,
        }
        return TrainState(state.step + 1, trainable, opt_state, buffer), metrics

    def learn(state: TrainState, grads: Trainable) -> tuple[Trainable, PyTree]:
        updates, opt_state = optimizer.update(grads, state.opt_state, state.trainable)
        learnt = (optax.apply_updates(state.trainable, updates), opt_state)
        # While discovering, the optimizer does not even count: its schedule starts with the learning.
        learning = state.step >= config.discovery_steps
        return jax.tree.map(lambda new, old: jnp.where(learning, new, old), learnt, (state.trainable, state.opt_state))

    return collect, update
