"""Run in a process that shows eight devices: whether what lands on them is what was saved. Prints JSON."""

import json
import pathlib
import sys

import jax
import jax.numpy as jnp
import numpy as np
from test_model_checkpoint import GPT2, LLAMA, NEOX, random_params

from gfn_jax.models.checkpoint import load_model, save_model
from gfn_jax.models.decoder import init_params
from gfn_jax.models.quantize import quantize_params
from gfn_jax.training.mesh import MeshConfig, make_mesh, shardings


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
    return {"equal": equal, **quantized(folder / "llama")}


def quantized(folder: pathlib.Path) -> dict[str, bool]:
    """Codes made on the devices are those made on one, and lie where their floats would."""
    where = placements(LLAMA, make_mesh(MeshConfig(1, 4, 2)))
    found = {}
    for kind in ("int8", "nf4"):
        expected = quantize_params(load_model(folder)[1], kind)
        _, loaded = load_model(folder, shardings=where, quantize=kind)
        found[kind] = all(jax.tree.leaves(jax.tree.map(np.array_equal, loaded, expected)))
        if kind == "int8":  # as many codes as weights: the same sharding fits both
            layers = loaded["layers"]
            places = {name: layers[name]["kernel"].codes.sharding for name in LLAMA.projections}
            found["split"] = all(place == where["layers"][name]["kernel"] for name, place in places.items())
    return found


if __name__ == "__main__":
    print(json.dumps(compare(pathlib.Path(sys.argv[1]))))
