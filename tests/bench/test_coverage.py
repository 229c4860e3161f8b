"""Certificates against targets that are known exactly."""

import jax
import pytest

from gfn_jax.bench.coverage import coverage
from gfn_jax.bench.exact import make_target
from gfn_jax.bench.targets import TARGETS, Size
from gfn_jax.evaluation.enumeration import random_world


def test_intervals_hold_what_a_list_says():
    """Of twenty certificates of a random decoder, all but one at most hold log Z and each divergence."""
    world = random_world(jax.random.key(0), 2, 3, 1.0, width=8, layers=1)
    given = world.constants
    target = make_target("world", given.base, world.reward, given.rules, given.queries, world.completions)
    held = coverage(target, target.base, rows=64, exact=40, proposals=0, seeds=20)
    assert held.keys() == {"log_z", "kl_q_pi", "kl_pi_q"}
    assert all(one["covered"] >= 19 for one in held.values())
    assert all(0 < one["width"] < 5 for one in held.values())
    alone = coverage(target, target.base, rows=64, exact=0, proposals=0, seeds=20)
    assert all(one["covered"] >= 19 and one["width"] is None for one in alone.values())


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in TARGETS if "260k" not in name])
def test_intervals_hold_on_every_target(name):
    """At least 93 of 100, and 95 are meant; with exact samples and without."""
    target = TARGETS[name](Size(32, 2, None))
    for exact, proposals in ((100, 1024), (0, 0)):
        held = coverage(target, target.base, rows=256, exact=exact, proposals=proposals, seeds=100)
        assert all(one["covered"] >= 93 for one in held.values()), held
