"""The random numbers task: distributions, the automaton against plain Python, all spellings."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_tokenizers import BYTE_LEVEL

from gfn_jax.environments import NoTool
from gfn_jax.policy.constraint import Rules
from gfn_jax.policy.teacher import teacher_force
from gfn_jax.sections import checked
from gfn_jax.tasks.random_numbers import RandomNumbers, RandomNumbersConfig
from gfn_jax.tasks.task import Graded
from gfn_jax.worlds.numbers_corpus import build_tokenizer

UNIFORM = RandomNumbersConfig(
    prompt="A random integer: ",
    stop=None,
    distribution="uniform",
    low=0,
    high=100,
    mean=30.0,
    table={},
    penalty=7.0,
    min_length=0,
    max_length=5,
    digits_only=False,
    copies=1,
)
TABLE = dataclasses.replace(UNIFORM, distribution="table", table={"7": 1.0, "-3": 2.0, "12": 0.0, "0": 1.0})


def task_of(config: RandomNumbersConfig, tokenizer=None) -> RandomNumbers:
    tokenizer = build_tokenizer() if tokenizer is None else tokenizer
    return RandomNumbers(config, tokenizer, len(tokenizer))


@pytest.fixture(scope="module", params=BYTE_LEVEL)
def byte_level(request, tokenizer_named):
    return tokenizer_named(request.param)


def log_rewards(task: RandomNumbers, completion: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    rollout = teacher_force(jnp.asarray(completion), jnp.asarray(lengths), Rules(task.constraint(), NoTool()))
    reward = task.reward(None)
    return np.asarray(jax.jit(reward.log_reward)(None, reward.prepare(None), None, rollout))


def expected(task: RandomNumbers, ids: list[int]) -> float:
    """The reward in plain Python."""
    text = task.decode(ids)
    numbers = {str(n): log_p for n, log_p in task.log_target.items()}
    if text not in numbers or set(ids) & {task.stop_id, *task.tokenizer.all_special_ids}:
        return -task.config.penalty * max(len(ids), 1)
    ways = sum(1 for way in task.token_sequences(text) if len(way) <= task.config.max_length)
    return numbers[text] + math.log(len(numbers)) - math.log(ways)


def test_the_distributions_are_what_they_are_called():
    def p(**values) -> np.ndarray:
        config = dataclasses.replace(UNIFORM, **values)
        assert list(config.log_target) == list(range(config.low, config.high + 1))
        return np.exp(list(config.log_target.values()))

    k = np.arange(100)
    for name, ratio in {
        "uniform": np.ones(100),
        "poisson": 30.0 / (k + 1),
        "binomial": (100 - k) / (k + 1) * 0.3 / 0.7,
        "geometric": np.full(100, 30 / 31),
    }.items():
        got = p(distribution=name, low=5, high=105)
        assert got.sum() == pytest.approx(1)
        np.testing.assert_allclose(got[1:] / got[:-1], ratio, rtol=1e-9)
    assert p(distribution="binomial") @ np.arange(101) == pytest.approx(30)
    assert {n: math.exp(v) for n, v in TABLE.log_target.items()} == pytest.approx({-3: 0.5, 0: 0.25, 7: 0.25})


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"distribution": "gaussian"}, "unknown"),
        ({"low": 1, "high": 0}, "high is 0 and low 1"),
        ({"penalty": 0.0}, "penalty"),
        ({"distribution": "table", "table": {}}, "weights"),
        ({"distribution": "table", "table": {"1": -1.0, "2": 3.0}}, r"numbers\.table\.1 is -1.0"),
        ({"distribution": "table", "table": {"one": 1.0}}, "'one' is none"),
        ({"high": 10**8}, "must be 1 to 100000"),
        ({"distribution": "binomial", "mean": 100.0}, "between 0 and high - low"),
        ({"distribution": "poisson", "mean": 0.0}, "positive"),
    ],
)
def test_a_distribution_that_is_none_is_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        checked(RandomNumbersConfig, vars(UNIFORM) | wrong, "random_numbers.")


@pytest.mark.parametrize("config", [UNIFORM, TABLE, dataclasses.replace(UNIFORM, low=-20, high=30)])
def test_the_automaton_is_plain_python_on_random_strings(config):
    task = task_of(config)
    rng = np.random.default_rng(0)
    digits = [task.tokenizer.convert_tokens_to_ids(c) for c in "0123456789-"]
    completion = rng.choice([*digits, *digits, *range(task.vocab_size)], (400, 6))
    completion[:, 5] = task.stop_id
    got = log_rewards(task, completion, np.full(400, 5))
    for row, values in zip(completion.tolist(), got, strict=True):
        ended = row.index(task.stop_id)  # what is behind a stop is never read
        want = [expected(task, row[:t]) for t in range(ended + 1)]
        np.testing.assert_allclose(values[: ended + 1], want, rtol=1e-6)


def test_the_automaton_reads_tokens_of_several_digits(byte_level):
    task = task_of(UNIFORM, byte_level)
    pieces = [
        byte_level.convert_tokens_to_ids(t) for t in ("0", "00", "1", "10", "100", "7", "57", "Ġ7", "-", "1000", "a")
    ]
    completion = np.random.default_rng(0).choice([*pieces, task.stop_id], (300, 6))
    completion[:, 5] = task.stop_id
    got = log_rewards(task, completion, np.full(300, 5))
    for row, values in zip(completion.tolist(), got, strict=True):
        ended = row.index(task.stop_id)
        want = [expected(task, row[:t]) for t in range(ended + 1)]
        np.testing.assert_allclose(values[: ended + 1], want, rtol=1e-6)


@pytest.mark.parametrize("text", ["07", "00", "+7", " 7", "7 ", "7.", "101", "-1", "7\n", ""])
def test_a_number_has_one_spelling(text):
    task = task_of(UNIFORM)
    ids = task.tokenizer(text, add_special_tokens=False)["input_ids"]
    row = np.array([[*ids, *[task.stop_id] * 6][:6]])
    assert log_rewards(task, row, np.array([len(ids)]))[0, len(ids)] == -7.0 * max(len(ids), 1)


def test_the_reward_is_zero_for_a_uniform_target_in_characters():
    task = task_of(UNIFORM)
    log_reward = np.asarray(task.speller.log_reward)
    assert np.nanmax(np.abs(log_reward)) < 1e-6
    assert (~np.isnan(log_reward)).sum() == 101


def test_spellings_in_several_tokens_share_the_reward(byte_level):
    task = task_of(dataclasses.replace(UNIFORM, distribution="poisson"), byte_level)
    spellings = task.spellings
    texts = [byte_level.decode(ids[:n]) for ids, n in zip(spellings.completion, spellings.length, strict=True)]
    assert texts == [str(n) for n in spellings.number]
    assert texts.count("7") == 1
    assert texts.count("57") == 2
    assert texts.count("100") == 4
    assert len({tuple(row) for row in spellings.completion.tolist()}) == len(texts)
    log_reward = log_rewards(task, spellings.completion, spellings.length)[np.arange(len(texts)), spellings.length]
    by_number = np.bincount(spellings.number, np.exp(log_reward.astype(np.float64)))
    np.testing.assert_allclose(by_number, 101 * np.exp(list(task.log_target.values())), rtol=1e-4)


def test_lengths_limit_the_spellings(byte_level):
    short = task_of(dataclasses.replace(UNIFORM, max_length=1), byte_level)
    assert (short.spellings.length == 1).all()
    assert len(short.spellings.number) == 101
    with pytest.raises(ValueError, match="cannot write 100 in 0 to 2 tokens"):
        _ = task_of(dataclasses.replace(UNIFORM, max_length=2)).spellings


def test_the_vocabulary_is_free_unless_asked_otherwise():
    assert task_of(UNIFORM).constraint().full
    task = task_of(dataclasses.replace(UNIFORM, digits_only=True))
    allowed = [task.tokenizer.decode([i]) for i in task.constraint().token_ids.tolist() if i != task.stop_id]
    assert sorted(allowed) == list("0123456789")


def test_the_prompt_stands_in_the_table_as_often_as_asked():
    task = task_of(dataclasses.replace(UNIFORM, copies=4))
    prompt = task.queries("train").prompt
    assert [task.decode(row) for row in prompt.ids.tolist()] == [UNIFORM.prompt] * 4
    assert len(task.query_weight()) == 4
    assert len(task.queries("test").example_id) == 1


@pytest.mark.parametrize(
    ("text", "right"),
    [("7", True), ("-3", True), ("0", True), ("12", False), (" 7", False), ("07", False), ("", False)],
)
def test_a_completion_is_right_where_it_spells_a_number_of_the_support(text, right):
    task = task_of(TABLE)
    assert isinstance(task, Graded)
    assert task.grade("train", 0, text) == right
