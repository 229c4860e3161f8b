"""BLEU and GLEU against values worked out by hand."""

import math
import sys
import types

import numpy as np
import pytest

from gfn_jax.evaluation.text_metrics import BertScore, bleu, gleu, words


def test_words():
    assert words('She\'s 12, "really".') == ["She", "'", "s", "12", ",", '"', "really", '"', "."]


def test_bleu_by_hand():
    # written "the cat sat on the mat" (6), reference "the cat sat on a mat today" (7):
    # 1-grams: the (clipped to 1), cat, sat, on, mat: 5 of 6; 2-grams 3 of 5; 3-grams 2 of 4; 4-grams 1 of 3
    expected = 100 * math.exp(1 - 7 / 6) * (5 / 6 * 3 / 5 * 2 / 4 * 1 / 3) ** 0.25
    assert math.isclose(bleu(["the cat sat on the mat"], ["the cat sat on a mat today"]), expected)


def test_bleu_adds_counts_over_the_corpus():
    # a second pair without any match adds to the denominators alone: 3 words, hence 3, 2, 1, 0 grams
    written, references = ["the cat sat on the mat", "x y z"], ["the cat sat on a mat today", "u v w"]
    expected = 100 * math.exp(1 - 10 / 9) * (5 / 9 * 3 / 7 * 2 / 5 * 1 / 3) ** 0.25
    assert math.isclose(bleu(written, references), expected)


def test_bleu_at_its_ends():
    assert bleu(["a b c d e"], ["a b c d e"]) == 100
    assert bleu(["a b c"], ["a b c"]) == 0  # there is no 4-gram, and nothing is smoothed
    assert math.isclose(bleu(["a b c d e f"], ["a b c d"], n=1), 100 * 4 / 6)  # longer: no brevity penalty


def test_gleu_by_hand():
    # the same texts: 5 + 3 + 2 + 1 = 11 match; the written one has 6 + 5 + 4 + 3 = 18 grams, the reference 22
    assert math.isclose(gleu(["the cat sat on the mat"], ["the cat sat on a mat today"]), 100 * 11 / 22)
    assert math.isclose(gleu(["the cat sat on a mat today"], ["the cat sat on the mat"]), 100 * 11 / 22)
    assert gleu(["a b c d e"], ["a b c d e"]) == 100
    assert gleu(["x"], ["y"]) == 0


def test_as_many_references_as_texts():
    with pytest.raises(ValueError, match="zip"):
        bleu(["a", "b"], ["a"])


def test_bert_score_is_the_mean_of_the_package_s_f1(monkeypatch, tmp_path):
    class Scorer:
        def __init__(self, model_type, num_layers):
            assert (model_type, num_layers) == (str(tmp_path), 3)

        def score(self, written, references):
            assert (written, references) == (["a", "b"], ["c", "d"])
            return None, None, np.array([0.25, 0.75])

    monkeypatch.setitem(sys.modules, "bert_score", types.SimpleNamespace(BERTScorer=Scorer))
    assert BertScore(str(tmp_path), 3)(("a", "b"), ("c", "d")) == 0.5
