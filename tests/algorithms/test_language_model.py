import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_worlds import left_padded, random_lora, random_params, tiny

from gfn_jax.algorithms.language_model import Batch, Corpus, LanguageModeling, Phase, epoch_order, phase_order
from gfn_jax.models import decoder
from gfn_jax.models.language_model import LanguageModel
from gfn_jax.models.lora import LoraConfig, merge_lora
from gfn_jax.policy.likelihood import next_token_loss
from gfn_jax.types import Keys, Tokens, TrainState

MODEL = tiny(num_layers=1)
ROOT = jax.random.key(3)


@pytest.fixture(scope="module")
def rows():
    """Three documents padded right, of which the second half of each is learnt."""
    rng = np.random.default_rng(0)
    ids, lengths = jnp.asarray(rng.integers(1, 23, (3, 8))), jnp.asarray([8, 6, 5])
    mask = jnp.arange(8) < lengths[:, None]
    return Tokens(ids, mask), mask & (jnp.arange(8) >= 3)


measure = jax.jit(next_token_loss)


def test_the_loss_is_of_the_tokens_that_count_given_all_before_them(rows):
    documents, loss_mask = rows
    params = random_params(MODEL)
    measured = measure(LanguageModel(MODEL, params), documents, loss_mask)
    hidden, _ = decoder.prefill(LanguageModel(MODEL, params), documents)
    log_probs = jax.nn.log_softmax(decoder.logits(decoder.select_head(LanguageModel(MODEL, params)), hidden))
    expected = [
        -log_probs[row, column - 1, documents.ids[row, column]] for row, column in np.argwhere(np.asarray(loss_mask))
    ]
    assert measured.weight == len(expected) == 5 + 3 + 2
    np.testing.assert_allclose(measured.total, sum(expected), rtol=1e-5)


def test_padding_neither_counts_nor_is_seen(rows):
    documents, loss_mask = rows
    params = random_params(MODEL)
    other = Tokens(jnp.where(documents.mask, documents.ids, 7), documents.mask)
    everything = jnp.ones_like(loss_mask)
    one, two = (measure(LanguageModel(MODEL, params), tokens, everything) for tokens in (documents, other))
    assert one.weight == 7 + 5 + 4
    assert one.total == two.total


def test_left_padding_makes_no_difference():
    """X, Z and Y are put together as prompts are: padded left."""
    sentence = [4, 9, 2, 11, 5]
    left = left_padded([sentence], 8)
    right = Tokens(jnp.asarray([[*sentence, 0, 0, 0]]), jnp.arange(8)[None] < 5)
    params = random_params(MODEL)
    totals = [
        measure(LanguageModel(MODEL, params), left, jnp.arange(8)[None] >= 5).total,
        measure(LanguageModel(MODEL, params), right, (jnp.arange(8)[None] >= 2) & (jnp.arange(8)[None] < 5)).total,
    ]
    np.testing.assert_allclose(*totals, rtol=1e-5)


def test_an_adapter_is_measured_as_its_merged_model(rows):
    params, lora = random_params(MODEL), random_lora(MODEL)
    adapted, merged = (
        measure(LanguageModel(MODEL, params, lora), *rows),
        measure(LanguageModel(MODEL, merge_lora(MODEL, params, lora)), *rows),
    )
    np.testing.assert_allclose(adapted.total, merged.total, rtol=1e-4)
    assert abs(adapted.total - measure(LanguageModel(MODEL, params), *rows).total) > 0.1


def test_dropout_is_the_adapters_and_only_where_it_is_asked_for(rows):
    params, lora = random_params(MODEL), LoraConfig(3, 6, ("q", "down"), dropout=0.5)
    batch, weights = Batch(*rows), {"tokens": jnp.ones(())}
    adapter = random_lora(MODEL, targets=lora.targets)
    corpus = Corpus(*rows, jnp.zeros((1, 3), int), ROOT, LanguageModel(MODEL, params))

    def loss(algorithm, seed):
        return float(algorithm.loss(adapter, corpus, batch, weights, jax.random.key(seed))[0])

    dropping, plain = LanguageModeling(MODEL, lora), LanguageModeling(MODEL, dataclasses.replace(lora, dropout=0.0))
    without = measure(corpus.base.adapted(adapter), *rows).total
    np.testing.assert_allclose(loss(plain, 0), without, rtol=1e-6)
    totals = {loss(dropping, seed) for seed in range(2)}
    assert len(totals) == 2
    assert loss(plain, 0) not in totals


def test_phases_draw_from_their_own_documents():
    order = phase_order(ROOT, [Phase(3, 0, 5), Phase(2, 5, 7)], 64)
    assert order.shape == (5, 64)
    assert set(np.unique(order[:3])) == set(range(5))
    assert set(np.unique(order[3:])) == {5, 6}


def test_a_steps_rows_follow_from_its_number_alone():
    """The draws that runs have always made: randint of the root folded with the step."""
    order = phase_order(ROOT, [Phase(3, 0, 5), Phase(2, 5, 9)], 4)
    for step, bounds in enumerate([(0, 5)] * 3 + [(5, 9)] * 2):
        expected = jax.random.randint(jax.random.fold_in(ROOT, step), (4,), *bounds)
        np.testing.assert_array_equal(order[step], expected)


def test_an_epoch_has_every_row_once_and_the_next_another_order():
    order = np.asarray(epoch_order(ROOT, 10, 4, 6))  # 24 rows of 10: two epochs and a part of the third
    epochs = np.split(order.reshape(-1), [10, 20])
    for epoch in epochs[:2]:
        assert sorted(epoch) == list(range(10))
    assert list(epochs[0]) != list(epochs[1])
    assert len(set(epochs[2])) == 4


def test_collect_takes_the_rows_and_their_masks(rows):
    documents, loss_mask = rows
    corpus = Corpus(documents, loss_mask, jnp.asarray([[0, 0], [2, 1]]), ROOT)
    state = TrainState(jnp.asarray(1), None, None, None)
    batch = LanguageModeling(MODEL, micro_batches=2).collect(state, corpus, Keys.of(ROOT, 1)).batches
    np.testing.assert_array_equal(batch.documents.ids, documents.ids[jnp.asarray([[2], [1]])])
    np.testing.assert_array_equal(batch.loss_mask, loss_mask[jnp.asarray([[2], [1]])])
