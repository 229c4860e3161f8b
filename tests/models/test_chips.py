"""The roofline by hand."""

import pytest

from gfn_jax.models.chips import CHIPS, chip


def test_the_larger_of_operations_and_bytes_counts():
    a100 = chip("A100")
    assert a100.seconds(312e12, 1e9, "bfloat16") == 1.0  # operations
    assert a100.seconds(312e12, 1e9, "float32") == 2.0  # at half the speed
    assert a100.seconds(1e12, 2 * 2039e9, "bfloat16") == 2.0  # bytes


def test_every_chip_is_faster_in_halves_or_alike_and_says_where_that_is_from():
    assert len({one.name for one in CHIPS}) == len(CHIPS)
    for one in CHIPS:
        assert 0 < one.bandwidth < one.floats <= one.halves
        assert one.memory > 1e9
        assert one.source


def test_an_unknown_chip_is_named():
    with pytest.raises(ValueError, match=r"no chip 'A1000'; there are laptop, .*A100"):
        chip("A1000")
