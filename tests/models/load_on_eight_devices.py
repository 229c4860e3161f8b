"""Run in a process that shows eight devices: what lands on them, and what memory that takes. Prints JSON."""

import json
import pathlib
import subprocess
import sys
import threading
import time

import jax
import jax.numpy as jnp
import numpy as np
from test_model_checkpoint import GPT2, LLAMA, NEOX, random_params

from gfn_jax.models.checkpoint import load_model, read_config, save_model
from gfn_jax.models.config import ModelConfig
from gfn_jax.models.decoder import init_params
from gfn_jax.training.mesh import MeshConfig, make_mesh, shardings

BIG = ModelConfig(
    vocab_size=32000,
    width=1024,
    num_layers=16,
    num_heads=16,
    num_kv_heads=16,
    head_dim=64,
    mlp_width=2816,
    max_positions=1024,
    rotary_dim=64,
)


def placements(config, mesh):
    return shardings(jax.eval_shape(lambda key: init_params(key, config), jax.random.key(0)), mesh)


def compare(folder: pathlib.Path) -> dict[str, bool]:
    """Every layout of the mesh holds what was saved, fused projections split within a device's columns too."""
    equal = True
    for model_type, config in {"llama": LLAMA, "gpt2": GPT2, "gpt_neox": NEOX}.items():
        params = random_params(config)
        save_model(folder / model_type, config, params, model_type, shard_bytes=2000)
        for sizes in ((1, 4, 2), (2, 1, 4), (8, 1, 1)):
            where = placements(config, make_mesh(MeshConfig(*sizes)))
            _, loaded = load_model(folder / model_type, jnp.float32, where)
            same = jax.tree.map(lambda x, y, w: np.array_equal(x, y) and x.sharding == w, loaded, params, where)
            equal &= all(jax.tree.leaves(same))
    return {"equal": equal}


def status(name: str) -> float:
    """A figure of this process's memory in MB."""
    lines = pathlib.Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name + ":")) * 1024 / 1e6


def measure(folder: pathlib.Path) -> dict[str, float]:
    """What loading a gigabyte takes in this process beyond the parameters themselves, in MB.

    On CPU the devices' memory is the host's. So extra = (peak resident memory while loading) - (resident memory
    before, libraries imported) - (bytes that end up on the devices, copies on several devices included). Resident
    memory (VmRSS) counts the pages of the mapped files that are in use, too.
    """
    subprocess.run([sys.executable, __file__, "write", folder], check=True, stdout=subprocess.DEVNULL)
    where = placements(BIG, make_mesh(MeshConfig(1, 4, 2)))
    read_config(folder)  # imports transformers, which is no part of loading
    before, peak, done = status("VmRSS"), 0.0, threading.Event()

    def watch() -> None:
        nonlocal peak
        while not done.is_set():
            peak = max(peak, status("VmRSS"))
            time.sleep(0.002)

    watcher = threading.Thread(target=watch)
    watcher.start()
    start = time.perf_counter()
    params = jax.block_until_ready(load_model(folder, jnp.float32, where)[1])
    seconds = time.perf_counter() - start
    done.set()
    watcher.join()
    leaves = jax.tree.leaves(params)
    held = sum(shard.data.nbytes for leaf in leaves for shard in leaf.addressable_shards) / 1e6
    return {
        "parameters_mb": round(sum(leaf.nbytes for leaf in leaves) / 1e6),
        "on_devices_mb": round(held),
        "before_mb": round(before),
        "peak_mb": round(peak),
        "extra_mb": round(peak - before - held),
        "seconds": round(seconds, 1),
    }


def write(folder: pathlib.Path) -> None:
    """A sharded checkpoint of `BIG`."""
    shapes = jax.eval_shape(lambda key: init_params(key, BIG), jax.random.key(0))
    params = jax.tree.map(lambda leaf: np.full(leaf.shape, 0.5, leaf.dtype), shapes)
    save_model(folder, BIG, params, "llama", shard_bytes=300 * 10**6)


if __name__ == "__main__":
    scenario = {"compare": compare, "measure": measure, "write": write}[sys.argv[1]]
    print(json.dumps(scenario(pathlib.Path(sys.argv[2]))))
