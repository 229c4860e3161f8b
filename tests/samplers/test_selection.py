import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from listed_worlds import (
    STOP,
    assert_follows,
    compiled,
    listed,
    posterior_world,
    table_world,
)
from tiny_worlds import left_padded, query_of, random_lora, right_padded, tiny

from gfn_jax.models import decoder
from gfn_jax.rewards import Adapted, PosteriorReward, Product, Rearranged, TableReward
from gfn_jax.rewards.compose import without_context
from gfn_jax.samplers.independent import Importance
from gfn_jax.samplers.selection import BestOfN, Rejection, Resampling, _exponential, exact_samples, prior
from gfn_jax.types import Tokens

KEY = jax.random.key(0)
ROUND = 1024


@pytest.fixture(scope="module")
def world():
    return table_world()


@pytest.fixture(scope="module")
def with_prior():
    """The posterior's world, its base reading what the reward reads."""
    found = posterior_world()
    problem = found.problem.replace(query=prior(found.reward, found.problem.query))
    oracle = jax.jit(found.reward.log_reward)
    return listed(found.model.base, found.reward, problem, (0, 1, 3, 4), oracle)


def test_importance_estimates_z_without_bias(world):
    """1,000 runs of 8 rows: their mean is off by sqrt(var(R / q) / 8000), which the list says."""
    found = compiled(Importance(world.reward), 8)(world.model, world.of_one(1000), KEY)
    estimates = np.exp(found.log_z)
    weight = np.exp(world.log_weight[0])
    deviation = np.sqrt((world.q[0] * (weight - world.z[0]) ** 2).sum() / 8)
    assert abs(estimates.mean() - world.z[0]) < 4.5 * deviation / np.sqrt(1000)
    # The runs are as far from each other as they should be: an estimate of sd has relative error sqrt(kurtosis / 4n).
    assert 0.8 * deviation < estimates.std() < 1.2 * deviation


def test_the_best_of_n_is_the_largest_of_n_draws(world):
    """P(best = z) = P(no draw above R(z)) - P(all below R(z))."""
    found = compiled(BestOfN(world.reward), 4)(world.model, world.of_one(4096), KEY)
    weight = np.asarray(found.log_weight).reshape(4096, 4)
    assert ((weight == 0).sum(1) == 1).all()
    assert np.isneginf(weight[weight != 0]).all()
    best = np.asarray(found.log_reward).reshape(4096, 4)
    np.testing.assert_array_equal(best[weight == 0], best.max(1))
    q, log_reward = world.q[0], world.log_reward[0]
    up_to = np.array([q[log_reward <= value].sum() for value in log_reward])
    assert_follows(world.counts(found.rollout, found.log_weight).sum(0), up_to**4 - (up_to - q) ** 4)
    assert (found.generated >= 4).all()


def test_resampling_from_two_proposals_is_what_all_pairs_give(world):
    found = compiled(Resampling(world.reward, draws=1), 2)(world.model, world.of_one(4096), KEY)
    assert found.rollout.completion.shape[0] == 4096
    assert not np.asarray(found.log_weight).any()
    q, weight = world.q[0], np.exp(world.log_weight[0])
    exact = np.zeros(len(q))
    for a, b in itertools.product(range(len(q)), repeat=2):
        for z in (a, b):
            exact[z] += q[a] * q[b] * weight[z] / (weight[a] + weight[b])
    assert_follows(world.counts(found.rollout).sum(0), exact)
    assert np.abs(exact - world.posterior[0]).sum() / 2 > 0.1  # two are too few


def test_resampling_from_many_proposals_is_the_posterior(world):
    """The proposals' own noise makes counts wider than a multinomial's, by 1 + draws / effective size."""
    found = compiled(Resampling(world.reward, draws=1024, temperature=1.5), 16384)(world.model, world.problem, KEY)
    size = float(found.notes["ess"][0])
    assert size > 1024
    assert_follows(world.counts(found.rollout)[0], world.posterior[0], inflation=1 + 1024 / size)
    assert abs(found.log_z[0] - np.log(world.z[0])) < 4.5 / np.sqrt(size)
    place = {tuple(row): i for i, row in enumerate(np.asarray(world.rows.completion).tolist())}
    rows = [place[tuple(row)] for row in np.asarray(found.rollout.completion).tolist()]
    np.testing.assert_allclose(found.log_reward, world.log_reward[0, rows], atol=1e-5)


@pytest.fixture(scope="module")
def reject(world):
    """16,384 proposals at any bound."""
    return jax.jit(
        lambda bound, key: Rejection(world.reward, bound).sample(world.model, world.problem, 16384, key),
    )


