"""The check of shapes itself: what it lets be, and what it finds."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import Array, Float, Int, TypeCheckError, jaxtyped
from shapes import check

from gfn_jax.objectives.subtb import ratio
from gfn_jax.policy.rollout import Behavior, choose


@jaxtyped(typechecker=check)
def added(x: Float[Array, "B T"], y: Float[Array, " B"] | None = None) -> tuple[Float[Array, "B T"], Int[Array, ""]]:
    total = x if y is None else x + jnp.asarray(y)[..., None]
    return total, jnp.zeros((), jnp.int32) if x.shape[1] < 9 else jnp.zeros(1, jnp.int32)


def test_what_fits_is_let_be():
    added(jnp.zeros((2, 3)), jnp.zeros(2))
    added(np.zeros((2, 3), np.float32))
    jax.jit(added)(jnp.zeros((2, 3)), None)


@pytest.mark.parametrize(
    ("x", "y"),
    [
        (jnp.zeros(3), None),
        (jnp.zeros((2, 3), jnp.int32), None),
        (jnp.zeros((2, 3)), jnp.zeros(4)),
        (jnp.zeros((2, 9)), None),
    ],
    ids=["dimensions", "kind of numbers", "two sizes for one letter", "result"],
)
def test_what_does_not_is_found(x, y):
    with pytest.raises(TypeCheckError):
        added(x, y)


def test_the_library_is_held_to_its_signatures():
    logits = jnp.zeros((2, 3))
    with pytest.raises(TypeCheckError):
        choose(jax.random.key(0), logits, logits > 0, jnp.ones(3), jnp.zeros(3))
    with pytest.raises(TypeCheckError):
        ratio(jnp.zeros(2, jnp.int32), jnp.zeros(2))
    assert Behavior.at(1.0, 2).temperature.shape == (2,)
