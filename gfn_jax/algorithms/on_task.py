"""What algorithms that sample on a task have in common: fresh rows of drawn queries, their rewards, and a buffer.

Each query gets N rows a step, all fresh (`OnPolicy`), or N - R fresh ones and R from the replay buffer, whose rewards
are stored (`OffPolicy`). Everything here is pure and runs inside the one compiled step. An algorithm of its own says
what it trains beside the adapter (`init`), what a row weighs (`weights`) and the loss.
"""

import abc
import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Float, Int, Shaped

from gfn_jax import replay as buffers
from gfn_jax.algorithms.diagnostics import (
    EffectiveSize,
    describe,
    describe_fit,
    describe_samples,
    describe_validity,
    of_rows,
)
from gfn_jax.algorithms.entry import Ingredients
from gfn_jax.algorithms.sampling import ReplayConfig
from gfn_jax.interfaces import Measure
from gfn_jax.models.language_model import LanguageModel
from gfn_jax.models.lora import Lora, init_lora
from gfn_jax.models.partition import split_rows
from gfn_jax.policy.constraint import Constants
from gfn_jax.policy.rollout import Behavior, rollout
from gfn_jax.policy.score import score_states
from gfn_jax.types import Collected, Keys, PolicyScores, PyTree, Query, Sampled, TrainState, Trajectory, Weighted


@struct.dataclass
class Adapter:
    """What the optimizer moves where that is the policy alone."""

    lora: Lora


@struct.dataclass
class Batch:
    """Rows of whole queries, fresh ones first within a query; their rewards are tempered, log R / T.

    Attributes:
        row_mask: False drops a row, whatever it holds.
        fresh: the rows that were sampled in this step.
        log_behavior: log-probability (nats) of the completion under the policy that drew it.
        known: whether that is known: of what somebody else wrote it is not.
        own: whatever else the algorithm's loss needs of the step, or None.
    """

    query: Query
    trajectory: Trajectory
    row_mask: Bool[Array, " B"]
    fresh: Bool[Array, " B"]
    log_behavior: Float[Array, " B"]
    known: Bool[Array, " B"]
    own: PyTree = None

    @classmethod
    def of(cls, query: Query, tempered: Trajectory) -> "Batch":
        """One of fresh rows alone."""
        every = jnp.ones((tempered.log_reward.shape[0],), bool)
        return cls(query, tempered, every, every, tempered.rollout.log_behavior.sum(axis=1), every)

    @property
    def log_reward(self) -> Float[Array, " B"]:
        """Log R/T of each completion in nats; 0 where it did not stop."""
        return jnp.where(self.trajectory.rollout.stop, self.trajectory.log_reward, 0.0).sum(axis=1)

    @property
    def log_weight(self) -> Float[Array, " B"]:
        """Log of R^(1/T) / q_behaviour of each completion in nats; -inf where the row does not count."""
        return jnp.where(self.used, self.log_reward - self.log_behavior, -jnp.inf)

    def excess(self, scores: PolicyScores) -> Float[Array, " B"]:
        """Log R/T - log q of each completion in nats, without gradient: log Z in every row where q is the posterior."""
        return jax.lax.stop_gradient(self.log_reward - scores.log_pf.sum(axis=1))

    @property
    def used(self) -> Bool[Array, " B"]:
        """The rows that stopped and are not dropped."""
        return self.row_mask & self.trajectory.rollout.stop.any(axis=1)


