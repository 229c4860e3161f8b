"""The certificate against worlds that can be summed: its intervals contain what is true, and claim no more than that.

A world is two vectors, log q and log R of every completion; exact samples are drawn from the normalised R. In the
tests of coverage a certificate's queries are the repetitions: 100 draws of one world.
"""

import itertools
import json
import math

import numpy as np
import pytest
from scipy import stats
from scipy.special import logsumexp

from gfn_jax.evaluation import limits, weights
from gfn_jax.evaluation.certificate import Certificate, Evidence, Settings, certificate
from gfn_jax.evaluation.limits import Counts, Interval

SIZE = 120
ENOUGH = 93  # of 100
EXACTLY = ("log_z", "kl_q_pi", "kl_pi_q")


def normal(log_p):
    return log_p - logsumexp(log_p)


def lost_mode(rng, mass, nats, noise=0.0):
    """q is the posterior, but for a completion of a given mass, to which it gives e^-nats of that."""
    log_pi = normal(rng.normal(size=SIZE)) + math.log1p(-mass)
    log_pi[0] = math.log(mass)
    log_q = log_pi + rng.normal(0, noise, SIZE)
    log_q[0] = log_pi[0] - nats
    return normal(log_q), normal(log_pi) + 3.7


def spends_on_the_worst(rng, mass):
    """q is the posterior, but for a completion of no worth on which it spends a given mass."""
    log_r = normal(rng.normal(size=SIZE))
    log_q = log_r.copy()
    log_r[0], log_q[0] = -15.0, math.log(mass)
    return normal(log_q), log_r - 40.0


def around(rng, scale, noise, power=1.0):
    """q is R^power, with noise on its logarithm."""
    log_r = rng.normal(0, scale, SIZE)
    return normal(power * log_r + noise), log_r


WORLDS = {
    "equal": lambda rng: around(rng, 1, 0),
    "near": lambda rng: around(rng, 1, rng.normal(0, 0.2, SIZE)),
    "apart": lambda rng: around(rng, 1, rng.normal(0, 1, SIZE)),
    "far": lambda rng: around(rng, 1, rng.normal(0, 2.5, SIZE)),
    "heavy": lambda rng: around(rng, 1, 0.5 * rng.standard_cauchy(SIZE).clip(-25, 25)),
    "flatter": lambda rng: around(rng, 6, 0, 0.7),
    "peaked": lambda rng: around(rng, 2, 0, 2.5),
    "uniform": lambda rng: around(rng, 4, 0, 0.0),
    "lost 1e-3": lambda rng: lost_mode(rng, 1e-3, 14),
    "lost 1e-2": lambda rng: lost_mode(rng, 1e-2, 20),
    "lost 1e-2, noise": lambda rng: lost_mode(rng, 1e-2, 5, 0.3),
    "worst": lambda rng: spends_on_the_worst(rng, 1e-3),
}


def draw(rng, log_q, log_r, rows, exact):
    """log q and log R of rows of q, and of exact samples."""
    log_pi = normal(log_r)
    mine, theirs = rng.choice(SIZE, rows, p=np.exp(log_q)), rng.choice(SIZE, exact, p=np.exp(log_pi))
    return log_q[mine], log_r[mine], log_q[theirs], log_r[theirs]


def truth(log_q, log_r):
    log_pi = normal(log_r)
    return {
        "log_z": float(logsumexp(log_r)),
        "kl_q_pi": float((np.exp(log_q) * (log_q - log_pi)).sum()),
        "kl_pi_q": float((np.exp(log_pi) * (log_pi - log_q)).sum()),
    }


def repeated(world, rows, exact, repetitions=100, counts=None, seed=0) -> tuple[Certificate, dict[str, float]]:
    """A certificate whose queries are repetitions of one world's draws."""
    rng = np.random.default_rng([seed, list(WORLDS).index(world)])
    log_q, log_r = WORLDS[world](rng)
    drawn = [draw(rng, log_q, log_r, rows, exact) for _ in range(repetitions)]
    of_q, of_r, exact_q, exact_r = ([d[i] for d in drawn] for i in range(4))
    evidence = Evidence(np.array(of_q), np.array(of_r), exact_q, exact_r, counts)
    return certificate(evidence, Settings(resamples=2)), truth(log_q, log_r)


def covered(found: Certificate, true: dict[str, float]) -> dict[str, int]:
    def holds(interval, value):
        return interval.two_sided and interval.low - 1e-9 <= value <= interval.high + 1e-9

    return {name: int(sum(holds(one, true[name]) for one in found.measures[name].queries)) for name in EXACTLY}


