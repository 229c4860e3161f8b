"""An enumerable world in which the right q is known, and the bookkeeping of sums and weights."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from letters import LETTERS, LONGEST, STATES, TEMPERATURE, changed, every_trajectory, exact_policy, random_log_reward
from letters import tempered as tempered_by

from gfn_jax.objectives import OBJECTIVES, Objective, prefixes, subtb
from gfn_jax.objectives import trajectory as whole
from gfn_jax.types import PolicyScores, Rollout, Trajectory

# FlowRL's optimum is another: test_relatives.py.
AT_THE_POSTERIOR = tuple(name for name in OBJECTIVES if name != "flowrl")
ONE_OF_EACH = {"samples_per_query": len(STATES), "normalization": "row_mean"}


@pytest.fixture(autouse=True)
def double():
    with jax.enable_x64(True):
        yield


@pytest.fixture(scope="module")
def log_reward() -> dict[str, float]:
    return random_log_reward()


def losses(trajectory: Trajectory, scores: PolicyScores, log_z: float, **options) -> dict[str, float]:
    objective = Objective(tuple((name, 1.0) for name in AT_THE_POSTERIOR), **options)
    rows = len(STATES)

    @jax.jit
    def means(trajectory, scores):
        measured = objective.measure(trajectory, scores, TEMPERATURE, jnp.ones(rows, bool), jnp.full(rows, log_z))
        return {name: term.total / term.weight for name, term in measured.items()}

    return {name: float(value) for name, value in means(trajectory, scores).items()}


@pytest.mark.parametrize(
    "options", [{}, {"subtb_lambda": 0.9}, {"huber": 1.0}, {"window": 2}, {"contrastive_margin": 2.0}]
)
def test_zero_where_q_is_proportional_to_r(log_reward, options):
    policy, log_z = exact_policy(tempered_by(log_reward))
    weights = {z: np.exp(log_reward[z] / TEMPERATURE) for z in STATES}
    q = {z: np.exp(sum(policy[z[:t]][a] for t, a in enumerate([*z, ""]))) for z in STATES}
    np.testing.assert_allclose(list(q.values()), np.array(list(weights.values())) / sum(weights.values()))
    for name, loss in losses(*every_trajectory(log_reward, policy), log_z, **ONE_OF_EACH, **options).items():
        assert abs(loss) < 1e-24, name


def test_positive_where_q_is_not_proportional_to_r(log_reward):
    """Whichever single state's policy is off, however slightly, every objective sees it."""
    policy, log_z = exact_policy(tempered_by(log_reward))
    stacked = []
    inner = [z for z in STATES if len(z) < LONGEST]
    for z, action in itertools.product(inner, ["", *LETTERS]):
        stacked.append(every_trajectory(log_reward, changed(policy, z, action, 0.05))[1])
    trajectory, _ = every_trajectory(log_reward, policy)
    objective = Objective(tuple((name, 1.0) for name in OBJECTIVES), **ONE_OF_EACH)
    rows = jnp.ones(len(STATES), bool)

    @jax.jit
    @jax.vmap
    def totals(scores):
        log_zs = jnp.full(len(STATES), log_z)
        return {n: w.total for n, w in objective.measure(trajectory, scores, TEMPERATURE, rows, log_zs).items()}

    measured = totals(jax.tree.map(lambda *leaves: np.stack(leaves), *stacked))
    for name, total in measured.items():
        assert total.shape == (len(inner) * 3,)
        assert np.all(total > 1e-9), name


def test_tb_is_positive_for_a_wrong_log_z(log_reward):
    policy, log_z = exact_policy(tempered_by(log_reward))
    wrong = losses(*every_trajectory(log_reward, policy), log_z + 0.5, **ONE_OF_EACH)
    np.testing.assert_allclose(wrong["tb"], 0.25)
    assert wrong["vargrad"] < 1e-24


@pytest.fixture(scope="module")
def batch() -> tuple[Trajectory, PolicyScores, np.ndarray]:
    """Four queries of three rows: tool tokens, cut rows, an empty row, a query without a finished row."""
    rng = np.random.default_rng(1)
    rows = ["aaS", "ttaS", "S", "aaaaa", "maaS", "aS", "aaaaa", "attaa", "", "ataS", "aaaaS", "mmmmS"]
    shape = (len(rows), 5)
    token, action, state = (np.zeros(shape, bool) for _ in range(3))
    for row, letters in enumerate(rows):
        for t, letter in enumerate(letters):
            token[row, t], action[row, t], state[row, t] = letter != "S", letter != "t", letter in "aS"
    completion = np.array([[ord(letter) for letter in letters.ljust(5)] for letters in rows])
    rollout = Rollout(completion, token, action, state, np.zeros(shape))
    trajectory = Trajectory(rollout, np.where(state, rng.normal(-3, 2, shape), np.nan))
    scores = PolicyScores(
        np.where(action, rng.normal(-1, 1, shape), -np.inf),
        np.where(state, rng.normal(-1, 1, shape), -np.inf),
    )
    row_mask = np.ones(len(rows), bool)
    row_mask[[1, 8]] = False
    return trajectory, scores, row_mask


