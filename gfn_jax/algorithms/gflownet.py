"""GFlowNet fine-tuning: sample from a behaviour mix, keep the best, balance the flow (Hu et al. 2024, section 3).

Each query gets N rows a step: N - R fresh ones, each from the policy itself, the policy at a temperature drawn
from an interval, or the policy mixed with a uniform; and R from the replay buffer, whose rewards are stored.
Everything here is pure and runs inside the one compiled step.
"""

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Float

from gfn_jax import replay
from gfn_jax.interfaces import Environment, Reward
from gfn_jax.models.config import ModelConfig
from gfn_jax.models.lora import Lora, LoraConfig, init_lora
from gfn_jax.objectives.mixture import Objective
from gfn_jax.policy.constraint import Constraint
from gfn_jax.policy.rollout import rollout
from gfn_jax.policy.score import score
from gfn_jax.sections import Count, Natural, Positive, Share, Temperature
from gfn_jax.types import Params, PyTree, Query, Trajectory, Weighted

# Streams of randomness within a step: fold_in(fold_in(root, step), STREAM), then a micro-batch's number.
SELECT, BEHAVIOR, SAMPLE, REPLAY, DROPOUT = range(5)


@dataclasses.dataclass(frozen=True)
class GFlowNetConfig:
    """What a step does.

    Attributes:
        queries: Q, queries a step.
        samples: N, rows a query.
        replay_samples: R of them drawn from the buffer.
        micro_batches: parts of whole queries that a step is computed in, to bound memory.
        tempered: probability that a fresh row is sampled at a drawn temperature.
        temperature_low, temperature_high: the interval it is drawn from.
        exploring: probability that a fresh row mixes in a uniform over allowed tokens.
        uniform_mix: the uniform's share in such a row.
        buffer_capacity: completions kept a query.
        buffer_tolerance: near-duplicates are closer than this share of their joint length.
        replay_mode: `uniform` or `reward` (in proportion to R).
        discovery_steps: first steps that only fill the buffer; nothing is learnt in them.
        reward_temperature_start, reward_temperature_end, reward_temperature_steps: its linear schedule.
        log_z_rate: learning rate of TB's log Z, as a multiple of the adapter's.
    """

    queries: Count
    samples: Count
    replay_samples: Natural = 0
    micro_batches: Count = 1
    tempered: Share = 0.0
    temperature_low: Temperature = 0.5
    temperature_high: Temperature = 2.0
    exploring: Share = 0.0
    uniform_mix: Share = 0.0
    buffer_capacity: Count = 50
    buffer_tolerance: Share = 0.25
    replay_mode: Literal["uniform", "reward"] = "reward"
    discovery_steps: Natural = 0
    reward_temperature_start: Temperature = 1.0
    reward_temperature_end: Temperature = 1.0
    reward_temperature_steps: Natural = 1
    log_z_rate: Positive = 100.0

    def __post_init__(self):
        if self.queries % self.micro_batches:
            raise ValueError(f"queries is {self.queries}; they do not divide into {self.micro_batches} micro_batches")
        if not 0 <= self.replay_samples < self.samples:
            raise ValueError(f"replay_samples is {self.replay_samples}; it must be less than samples, {self.samples}")
        if self.tempered + self.exploring > 1:
            raise ValueError(f"tempered + exploring is {self.tempered + self.exploring}; it must be at most 1")
        if self.temperature_low > self.temperature_high:
            raise ValueError(
                f"temperature_low is {self.temperature_low}; it must be at most temperature_high, "
                f"{self.temperature_high}"
            )

    @property
    def fresh_samples(self) -> int:
        """Rows a query that are sampled anew."""
        return self.samples - self.replay_samples


@struct.dataclass
class Trainable:
    """What the optimizer moves: the adapter and, for TB, log Z of every query (scaled by 1 / log_z_rate)."""

    lora: Lora
    log_z: Float[Array, " E"] | None


@struct.dataclass
class Constants:
    """What a run never changes: on the device, passed to the compiled step."""

    params: Params
    prepared: PyTree
    queries: Query
    query_log_weight: Float[Array, " E"]
    constraint: Constraint
    environment: Environment
    root: jax.Array


@struct.dataclass
class Batch:
    """What `collect` hands to `loss`: rows of whole queries, fresh ones first within a query."""

    query: Query
    trajectory: Trajectory
    row_mask: Bool[Array, " B"]