def test_rejection_is_exact_with_the_bound_and_says_where_it_is_not(world, reject):
    bound = world.log_weight.max()
    runs = 16384
    for lower, key in ((0.0, 0), (2.0, 1)):
        log_bound = float(bound - lower)
        found = reject(log_bound, jax.random.key(key))
        ratio = np.exp(world.log_weight[0] - log_bound)
        accepted = world.q[0] * np.minimum(ratio, 1)
        counts = world.counts(found.rollout, found.log_weight)[0]
        assert_follows(counts, accepted / accepted.sum())
        rate = accepted.sum()
        assert counts.sum() == round(runs * float(found.notes["acceptance"][0]))
        assert abs(counts.sum() - runs * rate) < 4.5 * np.sqrt(runs * rate * (1 - rate))
        exceeded = world.q[0][ratio > 1 + 1e-3].sum()
        deviation = np.sqrt(exceeded * (1 - exceeded) / runs)
        assert abs(found.notes["exceeded"][0] - exceeded) <= 4.5 * deviation
        np.testing.assert_allclose(found.notes["largest"], bound, atol=1e-4)
        np.testing.assert_allclose(found.log_z, np.log(counts.sum() / runs) + log_bound, atol=1e-5)
        if not lower:
            np.testing.assert_allclose(rate * np.exp(log_bound), world.z[0])
            np.testing.assert_allclose(accepted / rate, world.posterior[0])
    assert exceeded > 0.01


def test_nothing_accepted_is_no_sample(reject):
    found = reject(60.0, KEY)
    assert np.isneginf(found.log_weight).all()
    assert np.isneginf(found.log_z).all()
    assert found.notes["acceptance"][0] == 0


def log_p(model, tokens):
    """[n, S]: log p of every token of a sequence but the first, over the whole vocabulary, and where it is real."""
    hidden, _ = decoder.prefill(model, tokens)
    everything = jax.nn.log_softmax(decoder.logits(decoder.select_head(model), hidden))
    own = jnp.take_along_axis(everything[:, :-1], tokens.ids[:, 1:, None], axis=-1)[..., 0]
    return everything, jnp.where(tokens.mask[:, 1:], own, 0.0)


def test_the_priors_ratio_is_what_the_docstring_says(with_prior):
    """R / q = p(Y | C Z) / p(stop | C Z) * allowed masses * p of the tool's tokens, each from plain forward passes."""
    query, rows = with_prior.problem.query, with_prior.rows
    horizon, size = rows.completion.shape[1], len(rows.completion)
    for number in range(2):
        context, context_mask = (np.asarray(x[number]) for x in (query.prompt.ids, query.prompt.mask))
        context = context[context_mask]
        answer = np.asarray(query.answer.ids[number])[np.asarray(query.answer.mask[number])]
        lengths = np.asarray(rows.token_mask.sum(1))
        texts = [
            [*context, *np.asarray(row[:length]), *answer] for row, length in zip(rows.completion, lengths, strict=True)
        ]
        tokens = right_padded([list(map(int, text)) for text in texts], width=16)
        everything, own = map(np.asarray, jax.jit(log_p)(with_prior.model, tokens))
        for row in range(size):
            begin = len(context)
            expected, length = 0.0, lengths[row]
            for t in range(horizon):
                after = everything[row, begin + t - 1]
                if rows.action_mask[row, t]:
                    allowed = [0] * (t < 4) + [1] * (t < 3) + [STOP] * (t >= 1)
                    expected += np.log(np.exp(after[allowed]).sum())
                elif rows.token_mask[row, t]:
                    expected += own[row, begin + t - 1]
            answered = own[row, begin + length - 1 : begin + length - 1 + len(answer)].sum()
            expected += answered - everything[row, begin + length - 1, STOP]
            np.testing.assert_allclose(with_prior.log_weight[number, row], expected, atol=1e-4)
    assert with_prior.log_weight.max() < 0


@pytest.fixture(scope="module")
def rejection(with_prior):
    return Rejection(with_prior.reward)


