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
from jaxtyping import Array, Bool, Float, Int

from gfn_jax import replay
from gfn_jax.algorithms.entry import AlgorithmEntry, SamplingConfig
from gfn_jax.interfaces import Reward
from gfn_jax.models.language_model import LanguageModel
from gfn_jax.models.lora import Lora, LoraConfig, init_lora
from gfn_jax.models.partition import split_rows
from gfn_jax.objectives.mixture import Objective
from gfn_jax.policy.constraint import Constants
from gfn_jax.policy.rollout import Behavior, rollout
from gfn_jax.policy.score import score
from gfn_jax.sections import Count, Natural, Positive, Share, Temperature
from gfn_jax.types import Collected, Keys, Query, Sampled, TrainState, Trajectory, Weighted


@dataclasses.dataclass(frozen=True)
class GFlowNetConfig(SamplingConfig):
    """What a step does.

    Attributes:
        replay_samples: R of the N rows of a query are drawn from the buffer.
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

    replay_samples: Natural
    tempered: Share
    temperature_low: Temperature
    temperature_high: Temperature
    exploring: Share
    uniform_mix: Share
    buffer_capacity: Count
    buffer_tolerance: Share
    replay_mode: Literal["uniform", "reward"]
    discovery_steps: Natural
    reward_temperature_start: Temperature
    reward_temperature_end: Temperature
    reward_temperature_steps: Natural
    log_z_rate: Positive

    def __post_init__(self):
        super().__post_init__()
        if not 0 <= self.replay_samples < self.samples:
            raise ValueError(f"replay_samples is {self.replay_samples}; it must be less than samples, {self.samples}")
        if self.tempered + self.exploring > 1:
            raise ValueError(f"tempered + exploring is {self.tempered + self.exploring}; it must be at most 1")
        if self.temperature_low > self.temperature_high:
            high = self.temperature_high
            raise ValueError(f"temperature_low is {self.temperature_low}; it must be at most temperature_high, {high}")

    @property
    def fresh_samples(self) -> int:
        """Rows a query that are sampled anew."""
        return self.samples - self.replay_samples

    @property
    def first_update(self) -> int:
        """The first step that learns: those before only fill the buffer."""
        return self.discovery_steps

    @property
    def target_temperature(self) -> float:
        """T at the end of the schedule."""
        return self.reward_temperature_end

    def reward_temperature(self, step: Int[Array, ""] | int) -> Float[Array, ""]:
        """T of the step after `step` finished ones: from its start at step 0 to its end, linearly."""
        start, end, steps = self.reward_temperature_start, self.reward_temperature_end, self.reward_temperature_steps
        share = jnp.clip(jnp.asarray(step, jnp.float32) / steps, 0.0, 1.0) if steps else jnp.ones(())
        return start + (end - start) * share


@struct.dataclass
class Trainable:
    """What the optimizer moves: the adapter and, for TB, log Z of every query (scaled by 1 / log_z_rate)."""

    lora: Lora
    log_z: Float[Array, " E"] | None


@struct.dataclass
class Batch:
    """Rows of whole queries, fresh ones first within a query; their rewards are tempered, log R / T."""

    query: Query
    trajectory: Trajectory
    row_mask: Bool[Array, " B"]


@dataclasses.dataclass(frozen=True)
class GFlowNet:
    """GFlowNet fine-tuning, as `interfaces.Interruptible` has it.

    Attributes:
        reward: log R of every prefix.
        objective: what is minimised.
        config: what a step does.
        lora: the adapter's shape, and the rate at which its inputs are dropped.
        remat: recompute activations in the backward pass.
        copies: how often a query's prompt is computed, each time for its share of the query's rows; more than once
            where queries are fewer than the devices that share them. Nothing that is drawn depends on it, but for
            dropout on the prompt.
    """

    reward: Reward
    objective: Objective
    config: GFlowNetConfig
    lora: LoraConfig
    remat: bool = False
    copies: int = 1

    def init(self, key: jax.Array, constants: Constants) -> tuple[Trainable, replay.ReplayBuffer]:
        """A fresh adapter (the policy starts as the base) and an empty buffer."""
        queries, horizon = len(constants.queries.example_id), constants.rules.constraint.horizon
        learns_log_z = any(name == "tb" for name, _ in self.objective.terms)
        log_z = jnp.zeros((queries,)) if learns_log_z else None
        buffer = replay.init(replay.padded(queries), self.config.buffer_capacity, horizon)
        return Trainable(lora=init_lora(key, constants.base.shape, self.lora), log_z=log_z), buffer

    def policy(self, trainable: Trainable, constants: Constants) -> LanguageModel:
        """The policy."""
        return constants.base.adapted(trainable.lora)

    def remember(
        self, memory: replay.ReplayBuffer, example_id: Int[Array, " Q"], trajectory: Trajectory
    ) -> replay.ReplayBuffer:
        """The buffer with completions that somebody else wrote, rows of one query adjacent."""
        return replay.add(memory, example_id, trajectory, self.config.buffer_tolerance)

    def collect(self, state: TrainState, constants: Constants, keys: Keys) -> Collected:
        """Fresh rows, and some from the buffer, which has taken the fresh ones in."""
        return self.store(state, constants, self.sample(state, constants, keys), keys)

    def sample(self, state: TrainState, constants: Constants, keys: Keys) -> Sampled:
        """Samples fresh rows of Q queries and scores their prefixes, micro-batch after micro-batch."""
        queries = self.select(constants, keys.select)
        queries = jax.tree.map(lambda x: x.reshape(self.config.micro_batches, -1, *x.shape[1:]), queries)
        policy = self.policy(state.trainable, constants)

        def one(_: None, part: tuple[Array, Query]) -> tuple[None, Trajectory]:
            query = jax.tree.map(split_rows, self.spread(part[1]))
            own = keys.part(part[0])
            behavior = self.behavior(own.behavior, query.example_id.shape[0] // self.copies * self.config.fresh_samples)
            sampled = rollout(policy, query.prompt, constants.rules, behavior, own.sample)
            return None, Trajectory(sampled, self.reward.log_reward(constants.base, constants.prepared, query, sampled))

        _, trajectory = jax.lax.scan(one, None, (jnp.arange(self.config.micro_batches), queries))
        return Sampled(queries, trajectory)

    def select(self, constants: Constants, key: jax.Array) -> Query:
        """Q distinct queries, drawn by weight without replacement (Gumbel top-k)."""
        weight = constants.query_log_weight
        _, chosen = jax.lax.top_k(weight + jax.random.gumbel(key, weight.shape), self.config.queries)
        return jax.tree.map(lambda x: x[chosen], constants.queries)

    def spread(self, query: Query) -> Query:
        """[Q * copies]: every query as often as its rows are shared out, copies adjacent as its rows are."""
        return query if self.copies == 1 else jax.tree.map(lambda x: jnp.repeat(x, self.copies, axis=0), query)

    def behavior(self, key: jax.Array, rows: int) -> Behavior:
        """Each fresh row's temperature and its share of the uniform."""
        source, drawn = jax.random.split(key)
        source = jax.random.uniform(source, (rows,))
        low, high = self.config.temperature_low, self.config.temperature_high
        temperature = jax.random.uniform(drawn, (rows,), minval=low, maxval=high)
        tempered = source < self.config.tempered
        exploring = ~tempered & (source < self.config.tempered + self.config.exploring)
        return Behavior(jnp.where(tempered, temperature, 1.0), jnp.where(exploring, self.config.uniform_mix, 0.0))

    def store(self, state: TrainState, constants: Constants, sampled: Sampled, keys: Keys) -> Collected:
        """Puts fresh rows into the buffer and adds rows from there, micro-batch after micro-batch."""
        temperature = self.config.reward_temperature(state.step)

        def one(buffer: replay.ReplayBuffer, part: tuple) -> tuple:
            number, query, fresh = part
            batch, buffer, described = self.recall(buffer, query, fresh, keys.part(number).replay, temperature)
            return buffer, (batch, described)

        given = (jnp.arange(self.config.micro_batches), sampled.query, sampled.trajectory)
        batches: Batch
        described: dict[str, Weighted]
        buffer, (batches, described) = jax.lax.scan(one, state.memory, given)
        held = replay.statistics(buffer, len(constants.queries.example_id))
        metrics = {
            **{name: Weighted(value.total.sum(), value.weight.sum()).mean() for name, value in described.items()},
            **{f"buffer_{name}": value for name, value in held.items()},
            "reward_temperature": temperature,
        }
        return Collected(batches, buffer, metrics)

    def recall(
        self,
        buffer: replay.ReplayBuffer,
        query: Query,
        fresh: Trajectory,
        key: jax.Array,
        reward_temperature: Float[Array, ""],
    ) -> tuple[Batch, replay.ReplayBuffer, dict[str, Weighted]]:
        """One micro-batch: its fresh rows into the buffer, others from there beside them, and what they are like."""
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
        tempered = Trajectory(fresh.rollout, fresh.log_reward / reward_temperature)
        return Batch(query, tempered, row_mask), buffer, metrics

    def weights(self, batch: Batch) -> dict[str, Float[Array, ""]]:
        """The objective's normalisers on these rows."""
        return self.objective.weights(batch.trajectory.rollout, batch.row_mask)

    def loss(
        self,
        trainable: Trainable,
        constants: Constants,
        batch: Batch,
        weights: dict[str, Float[Array, ""]],
        key: jax.Array,
    ) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
        """This micro-batch's share of the loss, and of each term of it."""
        scores = score(
            self.policy(trainable, constants),
            self.spread(batch.query).prompt,
            batch.trajectory.rollout,
            constants.rules,
            dropout=(key, self.lora.dropout) if self.lora.dropout else None,
            remat=self.remat,
        )
        log_z = None
        if trainable.log_z is not None:
            log_z = jnp.repeat(trainable.log_z[batch.query.example_id], self.config.samples) * self.config.log_z_rate
        measured = self.objective.measure(batch.trajectory, scores, 1.0, batch.row_mask, log_z)
        loss = self.objective.loss(measured, weights)
        return loss, {name: Weighted(term.total, weights[name]).mean() for name, term in measured.items()}


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


ALGORITHM = AlgorithmEntry(
    section="gflownet",
    config=GFlowNetConfig,
    make=lambda config, run: GFlowNet(run.reward, run.objective, config, run.lora, run.remat, run.copies),
    objective=True,
)
