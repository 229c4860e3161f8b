"""A policy's certificate, against the list of all that it can write."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_worlds import left_padded, query_of, random_lora, random_params, right_padded, tiny

from gfn_jax.environments import NoTool
from gfn_jax.evaluation.certificate import Settings
from gfn_jax.evaluation.certify import Estimator, ExactSamples, certify
from gfn_jax.evaluation.enumeration import enumerate_completions, random_world
from gfn_jax.evaluation.limits import Counts
from gfn_jax.evaluation.scoring import log_policy
from gfn_jax.models.language_model import LanguageModel
from gfn_jax.policy.constraint import Rules, make_constraint
from gfn_jax.rewards import PosteriorReward
from gfn_jax.samplers.independent import Ancestral, Importance

CONFIG = tiny()
BASE = LanguageModel(CONFIG, random_params(CONFIG, scale=0.2))
POLICY = BASE.adapted(random_lora(CONFIG, scale=0.1))
STOP = 5
RULES = Rules(make_constraint(23, STOP, 3, token_ids=np.array([6, 9, 11, 20])), NoTool())
# Policy and reward read different texts; the answer begins with the stop.
QUERY = query_of(
    left_padded([[3, 4], [7, 8, 2], [9, 1]]),
    left_padded([[3, 4, 12], [8, 2], [1, 9, 9, 14]]),
    right_padded([[STOP, 7], [STOP], [STOP, 13, 2]]),
)
REWARD = PosteriorReward()
SETTINGS = Settings(resamples=20)


@dataclasses.dataclass(frozen=True)
class Listed:
    """Of every query: log q and log R of every completion; and the completions."""

    log_q: np.ndarray
    log_reward: np.ndarray
    completion: np.ndarray
    length: np.ndarray

    @property
    def log_z(self):
        return np.logaddexp.reduce(self.log_reward, axis=1)

    @property
    def pi(self):
        return np.exp(self.log_reward - self.log_z[:, None])

    @property
    def true(self):
        log_pi = self.log_reward - self.log_z[:, None]
        return {
            "log_z": self.log_z,
            "kl_q_pi": (np.exp(self.log_q) * (self.log_q - log_pi)).sum(axis=1),
            "kl_pi_q": (np.exp(log_pi) * (log_pi - self.log_q)).sum(axis=1),
        }

    def exact(self, counts: list[int], seed: int) -> ExactSamples:
        rng = np.random.default_rng(seed)
        drawn = [rng.choice(len(p), n, p=p / p.sum()) for p, n in zip(self.pi, counts, strict=True)]
        return ExactSamples([self.completion[rows] for rows in drawn], [self.length[rows] for rows in drawn])


@pytest.fixture(scope="module")
def listed() -> Listed:
    """Scored without `certify`: q and R of the list of completions, a query after the other."""
    completions = enumerate_completions(RULES)

    @jax.jit
    def score(policy, query):
        rewards = REWARD.log_reward(policy.base, REWARD.prepare(policy.base), query, completions)
        return log_policy(policy, query.prompt, completions, RULES), jnp.where(completions.stop, rewards, 0.0).sum(1)

    scored = [score(POLICY, jax.tree.map(lambda x, q=q: x[q : q + 1], QUERY)) for q in range(3)]
    log_q, log_reward = (np.array(column, np.float64) for column in zip(*scored, strict=True))
    length = np.asarray(completions.token_mask.sum(1))
    return Listed(log_q, log_reward, np.asarray(completions.completion), length)


@pytest.fixture(scope="module")
def certified(listed):
    """Parts of two queries of three, four rounds of rows, ragged exact samples."""
    exact = listed.exact([300, 250, 280], seed=0)
    accepted = np.random.default_rng(1).binomial(3000, 0.1, 3)
    counts = [Counts(3000, int(n), z - np.log(0.1)) for n, z in zip(accepted, listed.log_z, strict=True)]
    return certify(
        POLICY,
        REWARD,
        QUERY,
        RULES,
        jax.random.key(0),
        rows=512,
        at_once=128,
        batch=2,
        exact=dataclasses.replace(exact, counts=counts),
        other=Estimator(Importance(REWARD), budget=16, repeats=8),
        mode=lambda query, row: (query, tuple(row[:1])),
        known_modes=[5] * 3,
        grade=lambda query, row: len(row) == query,
        settings=SETTINGS,
    )


@pytest.mark.parametrize("name", ["log_z", "kl_q_pi", "kl_pi_q"])
def test_what_is_listed_lies_in_the_intervals(certified, listed, name):
    measure, true = certified.measures[name], listed.true[name]
    for interval, value in zip(measure.queries, true, strict=True):
        assert interval.low < value < interval.high
        assert abs(interval.estimate - value) < 0.15 * max(value, 0.4)
    assert measure.mean.low < true.mean() < measure.mean.high
    assert certified.verdict.startswith("two-sided")
    assert certified.warnings == ()


def test_the_other_measures_are_the_lists(certified, listed):
    found = certified.measures
    ratio = listed.log_reward - listed.log_q
    q, pi = np.exp(listed.log_q), listed.pi
    bounds = {"lower_1": (q * ratio).sum(1), "upper_1": (pi * ratio).sum(1)}
    for name, value in bounds.items():
        np.testing.assert_allclose([one.estimate for one in found[name].queries], value, atol=0.3)
    share = 1 / (q * np.exp(2 * (ratio - listed.log_z[:, None]))).sum(1)
    np.testing.assert_allclose([one.estimate for one in found["reverse_ess"].queries], share, atol=0.08)
    spread = [np.sqrt(np.cov(row, aweights=weight, ddof=0)) for row, weight in zip(ratio, pi, strict=True)]
    np.testing.assert_allclose([one.estimate**0.5 for one in found["variance_off"].queries], spread, rtol=0.2)
    chance = [(q[query] * (listed.length == query)).sum() for query in range(3)]
    np.testing.assert_allclose([one.estimate for one in found["pass_1"].queries], chance, atol=0.08)
    assert [one.estimate for one in found["modes_share"].queries] == [1.0] * 3
    assert all(abs(one.estimate - z) < 0.5 for one, z in zip(found["smc"].queries, listed.log_z, strict=True))


@pytest.mark.parametrize("scale", [0.5, 5.0])
def test_a_random_world_without_exact_samples(scale):
    """Flat and peaked rewards; the base is the policy."""
    world = random_world(jax.random.key(3), arity=3, max_length=3, reward_scale=scale, width=8, layers=1)
    base = world.constants.base
    found = certify(
        base, world.reward, world.constants.queries, world.constants.rules, jax.random.key(1), 1024, settings=SETTINGS
    )
    log_q, log_pi = (np.asarray(x, np.float64) for x in (world.log_policy(base), world.log_target()))
    divergence = (np.exp(log_q) * (log_q - log_pi)).sum()
    kl, log_z = found.measures["kl_q_pi"].mean, found.measures["log_z"].mean
    assert 0.2 * divergence < kl.low < divergence
    assert kl.high is None
    assert log_z.low < np.logaddexp.reduce(np.asarray(world.reward.table, np.float64)) < log_z.low + 1.5
    assert found.verdict.startswith("one-sided")


def test_no_exact_sample_was_accepted(listed):
    nothing = ExactSamples([listed.completion[:0]] * 3, [listed.length[:0]] * 3, counts=[Counts(64, 0, 0.0)] * 3)
    found = certify(POLICY, REWARD, QUERY, RULES, jax.random.key(0), 128, exact=nothing, settings=SETTINGS)
    assert found.verdict.endswith("(0 of 192 proposals accepted)")
    assert found.exact == (0, 0, 0)


def test_what_cannot_be_certified_is_refused(listed):
    def certified(**settings):
        return certify(POLICY, REWARD, QUERY, RULES, jax.random.key(0), **settings)

    with pytest.raises(ValueError, match="10 rows a query do not divide into rounds of 4"):
        certified(rows=10, at_once=4)
    with pytest.raises(ValueError, match="exact samples of 1 queries, where there are 3"):
        certified(rows=4, exact=ExactSamples([listed.completion[:1]], [listed.length[:1]]))
    with pytest.raises(ValueError, match="no estimate of Z"):
        certified(rows=4, other=Estimator(Ancestral(), 2, 2))
    with pytest.raises(ValueError, match="needs rows and a repeat"):
        Estimator(Ancestral(), 2, 0)
