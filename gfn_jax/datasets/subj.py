"""SUBJ, sentences about movies labelled objective or subjective, as a TFDS builder that reads the original files.

Pang and Lee, "A sentimental education", ACL 2004; split as for Hu et al. 2024 (ICLR), section 4.3: 10, 20 or 50 labels
to train with, or all 8,000, and 2,000 to test. A file holds one JSON object a line; its last newline may be missing:

    {"text": "the adventures of pluto nash is a whole lot of nada .", "label": 1, "label_text": "subjective"}

Built and read without TensorFlow, as array records.
"""

import contextlib
import hashlib
import io
import json
import os
import pathlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from gfn_jax.text.files import read_lines

LABELS = ("objective", "subjective")
FILES = {
    "train": "train.jsonl",
    "train_10": "train.10.jsonl",
    "train_20": "train.20.jsonl",
    "train_50": "train.50.jsonl",
    "test": "test.jsonl",
}  # split -> file


class Subj(tfds.core.GeneratorBasedBuilder):
    """The builder; splits are the keys of `FILES`, of which those present are built."""

    name = "gfn_subj"
    VERSION = tfds.core.Version("1.0.0")  # a change of what is stored needs a new version: caches are found by it
    RELEASE_NOTES = {"1.0.0": "Text and label, in the order of the files."}  # noqa: RUF012
    MANUAL_DOWNLOAD_INSTRUCTIONS = (
        "Put the SUBJ files released with Hu et al. 2024 into one folder: " + ", ".join(FILES.values()) + "; "
        "each line is a JSON object with `text`, `label` (0 objective, 1 subjective) and `label_text`."
    )

    def _info(self) -> tfds.core.DatasetInfo:
        return self.dataset_info_from_configs(
            features=tfds.features.FeaturesDict(
                {"text": tfds.features.Text(), "label": tfds.features.Scalar(np.int32)}
            ),
            disable_shuffling=True,
            description="Sentences about movies: plot (objective) or opinion (subjective).",
            homepage="https://www.cs.cornell.edu/people/pabo/movie-review-data/",
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Any]:
        folder = pathlib.Path(dl_manager.manual_dir)
        return {split: self._generate_examples(folder / file) for split, file in FILES.items() if _there(folder, file)}

    def _generate_examples(self, path: pathlib.Path) -> Iterator[tuple[int, dict[str, Any]]]:
        return enumerate(read_jsonl(path))


def read_jsonl(path: pathlib.Path) -> Iterator[dict[str, Any]]:
    """The examples of one original file, `text` and `label`.

    Raises:
        ValueError: a line is no such object, or its label and its label's text disagree; there is none, or the file
            is not UTF-8.
    """
    found = False
    for number, line in enumerate(read_lines(path), 1):
        if not line.strip():
            continue
        try:
            item = json.loads(line)
            text, label, name = str(item["text"]).strip(), item["label"], item["label_text"]
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{path}, line {number}: not an object with text, label and label_text") from error
        if label not in (0, 1) or LABELS[label] != name or not text:
            raise ValueError(f"{path}, line {number}: label {label!r} with label_text {name!r}, text {text!r:.40}")
        found = True
        yield {"text": text, "label": label}
    if not found:
        raise ValueError(f"{path} holds no examples")


def load(folder: str | os.PathLike, split: str, cache: str | os.PathLike) -> list[tuple[str, int]]:
    """A split's (text, label) pairs, in the order of its file; the builder runs the first time.

    Args:
        folder: the original files.
        split: a key of `FILES`.
        cache: where data sets are kept, found again by the contents of the files.

    Raises:
        FileNotFoundError: the folder does not hold the split's file.
        ValueError: the split is unknown, or a line cannot be read.
    """
    folder = pathlib.Path(folder).expanduser()
    if split not in FILES:
        raise ValueError(f"split {split!r} is unknown; SUBJ has {', '.join(FILES)}")
    if not _there(folder, FILES[split]):
        raise FileNotFoundError(f"{folder} has no {FILES[split]}. {Subj.MANUAL_DOWNLOAD_INSTRUCTIONS}")
    files = [folder / file for file in FILES.values() if _there(folder, file)]
    contents = hashlib.blake2b(digest_size=8)
    for file in files:
        contents.update(file.name.encode() + b"\0" + file.read_bytes())
    builder = Subj(data_dir=pathlib.Path(cache) / Subj.name / contents.hexdigest(), file_format="array_record")
    if not builder.data_path.exists():
        for file in files:
            list(read_jsonl(file))  # an error here is one line, in TFDS many
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            builder.download_and_prepare(download_config=tfds.download.DownloadConfig(manual_dir=folder))
    return [(record["text"].decode(), int(record["label"])) for record in builder.as_data_source(split=split)]


def _there(folder: pathlib.Path, file: str) -> bool:
    return (folder / file).is_file()
