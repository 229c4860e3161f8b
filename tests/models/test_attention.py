"""Attention over joined segments, with jax's plain products in the place of cuDNN's kernel, which is not here."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_worlds import left_padded, query_of, random_ids, random_lora, random_params, right_padded, tiny

from gfn_jax.environments import NoTool
from gfn_jax.models import layers
from gfn_jax.models.config import BaseModelConfig
from gfn_jax.models.language_model import LanguageModel
from gfn_jax.policy.constraint import Rules, make_constraint
from gfn_jax.policy.score import score
from gfn_jax.policy.teacher import teacher_force
from gfn_jax.rewards import PosteriorReward
from gfn_jax.runs.weights import check_attention
from gfn_jax.training.mesh import MeshConfig, abstract_mesh, make_mesh

BASE = BaseModelConfig("x", "bfloat16", False, "none", attention="cudnn")


def normal(seed, *shape):
    return jax.random.normal(jax.random.key(seed), shape)


@pytest.mark.parametrize("length", [3, 4], ids=["odd", "even"])
@pytest.mark.parametrize("query_scale", [None, 0.3])
def test_joined_segments_are_attended_to_as_before(length, query_scale):
    """Of one group, of two whose rows see different keys, and the rows' own; the kernel's scale is the model's."""
    config = tiny(query_scale=query_scale)  # two query heads a key head
    query, causal = normal(0, 4, length, 4, 8), jnp.tril(jnp.ones((length, length), bool))
    seen = jax.random.bernoulli(jax.random.key(1), 0.6, (2, 2, 1, 5)) | (jnp.arange(5) == 0)
    segments = [
        (normal(2, 1, 2, 2, 8), normal(3, 1, 2, 2, 8), jnp.asarray([True, False])[None, None, None]),
        (normal(4, 2, 2, 5, 8), normal(5, 2, 2, 5, 8), seen),
        (normal(6, 4, 2, length, 8), normal(7, 4, 2, length, 8), causal[None, None]),
    ]
    expected = layers.attend(config, query, segments)
    np.testing.assert_allclose(layers.attend_joined(config, query, segments, "xla"), expected, atol=1e-5)
    halves = jax.tree.map(lambda x: x if x.dtype == bool else x.astype(jnp.bfloat16), segments)
    found = layers.attend_joined(config, query.astype(jnp.bfloat16), halves, "xla")
    assert found.dtype == jnp.bfloat16
    np.testing.assert_allclose(found, expected, atol=0.05)


@pytest.mark.parametrize("local", [(), (True, False)], ids=["global", "sliding window"])
def test_scores_and_gradients_are_the_same(local, monkeypatch):
    """Of completions behind a shared prompt that is padded."""
    config = tiny(local_window=2 if local else None, local_layers=local)
    model = LanguageModel(config, random_params(config), random_lora(config))
    rules = Rules(make_constraint(23, 5, 4, token_ids=np.array([0, 2, 3, 8])), NoTool())
    written = jnp.asarray([0, 2, 3, 8])[random_ids(2, 4, 5, vocab=4)]
    forced, prompt = teacher_force(written, jnp.asarray([4, 1, 3, 2]), rules), left_padded([[6, 7, 8], [9, 10]])
    plain, kernels = layers.attend_joined, []

    def joined(config, query, segments, kernel):
        kernels.append(kernel)
        return plain(config, query, segments, "xla")

    monkeypatch.setattr(layers, "attend_joined", joined)

    def loss(lora, attention):
        policy = dataclasses.replace(model.adapted(lora), attention=attention)
        out = score(policy, prompt, forced, rules, remat="dots")
        return (out.log_pf + 0.3 * out.log_pterm).sum(), out

    own, other = (
        jax.jit(jax.value_and_grad(loss, has_aux=True), static_argnums=1)(model.adapter, attention)
        for attention in ("xla", "cudnn")
    )
    assert kernels  # the prompt's pass and the completions'
    assert set(kernels) == {"cudnn"}
    largest = max(float(jnp.abs(x).max()) for x in jax.tree.leaves(own))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5 * max(1, largest)), own, other)


def test_a_reward_has_no_row_a_prefix_of_copied_keys(monkeypatch):
    config, plain, rows = tiny(), layers.attend_joined, []
    base = LanguageModel(config, random_params(config))
    rules = Rules(make_constraint(23, 5, 4, token_ids=np.array([0, 2, 3, 8])), NoTool())
    written = jnp.asarray([0, 2, 3, 8])[random_ids(2, 4, 5, vocab=4)]
    forced = teacher_force(written, jnp.asarray([4, 1, 3, 2]), rules)
    query = query_of(left_padded([[6, 7, 8], [9, 10]]), answer=right_padded([[1, 4, 5], [2, 5]]))

    def joined(config, query, segments, kernel):
        rows.append(len(query))
        return plain(config, query, segments, "xla")

    monkeypatch.setattr(layers, "attend_joined", joined)
    reward = PosteriorReward()

    def log_reward(base):
        return reward.log_reward(base, reward.prepare(base), query, forced)

    expected = jax.jit(log_reward)(base)
    assert not rows
    found = jax.jit(log_reward)(dataclasses.replace(base, attention="cudnn"))
    assert set(rows) == {2, 4}  # the contexts and the completions; not 4 x 5 prefixes
    np.testing.assert_allclose(found, expected, rtol=1e-5)


@pytest.mark.parametrize(
    ("settings", "model", "mesh", "need"),
    [
        (BASE, tiny(), make_mesh(MeshConfig(1, 1, 1), jax.devices()[:1]), "an NVIDIA GPU; these devices are cpu"),
        (dataclasses.replace(BASE, dtype="float32"), tiny(), None, "model.dtype=bfloat16 or float16"),
        (BASE, tiny(attention_softcap=5.0), None, "attention without a soft cap"),
        (BASE, tiny(head_dim=12), None, "heads of 256 numbers at most, a multiple of 8; this model's have 12"),
    ],
)
def test_what_the_kernel_needs(settings, model, mesh, need):
    with pytest.raises(ValueError, match=f"^model.attention is 'cudnn', which needs {need}$"):
        check_attention(settings, model, mesh or abstract_mesh(MeshConfig(1, 1, 1)))


def test_a_model_that_fits_is_taken():
    check_attention(BASE, tiny(), abstract_mesh(MeshConfig(8, 1, 1)))
    check_attention(dataclasses.replace(BASE, dtype="float32", attention="xla"), tiny(), abstract_mesh(MeshConfig()))
