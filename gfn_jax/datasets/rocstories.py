"""ROCStories (Mostafazadeh et al. 2016): five-sentence stories, read from the corpus's own CSV files through TFDS.

Hu et al. 2024, section 4.2, train on 900 stories and test on 100. Which story is in which split follows from a hash of
its text. What is left is `finetune`: the text that the base model is fine-tuned on first, which so holds no story of
the others.
"""

import csv
import hashlib
import os
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any

import tensorflow_datasets as tfds

from gfn_jax.datasets.building import build_once, default_cache

Sentences = tuple[str, ...]

COLUMNS = tuple(f"sentence{number}" for number in range(1, 6))
# Split -> its number of stories; the rest is `finetune`.
SIZES = {"test": 100, "validation": 100, "train": 900}
SPLITS = (*SIZES, "finetune")


class RocStories(tfds.core.GeneratorBasedBuilder):
    """The stories as a TFDS data set."""

    name = "gfn_rocstories"
    VERSION = tfds.core.Version("1.0.0")  # a change of the splits needs a new version: caches are found by it
    RELEASE_NOTES = {"1.0.0": "Splits by hash: 100 test, 100 validation, 900 train, the rest finetune."}  # noqa: RUF012
    MANUAL_DOWNLOAD_INSTRUCTIONS = (
        "ask for the ROCStories corpus at https://cs.rochester.edu/nlp/rocstories and put its CSV files (columns "
        f"storyid, storytitle, {', '.join(COLUMNS)}) into one folder"
    )

    def _info(self) -> tfds.core.DatasetInfo:
        return self.dataset_info_from_configs(
            description="Five-sentence stories of everyday life.",
            homepage="https://cs.rochester.edu/nlp/rocstories",
            features=tfds.features.FeaturesDict({column: tfds.features.Text() for column in COLUMNS}),
            disable_shuffling=True,
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Any]:
        splits = split_stories(read_stories(pathlib.Path(dl_manager.manual_dir)))
        return {split: self._generate_examples(stories) for split, stories in splits.items()}

    def _generate_examples(self, stories: Sequence[Sentences]) -> Iterator[tuple[int, dict[str, str]]]:
        yield from enumerate(dict(zip(COLUMNS, story, strict=True)) for story in stories)


def read_stories(folder: str | os.PathLike) -> list[Sentences]:
    """The stories of all CSV files of a folder, white space tidied, each text once.

    Raises:
        FileNotFoundError: the folder has no CSV file.
        ValueError: a file lacks a column, a story lacks a sentence, or the text is not UTF-8.
    """
    paths = sorted(pathlib.Path(folder).glob("*.csv"))
    if not paths:
        raise FileNotFoundError(f"{folder} has no CSV file; {RocStories.MANUAL_DOWNLOAD_INSTRUCTIONS}")
    return list(dict.fromkeys(story for path in paths for story in _read_file(path)))


def split_stories(stories: Sequence[Sentences]) -> dict[str, list[Sentences]]:
    """Split -> stories, by a hash of their text.

    Raises:
        ValueError: too few stories.
    """
    held = sum(SIZES.values())
    if len(stories) <= held:
        raise ValueError(f"there are {len(stories)} stories; {held} are needed and some to fine-tune a base on")
    left = sorted(stories, key=lambda story: hashlib.blake2b(" ".join(story).encode(), digest_size=8).digest())
    splits = {}
    for split, size in SIZES.items():
        splits[split], left = left[:size], left[size:]
    return {**splits, "finetune": left}


def load_stories(data_dir: str | os.PathLike, cache: str | os.PathLike | None = None) -> dict[str, list[Sentences]]:
    """Split -> stories of five sentences; the data set is built the first time, and again when the files change.

    Args:
        data_dir: the folder of the corpus's CSV files.
        cache: where data sets are kept; the user's cache folder if None.

    Raises:
        FileNotFoundError, ValueError: what is wrong with the files, in one line.
    """
    source = pathlib.Path(data_dir).expanduser().resolve()
    split_stories(read_stories(source))  # an error here is one line, in TFDS many
    contents = hashlib.blake2b(digest_size=8)
    for path in sorted(source.glob("*.csv")):
        contents.update(path.read_bytes())
    root = default_cache() if cache is None else pathlib.Path(cache)
    folder = root / RocStories.name / contents.hexdigest() / str(RocStories.VERSION)
    build_once(lambda aside: RocStories(data_dir=aside, file_format="array_record"), folder, source)
    sources = tfds.builder_from_directory(folder).as_data_source()
    return {split: [tuple(row[column].decode() for column in COLUMNS) for row in sources[split]] for split in SPLITS}


def _read_file(path: pathlib.Path) -> Iterator[Sentences]:
    try:
        csv.field_size_limit(2**31 - 1)  # else a field of more than 131,072 characters is an error
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = csv.DictReader(file)
            missing = [column for column in COLUMNS if column not in (rows.fieldnames or ())]
            if missing:
                raise ValueError(f"{path}, line 1: no column {', '.join(missing)}")
            for row in rows:
                story = tuple(" ".join((row[column] or "").split()) for column in COLUMNS)
                if not all(story):
                    raise ValueError(f"{path}, line {rows.line_num}: a story of fewer than five sentences")
                yield story
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}, byte {error.start}: not UTF-8 text") from None
    except csv.Error as error:
        raise ValueError(f"{path} is no CSV file: {error}") from error
