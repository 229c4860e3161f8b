"""The fair protocol, as far as code can hold a study to it (docs/protocol.md): methods differ, and nothing else.

Rows of one task have the same base, adapter targets, questions and evaluation, seed by seed; methods that are tuned
have as many trials, of the same seeds; no held-out question is among what a policy or a base has learnt from.
"""

import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol

from gfn_jax.studies.study import Study
from gfn_jax.studies.tuning import record_of, untuned

# Keys of the task's section that say what is learnt from, and not what is asked at the end; a row may name them.
LEARNT_FROM = {
    "arithmetic": ("seed_demonstrations", "seed_share", "reward_shots", "min_length", "max_length"),
    "subjectivity": ("labels", "seed_samples", "wrong_label_penalty", "reward_adapter", "min_length", "max_length"),
    "infilling": ("train_stories", "seed_stories", "min_length", "max_length"),
    "continuation": ("min_length", "max_length"),
    "random_numbers": ("penalty", "copies", "min_length", "max_length"),
}
# Keys of the evaluation that change nothing of how the policy itself is measured.
BESIDE = ("every", "shots", "frequent", "batch")


def compared(config: Mapping[str, Any]) -> dict[str, Any]:
    """What two runs that are compared must agree on, key -> value."""
    task = config["task"]
    own = {f"{task}.{key}": value for key, value in config.get(task, {}).items()}
    left_out = {f"{task}.{key}" for key in LEARNT_FROM.get(task, ())}
    return {
        "seed": config["seed"],
        "report": config["report"],
        "data.path": config["data"]["path"],
        **{f"model.{key}": value for key, value in config["model"].items() if key not in ("remat", "remat_policy")},
        "lora.targets": tuple(config["lora"]["targets"]),
        **{key: value for key, value in own.items() if key not in left_out},
        **{f"evaluation.{key}": value for key, value in config["evaluation"].items() if key not in BESIDE},
    }


def check_protocol(study: Study, configs: Mapping[str, Mapping[str, Any]]) -> None:
    """Holds the rows of a study to the same base, adapter targets, questions and evaluation, seed by seed.

    And the methods that it compares to as many trials, those that have any: a report names the others.

    Args:
        study: its rows of one task are compared with each other, their first jobs, their second ones, and so on.
        configs: job's name -> its config, whole, as nested mappings; a job without one is not looked at.

    Raises:
        ValueError: two rows differ, in one line; or as `check_trials`.
    """
    for task, names in study.tuned.items():
        missing = untuned(task, names)
        check_trials(task, [name for name in names if name not in missing])
    first: dict[tuple[str, int], tuple[str, dict[str, Any]]] = {}
    for row in study.rows:
        for place, job in enumerate(row.jobs):
            if job.name not in configs:
                continue
            own = {key: value for key, value in compared(configs[job.name]).items() if key not in study.differing}
            other, wanted = first.setdefault((configs[job.name]["task"], place), (row.title, own))
            for key in sorted(wanted.keys() | own.keys()):
                if own.get(key) != wanted.get(key):
                    values = f"{wanted.get(key)!r} in {other!r}, {own.get(key)!r} in {row.title!r}"
                    raise ValueError(f"study {study.name} compares runs that differ in {key}: {values}")


def check_trials(task: str, names: Iterable[str]) -> None:
    """Holds methods that are compared to the same number of trials, of the same seeds.

    Raises:
        ValueError: one has none, or another number.
    """
    records = {name: record_of(task, name) for name in names}
    for (one, first), (other, second) in itertools.pairwise(records.items()):
        for what, a, b in (
            ("trials", len(first["trials"]), len(second["trials"])),
            ("seeds", first["seeds"], second["seeds"]),
        ):
            if a != b:
                raise ValueError(f"on {task} {one} was tuned with {a} {what}, {other} with {b}")


class Questioned(Protocol):
    """A task with questions in splits."""

    @property
    def splits(self) -> Mapping[str, Sequence[Any]]: ...

    def question(self, split: str, example: int) -> str: ...


def check_decontamination(task: Questioned, corpus: Iterable[str] = ()) -> None:
    """Looks for held-out questions in what is learnt from.

    Held out are the splits that are named validation or test; one with a twin, SPLIT_decontaminated, is known to be
    contaminated, and reported as such. All others (training, seeds, the reward's context) are learnt from.

    Args:
        task: any with questions.
        corpus: documents that its base was pretrained on.

    Raises:
        ValueError: a question of one kind of split is in another, or in a document.
    """
    kinds: dict[str, dict[str, str]] = {"test": {}, "validation": {}, "training": {}}
    for split, examples in task.splits.items():
        kind = next((kind for kind in ("test", "validation") if split.startswith(kind)), "training")
        if f"{split}_decontaminated" not in task.splits:
            kinds[kind] |= {task.question(split, number): split for number in range(len(examples))}
    for one, other in itertools.combinations(kinds.values(), 2):
        for question in sorted(one.keys() & other.keys()):
            raise ValueError(f"a question of {one[question]} is in {other[question]}: {question!r:.100}")
    held_out = kinds["test"] | kinds["validation"]
    for document in corpus:
        for question, split in held_out.items():
            if question in document:
                raise ValueError(f"a question of {split} is in the corpus: {question!r:.100}")
