"""What a run would take, from its config alone: `python -m gfn_jax.launch --config=... --dry_run`.

Nothing is allocated, no weight is read and nothing downloaded but the config.json of a hub's model that is not known
here: the run is built from shapes (`jax.eval_shape`) and every array divided as the sharding rules divide it, on a mesh
whose devices need not exist. Base, adapter, optimizer, buffer and caches are exact; activations are an estimate, in
bytes of a micro-batch, whose rows are split n = data x fsdp ways and of whose features a share is split over tensor
(`tensor_share`):

    backward = (r + w / L + g) / n,      reward = max(attention, MLP, logits) of its larger pass / n

r: what JAX keeps for the backward pass, read off the traced program; l: the same without remat. w: one of the L layers
is worked on, w = l / 4 + (l - r) / 2: gradients of its values, and those that are made again; XLA has both only in part
at a time, and these two shares are fitted. g: the logits that are worked on at once, where they are too many to be kept
(`decoder.by_columns`). The reward's pass keeps nothing, but holds what one layer works on, of all tokens of Z or of as
many answers as are read at a time: two copies of the attention's float32 scores, or the MLP's inner values, or a block
of logits. The largest of backward, reward and the kernels that a rollout has merged its adapter into counts. Beside
what XLA allocates for tiny models on CPUs, the sum is within 20 % (tests/training/test_collectives.py).
"""

import dataclasses
import functools
from collections.abc import Collection, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
from jax.typing import DTypeLike

from gfn_jax.algorithms.entry import Ingredients
from gfn_jax.algorithms.on_task import OnPolicy
from gfn_jax.commands.dry_run_texts import TEXTS, dry_run_texts
from gfn_jax.commands.interconnect import sent
from gfn_jax.commands.plan import (
    describe_model,
    exchanged,
    gathered,
    left_behind,
    merges,
    read_again,
    readable,
    reward_passes,
    rewarded_at_once,
    tables,
    tensor_share,
    times,
)
from gfn_jax.models.config import ModelConfig
from gfn_jax.models.decoder import LOGITS_AT_ONCE, VOCABULARY_BLOCK, empty_cache, init_params
from gfn_jax.models.flops import StepShape
from gfn_jax.models.language_model import LanguageModel
from gfn_jax.models.partition import ROWS, parts_of
from gfn_jax.models.quantize import quantize_params
from gfn_jax.policy.constraint import Constants
from gfn_jax.rewards.posterior import LONGEST_AT_ONCE, PIECE, prefixes_at_once
from gfn_jax.runs.budget import contexts, step_flops, step_shape
from gfn_jax.runs.config import read_policy_run
from gfn_jax.runs.opening import count
from gfn_jax.runs.policy import initial, policy_parts
from gfn_jax.text.loading import load_tokenizer, model_folder
from gfn_jax.training import mesh as meshes
from gfn_jax.training.mesh import bytes_per_device, nbytes
from gfn_jax.types import Keys, PyTree, TrainState

REST: meshes.Rules = (*meshes.RULES, *meshes.REST_REPLICATED)


@dataclasses.dataclass(frozen=True)
class Estimate:
    """What a run takes.

    Attributes:
        path: the model's name.
        stand_in: whose tokenizer lengths were counted with, where the model's own is not here; else None.
        mesh: devices an axis.
        parameters: of the base.
        adapter_parameters: of the adapter.
        adapter_bytes: of the whole adapter, as a file would hold it.
        memory: kind -> bytes a device.
        flops: part -> operations a step, on all devices together.
        traffic: part -> bytes a step that a device reads and writes at least.
        sent: part -> kind of collective -> bytes a step that a device sends to others.
        dtype: of the matrix products.
        shape: the step's sizes.
        steps: of the run.
    """

    path: str
    stand_in: str | None
    mesh: Mapping[str, int]
    parameters: int
    adapter_parameters: int
    adapter_bytes: int
    memory: Mapping[str, int]
    flops: Mapping[str, int]
    traffic: Mapping[str, int]
    sent: Mapping[str, Mapping[str, float]]
    dtype: str
    shape: StepShape
    steps: int


