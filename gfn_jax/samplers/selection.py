"""Rows of the policy from which some are chosen, by their reward and by how likely they were to be written.

All of them begin as importance sampling does (`independent.Importance`): N rows Z of a proposal q, and R(Z) / q(Z).
"""

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from gfn_jax.interfaces import Reward
from gfn_jax.models.language_model import LanguageModel
from gfn_jax.rewards import Adapted, PosteriorReward, Product, Rearranged
from gfn_jax.samplers.independent import Importance
from gfn_jax.samplers.sampler import Problem, Weighed, per_query
from gfn_jax.types import Query, Tokens

# Nats by which rounding may lift R / q above its bound.
ROUNDING = 1e-3


@dataclasses.dataclass(frozen=True)
class BestOfN:
    """Of N rows of the policy the one with the largest R, and no other: the first of equals.

    Not a sample of the posterior: with N its distribution goes from the policy's to the likeliest completion alone.

    Attributes:
        reward: log R.
    """

    reward: Reward

    def sample(self, model: LanguageModel, problem: Problem, budget: int, key: jax.Array) -> Weighed:
        """`log_z` is importance sampling's, by all N rows."""
        rows = Importance(self.reward).sample(model, problem, budget, key)
        log_reward = per_query(jnp.asarray(rows.log_reward), len(problem.query.example_id))
        best = jnp.arange(budget) == log_reward.argmax(axis=1)[:, None]
        chosen = (best & (log_reward > -jnp.inf)).reshape(-1)
        return dataclasses.replace(rows, log_weight=jnp.where(chosen, 0.0, -jnp.inf), notes={})


@dataclasses.dataclass(frozen=True)
class Resampling:
    """Sampling-importance-resampling (Rubin 1987): rows drawn with replacement from N proposals in proportion to R / q.

    They are the posterior's in the limit of many proposals, independent of each other given the proposals.

    Attributes:
        reward: log R.
        draws: rows a query that are drawn from the proposals.
        temperature: of the proposal.

    Raises:
        ValueError: no draws, or a temperature that is not above 0.
    """

    reward: Reward
    draws: int
    temperature: float = 1.0

    def __post_init__(self):
        if self.draws < 1 or not self.temperature > 0:
            raise ValueError(
                f"resampling needs draws above 0 and a temperature above 0, not {self.draws} and {self.temperature}"
            )

    def sample(self, model: LanguageModel, problem: Problem, budget: int, key: jax.Array) -> Weighed:
        """B = Q * `draws` rows of equal weight. `log_z` and `notes` are importance sampling's, of the N proposals."""
        proposing, drawing = jax.random.split(key)
        rows = Importance(self.reward, self.temperature).sample(model, problem, budget, proposing)
        queries = len(problem.query.example_id)
        log_weight = per_query(rows.log_weight, queries)
        drawn = jax.random.categorical(drawing, log_weight, shape=(self.draws, queries)).T
        drawn = (drawn + budget * jnp.arange(queries)[:, None]).reshape(-1)
        chosen, log_reward, log_weight = jax.tree.map(
            lambda x: x[drawn], (rows.rollout, rows.log_reward, rows.log_weight)
        )
        # Where no proposal has a weight there is nothing to draw from.
        log_weight = jnp.where(log_weight > -jnp.inf, 0.0, -jnp.inf)
        return dataclasses.replace(rows, rollout=chosen, log_weight=log_weight, log_reward=log_reward)


