"""The pure functions against loops written from the equation, on rows with tool tokens and masked states."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gfn_jax.objectives import subtb, trajectory
from gfn_jax.types import Weighted

T = 8
TEMPERATURE = 0.7
GARBAGE = (np.nan, -np.inf, np.inf, 1e30)


@pytest.fixture(autouse=True)
def double():
    with jax.enable_x64(True):
        yield


@pytest.fixture(scope="module")
def batch() -> dict[str, np.ndarray]:
    """Letters: a action, t tool token, m action in a state that may not stop, S stop; row 2 is cut off."""
    rows = ["aaaS", "maamttaS", "aattmaaa", "S", "ttaattS", "mmmaS", "aaS", "aaaaS"]
    shape = (len(rows), T)
    token, action, state = (np.zeros(shape, bool) for _ in range(3))
    for row, letters in enumerate(rows):
        for t, letter in enumerate(letters):
            token[row, t], action[row, t], state[row, t] = letter != "S", letter != "t", letter in "aS"
    row_mask = np.ones(len(rows), bool)
    row_mask[6] = False
    rng = np.random.default_rng(0)
    arrays = {name: rng.normal(-3, 2, shape) for name in ("log_reward", "log_pterm", "log_pf")}
    for name, read in (("log_reward", state), ("log_pterm", state), ("log_pf", action)):
        unread = ~read | ~row_mask[:, None]
        arrays[name][unread] = rng.choice(GARBAGE, unread.sum())
    return arrays | {"token_mask": token, "action_mask": action, "state_mask": state, "row_mask": row_mask}


def penalty(residual: float, huber: float | None) -> float:
    if huber is None or abs(residual) <= huber:
        return residual**2
    return 2 * huber * abs(residual) - huber**2


def naive_rows(batch: dict[str, np.ndarray], subtb_lambda: float, huber: float | None = None):
    """Each row's sum over i < j of the residual of DESIGN section 1, term by term, and its weight."""
    totals, weights = np.zeros(len(batch["row_mask"])), np.zeros(len(batch["row_mask"]))
    for row in np.flatnonzero(batch["row_mask"]):
        states = np.flatnonzero(batch["state_mask"][row])
        for rank_i, i in enumerate(states):
            for rank_j, j in list(enumerate(states))[rank_i + 1 :]:
                residual = batch["log_reward"][row, i] / TEMPERATURE + batch["log_pterm"][row, j]
                residual -= batch["log_reward"][row, j] / TEMPERATURE + batch["log_pterm"][row, i]
                for k in range(i, j):
                    if batch["action_mask"][row, k]:
                        residual += batch["log_pf"][row, k]
                weight = subtb_lambda ** (rank_j - rank_i - 1)
                totals[row] += weight * penalty(residual, huber)
                weights[row] += weight
    return totals, weights


def naive_terminal(batch: dict[str, np.ndarray]) -> dict[int, float]:
    """log R/T - log q(trajectory with its stop), of each row that stopped."""
    values = {}
    for row in np.flatnonzero(batch["row_mask"]):
        stop = np.flatnonzero(batch["action_mask"][row] & ~batch["token_mask"][row])
        if len(stop):
            n = stop[0]
            log_q = sum(batch["log_pf"][row, k] for k in range(n) if batch["action_mask"][row, k])
            log_r = batch["log_reward"][row, n] / TEMPERATURE
            values[int(row)] = log_r - log_q - batch["log_pterm"][row, n]
    return values


@jax.jit
def potential_of(batch: dict) -> tuple:
    state_mask, action_mask = batch["state_mask"], batch["action_mask"]
    flow = subtb.log_flow(batch["log_reward"], batch["log_pterm"], TEMPERATURE, state_mask)
    u = subtb.potential(flow, batch["log_pf"], action_mask, state_mask)
    return (u, *subtb.terminal_potential(u, state_mask, action_mask, batch["token_mask"]))


def measure(function, batch: dict, **options) -> Weighted:
    u, _, _ = potential_of(batch)
    return jax.jit(functools.partial(function, **options))(u, batch["state_mask"], batch["row_mask"])


def check(weighted: Weighted, total: float, weight: float) -> None:
    assert weighted.total.dtype == jnp.float64
    np.testing.assert_allclose(weighted.total, total, rtol=1e-12)
    np.testing.assert_allclose(weighted.weight, weight, rtol=1e-12)


