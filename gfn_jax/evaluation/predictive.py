"""What many rationales say together: posterior predictive over answers, and how uncertain it is.

With rationales Z_1 ... Z_N from q(Z | X), which stands for p(Z | X, ...),

    p(Y | X) = 1/N sum_n p(Y | X Z_n)                          the posterior predictive (Hu et al. 2024, section 3.1)
    H[p(Y | X)] = 1/N sum_n H[p(Y | X Z_n)] + I(Y; Z | X)      total = expected conditional + mutual information

The mutual information is what the rationales disagree on; the expected conditional entropy is what each leaves open.
Where only an answer a rationale is known, each p(Y | X Z_n) counts as certain: the predictive is the histogram of the
votes, its entropy the vote entropy. All entropies are in nats, of M questions, N rationales and A answers.
"""

import dataclasses
from collections import Counter
from collections.abc import Hashable, Sequence

import numpy as np
from jaxtyping import Float, Int


@dataclasses.dataclass(frozen=True)
class Uncertainty:
    """Of every question, in nats; `total` = `conditional` + `mutual_information`."""

    total: Float[np.ndarray, " M"]
    conditional: Float[np.ndarray, " M"]
    mutual_information: Float[np.ndarray, " M"]


def entropy(probabilities: Float[np.ndarray, "*rows A"]) -> Float[np.ndarray, "*rows"]:
    """- sum p log p over the last axis, 0 log 0 being 0."""
    return -(probabilities * np.log(np.where(probabilities > 0, probabilities, 1.0))).sum(-1)


def posterior_predictive(conditionals: Float[np.ndarray, "..."]) -> Float[np.ndarray, "M A"]:
    """The mean over rationales of p(Y | X Z), [M, N, A].

    Raises:
        ValueError: a question has no rationale, or a row is no distribution.
    """
    if conditionals.ndim != 3 or not conditionals.shape[1]:
        raise ValueError(f"p(Y | X Z) must be [questions, rationales > 0, answers], got {conditionals.shape}")
    if (conditionals < 0).any() or not np.allclose(conditionals.sum(-1), 1.0, atol=1e-3):
        raise ValueError("p(Y | X Z) must not be negative and must sum to 1 over the answers")
    return conditionals.mean(1)


def decompose(conditionals: Float[np.ndarray, "M N A"]) -> Uncertainty:
    """The predictive's entropy, and its two parts."""
    total = entropy(posterior_predictive(conditionals))
    conditional = entropy(conditionals).mean(1)
    return Uncertainty(total, conditional, np.maximum(total - conditional, 0.0))


def vote_histogram(answers: Sequence[Hashable | None]) -> dict[Hashable, float]:
    """Answer -> its share of one question's readable answers, the commonest first; empty where none is readable."""
    votes = Counter(answer for answer in answers if answer is not None)
    return {answer: count / votes.total() for answer, count in votes.most_common()}


def vote_entropy(answers: Sequence[Sequence[Hashable | None]]) -> Float[np.ndarray, " M"]:
    """The entropy of every question's votes; log N where no answer is readable: nothing is known then."""
    histograms = [vote_histogram(row) for row in answers]
    return np.array(
        [
            entropy(np.array([*histogram.values()])) if histogram else np.log(len(row))
            for histogram, row in zip(histograms, answers, strict=True)
        ]
    )


def summarize(
    conditionals: Float[np.ndarray, "M N A"], truth: Int[np.ndarray, " M"] | None = None
) -> dict[str, Float[np.ndarray, " M"]]:
    """Of every question, by the names that results carry; a result is the mean.

    Args:
        conditionals: p(Y | X Z).
        truth: the right answer's index; None where it is not known.

    Returns:
        `predictive_entropy`, `conditional_entropy`, `mutual_information` (nats); with `truth` also
        `predictive_accuracy` (percent) and `predictive_log_loss`, - log p(right Y | X) in nats.
    """
    predictive, parts = posterior_predictive(conditionals), decompose(conditionals)
    found = {
        "predictive_entropy": parts.total,
        "conditional_entropy": parts.conditional,
        "mutual_information": parts.mutual_information,
    }
    if truth is not None:
        right = predictive[np.arange(len(truth)), truth]
        found["predictive_accuracy"] = 100.0 * (predictive.argmax(1) == truth)
        found["predictive_log_loss"] = -np.log(np.maximum(right, 1e-12))
    return found


def summarize_votes(answers: Sequence[Sequence[Hashable | None]], right: Sequence[bool]) -> dict[str, float]:
    """Where only answers are known: is the vote entropy large where the vote is wrong?

    Args:
        answers: `[M][N]`, None where unreadable.
        right: whether each question's majority answer is right.

    Returns:
        `vote_entropy` (nats), and, where there are such questions, `vote_entropy_right` and `vote_entropy_wrong`: its
        means over the questions answered rightly and wrongly.
    """
    entropies, correct = vote_entropy(answers), np.asarray(right, bool)
    parts = {
        "vote_entropy": entropies,
        "vote_entropy_right": entropies[correct],
        "vote_entropy_wrong": entropies[~correct],
    }
    return {name: float(values.mean()) for name, values in parts.items() if len(values)}
