"""Run in a process that shows eight devices: what one training step sends between them, on a mesh named on the line.

Prints JSON: `sent`, one entry a collective operation of the compiled step (computation, kind, groups of devices,
shapes), and bytes a device, `planned` by the dry run and `taken` by the compiled step.
"""

import json
import re
import sys

import jax
import jax.numpy as jnp
import numpy as np
from tiny_worlds import left_padded, query_of, random_ids, right_padded, sampling_settings, tiny

from gfn_jax.algorithms.entry import Ingredients
from gfn_jax.algorithms.gflownet import GFlowNet
from gfn_jax.commands import dry_run
from gfn_jax.environments import NoTool
from gfn_jax.models import decoder
from gfn_jax.models.language_model import LanguageModel
from gfn_jax.models.lora import LoraConfig
from gfn_jax.objectives.mixture import Objective
from gfn_jax.policy.constraint import Constants, Rules, make_constraint
from gfn_jax.rewards import PosteriorReward
from gfn_jax.training import mesh as meshes
from gfn_jax.training.optimizer import OptimizerConfig, make_optimizer
from gfn_jax.training.step import init_state, make_step
from gfn_jax.types import TrainState

# Every size of its own, so that a shape says what it is of; all that is split divides by eight.
CONFIG = tiny(vocab_size=72, width=40, num_heads=8, num_kv_heads=8, head_dim=8, mlp_width=56)
LORA = LoraConfig(3, 6, ("q", "k", "v", "o", "gate", "up", "down", "head"))
QUERIES, SAMPLES, REPLAYED, HORIZON, CAPACITY, ALLOWED = 16, 4, 1, 17, 5, 24


def compile_step(mesh: jax.sharding.Mesh, remat: bool = False) -> tuple[jax.stages.Compiled, int]:
    """The step of a small world with an answer after every prefix; nothing is computed.

    Returns:
        The step compiled for the mesh, and the bytes a device that the dry run thinks it takes.
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
    return jitted.lower(state, constants).compile(), sum(planned.values())


def collectives(text: str) -> list[dict]:
    """The collective operations of a compiled program's text."""
    found, computation = [], ""
    for line in text.splitlines():
        header = re.match(r"^(?:ENTRY )?%?([\w.\-]+) \(", line)
        computation = header[1] if header else computation
        kinds = "all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute"
        sent = re.search(rf" = (.*?) ({kinds})(-start)?\(", line)
        if sent:
            shapes = [
                (kind, [int(size) for size in sizes.split(",") if size])
                for kind, sizes in re.findall(r"\b([a-z]+\d*)\[([\d,]*)\]", sent[1])
            ]
            found.append(
                {"computation": computation, "kind": sent[2], "groups": groups_of(line), "shapes": shapes, "line": line}
            )
    return found


def groups_of(line: str) -> list[list[int]]:
    """Which devices speak to each other: XLA writes it in four ways."""

    def numbers(text: str) -> list[int]:
        return [int(x) for x in re.findall(r"\d+", text)]

    def counted(sizes: str, order: str | None) -> np.ndarray:
        ids = np.arange(8).reshape(numbers(sizes))
        return ids.transpose(numbers(order)) if order else ids

    pairs = re.search(r"(?:replica_groups|source_target_pairs)=\{(\{.*?\})\}", line)
    if pairs:
        return [numbers(group) for group in pairs[1].split("},{")]
    iota = re.search(r"replica_groups=\[(\d+),(\d+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", line)
    if iota:
        return counted(iota[3], iota[4]).reshape(int(iota[1]), int(iota[2])).tolist()
    order = r"(?:, device_ids=\(\[([\d,]+)\](?:T\(([\d,]+)\))?\))?"
    named = re.search(r"replica_groups=mesh\[(.*?)\]" + order + r" \{(.*?)\}", line)
    if named:
        sizes = dict(re.findall(r"'(\w+)'=(\d+)", named[1]))
        ids = counted(named[2] or "8", named[3]).reshape([int(size) for size in sizes.values()])
        over = [list(sizes).index(axis) for axis in re.findall(r"'(\w+)'", named[4])]
        rest = [axis for axis in range(len(sizes)) if axis not in over]
        return ids.transpose(*rest, *over).reshape(-1, int(np.prod([ids.shape[axis] for axis in over]))).tolist()
    assert "replica_groups={}" in line, line
    return [list(range(8))]


if __name__ == "__main__":
    decoder.VOCABULARY_BLOCK = 16  # several blocks even here
    MESH = meshes.make_mesh(meshes.MeshConfig(*map(int, sys.argv[1].split("x"))))
    with jax.set_mesh(MESH):
        compiled, planned = compile_step(MESH, remat="remat" in sys.argv)
    memory = compiled.memory_analysis()
    taken = memory.argument_size_in_bytes + memory.temp_size_in_bytes
    print(json.dumps({"sent": collectives(compiled.as_text()), "planned": planned, "taken": taken}))
