"""The TFDS builder and the released files."""

import hashlib
import json
import multiprocessing
import os
import subprocess
import sys

import pytest
from tiny_files import write_questions

from gfn_jax.datasets.building import build_once, default_cache
from gfn_jax.tasks import arithmetic_data
from gfn_jax.tasks.arithmetic_data import RELEASED_FILES, load_examples
from gfn_jax.worlds.arithmetic_splits import generate_splits


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def generated(cache):
    return load_examples(cache=cache)


def _load(cache):
    return load_examples(cache=cache)


def test_what_is_read_back_is_what_was_generated(generated):
    assert generated == {split: list(examples) for split, examples in generate_splits().items()}


def test_second_load_reads_the_cache(generated, cache, monkeypatch):
    def refuse(*_):
        raise AssertionError("built a second time")

    monkeypatch.setattr(arithmetic_data.ArithmeticBuilder, "_generate_examples", refuse)
    assert load_examples(cache=cache) == generated


def test_nothing_is_left_beside_the_data_set(generated, cache):
    assert [path.name for path in cache.iterdir()] == ["gfn_arithmetic"]
    assert [path.name for path in (cache / "gfn_arithmetic").iterdir()] == ["1.0.0"]


def test_late_one_of_two_builders_gives_way(generated, tmp_path):
    folder = tmp_path / "gfn_arithmetic" / "1.0.0"

    def builder(aside):
        return arithmetic_data.ArithmeticBuilder(data_dir=aside, file_format="array_record")

    def late(aside):
        build_once(builder, folder)  # another process is done while this one has just begun
        return builder(aside)

    build_once(late, folder)
    assert load_examples(cache=tmp_path) == generated
    assert [path.name for path in (tmp_path / "gfn_arithmetic").iterdir()] == ["1.0.0"]


def test_processes_may_race(generated, tmp_path):
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        assert pool.map(_load, [tmp_path, tmp_path], chunksize=1) == [generated, generated]


def test_cache_folder_comes_from_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("GFN_JAX_CACHE", str(tmp_path))
    assert default_cache() == tmp_path / "tfds"
    monkeypatch.delenv("GFN_JAX_CACHE")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert default_cache() == tmp_path / ".cache" / "gfn_jax" / "tfds"
    monkeypatch.setenv("GFN_JAX_CACHE", str(tmp_path / "other"))
    load_examples()
    assert (tmp_path / "other" / "tfds" / "gfn_arithmetic" / "1.0.0" / "dataset_info.json").is_file()


def test_neither_tensorflow_nor_hash_seed_matters(generated, tmp_path):
    code = (
        "import sys, hashlib; from gfn_jax.tasks.arithmetic_data import load_examples;"
        "text = repr(load_examples(cache=sys.argv[1]));"
        "assert 'tensorflow' not in sys.modules; print(hashlib.sha256(text.encode()).hexdigest())"
    )
    output = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)],
        env={**os.environ, "PYTHONHASHSEED": "1"},
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert output.split() == [hashlib.sha256(repr(generated).encode()).hexdigest()]  # and no progress bars


@pytest.mark.reference
def test_released_files(shared):
    splits = load_examples(shared / "data" / "arithmetic")
    sizes = {split: len(examples) for split, examples in splits.items()}
    assert sizes["demonstrations"] == 50
    assert sizes["train"] == 1_000
    assert [sizes[f"test_{k}"] for k in (3, 4, 5)] == [500, 500, 500]
    # PAPER.md: 115, 56 and 0 of the test questions occur in the training files.
    assert [sizes[f"test_{k}_decontaminated"] for k in (3, 4, 5)] == [385, 444, 500]
    first = splits["demonstrations"][0]
    assert first.completion == " 6 - 0 = 6, 6 - 4 = 2, 2 - 8 = -6"
    assert first.written_completion == " 6 - 0 =, 6 - 4 =, 2 - 8 ="
    assert first.answer_text == ". The answer is -6."


