"""A target that is known exactly: everything it gives a probability is listed, with its log R.

    pi(Z) = R(Z) / sum_Z' R(Z'),        log Z = log sum_Z' R(Z')

Sums are in float64 on the host. What a sampler answers to a query is a distribution too, its weighted empirical one,
and so are a policy's own probabilities. Both are compared with pi:

    kl_to_target     KL(q(.|listed) || pi), without what q spends on completions that are not listed: its `outside`
    kl_from_target   KL(pi || q); infinite where q has nothing on a completion of pi, as an empirical one mostly has
    total_variation  1/2 (sum |q - pi| + outside)
    coverage         found modes / modes

A mode is what a target names so (a number, a solution up to commutation); where nothing is named, each completion of
the smallest set that has `MODE_MASS` of pi. It is found where a completion of it has weight (of a policy: where q gives
the mode more than a tenth of what pi does).

The plug-in estimate of KL from n draws has a bias of about (k - 1) / 2n for k completions, which draws from pi itself
show too: `noise_floor` says what n of those would.
"""

import collections
import dataclasses
import functools
import math
from collections.abc import Callable, Hashable, Sequence

import jax
import numpy as np
from jaxtyping import Float

from gfn_jax.evaluation.scoring import log_policy
from gfn_jax.interfaces import Reward
from gfn_jax.models.language_model import LanguageModel
from gfn_jax.policy.constraint import Rules
from gfn_jax.samplers.sampler import Problem, Weighed, final_log_reward
from gfn_jax.types import PyTree, Query, Rollout

MODE_MASS = 0.9
SCORED = 1024  # completions at once
SIMULATIONS = 20  # of a noise floor

Mode = Hashable | None


@dataclasses.dataclass(frozen=True)
class ExactTarget:
    """Q queries and everything that their targets give a probability.

    Attributes:
        name: of the target.
        base: the reward's model, and the proposal that samplers start from.
        reward: log R.
        rules: how completions are written.
        queries: Q; the policy's prompt and the reward's context.
        listed: of each query its S completions.
        log_reward: of each query [S], in nats, float64.
        modes: of each query the mode of every completion, None for one that belongs to none.
        unlisted: an upper bound of log R summed over what the rules allow and the lists leave out, in nats; -inf where
            the lists are whole.
    """

    name: str
    base: LanguageModel
    reward: Reward
    rules: Rules
    queries: Query
    listed: tuple[Rollout, ...]
    log_reward: tuple[Float[np.ndarray, " S"], ...]
    modes: tuple[tuple[Mode, ...], ...]
    unlisted: float = -math.inf

    @functools.cached_property
    def log_z(self) -> Float[np.ndarray, " Q"]:
        """Log of the sum of R over each list, in nats."""
        return np.array([np.logaddexp.reduce(log_reward) for log_reward in self.log_reward])

    @functools.cached_property
    def log_target(self) -> tuple[Float[np.ndarray, " S"], ...]:
        """Log pi, a list a query."""
        return tuple(log_reward - log_z for log_reward, log_z in zip(self.log_reward, self.log_z))

    @functools.cached_property
    def places(self) -> tuple[dict[tuple[int, ...], int], ...]:
        """Tokens of Z -> its place in the list, a table a query."""
        return tuple({row: place for place, row in enumerate(token_rows(rollout))} for rollout in self.listed)

    def problem(self) -> Problem:
        """What samplers are given."""
        return Problem(self.reward.prepare(self.base), self.queries, self.rules)

    def mode_of(self, query: int, completion: Sequence[int]) -> Mode:
        """The mode of a query that a completion belongs to, None where it belongs to none."""
        place = self.places[query].get(tuple(completion))
        return None if place is None else self.modes[query][place]


