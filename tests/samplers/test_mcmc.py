import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from listed_worlds import assert_follows, compiled, posterior_world, table_world
from tiny_worlds import calculator_world, left_padded, query_of, random_lora, random_params, tiny

from gfn_jax.models.language_model import LanguageModel
from gfn_jax.policy.constraint import Rules
from gfn_jax.policy.score import score
from gfn_jax.policy.teacher import teacher_force
from gfn_jax.rewards import AutomatonReward
from gfn_jax.samplers.mcmc import SuffixMCMC
from gfn_jax.samplers.sampler import Problem

TEMPERATURE = 0.7
COPIES = 300  # chains from each of the 11 completions of a query


def tempered(rows, log_pf, temperature):
    """[S, T]: the proposal's probabilities by brute force: each state's own over its choices, to a power."""
    completion, acts = np.asarray(rows.completion), np.asarray(rows.action_mask)
    choices: dict = {}
    for row, column in zip(*np.nonzero(acts), strict=True):
        of_state = choices.setdefault(tuple(completion[row, :column]), {})
        of_state[completion[row, column]] = np.exp(log_pf[row, column]) ** (1 / temperature)
    out = np.ones(completion.shape)
    for row, column in zip(*np.nonzero(acts), strict=True):
        of_state = choices[tuple(completion[row, :column])]
        out[row, column] = of_state[completion[row, column]] / sum(of_state.values())
    return out


def kernel(rows, probability, log_reward):
    """One move by brute force: [S, S], the chance that a move from z is taken, and the mean tokens that it writes.

    Written as in a textbook, suffix by suffix: proposal g(z'|z) = sum over cuts of 1 / n(z) q(z'_>=c | z_<c), each
    with its own acceptance.
    """
    completion, acts = np.asarray(rows.completion), np.asarray(rows.action_mask)
    size = len(completion)
    moves, taken, written = np.zeros((size, size)), np.zeros(size), np.zeros(size)
    for z in range(size):
        cuts = np.nonzero(acts[z])[0]
        for cut in cuts:
            for other in range(size):
                if tuple(completion[other, :cut]) != tuple(completion[z, :cut]):
                    continue
                there, back = probability[other, cut:].prod(), probability[z, cut:].prod()
                reward = np.exp(log_reward[other] - log_reward[z])
                accept = min(1, reward * back / acts[other].sum() / (there / acts[z].sum()))
                chance = there / len(cuts)
                moves[z, other] += chance * accept
                moves[z, z] += chance * (1 - accept)
                taken[z] += chance * accept
                written[z] += chance * acts[other, cut:].sum()
    return moves, taken, written


@pytest.fixture(scope="module")
def world():
    return posterior_world()


@pytest.fixture(scope="module")
def kernels(world):
    """Of each query: q, and one move, at the proposal's temperature."""
    found = []
    for log_pf, log_reward in zip(world.log_pf, world.log_reward, strict=True):
        probability = tempered(world.rows, log_pf, TEMPERATURE)
        found.append((probability.prod(1), *kernel(world.rows, probability, log_reward)))
    return found


@pytest.fixture(scope="module")
def one_move(world):
    sampler = SuffixMCMC(world.reward, 1, TEMPERATURE)
    return jax.jit(lambda start, key: sampler.sample_from(world.model, world.problem, start, key))


def rows_of(world, index):
    """The listed completions with these numbers."""
    return jax.tree.map(lambda x: x[jnp.asarray(index)], world.rows)


def test_the_move_leaves_the_posterior_as_it_is(world, kernels):
    for posterior, (q, moves, taken, _) in zip(world.posterior, kernels, strict=True):
        np.testing.assert_allclose((q.sum(), *moves.sum(1)), 1, atol=1e-6)
        np.testing.assert_allclose(posterior @ moves, posterior, atol=1e-7)
        flow = posterior[:, None] * moves
        np.testing.assert_allclose(flow, flow.T, atol=1e-7)
        assert taken.min() < 0.5 < taken.max()  # some moves are refused


def test_one_move_is_the_brute_force_kernels(world, kernels, one_move):
    copies, size = COPIES, len(world.rows.completion)
    start = rows_of(world, np.tile(np.repeat(np.arange(size), copies), 2))
    found = one_move(start, jax.random.key(0))
    ends = np.asarray(found.rollout.completion).reshape(2, size, copies, -1)
    place = {tuple(row): i for i, row in enumerate(np.asarray(world.rows.completion).tolist())}
    tested = 0
    for number, (_, moves, taken, written) in enumerate(kernels):
        for z in range(size):
            counts = np.bincount([place[tuple(row)] for row in ends[number, z].tolist()], minlength=size)
            if (moves[z] * copies >= 5).sum() >= 2:
                assert_follows(counts, moves[z])
                tested += 1
            else:  # a deep mode: binomial, whether it was left
                assert abs(counts[z] - moves[z, z] * copies) < 4.5 * np.sqrt(copies * moves[z, z] * (1 - moves[z, z]))
        deviation = np.sqrt((taken * (1 - taken)).sum() / copies) / size
        assert abs(found.notes["acceptance"][number] - taken.mean()) < 4.5 * deviation
        # At most T - 1 tokens and a stop are written, so their standard deviation is at most T / 2 = 2.5.
        assert abs(found.generated[number] / (size * copies) - written.mean()) < 4.5 * 2.5 / np.sqrt(size * copies)
    assert tested > size
    assert not np.asarray(found.log_weight).any()


