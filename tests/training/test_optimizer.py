import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_worlds import sampling_settings

from gfn_jax.sections import checked
from gfn_jax.training.optimizer import OptimizerConfig, learning_rate, make_optimizer


@pytest.mark.parametrize(
    ("decay", "expected"),
    [
        ("constant", [0.5, 1.0, 1.0, 1.0, 1.0, 1.0]),
        ("linear", [0.5, 1.0, 1.0, 0.55, 0.1, 0.1]),
        ("cosine", [0.5, 1.0, 1.0, 0.55, 0.1, 0.1]),
    ],
)
def test_schedule_values(decay, expected):
    config = OptimizerConfig(2e-3, total_steps=6, warmup_steps=2, decay=decay, final_fraction=0.1)
    rates = [float(learning_rate(config, step)) for step in (0, 1, 2, 4, 6, 100)]
    np.testing.assert_allclose(rates, 2e-3 * np.array(expected), rtol=1e-6)


def test_cosine_at_a_quarter():
    config = OptimizerConfig(1.0, total_steps=4, decay="cosine")
    assert float(learning_rate(config, 1)) == pytest.approx((1 + math.cos(math.pi / 4)) / 2)


def test_the_first_update_is_the_scheduled_rate_times_the_sign():
    """Adam's first step has length one: what is left is the rate, the decay, and the clipping's scale."""
    config = OptimizerConfig(0.1, total_steps=100, warmup_steps=10, weight_decay=0.5, eps=1e-3, clip_norm=1.0)
    optimizer = make_optimizer(config)
    params = {"w": jnp.array([2.0, 0.0])}
    grads = {"w": jnp.array([30.0, -40.0])}  # of norm 50: clipped to (.6, -.8)
    updates, _ = optimizer.update(grads, optimizer.init(params), params)
    rate = 0.1 / 10
    expected = [-rate * (0.6 / 0.601 + 0.5 * 2.0), rate * 0.8 / 0.801]
    np.testing.assert_allclose(updates["w"], expected, rtol=1e-5)


def test_no_clipping():
    optimizer = make_optimizer(OptimizerConfig(0.1, total_steps=9, eps=1.0, clip_norm=None, decay="constant"))
    params = {"w": jnp.zeros(())}
    updates, _ = optimizer.update({"w": jnp.asarray(3.0)}, optimizer.init(params), params)
    assert float(updates["w"]) == pytest.approx(-0.1 * 3 / 4, rel=1e-5)


def annealed(steps):
    ends = {"reward_temperature_start": 1.1, "reward_temperature_end": 0.9}
    return sampling_settings(**ends, reward_temperature_steps=steps)


def test_schedules_are_traced_once():
    traces = []

    @jax.jit
    def both(step):
        traces.append(1)
        return learning_rate(OptimizerConfig(1.0, total_steps=8), step), annealed(4).reward_temperature(step)

    values = [both(jnp.asarray(step)) for step in range(6)]
    assert len(traces) == 1
    temperatures = [float(temperature) for _, temperature in values]
    np.testing.assert_allclose(temperatures, [1.1, 1.05, 1.0, 0.95, 0.9, 0.9], rtol=1e-6)


def test_an_anneal_without_steps_is_over():
    assert float(annealed(0).reward_temperature(0)) == pytest.approx(0.9)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"decay": "cosin"}, "'cosin'; it must be one of constant, linear, cosine"),
        ({"warmup_steps": 10}, "warmup_steps is 10; it must be less than the steps that are learnt in, 10"),
        ({"final_fraction": 1.5}, "final_fraction is 1.5"),
        ({"learning_rate": -1.0}, "learning_rate is -1.0"),
        ({"clip_norm": 0.0}, "clip_norm is 0.0; .* above 0 or unset with --config.optimizer.clip_norm=None"),
    ],
)
def test_settings_are_checked(wrong, message):
    with pytest.raises(ValueError, match=message):
        checked(OptimizerConfig, {"learning_rate": 1e-3, **wrong}, "optimizer.", partial=True, total_steps=10)
