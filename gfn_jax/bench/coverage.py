"""How often a certificate's intervals hold what is exactly true of a target: their own test.

For every seed a policy writes N rows of each query, the posterior M exact samples, and rejection sampling counts how
many of its proposals are accepted; a certificate is made of them, and its averages over the queries are compared with
log Z, KL(q | pi) and KL(pi | q) summed over the list. Where a target's list is not all that may be written, the rows
are sampled, and KL(q | pi), which then depends on what is not listed, is left out.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from gfn_jax.bench.exact import ExactTarget, exact_log_policy
from gfn_jax.evaluation.certificate import Evidence, Settings, certificate
from gfn_jax.evaluation.limits import Counts
from gfn_jax.models.language_model import LanguageModel
from gfn_jax.samplers.independent import Importance
from gfn_jax.samplers.sampler import Problem, per_query

WHOLE = 1e-5  # of q, may be missing from a list that is called whole
AT_ONCE = 512  # rows of a query that are sampled at once


def truth(target: ExactTarget, log_q: tuple[Float[np.ndarray, " S"], ...]) -> dict[str, float]:
    """The averages over queries, in nats; `kl_q_pi` only where the lists are whole."""
    pairs = list(zip(log_q, target.log_target))
    found = {
        "log_z": float(target.log_z.mean()),
        "kl_pi_q": float(np.mean([(np.exp(p) * (p - q))[p > -math.inf].sum() for q, p in pairs])),
    }
    if all(abs(np.exp(q).sum() - 1) < WHOLE for q in log_q):
        found["kl_q_pi"] = float(np.mean([(np.exp(q) * (q - p)).sum() for q, p in pairs]))
    return found


def rows_of(
    target: ExactTarget, policy: LanguageModel, rows: int
) -> tuple[Float[np.ndarray, "Q N"], Float[np.ndarray, "Q N"]]:
    """Log q and log R of at least so many rows of each query, as the policy writes them."""
    sampler, queries = Importance(target.reward), len(target.listed)

    @jax.jit
    def draw(policy: LanguageModel, problem: Problem, key: jax.Array) -> Any:
        weighed = sampler.sample(policy, problem, AT_ONCE, key)
        log_q, log_reward = weighed.rollout.log_behavior.sum(axis=1), jnp.asarray(weighed.log_reward)
        return per_query(log_q, queries), per_query(log_reward, queries)

    problem = target.problem()
    drawn = [jax.device_get(draw(policy, problem, jax.random.key(i))) for i in range(-(-rows // AT_ONCE))]
    log_q, log_reward = (np.concatenate(part, axis=1).astype(np.float64) for part in zip(*drawn))
    return log_q, log_reward


def coverage(
    target: ExactTarget, policy: LanguageModel, rows: int, exact: int, proposals: int, seeds: int
) -> dict[str, Any]:
    """Of `seeds` certificates: how many intervals hold the truth, and how wide they are.

    Args:
        target: what is known.
        policy: q.
        rows: N of each query.
        exact: M of each query; 0 for none.
        proposals: of a rejection sampler whose proposals are accepted with probability Z; 0 for none. A target whose Z
            exceeds 1 has none.
        seeds: how many certificates.

    Returns:
        A measure -> its `truth`, how many intervals were `covered`, the mean `width` (None where an end is missing).
    """
    log_q = exact_log_policy(target, policy)
    true = truth(target, log_q)
    pool = None if "kl_q_pi" in true else rows_of(target, policy, rows * seeds)
    held: dict[str, dict[str, Any]] = {
        name: {"truth": value, "covered": 0, "widths": []} for name, value in true.items()
    }
    for seed in range(seeds):
        rng = np.random.default_rng(seed)
        if pool is None:
            places = [rng.choice(len(q), rows, p=np.exp(q) / np.exp(q).sum()) for q in log_q]
            drawn = [np.stack([q[at] for q, at in zip(x, places)]) for x in (log_q, target.log_reward)]
        else:
            drawn = [x[:, seed * rows : (seed + 1) * rows] for x in pool]
        found = [rng.choice(len(p), exact, p=np.exp(p) / np.exp(p).sum()) for p in target.log_target] if exact else []
        counts = None
        if proposals and target.log_z.max() <= 0:
            counts = [Counts(proposals, int(rng.binomial(proposals, math.exp(log_z))), 0.0) for log_z in target.log_z]
        evidence = Evidence(
            log_q=drawn[0],
            log_reward=drawn[1],
            exact_log_q=[q[at] for q, at in zip(log_q, found)],
            exact_log_reward=[r[at] for r, at in zip(target.log_reward, found)],
            counts=counts,
        )
        measures = certificate(evidence, Settings(seed=seed)).measures
        for name, one in held.items():
            interval = measures[name].mean if name in measures else None
            low = -math.inf if interval is None or interval.low is None else interval.low
            high = math.inf if interval is None or interval.high is None else interval.high
            one["covered"] += low <= one["truth"] <= high
            one["widths"].append(high - low)
    for one in held.values():
        width = float(np.mean(one.pop("widths")))
        one["width"] = width if math.isfinite(width) else None
    return held