@dataclasses.dataclass(frozen=True)
class OnPolicy(abc.ABC):
    """All rows are fresh ones, of the policy itself; nothing is remembered.

    Attributes:
        given: reward, sampling, adapter.
    """

    given: Ingredients

    @property
    def updates(self) -> int:
        """Steps that learn from the same rows."""
        return 1

    @property
    def learnt_samples(self) -> int:
        """Rows a query that a step learns from."""
        return self.given.sampling.samples

    @property
    def frozen_scores(self) -> int:
        """How often rows are scored without gradient, as they are collected."""
        return 0

    def init(self, key: jax.Array, constants: Constants) -> tuple[PyTree, PyTree]:
        """A fresh adapter: the policy starts as the base."""
        return Adapter(self.new_lora(key, constants)), None

    def new_lora(self, key: jax.Array, constants: Constants) -> Lora:
        """The adapter before the first step."""
        return init_lora(key, constants.base.shape, self.given.lora)

    def policy(self, trainable: Any, constants: Constants) -> LanguageModel:
        """The policy."""
        return constants.base.adapted(trainable.lora)

    def proposal(self, trainable: Any, constants: Constants) -> LanguageModel:
        """What fresh rows are sampled from."""
        return self.policy(trainable, constants)

    def collect(self, state: TrainState, constants: Constants, keys: Keys) -> Collected:
        """Fresh rows, and whatever `store` makes of them."""
        return self.store(state, constants, self.sample(state, constants, keys), keys)

    def sample(self, state: TrainState, constants: Constants, keys: Keys) -> Sampled:
        """Samples fresh rows of Q queries and scores their prefixes, micro-batch after micro-batch."""
        queries = self.select(constants, keys.select)
        queries = jax.tree.map(lambda x: x.reshape(self.given.sampling.micro_batches, -1, *x.shape[1:]), queries)
        proposal = self.proposal(state.trainable, constants)

        def one(_: None, part: tuple[Array, Query]) -> tuple[None, Trajectory]:
            query = jax.tree.map(split_rows, self.spread(part[1]))
            own = keys.part(part[0])
            rows = query.example_id.shape[0] // self.given.copies * self.given.sampling.fresh_samples
            behavior = self.given.sampling.behavior(own.behavior, rows, state.step)
            return None, self.rewarded(proposal, constants, query, behavior, own.sample)

        _, trajectory = jax.lax.scan(one, None, (jnp.arange(self.given.sampling.micro_batches), queries))
        return Sampled(queries, trajectory)

    def rewarded(
        self, model: LanguageModel, constants: Constants, query: Query, behavior: Behavior, key: jax.Array
    ) -> Trajectory:
        """Rows that a model writes for some queries, and the rewards of their prefixes."""
        cache = self.given.cache_dtype
        with jax.named_scope("rollout"):
            sampled = rollout(model, query.prompt, constants.rules, behavior, key, cache_dtype=cache)
        with jax.named_scope("reward"):
            log_reward = self.given.reward.log_reward(constants.base, constants.prepared, query, sampled)
        return Trajectory(sampled, log_reward)

    def select(self, constants: Constants, key: jax.Array) -> Query:
        """Q distinct queries, drawn by weight without replacement (Gumbel top-k)."""
        weight = constants.query_log_weight
        _, chosen = jax.lax.top_k(weight + jax.random.gumbel(key, weight.shape), self.given.sampling.queries)
        return jax.tree.map(lambda x: x[chosen], constants.queries)

    def spread(self, query: Query) -> Query:
        """[Q * copies]: every query as often as its rows are shared out, copies adjacent as its rows are."""
        copies = self.given.copies
        return query if copies == 1 else jax.tree.map(lambda x: jnp.repeat(x, copies, axis=0), query)

    def store(self, state: TrainState, constants: Constants, sampled: Sampled, keys: Keys) -> Collected:
        """The batches of what was sampled."""
        temperature = self.given.sampling.reward_temperature(state.step)
        parts = (sampled.query, sampled.trajectory)
        batches, described = jax.lax.map(lambda part: self.fresh_batch(part[0], part[1], temperature), parts)
        metrics = {**totals(described), **generated(sampled), "reward_temperature": temperature}
        return Collected(batches, state.memory, metrics)

    def fresh_batch(
        self, query: Query, fresh: Trajectory, temperature: Float[Array, ""]
    ) -> tuple[Batch, dict[str, Weighted]]:
        """One micro-batch's fresh rows, and what they are like."""
        tempered = Trajectory(fresh.rollout, fresh.log_reward / temperature)
        batch, queries = Batch.of(query, tempered), query.example_id.shape[0]
        described = describe(fresh) | describe_samples(fresh.rollout, batch.log_weight, queries)
        if self.given.valid is not None:
            valid = self.given.valid(query, fresh.rollout)
            described |= describe_validity(batch.log_reward, valid, batch.used, queries)
        return batch, described

    def weights(self, batch: Any) -> dict[str, Float[Array, ""]]:
        """How many rows there are."""
        return {"rows": batch.used.sum(dtype=jnp.float32)}

    @abc.abstractmethod
    def loss(
        self, trainable: Any, constants: Constants, batch: Any, weights: dict[str, Float[Array, ""]], key: jax.Array
    ) -> tuple[Float[Array, ""], dict[str, Measure]]:
        """As of `interfaces.Algorithm`."""

    def score(
        self, trainable: Any, constants: Constants, batch: Batch, key: jax.Array
    ) -> tuple[PolicyScores, Float[Array, "B T E"]]:
        """The policy's scores of a micro-batch, and the hidden states that they were read off."""
        return score_states(
            self.policy(trainable, constants),
            self.spread(batch.query).prompt,
            batch.trajectory.rollout,
            constants.rules,
            dropout=(key, self.given.lora.dropout) if self.given.lora.dropout else None,
            remat=self.given.remat,
        )

    def diagnose(self, batch: Batch, scores: PolicyScores) -> dict[str, Measure]:
        """What a step says of the policy on its rows."""
        return {**describe_fit(batch.trajectory.rollout, batch.excess(scores), batch.fresh & batch.used)}


