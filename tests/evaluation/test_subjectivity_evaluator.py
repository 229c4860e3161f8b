"""Votes of rationales: the labels' probabilities against a full forward pass, and what is counted of them."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_worlds import check_questions

from gfn_jax.evaluation.subjectivity import (
    Judgement,
    SubjectivityEvaluationConfig,
    SubjectivityEvaluator,
    draw_answers,
    label_probabilities,
)
from gfn_jax.models import decoder
from gfn_jax.models.checkpoint import load_model
from gfn_jax.models.language_model import LanguageModel
from gfn_jax.policy.constraint import Rules
from gfn_jax.policy.teacher import teacher_force
from gfn_jax.tasks.subjectivity import Subjectivity, SubjectivityConfig
from gfn_jax.text.batching import pad_right
from gfn_jax.text.loading import load_tokenizer, model_folder
from gfn_jax.worlds.reviews import LABELS, REASONS, draw_reviews

CONFIG = SubjectivityEvaluationConfig(
    every=1, reviews=3, samples=4, temperature=1.0, batch=4, shots=0, frequent=2, seed=0
)


@pytest.fixture(scope="module")
def evaluator():
    folder = model_folder("tiny-reviews")
    tokenizer = load_tokenizer(folder)
    settings = SubjectivityConfig(
        path=None,
        labels=4,
        data_seed=0,
        validation=5,
        test=6,
        min_length=1,
        max_length=5,
        forbidden=LABELS,
        seed_samples=0,
        wrong_label_penalty=0.0,
        reward_adapter=None,
    )
    base = LanguageModel(*load_model(folder, jnp.float32))
    return SubjectivityEvaluator(Subjectivity(settings, tokenizer, base.shape.vocab_size), CONFIG), base


probabilities_of = jax.jit(label_probabilities)


def by_full_pass(judge, base, before: list[str], after: list[list[str]]) -> np.ndarray:
    """Softmax over a row's continuations of log p of all their tokens, by one plain forward pass over whole texts."""
    tokenizer = judge.task.tokenizer
    heads = [len(tokenizer(text)["input_ids"]) for text in before for _ in LABELS]
    rows = [tokenizer(text + end)["input_ids"] for text, ends in zip(before, after, strict=True) for end in ends]
    tokens = pad_right(rows, 0)

    @jax.jit
    def log_probs(model, tokens):
        hidden, _ = decoder.prefill(model, tokens)
        found = jax.nn.log_softmax(decoder.logits(decoder.select_head(model), hidden))[:, :-1]
        return jnp.take_along_axis(found, tokens.ids[:, 1:, None], axis=-1)[..., 0]

    found = np.asarray(log_probs(base, tokens))
    scores = [row[head - 1 : len(ids) - 1].sum() for row, head, ids in zip(found, heads, rows, strict=True)]
    scores = np.exp(np.array(scores, np.float64).reshape(len(before), -1))
    return scores / scores.sum(1, keepdims=True)


def test_label_probabilities_are_those_of_the_joined_texts(evaluator):
    (judge, base), texts = evaluator, (" full of praise", " a plot summary", " about")
    task, tokenizer = judge.task, judge.task.tokenizer
    ids = [tokenizer(text)["input_ids"] for text in texts]
    completion = jnp.array([[*row, *[task.stop_id] * 6][:6] for row in ids])
    reasons = teacher_force(completion, jnp.array([3, 3, 1]), Rules(task.constraint(), task.environment))
    prompt = jax.tree.map(lambda x: x[:3], task.queries("test").prompt)
    found = probabilities_of(base, prompt, task.answers(), reasons)
    before = [task.prompt(task.review("test", row)) for row in range(3)]
    after = [[f"{text}, so it is {label}." for label in LABELS] for text in texts]
    np.testing.assert_allclose(found, by_full_pass(judge, base, before, after), rtol=1e-4)


def test_asking_at_once_scores_the_label_alone(evaluator):
    judge, base = evaluator
    found = judge.direct(base, "test", reviews=3)
    before = [judge.task.prompt(judge.task.review("test", row)) for row in range(3)]
    wanted = by_full_pass(judge, base, before, [[f" {label}." for label in LABELS]] * 3)
    np.testing.assert_allclose(found, wanted, rtol=1e-4)