def make_target(
    name: str,
    base: LanguageModel,
    reward: Reward,
    rules: Rules,
    queries: Query,
    listed: Rollout | Sequence[Rollout],
    mode_of: Callable[[int, tuple[int, ...]], Mode] | None = None,
    unlisted: float = -math.inf,
) -> ExactTarget:
    """Scores the lists.

    Args:
        name: as of `ExactTarget`, and so is what is not explained here.
        base: the model.
        reward: log R.
        rules: how completions are written.
        queries: Q.
        listed: the completions, a list for every query or one for all.
        mode_of: (query, tokens of Z) -> its mode; None for the completions of the smallest set with `MODE_MASS`.
        unlisted: the bound.

    Raises:
        ValueError: a listed completion cannot be written under the rules, or stands there twice; or what is left out
            may be more than a billionth of what is listed.
    """
    count = len(queries.example_id)
    lists = tuple([listed] * count if isinstance(listed, Rollout) else listed)
    for rollout in lists:
        rows = token_rows(rollout)
        if not np.asarray(rollout.stop).any(axis=1).all():
            raise ValueError(f"{name}: a listed completion cannot be written under the rules")
        if len(set(rows)) < len(rows):
            raise ValueError(f"{name}: a completion is listed twice")
    log_reward = score_lists(base, reward, rules, queries, lists)
    least = min(float(np.logaddexp.reduce(values)) for values in log_reward)
    if unlisted > least - math.log(1e9):
        raise ValueError(f"{name}: what is not listed may have e^{unlisted - least:.1f} of what is")
    if mode_of is None:
        modes = tuple(likely_set(values) for values in log_reward)
    else:
        modes = tuple(tuple(mode_of(q, row) for row in token_rows(rollout)) for q, rollout in enumerate(lists))
    return ExactTarget(name, base, reward, rules, queries, lists, log_reward, modes, unlisted)


def token_rows(rollout: Rollout) -> list[tuple[int, ...]]:
    """The tokens of Z of every row."""
    lengths = np.asarray(rollout.token_mask).sum(axis=1)
    return [tuple(row[:n]) for row, n in zip(np.asarray(rollout.completion).tolist(), lengths.tolist(), strict=True)]


def likely_set(log_reward: Float[np.ndarray, " S"]) -> tuple[Mode, ...]:
    """Every completion of the smallest set with `MODE_MASS` is a mode."""
    order = np.argsort(-log_reward, kind="stable")
    mass = np.exp(log_reward[order] - np.logaddexp.reduce(log_reward)).cumsum()
    inside = np.zeros(len(order), bool)
    inside[order[: int(np.searchsorted(mass, MODE_MASS)) + 1]] = True
    return tuple(place if kept else None for place, kept in enumerate(inside.tolist()))


def score_lists(
    base: LanguageModel, reward: Reward, rules: Rules, queries: Query, lists: Sequence[Rollout]
) -> tuple[Float[np.ndarray, " S"], ...]:
    """Log R of every listed completion of every query, in batches of one shape a query, float64."""

    @jax.jit
    def score(base: LanguageModel, prepared: PyTree, query: Query, rollout: Rollout) -> jax.Array:
        return final_log_reward(reward, base, Problem(prepared, query, rules), rollout)[0]

    return in_parts(functools.partial(score, base, reward.prepare(base)), queries, lists)


def exact_log_policy(target: ExactTarget, model: LanguageModel) -> tuple[Float[np.ndarray, " S"], ...]:
    """Log q of every listed completion under a policy at temperature 1, in nats, float64."""

    def score(query: Query, rollout: Rollout) -> jax.Array:
        return _log_policy(model, query.prompt, rollout, target.rules)

    return in_parts(score, target.queries, target.listed)


