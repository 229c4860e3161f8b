import jax.numpy as jnp
import numpy as np
import pytest

from gfn_jax.training.digests import digests

WIDE = np.arange(6, dtype=np.float32).reshape(2, 3)


def digest(x) -> int:
    return digests({"x": x})["x"]


def mix(h: int) -> int:
    h = ((h ^ (h >> 16)) * 0x85EBCA6B) & 0xFFFFFFFF
    h = ((h ^ (h >> 13)) * 0xC2B2AE35) & 0xFFFFFFFF
    return h ^ (h >> 16)


def test_the_sum_of_the_docstring():
    expected = sum(mix(int(bits) ^ mix(i + 1)) for i, bits in enumerate(WIDE.view(np.uint32).ravel()))
    assert digests({"a": {"b": WIDE}}) == {"a/b": expected % 2**32}


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (WIDE, WIDE[::-1]),  # the same numbers elsewhere
        (WIDE, np.nextafter(WIDE, WIDE + (WIDE == 3))),  # one bit
        (np.zeros(3, np.float32), -np.zeros(3, np.float32)),
        (np.array([1, 2], np.int8), np.array([1, 3], np.int8)),
        (np.array([True, False]), np.array([True, True])),
        (jnp.ones(3, jnp.bfloat16), jnp.ones(3, jnp.bfloat16).at[2].set(1.0078125)),
        (np.zeros(8, np.float32), np.ones(8, np.float32)),
    ],
)
def test_any_change_shows(one, other):
    assert digest(one) == digest(one.copy())
    assert digest(one) != digest(other)


def test_what_is_not_a_number_has_a_digest_too():
    assert digest(np.array([np.nan, np.inf], np.float32)) != digest(np.array([np.nan, -np.inf], np.float32))
    assert digest(np.zeros((0, 4), np.float32)) == 0
