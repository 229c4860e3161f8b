"""What finished jobs have left beside their numbers, as a report shows it: samples, rationales, distributions."""

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from gfn_jax.evaluation.report import GAP, SAMPLES
from gfn_jax.studies.study import Job, Results

VERDICT = {True: "   [right]", False: "   [wrong]", None: ""}


def sampled(
    results: Results,
    jobs: Iterable[Job],
    methods: Sequence[str],
    count: int,
    right: bool | None = None,
) -> list[tuple[str, list[str]]]:
    """The first completions that jobs have left in samples.jsonl, as (who wrote them, lines).

    Args:
        results: of all finished jobs.
        jobs: whose.
        methods: of each.
        count: lines of each method.
        right: only those that are, or are not; None for all.
    """
    texts = []
    for job in jobs:
        path = results[job.name].folder / SAMPLES if job.name in results else None
        if path is None or not path.exists():
            continue
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        for method in methods:
            own = [row for row in rows if row["method"] == method and (right is None or row.get("right") is right)]
            lines = [
                f"{told(row['question'], row['completion'])}{VERDICT[row.get('right')]}" for row in spread(own, count)
            ]
            if lines:
                texts.append((f"{job.name}, {method}" if method != "policy" else job.name, lines))
    return texts


def told(question: str, completion: str) -> str:
    """The completion behind its question, or in the gap that the question leaves."""
    return question.replace(GAP, f"[{completion}]", 1) if GAP in question else question + completion


def spread(rows: Sequence[dict[str, Any]], count: int) -> list[dict[str, Any]]:
    """`count` rows, evenly from the first to the last."""
    step = max(len(rows) // count, 1)
    return list(rows[::step][:count])


def rationales(results: Results, jobs: Iterable[Job]) -> list[tuple[str, list[str]]]:
    """The commonest rationales of each label, of the first job that is there."""
    for job in jobs:
        if job.name in results:
            found = results[job.name].results.get("rationales", {})
            return [(label, [f"{share:.1f} %  {text}" for text, share in rows]) for label, rows in found.items()]
    return []


def distributions(results: Results, jobs: Mapping[str, Sequence[Job]]) -> dict[str, list[float]]:
    """The distributions over numbers that the first of some jobs have left; with the target, if there is any.

    Args:
        results: of all finished jobs.
        jobs: title -> jobs whose policy is shown; of "base" their base.
    """
    found: dict[str, list[float]] = {}
    for title, own in jobs.items():
        left = results[own[0].name].results["distribution"] if own[0].name in results else None
        if left is not None:
            found[title] = left["base" if title == "base" else "policy"]
            found["target"] = left["target"]
    return found