@pytest.mark.slow
@pytest.mark.parametrize("world", ["far", "lost 1e-2, noise"])
def test_intervals_contain_what_is_true(world):
    found, true = repeated(world, rows=128, exact=48)
    assert min(covered(found, true).values()) >= ENOUGH
    assert found.verdict.startswith("two-sided")


@pytest.mark.slow
@pytest.mark.parametrize(("rows", "exact"), [(256, 256), (1024, 48), (48, 256), (16, 4)])
@pytest.mark.parametrize("world", WORLDS)
def test_intervals_contain_what_is_true_in_every_world(world, rows, exact):
    found, true = repeated(world, rows, exact, seed=1)
    widths = {
        name: round(float(np.mean([one.high - one.low for one in found.measures[name].queries])), 4) for name in true
    }
    counted = covered(found, true)
    print(f"\n{world}, {rows} rows, {exact} exact: covered {counted}, mean widths {widths}, true {true}")
    assert min(counted.values()) >= ENOUGH


@pytest.mark.slow
def test_rows_without_any_reward():
    """q spends a tenth where R is 0: KL(q | pi) is infinite, the rest is as before."""
    rng = np.random.default_rng(7)
    log_q, log_r = around(rng, 1, rng.normal(0, 0.5, SIZE))
    log_r[:10] = -np.inf
    pi, log_z = np.exp(normal(log_r)), logsumexp(log_r)
    divergence = (pi[10:] * (log_r - log_z - log_q)[10:]).sum()
    drawn = [draw(rng, log_q, log_r, 128, 48) for _ in range(100)]
    of_q, of_r, exact_q, exact_r = ([d[i] for d in drawn] for i in range(4))
    found = certificate(Evidence(np.array(of_q), np.array(of_r), exact_q, exact_r), Settings(resamples=2))
    assert all(one == Interval() for one in found.measures["kl_q_pi"].queries)
    assert sum(one.low <= log_z <= one.high for one in found.measures["log_z"].queries) >= ENOUGH
    assert sum(one.low <= divergence <= one.high for one in found.measures["kl_pi_q"].queries) >= ENOUGH


@pytest.mark.slow
@pytest.mark.parametrize("world", ["near", "far", "lost 1e-2, noise", "peaked"])
def test_averages_contain_the_average(world):
    """Means over 8 queries: the queries' errors add up as independent ones do."""
    hits = dict.fromkeys(EXACTLY, 0)
    for repetition in range(100):
        found, true = repeated(world, rows=256, exact=64, repetitions=8, seed=2 + repetition)
        for name in EXACTLY:
            hits[name] += found.measures[name].mean.low <= true[name] <= found.measures[name].mean.high
    assert min(hits.values()) >= ENOUGH, hits


@pytest.mark.slow
def test_counts_of_rejection_narrow_log_z():
    """q is poor, and a tenth of the proposals are accepted: log Z is known from the counts."""
    rng = np.random.default_rng(5)
    log_q, log_r = WORLDS["far"](rng)
    log_z, hits, widths = logsumexp(log_r), 0, []
    for _ in range(100):
        accepted = int(rng.binomial(2000, 0.1))
        of_q, of_r, exact_q, exact_r = draw(rng, log_q, log_r, 64, accepted)
        counts = Counts(2000, accepted, log_z - math.log(0.1))
        low, high = limits.log_z_limits(of_r - of_q, exact_r - exact_q, 0.05, counts=counts)
        hits += low <= log_z <= high
        widths.append(high - low)
    assert hits >= ENOUGH
    assert np.mean(widths) < 0.35


def test_a_lost_mode_is_seen_by_exact_samples_alone():
    """q never wrote it, so every measure of its own rows is perfect."""
    rng = np.random.default_rng(0)
    log_q, log_r = lost_mode(rng, 0.2, 30)
    of_q, of_r, exact_q, exact_r = draw(rng, log_q, log_r, 512, 64)
    blind = certificate(Evidence(of_q[None], of_r[None]), Settings(resamples=20))
    assert blind.measures["reverse_ess"].mean.estimate == pytest.approx(1.0)
    assert blind.measures["log_z"].mean.high is None
    assert blind.measures["kl_q_pi"].mean.high is None
    assert blind.measures["kl_pi_q"].mean == Interval()
    assert blind.verdict == "one-sided: KL(q | pi) at least 0.0000 nats; no exact sample is at hand"
    seeing = certificate(Evidence(of_q[None], of_r[None], [exact_q], [exact_r]), Settings(resamples=20))
    true = truth(log_q, log_r)
    assert seeing.measures["kl_pi_q"].mean.low > 1.0
    assert seeing.measures["kl_pi_q"].mean.high > true["kl_pi_q"] > seeing.measures["kl_pi_q"].mean.low
    assert seeing.measures["forward_ess"].mean.estimate < 1e-6
    assert any("R / q of exact samples lies above all" in line for line in seeing.warnings)


