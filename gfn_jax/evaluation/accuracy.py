"""Answers by vote: sample several rationales a question, let their answers vote, count the right ones.

Averaging the answer over rationales sampled from q(Z | X) is what a posterior is for (Hu et al. 2024, section 4.4:
10 samples at temperature 0.1, majority vote).
"""

import dataclasses
from collections.abc import Hashable, Mapping
from typing import Protocol

from gfn_jax.evaluation.predictive import summarize_votes
from gfn_jax.samplers.votes import majority, tally


class Graded(Protocol):
    """What a task with answers offers."""

    def decode(self, ids: list[int]) -> str: ...

    def answer(self, completion: str) -> Hashable | None: ...

    def grade(self, split: str, example: int, completion: str) -> bool: ...

    def is_right_chain(self, split: str, example: int, completion: str) -> bool: ...


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
    """

    voted: float
    single: float
    chains: float
    unreadable: float
    agreement: float
    uncertainty: Mapping[str, float]


def measure_accuracy(task: Graded, split: str, samples: list[list[list[int]]]) -> Accuracy:
    """Grades [M][N] completions of a split's first M questions; an unreadable answer is wrong."""
    single = chains = unreadable = 0
    agreement = 0.0
    answered, correct = [], []
    for example, rows in enumerate(samples):
        texts = [task.decode(row) for row in rows]
        answers = [task.answer(text) for text in texts]
        right = [task.grade(split, example, text) for text in texts]
        single += sum(right)
        chains += sum(task.is_right_chain(split, example, text) for text in texts)
        unreadable += sum(answer is None for answer in answers)
        votes = tally(answers)
        answered.append(answers)
        correct.append(False)
        if votes:
            winner = majority(answers)
            correct[-1] = right[answers.index(winner)]
            agreement += votes[winner] / len(rows)
    questions, total = len(samples), sum(map(len, samples))
    return Accuracy(
        voted=100 * sum(correct) / questions,
        single=100 * single / total,
        chains=100 * chains / total,
        unreadable=100 * unreadable / total,
        agreement=100 * agreement / questions,
        uncertainty=summarize_votes(answered, correct),
    )