def test_the_base_with_a_prior_gives_exact_samples_of_the_posterior(with_prior, rejection):
    found = exact_samples(rejection, with_prior.model, with_prior.problem, ROUND, KEY, wanted=100, most=100_000)
    assert found.accepted.min() >= 100
    rounds = found.proposals // ROUND
    assert 2 < rounds < 20
    place = {tuple(row): i for i, row in enumerate(np.asarray(with_prior.rows.completion).tolist())}
    lengths = np.asarray(with_prior.rows.token_mask.sum(1))
    for number in range(2):
        rows = [place[tuple(row)] for row in found.completion[number].tolist()]
        np.testing.assert_array_equal(found.length[number], lengths[rows])
        assert_follows(np.bincount(rows, minlength=len(lengths)), with_prior.posterior[number])
        rate = with_prior.z[number]
        deviation = np.sqrt(rate * (1 - rate) / found.proposals)
        # What ends the rounds leans upwards by one part in 100 at most.
        assert abs(found.accepted[number] / found.proposals - rate) < 4.5 * deviation + rate / 100
        # Tokens that the policy chose, and that were scored: their means over q, within 4.5 deviations.
        for spent, each in (
            (found.generated, np.asarray(with_prior.rows.action_mask.sum(1))),
            (found.scored, lengths + (2, 1)[number]),
        ):
            mean = (with_prior.q[number] * each).sum()
            deviation = np.sqrt((with_prior.q[number] * (each - mean) ** 2).sum() / found.proposals)
            assert abs(spent[number] / found.proposals - mean) < 4.5 * deviation


def test_exact_samples_are_a_function_of_the_key_and_end_at_most(with_prior, rejection):
    def found(most):
        return exact_samples(rejection, with_prior.model, with_prior.problem, ROUND, KEY, wanted=10**6, most=most)

    one, same, more = found(2 * ROUND - 1), found(ROUND), found(2 * ROUND)
    assert (one.proposals, same.proposals, more.proposals) == (ROUND, ROUND, 2 * ROUND)
    for number in range(2):
        np.testing.assert_array_equal(one.completion[number], same.completion[number])
        count = len(one.completion[number])
        np.testing.assert_array_equal(one.completion[number], more.completion[number][:count])
        assert len(more.completion[number]) > count


def test_samples_that_would_not_be_exact_are_refused(world):
    too_low = Rejection(world.reward, log_bound=4.0)
    largest = world.log_weight.max()
    with pytest.raises(ValueError, match=f"exceeds the bound of 4 nats: it reached {largest:.3f}"):
        exact_samples(too_low, world.model, world.problem, 2048, KEY, wanted=1, most=2048)
    with pytest.raises(ValueError, match="5 proposals at most allow of no round of 6"):
        exact_samples(too_low, world.model, world.problem, 6, KEY, wanted=1, most=5)


def test_a_prior_reads_what_the_reward_reads():
    query = query_of(left_padded([[3], [4]]), context=left_padded([[5, 6], [7]]))
    demonstrations = right_padded([[8, 9]], width=3)
    plain, shown = PosteriorReward(), PosteriorReward(demonstrations=demonstrations)
    adapted = Adapted(shown, random_lora(tiny()))
    table = TableReward(jnp.zeros(3), 2)
    alone = Rearranged(plain, lambda query: without_context(query, jnp.array([2])))

    def read(reward):
        tokens = prior(reward, query).prompt
        assert isinstance(tokens, Tokens)
        return [ids[mask].tolist() for ids, mask in zip(*map(np.asarray, (tokens.ids, tokens.mask)), strict=True)]

    assert read(plain) == [[5, 6], [7]]
    assert read(Product((table, shown), (2.0, 1.0))) == read(adapted) == [[8, 9, 5, 6], [8, 9, 7]]
    assert read(alone) == [[2], [2]]
    for reward, count in ((table, 0), (Product((plain, alone), (1.0, -1.0)), 2)):
        with pytest.raises(ValueError, match=f"reads one context, not {count}"):
            prior(reward, query)


def test_acceptance_is_drawn_finely_however_rare():
    """Exponential draws: beyond 8 nats, where a float32 uniform has 2,814 values left, no two of about 350 agree."""
    draws = np.asarray(_exponential(KEY, 2**20), np.float64)
    assert abs(draws.mean() - 1) < 4.5 / 2**10
    for above in (0.1, 2, 8, 9):
        chance = np.exp(-above)
        assert abs((draws > above).mean() - chance) < 4.5 * np.sqrt(chance / 2**20)
    tail = draws[draws > 8]
    assert len(set(tail)) == len(tail) > 250


def test_bad_settings_are_refused(world):
    for settings in ({"draws": 0}, {"draws": 1, "temperature": 0.0}, {"draws": 1, "temperature": float("nan")}):
        with pytest.raises(ValueError, match="draws above 0 and a temperature above 0"):
            Resampling(world.reward, **settings)
