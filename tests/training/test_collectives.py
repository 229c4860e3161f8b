"""What a training step sends between devices: rows stay where they are, weights come a layer at a time."""

import json
import math
import os
import pathlib
import subprocess
import sys
from collections import Counter

import jax
import pytest
from collectives import ALLOWED, CONFIG, LORA

from gfn_jax.models.decoder import init_params
from gfn_jax.models.lora import init_lora
from gfn_jax.training.collectives import collectives, groups_of, sent

HEAD = [CONFIG.width, CONFIG.vocab_size]


def compiled_on(mesh: str, *words: str) -> dict:
    """What `collectives.py` says of the step on data x fsdp x tensor virtual devices, in a process of its own."""
    here = pathlib.Path(__file__).parent
    devices = math.prod(map(int, mesh.split("x")))
    done = subprocess.run(
        [sys.executable, here / "collectives.py", mesh, *words],
        env=os.environ
        | {
            # What the compiler splits and sends is decided before its backend optimises anything.
            "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices} {os.environ.get('XLA_FLAGS', '')}",
            "PYTHONPATH": os.pathsep.join(map(str, (here.parent, here.parents[1]))),
        },
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def weights(fsdp: int, tensor: int) -> set[tuple[int, ...]]:
    """Shapes of a layer's weights (the head's allowed columns too), whole or in parts, in ascending order."""
    key = jax.random.key(0)
    tree = jax.eval_shape(lambda: (init_params(key, CONFIG), init_lora(key, CONFIG, LORA)))
    whole = {leaf.shape[-2:] for leaf in jax.tree.leaves(tree) if leaf.ndim > 1} | {
        (CONFIG.width, ALLOWED),
        (LORA.rank, ALLOWED),
    }
    parts = (1, fsdp, tensor)
    return {tuple(sorted((i // a, o // b))) for i, o in whole for a in parts for b in parts}


def weights_gathered(sent: list[dict], fsdp: int, tensor: int) -> Counter:
    """How often each shape of weights is gathered in each computation, having seen that no activation crosses rows."""
    known = weights(fsdp, tensor)
    sizes = (CONFIG.width, CONFIG.num_heads * CONFIG.head_dim, CONFIG.mlp_width, CONFIG.vocab_size, ALLOWED)
    features = {size // part for size in sizes for part in (1, tensor)}
    gathered = Counter()
    for one in sent:
        over_rows = any(len({device // tensor for device in group}) > 1 for group in one["groups"])
        for dtype, shape in one["shapes"]:
            if not over_rows or dtype not in ("f32", "bf16"):
                continue
            if tuple(sorted(shape)) not in known:
                assert not features & set(shape), f"an activation crosses rows: {one['line'][:300]}"
            elif one["kind"] == "all-gather":
                gathered[one["computation"], tuple(shape)] += 1
                if shape == [HEAD[0], HEAD[1] // tensor]:
                    assert one["line"].count("while/body") <= 1, f"the head is gathered in a loop: {one['line'][:300]}"
    return gathered


@pytest.mark.parametrize(
    "mesh",
    [
        "2x2x2",
        pytest.param("8x1x1", marks=pytest.mark.slow),
        pytest.param("1x8x1", marks=pytest.mark.slow),
        pytest.param("1x1x8", marks=pytest.mark.slow),
    ],
)
def test_rows_stay_and_weights_come_once_a_pass(mesh):
    _, fsdp, tensor = map(int, mesh.split("x"))
    compiled = compiled_on(mesh)
    sent = compiled["sent"]
    assert any(one["kind"] == "all-reduce" for one in sent)  # metrics at least: the program was read
    gathered = weights_gathered(sent, fsdp, tensor)
    assert bool(gathered) == (fsdp > 1)
    kernels = [shape for i, o in CONFIG.projections.values() for shape in {(i // tensor, o), (i, o // tensor)}]
    for (computation, shape), count in gathered.items():
        if shape in kernels:
            assert count <= kernels.count(shape), f"{count} x {shape} gathered in {computation}"
    assert compiled["planned"] == pytest.approx(compiled["taken"], rel=0.2)
    planned, taken = compiled["planned_sent"], compiled["taken_sent"]
    for kind, size in planned.items():
        assert size == pytest.approx(taken[kind], rel=0.2), kind
    assert sum(planned.values()) == pytest.approx(sum(taken.values()), rel=0.2)


@pytest.mark.slow
@pytest.mark.parametrize("words", [(), ("full",), ("dots",), ("dots_except_mlp",)])
def test_memory_is_as_planned_on_one_device(words):
    compiled = compiled_on("1x1x1", *words)
    assert compiled["planned"] == pytest.approx(compiled["taken"], rel=0.2)


def test_groups_are_read_as_the_compiler_writes_them():
    pairs = [[0, 1], [2, 3], [4, 5], [6, 7]]
    across = [[0, 4], [1, 5], [2, 6], [3, 7]]
    assert groups_of("replica_groups={{0,1},{2,3},{4,5},{6,7}}, x", 8) == pairs
    assert groups_of("replica_groups=[4,2]<=[8], x", 8) == pairs
    assert groups_of("replica_groups=[4,2]<=[2,4]T(1,0), x", 8) == across
    assert groups_of("replica_groups=mesh['axis_0'=2,'axis_1'=4] {'axis_0'}, x", 8) == across
    assert groups_of("replica_groups=mesh['axis_0'=4,'axis_1'=2], device_ids=([2,4]T(1,0)) {'axis_1'}, x", 8) == across
    assert groups_of("source_target_pairs={{0,1},{2,3}}, x", 8) == [[0, 1], [2, 3]]
    assert groups_of("replica_groups={}, x", 8) == [list(range(8))]


PROGRAM = """
body.1 (x: f32[4]) -> f32[4] {
  ROOT %s = f32[4]{0} all-reduce(%x), replica_groups={{0,1},{2,3}}, to_apply=%add
}

inner.2 (x: f32[4]) -> f32[4] {
  %g = f32[8]{0} all-gather(%x), replica_groups=[2,2]<=[4], dimensions={0}
  ROOT %p = bf16[6]{0} collective-permute(%y), source_target_pairs={{0,1},{1,0}}
}

outer.3 (x: f32[4]) -> f32[4] {
  ROOT %w = f32[4] while(%x), condition=%c, body=%inner.2, metadata={op_name="jit(step)/reward/while/body/while"}
}

ENTRY %main (x: f32[4]) -> f32[4] {
  %a = f32[4] while(%x), condition=%c, body=%body.1, backend_config={"known_trip_count":{"n":"3"}}
  %b = f32[4] while(%a), condition=%c, body=%outer.3, metadata={op_name="jit(step)/reward/while"}
  ROOT %r = f32[2]{0} reduce-scatter(%b), replica_groups={{0,1,2,3}}, to_apply=%add
}
"""


def test_bytes_are_a_rings_as_often_as_the_loop_runs():
    found = sent(collectives(PROGRAM, 4, loops={"reward": 5, "rollout": 7}))
    assert found == {
        "all-gather": 5 * 32 / 2,  # a loop of unknown rounds, and one more within it, which counts once
        "all-reduce": 3 * 2 * 16 / 2,
        "reduce-scatter": 4 * 8 * 3 / 4,
        "collective-permute": 5 * 12,
    }
