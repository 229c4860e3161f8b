"""Confidence limits that hold at any number of rows, however heavy the tails of what is averaged.

A nonnegative x whose mean is at most 1 is a fair bet, or worse: whoever stakes a share of his capital on every row will
with probability 1 - r never own 1 / r times what he began with (Ville). So m is too small for the mean of x, at risk r,
where betting on the rows of x / m earns that much (Waudby-Smith and Ramdas, 2010.09686). With w = R / q, and the
posterior pi = R / Z, three such bets say what Z is not:

    E_q w / Z = 1                                   Z is not that small          on-policy rows
    E_pi Z / w = 1                                  Z is not that large          exact samples
    E_q s(l - a) = e^-a E_pi s(a - l)               neither                      both; l = log w / Z, s the sigmoid

The third is the acceptance ratio's equation (Bennett 1976; Meng and Wong 1996): what is averaged is bounded. No such
bet exists for a divergence, since a completion that was never seen may add anything to it. Each is

    KL(q | pi) = E_q [e^l - 1 - l; l < 0] + E_pi [1 - e^-l - l e^-l; l >= 0]

(KL(pi | q) likewise, l being -l, and q and pi each other), where the second mean is bounded by 1, and the first has the
limits of a mean that is bounded by a number of nats that the caller answers for. Both terms are of second order in l
and in an error of log Z: where q is near pi the interval is far narrower than those of log Z and of E_q log w.

All arrays are float64 on the host; all logarithms in nats.
"""

import dataclasses

import numpy as np
import scipy  # its `optimize` is imported when it is wanted, which takes a quarter of a second
from jaxtyping import Float
from scipy.special import betaincinv, expit

# Shares of the capital that are staked on every row, each with an eighth of the capital; with the rest the share
# follows from the rows before. No more than nearly all is ever staked: a row of 0 would end the game.
STAKES = np.array([0.99, 1 / 4, 1 / 16, 1 / 64])
MOST = 0.97
# log Z is looked for within so many nats of the weights that were seen.
REACH = 60.0
# Parts of the interval of log Z, in each of which a divergence has limits of its own.
CELLS = 6


@dataclasses.dataclass(frozen=True)
class Interval:
    """A number, and the limits that it lies between; None where there is none."""

    estimate: float | None = None
    low: float | None = None
    high: float | None = None

    def __post_init__(self):
        for name in ("estimate", "low", "high"):
            value = getattr(self, name)
            object.__setattr__(self, name, float(value) if value is not None and np.isfinite(value) else None)

    @property
    def two_sided(self) -> bool:
        """Both limits are there."""
        return self.low is not None and self.high is not None


@dataclasses.dataclass(frozen=True)
class Counts:
    """What rejection sampling counted: Z = e^log_bound x its acceptance."""

    proposals: int
    accepted: int
    log_bound: float


def log_capital(x: Float[np.ndarray, " n"], risk: float) -> float:
    """Log of a capital of 1 after betting that the mean of x >= 0 is above 1; e^this exceeds 1 / risk with that risk.

    Args:
        x: independent rows, in an order that does not depend on them.
        risk: the bets are the best where 1 / risk is wanted.
    """
    count = 1.0 + np.arange(len(x))
    mean = (1.0 + np.cumsum(x)) / (1.0 + count)
    variance = (1.0 + np.cumsum((x - mean) ** 2)) / (1.0 + count)
    variance = np.concatenate([[1.0], variance[:-1]])  # of the rows before
    stake = np.minimum(np.sqrt(2 * np.log(1 / risk) / (len(x) * variance)), MOST)
    fixed = np.log1p(STAKES[:, None] * (x - 1)).sum(axis=1)
    earned = [*(fixed - np.log(2 * len(STAKES))), np.log1p(stake * (x - 1)).sum() - np.log(2)]
    return float(np.logaddexp.reduce(earned))


def lower_limit(x: Float[np.ndarray, " n"], risk: float) -> float:
    """What the mean of x >= 0 is not below, at `risk`."""
    mean, goal = x.mean(), np.log(1 / risk)
    if not mean > 0:
        return 0.0

    def excess(below: float) -> float:
        return log_capital(x / mean * np.exp(below), risk) - goal

    if excess(0.0) >= 0:  # an unlucky order
        return float(mean)
    below = 4 * goal / len(x)
    while excess(below) < 0:
        below *= 2
        if below > REACH:
            return 0.0
    return float(mean * np.exp(-scipy.optimize.brentq(excess, 0.0, below, xtol=1e-10)))


