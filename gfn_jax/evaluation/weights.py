"""What importance weights w = R / q say of q: of rows of q ("on-policy") and of samples of the posterior ("exact").

    L_K = E log (1/K) sum_k w(Z_k),  Z_k ~ q          at most log Z, growing with K     (Burda et al. 1509.00519)
    U_K = E log (1/K) sum_k w(Z_k),  Z_1 ~ pi         at least log Z, falling with K    (Grosse et al. 1511.02543)

L_1 is the ELBO and U_1 the EUBO: log Z - L_1 = KL(q | pi), U_1 - log Z = KL(pi | q). These means have Student's
interval; what is no mean (effective sizes, variances) has the bootstrap's percentiles, as BCa's correction needs the
statistic without each row in turn, which one row of a heavy tail decides. Neither sees a tail that the rows do not
show: `pareto_shape` says where that is likely, `limits` what holds there too.
"""

import math
from collections import Counter
from collections.abc import Callable, Hashable, Sequence

import numpy as np
from jaxtyping import Float
from scipy.special import logsumexp, ndtri, stdtrit

from gfn_jax.evaluation.limits import Interval, clopper_pearson

Statistic = Callable[..., np.ndarray]
LARGEST_SIZE = 4096


def sizes(rows: int) -> list[int]:
    """K = 1, 4, 16 ... of the bounds that so many rows allow."""
    return [4**power for power in range(7) if 4**power <= min(rows, LARGEST_SIZE)]