def test_without_exact_samples_nothing_is_claimed_that_rows_of_q_cannot_show():
    """A mode of a millionth, 0 of 4,096 proposals accepted: the limits hold, and are one-sided for both divergences."""
    rng = np.random.default_rng(1)
    log_q, log_r = lost_mode(rng, 1e-6, 30, noise=0.5)
    drawn = [draw(rng, log_q, log_r, 256, 0)[:2] for _ in range(30)]
    true = truth(log_q, log_r)
    bound = true["log_z"] + math.log(4096)
    evidence = Evidence(*map(np.array, zip(*drawn)), counts=[Counts(4096, 0, bound)] * 30)
    found = certificate(evidence, Settings(resamples=2))
    assert not any(one.two_sided for name in ("kl_q_pi", "kl_pi_q") for one in found.measures[name].queries)
    assert sum(one.low <= true["kl_q_pi"] for one in found.measures["kl_q_pi"].queries) >= 28
    assert sum(one.low <= true["log_z"] <= one.high for one in found.measures["log_z"].queries) >= 28
    assert found.measures["kl_q_pi"].mean.low > 0.02  # of 0.117
    assert found.verdict.endswith("no exact sample could be had (0 of 122880 proposals accepted)")
    assert found.measures["kl_q_pi"].others.high is None


def test_exact_samples_for_some_queries_alone():
    rng = np.random.default_rng(2)
    drawn = [draw(rng, *WORLDS["near"](rng), 64, exact) for exact in (40, 0)]
    of_q, of_r, exact_q, exact_r = ([d[i] for d in drawn] for i in range(4))
    found = certificate(Evidence(np.array(of_q), np.array(of_r), exact_q, exact_r), Settings(resamples=2))
    assert found.verdict.endswith("exact samples for 1 of 2 queries alone")
    assert [one.two_sided for one in found.measures["kl_pi_q"].queries] == [True, False]
    assert found.measures["kl_pi_q"].mean == Interval()
    assert found.measures["kl_q_pi"].mean.high is None


def test_a_fair_bet_earns_nothing():
    """The capital's mean over all sequences of a fair coin's is its start: what limits rest on, without a draw."""
    share, length = 0.3, 9
    mean = 0.0
    for heads in itertools.product((0, 1), repeat=length):
        x = np.array(heads) / share
        mean += np.prod(np.where(heads, share, 1 - share)) * math.exp(limits.log_capital(x, 0.05))
    assert mean == pytest.approx(1.0, abs=1e-9)


def test_limits_of_a_mean():
    rng = np.random.default_rng(0)
    x = rng.exponential(size=2000)
    low, high = limits.lower_limit(x, 0.025), limits.upper_limit(np.minimum(x, 9.0), 9.0, 0.025)
    error = 1.96 * x.std() / math.sqrt(len(x))
    assert x.mean() - 2 * error < low < x.mean() - error
    assert x.mean() + error < high < x.mean() + 2 * error
    assert limits.lower_limit(np.zeros(10), 0.05) == 0.0
    # Where nothing was seen: the exact limit of a share is 1 - risk^(1/n), the bets' no more than twice that.
    exact = 1 - 0.05 ** (1 / 500)
    assert exact < limits.upper_limit(np.zeros(500), 1.0, 0.05) < 2 * exact


def test_the_divergences_are_two_means():
    """Summed over a world instead of sampled, what is averaged gives both divergences."""
    log_q, log_r = WORLDS["far"](np.random.default_rng(0))
    true, log_pi = truth(log_q, log_r), normal(log_r)
    ratio = log_pi - log_q
    q, pi = np.exp(log_q), np.exp(log_pi)
    assert q @ limits._near(ratio) + pi @ limits._far(ratio) == pytest.approx(true["kl_q_pi"])
    assert pi @ limits._near(-ratio) + q @ limits._far(-ratio) == pytest.approx(true["kl_pi_q"])


def test_clopper_pearson_is_scipys():
    for accepted, proposals in ((0, 50), (3, 50), (50, 50)):
        ours = limits.clopper_pearson(accepted, proposals, 0.05)
        assert ours == pytest.approx(tuple(stats.binomtest(accepted, proposals).proportion_ci(method="exact")))


