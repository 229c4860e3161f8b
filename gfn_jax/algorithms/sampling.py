"""What a step samples: how many rows of how many queries, by which behaviour, and how many of them from the buffer.

Three sections of a config. `sampling` every algorithm reads, so that all have the same budget and the same target
R^(1/T); `exploration` and `replay` only those that learn from rows which the policy has not drawn itself.
"""

import dataclasses
from collections.abc import Mapping

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from gfn_jax.policy.rollout import Behavior
from gfn_jax.replay import MODES
from gfn_jax.sections import Count, Natural, Nonnegative, Positive, Share, Temperature


@dataclasses.dataclass(frozen=True)
class SamplingConfig:
    """The budget of a step, and the target.

    Attributes:
        queries: Q, queries a step.
        samples: N, rows a query.
        micro_batches: parts of whole queries that a step is computed in, to bound memory.
        reward_temperature_start, reward_temperature_end, reward_temperature_steps: linear schedule of T: the policy is
            to sample in proportion to R^(1/T).
    """

    queries: Count
    samples: Count
    micro_batches: Count
    reward_temperature_start: Temperature
    reward_temperature_end: Temperature
    reward_temperature_steps: Natural

    def __post_init__(self):
        if self.queries % self.micro_batches:
            raise ValueError(f"queries is {self.queries}; they do not divide into {self.micro_batches} micro_batches")

    def reward_temperature(self, step: Int[Array, ""] | int) -> Float[Array, ""]:
        """T of the step after `step` finished ones: from its start at step 0 to its end, linearly."""
        start, end, steps = self.reward_temperature_start, self.reward_temperature_end, self.reward_temperature_steps
        share = jnp.clip(jnp.asarray(step, jnp.float32) / steps, 0.0, 1.0) if steps else jnp.ones(())
        return start + (end - start) * share


@dataclasses.dataclass(frozen=True)
class ExplorationConfig:
    """How fresh rows are drawn where they need not be the policy's own.

    Attributes:
        tempered: probability that a fresh row is sampled at a drawn temperature.
        temperature_low, temperature_high: the interval it is drawn from.
        exploring: probability that a fresh row mixes in a uniform over allowed tokens.
        uniform_mix: the uniform's share in such a row.
        steps: first steps that explore; in those behind them every fresh row is the policy's own. None: all.
    """

    tempered: Share
    temperature_low: Temperature
    temperature_high: Temperature
    exploring: Share
    uniform_mix: Share
    steps: Natural | None

    def __post_init__(self):
        if self.tempered + self.exploring > 1:
            raise ValueError(f"tempered + exploring is {self.tempered + self.exploring}; it must be at most 1")
        if self.temperature_low > self.temperature_high:
            high = self.temperature_high
            raise ValueError(f"temperature_low is {self.temperature_low}; it must be at most temperature_high, {high}")

    def behavior(self, key: jax.Array, rows: int, step: Int[Array, ""] | int) -> Behavior:
        """Each fresh row's temperature and its share of the uniform, in the step after `step` finished ones."""
        source, drawn = jax.random.split(key)
        source = jax.random.uniform(source, (rows,))
        if self.steps is not None:
            source = jnp.where(step < self.steps, source, 1.0)
        temperature = jax.random.uniform(drawn, (rows,), minval=self.temperature_low, maxval=self.temperature_high)
        tempered = source < self.tempered
        exploring = ~tempered & (source < self.tempered + self.exploring)
        return Behavior(jnp.where(tempered, temperature, 1.0), jnp.where(exploring, self.uniform_mix, 0.0))


@dataclasses.dataclass(frozen=True)
class ReplayConfig:
    """The replay buffer: what it keeps, and how rows are drawn from it.

    Attributes:
        samples: R of the N rows of a query are drawn from the buffer.
        capacity: completions kept a query.
        tolerance: near-duplicates are closer than this share of their joint length.
        shares: mode -> its share in a mixture of `replay.MODES`: `reward` (in proportion to R^(1/T)), `recency`,
            `uniform` (TBA, arXiv:2503.18929, mixes the first two).
        recency_steps: the age, in steps, at which `recency` draws an item e times less often than a new one.
        discovery_steps: first steps that only fill the buffer; nothing is learnt in them.
        ess_alarm: a line of progress says so where the effective sample size of replayed rows is below this share of
            them; 0 for never.
    """

    samples: Natural
    capacity: Count
    tolerance: Share
    shares: Mapping[str, Nonnegative]
    recency_steps: Positive
    discovery_steps: Natural
    ess_alarm: Share

    def __post_init__(self):
        unknown = sorted(set(self.shares) - set(MODES))
        if unknown or not sum(self.shares.values()):
            there = f"each a share of {', '.join(MODES)}, one at least above 0"
            raise ValueError(f"shares is {dict(self.shares)}; it must be {there}")


@dataclasses.dataclass(frozen=True)
class Sampling:
    """The three sections, of which an algorithm that learns from its own rows alone reads the first.

    Raises:
        ValueError: no fresh row would be left.
    """

    budget: SamplingConfig
    exploration: ExplorationConfig | None = None
    replay: ReplayConfig | None = None

    def __post_init__(self):
        if self.replayed_samples >= self.samples:
            raise ValueError(
                f"replay.samples is {self.replayed_samples}; it must be less than sampling.samples, {self.samples}"
            )

    @property
    def queries(self) -> int:
        """Q, queries a step."""
        return self.budget.queries

    @property
    def samples(self) -> int:
        """N, rows a query."""
        return self.budget.samples

    @property
    def micro_batches(self) -> int:
        """P, parts that a step is computed in."""
        return self.budget.micro_batches

    @property
    def replayed_samples(self) -> int:
        """R, rows a query that come from the buffer."""
        return self.replay.samples if self.replay else 0

    @property
    def fresh_samples(self) -> int:
        """N - R, rows a query that are sampled anew."""
        return self.samples - self.replayed_samples

    @property
    def first_update(self) -> int:
        """The first step that learns: those before only fill the buffer."""
        return self.replay.discovery_steps if self.replay else 0

    @property
    def target_temperature(self) -> float:
        """T at the end of training: the policy is to sample in proportion to R^(1/T)."""
        return self.budget.reward_temperature_end

    def reward_temperature(self, step: Int[Array, ""] | int) -> Float[Array, ""]:
        """T of the step after `step` finished ones."""
        return self.budget.reward_temperature(step)

    def behavior(self, key: jax.Array, rows: int, step: Int[Array, ""] | int = 0) -> Behavior:
        """How that many fresh rows are drawn."""
        return self.exploration.behavior(key, rows, step) if self.exploration else Behavior.at(1.0, rows)
