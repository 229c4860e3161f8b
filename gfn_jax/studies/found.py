"""What finished jobs have left, and what was run where: all that a report is made of."""

import dataclasses
import pathlib
from typing import Any


@dataclasses.dataclass(frozen=True)
class Found:
    """What a finished job has left.

    Attributes:
        folder: of the job.
        results: its results.json: method -> metric -> value.
        questions: its questions.json: method -> metric -> a value a question; None where it has none.
        job: its job.json: identity, arguments, seconds, peak memory (`plan.Record`).
    """

    folder: pathlib.Path
    results: dict[str, Any]
    questions: dict[str, Any] | None
    job: dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Facts:
    """What was run, when and where.

    Attributes:
        command: that makes the report again.
        preset: tiny or paper.
        seeds: of every row.
        date: of the report, ISO 8601.
        machine: in words.
        versions: package -> version.
    """

    command: str
    preset: str
    seeds: tuple[int, ...]
    date: str
    machine: str
    versions: dict[str, str]
