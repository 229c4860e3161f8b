"""The arithmetic task's examples: generated through TFDS, or read from the files released with the paper.

`load_examples()` builds the generated splits once into a cache folder (array_record files, no TensorFlow)
and reads them back; `load_examples(folder)` reads the released JSON files.
"""

import json
import os
import pathlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from gfn_jax.datasets.building import build_once, default_cache
from gfn_jax.worlds.arithmetic_examples import ArithmeticExample, evaluate, expression_of, fill_results
from gfn_jax.worlds.arithmetic_splits import SPLITS, generate_splits

RELEASED_FILES = {
    "demonstrations": "1digit_34_op+-_train_50.json",
    "train": "1digit_34_op+-_hw.json",
    "test_3": "1digit_3_op+-_test.json",
    "test_4": "1digit_4_op+-_test.json",
    "test_5": "1digit_5_op+-_test.json",
}


class ArithmeticBuilder(tfds.core.GeneratorBasedBuilder):
    """The generated splits as a TFDS data set; an absent rationale is the empty text."""

    name = "gfn_arithmetic"
    VERSION = tfds.core.Version("1.0.0")  # a change of the splits needs a new version: caches are found by it
    RELEASE_NOTES = {"1.0.0": "One-digit operands, + and -; splits by hash."}  # noqa: RUF012

    def _info(self) -> tfds.core.DatasetInfo:
        return self.dataset_info_from_configs(
            description="Sums of one-digit numbers with their answers, and demonstrations with their chains.",
            features=tfds.features.FeaturesDict(
                {
                    "question": tfds.features.Text(),
                    "rationale": tfds.features.Text(),
                    "answer": tfds.features.Scalar(dtype=np.int32),
                }
            ),
            disable_shuffling=True,  # a few-shot context is the first examples: order matters
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Iterator[tuple[int, dict[str, Any]]]]:
        del dl_manager  # nothing is downloaded
        return {split: self._generate_examples(split) for split in SPLITS}

    def _generate_examples(self, split: str) -> Iterator[tuple[int, dict[str, Any]]]:
        for index, example in enumerate(generate_splits()[split]):
            yield (
                index,
                {
                    "question": example.question,
                    "rationale": example.rationale or "",
                    "answer": example.answer,
                },
            )


def load_examples(
    data_dir: str | os.PathLike | None = None, cache: str | os.PathLike | None = None
) -> dict[str, list[ArithmeticExample]]:
    """The task's examples by split.

    Args:
        data_dir: the folder of the released JSON files; None for the generated splits.
        cache: where the generated data set is kept, `default_cache()` if None. Not used with `data_dir`.

    Returns:
        Split -> examples: `demonstrations`, `train`, `validation_k` and `test_k` for k = 3, 4, 5 operands.
        Released data also has `test_k_decontaminated`, the test questions that occur in no training file. It
        brings no validation questions: they are the generated ones that occur in none of its files.

    Raises:
        FileNotFoundError: a released file is missing.
        ValueError: a released file cannot be read; the message names the file and the line or entry.
    """
    if data_dir is None:
        return _load_generated(default_cache() if cache is None else pathlib.Path(cache))
    return _load_released(pathlib.Path(data_dir))


def _load_generated(cache: pathlib.Path) -> dict[str, list[ArithmeticExample]]:
    folder = cache / ArithmeticBuilder.name / str(ArithmeticBuilder.VERSION)
    build_once(lambda aside: ArithmeticBuilder(data_dir=aside, file_format="array_record"), folder)
    sources = tfds.builder_from_directory(folder).as_data_source()
    return {
        split: [
            ArithmeticExample(
                question=row["question"].decode(),
                answer=int(row["answer"]),
                rationale=row["rationale"].decode() or None,
            )
            for row in sources[split]
        ]
        for split in SPLITS
    }


def _load_released(folder: pathlib.Path) -> dict[str, list[ArithmeticExample]]:
    splits = {split: _read_released(folder / name) for split, name in RELEASED_FILES.items()}
    for index, example in enumerate(splits["demonstrations"]):
        if example.rationale is None:
            name = RELEASED_FILES["demonstrations"]
            raise ValueError(f"{folder / name}, entry {index}: a demonstration needs 'str_rationale'")
    trained = {example.question for split in ("demonstrations", "train") for example in splits[split]}
    released = {example.question for examples in splits.values() for example in examples}
    for operands in (3, 4, 5):
        test, generated = splits[f"test_{operands}"], generate_splits()[f"validation_{operands}"]
        splits[f"test_{operands}_decontaminated"] = [e for e in test if e.question not in trained]
        splits[f"validation_{operands}"] = [e for e in generated if e.question not in released]
    return splits


def _read_released(path: pathlib.Path) -> list[ArithmeticExample]:
    """One released file: a list of objects with str_query, num_sol and, in demonstrations, str_rationale."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        expected = ", ".join(RELEASED_FILES.values())
        raise FileNotFoundError(f"{path} is missing; a folder of released arithmetic data holds {expected}") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}, byte {error.start}: not UTF-8 text") from None
    try:
        entries = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}, line {error.lineno}: not JSON: {error.msg}") from None
    if not isinstance(entries, list):
        raise ValueError(f"{path}, line 1: expected a list of questions, got {type(entries).__name__}")
    examples = []
    for index, entry in enumerate(entries):
        try:
            examples.append(_parse_released(entry))
        except ValueError as error:
            raise ValueError(f"{path}, entry {index}: {error}") from None
    return examples


def _parse_released(entry: Any) -> ArithmeticExample:
    fields: dict[str, type] = {"str_query": str, "num_sol": int}
    if isinstance(entry, dict) and "str_rationale" in entry:
        fields["str_rationale"] = str
    for field, kind in fields.items():
        if not isinstance(entry, dict) or type(entry.get(field)) is not kind:
            raise ValueError(f"expected an object with {field!r} of type {kind.__name__}, got {entry!r:.80}")
    value = evaluate(expression_of(entry["str_query"]))
    if entry["num_sol"] != value:
        raise ValueError(f"'num_sol' is {entry['num_sol']}, but {entry['str_query']!r} asks for {value}")
    rationale = fill_results(entry["str_rationale"]) if "str_rationale" in entry else None
    return ArithmeticExample(entry["str_query"], entry["num_sol"], rationale)
