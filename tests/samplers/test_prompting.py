import jax
import jax.numpy as jnp
import numpy as np
import pytest
from decoding_worlds import POLICY
from tiny_worlds import left_padded, query_of

from gfn_jax.models import decoder
from gfn_jax.samplers.prompting import with_cue, with_demonstrations

PROMPTS = [[2, 5, 1], [3]]
QUERY = query_of(left_padded(PROMPTS))
last_hidden = jax.jit(lambda tokens: decoder.prefill(POLICY, tokens)[0][:, -1])


@pytest.mark.parametrize(
    ("made", "plain"),
    [
        (with_cue(QUERY, [4, 0]), [[*row, 4, 0] for row in PROMPTS]),
        (with_demonstrations(QUERY, left_padded([[6, 4, 4]])), [[6, 4, 4, *row] for row in PROMPTS]),
        (
            with_cue(with_demonstrations(QUERY, left_padded([[6, 4, 4]], 4)), [4, 0]),
            [[6, 4, 4, *row, 4, 0] for row in PROMPTS],
        ),
    ],
    ids=["cue", "demonstrations", "both"],
)
def test_the_model_reads_one_text(made, plain):
    rows = [ids[mask].tolist() for ids, mask in zip(np.asarray(made.prompt.ids), np.asarray(made.prompt.mask))]
    assert rows == plain
    np.testing.assert_allclose(last_hidden(made.prompt), last_hidden(left_padded(plain)), atol=2e-5)
    assert made.context is QUERY.context
    assert made.answer is QUERY.answer


def test_demonstrations_of_several_rows_are_refused():
    with pytest.raises(ValueError, match="one row"):
        with_demonstrations(QUERY, left_padded([[1], [2]]))
    assert jnp.array_equal(with_cue(QUERY, []).prompt.ids, QUERY.prompt.ids)
