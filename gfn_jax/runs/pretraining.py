"""Tiny bases from nothing, or from another, by next-token training on a synthetic corpus."""

import dataclasses
import pathlib
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from transformers import PreTrainedTokenizerFast

from gfn_jax.algorithms.language_model import Corpus, LanguageModeling, phase_order
from gfn_jax.models.checkpoint import load_model, save_model
from gfn_jax.models.config import ModelConfig
from gfn_jax.models.tensor_files import whole_folder
from gfn_jax.runs.config import Pretraining
from gfn_jax.runs.opening import announce
from gfn_jax.text.loading import model_folder
from gfn_jax.training import mesh as meshes
from gfn_jax.training.checkpoint import Checkpointer, claim_workdir
from gfn_jax.training.loop import Run, Trained
from gfn_jax.training.optimizer import make_optimizer
from gfn_jax.training.step import init_state, make_step
from gfn_jax.training.writers import make_writers
from gfn_jax.types import Params, Tokens
from gfn_jax.worlds.corpora import CorpusKind

# Streams of randomness: fold_in(key of the seed, STREAM).
WEIGHTS, ORDER, DROPOUT = range(3)


def build_pretraining(config: Pretraining, workdir: pathlib.Path) -> Run:
    """Training a tiny base model from nothing; it lies in WORKDIR/model at the end."""
    values, model = config.values, config.model
    digest = claim_workdir(workdir, config.described)
    mesh = meshes.use_mesh(meshes.MeshConfig())
    announce(model, None, mesh)
    tokenizer = config.corpus.build_tokenizer()
    algorithm, optimizer = LanguageModeling(model), make_optimizer(config.optimizer)
    key = jax.random.key(values.seed)
    documents = read_documents(config.corpus, config.documents, tokenizer)
    order = phase_order(jax.random.fold_in(key, ORDER), config.phases, values.batch)
    corpus = Corpus(documents, documents.mask, order, jax.random.fold_in(key, DROPOUT))
    state = init_state(algorithm, optimizer, jax.random.fold_in(key, WEIGHTS), corpus)
    if values.start is not None:
        state = dataclasses.replace(state, trainable=start_weights(values.start, model))

    def finish(trained: Trained) -> str:
        if jax.process_index() == 0:
            with whole_folder(workdir / "model") as draft:
                save_model(draft, model, trained.state.trainable, "llama", special_tokens(tokenizer))
                tokenizer.save_pretrained(draft)
        return f"The model is in {workdir / 'model'}, an ordinary Hugging Face folder."

    # A tiny model: every device has all of it, and shares the rows.
    everywhere = meshes.replicated(mesh)
    return Run(
        workdir=workdir,
        step_fn=jax.jit(make_step(algorithm, optimizer), donate_argnums=0, out_shardings=everywhere),
        state=meshes.place(state, everywhere),
        constants=meshes.place(corpus, everywhere),
        num_steps=config.optimizer.total_steps,
        samples_per_step=values.batch,
        checkpointer=Checkpointer(workdir, digest),
        writers=make_writers(workdir, values),
        finish=finish,
        log_every=values.log_every,
        save_every=values.save_every,
    )


def start_weights(path: str, model: ModelConfig) -> Params:
    """The weights of a model of the same shape.

    Raises:
        ValueError, FileNotFoundError: there is none, or it has another shape.
    """
    found, weights = load_model(model_folder(path))
    if found != model:
        names = [field.name for field in dataclasses.fields(model)]
        differs = ", ".join(n for n in names if getattr(found, n) != getattr(model, n))
        raise ValueError(f"start: the model {path} has another {differs} than the config's model and corpus")
    return weights


def read_documents(kind: CorpusKind, corpora: Sequence[Any], tokenizer: PreTrainedTokenizerFast) -> Tokens:
    """The documents of all phases, one after the other."""
    parts = [kind.token_rows(corpus, tokenizer) for corpus in corpora]
    return Tokens(*(jnp.asarray(np.concatenate(rows)) for rows in zip(*parts)))


def special_tokens(tokenizer: PreTrainedTokenizerFast) -> dict[str, int]:
    """What config.json says of a tokenizer's special tokens."""
    return {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
