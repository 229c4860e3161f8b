"""What the rooms expect of each other, as protocols: an implementation needs no import of this file."""

from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

import jax
from jaxtyping import Array, Bool, Float, Int

from gfn_jax.models.language_model import LanguageModel
from gfn_jax.types import Collected, Keys, Prefix, PyTree, Query, Rollout, Sampled, TrainState, Trajectory


class Environment(Protocol):
    """An automaton over tokens that reads Z as it is written and may write tokens itself (a tool).

    A pytree of tables: pure, jittable, the same on every device. `step` is called once a token, whoever
    wrote it; rows that have stopped are never read again, so their state does not matter.
    """

    def init(self, rows: int) -> PyTree:
        """The state before the first token, for `rows` rows."""

    def step(self, state: PyTree, token: Int[Array, " B"]) -> PyTree:
        """The state after one more token of Z."""

    def forced(self, state: PyTree) -> Int[Array, " B"]:
        """The token the tool writes next, or -1 where the policy decides."""

    def may_stop(self, state: PyTree) -> Bool[Array, " B"]:
        """Whether Z, as it stands, may end here."""


class Reward(Protocol):
    """log R at every prefix of a rollout, untempered, in nats."""

    def prepare(self, model: LanguageModel) -> PyTree:
        """What is constant for the run (a few-shot context's KV cache, a table); made once, on device."""

    def log_reward(self, model: LanguageModel, prepared: PyTree, query: Query, rollout: Rollout) -> Float[Array, "B T"]:
        """Log R(z_1:t stop) for every t; finite wherever `rollout.state_mask` holds, and read nowhere else."""


@runtime_checkable
class Incremental(Reward, Protocol):
    """A reward that can also follow completions while they are written, a chunk of k columns at a time.

    What it knows of the rows is a pytree of arrays with the rows leading and of `KeyValues`, so that rows can be copied
    (`models.decoder.follow`); what a query's rows have in common is kept apart, in `fixed`.
    """

    def begin(
        self, model: LanguageModel, prepared: PyTree, query: Query, shape: tuple[int, int, int], answers: bool
    ) -> tuple[PyTree, PyTree, Prefix]:
        """(fixed, state, the empty prefix [B]) for a shape of (rows, columns of Z, columns a chunk).

        With `answers` False, log R is not asked for and not computed.
        """

    def extend(
        self,
        model: LanguageModel,
        prepared: PyTree,
        fixed: PyTree,
        state: PyTree,
        tokens: Int[Array, "B k"],
        mask: Bool[Array, "B k"],
        column: Int[Array, ""],
    ) -> tuple[PyTree, Prefix]:
        """The state after k more columns, from `column` on, and the prefixes [B, k] that end with each of them.

        `mask` is False behind the end of Z, where values mean nothing.
        """


class Measure(Protocol):
    """A number in the making: pytrees of it add up, leaf by leaf, over micro-batches (`types.Weighted`)."""

    def mean(self) -> Float[Array, ""]:
        """The number."""


class Algorithm(Protocol):
    """A way to learn: all that the training step knows of it.

    `constants` is what the run never changes, with the run's `root` of randomness among it. What is trained
    (`trainable`), what is remembered (`memory`) and what a micro-batch is are the algorithm's own pytrees.
    """

    def init(self, key: jax.Array, constants: Any) -> tuple[PyTree, PyTree]:
        """What is trained and what is remembered, before the first step."""

    def collect(self, state: TrainState, constants: Any, keys: Keys) -> Collected:
        """What the step learns from, in P micro-batches. Pure; no gradient is taken of it."""

    def weights(self, batch: PyTree) -> dict[str, Float[Array, ""]]:
        """The loss's normalisers on one micro-batch, known before any gradient; they add up over micro-batches."""

    def loss(
        self, trainable: PyTree, constants: Any, batch: PyTree, weights: dict[str, Float[Array, ""]], key: jax.Array
    ) -> tuple[Float[Array, ""], Mapping[str, Measure]]:
        """A micro-batch's share of the loss, by the whole step's `weights`; and what a log says of it. Pure."""

    def policy(self, trainable: PyTree, constants: Any) -> LanguageModel:
        """The trained model, as samplers and evaluators take it."""


@runtime_checkable
class Interruptible(Algorithm, Protocol):
    """An algorithm whose collecting has a seam, where the host may add to the rewards: `store` after `sample`."""

    def sample(self, state: TrainState, constants: Any, keys: Keys) -> Sampled:
        """Completions and their rewards; changes nothing."""

    def store(self, state: TrainState, constants: Any, sampled: Sampled, keys: Keys) -> Collected:
        """What `collect` gives, `sampled` being at hand."""


@runtime_checkable
class Remembering(Protocol):
    """An algorithm that takes completions which somebody else wrote (`Task.seeds`)."""

    def remember(self, memory: PyTree, example_id: Int[Array, " Q"], trajectory: Trajectory) -> PyTree:
        """What it remembers with them; rows of one query are adjacent."""
