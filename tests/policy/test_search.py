import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_worlds import left_padded, random_lora, random_params, tiny

from gfn_jax.environments import NoTool
from gfn_jax.evaluation.enumeration import enumerate_completions
from gfn_jax.evaluation.scoring import log_policy
from gfn_jax.models.language_model import LanguageModel
from gfn_jax.policy.constraint import Rules, make_constraint
from gfn_jax.policy.rollout import Behavior, rollout
from gfn_jax.policy.search import Beam, Nucleus, search

MODEL = tiny(vocab_size=7)
CONSTRAINT = make_constraint(7, 6, max_length=3, min_length=1, token_ids=np.array([0, 1, 3, 4]))
PROMPT = left_padded([[2, 5, 1], [3]])
POLICY = LanguageModel(MODEL, random_params(MODEL, scale=0.7), random_lora(MODEL))
RULES = Rules(CONSTRAINT, NoTool())


@pytest.fixture(scope="module")
def run():
    compiled = jax.jit(search, static_argnums=4)

    def call(strategy, rows, seed=0):
        return map(np.asarray, compiled(POLICY, PROMPT, CONSTRAINT, strategy, rows, jax.random.key(seed)))

    return call


@pytest.fixture(scope="module")
def listed():
    """Every completion and its log q, for both prompts."""
    completions = enumerate_completions(RULES)
    log_q = [
        log_policy(
            POLICY,
            jax.tree.map(lambda x, i=i: x[i : i + 1], PROMPT),
            completions,
            RULES,
        )
        for i in range(2)
    ]
    rows = [tuple(row) for row in np.asarray(completions.completion).tolist()]
    return [dict(zip(rows, np.asarray(values))) for values in log_q]


def test_beams_wide_enough_find_the_likeliest_completions(run, listed):
    completion, length, total = run(Beam(), 4)
    for query, table in enumerate(listed):
        best = sorted(table.values(), reverse=True)[:3]
        np.testing.assert_allclose(total[query][:3], best, atol=1e-4)
        for row, n, value in zip(completion[query], length[query], total[query]):
            np.testing.assert_allclose(table[tuple(row)], value, atol=1e-4)
            assert (row[n:] == 6).all()
            assert 1 <= n <= 3


def test_one_beam_and_a_small_nucleus_are_greedy_decoding(run):
    zeros = jnp.zeros(2)
    greedy = rollout(
        POLICY,
        PROMPT,
        RULES,
        Behavior(zeros, zeros),
        jax.random.key(0),
    )
    one, _, _ = run(Beam(), 1)
    few, _, _ = run(Nucleus(1e-3), 3)
    np.testing.assert_array_equal(one[:, 0], greedy.completion)
    np.testing.assert_array_equal(few, np.repeat(np.asarray(greedy.completion)[:, None], 3, axis=1))


def test_the_penalty_sets_groups_apart_and_is_no_part_of_their_log_probability(run, listed):
    completion, _, total = run(Beam(4, 50.0), 4)
    for query, table in enumerate(listed):
        assert len({row[0] for row in completion[query]}) == 4  # all four tokens that may come first
        np.testing.assert_allclose([table[tuple(row)] for row in completion[query]], total[query], atol=1e-4)
    free, _, _ = run(Beam(4, 0.0), 4)
    assert (free == free[:, :1]).all()  # without it every group is the same


def test_a_finished_beam_stays_at_no_cost():
    stop, other = jnp.log(jnp.array([1e-9, 1.0])), jnp.log(jnp.array([0.6, 0.4]))  # column 1 is the stop
    log_probs = jnp.stack([stop, stop, stop, other])[None]
    totals, done = jnp.array([[0.0, -3.0, -0.5, -1.0]]), jnp.array([[False, False, True, False]])
    # The first group stops twice, which would cost the second's finished beam 10 nats.
    parent, column = Beam(2, 5.0).choose(jax.random.key(0), log_probs, totals, done)
    assert parent.tolist() == [[0, 1, 2, 3]]
    assert column.tolist() == [[1, 1, 1, 0]]


def test_the_nucleus_is_the_fewest_tokens_that_hold_the_share():
    probs = jnp.array([0.15, 0.5, 0.05, 0.3])
    rows = 4000
    log_probs = jnp.broadcast_to(jnp.log(probs), (1, rows, 4))
    draw = jax.jit(lambda top_p: Nucleus(top_p).choose(jax.random.key(0), log_probs, jnp.zeros((1, rows)), None)[1])
    for top_p, head in ((0.45, [1]), (0.6, [1, 3]), (0.9, [0, 1, 3]), (1.0, [0, 1, 2, 3])):
        share = np.bincount(np.asarray(draw(top_p))[0], minlength=4) / rows
        expected = np.where(np.isin(np.arange(4), head), probs, 0)
        np.testing.assert_allclose(share, expected / expected.sum(), atol=0.03)


def test_beams_that_cannot_be_are_refused():
    with pytest.raises(ValueError, match="do not divide"):
        Beam(3).start(4)
    with pytest.raises(ValueError, match="too few"):
        search(POLICY, PROMPT, CONSTRAINT, Beam(), 5, jax.random.key(0))
