"""Exact distances of a sampler of numbers: against an enumeration of every text, and against samples."""

import dataclasses
import math

import jax
import numpy as np
import pytest

from gfn_jax.evaluation import random_numbers
from gfn_jax.evaluation.enumeration import enumerate_completions, unit_gain
from gfn_jax.evaluation.random_numbers import RandomNumbersEvaluationConfig, RandomNumbersEvaluator, distances, kl
from gfn_jax.evaluation.scoring import log_policy
from gfn_jax.models import decoder
from gfn_jax.models.config import ModelConfig
from gfn_jax.models.language_model import LanguageModel
from gfn_jax.models.lora import LoraConfig, init_lora
from gfn_jax.policy.constraint import Rules
from gfn_jax.tasks.random_numbers import RandomNumbers, RandomNumbersConfig
from gfn_jax.text.wordlevel import tokenizer_of

# Numbers 0..12 over a vocabulary in which some of them can be written in two ways.
CONFIG = RandomNumbersConfig("0", None, "poisson", 0, 12, 3.0, {}, 7.0, 0, 3, False, 1)


@pytest.fixture(scope="module")
def world():
    """The evaluator, and a random decoder."""
    tokenizer = tokenizer_of(["10", "12", *"0123456789"], r"[\s\S]")
    model = ModelConfig(
        vocab_size=len(tokenizer),
        width=16,
        num_layers=1,
        num_heads=2,
        num_kv_heads=2,
        head_dim=8,
        mlp_width=32,
        max_positions=8,
        rotary_dim=8,
    )
    base = LanguageModel(model, jax.jit(lambda key: unit_gain(decoder.init_params(key, model)))(jax.random.key(0)))
    task = RandomNumbers(CONFIG, tokenizer, model.vocab_size)
    return RandomNumbersEvaluator(task, RandomNumbersEvaluationConfig(1, 20_000, 1000, 0)), base


def test_probabilities_are_those_of_every_text_that_spells_the_number(world):
    evaluator, base = world
    task = evaluator.task
    everything = enumerate_completions(evaluator.rules)
    log_q = jax.jit(log_policy)(base, evaluator.prompt, everything, evaluator.rules)
    by_text: dict[str, float] = {}
    special = set(task.tokenizer.all_special_ids)
    lengths = np.asarray(everything.token_mask).sum(1)
    for row, length, value in zip(np.asarray(everything.completion).tolist(), lengths, np.asarray(log_q), strict=True):
        text = task.decode(row[:length]) if not special & set(row[:length]) else "<special>"
        by_text[text] = by_text.get(text, 0.0) + math.exp(value)
    assert sum(by_text.values()) == pytest.approx(1, abs=1e-4)
    want = [by_text[str(number)] for number in range(13)]
    np.testing.assert_allclose(evaluator.probabilities(base), want, rtol=1e-4)


@pytest.mark.parametrize("changes", [{}, {"min_length": 2, "low": 10, "penalty": 2.0}, {"digits_only": True}])
def test_the_floor_is_the_distance_of_the_rewards_own_distribution(world, changes):
    task = dataclasses.replace(world[0].task, config=dataclasses.replace(CONFIG, **changes))
    everything = enumerate_completions(Rules(task.constraint(), task.environment))
    reward = task.reward(None)
    log_reward = jax.jit(reward.log_reward)(None, reward.prepare(None), None, everything)
    r = np.exp(np.asarray(log_reward, np.float64)[np.arange(len(log_reward)), everything.token_mask.sum(1)])
    shares: dict[str, float] = {}
    for row, length, share in zip(
        np.asarray(everything.completion).tolist(), np.asarray(everything.token_mask.sum(1)), r / r.sum()
    ):
        text = "" if set(row[:length]) & set(task.tokenizer.all_special_ids) else task.decode(row[:length])
        shares[text] = shares.get(text, 0.0) + share
    expected = sum(math.exp(log_p) * (log_p - math.log(shares[str(n)])) for n, log_p in task.log_target.items())
    assert task.floor == pytest.approx(expected, rel=1e-4)
    assert task.floor > 1e-5


