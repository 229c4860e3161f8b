"""Likelihood on a mesh: existing models trained on texts, all their weights or an adapter, and EM's M-step."""

import dataclasses
import logging
import math
import pathlib
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import optax
from transformers import PreTrainedTokenizerFast

from gfn_jax.algorithms.language_model import Corpus, LanguageModeling, epoch_order
from gfn_jax.evaluation.perplexity import make_perplexity
from gfn_jax.evaluation.report import write_results
from gfn_jax.evaluation.rows import gather
from gfn_jax.models.adapters import export_merged, save_adapter
from gfn_jax.models.checkpoint import read_config, save_model
from gfn_jax.models.config import ModelConfig
from gfn_jax.models.language_model import LanguageModel
from gfn_jax.models.lora import Lora
from gfn_jax.models.tensor_files import read_json, resolve, whole_folder
from gfn_jax.runs.config import Finetuning
from gfn_jax.runs.opening import announce
from gfn_jax.runs.weights import load_base, place
from gfn_jax.sections import RunConfig, checked
from gfn_jax.tasks.texts import TextConfig, check_path, read_texts
from gfn_jax.text.documents import document_rows
from gfn_jax.text.loading import load_tokenizer, model_folder
from gfn_jax.training import mesh as meshes
from gfn_jax.training.checkpoint import Checkpointer, claim_workdir
from gfn_jax.training.loop import Evaluation, Run, Trained
from gfn_jax.training.optimizer import OptimizerConfig, make_optimizer
from gfn_jax.training.step import init_state, make_step, new_state
from gfn_jax.training.writers import make_writers
from gfn_jax.types import Params, PyTree, Tokens, TrainState

SPLITS = ("training text", "held-out text")
SPECIAL_TOKENS = ("bos_token_id", "eos_token_id", "pad_token_id")
# Streams of randomness: fold_in(key of the seed, STREAM).
WEIGHTS, ORDER, DROPOUT = range(3)
_log = logging.getLogger("gfn_jax")


def build_finetuning(config: Finetuning, workdir: pathlib.Path) -> Run:
    """Training an existing model, or an adapter beside it, on texts; WORKDIR/model is the result, adapter merged in."""
    values, data = config.values, config.data
    check_path(data)
    digest = claim_workdir(workdir, config.described)
    folder = resolve(model_folder(config.model.path))
    mesh = meshes.use_mesh(config.mesh)
    _, model = read_config(folder)
    check_seq_length(data.seq_length, model)
    announce(model, config.lora if values.mode == "lora" else None, mesh)
    tokenizer = load_tokenizer(folder)
    train, held_out = (read_rows(name, texts, data, tokenizer) for name, texts in zip(SPLITS, read_texts(data)))
    largest = max(int(rows.ids.max()) for rows in (train, held_out))
    if largest >= model.vocab_size:
        raise ValueError(f"the tokenizer writes token {largest}; the model has {model.vocab_size}: they do not belong")
    steps = values.steps or math.ceil(values.epochs * len(train.ids) / values.batch)
    settings = checked(OptimizerConfig, {**vars(config.optimizer), "total_steps": steps}, "optimizer.")
    algorithm, optimizer = finetuning_algorithm(config, model, mesh), make_optimizer(settings)
    key = jax.random.key(values.seed)
    order = epoch_order(jax.random.fold_in(key, ORDER), len(train.ids), values.batch, steps)
    corpus = Corpus(train, train.mask, order, jax.random.fold_in(key, DROPOUT))
    if values.mode == "full":  # in float32, whatever they compute in
        state = new_state(optimizer, load_base(folder, "float32", mesh).params)
    else:
        corpus = dataclasses.replace(corpus, base=load_base(folder, config.model.dtype, mesh))
        state = init_state(algorithm, optimizer, jax.random.fold_in(key, WEIGHTS), corpus)
    run = likelihood_run(values, workdir, digest, mesh, algorithm, optimizer, state, corpus)
    perplexity = make_perplexity(held_out, held_out.mask, config.evaluation.batch)
    before = perplexity(algorithm.policy(run.state.trainable, run.constants))
    _log.info("held-out text before: %s", shown(before))
    facts = {"task": values.task, "method": values.mode, "seed": values.seed, "config_digest": digest}
    facts |= {"documents": len(train.ids), "held_out_documents": len(held_out.ids)}

    def finish(trained: Trained) -> str:
        after = perplexity(algorithm.policy(trained.state.trainable, run.constants))
        weights, base = on_hosts((trained.state.trainable, run.constants.base))
        session = {"steps": trained.steps, "seconds": round(trained.seconds, 1)}
        if jax.process_index() == 0:
            save_finetuned(config, workdir, folder, tokenizer, weights, base)
            write_results(workdir / "results.json", {**facts, **session, "policy": after, "base": before})
        return (
            f"Held-out text, {len(held_out.ids)} documents:\n"
            f"  base        {shown(before)}\n"
            f"  fine-tuned  {shown(after)}\n\n"
            f"The model is in {workdir / 'model'}, an ordinary Hugging Face folder; numbers in "
            f"{workdir / 'results.json'}"
        )

    measured = Evaluation(
        config.evaluation.every, lambda state, step: perplexity(algorithm.policy(state.trainable, run.constants))
    )
    return dataclasses.replace(run, finish=finish, evaluations=(measured,))


