"""Rows that know nothing of each other: as they are drawn, and weighted."""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array

from gfn_jax.interfaces import Reward
from gfn_jax.models.language_model import LanguageModel
from gfn_jax.policy.rollout import Behavior, Narrow, rollout
from gfn_jax.samplers import filters
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
    """N rows of the policy, tempered and cut as asked: every one counts alike.

    Filters come in `transformers`' order: temperature, top-k, top-p, min-p (`filters`), all over the allowed tokens.

    Attributes:
        temperature: 0 decodes greedily, whatever the filters.
        top_k: draw from the k likeliest tokens.
        top_p: draw from the fewest tokens that hold this share.
        min_p: draw from the tokens at least so many times as likely as the likeliest.
    """

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None

    def __post_init__(self):
        if not self.temperature >= 0:
            raise ValueError(f"temperature must not be negative, it is {self.temperature}")
        if self.top_k is not None and self.top_k < 1:
            raise ValueError(f"top_k must be at least 1, it is {self.top_k}")
        for name in ("top_p", "min_p"):
            share = getattr(self, name)
            if share is not None and not 0 < share <= 1:
                raise ValueError(f"{name} must be above 0 and at most 1, it is {share}")

    def sample(self, model: LanguageModel, problem: Problem, budget: int, key: jax.Array) -> Weighed:
        """No reward is asked; `log_behavior` is over what the filters leave."""
        queries = len(problem.query.example_id)
        behavior = Behavior.at(self.temperature, queries * budget)
        drawn = rollout(model, problem.query.prompt, problem.rules, behavior, key, self._narrow)
        return Weighed(
            rollout=drawn,
            log_weight=jnp.where(drawn.stop.any(axis=1), 0.0, -jnp.inf),
            log_reward=None,
            log_z=None,
            generated=generated_tokens(drawn, queries),
            scored=jnp.zeros((queries,), jnp.int32),
        )

    @property
    def _narrow(self) -> Narrow | None:
        """The filters that are asked for; the likeliest token passes all of them."""
        if self.temperature == 0 or (self.top_k, self.top_p, self.min_p) == (None, None, None):
            return None

        def narrow(t: Array, logits: Array, allowed: Array) -> Array:
            logits = logits / self.temperature
            if self.top_k is not None:
                allowed = filters.top_k(logits, allowed, self.top_k)
            if self.top_p is not None:
                allowed = filters.top_p(logits, allowed, self.top_p)
            if self.min_p is not None:
                allowed = filters.min_p(logits, allowed, self.min_p)
            return allowed

        return narrow
