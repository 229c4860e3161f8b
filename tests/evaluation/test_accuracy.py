"""What samples hold beside their vote."""

import numpy as np
import pytest

from gfn_jax.evaluation.accuracy import measure_diversity
from gfn_jax.worlds.arithmetic_answers import right_chain
from gfn_jax.worlds.arithmetic_examples import make_example

CHAINS = [" 9 - 4 = 5, 5 - 8 = -3", " 9 - 8 = 1, 1 - 4 = -3", " 9 - 4 = 5, 4 - 8 = -4", " 5 - 8 = -3"]


class Chains:
    """A task of one question, whose tokens are whole chains."""

    def decode(self, ids):
        return CHAINS[ids[0]]

    def mode(self, split, example, completion):
        return right_chain(make_example("9 - 4 - 8"), completion)


def test_diversity_counts_right_chains():
    """Two right chains, a wrong one, and one that ends right by luck."""
    found = measure_diversity(Chains(), "test", [[[0], [0], [0], [1]], [[2], [3], [2], [3]]])
    assert found["right"] == [100.0, 0.0]
    assert found["distinct"] == [2.0, 0.0]
    assert found["chain_entropy"] == pytest.approx([-(0.75 * np.log(0.75) + 0.25 * np.log(0.25)), 0.0])