def test_every_review_is_judged_once_whatever_the_batch(evaluator):
    judge, base = evaluator
    judgement = judge.judge(base, base, "test")  # 6 reviews in batches of 4
    assert judgement.probabilities.shape == (6, 4, 2)
    np.testing.assert_allclose(judgement.probabilities.sum(-1), 1.0, rtol=1e-5)
    assert [len(row) for row in judgement.rationales] == [4] * 6
    assert judge.judge(base, base, "validation", 3).probabilities.shape == (3, 4, 2)
    thirds = dataclasses.replace(judge, config=dataclasses.replace(CONFIG, batch=3))
    np.testing.assert_allclose(judge.direct(base, "test"), thirds.direct(base, "test"), rtol=1e-4)


def test_metrics_by_hand(evaluator):
    judge, _ = evaluator
    truth = judge.task.truth("test")[:2]
    assert truth.tolist() == [0, 1]
    sure = np.array([[[1.0, 0.0]] * 3 + [[0.0, 1.0]], [[1.0, 0.0]] * 4])
    found = judge.metrics(Judgement(sure, [[(1,)] * 4] * 2), "test")
    assert found["accuracy"] == 50.0
    assert found["accuracy_single"] == 37.5
    assert found["vote_entropy_wrong"] == 0.0
    assert found["vote_entropy_right"] == pytest.approx(0.5623, abs=1e-4)
    assert found["mutual_information"] == pytest.approx(0.5623 / 2, abs=1e-4)


def test_the_numbers_are_means_over_reviews_and_the_rationales_are_shown(evaluator):
    judge, base = evaluator
    task = dataclasses.replace(judge.task, config=dataclasses.replace(judge.task.config, test=4))
    findings = dataclasses.replace(judge, task=task).report(base)
    check_questions(findings.methods, findings.questions, digits=4)
    assert findings.questions.keys() == {"policy", "base", "zero_shot"}
    assert {len(values) for values in findings.questions["policy"].values()} == {4}
    partial = {"vote_entropy_right", "vote_entropy_wrong"}  # means over some of the reviews
    assert findings.questions["base"].keys() == findings.methods["base"].keys() - partial
    shown = [sample for sample in findings.samples if sample.method == "policy"]
    assert len(shown) == 4 * CONFIG.samples
    assert 100 * np.mean([sample.right for sample in shown]) == findings.methods["policy"]["accuracy_single"]
    assert {sample.answer for sample in shown} <= set(LABELS)


def test_frequent_rationales_by_true_label(evaluator):
    judge, _ = evaluator
    praise, plot = (tuple(judge.task.tokenizer(text)["input_ids"]) for text in (" full of praise", " a plot summary"))
    judgement = Judgement(np.full((2, 4, 2), 0.5), [[praise, plot, plot, plot], [praise] * 4])
    assert judge.frequent_rationales(judgement, "test") == {
        "objective": [("a plot summary", 75.0), ("full of praise", 25.0)],
        "subjective": [("full of praise", 100.0)],
    }


def test_answers_are_drawn_in_proportion():
    drawn = draw_answers(np.full((2000, 5, 2), [0.3, 0.7]), seed=1)
    assert drawn.mean() == pytest.approx(0.7, abs=0.02)
    assert draw_answers(np.array([[[0.0, 1.0]], [[1.0, 0.0]]]), seed=0).tolist() == [[1], [0]]


def test_the_shipped_base_knows_reasons_but_not_labels(evaluator):
    judge, base = evaluator
    task = judge.task
    task = dataclasses.replace(task, config=dataclasses.replace(task.config, test=200))
    judge = dataclasses.replace(judge, task=task, config=dataclasses.replace(CONFIG, batch=100))
    zero_shot = judge.direct(base, "test").argmax(1) == task.truth("test")
    assert 0.45 < zero_shot.mean() < 0.6
    reviews = draw_reviews("test", 200, 0)
    ids = [task.tokenizer(" " + REASONS[review.reason].text)["input_ids"] for review in reviews]
    completion = jnp.array([[*row, *[task.stop_id] * 6][:6] for row in ids])
    lengths = jnp.array([len(row) for row in ids])
    reasons = teacher_force(completion, lengths, Rules(task.constraint(), task.environment))
    found = probabilities_of(base, task.queries("test").prompt, task.answers(), reasons)
    assert np.asarray(found)[np.arange(200), task.truth("test")].mean() > 0.95