def empirical(target: ExactTarget, weighed: Weighed) -> tuple[Float[np.ndarray, " S"], ...]:
    """The weighted empirical distribution of each query over its list; what is missing from one lies outside.

    A query none of whose rows counts has nothing on the list.
    """
    log_weight = np.asarray(weighed.log_weight, np.float64).reshape(len(target.listed), -1)
    rows = token_rows(weighed.rollout)
    found = []
    for query, weights in enumerate(log_weight):
        share = np.zeros(len(target.log_reward[query]))
        if weights.max() > -np.inf:
            weights = np.exp(weights - np.logaddexp.reduce(weights))
            own = rows[query * len(weights) : (query + 1) * len(weights)]
            for row, weight in zip(own, weights.tolist(), strict=True):
                if weight and (place := target.places[query].get(row)) is not None:
                    share[place] += weight
        found.append(share)
    return tuple(found)


def distances(
    q: Float[np.ndarray, " S"], log_p: Float[np.ndarray, " S"], modes: Sequence[Mode], found_above: float = 0.0
) -> dict[str, float]:
    """How far one query's q is from pi: the measures of the module's docstring.

    Args:
        q: probabilities of the listed completions; they may add up to less than one.
        log_p: log pi.
        modes: of the completions.
        found_above: the share of a mode's own probability that q must exceed for it to be found.

    Returns:
        `kl_to_target`, `kl_from_target` in nats; `total_variation`, `outside` and `coverage` in 0..1.
    """
    p, listed = np.exp(log_p), float(q.sum())
    has = q > 0
    with np.errstate(divide="ignore"):
        log_q = np.log(q)
    kl_to_target = math.inf
    if listed > 0:
        inside = q[has] / listed
        kl_to_target = max(float((inside * (np.log(inside) - log_p[has])).sum()), 0.0)
    weight: dict[Hashable, list[float]] = collections.defaultdict(lambda: [0.0, 0.0])
    for place, mode in enumerate(modes):
        if mode is not None:
            weight[mode][0] += q[place]
            weight[mode][1] += p[place]
    outside = max(1.0 - listed, 0.0)
    return {
        "kl_to_target": kl_to_target,
        "kl_from_target": max(float((p[p > 0] * (log_p - log_q)[p > 0]).sum()), 0.0),
        "total_variation": float(np.abs(q - p).sum() + outside) / 2,
        "outside": outside,
        "coverage": sum(own > found_above * wanted for own, wanted in weight.values()) / max(len(weight), 1),
    }


def compare(
    target: ExactTarget, shares: Sequence[Float[np.ndarray, " S"]], found_above: float = 0.0
) -> dict[str, float]:
    """`distances`, averaged over the queries."""
    each = [distances(*one, found_above) for one in zip(shares, target.log_target, target.modes)]
    return {name: float(np.mean([one[name] for one in each])) for name in each[0]}


def noise_floor(target: ExactTarget, draws: int, seed: int = 0) -> dict[str, float]:
    """What `draws` exact samples of every query show, averaged over `SIMULATIONS` of them."""
    rng = np.random.default_rng(seed)
    simulated = []
    for _ in range(SIMULATIONS):
        counts = []
        for log_p in target.log_target:
            p = np.exp(log_p)
            counts.append(rng.multinomial(draws, p / p.sum()) / draws)
        simulated.append(compare(target, counts))
    return {name: float(np.mean([one[name] for one in simulated])) for name in simulated[0]}


def in_parts(
    score: Callable[[Query, Rollout], jax.Array], queries: Query, lists: Sequence[Rollout]
) -> tuple[Float[np.ndarray, " S"], ...]:
    """What is said of every query's list, float64, in parts of one shape: `SCORED` completions, or the longest list."""
    size, found = min(SCORED, max(len(rollout.completion) for rollout in lists)), []
    for number, rollout in enumerate(lists):
        query = jax.tree.map(lambda x, n=number: x[n : n + 1], queries)
        count, values = len(rollout.completion), []
        for begin in range(0, count, size):
            place = np.minimum(np.arange(begin, begin + size), count - 1)  # filled up with the last
            values.append(jax.device_get(score(query, jax.tree.map(lambda x, place=place: x[place], rollout))))
        found.append(np.concatenate(values)[:count].astype(np.float64))
    return tuple(found)


_log_policy = jax.jit(log_policy)
