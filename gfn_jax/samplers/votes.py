"""Self-consistency (Wang et al. 2022, arXiv:2203.11171): of many answers to one question, the one said most often.

Answers may be weighted (`Weighed.log_weight`): with a posterior's weights the vote is the mode of its predictive, with
confidences the aggregate over paths of `cot_decoding`. On the host.
"""

import math
from collections.abc import Hashable, Sequence


def tally(answers: Sequence[Hashable | None], log_weight: Sequence[float] | None = None) -> dict[Hashable, float]:
    """What each answer to one question counts, the first seen first; None is no answer, and -inf counts nothing.

    Args:
        answers: of the rows.
        log_weight: their unnormalised weights in nats, the largest counting 1; None: all count 1.

    Raises:
        ValueError: a weight is missing, NaN or infinite.
    """
    weights = [0.0] * len(answers) if log_weight is None else [float(weight) for weight in log_weight]
    if len(weights) != len(answers):
        raise ValueError(f"{len(answers)} answers have {len(weights)} weights")
    if any(math.isnan(weight) or weight == math.inf for weight in weights):
        raise ValueError("a log weight must be a number or -inf")
    top = max(weights, default=0.0)
    votes: dict[Hashable, float] = {}
    for answer, weight in zip(answers, weights, strict=True):
        if answer is not None and weight > -math.inf:
            votes[answer] = votes.get(answer, 0.0) + math.exp(weight - top)
    return votes


def majority(answers: Sequence[Hashable | None], log_weight: Sequence[float] | None = None) -> Hashable | None:
    """The answer to one question that counts most, the first seen among equals; None where there is no answer."""
    votes = tally(answers, log_weight)
    return max(votes, key=votes.__getitem__, default=None)
