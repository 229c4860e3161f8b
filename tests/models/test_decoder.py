import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_worlds import left_padded, random_ids, random_lora, random_params, tiny

from gfn_jax.models import decoder, layers
from gfn_jax.models.config import KEPT, RopeScaling
from gfn_jax.models.language_model import LanguageModel
from gfn_jax.types import Tokens

VARIANTS = {
    "gpt2": {
        "norm": "layer",
        "positions": "learned",
        "activation": "gelu_tanh",
        "gated_mlp": False,
        "num_kv_heads": 4,
        "qkv_bias": True,
        "out_bias": True,
        "mlp_bias": True,
        "tied_head": True,
    },
    "gptj": {
        "norm": "layer",
        "norm_placement": "parallel",
        "rotary_interleaved": True,
        "activation": "gelu",
        "gated_mlp": False,
        "num_kv_heads": 4,
        "mlp_bias": True,
        "head_bias": True,
    },
    "neox": {"norm": "layer", "norm_placement": "parallel_two", "activation": "relu", "gated_mlp": False},
    "llama3": {
        "rotary_dim": 8,
        "rope_scaling": RopeScaling("llama3", 8.0, original_max_positions=16),
        "qk_norm": True,
    },
    "gemma": {
        "norm_placement": "sandwich",
        "norm_offset": 1.0,
        "num_kv_heads": 1,
        "activation": "gelu_tanh",
        "attention_softcap": 5.0,
        "logit_softcap": 3.0,
        "embed_scale": 4.0,
        "query_scale": 0.5,
        "tied_head": True,
        "local_window": 3,
        "local_layers": (True, False),
        "local_rope_theta": 100.0,
        "rope_scaling": RopeScaling("linear", 2.0),
    },
}
CONFIG = tiny()
PARAMS = random_params(CONFIG)
LORA = random_lora(CONFIG)
PARAMS_OF_GEMMA = random_params(tiny(**VARIANTS["gemma"], qk_norm=True))
PROMPT = left_padded([[3, 4, 5, 6], [7, 8]])  # Q = 2
COMPLETION = random_ids(5, 4, 5)  # B = 4, two samples a prompt


@functools.partial(jax.jit, static_argnums=0)
def all_logits(config, params, lora, tokens, past=()):
    """Logits at every place of padded sequences, in one pass."""
    hidden, _ = decoder.prefill(LanguageModel(config, params, lora), tokens, past)
    return decoder.logits(decoder.select_head(LanguageModel(config, params, lora)), hidden)


def real(ids) -> Tokens:
    return Tokens(ids=ids, mask=jnp.ones(ids.shape, bool))


def joined(*parts: Tokens) -> Tokens:
    return jax.tree.map(lambda *x: jnp.concatenate(x, axis=1), *parts)


def repeated(tokens: Tokens, times: int) -> Tokens:
    return jax.tree.map(lambda x: jnp.repeat(x, times, axis=0), tokens)


@pytest.mark.parametrize(("name", "at_once"), [("gptj", 32), ("gemma", 32), ("gptj", 1), ("gemma", 2)])
def test_a_shared_prompt_and_a_cache_filled_token_by_token_equal_one_pass_over_everything(name, at_once, monkeypatch):
    """The cache of five read whole, and in pieces; those of two overlap."""
    monkeypatch.setattr(layers, "columns_at_once", lambda: at_once)
    config = tiny(**VARIANTS[name])
    params, lora = random_params(config), random_lora(config)

    @jax.jit
    def by_steps(params, lora):
        _, shared = decoder.prefill(LanguageModel(config, params, lora), PROMPT)
        start = decoder.past_length((shared,), 4)
        head = decoder.select_head(LanguageModel(config, params, lora))

        def step(cache, column):
            visible = (jnp.arange(5) <= column)[None, None]
            hidden, cache = decoder.forward(
                LanguageModel(config, params, lora),
                jax.lax.dynamic_slice_in_dim(COMPLETION, column, 1, axis=1),
                (start + column)[:, None],
                visible,
                (shared,),
                cache,
                column,
            )
            return cache, decoder.logits(head, hidden[:, 0])

        _, out = jax.lax.scan(step, decoder.empty_cache(config, 4, 5), jnp.arange(5))
        return jnp.swapaxes(out, 0, 1)

    whole = all_logits(config, params, lora, joined(repeated(PROMPT, 2), real(COMPLETION)))[:, -5:]
    np.testing.assert_allclose(by_steps(params, lora), whole, atol=3e-5)


