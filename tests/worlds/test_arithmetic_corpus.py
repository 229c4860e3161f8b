"""The synthetic corpus: one style a document, nothing held out, the same every time."""

import dataclasses
import itertools
import re
from collections import Counter

import numpy as np
import pytest

from gfn_jax.text.wordlevel import build_tokenizer
from gfn_jax.worlds.arithmetic_answers import extract_answer, is_correct_chain
from gfn_jax.worlds.arithmetic_corpus import STYLES, CorpusConfig, document, documents, token_rows
from gfn_jax.worlds.arithmetic_examples import evaluate, make_example, worked_chain
from gfn_jax.worlds.arithmetic_splits import generate_splits, is_held_out

LINE = re.compile(r"Question: (.+) = \? Answer: (.+)\. The answer is (-?\d+)\.\n")
EVEN = CorpusConfig(**dict.fromkeys(STYLES, 1.0), documents=250 * len(STYLES))


@pytest.fixture(scope="module")
def corpus():
    """Style -> (expression, completion, stated answer) of every line of a corpus with all styles."""
    lines = {style: [] for style in STYLES}
    for index in range(EVEN.documents):
        style, text = document(EVEN, index)
        parsed = [LINE.fullmatch(line) for line in text.splitlines(keepends=True)]
        assert all(parsed), text
        assert len(parsed) == EVEN.examples
        lines[style] += [(m[1], m[2], int(m[3])) for m in parsed]
    return lines


def every_line(corpus):
    return list(itertools.chain.from_iterable(corpus.values()))


def test_no_question_of_the_task_occurs(corpus):
    asked = {expression for expression, _, _ in every_line(corpus)}
    assert len(asked) > 5_000
    assert not any(is_held_out(expression) for expression in asked)
    for split, examples in generate_splits().items():
        assert not asked & {example.expression for example in examples}, split


def test_every_step_has_the_calculators_result(corpus):
    for style in ("chain", "backward", "corrupted", "shuffled", "adjacent"):
        for _, completion, answer in corpus[style]:
            for step in completion.split(", "):
                call, result = step.split(" = ")
                assert evaluate(call) == int(result)
            assert extract_answer(completion) == answer


def test_chains_are_right(corpus):
    assert corpus["chain"]
    for expression, completion, answer in corpus["chain"]:
        assert completion == worked_chain(expression)
        assert answer == evaluate(expression)


def test_chains_from_the_last_operand_are_right_too(corpus):
    for expression, completion, answer in corpus["backward"]:
        assert is_correct_chain(make_example(expression), completion)
        assert answer == evaluate(expression)
    same = np.mean([completion == worked_chain(expression) for expression, completion, _ in corpus["backward"]])
    assert same < 0.15  # equal operands may change places


def test_corrupted_chains_have_a_slip(corpus):
    lines = corpus["corrupted"]
    right = [is_correct_chain(make_example(expression), completion) for expression, completion, _ in lines]
    assert np.mean(right) < 0.01  # where equal numbers let the slip be read as another order
    wrong = np.mean([answer != evaluate(expression) for expression, _, answer in lines])
    assert 0.85 < wrong < 1  # a slip over a zero changes no answer
    steps = Counter(
        len(expression.split()[::2]) - 1 - len(completion.split(", ")) for expression, completion, _ in lines
    )
    assert set(steps) == {0, 1}  # at most one operand is skipped
    assert 0.15 < steps[1] / len(lines) < 0.35
    broken = 0
    for _, completion, _ in lines:
        steps = [step.split() for step in completion.split(", ")]
        breaks = sum(before[-1] != after[0] for before, after in itertools.pairwise(steps))
        assert breaks <= 1
        broken += breaks
    assert 0.1 < broken / len(lines) < 0.3


def test_shuffled_chains_have_the_right_steps_in_a_wrong_order(corpus):
    for expression, completion, _ in corpus["shuffled"]:
        steps, right = completion.split(", "), worked_chain(expression).split(", ")
        assert sorted(steps) == sorted(right)
    moved = np.mean([completion != worked_chain(expression) for expression, completion, _ in corpus["shuffled"]])
    assert moved > 0.99  # two equal steps may change places


def test_adjacent_pairs_carry_nothing(corpus):
    for expression, completion, _ in corpus["adjacent"]:
        words = expression.split()
        pairs = [" ".join(words[i : i + 3]) for i in range(0, len(words) - 2, 2)]
        assert [step.split(" = ")[0] for step in completion.split(", ")] == pairs


