"""FlowRL, contrastive pairs, rooted prefixes and windows against their equations, in float64, by brute force."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from letters import STATES, TEMPERATURE, changed, every_trajectory, exact_policy, random_log_reward, tempered

from gfn_jax.objectives import OBJECTIVES, Objective
from gfn_jax.types import PolicyScores

ROWS = len(STATES)
ACTIONS = {z: len(z) + 1 for z in STATES}  # the stop included


@pytest.fixture(autouse=True)
def double():
    with jax.enable_x64(True):
        yield


@pytest.fixture(scope="module")
def log_reward() -> dict[str, float]:
    return random_log_reward()


def value_and_gradient(name, trajectory, scores, log_z, behavior=(None, None), **options):
    """The mean of one term over all rows, and its gradient by log_pf, log_pterm and log Z."""
    options = {"normalization": "row_mean", "samples_per_query": ROWS, **options}
    objective = Objective(((name, 1.0),), **options)
    rows = jnp.ones(ROWS, bool)
    weights = objective.weights(trajectory, TEMPERATURE, rows)

    @jax.jit
    def both(scores, log_z):
        def loss(scores, log_z):
            return objective.loss(
                objective.measure(trajectory, scores, TEMPERATURE, rows, jnp.full(ROWS, log_z), *behavior), weights
            )

        return jax.value_and_grad(loss, argnums=(0, 1))(scores, log_z)

    return both(scores, log_z)


def flat(tree) -> np.ndarray:
    """All numbers; what a mask leaves out has no gradient, be it NaN itself."""
    return np.concatenate([np.ravel(x) for x in jax.tree.leaves(tree)])


@pytest.mark.parametrize("name", [name for name in OBJECTIVES if name != "flowrl"])
@pytest.mark.parametrize("options", [{}, {"window": 1}, {"contrastive_margin": 1.5}, {"huber": 1.0}])
def test_at_the_posterior_there_is_no_loss_and_no_gradient(log_reward, name, options):
    policy, log_z = exact_policy(tempered(log_reward))
    loss, gradient = value_and_gradient(name, *every_trajectory(log_reward, policy), log_z, **options)
    assert loss < 1e-24
    assert np.abs(flat(gradient)).max() < 1e-12


def root(log_mass: dict[str, float]) -> float:
    """The log z at which the sum of e^log_mass z^(-|Z|) is 1, by bisection."""
    low, high = -100.0, 100.0
    for _ in range(100):
        middle = (low + high) / 2
        total = np.logaddexp.reduce([log_mass[z] - ACTIONS[z] * middle for z in STATES])
        low, high = (middle, high) if total > 0 else (low, middle)
    return middle


def test_flowrl_vanishes_at_its_own_optimum_which_is_no_posterior(log_reward):
    log_mass = tempered(log_reward)
    log_z = root(log_mass)
    tilted, normaliser = exact_policy({z: log_mass[z] - ACTIONS[z] * log_z for z in STATES})
    assert abs(normaliser) < 1e-12
    loss, gradient = value_and_gradient("flowrl", *every_trajectory(log_reward, tilted), log_z)
    assert loss < 1e-24
    assert np.abs(flat(gradient)).max() < 1e-12
    posterior, log_sum = exact_policy(log_mass)
    assert abs(log_sum - log_z) > 0.1
    for other in (log_sum, log_z):
        assert value_and_gradient("flowrl", *every_trajectory(log_reward, posterior), other)[0] > 1e-3


def test_flowrl_is_the_papers_loss(log_reward):
    """Of R = p_ref exp(|Z| beta r), spelled in means over tokens, with its clipped weights held still."""
    rng, beta, clip, log_z = np.random.default_rng(0), 15.0, 0.2, 0.3
    reference, _ = exact_policy({z: rng.normal() for z in STATES})
    policy, _ = exact_policy({z: rng.normal() for z in STATES})
    reward = {z: rng.uniform() for z in STATES}
    log_p = {z: [reference[z[:t]][a] for t, a in enumerate([*z, ""])] for z in STATES}
    mixed = {z: TEMPERATURE * (sum(log_p[z]) + ACTIONS[z] * beta * reward[z]) for z in STATES}
    trajectory, scores = every_trajectory(mixed, policy)
    log_behavior, known = rng.normal(-4, 1, ROWS), np.arange(ROWS) % 3 > 0
    found, gradient = value_and_gradient("flowrl", trajectory, scores, log_z, (log_behavior, known), ratio_clip=clip)
    losses, unclipped = [], 0
    for row, z in enumerate(STATES):
        log_q = [policy[z[:t]][a] for t, a in enumerate([*z, ""])]
        ratio = np.exp(sum(log_q) - log_behavior[row]) if known[row] else 1.0
        unclipped += known[row] and abs(ratio - 1) < clip
        residual = log_z + np.mean(log_q) - beta * reward[z] - np.mean(log_p[z])
        losses.append(np.clip(ratio, 1 - clip, 1 + clip) * residual**2)
    assert unclipped
    np.testing.assert_allclose(found, np.mean(losses), rtol=1e-12)
    # The weights are constants: a step along the gradient that leaves them what they are changes the loss as it says.
    log_ratio = np.where(known, np.nansum(scores.log_pf, axis=1) - log_behavior, 0)
    moved = PolicyScores(scores.log_pf + 1e-6 * np.isfinite(scores.log_pf), scores.log_pterm)
    behind = np.nansum(moved.log_pf, axis=1) - log_ratio
    up, _ = value_and_gradient("flowrl", trajectory, moved, log_z, (behind, known), ratio_clip=clip)
    np.testing.assert_allclose((up - found) / 1e-6, np.sum(gradient[0].log_pf), rtol=1e-4)


def test_contrastive_without_a_margin_is_vargrad_up_to_its_normaliser(log_reward):
    policy, _ = exact_policy(random_mass())
    rows = every_trajectory(log_reward, policy)
    pairs, by_pairs = value_and_gradient("contrastive", *rows, 0.0)
    variance, by_variance = value_and_gradient("vargrad", *rows, 0.0)
    np.testing.assert_allclose(pairs, 2 * variance, rtol=1e-12)
    np.testing.assert_allclose(flat(by_pairs), 2 * flat(by_variance), rtol=1e-9, atol=1e-12)


def random_mass() -> dict[str, float]:
    rng = np.random.default_rng(7)
    return {z: rng.normal() for z in STATES}


def test_a_margin_leaves_out_pairs_of_nearly_equal_rewards(log_reward):
    margin, policy = 2.0, exact_policy(random_mass())[0]
    trajectory, scores = every_trajectory(log_reward, policy)
    mass = tempered(log_reward)
    u = {z: mass[z] - sum(policy[z[:t]][a] for t, a in enumerate([*z, ""])) for z in STATES}
    kept = [(a, b) for a, b in itertools.combinations(STATES, 2) if abs(mass[a] - mass[b]) >= margin]
    assert 0 < len(kept) < ROWS * (ROWS - 1) / 2
    found, _ = value_and_gradient("contrastive", trajectory, scores, 0.0, contrastive_margin=margin)
    np.testing.assert_allclose(found, np.mean([(u[a] - u[b]) ** 2 for a, b in kept]), rtol=1e-12)


def test_of_a_rooted_prefix_the_residual_is_tbs_and_the_gradient_its_own(log_reward):
    """Each action's gradient is TB's times the number of actions from it on."""
    policy, log_z = exact_policy(random_mass())[0], 1.0
    trajectory, scores = every_trajectory(log_reward, policy)
    tb, by_tb = value_and_gradient("tb", trajectory, scores, log_z)
    raptb, by_raptb = value_and_gradient("raptb", trajectory, scores, log_z)
    np.testing.assert_allclose(raptb, tb, rtol=1e-12)  # means over prefixes of one number are that number
    alive, stop = np.asarray(trajectory.rollout.action_mask), np.asarray(trajectory.rollout.stop)
    left = np.cumsum(alive[:, ::-1], axis=1)[:, ::-1] / alive.sum(axis=1, keepdims=True)

    def by_action(scores):  # at its last state, log_pf and log_pterm are one number: TB reads this, we read that
        return np.where(alive, scores.log_pf + np.where(stop, scores.log_pterm, 0), 0)

    np.testing.assert_allclose(by_action(by_raptb[0]), by_action(by_tb[0]) * left, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(by_raptb[1], by_tb[1], rtol=1e-12)


@pytest.mark.parametrize("subtb_lambda", [1.0, 0.5])
def test_windows_go_from_detailed_balance_to_all_pairs(log_reward, subtb_lambda):
    policy = exact_policy(random_mass())[0]
    rows = every_trajectory(log_reward, policy)

    def subtb(window):
        return value_and_gradient("subtb", *rows, 0.0, window=window, subtb_lambda=subtb_lambda)

    def same(a, b):
        jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-9, atol=1e-12), a, b)

    same(subtb(1), value_and_gradient("db", *rows, 0.0))
    same(subtb(3), subtb(None))
    assert not np.isclose(subtb(2)[0], subtb(None)[0])


@pytest.mark.parametrize("name", ["flowrl", "contrastive", "raptb"])
def test_whichever_state_is_off_the_loss_sees_it(log_reward, name):
    mass = tempered(log_reward)
    log_z = root(mass) if name == "flowrl" else exact_policy(mass)[1]
    policy, _ = exact_policy({z: mass[z] - ACTIONS[z] * log_z * (name == "flowrl") for z in STATES})
    for z in ("", "a", "bb"):
        off = every_trajectory(log_reward, changed(policy, z, "", 0.05))
        assert value_and_gradient(name, *off, log_z, contrastive_margin=1.0)[0] > 1e-9