@dataclasses.dataclass(frozen=True)
class Rejection:
    """Proposals of `model`, accepted with probability min(1, R(Z) / (q(Z) e^log_bound)) (von Neumann 1951).

    Where R / q <= e^log_bound for every completion, accepted rows are exact, independent samples of the posterior, and
    Z e^-log_bound is the share of them.

    For R = p(Z Y | C), by the base after its context C (`PosteriorReward`), the base itself is a proposal with a
    bound that is known: `model.base` and a `prior` query. q is the base under the rules: in state k it is renormalised
    by m_k, the probability that p leaves to the tokens allowed there, and a tool's tokens are certain. p and q
    therefore share every factor but these, a the states in which the policy decided, the stop's included:

        R(Z) / q(Z) = p(Y | C Z) / p(stop | C Z) * prod_(k in a) m_k * prod_(k of the tool) p(z_k | C z_<k)

    No factor but the first can exceed 1, nor can that one where Y begins with the stop: p(Y | C Z) is then
    p(stop | C Z) times a probability, and a bound of 0 nats is exact. So it is with R to a power of at least 1, with
    further factors of at most 1 (`WordReward`), with an adapter that reward and proposal share, and with a
    `vocabulary_penalty` on tokens that the rules never allow (p is then divided by at least m_k, as q is by m_k).
    Where Y begins otherwise, R / q may be as large as 1 / p(stop | C Z): `notes` say what it was.

    Attributes:
        reward: log R.
        log_bound: what R / q does not exceed, in nats.
    """

    reward: Reward
    log_bound: float = 0.0

    def sample(self, model: LanguageModel, problem: Problem, budget: int, key: jax.Array) -> Weighed:
        """Accepted rows have log_weight 0, the others -inf; `log_z` is -inf where none was accepted.

        `notes`: `acceptance`, the share of rows accepted; `exceeded`, the share whose R / q was above the bound (by
        more than `ROUNDING`): unless it is 0, the accepted rows are not the posterior's; `largest`, the largest of
        log R / q.
        """
        proposing, deciding = jax.random.split(key)
        rows = Importance(self.reward).sample(model, problem, budget, proposing)
        queries = len(problem.query.example_id)
        accepted = -_exponential(deciding, len(rows.log_weight)) < rows.log_weight - self.log_bound
        log_ratio = per_query(rows.log_weight, queries)
        acceptance = per_query(accepted, queries).mean(axis=1)
        return dataclasses.replace(
            rows,
            log_weight=jnp.where(accepted, 0.0, -jnp.inf),
            log_z=jnp.log(acceptance) + self.log_bound,
            notes={
                "acceptance": acceptance,
                "exceeded": (log_ratio > self.log_bound + ROUNDING).mean(axis=1),
                "largest": log_ratio.max(axis=1),
            },
        )

    @functools.cached_property
    def compiled(self) -> Callable[..., Weighed]:
        """`sample`, compiled once for this object, which may hold arrays and so need not be hashable."""

        def sample(model, problem, budget, key) -> Weighed:
            return self.sample(model, problem, budget, key)

        return jax.jit(sample, static_argnums=2)


@dataclasses.dataclass(frozen=True)
class Accepted:
    """What `exact_samples` found.

    Attributes:
        completion: of each of Q queries its accepted completions, filled up with the stop, in the order in which they
            were proposed.
        length: the tokens of Z of each.
        log_reward: log R of each, in nats.
        proposals: rows a query that were proposed.
        generated: tokens that the proposals took, a query.
        scored: tokens that a model read to score them.
    """

    completion: list[Int[np.ndarray, "n T"]]
    length: list[Int[np.ndarray, " n"]]
    log_reward: list[Float[np.ndarray, " n"]]
    proposals: int
    generated: Int[np.ndarray, " Q"]
    scored: Int[np.ndarray, " Q"]

    @property
    def accepted(self) -> Int[np.ndarray, " Q"]:
        """How many: binomial(proposals, Z e^-log_bound), given the number of proposals."""
        return np.array([len(rows) for rows in self.length])