def dry_run(config: ml_collections.ConfigDict, given: Collection[str] = ()) -> str:
    """The estimate as text; `given` are the config's keys that the command line has set.

    Raises:
        ValueError, FileNotFoundError: what is wrong with the config, in one line.
    """
    if config.task in TEXTS:
        return dry_run_texts(config)
    return report(estimate(config, given))


def report(plan: Estimate) -> str:
    """The estimate as a table."""
    shape, tokenizer = plan.shape, ""
    if plan.stand_in is not None:
        tokenizer = f" (counted with the tokenizer of {plan.stand_in}; the model's is not here)"
    lines = [
        f"{plan.path}: {plan.parameters:,} parameters; "
        f"adapter {plan.adapter_parameters:,} ({readable(plan.adapter_bytes)})",
        f"step: {shape.queries} queries x {shape.samples} samples; tokens: prompt {shape.prompt}, "
        f"demonstrations {shape.few_shot}, completion {shape.horizon}, answer {shape.answer}{tokenizer}",
        *tables(plan.mesh, plan.memory, plan.flops),
        *exchanged(plan.sent),
        *times(plan.mesh, plan.memory, plan.flops, plan.traffic, plan.dtype, plan.steps, plan.sent),
    ]
    return "\n".join(lines)


def estimate(config: ml_collections.ConfigDict, given: Collection[str] = ()) -> Estimate:
    """Builds the run from shapes.

    Raises:
        ValueError, FileNotFoundError: what is wrong with the config, in one line.
    """
    run = read_policy_run(config, given)
    model, tokenizer = describe_model(run.model.path)
    dtype = jnp.dtype(run.model.dtype)
    mesh = meshes.abstract_mesh(run.mesh)
    shipped = tokenizer or load_tokenizer(model_folder(run.entry.stand_in))
    parts = policy_parts(run, model, shipped, mesh)
    floats = jax.eval_shape(lambda key: init_params(key, model, dtype), jax.random.key(0))
    base = LanguageModel(model, jax.eval_shape(functools.partial(quantize_params, kind=run.model.quantize), floats))
    _ = parts.task.environment  # its tables are read while the rest is traced: they must be there before
    constants, state = jax.eval_shape(functools.partial(initial, run, parts), base)
    algorithm = parts.algorithm
    if not isinstance(getattr(algorithm, "given", None), Ingredients):
        raise ValueError(f"--dry_run asks an algorithm for what it was given, and {run.values.algorithm} does not say")
    if run.method.program is not None and state.memory is None:
        stand_in = "the task's demonstrations stand for what its rounds will find"
        raise ValueError(f"--dry_run of {run.values.algorithm}: {stand_in}, and the task {run.values.task} has none")
    shape, passes = step_shape(algorithm, constants), len(contexts(constants.prepared))
    flops = step_flops(algorithm, model, shape, passes)
    between = sent(algorithm, constants, state, shape, passes, mesh)
    return Estimate(
        path=run.model.path,
        stand_in=run.entry.stand_in if tokenizer is None else None,
        mesh=dict(mesh.shape),
        parameters=count(floats),
        adapter_parameters=count(state.trainable.lora),
        adapter_bytes=nbytes(state.trainable.lora),
        memory=memory(algorithm, constants, state, shape, dtype, mesh),
        flops=flops,
        traffic=traffic(algorithm, constants, state, shape, passes, mesh),
        sent={part: between[part] for part in flops},
        dtype=run.model.dtype,
        shape=shape,
        steps=run.values.steps,
    )