def test_unbiased_estimates_of_another_sampler_lift_the_lower_limit():
    """q is hopeless; the other sampler's estimates of Z have a deviation of 10 %."""
    rng = np.random.default_rng(0)
    log_q, log_r = WORLDS["uniform"](rng)
    of_q, of_r, *_ = draw(rng, log_q, log_r, 16, 0)
    log_z = logsumexp(log_r)
    estimates = log_z + np.log(rng.gamma(100, 0.01, 64))
    alone, _ = limits.log_z_limits(of_r - of_q, np.zeros(0), 0.05)
    low, high = limits.log_z_limits(of_r - of_q, np.zeros(0), 0.05, estimates)
    assert alone < log_z - 0.5 < low < log_z
    assert high == np.inf


def test_errors_of_queries_add_up_squared():
    assert limits.combine([Interval(1.0, 0.7, 1.1), Interval(3.0, 2.6, None)]) == Interval(2.0, 1.75, None)
    assert limits.combine([Interval(1.0), Interval()]) == Interval()


def test_bounds_of_log_z_by_importance_weights():
    """E over all pairs and quadruples of a small world, against blocks of many rows."""
    rng = np.random.default_rng(0)
    log_r = rng.normal(0, 2, 4)
    q, pi = np.full(4, 0.25), np.exp(normal(log_r))
    log_weight = log_r - np.log(q)
    rows, exact = log_weight[rng.choice(4, 40_000, p=q)], log_weight[rng.choice(4, 40_000, p=pi)]
    for size in (1, 4):
        true = {"lower": 0.0, "upper": 0.0}
        for block in itertools.product(range(4), repeat=size):
            value = logsumexp(log_weight[list(block)]) - math.log(size)
            true["lower"] += np.prod(q[list(block)]) * value
            true["upper"] += pi[block[0]] * np.prod(q[list(block[1:])]) * value
        low, high = weights.lower_bound(rows, size, 0.001), weights.upper_bound(rows, exact, size, 0.001)
        assert low.low < true["lower"] < low.high < logsumexp(log_r) < high.low < true["upper"] < high.high
    assert weights.sizes(5000) == [1, 4, 16, 64, 256, 1024, 4096]
    assert weights.lower_bound(np.full(6, -np.inf), 2, 0.05) == Interval()


def test_means_have_students_interval():
    x = np.random.default_rng(0).normal(size=12)
    found, reference = weights.mean_of(x, 0.05), stats.ttest_1samp(x, 0).confidence_interval()
    assert (found.low, found.high) == pytest.approx((reference.low, reference.high))


def test_effective_sizes_by_hand():
    log_weight = np.log([1.0, 3.0])
    assert weights.reverse_ess(log_weight) == pytest.approx(16 / (2 * 10))
    assert weights.forward_ess(log_weight) == pytest.approx(4 / (4 * (1 + 1 / 3)))
    interval = weights.bootstrap(
        weights.variance, np.random.default_rng(0).normal(size=400), 400, np.random.default_rng(1), 0.05
    )
    assert 0.8 < interval.low < interval.estimate < interval.high < 1.3


def test_ranks_are_scipys():
    rng = np.random.default_rng(0)
    x, y = rng.integers(0, 6, (2, 50)) + np.arange(50) / 20
    x, y = np.round(x), np.round(y)
    found = weights.rank_correlation(x, y, 0.05)
    assert found.estimate == pytest.approx(stats.spearmanr(x, y).statistic)
    assert found.low < found.estimate < found.high < 1
    assert weights.rank_correlation(x, np.ones(50), 0.05) == Interval()


@pytest.mark.parametrize("shape", [0.2, 0.9])
def test_the_tails_shape_is_found(shape):
    log_weight = np.log(stats.genpareto.rvs(shape, size=20_000, random_state=0))
    assert weights.pareto_shape(log_weight) == pytest.approx(shape, abs=0.15)
    assert weights.pareto_shape(log_weight + 700) == pytest.approx(weights.pareto_shape(log_weight))
    assert weights.pareto_shape(np.zeros(100)) is None


def test_a_heavy_tail_is_warned_of():
    rng = np.random.default_rng(0)
    log_weight = 3 * rng.normal(size=(1, 512))
    found = certificate(Evidence(np.zeros((1, 512)), log_weight), Settings(resamples=2))
    assert any("the tail of R / q is heavy" in line for line in found.warnings)
    light = certificate(Evidence(np.zeros((1, 512)), log_weight / 30), Settings(resamples=2))
    assert light.warnings == ()


