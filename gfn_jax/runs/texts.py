"""Next-token training: tiny bases from nothing, and existing models on texts, all their weights or an adapter."""

import dataclasses
import logging
import math
import pathlib
from collections.abc import Callable, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from transformers import PreTrainedTokenizerFast

from gfn_jax.algorithms.language_model import Corpus, LanguageModeling, Phase, epoch_order, phase_order
from gfn_jax.evaluation.perplexity import make_perplexity
from gfn_jax.evaluation.report import write_results
from gfn_jax.models.adapters import export_merged, save_adapter
from gfn_jax.models.checkpoint import load_model, read_config, save_model
from gfn_jax.models.config import BaseModelConfig, ModelConfig
from gfn_jax.models.decoder import init_params
from gfn_jax.models.lora import Lora, LoraConfig, init_lora
from gfn_jax.models.tensor_files import read_json, resolve, whole_folder
from gfn_jax.sections import Count, Positive, RunConfig, check, checked, described, section, top_level, values_of
from gfn_jax.worlds.corpora import CorpusKind, corpus_kind
from gfn_jax.tasks.texts import TextConfig, check_path, read_texts
from gfn_jax.text.documents import document_rows
from gfn_jax.text.loading import load_tokenizer, model_folder
from gfn_jax.training import mesh as meshes
from gfn_jax.training.checkpoint import Checkpointer, claim_workdir
from gfn_jax.training.language_model import ModelState, make_language_model_step
from gfn_jax.training.loop import Evaluation, Run, Trained
from gfn_jax.training.optimizer import OptimizerConfig, make_optimizer
from gfn_jax.training.writers import make_writers
from gfn_jax.types import Params, PyTree, Tokens

SPLITS = ("training text", "held-out text")
SPECIAL_TOKENS = ("bos_token_id", "eos_token_id", "pad_token_id")
# Streams of randomness: fold_in(key of the seed, STREAM).
WEIGHTS, ORDER, DROPOUT = range(3)
_log = logging.getLogger("gfn_jax")


@dataclasses.dataclass(frozen=True)
class PretrainingConfig(RunConfig):
    """What the config of a pretraining holds beside its sections.

    Attributes:
        corpus: a name in `tasks.corpora.CORPORA`.
        batch: documents a step.
        seq_length: tokens a document is cut at.
    """

    corpus: str
    batch: Count
    seq_length: Count


@dataclasses.dataclass(frozen=True)
class FinetuningConfig(RunConfig):
    """What the config of a fine-tuning holds beside its sections.

    Attributes:
        mode: what is trained: all weights, or an adapter.
        epochs: over the documents.
        steps: counts instead of the epochs where it is set.
        batch: documents a step, in all micro-batches.
        micro_batches: parts that a step is computed in.
    """

    mode: Literal["full", "lora"]
    epochs: Positive
    steps: Count | None
    batch: Count
    micro_batches: Count

    def __post_init__(self):
        if self.batch % self.micro_batches:
            raise ValueError(f"batch is {self.batch}; it does not divide into {self.micro_batches} micro_batches")


@dataclasses.dataclass(frozen=True)
class PerplexityConfig:
    """When a fine-tuning measures itself on held-out text.

    Attributes:
        every: steps between two measurements.
        batch: documents at once.
    """

    every: Count
    batch: Count


def build_pretraining(config: ml_collections.ConfigDict, workdir: pathlib.Path) -> Run:
    """Training a tiny base model from nothing; it lies in WORKDIR/model at the end."""
    top_level(PretrainingConfig, config)
    digest = claim_workdir(workdir, described(config))
    kind = corpus_kind(config.corpus)
    tokenizer = kind.build_tokenizer()
    phases, corpora = read_phases(config, kind)
    steps = sum(phase.steps for phase in phases)
    optimizer = make_optimizer(section(OptimizerConfig, config, "optimizer", total_steps=steps))
    model = corpus_model(config, len(tokenizer))
    key = jax.random.key(config.seed)
    params = init_params(jax.random.fold_in(key, WEIGHTS), model)
    documents = read_documents(kind, corpora, tokenizer)
    order = phase_order(jax.random.fold_in(key, ORDER), phases, config.batch)

    def finish(trained: Trained) -> str:
        with whole_folder(workdir / "model") as draft:
            save_model(draft, model, trained.state.trainable, "llama", special_tokens(tokenizer))
            tokenizer.save_pretrained(draft)
        return f"The model is in {workdir / 'model'}, an ordinary Hugging Face folder."

    return Run(
        workdir=workdir,
        step_fn=jax.jit(make_language_model_step(LanguageModeling(model), optimizer), donate_argnums=0),
        state=ModelState(jnp.zeros((), jnp.int32), params, optimizer.init(params)),
        constants=Corpus(documents, documents.mask, order, jax.random.fold_in(key, DROPOUT)),
        num_steps=steps,
        samples_per_step=config.batch,
        checkpointer=Checkpointer(workdir, digest),
        writers=make_writers(workdir, config.tensorboard),
        finish=finish,
        log_every=config.log_every,
        save_every=config.save_every,
    )


