import jax
import jax.numpy as jnp
import numpy as np
import pytest
from decoding_worlds import (
    CALLING,
    CALLS,
    POLICY,
    PROBLEM,
    STOP,
    check_calls,
    chosen_tokens,
    listed,
    next_tokens,
)

from gfn_jax.policy.rollout import Behavior, rollout
from gfn_jax.samplers import filters
from gfn_jax.samplers.independent import Ancestral

ROWS = 2048
FILTERS = ({"top_p": 0.7}, {"top_k": 4, "top_p": 0.8, "min_p": 0.1, "temperature": 1.7})


def run(sampler, budget, model=POLICY, problem=PROBLEM, seed=0):
    sample = jax.jit(lambda model, problem, key: sampler.sample(model, problem, budget, key))
    return sample(model, problem, jax.random.key(seed))


def cut(probs, temperature=1.0, top_k=None, top_p=None, min_p=None):
    """A distribution after the filters, in numpy: sorted, as `transformers` defines them."""
    probs = np.asarray(probs, np.float64) ** (1 / temperature)
    for size, enough in (
        (top_k, lambda ranked: np.arange(len(ranked)) < top_k),
        (top_p, lambda ranked: np.cumsum(ranked) - ranked < top_p),
        (min_p, lambda ranked: ranked >= min_p * ranked[0]),
    ):
        probs = probs / probs.sum()
        if size is not None:
            order = np.argsort(-probs)
            probs[order[~enough(probs[order])]] = 0.0
    return probs / probs.sum()


def exact(query, settings, prefix=()):
    """Completion -> its probability where every token is drawn from the filtered distribution."""
    following = next_tokens(query, prefix)
    out = {}
    for token, probability in zip(following, cut([*following.values()], **settings)):
        behind = {prefix: 1.0} if token == STOP else exact(query, settings, (*prefix, token)) if probability else {}
        out |= {z: probability * rest for z, rest in behind.items()}
    return out


@pytest.mark.parametrize("settings", FILTERS, ids=str)
def test_completions_follow_the_filtered_distribution_and_report_it(settings):
    weighed = run(Ancestral(**settings), ROWS)
    lengths = np.asarray(weighed.rollout.token_mask).sum(1)
    log_q = np.asarray(weighed.rollout.log_behavior).sum(1).reshape(2, -1)
    drawn = [tuple(row[:n]) for row, n in zip(np.asarray(weighed.rollout.completion).tolist(), lengths)]
    for query in range(2):
        expected, rows = exact(query, settings), drawn[query * ROWS : (query + 1) * ROWS]
        assert 6 < sum(p > 0 for p in expected.values()) < len(listed()[query]) / 2  # much is left out, not all
        np.testing.assert_allclose(np.exp(log_q[query]), [expected[z] for z in rows], rtol=1e-3)
        cells, counts = [p for p in expected.values() if p > 0], [rows.count(z) for z, p in expected.items() if p > 0]
        assert sum(counts) == ROWS  # nothing that the filters leave out is drawn
        statistic = ((np.array(counts) - ROWS * np.array(cells)) ** 2 / (ROWS * np.array(cells))).sum()
        degrees = len(cells) - 1
        assert statistic < degrees + 5 * np.sqrt(2 * degrees)
    np.testing.assert_array_equal(weighed.generated, (lengths + 1).reshape(2, -1).sum(1))
    assert not weighed.log_weight.any()


LOGITS = np.random.default_rng(0).normal(0, 2, (64, 37)).astype(np.float32)
ALLOWED = np.random.default_rng(1).random((64, 37)) < 0.6
SIZES = [
    *(("top_k", k) for k in (1, 3, 37, 99)),
    *((name, p) for name in ("top_p", "min_p") for p in (0.01, 0.4, 0.95)),
]


@pytest.mark.parametrize(("name", "size"), SIZES)
def test_filters_keep_what_they_should(name, size):
    kept = np.asarray(getattr(filters, name)(jnp.asarray(LOGITS), jnp.asarray(ALLOWED), size))
    for row, logits, allowed in zip(kept, LOGITS, ALLOWED):
        probs = np.where(allowed, np.exp(logits - logits.max(), dtype=np.float64), 0)
        np.testing.assert_array_equal(row, allowed & (cut(probs / probs.sum(), **{name: size}) > 0))


def test_filters_are_those_of_transformers():
    torch = pytest.importorskip("torch", reason="torch (a test dependency) is not installed")
    from transformers import MinPLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

    warpers = {"top_k": TopKLogitsWarper, "top_p": TopPLogitsWarper, "min_p": MinPLogitsWarper}
    masked = torch.tensor(np.where(ALLOWED, LOGITS, -np.inf))
    for name, size in SIZES:
        theirs = torch.isfinite(warpers[name](size)(None, masked)).numpy()
        np.testing.assert_array_equal(getattr(filters, name)(jnp.asarray(LOGITS), jnp.asarray(ALLOWED), size), theirs)


def test_equally_likely_tokens_are_kept_together():
    logits, allowed = jnp.array([[1.0, 0.0, 1.0, 1.0]]), jnp.ones((1, 4), bool)
    for kept in (filters.top_k(logits, allowed, 2), filters.top_p(logits, allowed, 0.4)):
        assert kept.tolist() == [[True, False, True, True]]


def test_without_filters_rows_are_the_rollouts_own_bit_for_bit():
    behavior = Behavior.at(0.8, 16)
    plain = jax.jit(rollout)(POLICY, PROBLEM.query.prompt, PROBLEM.rules, behavior, jax.random.key(3))
    jax.tree.map(np.testing.assert_array_equal, run(Ancestral(0.8), 8, seed=3).rollout, plain)


def test_one_token_is_greedy_decoding_whatever_the_temperature():
    greedy = run(Ancestral(temperature=0.0, top_p=0.5), 2).rollout
    one = run(Ancestral(temperature=3.0, top_k=1), 2).rollout
    np.testing.assert_array_equal(greedy.completion, one.completion)
    assert not one.log_behavior.any()
    for query in range(2):
        z = ()
        while (token := max(following := next_tokens(query, z), key=following.__getitem__)) != STOP:
            z = (*z, token)
        assert np.asarray(greedy.completion)[2 * query].tolist() == [*z, *[STOP] * (4 - len(z))]


def test_the_tool_is_obeyed_and_not_counted():
    weighed = run(Ancestral(temperature=1.5, top_k=5), 64, CALLING, CALLS)
    check_calls(weighed)
    np.testing.assert_array_equal(weighed.generated, chosen_tokens(weighed.rollout))
    assert not weighed.scored.any()


@pytest.mark.parametrize("wrong", [{"temperature": -1.0}, {"top_k": 0}, {"top_p": 0.0}, {"top_p": 1.5}, {"min_p": 2.0}])
def test_settings_out_of_range_are_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Ancestral(**wrong)