@struct.dataclass
class Memory:
    """What an algorithm with a replay buffer remembers.

    Attributes:
        buffer: the best completions of every query.
        own: whatever else the algorithm keeps from step to step, or None.
    """

    buffer: buffers.ReplayBuffer
    own: PyTree = None


class OffPolicy(OnPolicy):
    """Rows from the buffer beside the fresh ones, which it has taken in; a fresh row need not be the policy's own."""

    @property
    def replay(self) -> ReplayConfig:
        """The section of that name."""
        assert self.given.sampling.replay is not None
        return self.given.sampling.replay

    def init(self, key: jax.Array, constants: Constants) -> tuple[PyTree, Memory]:
        """A fresh adapter (the policy starts as the base) and an empty buffer."""
        return Adapter(self.new_lora(key, constants)), Memory(self.new_buffer(constants))

    def new_buffer(self, constants: Constants) -> buffers.ReplayBuffer:
        """The buffer before the first step."""
        queries, horizon = len(constants.queries.example_id), constants.rules.constraint.horizon
        return buffers.init(buffers.padded(queries), self.replay.capacity, horizon)

    def remember(self, memory: Memory, example_id: Int[Array, " Q"], trajectory: Trajectory) -> Memory:
        """The buffer with completions that somebody else wrote, rows of one query adjacent."""
        buffer = buffers.add(memory.buffer, example_id, trajectory, self.replay.tolerance)
        return dataclasses.replace(memory, buffer=buffer)

    def store(self, state: TrainState, constants: Constants, sampled: Sampled, keys: Keys) -> Collected:
        """Puts fresh rows into the buffer and adds rows from there, micro-batch after micro-batch."""
        drawn_at = state.step if sampled.age is None else state.step - sampled.age

        def one(buffer: buffers.ReplayBuffer, part: tuple) -> tuple:
            number, query, fresh = part
            own = keys.part(number).replay
            batch, buffer, described = self.recall(buffer, query, fresh, own, state.step, drawn_at)
            return buffer, (batch, described)

        given = (jnp.arange(self.given.sampling.micro_batches), sampled.query, sampled.trajectory)
        batches: Batch
        described: dict[str, Weighted]
        buffer, (batches, described) = jax.lax.scan(one, state.memory.buffer, given)
        held = buffers.statistics(buffer, len(constants.queries.example_id))
        metrics = {
            **totals(described),
            **generated(sampled),
            **{f"buffer_{name}": value for name, value in held.items()},
            "reward_temperature": self.given.sampling.reward_temperature(state.step),
        }
        if sampled.age is not None:
            metrics["staleness"] = sampled.age.astype(jnp.float32)
        return Collected(batches, dataclasses.replace(state.memory, buffer=buffer), metrics)

    def recall(
        self,
        buffer: buffers.ReplayBuffer,
        query: Query,
        fresh: Trajectory,
        key: jax.Array,
        step: Int[Array, ""],
        drawn_at: Int[Array, ""],
    ) -> tuple[Batch, buffers.ReplayBuffer, dict[str, Weighted]]:
        """One micro-batch: its fresh rows into the buffer, others from there beside them, and what they are like.

        Fresh rows were drawn after `drawn_at` steps, others are drawn now, after `step`.
        """
        temperature = self.given.sampling.reward_temperature(step)
        buffer = buffers.add(buffer, query.example_id, fresh, self.replay.tolerance, drawn_at)
        batch, described = self.fresh_batch(query, fresh, temperature)
        if self.replay.samples:
            drawn = self.draw(buffer, key, query, step)
            described |= self.describe_drawn(drawn, step)
            batch = beside(batch, self.replayed_batch(query, drawn, temperature))
        return batch, buffer, described

    def draw(
        self, buffer: buffers.ReplayBuffer, key: jax.Array, query: Query, step: Int[Array, ""]
    ) -> buffers.Replayed:
        """R rows of each query, as the section says."""
        config, temperature = self.replay, self.given.sampling.reward_temperature(step)
        return buffers.sample(
            buffer, key, query.example_id, config.samples, config.shares, temperature, step, config.recency_steps
        )

    def describe_drawn(self, drawn: buffers.Replayed, step: Int[Array, ""]) -> dict[str, Weighted]:
        """What replayed rows are like: their log R, and the age in steps of those that a step has drawn."""
        known = drawn.row_mask & (drawn.drawn_at >= 0)
        age = (step - drawn.drawn_at).astype(jnp.float32)
        return {"replay_log_reward": describe(drawn.trajectory)["log_reward"], "replay_age": of_rows(known, age)}

    def replayed_batch(self, query: Query, drawn: buffers.Replayed, temperature: Float[Array, ""]) -> Batch:
        """Replayed rows as a batch of their own."""
        tempered = Trajectory(drawn.trajectory.rollout, drawn.trajectory.log_reward / temperature)
        stale, known = jnp.zeros(drawn.row_mask.shape, bool), drawn.drawn_at >= 0
        return Batch(query, tempered, drawn.row_mask, stale, drawn.log_behavior, known)

    def diagnose(self, batch: Batch, scores: PolicyScores) -> dict[str, Measure]:
        """As of fresh rows; and the effective sample size of rows that others drew, weighted by q now / q when drawn.

        `replay_ess` of replayed rows; `fresh_ess` of fresh ones, where an older policy may have drawn them.
        """
        described = super().diagnose(batch, scores)
        log_ratio = jax.lax.stop_gradient(scores.log_pf.sum(axis=1)) - batch.log_behavior
        if self.replay.samples:
            described["replay_ess"] = EffectiveSize.of(log_ratio, batch.used & ~batch.fresh & batch.known)
        if self.given.stale:
            described["fresh_ess"] = EffectiveSize.of(log_ratio, batch.used & batch.fresh)
        return described


