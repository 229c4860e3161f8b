"""How far a policy is from the exact posterior over the hidden sentence of a generated story.

The sentences Z_1 ... Z_K that the generator could write after X are listed. With R(Z) = p_LM(Z Y | X),

    p(Z_k) = R(Z_k)^(1/T) / sum_j R(Z_j)^(1/T)        the frozen base's posterior, what the policy is trained towards
    g(Z_k) = p(Z_k | X, Y)                            the generator's own, 0 for the sentences that do not fit Y
    q(Z_k)                                            the policy, which may also write sentences that are not listed

and, averaged over stories, KL(p | q) = sum p (log p - log q) and KL(g | q), which are finite and which what q spends on
unlisted sentences makes larger; consistency = sum_k q(Z_k) [g(Z_k) > 0]; listed = sum_k q(Z_k). Nothing is sampled.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from gfn_jax.environments import NoTool
from gfn_jax.evaluation.rows import gather, parts
from gfn_jax.interfaces import Reward
from gfn_jax.models.config import ModelConfig
from gfn_jax.models.lora import Lora
from gfn_jax.policy.constraint import Constraint
from gfn_jax.policy.score import score
from gfn_jax.policy.teacher import teacher_force
from gfn_jax.types import Params, Query, Rollout, Tokens


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


@dataclasses.dataclass(frozen=True)
class Scorer:
    """Log q and log R of given completions, in batches of one shape.

    Attributes:
        model: the shape of base and policy.
        reward: log R.
        constraint: what may be written.
        batch: stories at once.
    """

    model: ModelConfig
    reward: Reward
    constraint: Constraint
    batch: int

    def log_policy(
        self, params: Params, lora: Lora | None, prompt: Tokens, ids: np.ndarray, lengths: np.ndarray
    ) -> Float[np.ndarray, "M K"]:
        """Log q(Z stop) of [M, K, T] completions of M prompts, at temperature 1, in nats."""
        found = [
            gather(_log_policy(self.model, params, lora, *part, self.constraint))[: count * lengths.shape[1]]
            for part, count in parts((prompt, ids, lengths), self.batch, params)
        ]
        return self._joined(found, lengths.shape)

    def log_reward(
        self, params: Params, query: Query, ids: np.ndarray, lengths: np.ndarray
    ) -> Float[np.ndarray, "M K"]:
        """Log R(Z stop) of the same, untempered."""
        prepared = self.reward.prepare(params)
        found = [
            gather(self._log_reward(params, prepared, *part, self.constraint))[: count * lengths.shape[1]]
            for part, count in parts((query, ids, lengths), self.batch, params)
        ]
        return self._joined(found, lengths.shape)

    @functools.cached_property
    def _log_reward(self) -> Callable[..., Float[Array, " B"]]:
        """Compiled once for this reward, which may hold arrays: it is enclosed, since it need not be hashable."""

        @jax.jit
        def log_reward(params, prepared, query, ids, lengths, constraint) -> Float[Array, " B"]:
            rollout = _rollout(ids, lengths, constraint)
            stop = rollout.action_mask & ~rollout.token_mask
            return jnp.where(stop, self.reward.log_reward(params, prepared, query, rollout), 0.0).sum(axis=1)

        return log_reward

    def _joined(self, found: list[np.ndarray], shape: tuple[int, ...]) -> Float[np.ndarray, "M K"]:
        return np.concatenate(found).astype(np.float64).reshape(shape)


def _rollout(ids: Int[Array, "M K T"], lengths: Int[Array, "M K"], constraint: Constraint) -> Rollout:
    return teacher_force(ids.reshape(-1, ids.shape[-1]), lengths.reshape(-1), constraint, NoTool())


@functools.partial(jax.jit, static_argnums=0)
def _log_policy(model, params, lora, prompt, ids, lengths, constraint) -> Float[Array, " B"]:
    return score(model, params, lora, prompt, _rollout(ids, lengths, constraint), constraint).log_pf.sum(axis=1)


def log_posterior(
    log_reward: Float[np.ndarray, "M K"], mask: Bool[np.ndarray, "M K"], temperature: float
) -> Float[np.ndarray, "M K"]:
    """Log p: R^(1/T), normalised over the listed sentences."""
    tempered = np.where(mask, log_reward / temperature, -np.inf)
    return tempered - np.logaddexp.reduce(tempered, axis=1, keepdims=True)


def distances(log_q: Float[np.ndarray, "M K"], log_p: Float[np.ndarray, "M K"], listed: Listed) -> dict[str, float]:
    """How far q is, averaged over stories: `kl` and `kl_generator` in nats, `consistency` and `listed` in percent."""
    q = np.where(listed.mask, np.exp(log_q), 0.0)
    return {
        "kl": float(divergence(np.exp(log_p), log_q).mean()),
        "kl_generator": float(divergence(listed.generator, log_q).mean()),
        "consistency": 100 * float((q * (listed.generator > 0)).sum(1).mean()),
        "listed": 100 * float(q.sum(1).mean()),
    }


def divergence(p: Float[np.ndarray, "M K"], log_q: Float[np.ndarray, "M K"]) -> Float[np.ndarray, " M"]:
    """sum_k p (log p - log q) of every story, 0 log 0 being 0, in nats."""
    counts = p > 0
    return (p * (np.log(np.where(counts, p, 1.0)) - np.where(counts, log_q, 0.0))).sum(axis=1)
