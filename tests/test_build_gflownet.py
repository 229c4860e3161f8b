"""How a run is put together, where no other test looks."""

import pathlib

import jax
import numpy as np

from gfn_jax import launch
from gfn_jax.build_gflownet import gflownet_parts, initial
from gfn_jax.models.checkpoint import load_model
from gfn_jax.text.loading import load_tokenizer, model_folder
from gfn_jax.training import mesh as meshes

CONFIG = pathlib.Path(__file__).parents[1] / "configs" / "arith.py"


def test_seeds_are_rewarded_in_parts_as_they_are_at_once():
    """Five demonstrations, three at a time (the last part is filled up) and all together."""
    folder = model_folder("tiny-arithmetic")
    model, params = load_model(folder)
    buffers = []
    for samples in (3, 8):
        words = ["--config.arithmetic.seed_demonstrations=5", "--config.gflownet.queries=1"]
        words += [f"--config.gflownet.samples={samples}", "--config.gflownet.replay_samples=1"]
        config = launch.parse(["launch", f"--config={CONFIG}", *words]).config
        mesh = meshes.abstract_mesh(meshes.MeshConfig(1, 1, 1))
        parts = gflownet_parts(config, model, load_tokenizer(folder), mesh)
        buffers.append(jax.device_get(initial(config, parts, params)[1].replay))
    parted, whole = buffers
    filled = np.asarray(whole.filled)
    assert filled.any(1).tolist() == [True] * 5 + [False] * (len(filled) - 5)
    np.testing.assert_array_equal(np.asarray(parted.filled), filled)
    np.testing.assert_allclose(parted.log_reward, whole.log_reward, atol=1e-4)
    rewards = whole.log_reward[filled]
    assert len(np.unique(np.round(rewards, 3), axis=0)) == 5, "every demonstration has its own"