def beside(first: Batch, second: Batch) -> Batch:
    """The rows of two batches of the same queries, those of one query adjacent, the first's before the second's."""
    rows = ((b.trajectory, b.row_mask, b.fresh, b.log_behavior, b.known) for b in (first, second))
    join = functools.partial(joined, first.query.example_id.shape[0])
    return Batch(first.query, *jax.tree.map(join, *rows))


def joined(queries: int, *parts: Shaped[Array, "_ ..."]) -> Shaped[Array, "_ ..."]:
    """The rows of several arrays, those of one query adjacent, the first's before the others'."""
    shape = parts[0].shape[1:]
    return jnp.concatenate([x.reshape(queries, -1, *shape) for x in parts], axis=1).reshape(-1, *shape)


def totals(described: dict[str, Weighted]) -> dict[str, Float[Array, ""]]:
    """The means of what micro-batches have measured, over all of them."""
    return {name: jax.tree.map(lambda x: x.sum(0), value).mean() for name, value in described.items()}


def generated(sampled: Sampled) -> dict[str, Float[Array, ""]]:
    """`generated_tokens`: how many tokens were chosen in sampling, the stops included and the tool's not."""
    return {"generated_tokens": sampled.trajectory.rollout.action_mask.sum().astype(jnp.float32)}
