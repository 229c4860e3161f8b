import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from tiny_worlds import (
    left_padded,
    query_of,
    random_ids,
    random_lora,
    random_params,
    right_padded,
    sampling_settings,
    tiny,
)

from gfn_jax import replay
from gfn_jax.algorithms.entry import Ingredients
from gfn_jax.algorithms.gflownet import GFlowNet
from gfn_jax.environments import NoTool
from gfn_jax.models import decoder
from gfn_jax.models.language_model import LanguageModel
from gfn_jax.models.lora import LoraConfig, merge_lora
from gfn_jax.models.quantize import (
    LEVELS,
    Int8,
    NormalFloat4,
    is_quantized,
    multiply,
    pack,
    quantize_params,
    to_int8,
    to_nf4,
    unpack,
)
from gfn_jax.objectives import Objective
from gfn_jax.policy.constraint import Constants, Rules, make_constraint
from gfn_jax.rewards import PosteriorReward
from gfn_jax.training.step import init_state, make_step
from gfn_jax.types import Tokens

CONFIG = tiny(width=64, mlp_width=72, num_heads=4, num_kv_heads=2, head_dim=16)  # 72: not whole blocks
PARAMS = random_params(CONFIG, scale=0.1)
TOKENS = Tokens(ids=random_ids(0, 2, 5), mask=jnp.ones((2, 5), bool))
QUANTIZED = {kind: quantize_params(PARAMS, kind) for kind in ("int8", "nf4")}


def normal(*shape: int) -> jax.Array:
    return jnp.asarray(np.random.default_rng(0).standard_normal(shape), jnp.float32)


def relative_error(got, wanted) -> float:
    return float(np.linalg.norm(np.asarray(got - wanted)) / np.linalg.norm(np.asarray(wanted)))


def dequantized(params):
    return jax.tree.map(
        lambda x: x.dequantize(jnp.float32) if isinstance(x, Int8 | NormalFloat4) else x,
        params,
        is_leaf=lambda x: isinstance(x, Int8 | NormalFloat4),
    )


def test_levels_are_those_of_the_paper():
    """Dettmers et al. 2023, appendix E."""
    above = [0.0795803, 0.1609302, 0.2461123, 0.3379152, 0.4407098, 0.5626170, 0.7229568, 1.0]
    below = [-1.0, -0.6961928, -0.5250731, -0.3949175, -0.2844414, -0.1847734, -0.0910500]
    np.testing.assert_allclose(LEVELS, [*below, 0.0, *above], atol=2e-7)


def test_every_byte_survives_packing():
    packed = jnp.arange(256, dtype=jnp.uint8).reshape(1, 32, 8)
    codes = unpack(packed)
    assert codes.shape == (1, 64, 8)
    assert (int(codes.min()), int(codes.max())) == (0, 15)
    np.testing.assert_array_equal(pack(codes), packed)
    np.testing.assert_array_equal(codes[0, :2, 3], [0, 3])  # the even input lies in the high bits


@pytest.mark.parametrize(
    ("quantize", "low", "high", "bits"),
    [(to_int8, 0.005, 0.0075, 8 + 32 / 256), (to_nf4, 0.085, 0.098, 4 + 16 / 64)],
)
def test_error_and_size_on_random_weights(quantize, low, high, bits):
    weights = normal(256, 48)
    quantized = quantize(weights)
    assert low < relative_error(quantized.dequantize(jnp.float32), weights) < high
    assert sum(leaf.nbytes for leaf in jax.tree.leaves(quantized)) * 8 == bits * weights.size
    assert quantized.dequantize(jnp.bfloat16).dtype == jnp.bfloat16


def test_what_can_be_said_exactly_is():
    rng = np.random.default_rng(1)
    codes = rng.integers(-127, 128, (9, 5))
    codes[0] = 127
    weights = jnp.asarray(codes * [1.0, 0.5, 2.0, 4.0, 0.0], jnp.float32)
    np.testing.assert_array_equal(to_int8(weights).dequantize(jnp.float32), weights)
    levels = np.asarray(LEVELS, np.float32)[rng.integers(0, 16, (70, 4))]  # a block of 64 and one of 6
    levels[0], levels[64] = 1.0, -1.0
    scales = np.where(np.arange(70)[:, None] < 64, [1.0, 0.5, 2.0, 0.0], [4.0, 1.0, 0.25, 0.0])
    weights = jnp.asarray(levels * scales, jnp.float32)
    np.testing.assert_array_equal(to_nf4(weights).dequantize(jnp.float32), weights)


