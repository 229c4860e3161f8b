"""What the rooms expect of each other, as protocols: an implementation needs no import of this file."""

from typing import Any, Protocol

import jax
from jaxtyping import Array, Bool, Float, Int

from gfn_jax.types import Params, PyTree, Query, Rollout


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

    def prepare(self, params: Params) -> PyTree:
        """What is constant for the run (a few-shot context's KV cache, a table); made once, on device."""

    def log_reward(self, params: Params, prepared: PyTree, query: Query, rollout: Rollout) -> Float[Array, "B T"]:
        """Log R(z_1:t stop) for every t; finite wherever `rollout.state_mask` holds."""


class Algorithm(Protocol):
    """init, collect (no gradient), loss (pure)."""

    def init(self, key: jax.Array) -> Any: ...

    def collect(self, state: Any, constants: Any, query: Query, key: jax.Array) -> Any: ...

    def loss(self, trainable: Any, constants: Any, batch: Any) -> Any: ...
