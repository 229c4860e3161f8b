"""How far a policy is from the exact posterior over the hidden sentence of a generated story.

The sentences Z_1 ... Z_K that the generator could write after X are listed. With R(Z) = p_LM(Z Y | X),

    p(Z_k) = R(Z_k)^(1/T) / sum_j R(Z_j)^(1/T)        the frozen base's posterior, what the policy is trained towards
    g(Z_k) = p(Z_k | X, Y)                            the generator's own, 0 for the sentences that do not fit Y
    q(Z_k)                                            the policy, which may also write sentences that are not listed

and, averaged over stories, KL(p | q) = sum p (log p - log q) and KL(g | q), which are finite and which what q spends on
unlisted sentences makes larger; consistency = sum_k q(Z_k) [g(Z_k) > 0]; listed = sum_k q(Z_k). Nothing is sampled.
"""

import dataclasses
from typing import Protocol

import numpy as np
from jaxtyping import Bool, Float


class Enumerable(Protocol):
    """A task that can list the hidden sentences of a story."""

    def candidates(self, split: str, example: int) -> dict[tuple[int, ...], float]: ...


@dataclasses.dataclass(frozen=True)
class Listed:
    """The listed sentences of M stories, filled up to K each."""

    ids: np.ndarray  # [M, K, T] tokens of Z
    lengths: np.ndarray  # [M, K]
    mask: Bool[np.ndarray, "M K"]
    generator: Float[np.ndarray, "M K"]


def list_sentences(task: Enumerable, split: str, stories: int, horizon: int) -> Listed:
    """The listed sentences of a split's first stories."""
    tables = [task.candidates(split, example) for example in range(stories)]
    most = max(map(len, tables))
    ids = np.zeros((stories, most, horizon), np.int32)
    lengths, generator = np.zeros((stories, most), np.int32), np.zeros((stories, most))
    for example, table in enumerate(tables):
        for k, (row, probability) in enumerate(table.items()):
            ids[example, k, : len(row)], lengths[example, k], generator[example, k] = row, len(row), probability
        # Rows that fill up repeat the first, and count for nothing.
        ids[example, len(table) :], lengths[example, len(table) :] = ids[example, 0], lengths[example, 0]
    mask = np.arange(most) < np.array([len(table) for table in tables])[:, None]
    return Listed(ids, lengths, mask, generator)


def log_posterior(
    log_reward: Float[np.ndarray, "M K"], mask: Bool[np.ndarray, "M K"], temperature: float
) -> Float[np.ndarray, "M K"]:
    """Log p: R^(1/T), normalised over the listed sentences."""
    tempered = np.where(mask, log_reward / temperature, -np.inf)
    return tempered - np.logaddexp.reduce(tempered, axis=1, keepdims=True)


def distances(
    log_q: Float[np.ndarray, "M K"], log_p: Float[np.ndarray, "M K"], listed: Listed
) -> dict[str, Float[np.ndarray, " M"]]:
    """How far q is for each story: `kl` and `kl_generator` in nats, `consistency` and `listed` in percent."""
    q = np.where(listed.mask, np.exp(log_q), 0.0)
    return {
        "kl": divergence(np.exp(log_p), log_q),
        "kl_generator": divergence(listed.generator, log_q),
        "consistency": 100 * (q * (listed.generator > 0)).sum(1),
        "listed": 100 * q.sum(1),
    }


def divergence(p: Float[np.ndarray, "M K"], log_q: Float[np.ndarray, "M K"]) -> Float[np.ndarray, " M"]:
    """sum_k p (log p - log q) of every story, 0 log 0 being 0, in nats."""
    counts = p > 0
    return (p * (np.log(np.where(counts, p, 1.0)) - np.where(counts, log_q, 0.0))).sum(axis=1)
