"""One training step as one compiled program: an algorithm collects, gradients are summed, weights move.

Randomness is a function of the step's number (`types.Keys`): nothing is stored and a resumed run is the same run. All
micro-batches are collected first; the loss's normalisers are then known for the whole batch, so the gradient
accumulated over micro-batches is the full batch's exactly, whatever the normalisation.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float

from gfn_jax.interfaces import Algorithm, Interruptible
from gfn_jax.types import Collected, Keys, PyTree, Rollout, Sampled, TrainState

Found = TypeVar("Found", Collected, Sampled)
Metrics = dict[str, Float[Array, ""]]
Step = Callable[[TrainState, Any], tuple[TrainState, Metrics]]
Collect = Callable[[TrainState, Any], Collected]
Learn = Callable[[TrainState, Any, Collected], tuple[TrainState, Metrics]]
Sample = Callable[[TrainState, Any], Sampled]
Update = Callable[[TrainState, Any, Sampled], tuple[TrainState, Metrics]]


def init_state(
    algorithm: Algorithm, optimizer: optax.GradientTransformation, key: jax.Array, constants: Any
) -> TrainState:
    """The state before the first step."""
    trainable, memory = algorithm.init(key, constants)
    return new_state(optimizer, trainable, memory)


def new_state(optimizer: optax.GradientTransformation, trainable: PyTree, memory: PyTree = None) -> TrainState:
    """The same, where what is trained is there already."""
    return TrainState(jnp.zeros((), jnp.int32), trainable, optimizer.init(trainable), memory)


def make_step(algorithm: Algorithm, optimizer: optax.GradientTransformation, first_update: int = 0) -> Step:
    """The step function, to be jitted with its state donated.

    Args:
        algorithm: what to collect and to minimise.
        optimizer: from the gradient to its update.
        first_update: the first step that learns; those before only collect.
    """
    return step_of_halves(*make_step_parts(algorithm, optimizer, first_update))


def make_step_parts(
    algorithm: Algorithm, optimizer: optax.GradientTransformation, first_update: int = 0
) -> tuple[Collect, Learn]:
    """A step as two functions: what collects, and what learns from it; arguments as of `make_step`."""

    def collect(state: TrainState, constants: Any) -> Collected:
        return algorithm.collect(state, constants, Keys.of(constants.root, state.step))

    def learn_from(state: TrainState, constants: Any, collected: Collected) -> tuple[TrainState, Metrics]:
        keys = Keys.of(constants.root, state.step)
        return learn(algorithm, optimizer, first_update, state, constants, collected, keys)

    return collect, learn_from


def make_step_halves(
    algorithm: Interruptible, optimizer: optax.GradientTransformation, first_update: int = 0
) -> tuple[Sample, Update]:
    """A step's two halves: sampling (which changes nothing), and all the rest."""

    def sample(state: TrainState, constants: Any) -> Sampled:
        return algorithm.sample(state, constants, Keys.of(constants.root, state.step))

    def update(state: TrainState, constants: Any, sampled: Sampled) -> tuple[TrainState, Metrics]:
        keys = Keys.of(constants.root, state.step)
        collected = algorithm.store(state, constants, sampled, keys)
        return learn(algorithm, optimizer, first_update, state, constants, collected, keys)

    return sample, update


def step_of_halves(
    first: Callable[[TrainState, Any], Found], then: Callable[[TrainState, Any, Found], tuple[TrainState, Metrics]]
) -> Step:
    """A step of two functions, each perhaps compiled: the second is given what the first has found."""
    return lambda state, constants: then(state, constants, first(state, constants))


def hosted_sample(sample: Sample, host_reward: Callable[[np.ndarray, Rollout], np.ndarray]) -> Sample:
    """The first half of a step, with a factor of the reward that the host adds.

    Args:
        sample: the first of `make_step_halves`, jitted.
        host_reward: (example ids [B], rollouts [B, T]) -> nats to be added to log R, [B, T].
    """

    def hosted(state: TrainState, constants: Any) -> Sampled:
        sampled = sample(state, constants)
        log_reward = sampled.trajectory.log_reward
        ids, rollout = jax.device_get((sampled.query.example_id, sampled.trajectory.rollout))
        rows = jax.tree.map(lambda x: x.reshape(-1, x.shape[-1]), rollout)
        added = host_reward(np.repeat(ids.ravel(), len(rows.completion) // ids.size), rows)
        added = jax.device_put(np.asarray(added, np.float32).reshape(log_reward.shape), log_reward.sharding)
        trajectory = dataclasses.replace(sampled.trajectory, log_reward=log_reward + added)
        return dataclasses.replace(sampled, trajectory=trajectory)

    return hosted


def learn(
    algorithm: Algorithm,
    optimizer: optax.GradientTransformation,
    first_update: int,
    state: TrainState,
    constants: Any,
    collected: Collected,
    keys: Keys,
) -> tuple[TrainState, Metrics]:
    """Gradients of what was collected, summed over its micro-batches, and the optimizer's update."""
    batches = collected.batches
    weights = jax.tree.map(lambda x: x.sum(0), jax.vmap(algorithm.weights)(batches))

    def accumulate(total: PyTree, part: tuple[Array, PyTree]) -> tuple[PyTree, PyTree]:
        number, batch = part
        key = jax.random.fold_in(keys.dropout, number)
        value_and_grad = jax.value_and_grad(algorithm.loss, has_aux=True)
        found, grads = value_and_grad(state.trainable, constants, batch, weights, key)
        return jax.tree.map(jnp.add, total, grads), found

    numbers = jnp.arange(len(jax.tree.leaves(batches)[0]))
    grads, found = jax.lax.scan(accumulate, jax.tree.map(jnp.zeros_like, state.trainable), (numbers, batches))
    loss, measured = jax.tree.map(lambda x: x.sum(0), found)
    updates, counted = optimizer.update(grads, state.opt_state, state.trainable)
    learnt = (optax.apply_updates(state.trainable, updates), counted)
    # Before the first update the optimizer does not even count: its schedule starts with the learning.
    learning, before = state.step >= first_update, (state.trainable, state.opt_state)
    trainable, opt_state = jax.tree.map(lambda new, old: jnp.where(learning, new, old), learnt, before)
    metrics = {
        "loss": loss,
        **{name: value.mean() for name, value in measured.items()},
        **collected.metrics,
        "gradient_norm": optax.tree.norm(grads),
    }
    return TrainState(state.step + 1, trainable, opt_state, collected.memory), metrics