@dataclasses.dataclass(frozen=True)
class GFlowNet:
    """The algorithm: `init`, `select`, `collect` (`spread`, `sample`, `store`; no gradient), `loss` (pure).

    Attributes:
        model: the shape of base and policy.
        reward: log R of every prefix.
        objective: what is minimised.
        config: what a step does.
        dropout: rate at which the adapter's inputs are dropped.
        remat: recompute activations in the backward pass.
        copies: how often a query's prompt is computed, each time for its share of the query's rows; more than once
            where queries are fewer than the devices that share them. Nothing that is drawn depends on it, but for
            dropout on the prompt.
    """

    model: ModelConfig
    reward: Reward
    objective: Objective
    config: GFlowNetConfig
    dropout: float = 0.0
    remat: bool = False
    copies: int = 1

    def init(
        self, key: jax.Array, lora: LoraConfig, num_queries: int, horizon: int
    ) -> tuple[Trainable, replay.ReplayBuffer]:
        """A fresh adapter (the policy starts as the base) and an empty buffer."""
        learns_log_z = any(name == "tb" for name, _ in self.objective.terms)
        log_z = jnp.zeros((num_queries,)) if learns_log_z else None
        buffer = replay.init(replay.padded(num_queries), self.config.buffer_capacity, horizon)
        return Trainable(lora=init_lora(key, self.model, lora), log_z=log_z), buffer

    def select(self, constants: Constants, key: jax.Array) -> Query:
        """Q distinct queries, drawn by weight without replacement (Gumbel top-k)."""
        weight = constants.query_log_weight
        _, chosen = jax.lax.top_k(weight + jax.random.gumbel(key, weight.shape), self.config.queries)
        return jax.tree.map(lambda x: x[chosen], constants.queries)

    def spread(self, query: Query) -> Query:
        """[Q * copies]: every query as often as its rows are shared out, copies adjacent as its rows are."""
        return query if self.copies == 1 else jax.tree.map(lambda x: jnp.repeat(x, self.copies, axis=0), query)

    def behavior(self, key: jax.Array, rows: int) -> tuple[Float[Array, " B"], Float[Array, " B"]]:
        """Each fresh row's temperature and its share of the uniform."""
        source, drawn = jax.random.split(key)
        source = jax.random.uniform(source, (rows,))
        low, high = self.config.temperature_low, self.config.temperature_high
        temperature = jax.random.uniform(drawn, (rows,), minval=low, maxval=high)
        tempered = source < self.config.tempered
        exploring = ~tempered & (source < self.config.tempered + self.config.exploring)
        return jnp.where(tempered, temperature, 1.0), jnp.where(exploring, self.config.uniform_mix, 0.0)

    def sample(
        self, constants: Constants, trainable: Trainable, query: Query, keys: dict[int, jax.Array]
    ) -> Trajectory:
        """Samples fresh rows of every query (as `spread` gives them) and scores their prefixes."""
        rows = query.example_id.shape[0] // self.copies * self.config.fresh_samples
        temperature, mix = self.behavior(keys[BEHAVIOR], rows)
        sampled = rollout(
            self.model,
            constants.params,
            trainable.lora,
            query.prompt,
            constants.constraint,
            constants.environment,
            keys[SAMPLE],
            temperature,
            mix,
        )
        log_reward = self.reward.log_reward(constants.params, constants.prepared, query, sampled)
        return Trajectory(rollout=sampled, log_reward=log_reward)

    def store(
        self,
        buffer: replay.ReplayBuffer,
        query: Query,
        fresh: Trajectory,
        key: jax.Array,
        reward_temperature: Float[Array, ""],
    ) -> tuple[Batch, replay.ReplayBuffer, dict[str, Weighted]]:
        """Puts fresh rows into the buffer, and adds rows from there to the batch."""
        config = self.config
        queries = query.example_id.shape[0]
        buffer = replay.add(buffer, query.example_id, fresh, config.buffer_tolerance)
        metrics = describe(fresh)
        row_mask = jnp.ones((queries * config.fresh_samples,), bool)
        if config.replay_samples:
            replayed, found = replay.sample(
                buffer, key, query.example_id, config.replay_samples, config.replay_mode, reward_temperature
            )
            metrics["replay_log_reward"] = describe(replayed)["log_reward"]
            fresh, row_mask = jax.tree.map(
                lambda new, old: jnp.concatenate(
                    [x.reshape(queries, -1, *x.shape[1:]) for x in (new, old)], axis=1
                ).reshape(-1, *new.shape[1:]),
                (fresh, row_mask),
                (replayed, found),
            )
        return Batch(query=query, trajectory=fresh, row_mask=row_mask), buffer, metrics

    def collect(
        self,
        constants: Constants,
        trainable: Trainable,
        buffer: replay.ReplayBuffer,
        query: Query,
        keys: dict[int, jax.Array],
        reward_temperature: Float[Array, ""],
    ) -> tuple[Batch, replay.ReplayBuffer, dict[str, Weighted]]:
        """`spread` and `sample`, then `store`."""
        fresh = self.sample(constants, trainable, self.spread(query), keys)
        return self.store(buffer, query, fresh, keys[REPLAY], reward_temperature)

    def weights(self, batch: Batch) -> dict[str, Float[Array, ""]]:
        """The objective's normalisers on these rows; they add up over micro-batches."""
        return self.objective.weights(batch.trajectory.rollout, batch.row_mask)

    def loss(
        self,
        trainable: Trainable,
        constants: Constants,
        batch: Batch,
        weights: dict[str, Float[Array, ""]],
        reward_temperature: Float[Array, ""],
        dropout: jax.Array,
    ) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
        """This micro-batch's share of the loss, and of each term of it."""
        scores = score(
            self.model,
            constants.params,
            trainable.lora,
            self.spread(batch.query).prompt,
            batch.trajectory.rollout,
            constants.constraint,
            dropout=(dropout, self.dropout) if self.dropout else None,
            remat=self.remat,
        )
        log_z = None
        if trainable.log_z is not None:
            log_z = jnp.repeat(trainable.log_z[batch.query.example_id], self.config.samples) * self.config.log_z_rate
        measured = self.objective.measure(batch.trajectory, scores, reward_temperature, batch.row_mask, log_z)
        loss = self.objective.loss(measured, weights)
        terms = {name: term.total / jnp.maximum(weights[name], 1e-9) for name, term in measured.items()}
        return loss, terms


def describe(trajectory: Trajectory) -> dict[str, Weighted]:
    """Means over finished rows: log R where they stopped, length of Z; the share that finished; of finite rewards."""
    sampled = trajectory.rollout
    stop = sampled.action_mask & ~sampled.token_mask
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