OTHERWISE = {"subtb_lambda": 0.5, "huber": 1.0, "window": 1, "contrastive_margin": 1.0}


def all_terms(normalization: str, **options) -> Objective:
    terms = tuple((name, 0.5 + i) for i, name in enumerate(OBJECTIVES))
    return Objective(terms, normalization, samples_per_query=3, **options)


@pytest.mark.parametrize(
    ("normalization", "options"),
    [
        *((name, {}) for name in subtb.NORMALIZATIONS),
        ("row_mean", {"subtb_lambda": 0.5, "huber": 1.0, "window": 1, "contrastive_margin": 1.0}),
    ],
)
def test_micro_batches_add_up(batch, normalization, options):
    trajectory, scores, row_mask = batch
    objective = all_terms(normalization, **options)
    log_z = np.linspace(-1, 1, 12)
    weights = jax.jit(objective.weights)(trajectory, TEMPERATURE, row_mask)

    def loss(log_pf, rest):
        trajectory, log_pterm, row_mask, log_z, *behavior = rest
        scores = PolicyScores(log_pf, log_pterm)
        measured = objective.measure(trajectory, scores, TEMPERATURE, row_mask, log_z, *behavior)
        return objective.loss(measured, weights), measured

    rest = (trajectory, scores.log_pterm, row_mask, log_z, np.linspace(-6, 2, 12), np.arange(12) % 3 > 0)
    value_and_grad = jax.jit(jax.value_and_grad(loss, has_aux=True))
    (full, measured), gradient = value_and_grad(scores.log_pf, rest)
    assert np.isfinite(gradient).all()
    parts = [jax.tree.map(lambda x, i=i: x[i : i + 6], (scores.log_pf, rest)) for i in (0, 6)]
    summed = jax.tree.map(lambda *x: sum(x), *(value_and_grad(*part)[0] for part in parts))
    np.testing.assert_allclose(summed[0], full, rtol=1e-12)
    gradients = np.concatenate([value_and_grad(*part)[1] for part in parts])
    np.testing.assert_allclose(gradients, gradient, rtol=1e-12, atol=1e-15)
    for name in OBJECTIVES:
        np.testing.assert_allclose(summed[1][name].weight, weights[name], rtol=1e-12)
        np.testing.assert_allclose(summed[1][name].total, measured[name].total, rtol=1e-12)
    expected = sum(c * measured[name].total / weights[name] for name, c in objective.terms)
    np.testing.assert_allclose(full, expected, rtol=1e-12)


def test_weights_count_what_is_there(batch):
    trajectory, _, row_mask = batch
    weights = all_terms("paper_sum").weights(trajectory, TEMPERATURE, row_mask)
    assert {name: float(w) for name, w in weights.items()} == {
        "subtb": 10,
        "db": 10,
        "full_pair": 10,
        "tb": 7,
        "flowrl": 7,
        "vargrad": 4,  # 2, 2, 0 and 3 finished rows
        "contrastive": 5,
        "raptb": 10,
    }


