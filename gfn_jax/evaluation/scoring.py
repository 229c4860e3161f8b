"""Log q and log R of completions that are given, in batches of one shape."""

import dataclasses
import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from gfn_jax.evaluation.rows import gather, parts
from gfn_jax.interfaces import Reward
from gfn_jax.models.language_model import LanguageModel
from gfn_jax.policy.constraint import Constraint, Rules
from gfn_jax.policy.score import score
from gfn_jax.policy.teacher import teacher_force
from gfn_jax.types import Query, Rollout, Tokens


def log_policy(model: LanguageModel, prompt: Tokens, completions: Rollout, rules: Rules) -> Float[Array, " B"]:
    """Log q(Z stop) at temperature 1, in nats, of B = Q * N completions, N for each of Q prompts."""
    return score(model, prompt, completions, rules).log_pf.sum(axis=1)


@dataclasses.dataclass(frozen=True)
class Scorer:
    """What models and a reward say of N given completions of each of M prompts, a tool writing none of their tokens.

    Attributes:
        reward: log R.
        rules: what may be written.
        batch: prompts at once.
    """

    reward: Reward
    rules: Rules
    batch: int

    def log_policy(
        self, model: LanguageModel, prompt: Tokens, ids: Int[np.ndarray, "M N T"], lengths: Int[np.ndarray, "M N"]
    ) -> Float[np.ndarray, "M N"]:
        """Log q(Z stop), at temperature 1, in nats."""
        found = [
            gather(_log_policy(model, *part, self.rules))[: count * lengths.shape[1]]
            for part, count in parts((prompt, ids, lengths), self.batch, model)
        ]
        return np.concatenate(found).astype(np.float64).reshape(lengths.shape)

    def log_reward(
        self, model: LanguageModel, query: Query, ids: Int[np.ndarray, "M N T"], lengths: Int[np.ndarray, "M N"]
    ) -> Float[np.ndarray, "M N"]:
        """Log R(Z stop), untempered, in nats; `model` is the reward's."""
        prepared = jax.jit(self.reward.prepare)(model)
        found = [
            gather(self._log_reward(model, prepared, *part, self.rules))[: count * lengths.shape[1]]
            for part, count in parts((query, ids, lengths), self.batch, model)
        ]
        return np.concatenate(found).astype(np.float64).reshape(lengths.shape)

    @functools.cached_property
    def _log_reward(self) -> Callable[..., Float[Array, " B"]]:
        """Compiled once for this reward, which may hold arrays: it is enclosed, since it need not be hashable."""

        @jax.jit
        def log_reward(model, prepared, query, ids, lengths, rules) -> Float[Array, " B"]:
            rollout = _rollout(ids, lengths, rules)
            log_reward = self.reward.log_reward(model, prepared, query, rollout.stopping())
            return jnp.where(rollout.stop, log_reward, 0.0).sum(axis=1)

        return log_reward


def padded(
    samples: Sequence[Sequence[Sequence[int]]], constraint: Constraint
) -> tuple[Int[np.ndarray, "M N T"], Int[np.ndarray, "M N"]]:
    """`[M][N]` sampled completions filled up with the stop, and their lengths."""
    ids = np.full((len(samples), len(samples[0]), constraint.horizon), constraint.stop_id, np.int32)
    for m, rows in enumerate(samples):
        for n, row in enumerate(rows):
            ids[m, n, : len(row)] = row
    return ids, np.array([[len(row) for row in rows] for rows in samples], np.int32)


def _rollout(ids: Int[Array, "M N T"], lengths: Int[Array, "M N"], rules: Rules) -> Rollout:
    return teacher_force(ids.reshape(-1, ids.shape[-1]), lengths.reshape(-1), rules)


@jax.jit
def _log_policy(model, prompt, ids, lengths, rules) -> Float[Array, " B"]:
    return log_policy(model, prompt, _rollout(ids, lengths, rules), rules)