@pytest.mark.parametrize(("subtb_lambda", "huber"), [(0.5, None), (0.9, None), (1.0, None), (0.9, 2.0), (1.0, 2.0)])
def test_subtb_is_the_double_loop(batch, subtb_lambda, huber):
    totals, weights = naive_rows(batch, subtb_lambda, huber)
    options = {"subtb_lambda": subtb_lambda, "huber": huber}
    rows = batch["row_mask"].sum()
    paired = weights > 0
    assert 0 < paired.sum() < rows  # "S" has one state, hence no pair
    check(measure(subtb.subtb, batch, normalization="paper_sum", **options), totals.sum(), rows)
    check(measure(subtb.subtb, batch, normalization="released_mean", **options), totals.sum(), weights.sum())
    expected = (totals[paired] / weights[paired]).sum()
    check(measure(subtb.subtb, batch, normalization="row_mean", **options), expected, paired.sum())


@pytest.mark.parametrize("huber", [None, 2.0])
def test_db_is_the_double_loop_over_neighbours(batch, huber):
    totals, weights = naive_rows(batch, 0.0, huber)
    assert weights.sum() == sum(max(n - 1, 0) for n in batch["state_mask"].sum(1)[batch["row_mask"]])
    check(measure(subtb.db, batch, normalization="released_mean", huber=huber), totals.sum(), weights.sum())


def test_full_pair_takes_the_ends(batch):
    total, rows = 0.0, 0
    for row in np.flatnonzero(batch["row_mask"]):
        ends = np.flatnonzero(batch["state_mask"][row])[[0, -1]]
        if ends[0] < ends[1]:
            only = batch["state_mask"] & False
            only[row, ends] = True
            total += naive_rows(batch | {"state_mask": only}, 1.0)[0].sum()
            rows += 1
    check(measure(subtb.full_pair, batch, normalization="released_mean"), total, rows)


def test_tb_is_the_square_at_the_stop(batch):
    u_n = naive_terminal(batch)
    assert len(u_n) == 6  # row 2 is cut off, row 6 dropped
    log_z = np.where(batch["row_mask"], np.linspace(-2.0, 3.0, len(batch["row_mask"])), np.nan)
    _, terminal, finished = potential_of(batch)
    for huber in (None, 4.0):
        expected = sum(penalty(value - log_z[row], huber) for row, value in u_n.items())
        check(trajectory.tb(terminal, finished, batch["row_mask"], log_z, huber=huber), expected, len(u_n))


def test_vargrad_is_the_pooled_unbiased_variance(batch):
    u_n = naive_terminal(batch)
    _, terminal, finished = potential_of(batch)
    queries = [[u_n[row] for row in rows if row in u_n] for rows in (range(4), range(4, 8))]
    assert [len(values) for values in queries] == [3, 3]
    squares = sum(np.var(values, ddof=1) * (len(values) - 1) for values in queries)
    weighted = trajectory.vargrad(terminal, finished, batch["row_mask"], samples_per_query=4)
    check(weighted, squares, 4)
    tight = trajectory.vargrad(terminal, finished, batch["row_mask"], samples_per_query=4, huber=2.0)
    pairs = [(values[a], values[b], 3) for values in queries for a in range(3) for b in range(a)]
    check(tight, sum(penalty(a - b, 2.0) / m for a, b, m in pairs), 4)


def test_vargrad_has_the_gradient_of_tb_with_the_leave_one_out_log_z():
    u_n = jnp.asarray([1.0, -2.0, 0.5, 4.0])
    yes = jnp.ones(4, bool)
    others = (u_n.sum() - u_n) / 3

    def variance(values):
        weighted = trajectory.vargrad(values, yes, yes, samples_per_query=4)
        return weighted.total / weighted.weight

    def balance(values):
        weighted = trajectory.tb(values, yes, yes, others)
        return weighted.total / weighted.weight

    np.testing.assert_allclose(jax.grad(variance)(u_n), jax.grad(balance)(u_n), rtol=1e-12)


def test_a_query_with_one_finished_row_weighs_nothing():
    alone = jnp.asarray([True, False])
    weighted = trajectory.vargrad(jnp.asarray([3.0, 7.0]), alone, jnp.ones(2, bool), samples_per_query=2)
    assert (float(weighted.total), float(weighted.weight)) == (0, 0)


