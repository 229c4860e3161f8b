import sys

import jax.numpy as jnp
import numpy as np
import pytest
from tiny_worlds import random_params, tiny

from gfn_jax.evaluation.diversity import SentenceEncoder, distinct, mean_hidden_states, mean_pairwise_distance
from gfn_jax.models.language_model import LanguageModel
from gfn_jax.types import Tokens


def test_the_distance_is_one_minus_cosine_over_all_pairs():
    e = np.random.default_rng(0).normal(size=(3, 4, 5))
    expected = []
    for rows in e:
        pairs = [(a, b) for i, a in enumerate(rows) for b in rows[i + 1 :]]
        expected.append(np.mean([1 - a @ b / np.linalg.norm(a) / np.linalg.norm(b) for a, b in pairs]))
    np.testing.assert_allclose(mean_pairwise_distance(e), expected)
    np.testing.assert_allclose(mean_pairwise_distance(np.ones((2, 3, 4))), 0, atol=1e-12)
    assert mean_pairwise_distance(e[:, :1]).tolist() == [0, 0, 0]


def test_distinct_counts_over_all_completions_of_a_prompt():
    rows = [[1, 2, 3], [1, 2], [4]]
    assert distinct(rows, 1) == 4 / 6
    assert distinct(rows, 2) == 2 / 3
    assert distinct([[1], []], 2) == 0


def test_padding_and_what_is_not_pooled_are_no_part_of_the_mean():
    model = LanguageModel(tiny(), random_params(tiny()))
    ids = jnp.array([[7, 1, 2, 3, 9, 9], [7, 4, 5, 9, 9, 9]])
    length = jnp.array([4, 3])
    mask = jnp.arange(6) < length[:, None]
    pooled = jnp.arange(6) >= 1
    whole = mean_hidden_states(model, Tokens(ids, mask), jnp.broadcast_to(pooled, ids.shape))
    other = Tokens(jnp.where(mask, ids, 0), mask)
    np.testing.assert_allclose(whole, mean_hidden_states(model, other, mask & pooled), atol=1e-6)
    last = mean_hidden_states(model, Tokens(ids, mask), jnp.arange(6) == length[:, None] - 1)
    assert np.abs(np.asarray(whole - last)).max() > 0.1


def test_a_missing_encoder_package_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    with pytest.raises(ImportError, match="pip install sentence-transformers"):
        SentenceEncoder("nowhere")