def exact_samples(
    rejection: Rejection, model: LanguageModel, problem: Problem, budget: int, key: jax.Array, wanted: int, most: int
) -> Accepted:
    """Proposes in rounds until every query has `wanted` accepted rows, or the next round would exceed `most` proposals.

    All that is accepted is returned. With `most` alone deciding, accepted / proposals is unbiased; where `wanted`
    ends the rounds it leans upwards, by about one part in `wanted`. The samples are exact either way.

    Args:
        rejection: the sampler; compiled once, whatever the round or the call.
        model: the proposal; for the bound of 0 the reward's model, `model.base`.
        problem: what completions are wanted of; for the bound of 0 with a `prior` query.
        budget: proposals a query and round.
        key: round i uses `fold_in(key, i)`.
        wanted: accepted rows a query.
        most: proposals a query.

    Raises:
        ValueError: R / q exceeded the bound, so that the samples would not be exact; or `most` allows of no round.
    """
    if not 1 <= budget <= most:
        raise ValueError(f"{most} proposals at most allow of no round of {budget}")
    completions: list[list[np.ndarray]] = [[] for _ in problem.query.example_id]
    lengths: list[list[np.ndarray]] = [[] for _ in completions]
    log_rewards: list[list[np.ndarray]] = [[] for _ in completions]
    generated = np.zeros(len(completions), np.int64)
    scored = np.zeros_like(generated)
    found = np.zeros_like(generated)
    rounds = 0
    while found.min() < wanted and (rounds + 1) * budget <= most:
        drawn = jax.device_get(rejection.compiled(model, problem, budget, jax.random.fold_in(key, rounds)))
        if drawn.notes["exceeded"].any():
            raise ValueError(
                f"R / q exceeds the bound of {rejection.log_bound:g} nats: it reached {drawn.notes['largest'].max():g}"
            )
        taken = drawn.log_weight.reshape(len(completions), budget) > -np.inf
        rows = drawn.rollout.completion.reshape(*taken.shape, -1)
        tokens = drawn.rollout.token_mask.sum(axis=1).reshape(taken.shape)
        log_reward = drawn.log_reward.reshape(taken.shape)
        for query, mask in enumerate(taken):
            completions[query].append(rows[query, mask])
            lengths[query].append(tokens[query, mask])
            log_rewards[query].append(log_reward[query, mask])
        generated, scored, found = generated + drawn.generated, scored + drawn.scored, found + taken.sum(axis=1)
        rounds += 1
    return Accepted(
        completion=[np.concatenate(rows) for rows in completions],
        length=[np.concatenate(rows) for rows in lengths],
        log_reward=[np.concatenate(rows) for rows in log_rewards],
        proposals=rounds * budget,
        generated=generated,
        scored=scored,
    )


def prior(reward: Reward, query: Query) -> Query:
    """The query with what the reward's model reads before Z as its prompt: `model.base` then samples p(Z | C).

    The demonstrations come first, then the context. Padding may lie between them: masks say what is real.

    Raises:
        ValueError: the reward reads no context (it has no `PosteriorReward`), or several.
    """
    found = _contexts(reward, query)
    if len(found) != 1:
        raise ValueError(f"a prior needs a reward that reads one context, not {len(found)}")
    return dataclasses.replace(query, prompt=found[0])


def _contexts(reward: Reward, query: Query) -> list[Tokens]:
    """What every `PosteriorReward` in a reward reads before Z."""
    match reward:
        case Product():
            return [context for factor in reward.factors for context in _contexts(factor, query)]
        case Adapted():
            return _contexts(reward.reward, query)
        case Rearranged():
            return _contexts(reward.reward, reward.arrange(query))
        case PosteriorReward(demonstrations=None):
            return [query.context]
        case PosteriorReward():
            queries = len(query.example_id)
            shared = jax.tree.map(lambda x: jnp.broadcast_to(x, (queries, x.shape[1])), reward.demonstrations)
            return [jax.tree.map(lambda *parts: jnp.concatenate(parts, axis=1), shared, query.context)]
        case _:
            return []


def _exponential(key: jax.Array, rows: int) -> Float[Array, " rows"]:
    """Exponential draws whose tail reaches beyond 20 nats.

    A float32 uniform has steps of 2^-23, so its logarithm is coarse from 10 nats on and ends at 16, where posteriors
    of long answers begin. What exceeds 8 nats does so by another exponential draw.
    """
    first, second = jax.random.exponential(key, (2, rows))
    return jnp.where(first < 8, first, 8 + second)
