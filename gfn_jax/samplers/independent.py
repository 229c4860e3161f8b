"""Rows that know nothing of each other: as they are drawn, and weighted."""

import dataclasses

import jax
import jax.numpy as jnp

from gfn_jax.interfaces import Reward
from gfn_jax.models.language_model import LanguageModel
from gfn_jax.policy.rollout import Behavior, rollout
from gfn_jax.samplers.sampler import (
    Problem,
    Weighed,
    effective_size,
    final_log_reward,
    generated_tokens,
    log_mean_weight,
    per_query,
)


@dataclasses.dataclass(frozen=True)
class Importance:
    """N rows of the policy, each weighted by R / q: importance sampling.

    The weights' mean is an unbiased estimate of Z; weighted rows are the posterior's in the limit of many.

    Attributes:
        reward: log R.
        temperature: of the proposal; above 0.
    """

    reward: Reward
    temperature: float = 1.0

    def sample(self, model: LanguageModel, problem: Problem, budget: int, key: jax.Array) -> Weighed:
        """`notes`: the effective sample size of the N weights."""
        queries = len(problem.query.example_id)
        behavior = Behavior.at(self.temperature, queries * budget)
        drawn = rollout(model, problem.query.prompt, problem.rules, behavior, key)
        log_reward, scored = final_log_reward(self.reward, model, problem, drawn)
        log_weight = log_reward - drawn.log_behavior.sum(axis=1)
        by_query = per_query(log_weight, queries)
        return Weighed(
            rollout=drawn,
            log_weight=log_weight,
            log_reward=log_reward,
            log_z=log_mean_weight(by_query),
            generated=generated_tokens(drawn, queries),
            scored=scored,
            notes={"ess": effective_size(by_query)},
        )


@dataclasses.dataclass(frozen=True)
class Ancestral:
    """N rows of the policy, tempered as asked: every one counts alike.

    Attributes:
        temperature: 0 decodes greedily.
    """

    temperature: float = 1.0

    def sample(self, model: LanguageModel, problem: Problem, budget: int, key: jax.Array) -> Weighed:
        """No reward is asked."""
        queries = len(problem.query.example_id)
        behavior = Behavior.at(self.temperature, queries * budget)
        drawn = rollout(model, problem.query.prompt, problem.rules, behavior, key)
        return Weighed(
            rollout=drawn,
            log_weight=jnp.where(drawn.stop.any(axis=1), 0.0, -jnp.inf),
            log_reward=None,
            log_z=None,
            generated=generated_tokens(drawn, queries),
            scored=jnp.zeros((queries,), jnp.int32),
        )
