"""Texts that a model is fine-tuned on: documents to learn from, and others to measure it on."""

import dataclasses
import hashlib
import json
import math
import pathlib
from collections.abc import Callable, Sequence
from typing import Annotated

from gfn_jax.sections import Range
from gfn_jax.text.files import read_lines
from gfn_jax.worlds.stories import draw_stories

OWN = "stories"


@dataclasses.dataclass(frozen=True)
class TextConfig:
    """Which documents, and what becomes of them.

    Attributes:
        source: `text` (a .txt with a document a line, or a .jsonl with one a line in `field`), `rocstories`, or
            `stories`, the project's own.
        path: the file, or the dataset's folder; None for the project's own.
        field: of a .jsonl's objects.
        validation: share of the documents that is held out, where the source has no validation split of its own.
        seq_length: tokens a document is cut at.
        end_of_document: the end-of-text token follows each document, and is learnt.
    """

    source: str
    path: str | None
    field: str
    validation: Annotated[float, Range(0, 1, above=True, below=True)]
    seq_length: Annotated[int, Range(2, 2**20)]
    end_of_document: bool

    def __post_init__(self):
        if self.source not in SOURCES:
            raise ValueError(f"source is {self.source!r}; it must be one of {', '.join(SOURCES)}")


def check_path(config: TextConfig) -> None:
    """Raises ValueError where it is not said what to read; a dry run reads nothing."""
    if config.source == OWN:
        if config.path:
            raise ValueError(f"data.path is {config.path!r}; source {OWN!r}, the project's own, reads no files")
        return
    if not config.path:
        raise ValueError(f"data.path is not set: the {config.source} to train on")


def read_texts(config: TextConfig) -> tuple[list[str], list[str]]:
    """Documents to train on and documents held out; the same text is never on both sides.

    Raises:
        ValueError, OSError: the file is missing, empty or malformed, or holds one document alone.
    """
    check_path(config)
    splits = SOURCES[config.source](config)
    train, held_out = splits["train"], splits.get("validation", [])
    if not held_out:
        train, held_out = hold_out(train, config.validation)
    if not train:
        raise ValueError(f"{config.path or OWN} holds no documents to train on beside those held out")
    return train, held_out


def hold_out(texts: Sequence[str], share: float) -> tuple[list[str], list[str]]:
    """(the rest, a share of the different texts): which, is a matter of the texts alone, in any order."""
    different = sorted(set(texts), key=lambda text: hashlib.sha256(text.encode()).digest())
    held = set(different[: math.ceil(share * len(different))])
    return [text for text in texts if text not in held], [text for text in texts if text in held]


def read_file(config: TextConfig) -> dict[str, list[str]]:
    """The documents of a .txt or .jsonl; blank lines are none."""
    path = pathlib.Path(str(config.path)).expanduser()
    if path.suffix not in (".txt", ".jsonl"):
        raise ValueError(f"{path} must be a .txt with one document a line, or a .jsonl")
    documents = []
    for number, line in enumerate(read_lines(path), 1):
        if line.strip():
            documents.append(line if path.suffix == ".txt" else _field(path, number, line, config.field))
    if not documents:
        raise ValueError(f"{path} is empty")
    return {"train": documents}


def _field(path: pathlib.Path, number: int, line: str, field: str) -> str:
    try:
        value = json.loads(line)[field]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path}, line {number}: no JSON object with the field {field!r}") from error
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"{path}, line {number}: {field!r} is no text")
    return value


def own_stories(config: TextConfig, count: int = 200) -> dict[str, list[str]]:
    """Stories of the project's own world, which need no file."""
    del config
    return {"train": [" ".join(story.sentences) for story in draw_stories("training", count)]}


def read_stories(config: TextConfig) -> dict[str, list[str]]:
    """Stories of ROCStories, five sentences each: those of no split of the infilling task, and its validation split."""
    from gfn_jax.datasets.rocstories import load_stories  # TFDS takes seconds to import

    splits = load_stories(str(config.path))
    return {
        name: [" ".join(story) for story in splits[split]]
        for name, split in (("train", "finetune"), ("validation", "validation"))
    }


SOURCES: dict[str, Callable[[TextConfig], dict[str, list[str]]]] = {
    "text": read_file,
    "rocstories": read_stories,
    OWN: own_stories,
}