def likelihood_run(
    config: RunConfig,
    workdir: pathlib.Path,
    digest: str,
    mesh: jax.sharding.Mesh,
    algorithm: LanguageModeling,
    optimizer: optax.GradientTransformation,
    state: TrainState,
    corpus: Corpus,
) -> Run:
    """Maximum likelihood of the corpus's marked tokens, in the corpus's order, as a run without last words.

    Args:
        config: how often to look.
        workdir: where the run writes.
        digest: of the config that the workdir belongs to.
        mesh: where everything will lie.
        algorithm: what is minimised.
        optimizer: how.
        state: before the first step.
        corpus: the rows and, under an adapter, the frozen base.
    """
    state = place(state, mesh)
    placed = jax.tree.map(lambda x: x.sharding, state)
    step = make_step(algorithm, optimizer)
    steps, batch = corpus.order.shape
    return Run(
        workdir=workdir,
        step_fn=jax.jit(step, donate_argnums=0, out_shardings=(placed, meshes.replicated(mesh))),
        state=state,
        constants=place(corpus, mesh),
        num_steps=steps,
        samples_per_step=batch,
        checkpointer=Checkpointer(workdir, digest),
        writers=make_writers(workdir, config),
        log_every=config.log_every,
        save_every=config.save_every,
    )


def check_seq_length(seq_length: int, model: ModelConfig) -> None:
    """Raises ValueError where documents are longer than the model."""
    if seq_length > model.max_positions:
        raise ValueError(f"data.seq_length is {seq_length}; the model has {model.max_positions} positions")


def read_rows(name: str, texts: Sequence[str], data: TextConfig, tokenizer: PreTrainedTokenizerFast) -> Tokens:
    """Documents as rows; says how many there are, and how many were cut."""
    rows = document_rows(texts, tokenizer, data.seq_length, data.end_of_document)
    _log.info("%s: %d documents, %d tokens; %d cut at %d", name, len(texts), rows.mask.sum(), rows.cut, data.seq_length)
    return Tokens(jnp.asarray(rows.ids), jnp.asarray(rows.mask))


def finetuning_algorithm(
    config: Finetuning, model: ModelConfig, mesh: jax.sharding.Mesh | jax.sharding.AbstractMesh
) -> LanguageModeling:
    """The algorithm, once the batch is known to divide as it must."""
    values = config.values
    meshes.check_rows(values.batch // values.micro_batches, mesh, "micro-batch of documents")
    meshes.check_rows(config.evaluation.batch, mesh, "evaluation batch")
    return LanguageModeling(
        model,
        micro_batches=values.micro_batches,
        lora=config.lora if values.mode == "lora" else None,
        remat=config.model.recomputed,
        dtype=jnp.dtype(config.model.dtype),
    )


def on_hosts(tree: PyTree) -> PyTree:
    """What one process is to write: whole on every host where its shards lie on several."""
    return tree if jax.process_count() == 1 else gather(tree)


def save_finetuned(
    config: Finetuning,
    workdir: pathlib.Path,
    folder: pathlib.Path,
    tokenizer: PreTrainedTokenizerFast,
    trainable: Params | Lora,
    base: LanguageModel | None,
) -> None:
    """Writes WORKDIR/model in the base's `dtype`, and WORKDIR/adapter where only an adapter was trained.

    Each is there once it is whole.
    """
    raw = read_json(folder, "config.json")
    settings = {name: raw[name] for name in SPECIAL_TOKENS if name in raw}
    model_type, model = read_config(folder)
    if base is not None:
        with whole_folder(workdir / "adapter") as draft:
            save_adapter(draft, model, config.lora, trainable, model_type, config.model.path)
    with whole_folder(workdir / "model") as draft:
        if base is not None:
            export_merged(draft, model, base.params, trainable, model_type, settings)
        else:
            params = jax.tree.map(lambda x: x.astype(config.model.dtype), trainable)
            save_model(draft, model, params, model_type, settings)
        tokenizer.save_pretrained(draft)


def shown(measured: dict[str, float]) -> str:
    """A measurement for people."""
    return f"{measured['nll']:.4f} nats a token, perplexity {measured['perplexity']:.3f}"
