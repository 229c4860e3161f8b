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
    TOKENIZER,
    TOKENS,
    check_calls,
    chosen_tokens,
    next_tokens,
)
from tiny_worlds import right_padded

from gfn_jax.samplers.cot_decoding import CoTDecoding, LastTokens, NumberBehind
from gfn_jax.samplers.votes import majority
from gfn_jax.text.tokens import encode_after
from gfn_jax.types import Rollout


def run(sampler, model, problem, budget):
    return jax.jit(lambda model, problem: sampler.sample(model, problem, budget, jax.random.key(0)))(model, problem)


def paths(query):
    """Each path of an enumerable world, and its confidence in two tokens, by falling probability of the first."""
    out = []
    for first in sorted(TOKENS, key=next_tokens(query, ()).__getitem__, reverse=True):
        z, margins = (), []
        token = first
        while token != STOP:
            following = sorted(next_tokens(query, z).values(), reverse=True)
            margins.append(following[0] - following[1])
            z = (*z, token)
            following = next_tokens(query, z)
            token = max(following, key=following.__getitem__)
        out.append((z, np.mean(margins[-2:])))
    return out


@pytest.mark.parametrize("aggregate", [False, True])
def test_paths_branch_at_the_first_token_and_the_surest_is_taken(aggregate):
    weighed = run(CoTDecoding(LastTokens(2), aggregate), POLICY, PROBLEM, 6)  # four tokens may come first
    completion = np.asarray(weighed.rollout.completion).reshape(2, 6, 4).tolist()
    log_weight = np.asarray(weighed.log_weight).reshape(2, 6)
    lengths = np.asarray(weighed.rollout.token_mask).sum(1).reshape(2, 6)
    for query in range(2):
        expected = paths(query)
        assert completion[query][:4] == [[*z, *[STOP] * (4 - len(z))] for z, _ in expected]
        sure = np.array([confidence for _, confidence in expected])
        np.testing.assert_allclose(weighed.notes["confidence"][query], sure.max(), atol=1e-4)
        counted = np.exp(log_weight[query])
        assert not counted[4:].any()
        one = np.arange(4) == sure.argmax()
        np.testing.assert_allclose(counted[:4], sure if aggregate else one, atol=1e-4)
        answer = majority([tuple(z) for z in completion[query]], log_weight[query])
        assert answer == tuple(completion[query][sure.argmax()])
    assert len({tuple(log_weight[query] > -1) for query in range(2)}) == 2 or aggregate  # not always the first path
    np.testing.assert_array_equal(weighed.generated, (lengths + 1).sum(1))
    np.testing.assert_array_equal(weighed.scored, lengths.sum(1))


def test_the_tool_is_obeyed_and_its_result_can_be_the_answer():
    span = NumberBehind.from_tokenizer(TOKENIZER)
    weighed = run(CoTDecoding(span, aggregate=True), CALLING, CALLS, 6)
    check_calls(weighed)
    np.testing.assert_array_equal(weighed.generated, chosen_tokens(weighed.rollout))
    answer = np.asarray(span(weighed.rollout))
    assert (answer & ~np.asarray(weighed.rollout.action_mask)).any()  # a token that the tool wrote
    np.testing.assert_array_equal(np.isfinite(weighed.log_weight), answer.any(1))
    assert (np.asarray(weighed.log_weight) <= 1e-5).all()


def test_the_answer_is_the_number_behind_the_last_equals_sign():
    expected = {
        " 1 + 30 = 31": " 31",
        " 1 + 30 = 31, 31 - 60 = -29": " -29",
        " 60 + 30 = 90": " 90",
        " 1 + 1": "",
        " 1 =": "",
        " = 1 - 30": " 1",
        " 1 - 60 = - 30, 1": " - 30",
    }
    rows = right_padded([encode_after(TOKENIZER, "", text) for text in expected])
    nothing = jnp.zeros_like(rows.mask)
    rollout = Rollout(rows.ids, rows.mask, nothing, nothing, jnp.zeros(rows.ids.shape))
    answer = np.asarray(NumberBehind.from_tokenizer(TOKENIZER)(rollout))
    read = [TOKENIZER.decode(ids[of].tolist()) for ids, of in zip(np.asarray(rows.ids), answer)]
    assert read == list(expected.values())


def test_spans_that_cannot_be_are_refused():
    with pytest.raises(ValueError, match="at least 1"):
        LastTokens(0)
    with pytest.raises(ValueError, match="ends in"):
        NumberBehind.from_tokenizer(TOKENIZER, mark="%")
