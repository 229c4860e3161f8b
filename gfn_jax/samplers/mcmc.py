"""Markov chains of whole completions: a suffix is written anew, and kept or not (Metropolis-Hastings).

Power sampling (Karan & Du 2025, arXiv:2510.14901) is this sampler with R = p^alpha, `Product((reward,), (alpha,))`,
and the base at temperature 1 / alpha as the proposal; a posterior is another R.

A move from Z draws a cut c uniformly from the states in which the policy decided (n(Z) of them, the stop's included, a
tool's tokens not), keeps z_<c and writes the rest by the proposal q, the rules and the tool: Z'. The states up to c are
those of Z, so c is one of the n(Z') cuts of Z' as well, and the move back has probability q(z_>=c | z_<c) / n(Z'). Each
c by itself is in detailed balance with pi(Z) = R(Z) / sum R if the move is taken with probability min(1, A),

    A = R(Z') q(z_>=c | z_<c) n(Z) / (R(Z) q(z'_>=c | z_<c) n(Z')) = w(Z') / w(Z),    w(Z) = R(Z) / (q(Z) n(Z)):

the kept tokens' probability cancels, so that the cut appears in it no more. The first cut writes all of Z anew:
a chain reaches everything that the rules allow.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from gfn_jax.interfaces import Reward
from gfn_jax.models import decoder
from gfn_jax.models.language_model import LanguageModel
from gfn_jax.policy.rollout import Behavior, complete
from gfn_jax.samplers.sampler import Problem, Weighed, final_log_reward, generated_tokens, per_query
from gfn_jax.types import Rollout


@dataclasses.dataclass(frozen=True)
class SuffixMCMC:
    """N chains a query, each from a row of the proposal on, and where they stand after `steps` moves.

    The proposal is `model` after `problem.query.prompt`: a policy, or `model.base` (with `selection.prior`'s query the
    base reads what the reward does).

    Attributes:
        reward: log R.
        steps: moves of each chain.
        temperature: of the proposal, token by token.

    Raises:
        ValueError: no moves, or a temperature that is not above 0.
    """

    reward: Reward
    steps: int
    temperature: float = 1.0

    def __post_init__(self):
        if self.steps < 1 or not self.temperature > 0:
            raise ValueError(
                f"a chain needs steps above 0 and a temperature above 0, not {self.steps} and {self.temperature}"
            )

    def sample(self, model: LanguageModel, problem: Problem, budget: int, key: jax.Array) -> Weighed:
        """The chains' last states, which count alike. `notes`: `acceptance`, the share of moves that were taken."""
        return self._run(model, problem, budget, key, None)

    def sample_from(self, model: LanguageModel, problem: Problem, start: Rollout, key: jax.Array) -> Weighed:
        """The same from given rows on, N a query, however they were found; none of their tokens counts as generated.

        A row that the rules do not allow (`policy.teacher` masks it whole) has no reward, and the first move leaves it.
        """
        return self._run(model, problem, len(start.completion) // len(problem.query.example_id), key, start)

    def _run(
        self, model: LanguageModel, problem: Problem, budget: int, key: jax.Array, start: Rollout | None
    ) -> Weighed:
        queries = len(problem.query.example_id)
        rows = queries * budget
        behavior = Behavior.at(self.temperature, rows)
        read = decoder.prefill(model, problem.query.prompt)
        beginning, moving = jax.random.split(key)

        def write(key: jax.Array, given: Any) -> Rollout:
            return complete(model, read, problem.rules, behavior, key, given=given)

        def move(number: Array, chain: dict[str, Any]) -> dict[str, Any]:
            cutting, writing, deciding = jax.random.split(jax.random.fold_in(moving, number), 3)
            now = chain["rollout"]
            cut = jax.random.categorical(cutting, jnp.where(now.action_mask, 0.0, -jnp.inf))
            proposed = write(writing, (now.completion, cut))
            log_reward, scored = final_log_reward(self.reward, model, problem, proposed)
            log_ratio = _log_potential(proposed, log_reward) - _log_potential(now, chain["log_reward"])
            taken = jnp.log(jax.random.uniform(deciding, (rows,))) < log_ratio
            written = proposed.action_mask & (jnp.arange(proposed.completion.shape[1]) >= cut[:, None])
            return {
                "rollout": jax.tree.map(lambda new, old: jnp.where(taken[:, None], new, old), proposed, now),
                "log_reward": jnp.where(taken, log_reward, chain["log_reward"]),
                "taken": chain["taken"] + per_query(taken, queries).sum(axis=1),
                "generated": chain["generated"] + per_query(written.sum(axis=1), queries).sum(axis=1),
                "scored": chain["scored"] + scored,
            }

        if start is None:
            first = write(beginning, None)
            generated = generated_tokens(first, queries)
            log_reward, scored = final_log_reward(self.reward, model, problem, first)
        else:  # given up to its end a row draws nothing, and is told its probability
            first = write(beginning, (start.completion, jnp.full(rows, start.completion.shape[1])))
            generated = jnp.zeros((queries,), jnp.int32)
            log_reward, scored = final_log_reward(self.reward, model, problem, start)
        chain = {
            "rollout": first,
            "log_reward": log_reward,
            "taken": jnp.zeros((queries,), jnp.int32),
            "generated": generated,
            "scored": scored,
        }
        chain = jax.lax.fori_loop(0, self.steps, move, chain)
        return Weighed(
            rollout=chain["rollout"],
            log_weight=jnp.where(chain["log_reward"] > -jnp.inf, 0.0, -jnp.inf),
            log_reward=chain["log_reward"],
            log_z=None,
            generated=chain["generated"],
            scored=chain["scored"],
            notes={"acceptance": chain["taken"] / (self.steps * budget)},
        )


def _log_potential(rollout: Rollout, log_reward: Float[Array, " B"]) -> Float[Array, " B"]:
    """Log w = log R - log q - log n, in nats."""
    return log_reward - rollout.log_behavior.sum(axis=1) - jnp.log(rollout.action_mask.sum(axis=1))
