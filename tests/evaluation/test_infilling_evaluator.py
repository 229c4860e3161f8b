"""The infilling evaluator on a random model: exact measures by hand and by brute force, what a report holds."""

import dataclasses
import math

import jax
import numpy as np
import pytest
from tiny_worlds import check_questions

from gfn_jax.evaluation import infilling, infilling_exact
from gfn_jax.evaluation.infilling import InfillingEvaluationConfig, InfillingEvaluator
from gfn_jax.evaluation.infilling_exact import Listed, distances, divergence, list_sentences, log_posterior
from gfn_jax.evaluation.judge import Judge
from gfn_jax.evaluation.scoring import Scorer
from gfn_jax.models import decoder
from gfn_jax.models.checkpoint import load_model
from gfn_jax.models.config import ModelConfig
from gfn_jax.models.language_model import LanguageModel
from gfn_jax.rewards import PosteriorReward
from gfn_jax.sections import checked
from gfn_jax.tasks.infilling import Infilling, InfillingConfig
from gfn_jax.text.loading import model_folder
from gfn_jax.worlds.stories_corpus import build_tokenizer

CONFIG = InfillingEvaluationConfig(
    every=1,
    stories=3,
    test_stories=4,
    samples=2,
    temperature=1.0,
    batch=2,
    seed=0,
    bert_folder=None,
    bert_layer=1,
    judge_url=None,
    judge_model=None,
    judge_samples=1,
)


@pytest.fixture(scope="module")
def task():
    tokenizer = build_tokenizer()
    return Infilling(InfillingConfig(None, 5, 3, 4, 5, 4, 9, 0.0), tokenizer, len(tokenizer))


@pytest.fixture(scope="module")
def base(task):
    shape = ModelConfig(task.vocab_size, 16, 1, 2, 2, 8, 16, max_positions=64, rotary_dim=8)
    return LanguageModel(shape, decoder.init_params(jax.random.key(0), shape))


@pytest.fixture(scope="module")
def evaluator(task, base):
    return InfillingEvaluator(task, task.reward(base.shape), CONFIG, temperature=1.0)


@pytest.fixture(autouse=True)
def few_samples(monkeypatch):
    """As many as the others: one shape, one compilation."""
    monkeypatch.setattr(infilling, "UNLISTED_SAMPLES", CONFIG.samples)


def test_distances_by_hand():
    mask = np.array([[True, True, True], [True, True, False]])
    listed = Listed(np.zeros((2, 3, 1)), np.zeros((2, 3)), mask, np.array([[0.5, 0.5, 0.0], [1.0, 0.0, 0.0]]))
    log_p = np.log(np.array([[0.5, 0.25, 0.25], [0.5, 0.5, 1.0]]))
    log_p[1, 2] = -np.inf  # fills up
    log_q = np.log(np.array([[0.25, 0.25, 0.25], [0.5, 0.25, 0.9]]))
    found = distances(log_q, log_p, listed)
    assert math.isclose(found["kl"].mean(), (0.5 * math.log(2) + 0.5 * math.log(2)) / 2)
    assert math.isclose(found["kl_generator"].mean(), (math.log(2) + math.log(2)) / 2)
    assert math.isclose(found["consistency"].mean(), 100 * (0.5 + 0.5) / 2)
    assert math.isclose(found["listed"].mean(), 100 * (0.75 + 0.75) / 2)


def test_posterior_is_tempered_and_normalised_over_the_list():
    log_reward = np.log(np.array([[1.0, 4.0, 100.0]]))
    mask = np.array([[True, True, False]])
    assert np.allclose(np.exp(log_posterior(log_reward, mask, 1.0)), [[0.2, 0.8, 0.0]])
    assert np.allclose(np.exp(log_posterior(log_reward, mask, 2.0)), [[1 / 3, 2 / 3, 0.0]])
    assert divergence(np.array([[0.2, 0.8, 0.0]]), log_posterior(log_reward, mask, 1.0)) == pytest.approx(0)


def test_batches_change_nothing(evaluator, base):
    # 4 stories in batches of 2 and, with the last one filled up, of 3.
    listed, query = evaluator.listed("test"), evaluator.query("test")
    found = [
        (
            scorer.log_policy(base, query.prompt, listed.ids, listed.lengths),
            scorer.log_reward(base, query, listed.ids, listed.lengths),
        )
        for scorer in (evaluator.scorer, dataclasses.replace(evaluator.scorer, batch=3))
    ]
    assert found[0][0].shape == listed.mask.shape
    assert np.allclose(found[0][0], found[1][0], atol=1e-4)
    assert np.allclose(found[0][1], found[1][1], atol=1e-4)


