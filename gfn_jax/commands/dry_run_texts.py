"""What next-token training would take, from its config alone: `--dry_run` of pretraining and fine-tuning.

As in `dry_run`, nothing is allocated and no weight or text is read; weights, adapter, optimizer and gradient are
exact, activations are (r + 3/2 l / L) / n with r, l, L and n as there. The texts' tokens, 5 bytes each on every device,
are counted where the config says how many there are.
"""

import dataclasses
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import ml_collections

from gfn_jax.algorithms.language_model import Batch, Corpus, LanguageModeling
from gfn_jax.commands.interconnect import Sent, Traffic, total
from gfn_jax.commands.plan import (
    describe_model,
    exchanged,
    gathered,
    left_behind,
    read_again,
    tables,
    tensor_share,
    times,
)
from gfn_jax.models.config import KEPT, ModelConfig, Remat
from gfn_jax.models.decoder import init_params
from gfn_jax.models.flops import Flops, text_flops
from gfn_jax.models.language_model import LanguageModel
from gfn_jax.models.lora import LoraConfig, init_lora
from gfn_jax.models.partition import ROWS, parts_of
from gfn_jax.runs.config import read_finetuning, read_pretraining
from gfn_jax.runs.finetuning import check_seq_length, finetuning_algorithm
from gfn_jax.runs.opening import count
from gfn_jax.training import mesh as meshes
from gfn_jax.training.mesh import bytes_per_device, nbytes
from gfn_jax.training.optimizer import OptimizerConfig, make_optimizer
from gfn_jax.types import Params, PyTree, Tokens

REST: meshes.Rules = (*meshes.RULES, *meshes.REST_REPLICATED)
TOKEN_BYTES = 5  # its id and whether it is there


@dataclasses.dataclass(frozen=True)
class Texts:
    """A step of next-token training, as shapes.

    Attributes:
        name: of the model, or of the corpus that it is made from.
        algorithm: what is minimised, `algorithm.dtype` being the arithmetic's.
        trainable, base: what is trained, and the frozen weights under an adapter or None.
        lora: the adapter's settings, or None.
        rows: documents a step.
        length: tokens a document at most.
        documents: how many the run reads, where that is known; else 0.
        optimizer: its settings.
        steps: of the run, where that is known.
        mesh: where all of it lies.
    """

    name: str
    algorithm: LanguageModeling
    trainable: PyTree
    base: Params | None
    lora: LoraConfig | None
    rows: int
    length: int
    documents: int
    optimizer: OptimizerConfig
    steps: int | None
    mesh: jax.sharding.AbstractMesh


def dry_run_texts(config: ml_collections.ConfigDict) -> str:
    """The estimate as text.

    Raises:
        ValueError, FileNotFoundError: what is wrong with the config, in one line.
    """
    plan = TEXTS[config.task](config)
    trained = "all of them" if plan.lora is None else f"an adapter of {count(plan.trainable):,}"
    whole = plan.trainable if plan.base is None else plan.base
    documents = f"{plan.documents:,} documents" if plan.documents else "the texts on the device not counted"
    parts, mesh = plan.algorithm.micro_batches, dict(plan.mesh.shape)
    taken, counted, between = memory(plan), flops(plan), sent(plan)
    lines = [
        f"{plan.name}: {count(whole):,} parameters; trained: {trained}",
        f"step: {plan.rows} rows of up to {plan.length} tokens, {parts} micro-batches; {documents}",
        *tables(mesh, taken, counted),
        *exchanged(between),
        *times(mesh, taken, counted, traffic(plan, taken), jnp.dtype(plan.algorithm.dtype).name, plan.steps, between),
    ]
    return "\n".join(lines)


def pretraining(config: ml_collections.ConfigDict) -> Texts:
    """A new model, on one device."""
    run = read_pretraining(config)
    return Texts(
        name=run.values.corpus,
        algorithm=LanguageModeling(run.model),
        trainable=weights(run.model, jnp.float32),
        base=None,
        lora=None,
        rows=run.values.batch,
        length=run.values.seq_length,
        documents=run.phases[-1].end,
        optimizer=run.optimizer,
        steps=run.optimizer.total_steps,
        mesh=meshes.abstract_mesh(meshes.MeshConfig(1, 1, 1)),
    )


def finetuning(config: ml_collections.ConfigDict) -> Texts:
    """An existing model, all weights or an adapter."""
    run = read_finetuning(config)
    lora, adapts = run.lora, run.values.mode == "lora"
    model, _ = describe_model(run.model.path)
    check_seq_length(run.data.seq_length, model)
    mesh = meshes.abstract_mesh(run.mesh)
    algorithm = finetuning_algorithm(run, model, mesh)
    base = weights(model, jnp.dtype(run.model.dtype if adapts else "float32"))
    return Texts(
        name=run.model.path,
        algorithm=algorithm,
        trainable=jax.eval_shape(lambda key: init_lora(key, model, lora), jax.random.key(0)) if adapts else base,
        base=base if adapts else None,
        lora=lora if adapts else None,
        rows=run.values.batch,
        length=run.data.seq_length,
        documents=0,
        optimizer=run.optimizer,
        steps=run.values.steps,
        mesh=mesh,
    )


def weights(model: ModelConfig, dtype: jnp.dtype | type) -> Params:
    """A model's weights, as shapes."""
    return jax.eval_shape(lambda key: init_params(key, model, dtype), jax.random.key(0))