@pytest.mark.parametrize("files", ["ours", pytest.param("released", marks=pytest.mark.reference)])
def test_released_splits_beside_each_other(files, request, tmp_path):
    if files == "ours":
        write_questions(tmp_path, known=7)
        splits = load_examples(tmp_path)
        assert [len(splits[f"test_{k}_decontaminated"]) for k in (3, 4, 5)] == [43, 43, 43]
    else:
        splits = load_examples(request.getfixturevalue("shared") / "data" / "arithmetic")
    questions = {split: {example.question for example in examples} for split, examples in splits.items()}
    trained = questions["demonstrations"] | questions["train"]
    for operands in (3, 4, 5):
        clean = questions[f"test_{operands}_decontaminated"]
        assert clean == questions[f"test_{operands}"] - trained
        validation = questions[f"validation_{operands}"]
        assert len(validation) >= 300
        assert not validation & (trained | questions[f"test_{operands}"])


QUESTION = {"str_query": "Question: 6 - 0 - 4 = ? Answer:", "num_sol": 2}
RATIONALE = {**QUESTION, "str_rationale": "6 - 0 =, 6 - 4 ="}


@pytest.fixture
def released(tmp_path):
    """A folder like the released one, small."""
    for split, name in RELEASED_FILES.items():
        entry = RATIONALE if split == "demonstrations" else QUESTION
        (tmp_path / name).write_text(json.dumps([entry, entry], indent=4))
    return tmp_path


def test_small_folder_loads(released):
    splits = load_examples(released)
    assert splits["demonstrations"][0].rationale == "6 - 0 = 6, 6 - 4 = 2"
    assert splits["test_3_decontaminated"] == []


def test_missing_file_is_named_in_one_line(released):
    (released / RELEASED_FILES["train"]).unlink()
    with pytest.raises(FileNotFoundError) as error:
        load_examples(released)
    message = str(error.value)
    assert message.startswith(f"{released / RELEASED_FILES['train']} is missing; ")
    assert all(name in message for name in RELEASED_FILES.values())
    assert "\n" not in message


@pytest.mark.parametrize(
    ("text", "where"),
    [
        ('[\n  {"str_query": \n', "line 3: not JSON"),
        ('{"str_query": 1}', "line 1: expected a list of questions, got dict"),
        (json.dumps([QUESTION, 5]), "entry 1: expected an object with 'str_query'"),
        (json.dumps([QUESTION, {"num_sol": 2}]), "entry 1: expected an object with 'str_query' of type str"),
        (
            json.dumps([{**QUESTION, "num_sol": "2"}]),
            "entry 0: expected an object with 'num_sol' of type int",
        ),
        (
            json.dumps([{**QUESTION, "num_sol": True}]),
            "entry 0: expected an object with 'num_sol' of type int",
        ),
        (json.dumps([{**QUESTION, "num_sol": 3}]), "entry 0: 'num_sol' is 3, but"),
        (json.dumps([{**QUESTION, "str_query": "What?"}]), "entry 0: expected a question like"),
        (json.dumps([{**QUESTION, "str_rationale": "six"}]), "entry 0: expected a chain like"),
        (
            json.dumps([{**QUESTION, "str_rationale": None}]),
            "entry 0: expected an object with 'str_rationale'",
        ),
    ],
)
def test_unreadable_data_is_located_in_one_line(released, text, where):
    path = released / RELEASED_FILES["test_4"]
    path.write_text(text)
    with pytest.raises(ValueError, match=r"line|entry") as error:
        load_examples(released)
    assert str(error.value).startswith(f"{path}, {where}")
    assert "\n" not in str(error.value)


def test_bytes_that_are_no_text_are_located(released):
    path = released / RELEASED_FILES["test_5"]
    path.write_bytes(b'["\xff"]')
    with pytest.raises(ValueError, match=r"byte 2: not UTF-8 text"):
        load_examples(released)


def test_demonstration_without_rationale_is_refused(released):
    (released / RELEASED_FILES["demonstrations"]).write_text(json.dumps([RATIONALE, QUESTION]))
    with pytest.raises(ValueError, match="entry 1: a demonstration needs 'str_rationale'"):
        load_examples(released)
