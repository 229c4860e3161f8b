import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gfn_jax.policy.constraint import make_constraint, masked_log_probs


def choices(constraint, state, may_stop=True):
    """The ids that may be chosen, as a set."""
    allowed = constraint.allowed(jnp.asarray(state), jnp.asarray(may_stop))
    return set(np.asarray(constraint.token_ids)[np.asarray(allowed)].tolist())


def test_only_the_vocabulary_and_the_stop_may_be_chosen():
    constraint = make_constraint(10, 7, 4, token_ids=np.array([5, 2, 9]))
    assert choices(constraint, 0) == {2, 5, 7, 9}
    assert constraint.columns.tolist() == [2, 5, 7, 9]
    assert constraint.column_of[constraint.token_ids].tolist() == [0, 1, 2, 3]
    everything = make_constraint(10, 7, 4)
    assert choices(everything, 0) == set(range(10))
    assert everything.columns is None


def test_the_stop_waits_for_the_shortest_length_and_is_all_that_is_left_at_the_longest():
    constraint = make_constraint(6, 0, 4, min_length=2)
    assert constraint.horizon == 5
    assert [0 in choices(constraint, t) for t in range(5)] == [False, False, True, True, True]
    assert [len(choices(constraint, t)) for t in range(5)] == [5, 5, 6, 6, 1]


def test_the_environment_may_forbid_the_stop_but_not_at_the_end():
    constraint = make_constraint(6, 0, 4, min_length=1)
    assert [0 in choices(constraint, t, may_stop=False) for t in range(5)] == [False] * 4 + [True]


@pytest.mark.parametrize("room", [1, 2, 3])
def test_a_call_is_closed_off_where_its_answer_would_not_fit(room):
    opens = np.zeros(6, bool)
    opens[3] = True
    constraint = make_constraint(6, 0, 5, opens_call=opens, call_room=room)
    for state in range(6):
        columns_left = 5 - (state + 1)  # after the call, before the last column
        assert (3 in choices(constraint, state)) == (columns_left >= room)


def test_rows_are_judged_each_for_itself():
    constraint = make_constraint(4, 0, 3, min_length=1)
    states, may_stop = jnp.asarray([[0, 1, 2, 3]] * 2), jnp.asarray([[True] * 4, [False] * 4])
    stop = constraint.allowed(states, may_stop)[..., 0]
    assert stop.tolist() == [[False, True, True, True], [False, False, False, True]]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"max_length": 0}, "not 0 and 0"),
        ({"min_length": 4}, "not 4 and 3"),
        ({"min_length": -1}, "not -1 and 3"),
        ({"token_ids": np.array([1, 8])}, r"ids 0\.\.8 .* vocabulary of 8"),
        ({"token_ids": np.array([-1, 3])}, r"ids -1\.\.3"),
        ({"stop_id": 8}, "stop 8"),
        ({"token_ids": np.array([], int)}, "Z could not go on"),
        ({"token_ids": np.array([2]), "opens_call": np.arange(8) == 2, "call_room": 1}, "Z could not go on"),
    ],
)
def test_impossible_constraints_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        make_constraint(**{"vocab_size": 8, "stop_id": 0, "max_length": 3} | arguments)


def test_probabilities_are_over_the_allowed_and_their_gradient_is_finite():
    logits = jnp.asarray([[1.0, 2.0, 500.0, -3.0], [4.0, 3.0, 2.0, 1.0], [9.0, 9.0, 9.0, 9.0]])
    allowed = jnp.asarray([[True, True, False, True], [False, False, True, False], [False] * 4])
    columns = jnp.asarray([[1, 3], [2, 2], [0, 1]])
    out, gradient = jax.value_and_grad(lambda x: masked_log_probs(x, allowed, columns)[0, 0])(logits)
    kept = np.asarray(logits[0])[[0, 1, 3]]
    share = np.exp(kept) / np.exp(kept).sum()
    np.testing.assert_allclose(out, np.log(share[1]), rtol=1e-6)
    np.testing.assert_allclose(gradient[0, jnp.asarray([0, 1, 3])], np.array([0, 1, 0]) - share, rtol=1e-5)
    assert gradient[0, 2] == 0
    assert masked_log_probs(logits, allowed, columns)[1].tolist() == [0.0, 0.0]
    total = jax.grad(lambda x: masked_log_probs(x, allowed, columns).sum())(logits)
    assert np.isfinite(total).all()
    np.testing.assert_array_equal(total[1], np.zeros(4))  # what is certain cannot be learnt
