"""The roofline by hand."""

import math

import pytest

from gfn_jax.models.chips import CHIPS, chip, chip_of


def test_the_larger_of_operations_and_bytes_counts():
    a100 = chip("A100")
    assert a100.seconds(312e12, 1e9, "bfloat16") == 1.0  # operations
    assert a100.seconds(312e12, 1e9, "float32") == 2.0  # at half the speed
    assert a100.seconds(1e12, 2 * 2039e9, "bfloat16") == 2.0  # bytes
    assert a100.seconds(1e12, 1e9, "bfloat16", sent=900e9) == 3.0  # the link
    assert chip("laptop").seconds(1, 1, "float32", sent=1) == math.inf


def test_every_chip_is_faster_in_halves_or_alike_and_says_where_that_is_from():
    assert len({one.name for one in CHIPS}) == len(CHIPS)
    for one in CHIPS:
        assert 0 < one.bandwidth < one.floats <= one.halves
        assert one.memory > 1e9
        assert one.link is None or 30e9 < one.link < one.bandwidth
        assert one.source


def test_an_unknown_chip_is_named():
    with pytest.raises(ValueError, match=r"no chip 'A1000'; there are laptop, .*A100"):
        chip("A1000")


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("NVIDIA H100 80GB HBM3", "H100"),
        ("NVIDIA A100-SXM4-80GB", "A100"),
        ("TPU v5 lite", "v5e"),
        ("TPU v5p", "v5p"),
        ("TPU v6 lite", "v6e"),
        ("NVIDIA L4", "L4"),
        ("NVIDIA L40S", None),
        ("cpu", None),
    ],
)
def test_a_device_is_known_by_its_kind(kind, name):
    found = chip_of(kind)
    assert found == (None if name is None else chip(name))
