"""A policy's certificate: rows of every query, scored; exact samples, and what another sampler makes of Z, beside them.

rejection = Rejection(reward)
prior_problem = Problem(prepared, prior(reward, query), rules)
found = exact_samples(rejection, policy.base, prior_problem, budget, key, wanted, most)
counts = [Counts(found.proposals, int(accepted), rejection.log_bound) for accepted in found.accepted]
exact = ExactSamples(found.completion, found.length, found.log_reward, counts)
print(certify(policy, reward, query, rules, key, rows=4096, exact=exact).page())
"""

import dataclasses
from collections.abc import Callable, Hashable, Sequence

import jax
import numpy as np
from jaxtyping import Array, Float, Int

from gfn_jax.evaluation.certificate import Certificate, Evidence, Settings, certificate
from gfn_jax.evaluation.limits import Counts
from gfn_jax.evaluation.rows import gather, parts
from gfn_jax.evaluation.scoring import Scorer
from gfn_jax.interfaces import Reward
from gfn_jax.models.language_model import LanguageModel
from gfn_jax.policy.constraint import Rules
from gfn_jax.samplers.independent import Importance
from gfn_jax.samplers.sampler import Problem, Sampler, Weighed, per_query
from gfn_jax.types import PyTree, Query


@dataclasses.dataclass(frozen=True)
class ExactSamples:
    """Completions that the posterior wrote, as many of each of Q queries as there are.

    Attributes:
        completion: the tokens of Z, filled up with the stop, a query.
        length: tokens of Z of each.
        log_reward: log R of each, in nats; None where nobody has asked yet.
        counts: of the rejection sampling that they come from, a query; None where they come from elsewhere.
    """

    completion: Sequence[Int[np.ndarray, "_ T"]]
    length: Sequence[Int[np.ndarray, " _"]]
    log_reward: Sequence[Float[np.ndarray, " _"]] | None = None
    counts: Sequence[Counts] | None = None


@dataclasses.dataclass(frozen=True)
class Estimator:
    """A sampler whose `log_z` is asked several times, each with its own randomness.

    Attributes:
        sampler: it must have one.
        budget: rows a query each time.
        repeats: how often.

    Raises:
        ValueError: it is never asked.
    """

    sampler: Sampler
    budget: int
    repeats: int

    def __post_init__(self):
        if self.budget < 1 or self.repeats < 1:
            raise ValueError(f"an estimate of Z needs rows and a repeat, not {self.budget} and {self.repeats}")


