"""What every algorithm says of its rows, so that the failures which the literature reports are seen while they begin.

    distinct, first_token_entropy   collapse onto few completions, or onto few beginnings (RapTB, arXiv:2603.00454)
    length_bias                     the correlation of length and log R/T - log q: 0 where q is proportional to R^(1/T)
    valid, invalid_reward           how many rows are right, and the share of the reward that wrong ones get: what a
                                    policy that follows the reward will be wrong about (where the task can tell)
    log_z, ess                      the importance-sampled estimate of log Z, and how much of a sample carries it
    elbo                            the mean of log R/T - log q: log Z - KL(q || posterior), of the policy's own rows

What is measured over micro-batches adds up leaf by leaf, and `mean()` makes a number of the sum.
"""

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Float, Int

from gfn_jax.types import Rollout, Trajectory, Weighted

LARGEST_LOG_RATIO = 20.0  # of importance weights, in nats: e^20 of them still add up in float32


@struct.dataclass
class Correlation:
    """Pearson's, of pairs that add up: their number, sums, and sums of products."""

    count: Float[Array, ""]
    first: Float[Array, ""]
    second: Float[Array, ""]
    squares: Float[Array, " 3"]  # of first x first, second x second, first x second

    @classmethod
    def of(cls, first: Float[Array, " B"], second: Float[Array, " B"], mask: Bool[Array, " B"]) -> "Correlation":
        """That of the pairs under `mask`."""
        first, second = jnp.where(mask, first, 0.0), jnp.where(mask, second, 0.0)
        squares = jnp.stack([(first * first).sum(), (second * second).sum(), (first * second).sum()])
        return cls(mask.sum(dtype=jnp.float32), first.sum(), second.sum(), squares)

    def mean(self) -> Float[Array, ""]:
        """The correlation, in [-1, 1]; 0 where one of the two does not vary."""
        count = jnp.maximum(self.count, 1.0)
        means = jnp.stack([self.first**2, self.second**2, self.first * self.second]) / count
        first, second, both = self.squares - means
        scale = jnp.sqrt(jnp.maximum(first, 0.0) * jnp.maximum(second, 0.0))
        varies = scale > 1e-5 * jnp.sqrt(self.squares[0] * self.squares[1]) + 1e-12
        return jnp.clip(jnp.where(varies, both / jnp.where(varies, scale, 1.0), 0.0), -1.0, 1.0)


@struct.dataclass
class EffectiveSize:
    """The effective sample size (sum w)^2 / sum w^2 of importance weights, as a share of their number."""

    count: Float[Array, ""]
    total: Float[Array, ""]
    squares: Float[Array, ""]

    @classmethod
    def of(cls, log_weight: Float[Array, " B"], mask: Bool[Array, " B"]) -> "EffectiveSize":
        """That of the weights under `mask`, each cut off at e^20 and e^-20."""
        weight = jnp.exp(jnp.clip(jnp.where(mask, log_weight, 0.0), -LARGEST_LOG_RATIO, LARGEST_LOG_RATIO))
        weight = jnp.where(mask, weight, 0.0)
        return cls(mask.sum(dtype=jnp.float32), weight.sum(), (weight**2).sum())

    def mean(self) -> Float[Array, ""]:
        """The share; 1 where there was nothing to weigh."""
        share = self.total**2 / jnp.maximum(self.count * self.squares, 1e-30)
        return jnp.where(self.count > 0, share, 1.0)


@struct.dataclass
class Norm:
    """A Euclidean norm, by its square."""

    square: Float[Array, ""]

    def mean(self) -> Float[Array, ""]:
        """The norm."""
        return jnp.sqrt(self.square)


def of_rows(mask: Bool[Array, " B"], values: Float[Array, " B"]) -> Weighted:
    """A mean over the rows under `mask`."""
    return Weighted(jnp.where(mask, values, 0.0).sum(), mask.sum(dtype=jnp.float32))


def describe(trajectory: Trajectory) -> dict[str, Weighted]:
    """Means over finished rows: log R where they stopped, length of Z; the share that finished; of finite rewards."""
    sampled = trajectory.rollout
    stop = sampled.stop
    finished = stop.any(axis=1)
    count = finished.sum(dtype=jnp.float32)
    log_reward = jnp.where(stop, trajectory.log_reward, 0.0).sum()
    length = (finished[:, None] & sampled.token_mask).sum(dtype=jnp.float32)
    finite = (sampled.state_mask & jnp.isfinite(trajectory.log_reward)).sum(dtype=jnp.float32)
    return {
        "log_reward": Weighted(log_reward, count),
        "length": Weighted(length, count),
        "finished": Weighted(count, jnp.asarray(finished.shape[0], jnp.float32)),
        "finite_rewards": Weighted(finite, sampled.state_mask.sum(dtype=jnp.float32)),
    }


