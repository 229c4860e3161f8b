"""How far any sampler q is from the posterior pi = R / Z, by its rows and, where there are some, exact samples.

No measure is enough alone: rows of q do not see what q has lost, and exact samples do not see what q writes instead. A
certificate therefore holds them all. It is two-sided where every query has an exact sample (rejection sampling's, or of
a world that knows its posterior), as KL(q | pi) and KL(pi | q) then lie between limits (`limits`); without, KL(q | pi)
has a lower limit alone, and KL(pi | q) none.

An interval of 95 % covers what it is of in 95 % of all repetitions or more, each by itself, for the queries that were
asked; averages also have one for queries that might have been asked instead. The limits of log Z assume nothing. The
upper limits of the divergences assume that no completion is more than e^H times likelier under q than under pi (or
under pi than under q), H being `Settings.log_ratio`, or twice what was seen: an unseen mode of mass m and log-ratio h
is covered while m h is below about H log(1 / risk) / rows.

`certificate` takes arrays (float64, nats); `certify.certify` measures a policy.
"""

import dataclasses
import math
from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from gfn_jax.evaluation import limits, weights
from gfn_jax.evaluation.limits import Counts, Interval

# Above this shape of their tail, means of importance weights are not practical to estimate (Vehtari et al. 1507.02646).
HEAVY_TAIL = 0.7
# Below so many exact samples the upper limits are wide, whatever q is.
FEW_EXACT = 32
# Of the risk of a divergence's interval, the share of log Z's, which enters to second order.
LOG_Z_SHARE = 0.2
ROUNDING = 1e-3  # nats by which a completion's R / q may differ from one program to another
PASSES = (1, 4, 16, 64, 256)


@dataclasses.dataclass(frozen=True)
class Settings:
    """How a certificate is made.

    Attributes:
        risk: of every interval; 0.05 makes them 95 %.
        log_ratio: H, the largest |log q - log pi| in nats that upper limits of divergences allow for where nothing was
            seen.
        resamples: of a bootstrap.
        seed: of resamples and of the order of the bets.

    Raises:
        ValueError: a risk outside (0, 1), or a number that is not positive.
    """

    risk: float = 0.05
    log_ratio: float = 20.0
    resamples: int = 500
    seed: int = 0

    def __post_init__(self):
        if not 0 < self.risk < 1 or not self.log_ratio > 0 or self.resamples < 1:
            raise ValueError(
                f"a risk in (0, 1), a positive log_ratio and a resample at least, not {self.risk}, {self.log_ratio} "
                f"and {self.resamples}"
            )


@dataclasses.dataclass(frozen=True)
class Evidence:
    """What is known of Q queries.

    Attributes:
        log_q: log q(Z stop) of N independent rows of q a query, in nats.
        log_reward: their log R(Z), -inf where R is 0.
        exact_log_q: the same of samples of the posterior, M of each query's own, which may be none; () for none at all.
        exact_log_reward: their log R(Z).
        counts: what rejection sampling counted, a query.
        log_z: logarithms of K independent unbiased estimates of Z by another sampler.
        modes: the mode of each row; None for a row that belongs to none.
        known_modes: how many modes there are, a query.
        right: whether each row is right.

    Raises:
        ValueError: shapes that do not fit, a number that is NaN, or an exact sample that q or R cannot give.
    """

    log_q: Float[np.ndarray, "Q N"]
    log_reward: Float[np.ndarray, "Q N"]
    exact_log_q: Sequence[Float[np.ndarray, " _"]] = ()
    exact_log_reward: Sequence[Float[np.ndarray, " _"]] = ()
    counts: Sequence[Counts] | None = None
    log_z: Float[np.ndarray, "Q K"] | None = None
    modes: Sequence[Sequence[Hashable | None]] | None = None
    known_modes: Sequence[int] | None = None
    right: Bool[np.ndarray, "Q N"] | None = None

    def __post_init__(self):
        if np.ndim(self.log_q) != 2 or np.shape(self.log_q) != np.shape(self.log_reward) or not np.size(self.log_q):
            raise ValueError(
                f"log q and log R of a certificate must be [queries, rows], not {np.shape(self.log_q)} and "
                f"{np.shape(self.log_reward)}"
            )
        queries = len(self.log_q)
        for name in ("exact_log_q", "exact_log_reward", "counts", "log_z", "modes", "known_modes", "right"):
            value = getattr(self, name)
            if value is not None and len(value) not in ((0, queries) if name.startswith("exact") else (queries,)):
                raise ValueError(f"{name} is of {len(value)} queries, not of {queries}")
        if [len(x) for x in self.exact_log_q] != [len(x) for x in self.exact_log_reward]:
            raise ValueError("exact samples have as many log q as log R")
        if not np.isfinite(self.log_q).all() or not (np.asarray(self.log_reward) < np.inf).all():
            raise ValueError("log q of a row of q must be finite, and its log R no NaN and below infinity")
        if not all(np.isfinite(x).all() for x in (*self.exact_log_q, *self.exact_log_reward)):
            raise ValueError("log q and log R of an exact sample must be finite")

    @property
    def log_weight(self) -> Float[np.ndarray, "Q N"]:
        """Log R - log q of rows of q."""
        return np.asarray(self.log_reward, np.float64) - np.asarray(self.log_q, np.float64)

    @property
    def exact_log_weight(self) -> list[Float[np.ndarray, " _"]]:
        """Log R - log q of the exact samples, a query."""
        pairs = zip(self.exact_log_q, self.exact_log_reward, strict=True)
        found = [np.asarray(r, np.float64) - np.asarray(q, np.float64) for q, r in pairs]
        return found or [np.zeros(0)] * len(self.log_q)


