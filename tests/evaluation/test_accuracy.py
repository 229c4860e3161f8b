"""What samples hold beside their vote; other runs' rows in the table."""

import json

import numpy as np
import pytest

from gfn_jax.evaluation.accuracy import measure_diversity
from gfn_jax.evaluation.arithmetic import ArithmeticEvaluator, EvaluationConfig
from gfn_jax.worlds.arithmetic_answers import right_chain
from gfn_jax.worlds.arithmetic_examples import make_example

CHAINS = [" 9 - 4 = 5, 5 - 8 = -3", " 9 - 8 = 1, 1 - 4 = -3", " 9 - 4 = 5, 4 - 8 = -4", " 5 - 8 = -3"]


class Chains:
    """A task of one question, whose tokens are whole chains."""

    def decode(self, ids):
        return CHAINS[ids[0]]

    def mode(self, split, example, completion):
        return right_chain(make_example("9 - 4 - 8"), completion)


def test_diversity_counts_right_chains():
    """Two right chains, a wrong one, and one that ends right by luck."""
    found = measure_diversity(Chains(), "test", [[[0], [0], [0], [1]], [[2], [3], [2], [3]]])
    assert found["right"] == [100.0, 0.0]
    assert found["distinct"] == [2.0, 0.0]
    assert found["chain_entropy"] == pytest.approx([-(0.75 * np.log(0.75) + 0.25 * np.log(0.25)), 0.0])


def test_other_runs_have_rows_in_the_table(tmp_path):
    """By the title that is given to them; one that has left nothing is named before anything is trained."""
    run = tmp_path / "sft"
    run.mkdir()
    (run / "results.json").write_text(json.dumps({"policy": {"accuracy_3": 87.5, "single_3": 1.0}}))
    zeros = dict.fromkeys(("test_questions", "diverse_questions", "shots", "seed"), 0)
    ones = dict.fromkeys(("every", "questions", "samples", "batch", "diverse_samples"), 1)

    def evaluator(*beside: str) -> ArithmeticEvaluator:
        config = EvaluationConfig(**zeros, **ones, temperature=0.1, beside=beside)
        return ArithmeticEvaluator(None, config, {}, {"accuracy_3": "test_3"})

    page = evaluator(f"supervised={run}")._page({"policy": {"accuracy_3": 90.0}}, [])
    rows = [line.split() for line in page.splitlines()]
    assert ["this", "run", "90.0"] in rows
    assert ["supervised", "87.5"] in rows
    for wrong in (f"supervised={tmp_path}", "supervised"):
        with pytest.raises(ValueError, match=r"evaluation\.beside"):
            _ = evaluator(wrong).others
