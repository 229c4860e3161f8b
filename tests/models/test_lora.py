import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_worlds import TARGETS, left_padded, random_ids, random_lora, random_params, tiny

from gfn_jax.environments import NoTool
from gfn_jax.models import decoder, layers
from gfn_jax.models.language_model import LanguageModel
from gfn_jax.models.lora import LoraConfig, init_lora, merge_lora, merging_pays
from gfn_jax.models.quantize import quantize_params
from gfn_jax.policy.constraint import Rules, make_constraint
from gfn_jax.policy.rollout import Behavior, rollout
from gfn_jax.policy.score import score
from gfn_jax.types import Tokens

CONFIG = tiny()
PARAMS = random_params(CONFIG)
TOKENS = Tokens(ids=random_ids(0, 2, 5), mask=jnp.ones((2, 5), bool))


@functools.partial(jax.jit, static_argnums=3)
def outputs(params, lora, key=None, rate=0.0, tokens=TOKENS):
    dropout = None if key is None else (key, rate)
    hidden, _ = decoder.prefill(LanguageModel(CONFIG, params, lora), tokens, dropout=dropout)
    return decoder.logits(decoder.select_head(LanguageModel(CONFIG, params, lora)), hidden)


def test_a_new_adapter_is_the_base_bit_for_bit():
    lora = init_lora(jax.random.key(0), CONFIG, LoraConfig(rank=3, alpha=6, targets=TARGETS))
    assert set(lora.layers) | {"head"} == set(TARGETS)
    assert all(np.abs(pair["a"]).min() >= 0 and np.abs(pair["a"]).max() > 0 for pair in lora.layers.values())
    np.testing.assert_array_equal(outputs(PARAMS, lora), outputs(PARAMS, None))


def test_a_new_adapter_samples_and_scores_as_the_base_bit_for_bit():
    lora = init_lora(jax.random.key(0), CONFIG, LoraConfig(rank=3, alpha=6, targets=TARGETS))
    constraint = make_constraint(23, 4, 5, token_ids=np.arange(8))
    prompt = left_padded([[3, 4, 5], [7, 8]])

    @jax.jit
    def both(params, lora):
        ones = jnp.ones(4)
        sampled = rollout(
            LanguageModel(CONFIG, params, lora),
            prompt,
            Rules(constraint, NoTool()),
            Behavior(ones, 0 * ones),
            jax.random.key(1),
        )
        return sampled, score(LanguageModel(CONFIG, params, lora), prompt, sampled, Rules(constraint, NoTool()))

    jax.tree.map(np.testing.assert_array_equal, both(PARAMS, lora), both(PARAMS, None))


@pytest.mark.parametrize("target", TARGETS)
def test_every_target_changes_the_output_and_nothing_else_does(target):
    full = random_lora(CONFIG)
    silent = jax.tree.map(lambda x: x, full)
    for name, pair in [*silent.layers.items(), ("head", silent.head)]:
        if name != target:
            pair["b"] = jnp.zeros_like(pair["b"])
    assert np.abs(outputs(PARAMS, silent) - outputs(PARAMS, None)).max() > 1e-2


def test_the_adapter_is_x_a_b_times_alpha_over_r():
    rng = np.random.default_rng(0)
    x, w, a, b = (rng.standard_normal(shape).astype(np.float32) for shape in [(5, 4), (4, 6), (4, 2), (2, 6)])
    out = layers.linear({"kernel": jnp.asarray(w)}, jnp.asarray(x), {"a": a, "b": b}, scale=3.5)
    np.testing.assert_allclose(out, x @ w + 3.5 * x @ a @ b, rtol=1e-5, atol=1e-5)
    assert LoraConfig(rank=4, alpha=6.0, targets=("q",)).scale == 1.5
    assert LoraConfig(rank=4, alpha=6.0, targets=("q",), rank_stabilized=True).scale == 3.0
    lora = init_lora(jax.random.key(0), CONFIG, LoraConfig(4, 6.0, ("q",), rank_stabilized=True))
    assert lora.scale == 3.0
    assert lora.head is None


