import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_worlds import random_lora, random_params, tiny

from gfn_jax.algorithms.language_model import Corpus, LanguageModeling, epoch_order
from gfn_jax.models.language_model import LanguageModel
from gfn_jax.training.optimizer import OptimizerConfig, make_optimizer
from gfn_jax.training.step import make_step
from gfn_jax.types import Tokens, TrainState

MODEL = tiny(num_layers=1)
STEPS = 12
OPTIMIZER = make_optimizer(OptimizerConfig(learning_rate=0.02, total_steps=STEPS, decay="constant"))
STEP = jax.jit(make_step(LanguageModeling(MODEL), OPTIMIZER))


def corpus_of(base=None) -> Corpus:
    """Eight documents of two halves: the first is noise, the second, which is learnt, counts up from 1."""
    rng = np.random.default_rng(0)
    ids = np.concatenate([rng.integers(10, 23, (8, 4)), np.tile(np.arange(1, 5), (8, 1))], axis=1)
    loss_mask = jnp.asarray(np.tile(np.arange(8) >= 4, (8, 1)))
    documents = Tokens(jnp.asarray(ids), jnp.ones((8, 8), bool))
    return Corpus(documents, loss_mask, epoch_order(jax.random.key(0), 8, 4, STEPS), jax.random.key(1), base)


def start(trainable) -> TrainState:
    return TrainState(jnp.zeros((), jnp.int32), trainable, OPTIMIZER.init(trainable), None)


def losses(trainable, corpus) -> tuple[list[float], TrainState]:
    state, seen = start(trainable), []
    for _ in range(STEPS):
        state, metrics = STEP(state, corpus)
        seen.append(float(metrics["loss"]))
    return seen, state


@pytest.mark.parametrize("mode", ["full", "lora"])
def test_what_is_learnt_becomes_likely(mode):
    params = random_params(MODEL, scale=0.2)
    trainable, base = (
        (params, None) if mode == "full" else (random_lora(MODEL, scale=0.05), LanguageModel(MODEL, params))
    )
    seen, state = losses(trainable, corpus_of(base))
    assert seen[-1] < 0.3 * seen[0]
    assert state.step == STEPS
    moved = jax.tree.map(lambda a, b: bool((a != b).any()), state.trainable, trainable)
    assert all(jax.tree.leaves(moved))


def test_nothing_is_learnt_of_a_token_that_does_not_count():
    corpus = corpus_of()
    _, metrics = STEP(start(random_params(MODEL)), corpus.replace(loss_mask=jnp.zeros_like(corpus.loss_mask)))
    assert metrics["loss"] == 0
    assert metrics["gradient_norm"] == 0


def test_micro_batches_of_unequal_weight_make_the_step_of_one():
    corpus = corpus_of()
    uneven = corpus.loss_mask & (jnp.arange(8)[:, None] % 3 * 2 < jnp.arange(8) - 2)
    corpus = corpus.replace(loss_mask=uneven)
    assert len(set(np.asarray(uneven[corpus.order[0]].sum(1)))) > 1
    state = start(random_params(MODEL))
    parts = dataclasses.replace(LanguageModeling(MODEL), micro_batches=4)
    one, two = STEP(state, corpus), jax.jit(make_step(parts, OPTIMIZER))(state, corpus)
    for name in ("loss", "gradient_norm"):
        np.testing.assert_allclose(one[1][name], two[1][name], rtol=1e-5)


def test_all_weights_stay_float32_while_the_arithmetic_is_bfloat16():
    algorithm = LanguageModeling(MODEL, dtype=jnp.bfloat16)
    state = start(random_params(MODEL))
    exact, (after, metrics) = (
        STEP(state, corpus_of()),
        jax.jit(make_step(algorithm, OPTIMIZER))(state, corpus_of()),
    )
    assert {leaf.dtype for leaf in jax.tree.leaves(after.trainable)} == {jnp.dtype("float32")}
    assert metrics["loss"] != exact[1]["loss"]
    np.testing.assert_allclose(metrics["loss"], exact[1]["loss"], rtol=0.02)