@pytest.mark.parametrize("style", ["repeat", "direct"])
def test_answers_without_steps_are_right_as_often_as_configured(corpus, style):
    for expression, completion, answer in corpus[style]:
        assert completion == (expression if style == "repeat" else str(answer))
    wrong = np.mean([answer != evaluate(expression) for expression, _, answer in corpus[style]])
    assert abs(wrong - EVEN.wrong_answer) < 0.05


def test_styles_and_operands_come_in_their_proportions(corpus):
    counts = {style: len(lines) / EVEN.examples for style, lines in corpus.items()}
    assert all(abs(count - 250) < 60 for count in counts.values()), counts
    lengths = Counter(len(expression.split()[::2]) for expression, _, _ in every_line(corpus))
    for number, weight in EVEN.operands:
        assert abs(lengths[number] / lengths.total() - weight) < 0.03


def test_every_number_is_one_token(corpus):
    numbers = {int(n) for _, text, answer in every_line(corpus) for n in [*re.findall(r"(?<!\S)-?\d+", text), answer]}
    assert max(map(abs, numbers)) <= 60


def test_corpus_is_a_function_of_its_seed():
    config = dataclasses.replace(EVEN, documents=20)
    first = list(documents(config))
    assert first == list(documents(config))
    assert len(set(first)) == 20
    assert first[:10] == list(documents(dataclasses.replace(config, documents=10)))
    assert not set(first) & set(documents(dataclasses.replace(config, seed=1)))


def test_incoherent_documents_mix_styles():
    """Every example of one has a style of its own: what a line is says nothing of the next."""
    weights = {**dict.fromkeys(STYLES, 0.0), "chain": 1.0, "direct": 1.0}
    mixed = CorpusConfig(**weights, coherent=0.0, documents=1_000)
    pairs = Counter()
    for text in documents(mixed):
        solved = ["=" in LINE.fullmatch(line)[2] for line in text.splitlines(keepends=True)]
        pairs.update(itertools.pairwise(solved))
    assert all(abs(count / pairs.total() - 0.25) < 0.02 for count in pairs.values()), pairs


def test_weights_select_styles():
    only = CorpusConfig(chain=0, corrupted=0, shuffled=1, adjacent=0, repeat=0, direct=0, documents=30)
    assert {document(only, index)[0] for index in range(30)} == {"shuffled"}


def test_rows_hold_a_document_each():
    tokenizer = build_tokenizer()
    config = CorpusConfig(documents=1_003, examples=3, seq_length=100)
    ids, mask = token_rows(config, tokenizer)
    assert (ids.shape, ids.dtype, mask.shape, mask.dtype) == ((1_003, 100), np.int32, (1_003, 100), bool)
    texts = list(documents(config))
    lengths = mask.sum(1)
    assert 0 < np.mean(lengths == 100) < 1  # some rows are cut, some padded
    for row in (0, 1, 999, 1_000, 1_002):
        text = tokenizer.decode(ids[row, : lengths[row]])
        assert texts[row] == text or (lengths[row] == 100 and texts[row].startswith(text))
    assert np.array_equal(mask, np.arange(100) < lengths[:, None])
    assert (ids[~mask] == tokenizer.pad_token_id).all()
    assert tokenizer.unk_token_id not in ids


def test_tokenizer_that_loses_text_is_refused():
    with pytest.raises(ValueError, match="does not give a document back"):
        token_rows(CorpusConfig(documents=1), _without_plus())


def _without_plus():
    """The tiny tokenizer without its plus sign."""
    tokenizer = build_tokenizer()
    state = tokenizer.backend_tokenizer.to_str().replace('" +"', '" plus"').replace('"+"', '"plus"')
    return type(tokenizer)(tokenizer_object=tokenizer.backend_tokenizer.from_str(state), pad_token="<pad>")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"chain": -1.0}, "style weights"),
        (dict.fromkeys(STYLES, 0.0), "style weights"),
        ({"wrong_answer": 1.5}, "wrong_answer must be a probability, got 1.5"),
        ({"coherent": -0.5}, "coherent must be a probability, got -0.5"),
        ({"operands": ((2, 1.0),)}, "operands must be"),
        ({"operands": ()}, "operands must be"),
        ({"examples": 0}, "at least 1"),
    ],
)
def test_impossible_configurations_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        CorpusConfig(**change)