def test_settings_reach_the_terms(batch):
    trajectory, scores, row_mask = batch
    rollout, log_z = trajectory.rollout, jnp.linspace(-1, 1, 12)
    log_behavior, known = jnp.linspace(-6, 2, 12), jnp.arange(12) % 3 > 0
    settings = {"subtb_lambda": 0.5, "window": 2, "huber": 1.0, "ratio_clip": 0.4, "contrastive_margin": 1.0}
    measured = all_terms("row_mean", **settings).measure(
        trajectory, scores, TEMPERATURE, row_mask, log_z, log_behavior, known
    )
    states, actions = rollout.state_mask, rollout.action_mask
    flow = subtb.log_flow(trajectory.log_reward, scores.log_pterm, TEMPERATURE, states)
    u = subtb.potential(flow, scores.log_pf, actions, states)
    u_n, finished = subtb.terminal_potential(u, states, actions, rollout.token_mask)
    log_reward = np.where(rollout.stop & row_mask[:, None], trajectory.log_reward, 0).sum(1) / TEMPERATURE
    log_ratio = np.where(known, np.where(actions, scores.log_pf, 0).sum(1) - log_behavior, 0)
    pairs, options = (u, states, row_mask), {"normalization": "row_mean", "huber": 1.0}
    rows, queries = (u_n, finished, row_mask), {"samples_per_query": 3, "huber": 1.0}
    expected = {
        "subtb": subtb.subtb(*pairs, subtb_lambda=0.5, window=2, **options),
        "db": subtb.db(*pairs, **options),
        "full_pair": subtb.full_pair(*pairs, **options),
        "tb": whole.tb(*rows, log_z, huber=1.0),
        "flowrl": whole.flowrl(*rows, log_z, actions.sum(1) * 1.0, log_ratio, ratio_clip=0.4, huber=1.0),
        "vargrad": whole.vargrad(*rows, **queries),
        "contrastive": whole.contrastive(*rows, log_reward, margin=1.0, **queries),
        "raptb": prefixes.raptb(*rows, log_z, scores.log_pf, actions, normalization="row_mean", huber=1.0),
    }
    for name, found in jax.tree.map(float, measured).items():
        assert (found.total, found.weight) == pytest.approx(jax.tree.leaves(jax.tree.map(float, expected[name])))


def test_a_dropped_row_changes_nothing(batch):
    trajectory, scores, row_mask = batch
    objective = all_terms("released_mean")
    measure = jax.jit(objective.measure)
    before = measure(trajectory, scores, TEMPERATURE, row_mask, jnp.zeros(12))
    keep = row_mask[:, None]
    garbage = trajectory.replace(log_reward=np.where(keep, trajectory.log_reward, np.nan))
    infinite = jax.tree.map(lambda x: np.where(keep, x, -np.inf), scores)
    after = measure(garbage, infinite, TEMPERATURE, row_mask, jnp.where(row_mask, 0.0, jnp.nan))
    assert jax.tree.map(float, before) == jax.tree.map(float, after)
    assert measure(trajectory, scores, TEMPERATURE, row_mask | True, jnp.zeros(12))["tb"].weight == 8


def test_an_empty_batch_is_a_loss_of_zero(batch):
    trajectory, scores, row_mask = batch
    objective = all_terms("row_mean")
    nothing = row_mask & False
    weights = objective.weights(trajectory, TEMPERATURE, nothing)
    assert not any(weights.values())
    assert objective.loss(objective.measure(trajectory, scores, 1.0, nothing, jnp.zeros(12)), weights) == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"terms": (("subtv", 1.0),)},
            "'subtv' is unknown; there are subtb, db, full_pair, tb, flowrl, vargrad, contrastive, raptb",
        ),
        ({"terms": ()}, "at least one is needed"),
        ({"terms": (("db", 1.0), ("db", 2.0))}, "each at most once"),
        ({"normalization": "mean"}, "it is one of paper_sum, released_mean, row_mean"),
        ({"subtb_lambda": -0.1}, "must be at least 0"),
        ({"huber": 0.0}, "must be positive"),
        ({"terms": (("vargrad", 1.0),)}, "samples_per_query is 1"),
        ({"terms": (("contrastive", 1.0),)}, "samples_per_query is 1"),
        ({"window": 0}, "window is 0; it must be at least 1"),
        ({"log_z": "known"}, "'known'; it is one of learnt, amortised, frozen"),
        ({"log_z_samples": 0}, "must be at least 1"),
        ({"log_z": "frozen", "terms": (("flowrl", 1.0),)}, "not the log Z that flowrl needs"),
        ({"contrastive_margin": -1.0}, "must be at least 0"),
        ({"smoothing_steps": -1}, "must be at least 0"),
        ({"ratio_clip": 2.0}, "must be from 0 to 1"),
    ],
)
def test_errors_name_what_was_received_and_what_is_allowed(arguments, message):
    with pytest.raises(ValueError, match=message):
        Objective(**({"terms": (("subtb", 1.0),), "normalization": "paper_sum"} | arguments))


@pytest.mark.parametrize("name", ["tb", "flowrl", "raptb"])
def test_what_reads_log_z_asks_for_it(batch, name):
    trajectory, scores, row_mask = batch
    with pytest.raises(ValueError, match="need log_z"):
        Objective(((name, 1.0),), "paper_sum").measure(trajectory, scores, 1.0, row_mask)