def corpus_model(config: ml_collections.ConfigDict, vocab_size: int) -> ModelConfig:
    """The shape of the model that is made from nothing."""
    shape = dict(values_of(config, "model"))
    shape |= {"vocab_size": vocab_size, "rotary_dim": shape.get("head_dim")}
    return checked(ModelConfig, shape, "model.", partial=True)


def check_seq_length(seq_length: int, model: ModelConfig) -> None:
    """Raises ValueError where documents are longer than the model."""
    if seq_length > model.max_positions:
        raise ValueError(f"data.seq_length is {seq_length}; the model has {model.max_positions} positions")


def read_phases(config: ml_collections.ConfigDict, kind: CorpusKind) -> tuple[list[Phase], list[Any]]:
    """The phases in the order of their names, and what each one's documents are made of."""
    phases: list[Phase] = []
    corpora: list[Any] = []
    for number, (name, values) in enumerate(sorted(values_of(config, "phases").items())):
        fields = {name: value for name, value in values.items() if name != "steps"}
        fixed = {"seq_length": config.seq_length, "seed": 10 * config.seed + number}
        corpora.append(checked(kind.config, fields, f"phases.{name}.", partial=True, **fixed))
        first = phases[-1].end if phases else 0
        check(Phase, {"steps": values.get("steps")}, f"phases.{name}.")
        phases.append(Phase(values.steps, first, first + corpora[-1].documents))
    return phases, corpora


def read_documents(kind: CorpusKind, corpora: Sequence[Any], tokenizer: PreTrainedTokenizerFast) -> Tokens:
    """The documents of all phases, one after the other."""
    parts = [kind.token_rows(corpus, tokenizer) for corpus in corpora]
    return Tokens(*(jnp.asarray(np.concatenate(rows)) for rows in zip(*parts)))


def special_tokens(tokenizer: PreTrainedTokenizerFast) -> dict[str, int]:
    """What config.json says of a tokenizer's special tokens."""
    return {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}


def read_finetuning(config: ml_collections.ConfigDict) -> tuple[LoraConfig, TextConfig]:
    """The adapter's and the texts' sections, all others having been checked too.

    Raises:
        ValueError: a value that is not as it must be, named `section.field`.
    """
    top_level(FinetuningConfig, config)
    section(BaseModelConfig, config, "model", quantize="none")
    section(PerplexityConfig, config, "evaluation")
    return section(LoraConfig, config, "lora"), section(TextConfig, config, "data")


def build_finetuning(config: ml_collections.ConfigDict, workdir: pathlib.Path) -> Run:
    """Training an existing model, or an adapter beside it, on texts; WORKDIR/model is the result, adapter merged in."""
    lora, data = read_finetuning(config)
    check_path(data)
    digest = claim_workdir(workdir, described(config))
    folder = resolve(model_folder(config.model.path))
    mesh = meshes.use_mesh(section(meshes.MeshConfig, config, "mesh"))
    _, model = read_config(folder)
    check_seq_length(data.seq_length, model)
    tokenizer = load_tokenizer(folder)
    train, held_out = (read_rows(name, texts, data, tokenizer) for name, texts in zip(SPLITS, read_texts(data)))
    largest = max(int(rows.ids.max()) for rows in (train, held_out))
    if largest >= model.vocab_size:
        raise ValueError(f"the tokenizer writes token {largest}; the model has {model.vocab_size}: they do not belong")
    steps = config.steps or math.ceil(config.epochs * len(train.ids) / config.batch)
    optimizer = make_optimizer(section(OptimizerConfig, config, "optimizer", total_steps=steps))
    algorithm = finetuning_algorithm(config, model, lora, mesh)
    trainable, base = initial_weights(config, folder, lora, mesh)
    key = jax.random.key(config.seed)
    order = epoch_order(jax.random.fold_in(key, ORDER), len(train.ids), config.batch, steps)
    constants = place(Corpus(train, train.mask, order, jax.random.fold_in(key, DROPOUT), base), mesh)
    state = place(ModelState(jnp.zeros((), jnp.int32), trainable, optimizer.init(trainable)), mesh)
    rows = meshes.rows_sharding(mesh)
    perplexity = make_perplexity(algorithm, held_out, held_out.mask, config.evaluation.batch, rows)
    before = perplexity(state.trainable, constants.base)
    _log.info("held-out text before: %s", shown(before))
    facts = {"task": config.task, "method": config.mode, "seed": config.seed, "config_digest": digest}
    facts |= {"documents": len(train.ids), "held_out_documents": len(held_out.ids)}

    def finish(trained: Trained) -> str:
        after = perplexity(trained.state.trainable, constants.base)
        save_finetuned(config, workdir, folder, tokenizer, lora, trained.state.trainable, constants.base)
        session = {"steps": trained.steps, "seconds": round(trained.seconds, 1)}
        write_results(workdir / "results.json", {**facts, **session, "metrics": after, "base": before})
        return (
            f"Held-out text, {len(held_out.ids)} documents:\n"
            f"  base        {shown(before)}\n"
            f"  fine-tuned  {shown(after)}\n\n"
            f"The model is in {workdir / 'model'}, an ordinary Hugging Face folder; numbers in "
            f"{workdir / 'results.json'}"
        )

    placed = jax.tree.map(lambda x: x.sharding, state)
    step = make_language_model_step(algorithm, optimizer, rows)
    return Run(
        workdir=workdir,
        step_fn=jax.jit(step, donate_argnums=0, out_shardings=(placed, meshes.replicated(mesh))),
        state=state,
        constants=constants,
        num_steps=steps,
        samples_per_step=config.batch,
        checkpointer=Checkpointer(workdir, digest),
        writers=make_writers(workdir, config.tensorboard),
        finish=finish,
        evaluations=(
            Evaluation(config.evaluation.every, lambda state, step: perplexity(state.trainable, constants.base)),
        ),
        log_every=config.log_every,
        save_every=config.save_every,
    )