def test_columns_of_a_cache_that_are_not_written_are_not_read(monkeypatch):
    """What a row sees is finite though the columns behind hold NaN."""
    monkeypatch.setattr(layers, "columns_at_once", lambda: 2)
    cache = decoder.empty_cache(CONFIG, 4, 6)
    cache = dataclasses.replace(cache, k=cache.k.at[..., 2:, :].set(jnp.nan), v=cache.v.at[..., 2:, :].set(jnp.nan))
    model, visible = LanguageModel(CONFIG, PARAMS), (jnp.arange(6) < 2)[None, None]
    read = jax.jit(
        lambda column: decoder.forward(
            model, COMPLETION[:, :1], column * jnp.ones((4, 1), int), visible, cache=cache, column=column
        )[0]
    )
    assert np.isfinite(read(1)).all()
    assert np.isnan(read(3)).all()  # a piece with an unwritten column in it


def test_segments_shared_by_all_by_a_query_and_by_none_merge_into_one_sequence():
    demonstrations = real(random_ids(1, 1, 3))
    own = left_padded([[2], [9, 8], [4, 4], [5]])

    @jax.jit
    def merged(params, lora):
        segments = ()
        for tokens in (demonstrations, PROMPT, own):  # G = 1, Q, B
            _, keys = decoder.prefill(LanguageModel(CONFIG, params, lora), tokens, segments)
            segments = (*segments, keys)
        return all_logits(CONFIG, params, lora, real(COMPLETION), segments)

    whole = joined(repeated(demonstrations, 4), repeated(PROMPT, 2), own, real(COMPLETION))
    expected = all_logits(CONFIG, PARAMS, LORA, whole)[:, -5:]
    np.testing.assert_allclose(merged(PARAMS, LORA), expected, atol=3e-5)


def test_left_padding_changes_nothing():
    padded = all_logits(CONFIG, PARAMS, LORA, left_padded([[3, 4, 5, 6], [7, 8]], width=7))
    tight = all_logits(CONFIG, PARAMS, LORA, left_padded([[3, 4, 5, 6], [7, 8]]))
    alone = all_logits(CONFIG, PARAMS, LORA, left_padded([[7, 8]]))
    np.testing.assert_allclose(padded[:, -4:][PROMPT.mask], tight[PROMPT.mask], atol=2e-5)
    np.testing.assert_allclose(padded[1, -2:], alone[0], atol=2e-5)


@pytest.mark.parametrize("name", VARIANTS)
def test_every_variant_is_causal_and_finite(name):
    config = tiny(**VARIANTS[name])
    ids = random_ids(3, 1, 8)
    later = ids.at[0, 5].add(1)
    out = all_logits(config, random_params(config), random_lora(config), real(jnp.concatenate([ids, later])))
    assert out.dtype == jnp.float32
    assert np.isfinite(out).all()
    np.testing.assert_array_equal(out[0, :5], out[1, :5])
    assert np.abs(out[0, 5:] - out[1, 5:]).max(-1).min() > 1e-3


def test_every_setting_of_a_variant_is_read():
    """A setting that the code forgot would leave the traced program as it was."""
    config = tiny(**VARIANTS["gemma"])

    def program(config):
        return str(jax.make_jaxpr(lambda: all_logits(config, PARAMS_OF_GEMMA, None, PROMPT))())

    base = program(config)
    changes = [
        {"attention_softcap": None},
        {"logit_softcap": None},
        {"embed_scale": 1.0},
        {"query_scale": None},
        {"local_window": 2},
        {"local_rope_theta": None},
        {"rope_scaling": None},
        {"norm": "layer"},
        {"norm_offset": 0.0},
        {"norm_eps": 0.1},
        {"norm_placement": "pre"},
        {"activation": "silu"},
        {"gated_mlp": False},
        {"qk_norm": True},
        {"rotary_interleaved": True},
        {"rotary_dim": 2},
        {"rope_theta": 77.0},
    ]
    for change in changes:
        assert program(dataclasses.replace(config, **change)) != base, change


def test_bfloat16_weights_run_in_bfloat16_and_come_close():
    half = jax.tree.map(lambda x: x.astype(jnp.bfloat16), PARAMS)
    tokens = left_padded([[3, 4, 5, 6], [7, 8]])
    exact = jax.nn.log_softmax(all_logits(CONFIG, PARAMS, None, tokens))
    out = all_logits(CONFIG, half, None, tokens)
    assert out.dtype == jnp.float32
    assert jax.eval_shape(lambda: decoder.prefill(LanguageModel(CONFIG, half), tokens))[0].dtype == jnp.bfloat16
    difference = np.abs(jax.nn.log_softmax(out) - exact)[np.asarray(tokens.mask)]
    assert 0 < difference.max() < 0.25


