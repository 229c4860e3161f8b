import dataclasses
import logging
import os
import pathlib
import subprocess
import sys
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import pytest
from flax import struct
from jax.sharding import PartitionSpec as P

from gfn_jax import replay
from gfn_jax.models.config import ModelConfig
from gfn_jax.models.decoder import init_params
from gfn_jax.models.lora import LoraConfig, init_lora
from gfn_jax.training import mesh as meshes
from gfn_jax.training.mesh import MeshConfig, check_rows, make_mesh, partition, shardings
from gfn_jax.training.optimizer import OptimizerConfig, make_optimizer

LLAMA = ModelConfig(
    vocab_size=32,
    width=16,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    head_dim=4,
    mlp_width=24,
    max_positions=64,
    rotary_dim=4,
)
# Everything that a model may have and this one has not.
WHOLE = dataclasses.replace(
    LLAMA,
    positions="learned",
    norm="layer",
    norm_placement="sandwich",
    qkv_bias=True,
    out_bias=True,
    mlp_bias=True,
    head_bias=True,
    qk_norm=True,
)
TARGETS = ("q", "k", "v", "o", "gate", "up", "down", "head")
EIGHT = SimpleNamespace(shape={"data": 2, "fsdp": 2, "tensor": 2})


@struct.dataclass
class State:
    step: jax.Array
    trainable: dict
    opt_state: tuple
    memory: replay.ReplayBuffer


