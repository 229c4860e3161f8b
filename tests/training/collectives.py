"""Run in a process that shows eight devices: what one training step sends between them, on a mesh named on the line,
with the remat policy named behind it.

Prints JSON: `sent`, one entry a collective operation of the compiled step (`training.collectives.Collective`); bytes of
memory a device, `planned` by the dry run and `taken` by the compiled step; and bytes that a device sends by kind of
collective, `planned_sent` and `taken_sent`.
"""

import dataclasses
import json
import sys

import jax
import jax.numpy as jnp
import numpy as np
from tiny_worlds import left_padded, query_of, random_ids, right_padded, sampling_settings, tiny

from gfn_jax.algorithms.entry import Ingredients
from gfn_jax.algorithms.gflownet import GFlowNet
from gfn_jax.commands import dry_run, interconnect
from gfn_jax.environments import NoTool
from gfn_jax.models import decoder
from gfn_jax.models.config import Remat
from gfn_jax.models.language_model import LanguageModel
from gfn_jax.models.lora import LoraConfig
from gfn_jax.objectives.mixture import Objective
from gfn_jax.policy.constraint import Constants, Rules, make_constraint
from gfn_jax.rewards import PosteriorReward, posterior
from gfn_jax.training import collectives
from gfn_jax.training import mesh as meshes
from gfn_jax.training.optimizer import OptimizerConfig, make_optimizer
from gfn_jax.training.step import init_state, make_step
from gfn_jax.types import TrainState

# Every size of its own, so that a shape says what it is of; all that is split divides by eight.
CONFIG = tiny(vocab_size=72, width=40, num_heads=8, num_kv_heads=8, head_dim=8, mlp_width=56)
LORA = LoraConfig(3, 6, ("q", "k", "v", "o", "gate", "up", "down", "head"))
QUERIES, SAMPLES, REPLAYED, HORIZON, CAPACITY, ALLOWED = 16, 4, 1, 17, 5, 24


def compile_step(mesh: jax.sharding.Mesh, remat: Remat = "none") -> tuple[jax.stages.Compiled, int, dict[str, float]]:
    """The step of a small world with an answer after every prefix; nothing is computed.

    Returns:
        The step compiled for the mesh, and what the dry run thinks: bytes that it takes, and sends by kind, a device.
    """
    settings = sampling_settings(
        queries=QUERIES, samples=SAMPLES, replay_samples=REPLAYED, tempered=0.5, replay_capacity=CAPACITY
    )
    objective = Objective((("subtb", 1.0),), "released_mean", samples_per_query=SAMPLES)
    algorithm = GFlowNet(Ingredients(PosteriorReward(), settings, LORA, objective, remat))
    optimizer = make_optimizer(OptimizerConfig(1e-3, total_steps=10))

    prompt = left_padded(random_ids(0, QUERIES, 23).tolist())
    answer = right_padded(random_ids(1, QUERIES, 4).tolist())

    def initial() -> tuple[TrainState, Constants]:
        base = LanguageModel(CONFIG, decoder.init_params(jax.random.key(0), CONFIG))
        constants = Constants(
            base=base,
            prepared=algorithm.given.reward.prepare(base),
            queries=query_of(prompt, answer=answer),
            query_log_weight=jnp.zeros(QUERIES),
            rules=Rules(make_constraint(CONFIG.vocab_size, 5, HORIZON - 1, token_ids=np.arange(ALLOWED)), NoTool()),
            root=jax.random.key(5),
        )
        return init_state(algorithm, optimizer, jax.random.key(1), constants), constants

    shapes = jax.eval_shape(initial)
    where = meshes.shardings(shapes, mesh, (*meshes.RULES, *meshes.REST_REPLICATED))
    state, constants = jax.tree.map(lambda x, to: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=to), shapes, where)
    step = make_step(algorithm, optimizer)
    jitted = jax.jit(step, donate_argnums=0, out_shardings=(where[0], meshes.replicated(mesh)))
    shape = dry_run.step_shape(algorithm, shapes[1])
    planned = dry_run.memory(algorithm, shapes[1], shapes[0], shape, jnp.dtype(jnp.float32), mesh.abstract_mesh)
    sent = interconnect.sent(algorithm, shapes[1], shapes[0], shape, 1, mesh.abstract_mesh)
    if remat == "none":
        del sent["recomputed"]
    return jitted.lower(state, constants).compile(), sum(planned.values()), interconnect.total(*sent.values())


if __name__ == "__main__":
    decoder.VOCABULARY_BLOCK = 16  # several blocks even here
    MESH = meshes.make_mesh(meshes.MeshConfig(*map(int, sys.argv[1].split("x"))))
    ROWS = QUERIES * (SAMPLES - REPLAYED) // (MESH.shape["data"] * MESH.shape["fsdp"])
    posterior.ANSWER_TOKENS = 6 * ROWS * 3  # behind six prefixes at once
    with jax.set_mesh(MESH):
        compiled, planned, planned_sent = compile_step(MESH, remat=sys.argv[2] if sys.argv[2:] else "none")
    memory = compiled.memory_analysis()
    taken = memory.argument_size_in_bytes + memory.temp_size_in_bytes
    loops = {"rollout": HORIZON - 2, "reward": -(-HORIZON // 6)}  # tokens that are read; six prefixes at a time
    found = collectives.collectives(compiled.as_text(), MESH.size, loops)
    sent = {"sent": list(map(dataclasses.asdict, found)), "taken_sent": collectives.sent(found)}
    print(json.dumps({**sent, "planned_sent": planned_sent, "planned": planned, "taken": taken}))
