"""Answers by vote: sample several rationales a question, let their answers vote, count the right ones.

Averaging the answer over rationales sampled from q(Z | X) is what a posterior is for (Hu et al. 2024, section 4.4:
10 samples at temperature 0.1, majority vote).
"""

import dataclasses
from collections import Counter
from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import Protocol

import numpy as np

from gfn_jax.evaluation.predictive import summarize_votes, vote_entropy
from gfn_jax.samplers.votes import majority, tally


class Graded(Protocol):
    """What a task with answers offers."""

    def decode(self, ids: list[int]) -> str: ...

    def answer(self, completion: str) -> Hashable | None: ...

    def grade(self, split: str, example: int, completion: str) -> bool: ...

    def is_right_chain(self, split: str, example: int, completion: str) -> bool: ...

    def mode(self, split: str, example: int, completion: str) -> Hashable | None: ...


@dataclasses.dataclass(frozen=True)
class Accuracy:
    """Shares in percent.

    Attributes:
        voted: questions whose majority answer is right.
        single: samples whose own answer is right.
        chains: samples in which every step is right.
        unreadable: samples without an answer.
        agreement: the majority's share of a question's samples, averaged.
        uncertainty: entropies of the votes, in nats (`predictive.summarize_votes`).
        questions: name -> a value a question, of those above that are means over questions (`voted`, `vote_entropy`).
    """

    voted: float
    single: float
    chains: float
    unreadable: float
    agreement: float
    uncertainty: Mapping[str, float]
    questions: Mapping[str, Sequence[float]]


def measure_accuracy(
    task: Graded, split: str, samples: list[list[list[int]]], log_weight: Sequence[Sequence[float]] | None = None
) -> Accuracy:
    """Grades `[M][N]` completions of a split's first M questions; an unreadable answer is wrong.

    Args:
        task: that grades them.
        split: whose questions they answer.
        samples: the tokens of Z.
        log_weight: what each one's vote counts, in nats (`votes.tally`); None: all alike. Nothing else is weighted.
    """
    found: dict[str, list[float]] = {name: [] for name in ("voted", "single", "chains", "unreadable", "agreement")}
    answered = []
    for example, rows in enumerate(samples):
        texts = [task.decode(row) for row in rows]
        answers = [task.answer(text) for text in texts]
        right = [task.grade(split, example, text) for text in texts]
        weights = None if log_weight is None else log_weight[example]
        votes, all_votes = tally(answers, weights), sum(tally(range(len(rows)), weights).values())
        winner = majority(answers, weights)
        answered.append(answers)
        found["voted"].append(bool(votes) and right[answers.index(winner)])
        found["single"].append(mean(right))
        found["chains"].append(mean(task.is_right_chain(split, example, text) for text in texts))
        found["unreadable"].append(mean(answer is None for answer in answers))
        found["agreement"].append(votes[winner] / all_votes if votes else 0.0)
    questions = {name: [100.0 * value for value in values] for name, values in found.items()}
    uncertainty = summarize_votes(answered, [bool(right) for right in found["voted"]])
    return Accuracy(
        **{name: mean(values) for name, values in questions.items()},
        uncertainty=uncertainty,
        questions={**questions, "vote_entropy": vote_entropy(answered).tolist()},
    )


def measure_diversity(task: Graded, split: str, samples: list[list[list[int]]]) -> dict[str, list[float]]:
    """What `[M][N]` completions of a split's first M questions hold beside the vote, a value a question.

    Returns:
        `right`: samples that are right chains, in percent; `distinct`: how many different ones there are among the N;
        `chain_entropy`: the entropy of their shares, in nats (0 where there is none; at most log N, and too low).
    """
    found: dict[str, list[float]] = {"right": [], "distinct": [], "chain_entropy": []}
    for example, rows in enumerate(samples):
        chains = [task.mode(split, example, task.decode(row)) for row in rows]
        right = Counter(chain for chain in chains if chain is not None)
        share = np.array([*right.values()]) / max(right.total(), 1)
        found["right"].append(100.0 * right.total() / len(rows))
        found["distinct"].append(float(len(right)))
        found["chain_entropy"].append(abs(float((share * np.log(share)).sum())))
    return found


def mean(values: Iterable[float]) -> float:
    """Their mean."""
    return float(np.mean([*values]))
