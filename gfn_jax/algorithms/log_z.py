"""Log Z of a query in nats, for the objectives that read it (`Objective.log_z`).

    learnt      a parameter a query: exact where it is trained, nothing for a query that never was
    amortised   a head on the policy's hidden state at the prompt's end (`Head`): any prompt has a log Z
    frozen      estimated once, before training, and kept (DISA, arXiv:2605.17295; `estimated`)

What is learnt moves `Objective.log_z_rate` times as fast as the adapter.
"""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from gfn_jax import replay as buffers
from gfn_jax.algorithms.on_task import Batch, OnPolicy
from gfn_jax.models.partition import split_rows
from gfn_jax.objectives import Objective
from gfn_jax.policy.constraint import Constants
from gfn_jax.policy.head import Head
from gfn_jax.policy.rollout import Behavior

LogZ = Float[Array, " E"] | Head | None


def trained(objective: Objective, key: jax.Array, constants: Constants) -> LogZ:
    """What is trained of log Z: a table, a head, or nothing."""
    if not objective.needs_log_z or objective.log_z == "frozen":
        return None
    if objective.log_z == "amortised":
        return Head.init(key, constants.base.shape.width)
    return jnp.zeros((len(constants.queries.example_id),))


def remembered(
    algorithm: OnPolicy, objective: Objective, key: jax.Array, constants: Constants
) -> Float[Array, " E"] | None:
    """The table of a frozen log Z, with room for as many queries as the buffer has; None where it is not frozen."""
    if not objective.needs_log_z or objective.log_z != "frozen":
        return None
    program = jax.jit(functools.partial(estimated, algorithm, objective.log_z_samples))
    log_z = program(key, constants)
    return jnp.pad(log_z, (0, buffers.padded(len(log_z)) - len(log_z)))


def estimated(algorithm: OnPolicy, samples: int, key: jax.Array, constants: Constants) -> Float[Array, " E"]:
    """Log Z of every query by importance sampling from the base, the policy before its first step.

        log of the mean over rollouts Z ~ q of R(Z)^(1/T) / q(Z),      T being the run's last

    The mean is unbiased, its logarithm falls short of log Z where few samples carry it. Rewards are asked for as the
    step asks: no more rows at once than a micro-batch has.

    Args:
        algorithm: whose reward, budget and target these are.
        samples: rollouts a query, filled up to a multiple of a step's rows a query.
        key: of the rollouts.
        constants: of the run.

    Returns:
        Nats; 0 for a query of which no rollout ended with a reward above 0.
    """
    given, total = algorithm.given, len(constants.queries.example_id)
    queries, rows = given.sampling.queries // given.sampling.micro_batches, given.sampling.samples
    rounds, chunks = -(-samples // rows), -(-total // queries)

    def one(number: Array) -> Float[Array, "Q N"]:
        place = jnp.minimum(number // rounds * queries + jnp.arange(queries), total - 1)  # the last chunk is filled up
        query = algorithm.spread(jax.tree.map(lambda x: x[place], constants.queries))
        query = jax.tree.map(split_rows, query)
        behavior = Behavior.at(1.0, queries * rows)
        sampled = algorithm.rewarded(constants.base, constants, query, behavior, jax.random.fold_in(key, number))
        tempered = dataclasses.replace(sampled, log_reward=sampled.log_reward / given.sampling.target_temperature)
        return Batch.of(query, tempered).log_weight.reshape(queries, rows)

    log_weight = jax.lax.map(one, jnp.arange(chunks * rounds)).reshape(chunks, rounds, queries, rows)
    log_weight = jnp.swapaxes(log_weight, 1, 2).reshape(chunks * queries, rounds * rows)[:total]
    log_z = jax.nn.logsumexp(log_weight, axis=1) - math.log(rounds * rows)
    return jnp.where(jnp.isfinite(log_z), log_z, 0)