def test_no_remat_policy_changes_values_or_gradients():
    tokens, lora = real(COMPLETION), random_lora(CONFIG, targets=("q", "down"))
    weight = jnp.asarray(np.random.default_rng(0).standard_normal((4, 5, CONFIG.width)), jnp.float32)

    def gradient(remat):
        def loss(lora, params):
            hidden, _ = decoder.prefill(
                LanguageModel(CONFIG, params, lora), tokens, dropout=(jax.random.key(3), 0.4), remat=remat
            )
            return (hidden * weight).sum()

        return jax.value_and_grad(loss)

    kept = jax.jit(gradient("none"))(lora, PARAMS)
    largest = max(float(jnp.abs(x).max()) for x in jax.tree.leaves(kept))
    for remat in KEPT:
        again = jax.jit(gradient(remat))(lora, PARAMS)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-6 * largest), kept, again)
    names = ("none", *KEPT)
    none, dots, except_mlp, full = (str(jax.make_jaxpr(gradient(x))(lora, PARAMS)).count("dot_general") for x in names)
    assert none < dots < except_mlp < full


def windowed(local_layers, params, window=3):
    config = tiny(local_window=window, local_layers=local_layers)
    return all_logits(config, params, None, real(COMPLETION))


def test_a_sliding_window_is_a_banded_mask():
    @jax.jit
    def banded(params):
        places = jnp.arange(5)
        band = (places[:, None] >= places) & (places[:, None] - places < 3)
        hidden, _ = decoder.forward(LanguageModel(CONFIG, params), COMPLETION, jnp.tile(places, (4, 1)), band[None])
        return decoder.logits(decoder.select_head(LanguageModel(CONFIG, params)), hidden)

    local = windowed((True, True), PARAMS)
    np.testing.assert_allclose(local, banded(PARAMS), atol=1e-5)
    assert np.abs(local[:, 3:] - all_logits(CONFIG, PARAMS, None, real(COMPLETION))[:, 3:]).max() > 1e-3


def test_the_window_falls_on_the_layers_that_are_named():
    def without_attention(layer):
        kernel = PARAMS["layers"]["o"]["kernel"].at[layer].set(0.0)
        return {**PARAMS, "layers": {**PARAMS["layers"], "o": {"kernel": kernel}}}

    first_only, second_only = without_attention(1), without_attention(0)
    mixed = (True, False)
    np.testing.assert_array_equal(windowed(mixed, first_only), windowed((True, True), first_only))
    np.testing.assert_array_equal(windowed(mixed, second_only), windowed((False, False), second_only))
    assert np.abs(windowed(mixed, first_only) - windowed((False, False), first_only)).max() > 1e-3


def test_a_window_reaches_back_into_shared_segments_by_position():
    config = tiny(local_window=3, local_layers=(True, True))

    @jax.jit
    def split(params):
        _, shared = decoder.prefill(LanguageModel(config, params), PROMPT)
        return all_logits(config, params, None, real(COMPLETION), (shared,))

    whole = all_logits(config, PARAMS, None, joined(repeated(PROMPT, 2), real(COMPLETION)))[:, -5:]
    np.testing.assert_allclose(split(PARAMS), whole, atol=3e-5)


def test_grouped_keys_are_heads_that_share_them():
    wide = tiny(num_kv_heads=4)
    layers = dict(PARAMS["layers"])
    for name in ("k", "v"):
        kernel = layers[name]["kernel"].reshape(2, 16, 2, 8)
        layers[name] = {"kernel": jnp.repeat(kernel, 2, axis=2).reshape(2, 16, 32)}
    repeated_keys = all_logits(wide, {**PARAMS, "layers": layers}, None, real(COMPLETION))
    np.testing.assert_allclose(all_logits(CONFIG, PARAMS, None, real(COMPLETION)), repeated_keys, atol=1e-5)


def test_selected_columns_of_the_head_are_those_of_the_whole():
    for config in (CONFIG, tiny(tied_head=True), tiny(head_bias=True)):
        params, lora = random_params(config), random_lora(config)
        hidden = jnp.asarray(np.random.default_rng(0).standard_normal((3, 16)), jnp.float32)
        columns = jnp.asarray([7, 2, 20])
        whole = decoder.logits(decoder.select_head(LanguageModel(config, params, lora)), hidden)
        some = decoder.logits(decoder.select_head(LanguageModel(config, params, lora), columns), hidden)
        np.testing.assert_allclose(some, whole[:, columns], atol=1e-5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_kv_heads": 3}, "not a multiple"),
        ({"rotary_dim": 9}, "rotary_dim 9"),
        ({"local_layers": (True,)}, "1 layers of 2"),
    ],
)
def test_a_config_that_contradicts_itself_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        tiny(**change)


def test_init_params_fit_every_variant():
    for change in VARIANTS.values():
        config = tiny(**change)
        params = jax.eval_shape(lambda config=config: decoder.init_params(jax.random.key(0), config))
        assert ("head" in params) is not config.tied_head
        assert {name for name in config.projections if "bias" in params["layers"][name]} == config.biased
        assert params["layers"]["q"]["kernel"].shape == (2, 16, 32)