def test_only_the_projections_of_blocks_are_quantised():
    for params in QUANTIZED.values():
        assert is_quantized(params)
        for name in CONFIG.projections:
            kernel = params["layers"][name]["kernel"]
            assert isinstance(kernel, Int8 | NormalFloat4)
            assert kernel.dequantize(jnp.float32).shape == PARAMS["layers"][name]["kernel"].shape
        rest = {**params, "layers": params["layers"]["attn_norm"]}
        jax.tree.map(np.testing.assert_array_equal, rest, {**PARAMS, "layers": PARAMS["layers"]["attn_norm"]})
    assert quantize_params(PARAMS, "none") is PARAMS


def test_floats_take_the_path_they_took():
    x, kernel = normal(3, 4).astype(jnp.bfloat16), normal(4, 5)

    def before(x, kernel):
        return jnp.matmul(x, kernel.astype(x.dtype), preferred_element_type=jnp.float32)

    after = jax.make_jaxpr(lambda x, kernel: multiply(x, kernel, jnp.float32))(x, kernel)
    assert str(after) == str(jax.make_jaxpr(before)(x, kernel))


@jax.jit
def logits_and_gradient(lora, params):
    def loss(lora):
        hidden, _ = decoder.prefill(LanguageModel(CONFIG, params, lora), TOKENS)
        out = decoder.logits(decoder.select_head(LanguageModel(CONFIG, params, lora)), hidden)
        return jnp.square(out).mean(), out

    gradient, out = jax.grad(loss, has_aux=True)(lora)
    return out, gradient


@pytest.mark.parametrize(("kind", "most"), [("int8", 0.02), ("nf4", 0.25)])
def test_the_model_computes_with_the_weights_that_the_codes_stand_for(kind, most):
    lora = random_lora(CONFIG, scale=0.1)
    out, gradient = logits_and_gradient(lora, QUANTIZED[kind])
    same, same_gradient = logits_and_gradient(lora, dequantized(QUANTIZED[kind]))
    np.testing.assert_allclose(out, same, rtol=1e-4, atol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5), gradient, same_gradient)
    assert all(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(gradient))
    float_out, _ = logits_and_gradient(lora, PARAMS)
    assert 1e-4 < relative_error(out, float_out) < most


def test_no_floats_of_the_base_are_kept_for_the_backward_pass():
    lora = random_lora(CONFIG)

    def kept(lora, params):
        def hidden(lora):
            return decoder.prefill(LanguageModel(CONFIG, params, lora), TOKENS)[0]

        return jax.tree.leaves(jax.vjp(hidden, lora)[1])

    kernels = {PARAMS["layers"][name]["kernel"].shape for name in CONFIG.projections}
    for params in QUANTIZED.values():
        left = jax.eval_shape(kept, lora, params)
        assert left
        assert not [leaf for leaf in left if leaf.shape in kernels and leaf.dtype == jnp.float32]


def test_a_step_on_a_quantised_base():
    config = sampling_settings(queries=2, samples=2, replay_samples=0, tempered=0.0, replay_capacity=2)
    reward = PosteriorReward()
    objective = Objective((("subtb", 1.0),), "released_mean")
    algorithm = GFlowNet(Ingredients(reward, config, LoraConfig(2, 2, ("q", "down")), objective))
    query = query_of(left_padded([[3, 4, 5], [7, 8]]), answer=right_padded([[4, 2], [4, 3]]))
    optimizer = optax.sgd(1.0)
    base = LanguageModel(CONFIG, QUANTIZED["int8"])
    constants = Constants(
        base=base,
        prepared=reward.prepare(base),
        queries=query,
        query_log_weight=jnp.zeros(2),
        rules=Rules(make_constraint(23, 4, 3, token_ids=np.arange(8)), NoTool()),
        root=jax.random.key(1),
    )
    state = init_state(algorithm, optimizer, jax.random.key(0), constants)
    after, metrics = jax.jit(make_step(algorithm, optimizer))(state, constants)
    assert np.isfinite(metrics["loss"])
    moved = [np.abs(pair["b"]).max() for pair in after.trainable.lora.layers.values()]
    assert min(moved) > 0
    assert replay.statistics(after.memory.buffer, len(after.memory.buffer.priority))["coverage"] > 0


def test_what_cannot_be_done_is_refused():
    with pytest.raises(ValueError, match="quantize 'int4' is unknown; it is one of none, int8, nf4"):
        quantize_params(PARAMS, "int4")
    with pytest.raises(ValueError, match="quantised already"):
        quantize_params(QUANTIZED["int8"], "nf4")
    with pytest.raises(ValueError, match="cannot be merged into a quantised base"):
        merge_lora(CONFIG, QUANTIZED["nf4"], random_lora(CONFIG))