def upper_limit(x: Float[np.ndarray, " n"], bound: float, risk: float) -> float:
    """What the mean of 0 <= x <= bound is not above, at `risk`."""
    return bound - lower_limit(bound - x, risk)


def clopper_pearson(accepted: int, proposals: int, risk: float) -> tuple[float, float]:
    """The exact interval of a share (Clopper and Pearson 1934), at `risk`; so too where one stopped at a success."""
    low = betaincinv(accepted, proposals - accepted + 1, risk / 2) if accepted else 0.0
    high = betaincinv(accepted + 1, proposals - accepted, 1 - risk / 2) if accepted < proposals else 1.0
    return float(low), float(high)


def estimate_log_z(log_weight: Float[np.ndarray, " N"], exact: Float[np.ndarray, " M"]) -> float:
    """Log Z by the acceptance ratio; by the mean weight where there is no exact sample."""
    mean = float(np.logaddexp.reduce(log_weight) - np.log(len(log_weight)))
    if not len(exact):
        return mean
    shift = np.log(len(log_weight) / len(exact))

    def balance(log_z: float) -> float:
        return expit(log_weight - log_z - shift).sum() - expit(shift + log_z - exact).sum()

    low, high = _range(log_weight, exact)
    return float(scipy.optimize.brentq(balance, low, high))


def log_z_limits(
    log_weight: Float[np.ndarray, " N"],
    exact: Float[np.ndarray, " M"],
    risk: float,
    log_z: Float[np.ndarray, " K"] | None = None,
    counts: Counts | None = None,
) -> tuple[float, float]:
    """Log Z lies between these, at `risk`; an end that nothing is known of is infinite.

    The bets of an end are one, each made with its share of the capital; half the risk is the counts' where there are
    some.

    Args:
        log_weight: log R - log q of rows of q.
        exact: the same of samples of the posterior.
        risk: that log Z lies elsewhere.
        log_z: logarithms of unbiased estimates of Z.
        counts: of rejection sampling.
    """
    ends = [-np.inf, np.inf]
    if counts is not None:
        risk = risk / 2
        with np.errstate(divide="ignore"):
            ends = list(counts.log_bound + np.log(clopper_pearson(counts.accepted, counts.proposals, risk)))

    def above(z: float) -> float:
        """The capital of who bets that log Z is above z."""
        bets = [_exp(log_weight - z)]
        bets += [_exp(log_z - z)] if log_z is not None else []
        bets += [_acceptance_ratio(log_weight - z, exact - z)] if len(exact) else []
        return _together(bets, risk / 2)

    def below(z: float) -> float:
        return _together([_exp(z - exact), _acceptance_ratio(z - exact, z - log_weight)], risk / 2)

    low, high = _range(log_weight, exact, *([] if log_z is None else [log_z]))
    if above(low) > 0:
        ends[0] = max(ends[0], scipy.optimize.brentq(above, low, high, xtol=1e-8))
    if len(exact) and below(high) > 0:
        ends[1] = min(ends[1], scipy.optimize.brentq(below, low, high, xtol=1e-8))
    return float(ends[0]), float(ends[1])


def divergence_limits(
    near: Float[np.ndarray, " N"],
    far: Float[np.ndarray, " M"],
    log_z: tuple[float, float],
    bound: float,
    risk: float,
) -> tuple[float, float]:
    """KL(q | pi) in nats lies between these, at `risk`, if log Z lies in its interval and log pi / q above -bound.

    For KL(pi | q): `-exact`, `-log_weight`, the interval's negative.

    Args:
        near: log R - log q of rows of q; where R is 0 the divergence is infinite.
        far: the same of samples of the posterior.
        log_z: an interval of log Z.
        bound: in nats.
        risk: that it lies elsewhere; 3/4 of it is the first mean's.
    """
    if not np.isfinite(near).all():
        return np.inf, np.inf
    grid = np.linspace(*log_z, CELLS + 1)
    # The first mean grows with log Z, the second falls.
    first = [_near(near - z) for z in grid]
    second = [_far(far - z) for z in grid]
    near_risk, far_risk = 3 / 8 * risk, 1 / 8 * risk
    low = min(lower_limit(a, near_risk) + lower_limit(b, far_risk) for a, b in zip(first[:-1], second[1:]))
    high = max(upper_limit(a, bound, near_risk) + upper_limit(b, 1.0, far_risk) for a, b in zip(first[1:], second[:-1]))
    return low, high