def read_rows(name: str, texts: Sequence[str], data: TextConfig, tokenizer: PreTrainedTokenizerFast) -> Tokens:
    """Documents as rows; says how many there are, and how many were cut."""
    rows = document_rows(texts, tokenizer, data.seq_length, data.end_of_document)
    _log.info("%s: %d documents, %d tokens; %d cut at %d", name, len(texts), rows.mask.sum(), rows.cut, data.seq_length)
    return Tokens(jnp.asarray(rows.ids), jnp.asarray(rows.mask))


def finetuning_algorithm(
    config: ml_collections.ConfigDict,
    model: ModelConfig,
    lora: LoraConfig,
    mesh: jax.sharding.Mesh | jax.sharding.AbstractMesh,
) -> LanguageModeling:
    """The algorithm, once the batch is known to divide as it must."""
    meshes.check_rows(config.batch // config.micro_batches, mesh, "micro-batch of documents")
    meshes.check_rows(config.evaluation.batch, mesh, "evaluation batch")
    return LanguageModeling(
        model,
        micro_batches=config.micro_batches,
        dropout=lora.dropout,
        remat=config.model.remat,
        dtype=jnp.dtype(config.model.dtype),
    )


def initial_weights(
    config: ml_collections.ConfigDict, folder: pathlib.Path, lora: LoraConfig, mesh: jax.sharding.Mesh
) -> tuple[Params | Lora, Params | None]:
    """(what is trained, the frozen base or None). All weights are trained in float32, whatever they compute in."""
    dtype = jnp.dtype(config.model.dtype if config.mode == "lora" else "float32")
    _, shape = read_config(folder)
    abstract = jax.eval_shape(lambda key: init_params(key, shape, dtype), jax.random.key(0))
    model, params = load_model(folder, dtype, meshes.shardings(abstract, mesh))
    if config.mode == "full":
        return params, None
    return init_lora(jax.random.fold_in(jax.random.key(config.seed), WEIGHTS), model, lora), params


def save_finetuned(
    config: ml_collections.ConfigDict,
    workdir: pathlib.Path,
    folder: pathlib.Path,
    tokenizer: PreTrainedTokenizerFast,
    lora: LoraConfig,
    trainable: Params | Lora,
    base: Params | None,
) -> None:
    """Writes WORKDIR/model in `config.model.dtype`, and WORKDIR/adapter where only an adapter was trained.

    Each is there once it is whole.
    """
    raw = read_json(folder, "config.json")
    settings = {name: raw[name] for name in SPECIAL_TOKENS if name in raw}
    model_type, model = read_config(folder)
    if isinstance(trainable, Lora):
        with whole_folder(workdir / "adapter") as draft:
            save_adapter(draft, model, lora, trainable, model_type, config.model.path)
    with whole_folder(workdir / "model") as draft:
        if isinstance(trainable, Lora):
            export_merged(draft, model, base, trainable, model_type, settings)
        else:
            params = jax.tree.map(lambda x: x.astype(config.model.dtype), trainable)
            save_model(draft, model, params, model_type, settings)
        tokenizer.save_pretrained(draft)


def shown(measured: dict[str, float]) -> str:
    """A measurement for people."""
    return f"{measured['nll']:.4f} nats a token, perplexity {measured['perplexity']:.3f}"


def place(tree: PyTree, mesh: jax.sharding.Mesh) -> PyTree:
    """Every array where the sharding rules put it."""
    return meshes.place(tree, meshes.shardings(tree, mesh, (*meshes.RULES, *meshes.REST_REPLICATED)))


LANGUAGE_MODELING: dict[str, Callable[[ml_collections.ConfigDict, pathlib.Path], Run]] = {
    "pretrain": build_pretraining,
    "finetune": build_finetuning,
}