def test_pass_at_k_counts_subsets():
    right = [True, False, True, False, False]
    for k in (1, 2, 4):
        subsets = [any(chosen) for chosen in itertools.combinations(right, k)]
        found = weights.pass_at_k(5, 2, k, 0.05)
        assert found.estimate == pytest.approx(np.mean(subsets))
        assert (found.low, found.high) == pytest.approx(1 - (1 - np.array(stats.binomtest(2, 5).proportion_ci())) ** k)
    assert weights.pass_at_k(5, 0, 2, 0.05).estimate == 0.0


def test_entropy_of_modes():
    rng = np.random.default_rng(0)
    share = np.array([0.5, 0.25, 0.125, 0.125])
    found = weights.mode_entropy(rng.choice(4, 2000, p=share).tolist(), 0.05)
    assert found.low < stats.entropy(share) < found.high
    assert weights.mode_entropy(["a"] * 9, 0.05) == Interval(0.0, 0.0, 0.0)
    assert weights.mode_entropy([], 0.05) == Interval()  # no completion belongs to a mode


def test_the_report_is_whole_and_strict_json():
    rng = np.random.default_rng(3)
    drawn = [draw(rng, *WORLDS["apart"](rng), 80, exact) for exact in (40, 50, 60)]
    of_q, of_r, exact_q, exact_r = ([d[i] for d in drawn] for i in range(4))
    of_r[1][:2] = -np.inf  # R is 0 there
    evidence = Evidence(
        np.array(of_q),
        np.array(of_r),
        exact_q,
        exact_r,
        counts=[Counts(1000, 50, 8.0)] * 3,
        log_z=rng.normal(size=(3, 5)),
        modes=(rng.integers(0, 4, (3, 80))).tolist(),
        known_modes=[4, 4, 8],
        right=rng.random((3, 80)) < 0.2,
    )
    found = certificate(evidence, Settings(resamples=20))
    kept = json.loads(json.dumps(found.as_dict(), allow_nan=False))
    assert kept["means"]["modes_share"]["estimate"] == pytest.approx((1 + 1 + 0.5) / 3, abs=1e-5)
    assert kept["queries"]["kl_q_pi"][1] == [None, None, None]  # infinite
    assert kept["queries"]["kl_q_pi"][0][1] < kept["queries"]["kl_q_pi"][0][0]
    assert "KL(q | pi) is infinite" in found.verdict
    page = found.page()
    assert all(f"\n{name} " in page for name in found.measures)
    assert {"pass_64", "lower_64", "upper_16", "smc", "acceptance", "rank_off"} <= found.measures.keys()
    assert "nan" not in page


def test_log_ratios_beyond_the_allowance_widen_it():
    rng = np.random.default_rng(4)
    of_q, of_r, exact_q, exact_r = draw(rng, *lost_mode(rng, 0.2, 30), 128, 64)
    found = certificate(Evidence(of_q[None], of_r[None], [exact_q], [exact_r]), Settings(resamples=2))
    usual, widened = found.log_ratio[0]
    assert usual == 20 < 55 < widened
    assert f"log-ratios of {widened:.0f} nats" in found.page()
    assert any("log-ratios above 20 nats were seen" in line for line in found.warnings)


def test_samples_that_contradict_each_other_are_warned_of():
    """Exact samples of another Z than the rows': log q is not the law that the rows were drawn by."""
    rng = np.random.default_rng(6)
    of_q, of_r, exact_q, exact_r = draw(rng, *WORLDS["near"](rng), 256, 256)
    found = certificate(Evidence(of_q[None], of_r[None] + 2, [exact_q], [exact_r]), Settings(resamples=2))
    assert any("contradictory" in line for line in found.warnings)


def test_what_is_no_evidence_is_refused():
    rows = np.zeros((2, 3))
    with pytest.raises(ValueError, match=r"must be \[queries, rows\]"):
        Evidence(rows, rows[:1])
    with pytest.raises(ValueError, match="counts is of 1 queries, not of 2"):
        Evidence(rows, rows, counts=[Counts(1, 1, 0.0)])
    with pytest.raises(ValueError, match="no NaN"):
        Evidence(rows, rows * np.nan)
    with pytest.raises(ValueError, match="as many log q as log R"):
        Evidence(rows, rows, [np.zeros(1), np.zeros(1)], [np.zeros(1), np.zeros(2)])
    with pytest.raises(ValueError, match="an exact sample must be finite"):
        Evidence(rows, rows, [np.zeros(1)] * 2, [np.zeros(1), np.full(1, -np.inf)])
    with pytest.raises(ValueError, match="risk in"):
        Settings(risk=1.0)