def test_samples_agree_with_the_enumeration(world):
    evaluator, base = world
    exact, sampled = evaluator.validate(base), evaluator.estimate(evaluator.draw(base))
    valid = exact["valid_mass"]
    assert sampled["samples"] == 20_000
    assert sampled["sampled_valid_mass"] == pytest.approx(valid, abs=4 * math.sqrt(valid * (1 - valid) / 20_000))
    assert sampled["sampled_noise_floor"] == pytest.approx(12 / (2 * 20_000 * sampled["sampled_valid_mass"]))
    assert sampled["sampled_kl"] == pytest.approx(exact["kl_to_target"], rel=0.1)


def test_a_base_that_writes_no_number_has_no_sampled_distance(world, monkeypatch):
    evaluator, base = world
    monkeypatch.setattr(random_numbers, "sample_completions", lambda *args, samples, **settings: [[[]] * samples])
    found = evaluator.estimate(evaluator.draw(base))
    assert (found["sampled_kl"], found["sampled_valid_mass"]) == (None, 0.0)
    found |= distances(np.full(13, 1 / 13), evaluator.log_p)
    assert "none valid (" in evaluator.page({"base": found, "policy": found}, {"base": [1.0], "number": [3]})


def test_the_report_names_what_it_must_for_policy_and_base(world):
    evaluator, base = world
    lora = init_lora(jax.random.key(1), base.shape, LoraConfig(rank=2, alpha=2.0, targets=("q", "head")))
    findings = evaluator.report(base.adapted(lora))
    names = {"kl_to_target", "kl_from_target", "valid_mass", "covered", "sampled_kl", "sampled_noise_floor"}
    assert names <= findings.methods["policy"].keys() == findings.methods["base"].keys()
    assert findings.methods["policy"] == pytest.approx(findings.methods["base"], rel=1e-4)  # a fresh adapter
    listed = findings.methods["distribution"]
    assert listed["number"] == list(range(13))
    assert sum(listed["target"]) == pytest.approx(1)
    assert findings.methods["target"]["kl_from_target"] == pytest.approx(evaluator.task.floor)
    assert findings.methods["target"]["kl_to_target"] == pytest.approx(0, abs=1e-12)
    assert f"{evaluator.task.floor:.2e}" in findings.page
    assert sum(listed["policy"]) == pytest.approx(findings.methods["policy"]["valid_mass"])
    assert f"{findings.methods['base']['kl_to_target']:.2e}" in findings.page
    assert len(findings.samples) == 2 * 80
    assert all(sample.right == (sample.completion in evaluator.task.texts) for sample in findings.samples)


def test_the_target_itself_is_at_no_distance():
    log_p = np.log([0.5, 0.3, 0.2])
    found = distances(np.exp(log_p), log_p)
    assert found == pytest.approx(
        {"kl_to_target": 0, "kl_from_target": 0, "total_variation": 0, "valid_mass": 1, "covered": 3}, abs=1e-12
    )


def test_invalid_mass_counts_in_one_direction_and_in_total_variation():
    log_p = np.log([0.5, 0.3, 0.2])
    found = distances(0.9 * np.exp(log_p), log_p)
    assert found["kl_to_target"] == pytest.approx(0, abs=1e-12)
    assert found["kl_from_target"] == pytest.approx(-math.log(0.9))
    assert found["total_variation"] == pytest.approx(0.1)
    assert found["valid_mass"] == pytest.approx(0.9)


def test_a_lost_number_is_seen():
    log_p = np.log(np.full(4, 0.25))
    found = distances(np.array([1 / 3, 1 / 3, 1 / 3, 0.0]), log_p)
    assert found["covered"] == 3
    assert found["kl_to_target"] == pytest.approx(math.log(4 / 3))
    assert 100 < found["kl_from_target"] < math.inf


def test_kl_is_the_textbook_sum_also_far_out_in_a_tail():
    q, log_p = np.array([0.6, 0.4, 0.0]), np.array([math.log(0.5), math.log(0.5), -2000.0])
    assert kl(q, log_p) == pytest.approx(0.6 * math.log(1.2) + 0.4 * math.log(0.8))
    assert distances(q, log_p)["kl_from_target"] == pytest.approx(-0.5 * math.log(1.2) - 0.5 * math.log(0.8))
