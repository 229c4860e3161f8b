import dataclasses
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_worlds import check_questions, left_padded, query_of, random_lora, random_params, right_padded, tiny

from gfn_jax.evaluation.continuation import ContinuationEvaluationConfig, ContinuationEvaluator
from gfn_jax.models import decoder
from gfn_jax.models.language_model import LanguageModel
from gfn_jax.policy.constraint import make_constraint
from gfn_jax.sections import checked
from gfn_jax.types import Tokens

MODEL = tiny(vocab_size=11)
STOP = 10
CONFIG = ContinuationEvaluationConfig(
    every=1,
    prompts=0,
    samples=4,
    batch=2,
    seed=0,
    temperatures=(0.8,),
    nucleus=(0.9,),
    beams=True,
    diverse_groups=4,
    diverse_penalty=1.0,
    encoder=None,
)


def make_task(token_ids=None):
    prompts = [[1, 2, 3], [4], [5, 6]]
    constraint = make_constraint(11, STOP, max_length=4, min_length=1, token_ids=token_ids)
    return types.SimpleNamespace(
        begin_ids=[0],
        queries=lambda split: query_of(left_padded(prompts), answer=right_padded([[STOP]] * 3)),
        constraint=lambda training=True: constraint,
        question=lambda split, example: f"prompt {example}",
        decode=lambda ids: " ".join(map(str, ids)),
    )


@pytest.fixture(scope="module")
def setting():
    policy = LanguageModel(MODEL, random_params(MODEL), random_lora(MODEL))
    return ContinuationEvaluator(make_task(np.arange(8)), CONFIG, 0.5), policy


@pytest.fixture(scope="module")
def findings(setting):
    evaluator, policy = setting
    return evaluator.report(policy)


@jax.jit
def log_probs(params, ids, mask):
    """Log p of every token given those before it, by one plain pass over whole texts."""
    hidden, _ = decoder.prefill(LanguageModel(MODEL, params), Tokens(ids, mask))
    logs = jax.nn.log_softmax(decoder.logits(decoder.select_head(LanguageModel(MODEL, params)), hidden))
    return jnp.take_along_axis(logs[:, :-1], ids[:, 1:, None], axis=-1)[..., 0]


def test_every_way_of_writing_is_measured_alike(findings):
    assert set(findings.methods) == {
        *("policy", "base", "tempered_0.8", "nucleus_0.9", "greedy", "beam", "diverse_beam")
    }
    for name, found in findings.methods.items():
        assert all(np.isfinite(value) for value in found.values() if value is not None), name
        assert found["log_likelihood_mean"] <= found["log_likelihood_max"]
        assert f"{found['log_likelihood_mean']:.2f}" in findings.page
        assert (found["gain"] is None) == (found["covered"] == 0)
    own = findings.methods["base"]
    assert [own[name] for name in ("gain", "gain_low", "gain_high", "covered")] == [0, 0, 0, 1]
    assert findings.methods["greedy"]["diversity"] == 0
    assert findings.methods["beam"]["unique"] == 1
    assert "mean of the base's last hidden states" in findings.page


def test_the_numbers_are_means_over_prompts_and_the_sentences_are_shown(findings):
    check_questions(findings.methods, findings.questions, digits=4)
    assert findings.questions.keys() == findings.methods.keys()
    pooled = {"gain", "gain_low", "gain_high", "covered"}  # over prompts, of one length
    assert findings.questions["beam"].keys() == findings.methods["beam"].keys() - pooled
    assert {len(values) for values in findings.questions["policy"].values()} == {3}
    shown = [sample for sample in findings.samples if sample.method == "policy"]
    assert [sample.question for sample in shown] == [f"prompt {i}" for i in range(3) for _ in range(4)]
    assert {sample.split for sample in shown} == {"validation"}


def test_likelihoods_are_those_of_a_plain_pass_and_the_last_batch_is_cut(setting):
    evaluator, policy = setting
    samples = [[[1], [2, 3], [4, 5, 6, 7], [1, 1]], [[7], [6], [5], [4]], [[2, 2, 2], [3, 1], [0], [1, 2]]]
    query = evaluator.query(0)
    found = evaluator.measure(policy, query, samples).means
    prompts = [[1, 2, 3], [4], [5, 6]]
    texts = [[*x, *z, STOP] for x, rows in zip(prompts, samples) for z in rows]
    whole = right_padded(texts)
    scored = np.asarray(log_probs(policy.params, whole.ids, whole.mask))
    begins = [len(x) for x in prompts for _ in range(4)]
    base = [row[begin - 1 : len(text) - 1].sum() for row, begin, text in zip(scored, begins, texts)]
    base = np.reshape(base, (3, 4))
    assert found["log_likelihood_mean"] == pytest.approx(base.mean(), abs=1e-3)
    assert found["log_likelihood_max"] == pytest.approx(base.max(1).mean(), abs=1e-3)
    at_once = dataclasses.replace(evaluator, config=dataclasses.replace(CONFIG, batch=3))
    assert found == pytest.approx(at_once.measure(policy, query, samples).means, abs=1e-4)
    assert found["length"] == pytest.approx(np.mean([len(z) for rows in samples for z in rows]))


def test_the_base_balances_at_temperature_one_where_everything_is_legal(setting):
    _, policy = setting
    evaluator = ContinuationEvaluator(make_task(), CONFIG, 1.0)
    query = evaluator.query(2)
    samples = [rows[:] for rows in evaluator.sample(policy.base, query)]
    samples = [[row[:3] or [1] for row in rows] for rows in samples]  # at the maximum length the stop is forced
    # log p/T - log q is constant but for the first state, in which the stop may not be chosen: the same for all.
    assert evaluator.measure(policy.base, query, samples).means["balance_spread"] < 1e-3
    assert evaluator.measure(policy, query, samples).means["balance_spread"] > 0.1


@pytest.mark.parametrize("wrong", [{"samples": 1}, {"nucleus": (1.5,)}, {"diverse_groups": 3}, {"temperatures": (0,)}])
def test_settings_out_of_range_are_refused(wrong):
    with pytest.raises(ValueError, match="evaluation"):
        checked(ContinuationEvaluationConfig, vars(CONFIG) | wrong, "evaluation.")
