"""SUBJ through its builder: counts, order, and what a damaged file says."""

import json

import pytest
from tiny_files import review_line, write_reviews

from gfn_jax.datasets.subj import FILES, load


def test_every_file_is_a_split_in_its_order(tmp_path):
    write_reviews(tmp_path, train=60, test=9)
    found = {split: load(tmp_path, split, tmp_path / "cache") for split in FILES}
    assert {split: len(rows) for split, rows in found.items()} == {
        "train": 60,
        "train_10": 10,
        "train_20": 20,
        "train_50": 50,
        "test": 9,
    }
    for split, name in FILES.items():
        entries = map(json.loads, (tmp_path / name).read_text().splitlines())
        assert found[split] == [(entry["text"], entry["label"]) for entry in entries]


@pytest.mark.reference
def test_the_original_files_load_with_the_right_counts(shared, tmp_path):
    folder = shared / "data" / "subj"
    found = {split: load(folder, split, tmp_path) for split in FILES}
    assert {split: len(rows) for split, rows in found.items()} == {
        "train": 8000,
        "train_10": 10,
        "train_20": 20,
        "train_50": 50,
        "test": 2000,
    }
    assert {label for rows in found.values() for _, label in rows} == {0, 1}
    assert found["train_10"][5] == ("the adventures of pluto nash is a whole lot of nada .", 1)
    assert sum(label for _, label in found["test"]) == pytest.approx(1000, abs=60)
    assert not {text for text, _ in found["train"]} & {text for text, _ in found["test"]}


def test_a_file_may_lack_its_last_newline_and_an_edited_file_is_read_anew(tmp_path):
    path = tmp_path / "train.10.jsonl"
    path.write_text(review_line("first , as ever .", 0) + "\n" + review_line("second", 1))
    assert load(tmp_path, "train_10", tmp_path / "cache") == [("first , as ever .", 0), ("second", 1)]
    path.write_text(path.read_text() + "\n" + review_line("third", 0) + "\n")
    assert load(tmp_path, "train_10", tmp_path / "cache")[2:] == [("third", 0)]


@pytest.mark.parametrize(
    "bad", ["no json", '{"text": "a"}', review_line("a", 1, "objective"), review_line("a", 1).replace("1", "2")]
)
def test_a_line_that_is_none_is_named(tmp_path, bad):
    (tmp_path / "test.jsonl").write_text(review_line("good", 0) + "\n" + bad)
    with pytest.raises(ValueError, match=r"test\.jsonl, line 2"):
        load(tmp_path, "test", tmp_path / "cache")


def test_a_line_separator_within_a_text_ends_no_review_line(tmp_path):
    text = "a film\u2028in two lines , with a \x0c form feed"
    row = json.dumps({"text": text, "label": 0, "label_text": "objective"}, ensure_ascii=False)
    (tmp_path / "test.jsonl").write_text(f"{row}\n{review_line('second', 1)}\n", encoding="utf-8")
    assert load(tmp_path, "test", tmp_path / "cache") == [(text, 0), ("second", 1)]


def test_what_is_missing_is_said(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"train\.10\.jsonl.*Put the SUBJ files"):
        load(tmp_path, "train_10", tmp_path)
    with pytest.raises(ValueError, match="train_10"):
        load(tmp_path, "train_11", tmp_path)
