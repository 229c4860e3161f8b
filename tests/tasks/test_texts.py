import json

import pytest
from tiny_files import made_up_stories, write_stories

from gfn_jax.datasets.rocstories import load_stories
from gfn_jax.sections import checked
from gfn_jax.tasks.texts import TextConfig, hold_out, read_texts


def config_of(path, /, **changes) -> TextConfig:
    fields = {"source": "text", "path": str(path), "field": "text", "validation": 0.2}
    return TextConfig(**(fields | {"seq_length": 16, "end_of_document": True} | changes))


def written(folder, name: str, text: str):
    (folder / name).write_text(text)
    return folder / name


def test_a_document_a_line(tmp_path):
    train, held_out = read_texts(config_of(written(tmp_path, "a.txt", "one\n\ntwo\nthree\n")))
    assert sorted([*train, *held_out]) == ["one", "three", "two"]
    assert len(held_out) == 1


def test_a_field_of_every_object(tmp_path):
    lines = "\n".join(json.dumps({"story": f"text {n}\nin two lines", "n": n}) for n in range(5))
    train, held_out = read_texts(config_of(written(tmp_path, "a.jsonl", lines), field="story"))
    assert sorted([*train, *held_out]) == [f"text {n}\nin two lines" for n in range(5)]


def test_the_same_text_is_on_one_side_whatever_the_order():
    texts = ["a", "b", "a", "c", "d", "a"]
    train, held_out = hold_out(texts, 0.5)
    assert len(set(held_out)) == 2
    assert not set(train) & set(held_out)
    assert sorted(train + held_out) == sorted(texts)
    assert set(hold_out(texts[::-1], 0.5)[1]) == set(held_out)


def test_a_line_separator_within_a_text_ends_no_line(tmp_path):
    texts = [f"text {n}\u2028in two\x85lines" for n in range(5)]
    lines = "\n".join(json.dumps({"text": text}, ensure_ascii=False) for text in texts)
    train, held_out = read_texts(config_of(written(tmp_path, "a.jsonl", lines)))
    assert sorted([*train, *held_out]) == texts


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.txt", "", r"a\.txt is empty"),
        ("a.txt", "\n \n", r"a\.txt is empty"),
        ("a.txt", "alone\n", "no documents to train on"),
        ("a.csv", "a,b\n", r"must be a \.txt"),
        ("a.jsonl", '{"text": "fine"}\n{"txt": "x"}\n', r"line 2: no JSON object with the field 'text'"),
        ("a.jsonl", '{"text": "fine"}\nnot json\n', "line 2: no JSON object"),
        ("a.jsonl", '{"text": 3}\n', "line 1: 'text' is no text"),
    ],
)
def test_a_file_that_cannot_be_used_is_said(tmp_path, name, text, message):
    with pytest.raises(ValueError, match=message):
        read_texts(config_of(written(tmp_path, name, text)))


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(FileNotFoundError):
        read_texts(config_of(tmp_path / "absent.txt"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"source": "books"}, "one of text, rocstories"),
        ({"validation": 0.0}, "validation"),
        ({"seq_length": 1}, "seq_length"),
    ],
)
def test_a_setting_that_cannot_be(changes, message):
    with pytest.raises(ValueError, match=message):
        checked(TextConfig, vars(config_of("a.txt")) | changes, "data.")


def test_texts_that_are_not_named_are_asked_for():
    with pytest.raises(ValueError, match=r"data\.path is not set: the text to train on"):
        read_texts(checked(TextConfig, vars(config_of("a.txt")) | {"path": None}, "data."))


def test_stories_keep_to_the_splits_that_the_task_leaves_them(tmp_path, monkeypatch):
    monkeypatch.setenv("GFN_JAX_CACHE", str(tmp_path / "cache"))
    write_stories(tmp_path / "stories.csv", made_up_stories(1130))
    train, held_out = read_texts(config_of(tmp_path, source="rocstories"))
    splits = load_stories(tmp_path)
    assert len(splits["finetune"]) == 30
    assert train == [" ".join(story) for story in splits["finetune"]]
    assert held_out == [" ".join(story) for story in splits["validation"]]