def test_dropout_is_explicit():
    lora = random_lora(CONFIG)
    one, other = jax.random.key(0), jax.random.key(1)
    without = outputs(PARAMS, lora)
    np.testing.assert_array_equal(outputs(PARAMS, lora, one, 0.5), outputs(PARAMS, lora, one, 0.5))
    assert np.abs(outputs(PARAMS, lora, one, 0.5) - outputs(PARAMS, lora, other, 0.5)).max() > 1e-2
    assert np.abs(outputs(PARAMS, lora, one, 0.5) - without).max() > 1e-2
    np.testing.assert_array_equal(outputs(PARAMS, lora, one, 0.0), without)
    # The base has nothing to drop.
    np.testing.assert_array_equal(outputs(PARAMS, None, one, 0.5), outputs(PARAMS, None))


def test_dropout_preserves_the_mean_and_touches_the_adapter_alone():
    rng = np.random.default_rng(0)
    x, w, a, b = (jnp.asarray(rng.standard_normal(s), jnp.float32) for s in [(3, 8), (8, 5), (8, 2), (2, 5)])

    def dropped(key):
        return layers.linear({"kernel": w}, x, {"a": a, "b": b}, 1.0, (key, 0.25))

    samples = jax.jit(jax.vmap(dropped))(jax.random.split(jax.random.key(0), 4000))
    error = samples.std(0) / np.sqrt(4000)
    assert (np.abs(samples.mean(0) - (x @ w + x @ a @ b)) < 5 * error + 1e-4).all()
    assert error.min() > 1e-3
    silent = layers.linear({"kernel": w}, x, {"a": a, "b": 0 * b}, 1.0, (jax.random.key(0), 0.25))
    np.testing.assert_array_equal(silent, x @ w)


def test_a_merged_adapter_is_the_adapter():
    lora = random_lora(CONFIG)
    merged = merge_lora(CONFIG, PARAMS, lora)
    np.testing.assert_allclose(outputs(merged, None), outputs(PARAMS, lora), rtol=1e-3, atol=2e-3)
    assert jax.tree.structure(merged) == jax.tree.structure(PARAMS)


def test_a_model_merges_the_layers_and_keeps_the_heads_adapter_beside_it():
    tied = tiny(tied_head=True)
    policy = LanguageModel(tied, random_params(tied), random_lora(tied))

    @jax.jit
    def read(model):
        return decoder.logits(decoder.select_head(model), decoder.prefill(model, TOKENS)[0])

    merged = policy.merged
    assert not merged.adapter.layers
    assert merged.adapter.head is policy.adapter.head
    np.testing.assert_allclose(read(merged), read(policy), rtol=1e-3, atol=2e-3)
    assert np.abs(read(merged) - read(policy.base)).max() > 0.1
    assert policy.base.merged.params is policy.params


def test_merging_pays_where_float32_kernels_are_read_often_enough():
    lora = init_lora(jax.random.key(0), CONFIG, LoraConfig(3, 6, ("q", "down", "head")))
    (i, o), (j, p) = CONFIG.projections["q"], CONFIG.projections["down"]
    enough = -(-(i * o + j * p) // (i + o + j + p))
    assert merging_pays(PARAMS, lora, enough)
    assert not merging_pays(PARAMS, lora, enough - 1)
    halves = jax.tree.map(lambda x: x.astype(jnp.bfloat16), PARAMS)
    assert not merging_pays(halves, lora, 10 * enough)
    assert not merging_pays(quantize_params(PARAMS, "int8"), lora, 10 * enough)
    assert not merging_pays(PARAMS, dataclasses.replace(lora, layers={}), 10 * enough)


def test_what_an_adapter_cannot_be_is_refused():
    key = jax.random.key(0)
    with pytest.raises(ValueError, match="unknown LoRA target 'wq'; this model has q, k, v, o, gate"):
        init_lora(key, CONFIG, LoraConfig(2, 2, ("q", "wq")))
    with pytest.raises(ValueError, match="unknown LoRA target 'gate'"):
        init_lora(key, tiny(gated_mlp=False), LoraConfig(2, 2, ("gate",)))
    with pytest.raises(ValueError, match="at least one target"):
        init_lora(key, CONFIG, LoraConfig(2, 2, ()))
    with pytest.raises(ValueError, match="rank must be at least 1, not 0"):
        init_lora(key, CONFIG, LoraConfig(0, 2, ("q",)))
    tied = tiny(tied_head=True)
    with pytest.raises(ValueError, match="tied output head cannot be merged"):
        merge_lora(tied, random_params(tied), random_lora(tied))
