"""Run in a process that shows eight devices: prints `equal` where they compute what one does."""

import pathlib
import sys
import tempfile

import jax
import jax.numpy as jnp
import numpy as np
from test_mesh import LLAMA, TARGETS

from gfn_jax import replay
from gfn_jax.models import decoder
from gfn_jax.models.language_model import LanguageModel
from gfn_jax.models.lora import LoraConfig, init_lora
from gfn_jax.models.partition import ROWS
from gfn_jax.training.checkpoint import Checkpointer
from gfn_jax.training.digests import digests
from gfn_jax.training.mesh import MeshConfig, make_mesh, shardings
from gfn_jax.types import Rollout, Tokens, Trajectory

MESH = make_mesh(MeshConfig(data=2, fsdp=-1, tensor=2))


def place(tree):
    return jax.device_put(tree, shardings(tree, MESH))


def forward() -> None:
    """Logits, and their gradient by the adapter."""
    params = decoder.init_params(jax.random.key(0), LLAMA)
    lora = init_lora(jax.random.key(1), LLAMA, LoraConfig(rank=4, alpha=8, targets=TARGETS))
    lora = jax.tree.map(lambda x: x + 0.1, lora)
    ids = jax.random.randint(jax.random.key(2), (8, 10), 0, LLAMA.vocab_size)
    tokens = Tokens(ids=ids, mask=jnp.arange(10) >= jnp.arange(8)[:, None] % 3)

    @jax.jit
    def loss_and_gradient(params, lora, tokens):
        def loss(lora):
            hidden, _ = decoder.prefill(LanguageModel(LLAMA, params, lora), tokens)
            logits = decoder.logits(decoder.select_head(LanguageModel(LLAMA, params, lora)), hidden)
            return jnp.square(logits).mean(), logits

        return jax.value_and_grad(loss, has_aux=True)(lora)

    one = loss_and_gradient(params, lora, tokens)
    split, kernel = place(params), (2, 16, 24)
    assert split["layers"]["up"]["kernel"].addressable_shards[0].data.shape == (2, 8, 12)
    assert split["layers"]["up"]["kernel"].shape == kernel
    with jax.set_mesh(MESH):
        eight = loss_and_gradient(split, place(lora), jax.device_put(tokens, jax.NamedSharding(MESH, jax.P(ROWS))))
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(eight), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5, rtol=1e-5)


def replay_buffer() -> None:
    """Two additions and a draw: the same items on every device, bit for bit."""
    key, horizon = jax.random.key(3), 5
    ids = jax.random.randint(key, (2, 16, horizon), 0, 4)
    length = jax.random.randint(jax.random.key(4), (2, 16, 1), 1, horizon)
    place_ = jnp.arange(horizon)
    rollout = Rollout(ids, place_ < length, place_ <= length, place_ <= length, jnp.zeros((2, 16, horizon)))
    batch = Trajectory(rollout, jax.random.normal(key, (2, 16, horizon)))

    @jax.jit
    def fill(buffer, batch):
        for turn in range(2):
            part = jax.tree.map(lambda x, turn=turn: x[turn], batch)
            buffer = replay.add(buffer, jnp.arange(4) + turn, part, 0.25)
        return buffer, replay.sample(buffer, key, jnp.arange(4), 3, {"reward": 1.0})

    buffer = replay.init(8, 3, horizon)
    one = fill(buffer, batch)
    with jax.set_mesh(MESH):
        eight = fill(place({"memory": buffer})["memory"], batch)
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(eight), strict=True):
        np.testing.assert_array_equal(a, b)


def restore() -> None:
    """Saved from eight devices, read onto one, and onto another mesh of eight."""
    params = decoder.init_params(jax.random.key(0), LLAMA)
    with tempfile.TemporaryDirectory() as folder:
        writer = Checkpointer(pathlib.Path(folder), "digest")
        writer.save(1, place(params), seconds=0.0)
        writer.wait()
        other = make_mesh(MeshConfig(data=1, fsdp=4, tensor=2))
        whole = digests(params)
        for template in (params, jax.device_put(params, shardings(params, other))):
            state = Checkpointer(pathlib.Path(folder), "digest").restore(template).state
            for a, b in zip(jax.tree.leaves(state), jax.tree.leaves(template), strict=True):
                assert a.sharding == b.sharding
                np.testing.assert_array_equal(a, b)
            assert digests(state) == whole


if __name__ == "__main__":
    assert len(jax.devices()) == 8
    {"forward": forward, "replay": replay_buffer, "restore": restore}[sys.argv[1]]()
    print("equal")
