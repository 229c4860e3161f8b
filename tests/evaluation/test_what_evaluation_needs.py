"""What an evaluation needs and is not there is said when the evaluator is made, which is before training."""

import dataclasses
import functools
import sys
import types

import pytest

from gfn_jax.evaluation.continuation import ContinuationEvaluationConfig, ContinuationEvaluator
from gfn_jax.evaluation.infilling import InfillingEvaluationConfig, InfillingEvaluator
from gfn_jax.evaluation.text_metrics import BertScore

SENTENCES = (
    functools.partial(ContinuationEvaluator, None),
    ContinuationEvaluationConfig(1, 0, 4, 2, 0, (), (), False, 1, 1.0, None),
)
STORIES = (
    functools.partial(InfillingEvaluator, None, None),
    InfillingEvaluationConfig(1, 3, 4, 2, 1.0, 2, 0, None, 1, None, None, 1),
)


class Refusing:
    """Stands for packages that read a folder, and cannot."""

    def __init__(self, *args, **settings):
        raise OSError("no config.json in it")


PACKAGES = {
    "sentence_transformers": types.SimpleNamespace(SentenceTransformer=Refusing),
    "bert_score": types.SimpleNamespace(BERTScorer=Refusing),
}
JUDGE = {"judge_url": "http://localhost:9/v1", "judge_model": "m"}


def test_the_code_of_an_encoders_folder_is_refused_not_run(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "bert_score", types.SimpleNamespace(BERTScorer=lambda **_: pytest.fail("loaded")))
    (tmp_path / "config.json").write_text('{"auto_map": {"AutoModel": "own.Own"}}')
    with pytest.raises(ValueError, match=r"config.json names code of its own \(auto_map\), which is never run"):
        BertScore(str(tmp_path), 1)


@pytest.mark.parametrize(
    ("evaluator", "changes", "installed", "error", "line"),
    [
        (
            SENTENCES,
            {"encoder": "F"},
            False,
            ImportError,
            "needs .* pip install sentence-transformers",
        ),
        (SENTENCES, {"encoder": "F"}, True, ValueError, "F holds no sentence encoder: no config.json in it"),
        (STORIES, {"bert_folder": "F"}, False, ImportError, "evaluation.bert_folder needs .* pip install bert-score"),
        (STORIES, {"bert_folder": "F"}, True, ValueError, "evaluation.bert_folder: there is no folder F"),
        (STORIES, {"bert_folder": "."}, True, ValueError, "holds no encoder of 1 layers or more: no config.json in it"),
        (STORIES, JUDGE, True, ValueError, r"no judge answers at http://localhost:9/v1: .*refused"),
        (STORIES, JUDGE | {"judge_url": "lo/v1"}, True, ValueError, r"the judge's URL must be http\(s\)://HOST"),
    ],
)
def test_what_is_missing_is_said_before_training(monkeypatch, evaluator, changes, installed, error, line):
    for name, package in PACKAGES.items():
        monkeypatch.setitem(sys.modules, name, package if installed else None)
    kind, config = evaluator
    with pytest.raises(error, match=line):
        kind(dataclasses.replace(config, **changes), 1.0)
