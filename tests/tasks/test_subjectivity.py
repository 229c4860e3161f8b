"""The subjectivity task: what is encoded, what may be written, what is rewarded, and what the buffer starts with."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_files import write_reviews
from tiny_tokenizers import BYTE_LEVEL

from gfn_jax.models.config import ModelConfig
from gfn_jax.models.decoder import init_params
from gfn_jax.models.language_model import LanguageModel
from gfn_jax.models.lora import LoraConfig, init_lora, merge_lora
from gfn_jax.policy.constraint import Rules
from gfn_jax.policy.teacher import teacher_force
from gfn_jax.tasks.subjectivity import Subjectivity, SubjectivityConfig
from gfn_jax.text.joining import joining_difference
from gfn_jax.text.tokens import encode_after
from gfn_jax.worlds.reviews import LABELS
from gfn_jax.worlds.reviews_corpus import build_tokenizer

CONFIG = SubjectivityConfig(
    path=None,
    labels=6,
    data_seed=0,
    validation=5,
    test=7,
    min_length=1,
    max_length=5,
    forbidden=LABELS,
    seed_samples=3,
    wrong_label_penalty=0.0,
    reward_adapter=None,
)
TOKENIZER = build_tokenizer()
MODEL = ModelConfig(
    vocab_size=len(TOKENIZER),
    width=16,
    num_layers=1,
    num_heads=2,
    num_kv_heads=2,
    head_dim=8,
    mlp_width=16,
    max_positions=128,
    rotary_dim=8,
)
TASK = Subjectivity(CONFIG, TOKENIZER, len(TOKENIZER))


REVIEWS = ("ours", pytest.param("SUBJ", marks=pytest.mark.reference))


def with_config(**changes):
    return dataclasses.replace(TASK, config=dataclasses.replace(CONFIG, **changes))


@pytest.fixture(scope="module")
def base():
    return LanguageModel(MODEL, jax.tree.map(lambda x: 3 * x, init_params(jax.random.key(0), MODEL)))


@pytest.fixture(scope="module")
def reasons():
    """Two reasons for each training review, as a rollout."""
    ids = [TOKENIZER(text)["input_ids"] for text in (" full of praise", " a plot summary")] * 6
    completion = jnp.array([[*row, *[TASK.stop_id] * 6][:6] for row in ids])
    return teacher_force(completion, jnp.full(12, 3), Rules(TASK.constraint(), TASK.environment))


def test_prompt_reason_and_answer_read_as_one_text():
    query = jax.tree.map(np.asarray, TASK.queries("train"))
    for example, (review, label) in enumerate(TASK.splits["train"]):
        parts = (query.prompt.ids[example][query.prompt.mask[example]], TOKENIZER(" full of praise")["input_ids"])
        answer = query.answer.ids[example][query.answer.mask[example]]
        text = TOKENIZER.decode([*map(int, parts[0]), *parts[1], *map(int, answer)])
        assert text == (
            f'Classify this movie review as objective or subjective: "{review}" This review is full of praise, '
            f"so it is {LABELS[label]}."
        )
        assert int(answer[0]) == TASK.stop_id
    assert len(TASK.queries("test").example_id) == 7


def test_demonstrations_stand_before_the_prompt():
    query = jax.tree.map(np.asarray, TASK.queries("test", shots=2))
    text = TOKENIZER.decode(query.prompt.ids[0][query.prompt.mask[0]])
    first, label = TASK.splits["train"][0]
    assert text.count("Classify") == 3
    assert f'"{first}" This review is {LABELS[label]}.\nClassify' in text
    assert text.endswith(f'"{TASK.review("test", 0)}" This review is')


def test_a_reason_is_made_of_words_and_does_not_name_the_label():
    constraint = TASK.constraint()
    allowed = {TOKENIZER.decode([i]) for i in np.asarray(constraint.token_ids).tolist()}
    assert {" full", " of", " praise", " a", ","} <= allowed
    assert not {" objective", " subjective", ".", '"', ":", "\n", "<pad>", "<unk>"} & allowed
    assert TOKENIZER.decode([constraint.stop_id]) == ","
    assert {" objective", " subjective"} <= {
        TOKENIZER.decode([i]) for i in np.asarray(with_config(forbidden=()).constraint().token_ids).tolist()
    }


def test_the_penalty_falls_where_the_wrong_label_is_likelier(base, reasons):
    task, query = with_config(wrong_label_penalty=50.0), TASK.queries("train")
    other = dataclasses.replace(query, answer=jax.tree.map(lambda x: x[1 - TASK.truth("train")], TASK.answers()))
    plain, penalized = TASK.reward(MODEL), task.reward(MODEL)
    score = jax.jit(plain.log_reward)
    right, wrong = (score(base, plain.prepare(base), q, reasons) for q in (query, other))
    found = jax.jit(penalized.log_reward)(base, penalized.prepare(base), query, reasons)
    np.testing.assert_allclose(found, right - 50.0 * (wrong > right), rtol=1e-5)
    assert 0 < (np.asarray(wrong > right)).sum() < wrong.size  # both happen


def test_the_reward_model_may_carry_an_adapter(base, reasons):
    lora = init_lora(jax.random.key(1), MODEL, LoraConfig(rank=2, alpha=4.0, targets=("q", "up", "head")))
    adapter = jax.tree.map(lambda x: x + 0.1, lora)
    query = TASK.queries("train")
    adapted, plain = dataclasses.replace(TASK, adapter=adapter).reward(MODEL), TASK.reward(MODEL)
    merged = LanguageModel(MODEL, merge_lora(MODEL, base.params, adapter))
    score = jax.jit(plain.log_reward)
    found = jax.jit(adapted.log_reward)(base, adapted.prepare(base), query, reasons)
    wanted = score(merged, plain.prepare(merged), query, reasons)
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-4)
    assert not np.allclose(found, score(base, plain.prepare(base), query, reasons), atol=1e-2)


def test_seeds_are_cut_at_the_first_token_that_is_no_word(base):
    seeds = jax.jit(TASK.prompted_seeds)(base, jax.random.key(3))
    assert seeds.example_id.tolist() == list(range(6))
    assert seeds.completion.shape == (18, 6)
    lengths = seeds.length.tolist()
    for row, length in zip(np.asarray(seeds.completion).tolist(), lengths, strict=True):
        assert all(TASK.is_word[token] for token in row[:length])
        assert not TASK.is_word[row[length]]
    assert min(lengths) < max(lengths) <= 5
    empty = with_config(seed_samples=0).prompted_seeds(base, jax.random.key(3))
    assert empty.completion.shape == (0, 6)


@pytest.fixture(params=REVIEWS)
def subj(request, tmp_path, monkeypatch):
    """(folder, all labels, reviews to test with)."""
    monkeypatch.setenv("GFN_JAX_CACHE", str(tmp_path / "cache"))
    if request.param == "SUBJ":
        return str(request.getfixturevalue("shared") / "data" / "subj"), 8000, 2000
    write_reviews(tmp_path, train=120, test=40)
    return str(tmp_path), 120, 40


def test_subj_trains_on_few_labels_and_validates_on_other_reviews(subj):
    folder, labels, test = subj
    task = with_config(path=folder, labels=20, validation=30, test=test)
    assert {split: len(rows) for split, rows in task.splits.items()} == {"train": 20, "validation": 30, "test": test}
    texts = [{text for text, _ in task.splits[split]} for split in ("train", "validation", "test")]
    assert not texts[0] & texts[1] and not texts[1] & texts[2]  # noqa: PT018
    with pytest.raises(ValueError, match=f"labels is 13; SUBJ has 10, 20, 50 and all {labels}"):
        dataclasses.replace(task, config=dataclasses.replace(task.config, labels=13)).splits  # noqa: B018


@pytest.mark.parametrize("name", BYTE_LEVEL)
def test_reviews_in_tokens_of_bytes_read_as_one_text(name, tokenizer_named, subj):
    tokenizer = tokenizer_named(name)
    settings = dataclasses.replace(CONFIG, path=subj[0], labels=10)
    task = Subjectivity(settings, tokenizer, len(tokenizer))
    query = jax.tree.map(np.asarray, task.queries("train"))
    for row, (review, label) in enumerate(task.splits["train"]):
        reason = encode_after(tokenizer, task.prompt(review), " full of praise")
        ids = [*query.prompt.ids[row][query.prompt.mask[row]], *reason, *query.answer.ids[row][query.answer.mask[row]]]
        text = f"{task.prompt(review)} full of praise, so it is {LABELS[label]}."
        assert joining_difference(tokenizer, [int(i) for i in ids], text) is None
    assert tokenizer.decode([task.stop_id]) == ","
    texts = tokenizer.batch_decode([[int(i)] for i in task.constraint().token_ids])
    assert {" full", " praise"} <= set(texts)
    assert not {" objective", " subjective", ".", " 1"} & set(texts)
