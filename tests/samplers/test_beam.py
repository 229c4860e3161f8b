import json

import jax
import numpy as np
import pytest
from decoding_worlds import (
    CALLING,
    CALLS,
    POLICY,
    PROBLEM,
    PROMPT,
    RULES,
    check_calls,
    chosen_tokens,
    compiled_score,
    listed,
)
from golden.beams import CONFIG, PATH, STOP, draw_cases, draw_weights, generate
from safetensors.numpy import save_file
from tiny_worlds import left_padded, query_of

from gfn_jax.environments import NoTool
from gfn_jax.models.checkpoint import load_model
from gfn_jax.models.language_model import LanguageModel
from gfn_jax.policy.constraint import Rules, make_constraint
from gfn_jax.samplers.beam import Beam, beam_search
from gfn_jax.samplers.independent import Ancestral
from gfn_jax.samplers.sampler import Problem

CASES = json.loads(PATH.read_text())
compiled = jax.jit(beam_search, static_argnames=("num_beams", "num_beam_groups", "early_stopping"))
greedy = jax.jit(lambda model, problem: Ancestral(temperature=0.0).sample(model, problem, 1, jax.random.key(0)).rollout)


def run(sampler, model, problem, budget):
    return jax.jit(lambda model, problem: sampler.sample(model, problem, budget, jax.random.key(0)))(model, problem)


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """What we find in one of `golden.beams`' cases, as `generate` says it."""

    def find(case):
        folder = tmp_path_factory.mktemp("gpt2")
        (folder / "config.json").write_text(json.dumps(CONFIG))
        save_file(draw_weights(case["weights"]), folder / "model.safetensors")
        model = LanguageModel(*load_model(folder))
        lengths = case["max_length"], case["min_length"]
        rules = Rules(make_constraint(CONFIG["vocab_size"], STOP, *lengths, np.array(case["allowed"])), NoTool())
        prompt, beams = left_padded(case["prompts"], 5), case["num_beams"]
        if case["kind"] == "greedy":
            rollout, scores = greedy(model, Problem(None, query_of(prompt), rules)), None
        else:
            names = ("num_beams", "num_beam_groups", "diversity_penalty", "length_penalty", "early_stopping")
            settings = {name: case[name] for name in names if name in case}
            rollout, scores, _ = compiled(model, prompt, rules, **settings)
        rows = zip(np.asarray(rollout.completion), np.asarray(rollout.token_mask).sum(1))
        rows = [row[:n].tolist() for row, n in rows]
        return [rows[i : i + beams] for i in range(0, len(rows), beams)], scores

    return find


@pytest.mark.parametrize(("kind", "count"), [("greedy", 4), ("beam", 12), ("groups", 12)])
def test_completions_are_those_of_transformers_token_for_token(found, kind, count):
    assert len(CASES[kind]) == count
    for case in CASES[kind]:
        completions, scores = found(case)
        assert completions == case["completions"], case
        if kind != "greedy":
            np.testing.assert_allclose(scores, case["scores"], atol=2e-5)


@pytest.mark.parametrize("kind", ["greedy", "beam"])
def test_completions_are_those_of_the_transformers_that_is_installed(found, kind):
    pytest.importorskip("torch", reason="torch (a test dependency) is not installed")
    for case in draw_cases(kind, 4, seed=1):
        theirs = generate(case)
        completions, scores = found(case)
        assert completions == theirs["completions"], case
        if kind == "beam":
            np.testing.assert_allclose(scores, theirs["scores"], atol=2e-5)


def test_beams_wide_enough_find_the_likeliest_completions():
    weighed = run(Beam(), POLICY, PROBLEM, 4)
    rollout, total = weighed.rollout, np.asarray(weighed.rollout.log_behavior).sum(1).reshape(2, 4)
    assert not weighed.log_weight.any()
    for query, table in enumerate(listed()):
        best = sorted(table.values(), reverse=True)[:3]
        np.testing.assert_allclose(total[query][:3], best, atol=1e-4)
        for row in range(4 * query, 4 * query + 4):
            length = int(rollout.token_mask[row].sum())
            z = tuple(np.asarray(rollout.completion)[row, :length].tolist())
            np.testing.assert_allclose(table[z], total.reshape(-1)[row], atol=1e-4)
            assert rollout.stop[row].tolist() == [column == length for column in range(4)]


