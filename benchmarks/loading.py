"""The host memory that loading takes: a gigabyte of sharded checkpoint onto eight devices.

    python benchmarks/loading.py --out benchmarks/results

The devices are eight parts of the CPU, so that their memory is the host's, and what the loader itself takes is

    extra = (peak resident memory) - (resident memory before) - (bytes that stay on the devices)

in a process of its own whose libraries are imported. Resident memory counts the pages of mapped files that are in
use, too. Linux only. Writes loading.json.
"""

import argparse
import json
import os
import pathlib
import platform
import shlex
import subprocess
import sys
import tempfile
import time

import jax
import jax.numpy as jnp
import numpy as np

from gfn_jax.models.checkpoint import load_model, read_config, save_model
from gfn_jax.models.config import ModelConfig
from gfn_jax.models.decoder import init_params
from gfn_jax.models.quantize import Kind
from gfn_jax.training.mesh import MeshConfig, make_mesh, shardings

MODEL = ModelConfig(
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
DEVICES, SHARD_BYTES = 8, 140 * 10**6
LIMIT = 300  # MB that loading floats may take beyond them
RUNS = (("float32", "none"), ("bfloat16", "none"), ("bfloat16", "int8"), ("bfloat16", "nf4"))
COLUMNS = ("dtype", "quantize", "before_mb", "on_devices_mb", "peak_mb", "extra_mb")


def parse() -> argparse.Namespace:
    """The command line; what stands behind --load is for the process that measures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("benchmarks/results"))
    parser.add_argument("--load", nargs=3, metavar=("FOLDER", "DTYPE", "QUANTIZE"), help=argparse.SUPPRESS)
    return parser.parse_args()


def abstract(dtype: str = "float32"):
    """The model's parameters as shapes."""
    return jax.eval_shape(lambda key: init_params(key, MODEL, jnp.dtype(dtype)), jax.random.key(0))


def write(folder: pathlib.Path) -> None:
    """A sharded checkpoint, each value its own: a compressing file system gains nothing."""
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda leaf: rng.standard_normal(leaf.shape, np.float32), abstract())
    save_model(folder, MODEL, params, "llama", shard_bytes=SHARD_BYTES)


def resident(which: str) -> float:
    """This process's resident memory in MB: `VmRSS` now, `VmHWM` at its highest."""
    lines = pathlib.Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{which}:")) * 1024 / 1e6


def measure(folder: str, dtype: str, quantize: Kind) -> dict[str, float | str]:
    """Loads onto an fsdp mesh of all devices."""
    where = shardings(abstract(dtype), make_mesh(MeshConfig(1, DEVICES, 1)))
    read_config(folder)  # imports transformers, which is no part of loading
    pathlib.Path("/proc/self/clear_refs").write_text("5")  # the highest so far is what it is now
    before = resident("VmRSS")
    params = jax.block_until_ready(load_model(folder, jnp.dtype(dtype), where, quantize)[1])
    peak = resident("VmHWM")
    held = sum(shard.data.nbytes for leaf in jax.tree.leaves(params) for shard in leaf.addressable_shards) / 1e6
    sizes = {"before": before, "on_devices": held, "peak": peak, "extra": peak - before - held}
    rounded = {f"{name}_mb": round(size) for name, size in sizes.items()}
    return {"dtype": dtype, "quantize": quantize, **rounded}


def main() -> None:
    """Writes the checkpoint, loads it in every way, each in its own process, and prints the table."""
    args = parse()
    if args.load:
        print(json.dumps(measure(*args.load)))
        return
    flags = {"XLA_FLAGS": f"--xla_force_host_platform_device_count={DEVICES}", "JAX_PLATFORMS": "cpu"}
    flags |= {"JAX_ENABLE_COMPILATION_CACHE": "false"}
    with tempfile.TemporaryDirectory() as folder:
        write(pathlib.Path(folder))
        files = [path.stat().st_size for path in pathlib.Path(folder).glob("*.safetensors")]
        print(f"{len(files)} files, {sum(files) / 1e6:.0f} MB")
        runs = []
        for dtype, quantize in RUNS:
            command = [sys.executable, __file__, "--load", folder, dtype, quantize]
            done = subprocess.run(command, env=os.environ | flags, stdout=subprocess.PIPE, text=True, check=True)
            runs.append(json.loads(done.stdout))
    print("  ".join(COLUMNS))
    for run in runs:
        print("  ".join(f"{run[name]:>{len(name)}}" for name in COLUMNS))
    facts = {
        "command": shlex.join(["python", *sys.argv]),
        "date": time.strftime("%Y-%m-%d"),
        "machine": f"{os.cpu_count()}-core {platform.machine()}, cpu, {DEVICES} virtual devices",
        "jax": jax.__version__,
        "files": len(files),
        "checkpoint_mb": round(sum(files) / 1e6),
        "runs": runs,
    }
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "loading.json").write_text(json.dumps(facts, indent=1) + "\n")
    beyond = [run["dtype"] for run in runs if run["quantize"] == "none" and run["extra_mb"] >= LIMIT]
    if beyond:
        sys.exit(f"error: loading {', '.join(beyond)} took {LIMIT} MB or more beyond the parameters")


if __name__ == "__main__":
    main()
