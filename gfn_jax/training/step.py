"""One training step as one compiled program: select, collect, balance, update.

Randomness is fold_in(fold_in(root, step), STREAM): nothing is stored and a resumed run is the same run. All
micro-batches are collected first; the objective's normalisers are then known for the whole batch, so the gradient
accumulated over micro-batches is the full batch's exactly, whatever the normalisation.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
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
from gfn_jax.algorithms.language_model import Corpus, LanguageModeling
from gfn_jax.training.optimizer import linear_anneal
from gfn_jax.types import Params, PyTree, Weighted

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
    config = algorithm.config
    parts = config.micro_batches

    def step(state: TrainState, constants: Constants) -> tuple[TrainState, Metrics]:
        root = jax.random.fold_in(constants.root, state.step)
        keys = {stream: jax.random.fold_in(root, stream) for stream in range(DROPOUT + 1)}
        temperature = linear_anneal(
            state.step,
            config.reward_temperature_start,
            config.reward_temperature_end,
            config.reward_temperature_steps,
        )
        queries = algorithm.select(constants, keys[SELECT])
        queries = jax.tree.map(lambda x: x.reshape(parts, -1, *x.shape[1:]), queries)

        def collect(buffer: replay.ReplayBuffer, part: tuple) -> tuple:
            number, query = part
            if rows_sharding is not None:
                query = jax.lax.with_sharding_constraint(query, rows_sharding)
            own = {stream: jax.random.fold_in(keys[stream], number) for stream in (BEHAVIOR, SAMPLE, REPLAY)}
            batch, buffer, metrics = algorithm.collect(constants, state.trainable, buffer, query, own, temperature)
            return buffer, (batch, metrics)

        batches: Batch
        collected: dict[str, Weighted]
        buffer, (batches, collected) = jax.lax.scan(collect, state.replay, (jnp.arange(parts), queries))
        weights = jax.tree.map(lambda x: x.sum(0), jax.vmap(algorithm.weights)(batches))

        def accumulate(total: PyTree, part: tuple) -> tuple[PyTree, None]:
            number, batch = part
            key = jax.random.fold_in(keys[DROPOUT], number)
            value_and_grad = jax.value_and_grad(algorithm.loss, has_aux=True)
            out = value_and_grad(state.trainable, constants, batch, weights, temperature, key)
            return jax.tree.map(jnp.add, total, out), None

        zeros = jax.tree.map(jnp.zeros_like, ((jnp.zeros(()), weights), state.trainable))
        ((loss, terms), grads), _ = jax.lax.scan(accumulate, zeros, (jnp.arange(parts), batches))
        learning = state.step >= config.discovery_steps
        updates, opt_state = optimizer.update(grads, state.opt_state, state.trainable)
        learnt = (optax.apply_updates(state.trainable, updates), opt_state)
        # While discovering, the optimizer does not even count: its schedule starts with the learning.
        trainable, opt_state = jax.tree.map(
            lambda new, old: jnp.where(learning, new, old), learnt, (state.trainable, state.opt_state)
        )
        metrics = {
            "loss": loss,
            **{f"loss_{name}": value for name, value in terms.items()},
            **{name: mean(jax.tree.map(jnp.sum, value)) for name, value in collected.items()},
            **{f"buffer_{name}": value for name, value in replay.statistics(buffer).items()},
            "gradient_norm": optax.global_norm(grads),
            "reward_temperature": temperature,
        }
        return TrainState(state.step + 1, trainable, opt_state, buffer), metrics

    return step


@struct.dataclass
class ModelState:
    """What changes when a base model is trained."""

    step: Int[Array, ""]
    trainable: Params
    opt_state: PyTree


def make_language_model_step(
    algorithm: LanguageModeling, optimizer: optax.GradientTransformation
) -> Callable[[ModelState, Corpus], tuple[ModelState, Metrics]]:
    """One step of next-token training, to be jitted with its state donated."""

    def step(state: ModelState, corpus: Corpus) -> tuple[ModelState, Metrics]:
        documents = algorithm.collect(corpus, state.step)
        loss, grads = jax.value_and_grad(algorithm.loss)(state.trainable, documents)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.trainable)
        params = optax.apply_updates(state.trainable, updates)
        metrics = {"loss": loss, "gradient_norm": optax.global_norm(grads)}
        return ModelState(state.step + 1, params, opt_state), metrics

    return step