def test_posterior_rows_stay_the_posteriors(world, one_move):
    """Rows that are exact before four moves are exact after them, and have moved."""
    rng = np.random.default_rng(0)
    index = np.concatenate([rng.choice(len(p), len(p) * COPIES, p=p / p.sum()) for p in world.posterior])
    start = rows = rows_of(world, index)
    for number in range(4):
        rows = one_move(rows, jax.random.key(10 + number)).rollout
    for counts, posterior in zip(world.counts(rows), world.posterior, strict=True):
        assert_follows(counts, posterior)
    assert (np.asarray(rows.completion) != np.asarray(start.completion)).any(1).mean() > 0.1


@pytest.mark.slow
def test_chains_come_nearer_to_the_posterior_as_their_kernel_says():
    """From the policy's rows on, after n moves q K^n: its total variation from the posterior falls with n."""
    world, budget, steps = table_world(), 4096, 5
    found = compiled(SuffixMCMC(world.reward, steps), budget)(world.model, world.problem, jax.random.key(0))
    moves, taken, written = kernel(world.rows, np.exp(world.log_pf[0]), world.log_reward[0])
    states = [world.q[0] @ np.linalg.matrix_power(moves, n) for n in range(steps + 1)]
    counts = world.counts(found.rollout)[0]
    assert_follows(counts, states[-1])
    distances = [np.abs(state - world.posterior[0]).sum() / 2 for state in states]
    assert (np.diff(distances) < 0).all()
    assert np.abs(counts / budget - world.posterior[0]).sum() / 2 < distances[0] - 0.3
    # Acceptance: a mean of 0..1 over independent chains, of standard deviation 0.5 at most.
    expected = np.mean([state @ taken for state in states[:-1]])
    assert abs(found.notes["acceptance"][0] - expected) < 4.5 * 0.5 / np.sqrt(budget)
    # Generated: the first row, then suffixes, of 1 to 4 tokens each: a standard deviation of 1.5 at most.
    expected = world.q[0] @ np.asarray(world.rows.action_mask.sum(1)) + sum(state @ written for state in states[:-1])
    assert abs(found.generated[0] / budget - expected) < 4.5 * 1.5 * (steps + 1) / np.sqrt(budget)
    place = {tuple(row): i for i, row in enumerate(np.asarray(world.rows.completion).tolist())}
    rows = [place[tuple(row)] for row in np.asarray(found.rollout.completion).tolist()]
    np.testing.assert_allclose(found.log_reward, world.log_reward[0, rows], atol=1e-5)
    np.testing.assert_allclose(found.rollout.log_behavior, world.log_pf[0, rows], atol=1e-4)


def test_a_row_that_the_rules_do_not_allow_is_left_at_once(world, one_move):
    """Behind a call stands another token than the tool's: no mask holds."""
    rows = 2 * len(world.rows.completion) * COPIES
    wrong = teacher_force(jnp.array([[1, 4, 2, 2, 2]] * rows), jnp.full(rows, 2), world.problem.rules)
    assert not np.asarray(wrong.action_mask).any()
    found = one_move(wrong, jax.random.key(0))
    assert (found.notes["acceptance"] == 1).all()
    assert world.counts(found.rollout).sum() == rows
    assert np.isfinite(found.log_reward).all()


@pytest.fixture(scope="module")
def with_calculator():
    """Chains under a reward of 1 wherever they are: results of up to two tokens, and cuts before and behind them."""
    tokenizer, environment, constraint = calculator_world()
    shape = tiny(vocab_size=len(tokenizer))
    model = LanguageModel(shape, random_params(shape, seed=3, scale=0.15), random_lora(shape, seed=4))
    reward = AutomatonReward(np.zeros((1, len(tokenizer)), int), np.zeros(1))
    query = query_of(left_padded([[6, 7, 8], [9, 10]]))
    problem = Problem(reward.prepare(model), query, Rules(constraint, environment))
    return model, problem, compiled(SuffixMCMC(reward, 3), 256)(model, problem, jax.random.key(0))


def test_chains_are_what_rules_and_tool_would_have_written(with_calculator):
    model, problem, found = with_calculator
    rows = found.rollout
    lengths = rows.token_mask.sum(1)
    again = teacher_force(rows.completion, lengths, problem.rules)
    for name in ("completion", "token_mask", "action_mask", "state_mask"):
        np.testing.assert_array_equal(getattr(rows, name), getattr(again, name))
    forced = np.asarray(rows.token_mask & ~rows.action_mask)
    assert (forced[:, 1:] & forced[:, :-1]).any()  # a result of two tokens
    log_pf = jax.jit(functools.partial(score, model))(problem.query.prompt, rows, problem.rules).log_pf
    np.testing.assert_allclose(rows.log_behavior, log_pf, atol=3e-5)
    assert 0 < found.notes["acceptance"].min() < found.notes["acceptance"].max() < 1


def test_bad_settings_are_refused():
    for steps, temperature in ((0, 1.0), (1, 0.0), (1, float("nan"))):
        with pytest.raises(ValueError, match="steps above 0 and a temperature above 0"):
            SuffixMCMC(AutomatonReward(np.zeros((1, 1), int), np.zeros(1)), steps, temperature)