def lower_bound(log_weight: Float[np.ndarray, " N"], size: int, risk: float) -> Interval:
    """L_K of K = `size`, by disjoint blocks of the rows."""
    blocks = log_weight[: len(log_weight) // size * size].reshape(-1, size)
    return mean_of(logsumexp(blocks, axis=1) - math.log(size), risk)


def upper_bound(
    log_weight: Float[np.ndarray, " N"], exact: Float[np.ndarray, " M"], size: int, risk: float
) -> Interval:
    """U_K of K = `size`, by as many exact samples as there are, each among K - 1 rows that no other is among."""
    count = min(len(exact), len(log_weight) // (size - 1)) if size > 1 else len(exact)
    others = log_weight[: count * (size - 1)].reshape(count, size - 1)
    return mean_of(logsumexp(np.column_stack([exact[:count], others]), axis=1) - math.log(size), risk)


def mean_of(x: Float[np.ndarray, " n"], risk: float) -> Interval:
    """A mean with Student's interval; without one where there is a single value or one that is infinite."""
    if not len(x) or not np.isfinite(x).all():
        return Interval()
    if len(x) == 1:
        return Interval(float(x[0]))
    half = stdtrit(len(x) - 1, 1 - risk / 2) * x.std(ddof=1) / math.sqrt(len(x))
    mean = float(x.mean())
    return Interval(mean, mean - half, mean + half)


def bootstrap(
    statistic: Statistic, data: Float[np.ndarray, " n"], resamples: int, rng: np.random.Generator, risk: float
) -> Interval:
    """A statistic of rows ([..., n]) with the percentiles of what resampled rows give (Efron 1979)."""
    count = len(data)
    if count < 2:
        return Interval()
    drawn = rng.integers(0, count, (resamples, count))
    with np.errstate(divide="ignore", invalid="ignore"):
        estimate, again = statistic(data), statistic(data[drawn])
        low, high = np.quantile(again, [risk / 2, 1 - risk / 2])
    return Interval(float(estimate), float(low), float(high))


def reverse_ess(log_weight: Float[np.ndarray, "*b N"]) -> Float[np.ndarray, "*b"]:
    """(sum w)^2 / (N sum w^2) of rows of q, a share (2406.07423); it does not see what q has lost."""
    total, squares = logsumexp(log_weight, axis=-1), logsumexp(2 * log_weight, axis=-1)
    return np.exp(2 * total - squares) / log_weight.shape[-1]


def forward_ess(log_weight: Float[np.ndarray, "*b M"]) -> Float[np.ndarray, "*b"]:
    """1 / (E w  E 1/w) over exact samples, a share (2406.07423): 1 / E w is then in units of 1 / Z."""
    count = log_weight.shape[-1]
    return np.exp(2 * np.log(count) - logsumexp(log_weight, axis=-1) - logsumexp(-log_weight, axis=-1))


def variance(log_weight: Float[np.ndarray, "*b n"]) -> Float[np.ndarray, "*b"]:
    """Var(log R - log q) in nats squared: 0 where q is the posterior."""
    return log_weight.var(axis=-1, ddof=1)


def rank_correlation(x: Float[np.ndarray, " n"], y: Float[np.ndarray, " n"], risk: float) -> Interval:
    """Spearman's: Pearson's of ranks, equal values sharing theirs; none where all values of either are equal.

    Its limits are normal after Fisher's transformation, with the variance (1 + r^2 / 2) / (n - 3) of Bonett and
    Wright (2000).
    """
    a, b = (ranks - ranks.mean() for ranks in (_ranks(x), _ranks(y)))
    if len(a) < 4 or not a.any() or not b.any():
        return Interval()
    r = float(np.clip(a @ b / math.sqrt((a @ a) * (b @ b)), -1.0, 1.0))
    half = float(ndtri(1 - risk / 2)) * math.sqrt((1 + r**2 / 2) / (len(a) - 3))
    with np.errstate(divide="ignore"):
        low, high = np.tanh(np.arctanh(r) + np.array([-half, half]))
    return Interval(r, float(low), float(high))


def pareto_shape(log_weight: Float[np.ndarray, " n"]) -> float | None:
    """k-hat of a generalised Pareto fit to the weights' tail (Vehtari et al. 1507.02646); None where there is no tail.

    Means of the weights have a variance where k < 1/2, and estimates of them are practical up to 0.7. The fit is that
    of Zhang and Stephens (2009), a mean over a grid of scales by their profile likelihood, drawn slightly towards 1/2.
    """
    count = math.ceil(min(0.2 * len(log_weight), 3 * math.sqrt(len(log_weight))))
    ordered = np.sort(log_weight)[-count - 1 :]
    if not ordered[-1] - ordered[0] > 1e-9 or ordered[-1] == -np.inf:  # equal, but for rounding
        return None
    tail = np.exp(ordered - ordered[-1])
    tail = (tail - tail[0])[tail > tail[0]]
    if len(tail) < 5:
        return None
    number = 30 + int(math.sqrt(len(tail)))
    quarter = tail[int(len(tail) / 4 + 0.5) - 1]
    scale = 1 / tail[-1] + (1 - np.sqrt(number / (np.arange(number) + 0.5))) / (3 * quarter)
    shape = np.log1p(-scale[:, None] * tail).mean(axis=1)
    profile = len(tail) * (np.log(-scale / shape) - shape - 1)
    mean = np.exp(profile - logsumexp(profile)) @ scale
    fitted = np.log1p(-mean * tail).mean()
    return float((fitted * len(tail) + 5) / (len(tail) + 10))


def mode_entropy(labels: Sequence[Hashable], risk: float) -> Interval:
    """Entropy in nats over a row's modes, with Miller and Madow's (K - 1) / 2N; normal limits (the delta method).

    It is still too low where modes were never seen, and there is none of no rows.
    """
    if not labels:
        return Interval()
    share = np.array([*Counter(labels).values()]) / len(labels)
    entropy = -float((share * np.log(share)).sum())
    spread = math.sqrt(max(float((share * np.log(share) ** 2).sum()) - entropy**2, 0.0) / len(labels))
    half = float(ndtri(1 - risk / 2)) * spread
    entropy += (len(share) - 1) / (2 * len(labels))
    return Interval(entropy, max(entropy - half, 0.0), entropy + half)


def pass_at_k(rows: int, right: int, k: int, risk: float) -> Interval:
    """The chance that one of k rows is right: 1 - C(n - c, k) / C(n, k), unbiased (Chen et al. 2107.03374).

    Its limits follow from the exact ones of a single row's.
    """
    wrong = float(np.prod(1 - k / np.arange(rows - right + 1, rows + 1))) if rows - right >= k else 0.0
    low, high = clopper_pearson(right, rows, risk)
    return Interval(1 - wrong, 1 - (1 - low) ** k, 1 - (1 - high) ** k)


def _ranks(x: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
    _, place, count = np.unique(x, return_inverse=True, return_counts=True)
    return (np.cumsum(count) - (count - 1) / 2)[place]