def test_one_beam_is_greedy_decoding_and_counts_the_same():
    one, best = run(Beam(), CALLING, CALLS, 1), greedy(CALLING, CALLS)
    check_calls(one)
    for name in ("completion", "token_mask", "action_mask", "state_mask"):
        np.testing.assert_array_equal(getattr(one.rollout, name), getattr(best, name))
    np.testing.assert_array_equal(one.generated, chosen_tokens(best))
    assert not one.scored.any()


def test_the_penalty_sets_groups_apart_and_is_no_part_of_their_log_probability():
    rollout, _, _ = compiled(POLICY, PROMPT, RULES, num_beams=4, num_beam_groups=4, diversity_penalty=50.0)
    first = np.asarray(rollout.completion)[:, 0].reshape(2, 4)
    total = np.asarray(rollout.log_behavior).sum(1).reshape(2, 4)
    lengths = np.asarray(rollout.token_mask).sum(1)
    rows = [tuple(z[:n]) for z, n in zip(np.asarray(rollout.completion).tolist(), lengths)]
    for query, table in enumerate(listed()):
        assert len(set(first[query])) == 4  # all four tokens that may come first
        np.testing.assert_allclose([table[z] for z in rows[4 * query : 4 * query + 4]], total[query], atol=1e-4)
    free, _, _ = compiled(POLICY, PROMPT, RULES, num_beams=4, num_beam_groups=4, diversity_penalty=0.0)
    same = np.asarray(free.completion).reshape(2, 4, -1)
    assert (same == same[:, :1]).all()  # without it every group is the same


def test_beams_obey_the_tool_which_costs_nothing():
    weighed = run(Beam(2, 0.5), CALLING, CALLS, 6)
    check_calls(weighed)
    np.testing.assert_allclose(weighed.rollout.log_behavior, compiled_score(weighed.rollout).log_pf, atol=3e-5)


def test_every_token_that_was_gone_on_from_counts():
    """Where no completion may stop before the last column, all beams are read to the end."""
    rules = Rules(make_constraint(7, 6, 3, min_length=3, token_ids=np.array([0, 1, 3, 4])), NoTool())
    weighed = run(Beam(), POLICY, Problem(None, PROBLEM.query, rules), 3)
    assert weighed.generated.tolist() == [3 * 4] * 2


def test_a_beam_without_a_continuation_is_dropped():
    """A call token may not be chosen so near the end, so that four beams have three continuations."""
    calls = np.arange(7) == 4
    ids = np.array([0, 1, 3, 4])
    rules = Rules(make_constraint(7, 6, 1, min_length=1, token_ids=ids, opens_call=calls, call_room=1), NoTool())
    weighed = run(Beam(), POLICY, Problem(None, PROBLEM.query, rules), 4)
    assert np.isfinite(weighed.log_weight).reshape(2, 4).tolist() == [[True] * 3 + [False]] * 2
    assert np.asarray(weighed.rollout.stop).sum(1).tolist() == [1, 1, 1, 0] * 2
    assert set(np.asarray(weighed.rollout.completion)[:3, 0].tolist()) == {0, 1, 3}
    assert weighed.generated.tolist() == [6, 6]


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"num_beam_groups": 0}, "num_beam_groups"),
        ({"num_beam_groups": 2, "diversity_penalty": -1.0}, "diversity_penalty"),
        ({"diversity_penalty": 1.0}, "num_beam_groups is 1"),
        ({"early_stopping": "always"}, "early_stopping"),
    ],
)
def test_settings_out_of_range_are_refused(settings, named):
    with pytest.raises(ValueError, match=named):
        Beam(**settings)


def test_beams_that_cannot_be_are_refused():
    with pytest.raises(ValueError, match="do not divide"):
        beam_search(POLICY, PROMPT, RULES, 4, num_beam_groups=3)
    with pytest.raises(ValueError, match="too few"):
        beam_search(POLICY, PROMPT, RULES, 5)
