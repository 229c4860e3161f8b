"""ROCStories: the original CSV through TFDS, splits that share nothing, errors in one line."""

import pytest
from tiny_files import made_up_stories, write_stories

from gfn_jax.datasets.rocstories import COLUMNS, SIZES, load_stories, read_stories, split_stories


def test_through_tfds_and_back(tmp_path):
    stories = made_up_stories(1150)
    (tmp_path / "csv").mkdir()
    write_stories(tmp_path / "csv" / "a.csv", stories[:700])
    write_stories(tmp_path / "csv" / "b.csv", stories[650:])  # 50 of them twice
    splits = load_stories(tmp_path / "csv", tmp_path / "cache")
    assert {split: len(found) for split, found in splits.items()} == {**SIZES, "finetune": 50}
    found = [story for part in splits.values() for story in part]
    assert sorted(found) == sorted(stories)  # every story, once, commas and quotes included
    assert load_stories(tmp_path / "csv", tmp_path / "cache") == splits
    assert list((tmp_path / "cache").rglob("*array_record*"))
    # Other files are another data set, not a stale cache.
    write_stories(tmp_path / "csv" / "b.csv", stories[650:1140])
    assert len(load_stories(tmp_path / "csv", tmp_path / "cache")["finetune"]) == 40


def test_splits_depend_on_the_texts_alone():
    stories = made_up_stories(1200)
    assert split_stories(stories) == split_stories(stories[::-1])
    with pytest.raises(ValueError, match="1100 are needed"):
        split_stories(stories[:1100])


def test_what_is_wrong_is_said(tmp_path):
    with pytest.raises(FileNotFoundError, match="has no CSV file; ask for the ROCStories corpus"):
        load_stories(tmp_path)
    write_stories(tmp_path / "a.csv", [], columns=("storyid", "title", *COLUMNS[:4]))
    with pytest.raises(ValueError, match="line 1: no column sentence5"):
        read_stories(tmp_path)
    write_stories(tmp_path / "a.csv", [("One.", "Two.", "Three.", "Four.", " ")])
    with pytest.raises(ValueError, match="line 2: a story of fewer than five"):
        read_stories(tmp_path)
    (tmp_path / "a.csv").write_bytes(b"storyid,storytitle," + ",".join(COLUMNS).encode() + b"\n1,t,\xff,b,c,d,e\n")
    with pytest.raises(ValueError, match="not UTF-8"):
        read_stories(tmp_path)


def test_a_long_field_is_no_error_and_a_broken_file_is_named(tmp_path):
    long = "She walked on. " * 10_000
    write_stories(tmp_path / "a.csv", [("One.", long, "Three.", "Four.", "Five.")])
    assert read_stories(tmp_path)[0][1] == long.strip()
    (tmp_path / "a.csv").write_text(",".join(COLUMNS) + "\na,b,c,d\re,f\n")
    with pytest.raises(ValueError, match=r"a\.csv"):
        read_stories(tmp_path)


@pytest.mark.reference
def test_the_released_corpus(shared, tmp_path):
    splits = load_stories(shared / "data" / "rocstories", tmp_path)
    assert {split: len(found) for split, found in splits.items()} == {**SIZES, "finetune": 3803}
    assert all(len(story) == 5 for story in splits["test"])
