"""Tasks and algorithms by the names that a config gives, `task` and `algorithm`: ours, and anybody's by import path."""

import contextlib
from collections.abc import Mapping
from typing import TypeVar

from gfn_jax.algorithms.entry import AlgorithmEntry
from gfn_jax.errors import user_code
from gfn_jax.sections import imported
from gfn_jax.tasks.task import TaskEntry

Entry = TypeVar("Entry")
# Name -> where its entry is; only what a config names is imported.
TASKS: dict[str, str] = {
    "arithmetic": "gfn_jax.tasks.arithmetic:TASK",
    "continuation": "gfn_jax.tasks.continuation:TASK",
    "infilling": "gfn_jax.tasks.infilling:TASK",
    "subjectivity": "gfn_jax.tasks.subjectivity:TASK",
    "random_numbers": "gfn_jax.tasks.random_numbers:TASK",
}
ALGORITHMS: dict[str, str] = {
    "gflownet": "gfn_jax.algorithms.gflownet:ALGORITHM",
    "weighted_sft": "gfn_jax.algorithms.weighted_sft:ALGORITHM",
    "ctl": "gfn_jax.algorithms.ctl:ALGORITHM",
    "dpo": "gfn_jax.algorithms.dpo:ALGORITHM",
    "sft": "gfn_jax.algorithms.sft:ALGORITHM",
    "star": "gfn_jax.runs.star:ALGORITHM",
    "reinforce": "gfn_jax.algorithms.reinforce:ALGORITHM",
    "rloo": "gfn_jax.algorithms.rloo:ALGORITHM",
    "grpo": "gfn_jax.algorithms.grpo:ALGORITHM",
    "ppo": "gfn_jax.algorithms.ppo:ALGORITHM",
}


def task_entry(name: str) -> TaskEntry:
    """The entry of one of `TASKS` or, for "package.module:NAME", of a user's own.

    Raises:
        ValueError: it is neither.
    """
    return _entry("task", TASKS, name, TaskEntry)


def algorithm_entry(name: str) -> AlgorithmEntry:
    """The entry of one of `ALGORITHMS` or, for "package.module:NAME", of a user's own.

    Raises:
        ValueError: it is neither.
    """
    return _entry("algorithm", ALGORITHMS, name, AlgorithmEntry)


def _entry(kind: str, names: Mapping[str, str], name: str, cls: type[Entry]) -> Entry:
    if ":" not in name and name not in names:
        raise ValueError(f"{kind} {name!r} is unknown; there are {', '.join(names)}, and your own as 'module:NAME'")
    entry = imported(names.get(name, name))
    if not isinstance(entry, cls):
        raise ValueError(f"{name} must be a {cls.__module__}.{cls.__name__}, not {type(entry).__name__}")
    return entry


def blamed(task: str, what: str) -> contextlib.AbstractContextManager[None]:
    """Whatever a user's own task raises is said to be that of `what`; what it says of its section and files is passed.

    Args:
        task: a config's `task`.
        what: what is asked of it.
    """
    return contextlib.nullcontext() if task in TASKS else user_code(what, passed=(ValueError, OSError))
