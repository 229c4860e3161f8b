"""How a policy's run ends: what it measures, on which split, and what it leaves in its folder.

With `report="test"` the evaluator's final report is read; with `report="validation"`, which is for choosing settings,
what it validates with, of policy and base, and nothing else: the test split is not touched.

    results.json      facts, `budget`, method -> metric -> value; `pending` names what is still to be added
    questions.json    method -> metric -> a value a question
    samples.jsonl     what policy and base have written, the first of each split
"""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import jax

from gfn_jax.evaluation.report import (
    RESULTS,
    Evaluator,
    Findings,
    Questioned,
    table,
    write_evidence,
    write_results,
)
from gfn_jax.models.language_model import LanguageModel

Report = Literal["test", "validation"]
OWN: Mapping[Report, str] = {"test": "policy", "validation": "validation"}  # what the policy is called in the results
FACTS = ("budget", "certificate")  # of a results.json, that are mappings as methods are


def measured(evaluator: Evaluator, policy: LanguageModel, report: Report, plain: Evaluator | None = None) -> Findings:
    """What is found at the end.

    Args:
        evaluator: of the task.
        policy: that was trained.
        report: the split.
        plain: measures the base where `evaluator` answers with an adapter; else the same.
    """
    if report == "test":
        return evaluator.report(policy)
    asked = {"validation": (evaluator, policy), "base_validation": (plain or evaluator, policy.base)}
    found = {name: validated(by, model) for name, (by, model) in asked.items()}
    methods = {name: metrics for name, (metrics, _) in found.items()}
    questions = {name: known for name, (_, known) in found.items() if known}
    rows = [(name, *(f"{found[name]:.4g}" for found in methods.values())) for name in methods["validation"]]
    lines = ["Validation alone; the test split was not read:", "", table(("", "this run", "base"), rows)]
    return Findings(methods, "\n".join(lines), questions)


def validated(evaluator: Evaluator, model: LanguageModel) -> tuple[Mapping[str, float], Mapping[str, Sequence[float]]]:
    """What an evaluator validates with; and a value a question, where it can tell."""
    return evaluator.validated(model) if isinstance(evaluator, Questioned) else (evaluator.validate(model), {})


def own_method(results: Mapping[str, Any]) -> str:
    """What the policy is called in a results.json.

    Raises:
        ValueError: it is not there.
    """
    for name in OWN.values():
        if isinstance(results.get(name), dict):
            return name
    raise ValueError(f"the results have none of {', '.join(OWN.values())}")


def own_metrics(results: Mapping[str, Any]) -> dict[str, Any]:
    """The policy's, of a results.json.

    Raises:
        ValueError: there are none.
    """
    return dict(results[own_method(results)])


def methods_of(results: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    """Method -> its numbers, of a results.json, the policy's first; what else there is are facts about the run."""
    found = {
        name: {
            metric: value
            for metric, value in values.items()
            if isinstance(value, int | float) and not isinstance(value, bool)
        }
        for name, values in results.items()
        if isinstance(values, dict) and name not in FACTS
    }
    return {name: found[name] for name in sorted(found, key=lambda name: name not in OWN.values()) if found[name]}


def leave(folder: pathlib.Path, facts: Mapping[str, Any], findings: Findings, pending: tuple[str, ...] = ()) -> None:
    """Writes the three files; the first process does.

    Args:
        folder: the run's.
        facts: about it.
        findings: methods, questions and samples.
        pending: what will be added to results.json before the run is done.
    """
    if jax.process_index() == 0:
        write_evidence(folder, findings)
        ahead = {"pending": list(pending)} if pending else {}
        write_results(folder / RESULTS, {**facts, **ahead, **findings.methods})