@dataclasses.dataclass(frozen=True)
class Measure:
    """One measure of every query, and its average.

    Attributes:
        queries: a query's estimate and limits.
        mean: over the queries, with limits for these.
        others: over the queries, with limits for queries of which these are a sample; None of a single query.
    """

    queries: tuple[Interval, ...]
    mean: Interval
    others: Interval | None


@dataclasses.dataclass(frozen=True)
class Certificate:
    """Many measures of one sampler, together.

    Attributes:
        measures: by name, in a fixed order; see `words`.
        verdict: what follows, in a sentence.
        warnings: what is not to be trusted, and why.
        rows: N.
        exact: M of each query.
        log_ratio: H of each query's KL(q | pi) and KL(pi | q), in nats.
        risk: of every interval.
    """

    measures: Mapping[str, Measure]
    verdict: str
    warnings: tuple[str, ...]
    rows: int
    exact: tuple[int, ...]
    log_ratio: tuple[tuple[float, float], ...]
    risk: float

    def as_dict(self) -> dict[str, Any]:
        """For results.json: averages, and [estimate, low, high] of every query; None where there is none."""
        return {
            "verdict": self.verdict,
            "warnings": list(self.warnings),
            "risk": self.risk,
            "rows": self.rows,
            "exact_samples": list(self.exact),
            "log_ratio": [[_rounded(one) for one in pair] for pair in self.log_ratio],
            "means": {
                name: {
                    "estimate": _rounded(measure.mean.estimate),
                    "low": _rounded(measure.mean.low),
                    "high": _rounded(measure.mean.high),
                    "others_low": _rounded(measure.others.low if measure.others else None),
                    "others_high": _rounded(measure.others.high if measure.others else None),
                }
                for name, measure in self.measures.items()
            },
            "queries": {
                name: [[_rounded(one.estimate), _rounded(one.low), _rounded(one.high)] for one in measure.queries]
                for name, measure in self.measures.items()
            },
        }

    def page(self) -> str:
        """What a person reads."""
        percent = f"{100 * (1 - self.risk):g} %"
        exact = f"{min(self.exact)} to {max(self.exact)}" if len(set(self.exact)) > 1 else f"{self.exact[0]}"
        lines = [
            f"{self.verdict[0].upper()}{self.verdict[1:]} ({percent}, the mean of {len(self.exact)} queries).",
            "",
            f"{self.rows} rows and {exact} exact samples a query. Intervals hold with {percent}, each by itself: for",
            "these queries, and for queries of which these are a sample. Divergences allow for log-ratios of "
            f"{max(map(max, self.log_ratio)):.0f} nats",
            "where nothing was seen. Nats, unless it says otherwise.",
            "",
        ]
        header = ("", "mean", "these queries", "such queries", "")
        rows = [
            (name, _shown(m.mean.estimate), _between(m.mean), _between(m.others), words(name))
            for name, m in self.measures.items()
        ]
        widths = [max(len(row[i]) for row in (header, *rows)) for i in range(4)]
        cells = [
            "  ".join([row[0].ljust(widths[0]), *(text.rjust(w) for text, w in zip(row[1:4], widths[1:])), row[4]])
            for row in (header, *rows)
        ]
        lines += [cells[0].rstrip(), "-" * (sum(widths) + 6), *cells[1:]]
        if self.warnings:
            lines += ["", "Warnings:", *(f"  {warning}" for warning in self.warnings)]
        return "\n".join(lines)