def test_a_sampled_sentence_is_as_likely_as_the_policy_says(evaluator, base):
    # An untrained model is nearly uniform: a sentence of n words has about (1/A)^n.
    listed, query = evaluator.listed("test"), evaluator.query("test")
    log_q = evaluator.scorer.log_policy(base, query.prompt, listed.ids, listed.lengths)
    choices = len(evaluator.scorer.rules.constraint.token_ids)
    expected = -np.log(choices - 1.0) * 4 - np.log(choices) * (listed.lengths - 4 + 1)
    assert np.allclose(log_q[listed.mask], expected[listed.mask], atol=1.0)


def test_validation_depends_on_the_arguments_alone(evaluator, base):
    first = evaluator.validate(base)
    assert first == evaluator.validate(base)
    assert set(first) == {"kl", "kl_generator", "consistency", "listed"}
    assert "validation KL" in evaluator.describe(first)


def test_a_report_holds_every_writer(evaluator, base, task):
    findings = evaluator.report(base)
    assert set(findings.methods) == {"base", "base_continuation", "policy", "posterior"}
    # Without an adapter the policy is the base.
    assert findings.methods["policy"] == findings.methods["base"]
    assert findings.methods["policy"] != findings.methods["base_continuation"]
    values = [value for method in findings.methods.values() for value in method.values()]
    assert np.isfinite(values).all()
    assert findings.methods["posterior"]["unlisted"] > 90  # a random model writes anything
    assert "this run" in findings.page
    assert task.splits["test"][0].ending in findings.page
    check_questions(findings.methods, findings.questions, digits=4)
    assert set(findings.questions["policy"]) == set(findings.methods["policy"]) - {"bleu_4", "gleu_4"}
    assert {len(values) for values in findings.questions["base"].values()} == {CONFIG.test_stories}
    assert len(findings.samples) == 3 * CONFIG.test_stories * CONFIG.samples
    assert all(sample.right is None and sample.completion.endswith(".") for sample in findings.samples)


def test_real_stories_are_measured_by_text_and_judge(evaluator, base, monkeypatch):
    monkeypatch.setattr(Infilling, "candidates", lambda self, split, example: {})
    read = []
    monkeypatch.setattr(Judge, "check", lambda self: None)
    monkeypatch.setattr(Judge, "score", lambda self, story: read.append(story) or 2.0)
    config = dataclasses.replace(CONFIG, judge_url="http://localhost:1/v1", judge_model="m")
    findings = dataclasses.replace(evaluator, config=config, _posteriors={}).report(base)
    assert set(findings.methods) == {"base", "base_continuation", "policy", "reference"}
    assert "kl" not in findings.methods["policy"]
    assert findings.methods["reference"] == {"judge": 2.0, "judge_failed": 0.0}
    assert len(read) == 4 * 4  # a story of each writer
    assert "judge, 1-5" in findings.page


def test_a_reward_may_hold_arrays(evaluator, base):
    """It is not hashable then; the same numbers come out as of the task's own."""
    plain = PosteriorReward()
    words = PosteriorReward(vocabulary_penalty=np.zeros(base.shape.vocab_size))
    listed = list_sentences(evaluator.task, "test", 2, evaluator.task.constraint().horizon)
    query = jax.tree.map(lambda x: x[:2], evaluator.task.queries("test"))
    found = [
        Scorer(reward, evaluator.scorer.rules, 2).log_reward(base, query, listed.ids[:, :2], listed.lengths[:, :2])
        for reward in (plain, words)
    ]
    np.testing.assert_allclose(*found, atol=1e-4)


def test_settings_are_checked():
    with pytest.raises(ValueError, match="judge_model"):
        dataclasses.replace(CONFIG, judge_url="http://localhost:1/v1")
    with pytest.raises(ValueError, match=r"evaluation\.samples is 0"):
        checked(InfillingEvaluationConfig, vars(CONFIG) | {"samples": 0}, "evaluation.")


def test_the_shipped_model_knows_the_stories(task):
    # The target of the tiny run is the base's posterior: it must be near the generator's for that to mean anything.
    base = LanguageModel(*load_model(model_folder("tiny-stories")))
    evaluator = InfillingEvaluator(task, task.reward(base.shape), CONFIG, temperature=1.0)
    log_p = evaluator.posterior(base, "test")
    assert infilling_exact.divergence(evaluator.listed("test").generator, log_p).mean() < 0.2