def describe_samples(sampled: Rollout, log_weight: Float[Array, " B"], queries: int) -> dict[str, Weighted]:
    """What the fresh rows of each query are like together, averaged over the queries.

    Args:
        sampled: the rows of one query adjacent.
        log_weight: log of R^(1/T) / q_behaviour in nats; -inf drops a row.
        queries: whose rows they are.

    Returns:
        `distinct`: the share of a query's rows that are not the same as an earlier one. `first_token_entropy`: of the
        first tokens' frequencies, in nats. `log_z`: log of the mean of R^(1/T) / q_behaviour, unbiased before the
        logarithm. `ess`: the effective sample size of these weights, as a share of the rows.
    """
    hashes = row_hash(sampled).reshape(queries, -1)
    samples = hashes.shape[1]
    ordered = jnp.sort(hashes, axis=1)
    distinct = 1 + (ordered[:, 1:] != ordered[:, :-1]).sum(axis=1, dtype=jnp.float32)
    first = jnp.where(sampled.token_mask[:, 0], sampled.completion[:, 0], -1).reshape(queries, samples)
    alike = (first[:, :, None] == first[:, None, :]).sum(axis=2, dtype=jnp.float32)
    entropy = jnp.log(samples / alike).mean(axis=1)
    log_weight = log_weight.reshape(queries, samples)
    top = log_weight.max(axis=1)
    found = top > -jnp.inf
    top = jnp.where(found, top, 0.0)
    weight = jnp.exp(log_weight - top[:, None])
    log_z = top + jnp.log(jnp.where(found, weight.mean(axis=1), 1.0))
    ess = weight.sum(axis=1) ** 2 / jnp.maximum(samples * (weight**2).sum(axis=1), 1e-30)
    every = jnp.ones((queries,), bool)
    return {
        "distinct": of_rows(every, distinct / samples),
        "first_token_entropy": of_rows(every, entropy),
        "log_z": of_rows(found, log_z),
        "ess": of_rows(found, ess),
    }


def describe_validity(
    log_reward: Float[Array, " B"], valid: Bool[Array, " B"], used: Bool[Array, " B"], queries: int
) -> dict[str, Weighted]:
    """How many fresh rows are valid; and what share of a query's sampled R^(1/T), each distinct or not, is not theirs.

    Args:
        log_reward: log R/T in nats; the rows of one query adjacent.
        valid: whether the task calls the completion right.
        used: the rows that count.
        queries: whose rows they are.
    """
    by_query = (x.reshape(queries, -1) for x in (log_reward, valid, used & jnp.isfinite(log_reward)))
    level, right, counts = by_query
    found = counts.any(axis=1)
    share = jax.nn.softmax(jnp.where(found[:, None], jnp.where(counts, level, -jnp.inf), 0.0), axis=1)
    return {
        "valid": of_rows(used, valid.astype(jnp.float32)),
        "invalid_reward": of_rows(found, jnp.where(right, 0.0, share).sum(axis=1)),
    }


def row_hash(sampled: Rollout) -> Int[Array, " B"]:
    """A number of 31 bits for each completion, the same for the same tokens."""
    token = jnp.where(sampled.token_mask, sampled.completion + 1, 0).astype(jnp.uint32)

    def mix(state: Array, column: Array) -> tuple[Array, None]:
        state = (state ^ column) * jnp.uint32(0x85EBCA6B)
        return state ^ (state >> 15), None

    state, _ = jax.lax.scan(mix, jnp.full(token.shape[:1], 0x9E3779B9, jnp.uint32), token.T)
    return (state >> 1).astype(jnp.int32)


def describe_fit(
    sampled: Rollout, excess: Float[Array, " B"], mask: Bool[Array, " B"]
) -> dict[str, Weighted | Correlation]:
    """How the policy and the tempered reward agree on finished rows, whoever drew them.

    Args:
        sampled: the rows.
        excess: log R/T - log q of each, in nats, without gradient.
        mask: the rows that count.
    """
    length = sampled.token_mask.sum(axis=1, dtype=jnp.float32)
    return {"elbo": of_rows(mask, excess), "length_bias": Correlation.of(length, excess, mask)}
