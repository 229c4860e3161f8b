import math

import jax
import jax.numpy as jnp
import numpy as np
from tiny_worlds import random_params, tiny

from gfn_jax.evaluation.perplexity import make_perplexity
from gfn_jax.models import decoder
from gfn_jax.models.language_model import LanguageModel
from gfn_jax.policy.likelihood import next_token_loss
from gfn_jax.types import Tokens

MODEL = tiny(num_layers=1)


def test_the_last_pass_counts_only_the_documents_that_are_left():
    rng = np.random.default_rng(0)
    mask = jnp.asarray(np.arange(6) < np.array([6, 4, 6, 2, 5])[:, None])
    documents = Tokens(jnp.asarray(rng.integers(0, 23, (5, 6))), mask)
    model = LanguageModel(MODEL, random_params(MODEL))
    measured = jax.jit(next_token_loss)(model, documents, mask)
    expected = float(measured.total / measured.weight)
    for batch in (2, 8):
        found = make_perplexity(documents, mask, batch)(model)
        assert math.isclose(found["nll"], expected, rel_tol=1e-5)
        assert math.isclose(found["perplexity"], math.exp(expected), rel_tol=1e-4)


def test_a_few_columns_of_logits_at_once_are_all_of_them(monkeypatch):
    documents = Tokens(jnp.asarray(np.random.default_rng(1).integers(0, 23, (3, 7))), jnp.ones((3, 7), bool))

    def loss(params):
        return next_token_loss(LanguageModel(MODEL, params), documents, documents.mask).total

    whole = jax.value_and_grad(loss)(random_params(MODEL))
    monkeypatch.setattr(decoder, "LOGITS_AT_ONCE", 3 * 4 * 23)  # four of six columns, then two and padding
    part = jax.value_and_grad(loss)(random_params(MODEL))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5 * np.abs(b).max()), part, whole)
