"""Small files of our own in the formats of the original data sets."""

import csv
import importlib.util
import json
import pathlib
import types
from collections.abc import Iterable, Sequence

from gfn_jax.datasets.rocstories import COLUMNS
from gfn_jax.datasets.subj import FILES, LABELS
from gfn_jax.tasks.arithmetic_data import RELEASED_FILES
from gfn_jax.worlds.arithmetic_splits import generate_splits


def loaded(path: pathlib.Path) -> types.ModuleType:
    """A script as a module."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def write_stories(path: pathlib.Path, stories: Iterable, columns: Sequence[str] = ("storyid", "storytitle", *COLUMNS)):
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        writer.writerows([f"id-{number}", "a title", *story] for number, story in enumerate(stories))


def made_up_stories(count: int) -> list[tuple[str, ...]]:
    return [
        (f"Ann has {n} cups.", "She breaks one.", 'It was, alas, "old".', "She glues it.", "Done!")
        for n in range(count)
    ]


def review_line(text: str, label: int, name: str | None = None) -> str:
    return json.dumps({"text": text, "label": label, "label_text": name or LABELS[label]})


def write_reviews(folder: pathlib.Path, train: int = 120, test: int = 40) -> None:
    """SUBJ's files: the smaller sets are the first of `train`."""
    said = ("the heroine leaves the shop and meets her brother .", "a joy , full of praise - it is n't dull .")
    lines = [review_line(f"number {n} : {said[n % 2]}", n % 2) for n in range(train + test)]
    for split, name in FILES.items():
        count = int(split.rpartition("_")[2]) if split.startswith("train_") else train
        (folder / name).write_text("\n".join(lines[train:] if split == "test" else lines[:count]))


def write_questions(folder: pathlib.Path, count: int = 50, known: int = 7) -> None:
    """The released arithmetic files: `known` questions of each test stand among the training ones."""
    splits = {split: [*generate_splits()[split][:count]] for split in RELEASED_FILES}
    splits["train"] += [example for k in (3, 4, 5) for example in splits[f"test_{k}"][:known]]
    for split, name in RELEASED_FILES.items():
        entries = [{"str_query": e.question, "num_sol": e.answer} for e in splits[split]]
        for entry, example in zip(entries, splits[split], strict=True):
            if example.rationale is not None:
                entry["str_rationale"] = example.written_completion.strip()
        (folder / name).write_text(json.dumps(entries, indent=4))