def memory(plan: Texts) -> dict[str, int]:
    """Bytes a device by kind."""
    mesh, algorithm = plan.mesh, plan.algorithm
    moments = jax.eval_shape(make_optimizer(plan.optimizer).init, plan.trainable)
    trained = bytes_per_device({"trainable": plan.trainable}, mesh)
    share = tensor_share(algorithm.shape, mesh, plan.length) / parts_of(ROWS, mesh)
    return {
        **({} if plan.base is None else {"base": bytes_per_device(plan.base, mesh, REST)}),
        "weights" if plan.base is None else "adapter": trained,
        "optimizer": bytes_per_device({"opt_state": moments}, mesh),
        "gradient": (1 if algorithm.micro_batches == 1 else 2) * trained,  # the sum over parts, and the newest
        **({"texts": TOKEN_BYTES * plan.documents * plan.length} if plan.documents else {}),
        "activations": int(activations(plan) * share),
        "weights in use": in_use(plan),
    }


def activations(plan: Texts) -> int:
    """Bytes of a micro-batch's activations on all devices together."""
    algorithm, rows = plan.algorithm, plan.rows // plan.algorithm.micro_batches
    shape = (rows, plan.length)
    text = jax.eval_shape(lambda: Tokens(jnp.zeros(shape, jnp.int32), jnp.zeros(shape, bool)))
    trainable = computed(plan)

    def kept(remat: Remat) -> int:
        own = dataclasses.replace(algorithm, remat=remat)

        def pull_back(trainable: PyTree, base: Params | None, text: Tokens) -> list[jax.Array]:
            frozen = None if base is None else LanguageModel(own.shape, base)
            corpus = Corpus(text, text.mask, jnp.zeros((1, rows), jnp.int32), jax.random.key(0), frozen)
            batch = Batch(text, text.mask)

            def loss(trainable: PyTree) -> jax.Array:
                return own.loss(trainable, corpus, batch, {"tokens": jnp.ones(())}, corpus.root)[0]

            return jax.tree.leaves(jax.vjp(loss, trainable)[1])

        return left_behind(pull_back, trainable, plan.base, text)

    without = kept("none")
    left = without if algorithm.remat == "none" else kept(algorithm.remat)
    return left + 3 * without // (2 * algorithm.shape.num_layers)


def computed(plan: Texts) -> PyTree:
    """What is trained, in the arithmetic's type: all weights are cast to it, an adapter is used as it is."""
    if plan.base is not None:
        return plan.trainable
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, plan.algorithm.dtype), plan.trainable)


def in_use(plan: Texts) -> int:
    """Copies of weights: all in the arithmetic's type where that is another; under fsdp a layer and the head."""
    mesh, model = plan.mesh, plan.algorithm.shape
    params = computed(plan) if plan.base is None else plan.base
    cast = bytes_per_device(params, mesh) if nbytes(params) != nbytes(plan.base or plan.trainable) else 0
    if mesh.shape["fsdp"] == 1:
        return cast
    whole = gathered(mesh)
    layer = bytes_per_device({"layers": params["layers"]}, whole) // model.num_layers
    return cast + layer + (bytes_per_device({"head": params["head"]}, whole) if "head" in params else 0)


def traffic(plan: Texts, taken: Mapping[str, int]) -> dict[str, int]:
    """Bytes a step that a device reads and writes at least: the weights a pass, then what is trained and its moments.

    Args:
        plan: the step.
        taken: its memory, as `memory` has it.
    """
    params = computed(plan) if plan.base is None else plan.base
    parts = {name: value for name, value in params.items() if name in ("layers", "head")}
    tied = params["embed"]["tokens"] if plan.algorithm.shape.tied_head else None
    once = bytes_per_device(parts, gathered(plan.mesh)) + (0 if tied is None else nbytes(tied))
    again = bytes_per_device({"layers": read_again(params, plan.algorithm.remat)}, gathered(plan.mesh))
    passes, trained = plan.algorithm.micro_batches, taken["weights" if plan.base is None else "adapter"]
    forward = passes * once
    return {
        "forward": forward,
        "backward": forward + passes * taken["gradient"] // 2 + 2 * (trained + taken["optimizer"]),
        "recomputed": passes * again,
    }


def flops(plan: Texts) -> dict[str, int]:
    """Matrix products a step: forward and backward, of a frozen base with respect to activations alone."""
    counted, rows, length = Flops(plan.algorithm.shape, plan.lora), plan.rows, plan.length
    forward = text_flops(counted, rows, length)
    total = 3 * forward if plan.lora is None else text_flops(counted, rows, length, backward=True)
    parts = {"forward": forward, "backward": total - forward}
    if plan.algorithm.remat != "none":  # the layers once more, the head not
        again = dataclasses.replace(counted, kept=KEPT[plan.algorithm.remat])
        parts["recomputed"] = text_flops(again, rows, length, head=False)
    return parts


def sent(plan: Texts) -> dict[str, Sent]:
    """Part -> kind of collective -> bytes a step that a device sends to others, by the parts of `flops`."""
    algorithm, tokens, passes = plan.algorithm, plan.rows * plan.length, plan.algorithm.micro_batches
    params, adapts = computed(plan) if plan.base is None else plan.base, plan.base is not None
    # Weights that are trained are gathered as the base's; an adapter comes beside its base.
    of = Traffic(algorithm.shape, plan.lora, params, plan.trainable, jnp.dtype(algorithm.dtype), plan.mesh)
    once, columns = of.layers(passes, adapts), of.head(passes, algorithm.shape.vocab_size)
    parts = {
        "forward": total(once, columns, of.forward(tokens)),
        "backward": total(once, columns, of.backward(tokens, tokens), *[of.gradient()] * passes),
    }
    if algorithm.remat != "none":
        again = of.again(algorithm.remat)
        parts["recomputed"] = total(again.layers(passes, adapts), again.forward(tokens, embedded=False))
    return parts


TEXTS = {"pretrain": pretraining, "finetune": finetuning}
