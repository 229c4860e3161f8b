"""What a sampler is: completions of each query, and what each of them counts.

The target of every sampler with a reward is pi(Z) = R(Z) / sum R over the completions that the rules allow; a tempered
target is a tempered reward (`rewards.Product((reward,), (1 / T,))`). A sampler is a frozen dataclass of settings whose
`sample` is pure and jittable: close over the sampler and the budget, pass the rest.

    sampler = Importance(reward)
    problem = Problem(reward.prepare(model.base), query, rules)
    weighed = jax.jit(lambda model, problem, key: sampler.sample(model, problem, 64, key))(model, problem, key)
"""

from typing import Protocol

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Float, Int

from gfn_jax.interfaces import Reward
from gfn_jax.models.language_model import LanguageModel
from gfn_jax.policy.constraint import Rules
from gfn_jax.types import PyTree, Query, Rollout


@struct.dataclass
class Problem:
    """What completions are wanted of.

    Attributes:
        prepared: what the reward keeps (`Reward.prepare(model.base)`); None for samplers without a reward.
        query: Q queries.
        rules: vocabulary, length and tool.
    """

    prepared: PyTree
    query: Query
    rules: Rules


@struct.dataclass
class Weighed:
    """B = Q * N weighted completions, those of a query adjacent.

    Attributes:
        rollout: the completions. `log_behavior` is the log-probability with which each token was proposed, where the
            sampler proposes token by token.
        log_weight: what each counts, unnormalised, in nats; -inf: it is none of the sampler's. The sampler's answer to
            a query is sum_n softmax(log_weight)_n f(Z_n).
        log_reward: log R(Z) in nats; None where the sampler has no reward.
        log_z: the logarithm, in nats, of an unbiased estimate of Z = sum R(Z); None where there is none.
        generated: tokens that the policy chose, stops included, also for completions that were given up.
        scored: tokens that a model read to score them: Z's, and Y's behind every prefix that was asked about.
        notes: what a sampler says of itself (acceptance, ...), a number a query.
    """

    rollout: Rollout
    log_weight: Float[Array, " B"]
    log_reward: Float[Array, " B"] | None
    log_z: Float[Array, " Q"] | None
    generated: Int[Array, " Q"]
    scored: Int[Array, " Q"]
    notes: dict[str, Float[Array, " Q"]] = struct.field(default_factory=dict)


class Sampler(Protocol):
    """A way to get completions; `budget` is how many rows a query it writes at once, and static."""

    def sample(self, model: LanguageModel, problem: Problem, budget: int, key: jax.Array) -> Weighed:
        """Weighted completions of every query, the policy being `model` and the reward's model `model.base`."""


def final_log_reward(
    reward: Reward, model: LanguageModel, problem: Problem, rollout: Rollout
) -> tuple[Float[Array, " B"], Int[Array, " Q"]]:
    """Log R(Z) of whole completions in nats, -inf of one that did not stop; and the tokens that were read for it."""
    log_reward = reward.log_reward(model.base, problem.prepared, problem.query, rollout.stopping())
    log_reward = jnp.where(rollout.stop, log_reward, 0.0).sum(axis=1)
    queries = len(problem.query.example_id)
    answer = problem.query.answer.mask.sum(axis=1)
    length = per_query(rollout.token_mask.sum(axis=1), queries)
    return jnp.where(rollout.stop.any(axis=1), log_reward, -jnp.inf), (length + answer[:, None]).sum(axis=1)


def generated_tokens(rollout: Rollout, queries: int) -> Int[Array, " Q"]:
    """Tokens that the policy chose."""
    return per_query(rollout.action_mask.sum(axis=1), queries).sum(axis=1)


def per_query(rows: Array, queries: int) -> Array:
    """[Q, N, ...]: a query's rows side by side."""
    return rows.reshape(queries, -1, *rows.shape[1:])


def effective_size(log_weight: Float[Array, "Q N"]) -> Float[Array, " Q"]:
    """(sum w)^2 / sum w^2 of each query's weights: of N equal ones N; 0 where none counts."""
    top = log_weight.max(axis=1, keepdims=True)
    weight = jnp.exp(log_weight - jnp.where(top > -jnp.inf, top, 0.0))
    return weight.sum(axis=1) ** 2 / jnp.maximum((weight**2).sum(axis=1), 1e-30)


def log_mean_weight(log_weight: Float[Array, "Q N"]) -> Float[Array, " Q"]:
    """Log of the mean of each query's weights; -inf where none counts."""
    return jax.nn.logsumexp(log_weight, axis=1) - jnp.log(log_weight.shape[1])