def estimate_divergence(near: Float[np.ndarray, " N"], far: Float[np.ndarray, " M"], log_z: float) -> float:
    """KL(q | pi) in nats, as `divergence_limits` has it."""
    return float(_near(near - log_z).mean() + _far(far - log_z).mean())


def least_divergence(log_weight: Float[np.ndarray, " N"], risk: float) -> Interval:
    """What KL(q | pi) is not below, by rows of q alone: L_K - L_1, for the best K (`weights.lower_bound`).

    log (1/K) sum w_k - (1/K) sum log w_k of K rows is at least 0, and its mean at most KL(q | pi).
    """
    if not np.isfinite(log_weight).all():
        return Interval()
    sizes = [size for size in (4, 16, 64, 256) if 8 * size <= len(log_weight)] or [len(log_weight)]
    found = []
    for size in sizes:
        blocks = log_weight[: len(log_weight) // size * size].reshape(-1, size)
        gap = np.maximum(np.logaddexp.reduce(blocks, axis=1) - np.log(size) - blocks.mean(axis=1), 0.0)
        found.append((lower_limit(gap, risk / len(sizes)), gap.mean()))
    low, estimate = max(found)
    return Interval(estimate, low, None)


def combine(intervals: list[Interval]) -> Interval:
    """The mean of independent estimates: their distances to their limits add up as errors do, squared."""
    numbers = [(one.estimate, one.low, one.high) for one in intervals]
    estimate, low, high = np.array([[np.nan if x is None else x for x in row] for row in numbers]).T

    def added(distance: Float[np.ndarray, " Q"]) -> float:
        return np.sqrt(np.square(np.maximum(distance, 0.0)).sum()) / len(distance)

    mean = float(estimate.mean())
    return Interval(mean, mean - added(estimate - low), mean + added(high - estimate))


def _near(log_ratio: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
    ratio = np.minimum(log_ratio, 0.0)
    return np.expm1(ratio) - ratio


def _far(log_ratio: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
    ratio = np.clip(log_ratio, 0.0, 700.0)  # beyond, the value is 1
    return -np.expm1(-ratio) - ratio * np.exp(-ratio)


def _acceptance_ratio(ours: Float[np.ndarray, " N"], theirs: Float[np.ndarray, " M"]) -> Float[np.ndarray, " n"]:
    """1 + e^a E_q s(l - a) - E_pi s(a - l), in as many groups of rows as there are of the rarer kind.

    The estimate with the least variance has a = log N / M (Bennett 1976); where `theirs` are the more, a = 0 makes the
    better bet.
    """
    shift = max(np.log(len(ours) / len(theirs)), 0.0)
    groups = min(len(ours), len(theirs))
    return 1 + np.exp(shift) * _group(expit(ours - shift), groups) - _group(expit(shift - theirs), groups)


def _group(x: Float[np.ndarray, " n"], groups: int) -> Float[np.ndarray, " g"]:
    """Means over nearly equal parts."""
    begins = np.arange(groups) * len(x) // groups
    return np.add.reduceat(x, begins) / np.diff([*begins, len(x)])


def _together(bets: list[Float[np.ndarray, " n"]], risk: float) -> float:
    """Log of the capital of bets that share it, over 1 / risk."""
    return float(np.logaddexp.reduce([log_capital(x, risk / len(bets)) for x in bets]) - np.log(len(bets) / risk))


def _exp(x: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
    """e^x, cut off where its square would overflow: a smaller x is no better a bet."""
    return np.exp(np.minimum(x, 300.0))


def _range(*log_weights: Float[np.ndarray, " _"]) -> tuple[float, float]:
    finite = np.concatenate(log_weights)
    finite = finite[np.isfinite(finite)]
    return finite.min() - REACH, finite.max() + REACH