def certify(
    policy: LanguageModel,
    reward: Reward,
    query: Query,
    rules: Rules,
    key: jax.Array,
    rows: int,
    at_once: int = 256,
    batch: int = 16,
    exact: ExactSamples | None = None,
    other: Estimator | None = None,
    mode: Callable[[int, list[int]], Hashable] | None = None,
    known_modes: Sequence[int] | None = None,
    grade: Callable[[int, list[int]], bool] | None = None,
    settings: Settings | None = None,
) -> Certificate:
    """Measures a policy at temperature 1 against the posterior of a reward, whose model is the policy's base.

    Args:
        policy: q.
        reward: log R.
        query: Q queries.
        rules: vocabulary, length and tool.
        key: of the rows; the part of queries i and the round j use `fold_in(fold_in(key, i), j)`.
        rows: N of each query.
        at_once: rows of a query that are written at once; N is a multiple, or less.
        batch: queries at once.
        exact: samples of the posterior.
        other: another sampler's estimates of Z.
        mode: (query, tokens of Z) -> the mode that Z belongs to.
        known_modes: how many modes a query has.
        grade: (query, tokens of Z) -> whether Z is right.
        settings: of the certificate.

    Raises:
        ValueError: `at_once` does not divide the rows, exact samples are of other queries, or the other sampler has no
            estimate of Z.
    """
    at_once = min(at_once, rows)
    if rows < 1 or rows % at_once:
        raise ValueError(f"{rows} rows a query do not divide into rounds of {at_once}")
    if exact is not None and not len(exact.completion) == len(exact.length) == len(query.example_id):
        raise ValueError(f"exact samples of {len(exact.completion)} queries, where there are {len(query.example_id)}")
    prepared = jax.jit(reward.prepare)(policy.base)
    mine, theirs = jax.random.split(key)

    def ask(
        sampler: Sampler, budget: int, rounds: int, key: jax.Array, read: Callable[[Weighed, int], PyTree]
    ) -> PyTree:
        """What is read off every round, [queries, a round's, ...] each: as [Q, all rounds', ...] on the host."""

        @jax.jit
        def sample(model, problem, key) -> PyTree:
            return read(sampler.sample(model, problem, budget, key), len(problem.query.example_id))

        found = []
        for number, (part, count) in enumerate(parts(query, batch, policy)):
            keys = [jax.random.fold_in(jax.random.fold_in(key, number), turn) for turn in range(rounds)]
            asked = [gather(sample(policy, Problem(prepared, part, rules), key)) for key in keys]
            found.append(jax.tree.map(lambda *x, count=count: np.concatenate(x, axis=1)[:count], *asked))
        return jax.tree.map(lambda *x: np.concatenate(x), *found)

    log_z = None if other is None else ask(other.sampler, other.budget, other.repeats, theirs, _estimates)
    drawn = ask(Importance(reward), at_once, rows // at_once, mine, _rows)
    written = [
        [row[:length].tolist() for row, length in zip(*own, strict=True)]
        for own in zip(drawn["completion"], drawn["length"], strict=True)
    ]
    scored = _score(Scorer(reward, rules, batch), policy, query, exact) if exact is not None else ([], [])
    evidence = Evidence(
        log_q=drawn["log_q"].astype(np.float64),
        log_reward=drawn["log_reward"].astype(np.float64),
        exact_log_q=scored[0],
        exact_log_reward=scored[1],
        counts=None if exact is None else exact.counts,
        log_z=None if log_z is None else log_z.astype(np.float64),
        modes=[[mode(q, row) for row in own] for q, own in enumerate(written)] if mode else None,
        known_modes=known_modes,
        right=np.array([[grade(q, row) for row in own] for q, own in enumerate(written)], bool) if grade else None,
    )
    return certificate(evidence, settings)


def _rows(weighed: Weighed, queries: int) -> PyTree:
    """Of each row: its log q, log R, tokens, and how many are Z's."""
    drawn = weighed.rollout
    found = {
        "log_q": drawn.log_behavior.sum(axis=1),
        "log_reward": weighed.log_reward,
        "completion": drawn.completion,
        "length": drawn.token_mask.sum(axis=1),
    }
    return jax.tree.map(lambda x: per_query(x, queries), found)


def _estimates(weighed: Weighed, queries: int) -> Float[Array, "Q 1"]:
    if weighed.log_z is None:
        raise ValueError("a sampler without log_z has no estimate of Z")
    return weighed.log_z[:, None]


def _score(
    scorer: Scorer, policy: LanguageModel, query: Query, exact: ExactSamples
) -> tuple[list[Float[np.ndarray, " _"]], list[Float[np.ndarray, " _"]]]:
    """Log q and log R of exact samples; queries with fewer are filled up, so that all are scored in one shape."""
    most = max(map(len, exact.length))
    if not most:
        return [], []
    horizon = scorer.rules.constraint.horizon
    ids = np.full((len(exact.length), most, horizon), scorer.rules.constraint.stop_id, np.int32)
    lengths = np.zeros(ids.shape[:2], np.int32)
    for place, (rows, length) in enumerate(zip(exact.completion, exact.length, strict=True)):
        ids[place, : len(rows)], lengths[place, : len(rows)] = rows, length
    counts = [len(length) for length in exact.length]
    log_q = [row[:n] for row, n in zip(scorer.log_policy(policy, query.prompt, ids, lengths), counts)]
    if exact.log_reward is not None:
        return log_q, [np.asarray(row, np.float64) for row in exact.log_reward]
    log_reward = scorer.log_reward(policy.base, query, ids, lengths)
    return log_q, [row[:n] for row, n in zip(log_reward, counts)]