_WORDS = {
    "log_z": "log Z, R's normaliser, by all that is known of it",
    "kl_q_pi": "KL(q | pi): what q writes and the posterior would not",
    "kl_pi_q": "KL(pi | q): what the posterior would write and q does not",
    "smc": "mean log Z-hat of the other sampler: at most log Z",
    "acceptance": "share of proposals that rejection accepted",
    "reverse_ess": "effective share of q's rows, weighted by R / q; blind to what q has lost",
    "forward_ess": "effective share by exact samples: small where q has lost something",
    "variance_on": "Var(log R - log q) over q's rows: 0 where q is the posterior",
    "variance_off": "the same over exact samples",
    "rank_on": "Spearman's correlation of log q and log R over q's rows",
    "rank_off": "the same over exact samples",
    "above_all_rows": "share of exact samples with a larger R / q than any row of q",
    "unseen": "at most this share of the posterior was in no exact sample",
    "pareto_on": f"k-hat, the tail of R / q over q's rows; heavy above {HEAVY_TAIL}",
    "pareto_off": "the same of q / R over exact samples",
    "modes_found": "modes that q's rows found",
    "modes_share": "share of all modes that q's rows found",
    "mode_entropy": "entropy over the modes (Miller-Madow; too low while modes are unseen)",
}


def words(name: str) -> str:
    """A measure in plain words."""
    kind, _, number = name.rpartition("_")
    match kind:
        case "lower":
            return f"L_{number}, at most log Z" + (": the ELBO" if number == "1" else "")
        case "upper":
            return f"U_{number}, at least log Z" + (": the EUBO" if number == "1" else "")
        case "pass":
            return f"chance that one of {number} rows is right"
    return _WORDS[name]


def certificate(evidence: Evidence, settings: Settings | None = None) -> Certificate:
    """Measures a sampler by what is known of it."""
    settings = settings or Settings()
    rng = np.random.default_rng(settings.seed)
    exact = [rng.permutation(x) for x in evidence.exact_log_weight]
    log_weight = [rng.permutation(x) for x in evidence.log_weight]
    found: list[dict[str, Interval]] = []
    warnings: Counter[str] = Counter()  # how many queries each is of
    bounds = []
    for query in range(len(exact)):
        one, bound = _distances(log_weight[query], exact[query], evidence, query, settings, warnings)
        one |= _weights(log_weight[query], exact[query], settings, rng, warnings)
        one |= _rows(evidence, query, settings)
        found.append(one)
        bounds.append(bound)
    names = dict.fromkeys(name for one in found for name in one)
    measures = {name: _measure([one.get(name, Interval()) for one in found], settings, rng) for name in names}
    for name in ("kl_q_pi", "kl_pi_q"):  # no divergence is negative
        measures[name] = dataclasses.replace(measures[name], mean=_positive(measures[name].mean))
    return Certificate(
        measures=measures,
        verdict=_verdict(measures, evidence),
        warnings=tuple(f"{text} ({count} of {len(exact)} queries)" for text, count in warnings.items()),
        rows=evidence.log_weight.shape[1],
        exact=tuple(len(x) for x in exact),
        log_ratio=tuple(bounds),
        risk=settings.risk,
    )