def memory(
    algorithm: Any,
    constants: Constants,
    state: TrainState,
    shape: StepShape,
    dtype: jnp.dtype,
    mesh: jax.sharding.AbstractMesh,
) -> dict[str, int]:
    """Bytes a device by kind."""
    config, model = algorithm.given.sampling, constants.base.shape
    split = parts_of(ROWS, mesh)
    share = tensor_share(model, mesh, shape.prompt + shape.horizon)
    queries, sampling = config.queries // config.micro_batches, isinstance(algorithm, OnPolicy)
    kind = algorithm.given.cache_dtype

    def cache(rows: int, length: int, kind: DTypeLike | None = None) -> int:
        return nbytes(jax.eval_shape(lambda: empty_cache(model, rows, length, kind or dtype))) // split

    adapter = bytes_per_device({"trainable": state.trainable}, mesh)
    worked_on = int(activations(algorithm, constants, state, shape, mesh) // split * share)
    tables = (constants.queries, constants.query_log_weight, constants.rules)
    return {
        "base": bytes_per_device(constants.base.params, mesh, REST),
        "adapter": adapter,
        "optimizer": bytes_per_device({"opt_state": state.opt_state}, mesh),
        "gradient": 2 * adapter,  # the sum over micro-batches, and the newest
        "buffer": bytes_per_device({"memory": state.memory}, mesh),
        "task's tables": nbytes(tables),
        "prompt cache": cache(queries * algorithm.given.copies, shape.prompt, kind),
        "rollout cache": sampling * cache(queries * config.fresh_samples, shape.horizon - 1, kind),
        "reward cache": nbytes(constants.prepared) + sampling * cache(queries * algorithm.given.copies, shape.context),
        "activations": max(worked_on, copied(algorithm, constants, state, shape, mesh)),
        "weights in use": in_use(constants.base.params, model, dtype, mesh),
    }


def traffic(
    algorithm: Any,
    constants: Constants,
    state: TrainState,
    shape: StepShape,
    passes: int,
    mesh: jax.sharding.AbstractMesh,
) -> dict[str, int]:
    """Bytes a step that a device reads and writes at least, by the parts of `step_flops`.

    A device reads whole layers under fsdp, having been sent the others' shares; its share of them under tensor.
    """
    model, sampling, dtype = (
        constants.base.shape,
        algorithm.given.sampling,
        constants.base.params["embed"]["tokens"].dtype,
    )
    parts, split = sampling.micro_batches, parts_of(ROWS, mesh)
    layers = bytes_per_device({"layers": constants.base.params["layers"]}, gathered(mesh))
    again = bytes_per_device({"layers": read_again(constants.base.params, algorithm.given.remat)}, gathered(mesh))
    adapter = bytes_per_device({"trainable": state.trainable}, mesh)
    moments = bytes_per_device({"opt_state": state.opt_state}, mesh)

    def head(columns: int) -> int:
        return columns * model.width * dtype.itemsize // mesh.shape["tensor"]

    policy = layers + adapter + head(shape.allowed)
    sampled: dict[str, int] = {}
    if isinstance(algorithm, OnPolicy):
        cache = jax.eval_shape(lambda: empty_cache(model, 1, 1, algorithm.given.cache_dtype or dtype))
        length, token = shape.horizon - 1, nbytes((cache.k, cache.v))
        own = shape.queries * sampling.fresh_samples * length * (length - 1) // 2
        sampled_with = parts * shape.horizon * policy
        if merged := copied(algorithm, constants, state, shape, gathered(mesh)):  # read and written; the adapter read
            sampled_with = parts * (shape.horizon * (policy - adapter) + adapter + 2 * merged)
        looked_at = token * (length * shape.queries * shape.prompt + own) // split
        sampled = {
            "rollout": sampled_with + looked_at,
            "reward": passes * (reward_passes(algorithm, shape, mesh) * layers + parts * head(model.vocab_size)),
            "scores without gradient": parts * algorithm.frozen_scores * policy,
        }
        sampled = {part: size // algorithm.updates for part, size in sampled.items()}
    return {
        **sampled,
        "score, update": 2 * parts * policy + 2 * (adapter + moments),  # there and back; then read and written
        "recomputed": parts * (again + adapter),
    }


def copied(
    algorithm: Any, constants: Constants, state: TrainState, shape: StepShape, mesh: jax.sharding.AbstractMesh
) -> int:
    """Bytes a device of the kernels that a rollout has merged its adapter into, 0 where it merges none."""
    if not merges(algorithm, constants, state, shape):
        return 0
    layers = constants.base.params["layers"]
    kernels = {name: {"kernel": layers[name]["kernel"]} for name in state.trainable.lora.layers}
    return bytes_per_device({"layers": kernels}, mesh)


def activations(
    algorithm: Any, constants: Constants, state: TrainState, shape: StepShape, mesh: jax.sharding.AbstractMesh
) -> int:
    """Bytes of a micro-batch's activations on all devices together, by the formula above."""
    model = constants.base
    plain = dataclasses.replace(algorithm, given=dataclasses.replace(algorithm.given, remat="none"))
    without = kept_for_backward(plain, constants, state)
    kept = without if algorithm.given.remat == "none" else kept_for_backward(algorithm, constants, state)
    budget = algorithm.given.sampling
    logits = budget.queries // budget.micro_batches * budget.samples * shape.horizon * shape.allowed
    # Where they are read off a few columns at a time nothing of them is kept: a part, and its gradient, are worked on.
    part_of_logits = 8 * min(logits, LOGITS_AT_ONCE * mesh.size) if logits > LOGITS_AT_ONCE else 0
    layer = (without / 4 + (without - kept) / 2) / model.shape.num_layers
    backward = kept + round(layer) + part_of_logits
    if not contexts(constants.prepared) or not isinstance(algorithm, OnPolicy):
        return backward
    part, dtype = rewarded_at_once(algorithm, shape), model.params["embed"]["tokens"].dtype
    return max(backward, reward_activations(model.shape, part, dtype, parts_of(ROWS, mesh)))


def reward_activations(model: ModelConfig, part: StepShape, dtype: jnp.dtype, split: int) -> int:
    """Bytes that the reward of one micro-batch works on at once, on all devices together; `split` share rows."""
    if part.horizon - 1 <= LONGEST_AT_ONCE:
        at_once, behind = part.horizon, prefixes_at_once(part.rows // split, part.horizon, part.answer)
    else:
        at_once = behind = PIECE
    packed = max(at_once, behind * (part.answer - 1))  # Z is read first, then Y behind its prefixes
    visible = part.horizon - 1 + part.answer - 1 + part.context + part.few_shot
    heads, kv_heads = model.num_heads * model.head_dim, model.num_kv_heads * model.head_dim
    stream = 2 * model.width  # the residual and its normed copy
    inner = (3 if model.gated_mlp else 2) * model.mlp_width
    attention = 2 * 4 * model.num_heads * visible + (stream + heads + 2 * kv_heads) * dtype.itemsize
    mlp = (stream + inner) * dtype.itemsize
    logits = part.rows * packed * (2 * 4 * min(VOCABULARY_BLOCK, model.vocab_size) + model.width * dtype.itemsize)
    keys = 2 * model.num_layers * kv_heads * dtype.itemsize * (part.horizon - 1)  # of Z
    kept = part.rows * keys if part.answer > 1 or at_once < part.horizon else 0
    return kept + max(part.rows * packed * max(attention, mlp), logits)


def kept_for_backward(algorithm: Any, constants: Constants, state: TrainState) -> int:
    """Bytes that the loss of one micro-batch leaves behind for its gradient, apart from what it was given."""

    def collect(constants: Constants, state: TrainState) -> Any:
        collected = algorithm.collect(state, constants, Keys.of(constants.root, state.step))
        return jax.tree.map(lambda x: x[0], collected.batches)

    def kept(trainable: PyTree, constants: Constants, batch: Any) -> list[jax.Array]:
        def loss(trainable: PyTree) -> Any:
            return algorithm.loss(trainable, constants, batch, algorithm.weights(batch), constants.root)

        _, pull_back, _ = jax.vjp(loss, trainable, has_aux=True)
        return jax.tree.leaves(pull_back)

    batch = jax.eval_shape(collect, constants, state)
    return left_behind(kept, state.trainable, constants, batch)


def in_use(params: PyTree, model: ModelConfig, dtype: jnp.dtype, mesh: jax.sharding.AbstractMesh) -> int:
    """Weights in use: under fsdp one layer and the head whole, for the rest one quantised kernel as floats."""
    whole = gathered(mesh)
    layer = bytes_per_device({"layers": params["layers"]}, whole) // model.num_layers
    head = bytes_per_device({"head": params["head"]}, whole) if "head" in params else 0
    kernels = [weights["kernel"] for weights in params["layers"].values() if "kernel" in weights]
    largest = max(i * o for i, o in model.projections.values()) * dtype.itemsize // mesh.shape["tensor"]
    quantized = not all(isinstance(kernel, jax.ShapeDtypeStruct) for kernel in kernels)
    return (layer + head if mesh.shape["fsdp"] > 1 else 0) + (largest if quantized else 0)