def test_by_hand():
    """u = 0, 1, 3, worked out on paper: squares 1, 4, 9; at lambda 1/2 the long pair counts half."""
    log_pf = jnp.log(jnp.asarray([[0.5, 0.25, 1.0]]))
    log_pterm = jnp.log(jnp.asarray([[0.5, 0.5, 1.0]]))
    log_reward = 2 * (jnp.asarray([[0.0, 1.0, 3.0]]) + jnp.log(jnp.asarray([[0.5, 0.25, 0.125]])))
    all_states = jnp.ones((1, 3), bool)
    flow = subtb.log_flow(log_reward, log_pterm, 2.0, all_states)
    u = subtb.potential(flow, log_pf, all_states, all_states)
    np.testing.assert_allclose(u, [[0, 1, 3]], atol=1e-15)
    for subtb_lambda, total, weight in ((1.0, 14, 3), (0.5, 9.5, 2.5), (0.0, 5, 2)):
        options = {"normalization": "released_mean", "subtb_lambda": subtb_lambda}
        check(subtb.subtb(u, all_states, jnp.ones(1, bool), **options), total, weight)


def test_closed_form_is_the_broadcast_form(batch):
    alive = batch["state_mask"] & batch["row_mask"][:, None]
    u = jnp.where(alive, potential_of(batch)[0], jnp.nan)
    weight = (subtb.pair_gaps(alive) > 0).astype(u.dtype)
    for closed, broadcast in zip(subtb.all_pairs(u, alive), subtb.pair_sums(u, weight), strict=True):
        np.testing.assert_allclose(closed, broadcast, rtol=1e-12)
    gradients = [
        jax.grad(lambda u: subtb.all_pairs(u, alive)[0].sum())(u),
        jax.grad(lambda u: subtb.pair_sums(u, weight)[0].sum())(u),
    ]
    np.testing.assert_allclose(*gradients, rtol=1e-12, atol=1e-12)


def test_closed_form_keeps_its_digits_far_from_zero():
    u = jnp.asarray([[0.0, 0.25, 0.5, 1.0]], jnp.float32) + 4096
    total, _ = subtb.all_pairs(u, jnp.ones((1, 4), bool))
    assert total.dtype == jnp.float32
    np.testing.assert_allclose(total, 2.1875, rtol=1e-6)


def test_huber_is_smooth_where_it_turns():
    value, slope = jax.vmap(jax.value_and_grad(lambda r: subtb.penalty(r, 2.0)))(
        jnp.asarray([-5.0, -2.0, 0.0, 1.0, 2.0, 5.0])
    )
    np.testing.assert_allclose(value, [16, 4, 0, 1, 4, 16])
    np.testing.assert_allclose(slope, [-4, -4, 0, 2, 4, 4])


@pytest.mark.parametrize("options", [{"subtb_lambda": 1.0}, {"subtb_lambda": 0.9}, {"huber": 2.0}])
def test_gradients_are_finite_and_zero_where_nothing_is_read(batch, options):
    def loss(log_pf, log_pterm):
        u, terminal, finished = potential_of(batch | {"log_pf": log_pf, "log_pterm": log_pterm})
        rows = batch["row_mask"]
        pairs = subtb.subtb(u, batch["state_mask"], rows, normalization="row_mean", **options)
        ends = trajectory.tb(terminal, finished, rows, jnp.where(rows, 0.0, jnp.nan), huber=options.get("huber"))
        group = trajectory.vargrad(terminal, finished, rows, samples_per_query=4, huber=options.get("huber"))
        return pairs.total + ends.total + group.total

    by_pf, by_pterm = jax.jit(jax.grad(loss, argnums=(0, 1)))(batch["log_pf"], batch["log_pterm"])
    assert np.isfinite(by_pf).all()
    assert np.isfinite(by_pterm).all()
    read = batch["row_mask"][:, None]
    assert not np.any(by_pf[~(batch["action_mask"] & read)])
    assert not np.any(by_pterm[~(batch["state_mask"] & read)])
    assert np.array_equal(np.any(by_pterm != 0, axis=1), batch["row_mask"])


def test_garbage_is_masked_before_arithmetic(batch):
    """On numpy arrays, op by op: XLA turns a product with a mask into a select, and so forgives NaN * 0."""
    state_mask = batch["state_mask"] & batch["row_mask"][:, None]
    flow = subtb.log_flow(batch["log_reward"], batch["log_pterm"], TEMPERATURE, state_mask)
    u = subtb.potential(flow, batch["log_pf"], batch["action_mask"] & batch["row_mask"][:, None], state_mask)
    for array in (flow, u):
        assert np.array_equal(array != 0, state_mask)
        assert np.isfinite(array).all()


def test_unknown_normalization_is_named(batch):
    with pytest.raises(ValueError, match="'mean'; it is one of paper_sum, released_mean, row_mean"):
        measure(subtb.db, batch, normalization="mean")