def _distances(
    log_weight: np.ndarray,
    exact: np.ndarray,
    evidence: Evidence,
    query: int,
    settings: Settings,
    warnings: Counter[str],
) -> tuple[dict[str, Interval], tuple[float, float]]:
    """Log Z and both divergences of a query, with the limits that hold at any number of rows; and H of each."""
    risk = settings.risk
    log_z = None if evidence.log_z is None else np.asarray(evidence.log_z[query], np.float64)
    counts = None if evidence.counts is None else evidence.counts[query]
    found = {"log_z": Interval(), "kl_q_pi": Interval(), "kl_pi_q": Interval()}
    allowed = settings.log_ratio, settings.log_ratio
    if not (log_weight > -np.inf).any():
        warnings["R is 0 in every row of q"] += 1
        return found, allowed
    low, high = limits.log_z_limits(log_weight, exact, risk, log_z, counts)
    if low > high:
        warnings[
            "what is known of log Z is contradictory: are the exact samples exact, and log q that of the rows?"
        ] += 1
        low, high = high, low
    estimate = limits.estimate_log_z(log_weight, exact)
    found["log_z"] = Interval(min(max(estimate, low), high), low, high)
    if log_z is not None:
        found["smc"] = weights.mean_of(log_z, risk)
    if counts is not None:
        share = limits.clopper_pearson(counts.accepted, counts.proposals, risk)
        found["acceptance"] = Interval(counts.accepted / counts.proposals, *share)
    if not np.isfinite(log_weight).all():
        warnings["q writes completions of R = 0: KL(q | pi) is infinite"] += 1
    if not len(exact):
        found["kl_q_pi"] = limits.least_divergence(log_weight, risk)
        return found, allowed
    within = limits.log_z_limits(log_weight, exact, risk * LOG_Z_SHARE, log_z, counts)
    within = (min(within), max(within))
    finite = log_weight[log_weight > -np.inf]
    seen = (within[1] - finite.min(), exact.max() - within[0])
    if not np.isfinite(within).all():
        return found, allowed
    if max(seen) > settings.log_ratio:
        warnings[f"log-ratios above {settings.log_ratio:g} nats were seen; H is twice the largest"] += 1
    allowed = max(settings.log_ratio, 2 * float(seen[0])), max(settings.log_ratio, 2 * float(seen[1]))
    rest = risk * (1 - LOG_Z_SHARE)
    if len(finite) == len(log_weight):
        found["kl_q_pi"] = Interval(
            limits.estimate_divergence(log_weight, exact, estimate),
            *limits.divergence_limits(log_weight, exact, within, allowed[0], rest),
        )
    found["kl_pi_q"] = Interval(
        limits.estimate_divergence(-exact, -log_weight, -estimate),
        *limits.divergence_limits(-exact, -log_weight, (-within[1], -within[0]), allowed[1], rest),
    )
    return found, allowed