def run_with_eight_devices(scenario: str) -> str:
    flags = {
        "XLA_FLAGS": f"--xla_force_host_platform_device_count=8 {os.environ.get('XLA_FLAGS', '')}",
        "JAX_PLATFORMS": "cpu",
    }
    script = pathlib.Path(__file__).with_name("eight_devices.py")
    done = subprocess.run(
        [sys.executable, script, scenario],
        env=os.environ | flags,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def state_shapes(config: ModelConfig) -> State:
    def make(key):
        lora = init_lora(key, config, LoraConfig(rank=4, alpha=8, targets=TARGETS))
        trainable = {"lora": lora, "log_z": jnp.zeros(6)}
        optimizer = make_optimizer(OptimizerConfig(1e-3, total_steps=10))
        return State(jnp.zeros(()), trainable, optimizer.init(trainable), replay.init(6, 5, 4))

    return jax.eval_shape(make, jax.random.key(0))


@pytest.mark.parametrize("config", [LLAMA, WHOLE])
def test_rules_cover_every_parameter(config):
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    shardings(jax.eval_shape(lambda key: init_params(key, config), jax.random.key(0)), mesh)
    shardings(state_shapes(config), mesh)


def test_bytes_of_a_device_that_is_not_here():
    mesh = meshes.abstract_mesh(MeshConfig(data=4, fsdp=2, tensor=4))
    tree = {"layers": {"up": {"kernel": jnp.zeros((2, 16, 24))}}, "final_norm": {"scale": jnp.zeros(16)}}
    assert meshes.bytes_per_device(tree, mesh) == 4 * (2 * 16 * 24 // 8 + 16)
    assert meshes.mesh_sizes(MeshConfig(-1, 2, 2), 8) == (2, 2, 2)
    with pytest.raises(ValueError, match="mesh data=-1 x fsdp=-1 x tensor=1: sizes must be positive"):
        meshes.abstract_mesh(MeshConfig(-1, -1))


def test_a_parameter_without_a_rule_is_named():
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    with pytest.raises(ValueError, match="no sharding rule covers 'layers/router/kernel'"):
        shardings({"layers": {"router": {"kernel": jnp.zeros((2, 3))}}}, mesh)
    rules = (*meshes.RULES, *meshes.REST_REPLICATED)
    assert shardings({"table": jnp.zeros((2, 3))}, mesh, rules)["table"].spec == P()


@pytest.mark.parametrize(
    ("path", "shape", "spec"),
    [
        ("embed/tokens", (32, 16), P("tensor", None)),
        ("layers/up/kernel", (2, 16, 24), P(None, "fsdp", "tensor")),
        ("layers/down/kernel", (2, 24, 16), P(None, "tensor", "fsdp")),
        ("layers/q/kernel/codes", (2, 8, 16), P(None, "fsdp", "tensor")),
        ("layers/q/kernel/scales", (2, 4, 16), P(None, "fsdp", "tensor")),
        ("layers/q/kernel/scale", (2, 1, 16), P(None, None, "tensor")),
        ("layers/down/kernel/codes", (2, 12, 16), P(None, "tensor", "fsdp")),
        ("layers/down/kernel/scales", (2, 4, 16), P(None, "tensor", "fsdp")),
        ("layers/down/kernel/scale", (2, 1, 16), P(None, None, "fsdp")),
        ("layers/attn_norm/scale", (2, 16), P()),
        ("trainable/lora/layers/o/a", (2, 16, 4), P(None, "tensor", None)),
        ("opt_state/1/0/mu/lora/layers/q/b", (2, 4, 16), P(None, None, "tensor")),
        ("opt_state/1/0/count", (), P()),
        ("memory/completion", (8, 5, 4), P(("data", "fsdp"))),
        # What does not divide is not split, dimension by dimension.
        ("layers/up/kernel", (2, 16, 23), P(None, "fsdp", None)),
        ("head/kernel", (15, 32), P(None, "tensor")),
        ("memory/completion", (6, 5, 4), P(None)),
    ],
)
def test_partition(path, shape, spec):
    assert partition(path, shape, EIGHT, meshes.RULES) == spec


def test_what_is_not_split_is_said_once(caplog):
    with caplog.at_level(logging.WARNING, logger="gfn_jax"):
        for _ in range(2):
            partition("head/kernel", (1025, 1024), EIGHT, meshes.RULES)
    assert caplog.messages == ["head/kernel: a dimension of 1025 does not divide by fsdp=2 and is not split"]


def test_what_is_small_is_left_whole_without_a_word(caplog):
    """The head of a model of 155 tokens, whose 80 kB every device can hold."""
    with caplog.at_level(logging.WARNING, logger="gfn_jax"):
        assert partition("head/kernel", (128, 155), EIGHT, meshes.RULES) == P("fsdp", None)
    assert caplog.messages == []


@pytest.mark.parametrize(
    "sizes", [MeshConfig(data=3), MeshConfig(data=-1, fsdp=-1), MeshConfig(tensor=2), MeshConfig(data=0)]
)
def test_a_mesh_that_does_not_fit(sizes):
    with pytest.raises(ValueError, match=r"mesh data=.* x fsdp=.* x tensor="):
        make_mesh(sizes, jax.devices()[:1])


def test_rows_must_divide():
    check_rows(8, EIGHT)
    with pytest.raises(ValueError, match=r"a batch of 10 does not divide over 4 devices \(data=2 x fsdp=2\)"):
        check_rows(10, EIGHT)


@pytest.mark.parametrize("scenario", ["forward", "replay", "restore"])
def test_eight_devices_do_what_one_does(scenario):
    assert run_with_eight_devices(scenario).strip() == "equal"


def test_programs_of_several_cpus_are_not_kept_on_disk(tmp_path):
    code = """
import jax
from gfn_jax.training import mesh
jax.jit(lambda x: x + 1)(1.0)
mesh.use_mesh(mesh.MeshConfig())
jax.jit(lambda x: x * 3)(1.0)
"""
    kept = {}
    for devices in (1, 2):
        folder = tmp_path / str(devices)
        own = {
            "XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={devices}",
            "JAX_COMPILATION_CACHE_DIR": str(folder),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        }
        subprocess.run([sys.executable, "-c", code], env=os.environ | own, check=True, timeout=120)
        kept[devices] = len(list(folder.glob("*-cache")))
    assert kept[1] > kept[2] > 0  # on one device both, on two the one from before the mesh
