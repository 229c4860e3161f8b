import sys

import pytest

from gfn_jax.datasets.prompts import load_prompts, make_prompts, read_prompts, split_prompts, split_sentences

TEXT = """Mr. Brown met J. Edgar today. He said "go home now." Then everybody left! It cost
3.5 dollars.

No. This paragraph begins with one short word. The rest of it is long enough for a prompt.
"""


def test_titles_initials_and_decimals_end_no_sentence():
    assert split_sentences(TEXT.split("\n\n")[0]) == [
        "Mr. Brown met J. Edgar today.",
        'He said "go home now."',
        "Then everybody left!",
        "It cost 3.5 dollars.",
    ]


def test_prompts_are_neighbours_of_one_paragraph_within_the_rule():
    sentences = [split_sentences(part) for part in TEXT.split("\n\n")]
    prompts = make_prompts(TEXT)
    assert len(prompts) >= 2
    left = [sentence for paragraph in sentences for sentence in paragraph]
    for prompt in prompts:
        parts = split_sentences(prompt)
        assert 1 <= len(parts) <= 3
        first = left.index(parts[0])
        assert left[first : first + len(parts)] == parts  # neighbours
        assert any(set(parts) <= set(paragraph) for paragraph in sentences)  # of one paragraph
    assert not any("No." in prompt or "Then everybody" in prompt for prompt in prompts)  # 2 and 4 tokens
    together = [sentence for prompt in prompts for sentence in split_sentences(prompt)]
    assert len(together) == len(set(together))


def test_both_splits_depend_on_the_prompts_and_not_on_their_order():
    prompts = [f"This is sentence number {n}." for n in range(40)]
    splits = split_prompts(prompts, 30, 5)
    assert (len(splits["train"]), len(splits["validation"])) == (25, 5)
    assert not set(splits["train"]) & set(splits["validation"])
    assert split_prompts(prompts[::-1], 30, 5) == splits


@pytest.mark.parametrize(("count", "validation"), [(10, 10), (None, 0), (50, 40)])
def test_impossible_splits_are_refused(count, validation):
    with pytest.raises(ValueError, match=rf"continuation\.validation is {validation}; there are 40"):
        split_prompts([f"Prompt {n}." for n in range(40)], count, validation)


def test_a_file_may_have_fewer_prompts_than_are_asked_for():
    splits = split_prompts([f"Prompt {n}." for n in range(40)], 1000, 5)
    assert (len(splits["train"]), len(splits["validation"])) == (35, 5)


def test_a_file_goes_through_tfds_once_and_an_edited_one_is_another_data_set(tmp_path):
    path, cache = tmp_path / "prompts.txt", tmp_path / "cache"
    lines = [f"This is sentence number {n}." for n in range(12)]
    path.write_text("\n".join([*lines, "", "  ", lines[0]]))  # blank lines and a repetition are no prompts
    splits = load_prompts(path, 2, cache=cache)
    assert sorted(splits["train"] + splits["validation"]) == sorted(lines)
    built = {file: file.stat().st_mtime_ns for file in cache.rglob("*") if file.is_file()}
    assert any("array_record" in file.name for file in built)
    assert load_prompts(path, 2, cache=cache) == splits
    assert {file: file.stat().st_mtime_ns for file in cache.rglob("*") if file.is_file()} == built
    path.write_text("\n".join(lines[:6]))
    edited = load_prompts(path, 2, cache=cache)
    assert sorted(edited["train"] + edited["validation"]) == sorted(lines[:6])
    assert "tensorflow" not in sys.modules


def test_what_is_wrong_with_a_file_is_said(tmp_path):
    path = tmp_path / "prompts.txt"
    with pytest.raises(FileNotFoundError, match="one prompt a line"):
        load_prompts(path, 1, cache=tmp_path)
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(ValueError, match="not UTF-8"):
        read_prompts(path)
    path.write_text("Too short.\n")
    with pytest.raises(ValueError, match="1-3 neighbouring sentences"):
        read_prompts(path, raw=True)


@pytest.mark.reference
def test_the_papers_prompts(shared, tmp_path):
    splits = load_prompts(shared / "data" / "openwebtext" / "prompts.txt", 50, cache=tmp_path)
    assert (len(splits["train"]), len(splits["validation"])) == (950, 50)