def _weights(
    log_weight: np.ndarray, exact: np.ndarray, settings: Settings, rng: np.random.Generator, warnings: Counter[str]
) -> dict[str, Interval]:
    """What the weights of a query say, but for its log q and log R by themselves."""
    risk, again = settings.risk, (settings.resamples, rng, settings.risk)
    rows = len(log_weight)
    found = {f"lower_{size}": weights.lower_bound(log_weight, size, risk) for size in weights.sizes(rows)}
    found["reverse_ess"] = weights.bootstrap(weights.reverse_ess, log_weight, *again)
    found["variance_on"] = weights.bootstrap(weights.variance, log_weight, *again)
    found["pareto_on"] = Interval(weights.pareto_shape(log_weight))
    if (found["pareto_on"].estimate or 0.0) > HEAVY_TAIL:
        warnings[
            f"the tail of R / q is heavy (k-hat above {HEAVY_TAIL}): intervals of L_K and reverse_ess may be wrong; "
            "those of log Z and the divergences hold"
        ] += 1
    if not len(exact):
        return found
    found |= {
        f"upper_{size}": weights.upper_bound(log_weight, exact, size, risk)
        for size in weights.sizes(rows + 1)
        if (rows // (size - 1) if size > 1 else len(exact)) >= 2
    }
    found["forward_ess"] = weights.bootstrap(weights.forward_ess, exact, *again)
    found["variance_off"] = weights.bootstrap(weights.variance, exact, *again)
    found["pareto_off"] = Interval(weights.pareto_shape(-exact))
    above = int((exact > log_weight.max() + ROUNDING).sum())
    found["above_all_rows"] = Interval(above / len(exact), *limits.clopper_pearson(above, len(exact), risk))
    found["unseen"] = Interval(1 - risk ** (1 / len(exact)))
    if (found["above_all_rows"].low or 0.0) > 0.01:
        warnings["q hardly ever writes what the posterior does: R / q of exact samples lies above all of its rows"] += 1
    if len(exact) < FEW_EXACT:
        warnings[f"fewer than {FEW_EXACT} exact samples: upper limits are wide, whatever q is"] += 1
    return found


def _rows(evidence: Evidence, query: int, settings: Settings) -> dict[str, Interval]:
    """Of a query's rows: correlations of log q and log R, modes, grades."""
    found = {"rank_on": weights.rank_correlation(evidence.log_q[query], evidence.log_reward[query], settings.risk)}
    if evidence.exact_log_q and len(evidence.exact_log_q[query]):
        exact = evidence.exact_log_q[query], evidence.exact_log_reward[query]
        found["rank_off"] = weights.rank_correlation(*exact, settings.risk)
    if evidence.modes is not None:
        labels = [label for label in evidence.modes[query] if label is not None]
        found["modes_found"] = Interval(len(set(labels)))
        if evidence.known_modes is not None:
            found["modes_share"] = Interval(len(set(labels)) / evidence.known_modes[query])
        found["mode_entropy"] = weights.mode_entropy(labels, settings.risk)
    if evidence.right is not None:
        right = np.asarray(evidence.right[query])
        for k in PASSES:
            if k <= len(right):
                found[f"pass_{k}"] = weights.pass_at_k(len(right), int(right.sum()), k, settings.risk)
    return found


def _measure(queries: list[Interval], settings: Settings, rng: np.random.Generator) -> Measure:
    """The average: of these queries by their own limits, of others by resampling queries (Efron 1979)."""
    mean, others = limits.combine(queries), None
    if len(queries) > 1 and mean.estimate is not None:
        estimates = np.array([one.estimate for one in queries])
        drawn = estimates[rng.integers(0, len(queries), (settings.resamples, len(queries)))].mean(axis=1)
        low, high = np.quantile(drawn, [settings.risk / 2, 1 - settings.risk / 2]).tolist()
        if mean.low is not None:  # no narrower than for these queries, nor more than one-sided
            low, high = min(low, mean.low), None if mean.high is None else max(high, mean.high)
        others = Interval(mean.estimate, low, high)
    return Measure(tuple(queries), mean, others)


def _verdict(measures: Mapping[str, Measure], evidence: Evidence) -> str:
    """What follows, by rule."""
    here, lost = measures["kl_q_pi"], measures["kl_pi_q"]
    queries = len(lost.queries)
    if here.mean.two_sided and lost.mean.two_sided:
        return (
            f"two-sided: KL(q | pi) between {_shown(here.mean.low)} and {_shown(here.mean.high)} nats, "
            f"KL(pi | q) between {_shown(lost.mean.low)} and {_shown(lost.mean.high)} nats"
        )
    least = (
        f"KL(q | pi) at least {_shown(here.mean.low)} nats" if here.mean.low is not None else "no limit of KL(q | pi)"
    )
    if not (evidence.log_weight > -np.inf).all():
        return f"one-sided: KL(q | pi) is infinite, as q writes completions of R = 0{_between_words(lost.mean)}"
    known = sum(one.two_sided for one in lost.queries)
    if known:
        return f"one-sided: {least}; exact samples for {known} of {queries} queries alone"
    if evidence.counts is None:
        return f"one-sided: {least}; no exact sample is at hand"
    proposals, accepted = (sum(getattr(one, name) for one in evidence.counts) for name in ("proposals", "accepted"))
    return f"one-sided: {least}; no exact sample could be had ({accepted} of {proposals} proposals accepted)"


def _between_words(interval: Interval) -> str:
    if not interval.two_sided:
        return ""
    return f"; KL(pi | q) between {_shown(interval.low)} and {_shown(interval.high)} nats"


def _positive(interval: Interval) -> Interval:
    return dataclasses.replace(interval, low=None if interval.low is None else max(interval.low, 0.0))


def _rounded(value: float | None) -> float | None:
    return round(value, 6) if value is not None and math.isfinite(value) else None


def _shown(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.4f}" if abs(value) < 1 else f"{value:.3f}"


def _between(interval: Interval | None) -> str:
    if interval is None or (interval.low is None and interval.high is None):
        return "-"
    return f"{_shown(interval.low)} .. {_shown(interval.high)}"
