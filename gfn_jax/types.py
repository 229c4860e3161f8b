"""The pytrees that flow through the library, and the letters their shapes are written in.

Letters: B rows (queries x samples), Q queries, N samples a query (B = Q * N, rows of one query adjacent),
P prompt, T completion (the horizon: at most T - 1 tokens of Z, then the stop), C context, Y answer,
V vocabulary, A allowed tokens, L layers, H heads, K key/value heads, D head size, E model width.

State t is the state in which token t is chosen, so everything about states and about actions is `[B, T]`
(DESIGN: "one shape"). Masks are made by `rollout` and carried; nothing re-derives them from token ids.
All log quantities are natural logarithms (nats) in float32.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Float, Int

PyTree = Any
Params = Any  # nested dict of arrays; layers stacked on axis 0


@struct.dataclass
class Tokens:
    """Token ids padded to one length, with the mask that says which are real."""

    ids: Int[Array, "*rows S"]
    mask: Bool[Array, "*rows S"]


@struct.dataclass
class Query:
    """What one problem is: the policy sees `prompt`, the reward model sees `context` Z `answer`.

    `example_id` is the row's place in the task's table of queries, and its key in the replay buffer.
    """

    example_id: Int[Array, " Q"]
    prompt: Tokens  # [Q, P], padded left
    context: Tokens  # [Q, C], padded left
    answer: Tokens  # [Q, Y], padded right


@struct.dataclass
class Rollout:
    """Completions Z with their stop, column t holding the token chosen in state t.

    Attributes:
        completion: the tokens, stop included; columns after the stop hold the stop id and are masked.
        token_mask: the token belongs to Z (tool tokens included; stop and padding not).
        action_mask: the policy chose the token (stop included; tool tokens and padding not).
        state_mask: the state is alive, the policy decides in it, and it may stop there.
        log_behavior: log-probability of the token under the behaviour policy, 0 where not an action.
    """

    completion: Int[Array, "B T"]
    token_mask: Bool[Array, "B T"]
    action_mask: Bool[Array, "B T"]
    state_mask: Bool[Array, "B T"]
    log_behavior: Float[Array, "B T"]

    @property
    def stop(self) -> Bool[Array, "B T"]:
        """Where the policy ended Z: one column of a row that has ended, none of another."""
        return self.action_mask & ~self.token_mask

    def stopping(self) -> "Rollout":
        """The same completions for a reward that is asked for where they ended, and nowhere else."""
        return dataclasses.replace(self, state_mask=self.stop)


@struct.dataclass
class Trajectory:
    """A rollout and the untempered log R of stopping at every state (read it only under `state_mask`)."""

    rollout: Rollout
    log_reward: Float[Array, "B T"]


@struct.dataclass
class Prefix:
    """What a reward makes of unfinished completions, in nats.

    Attributes:
        log_prefix: what it gives the tokens so far, without looking ahead: log p_LM(z_1:t | X); 0 where it has none.
        log_reward: log R of stopping here; None where that was not asked for.
    """

    log_prefix: Float[Array, "*rows"]
    log_reward: Float[Array, "*rows"] | None


@struct.dataclass
class Sampled:
    """What a step has sampled, in P micro-batches of Q / P queries."""

    query: Query  # [P, Q / P, ...]
    trajectory: Trajectory  # [P, rows, T]
    age: Int[Array, ""] | None = None  # by how many steps whoever drew them is older than who learns from them; None: 0


@struct.dataclass
class PolicyScores:
    """log q(z_t | z_<t) and log q(stop | z_<t) at every state, under the policy at temperature 1."""

    log_pf: Float[Array, "B T"]
    log_pterm: Float[Array, "B T"]


@struct.dataclass
class Seeds:
    """Completions somebody else wrote, for a memory to start with: N for each of Q queries, Q may be 0."""

    example_id: Int[Array, " Q"]  # each at most once, where they are for a replay buffer
    completion: Int[Array, "B T"]  # rows of one query adjacent; tool tokens included, filled up with the stop
    length: Int[Array, " B"]  # tokens of Z


@struct.dataclass
class Weighted:
    """A sum and its weight: means are taken only after both have been added up (devices, micro-batches)."""

    total: Float[Array, ""]
    weight: Float[Array, ""]

    def mean(self) -> Float[Array, ""]:
        """Total / weight; 0 where nothing was weighed."""
        return self.total / jnp.maximum(self.weight, 1e-9)


@struct.dataclass
class Keys:
    """The streams of randomness of one step: fold_in(fold_in(root, step), STREAM), in this order.

    Nothing random is stored: what a step draws is a function of its number.
    """

    select: jax.Array
    behavior: jax.Array
    sample: jax.Array
    replay: jax.Array
    dropout: jax.Array

    @classmethod
    def of(cls, root: jax.Array, step: Int[Array, ""]) -> "Keys":
        """Those of a step of the run whose randomness is `root`."""
        own = jax.random.fold_in(root, step)
        return cls(*(jax.random.fold_in(own, stream) for stream in range(5)))

    def part(self, number: Int[Array, ""]) -> "Keys":
        """Those of one of the step's micro-batches."""
        return jax.tree.map(lambda key: jax.random.fold_in(key, number), self)


@struct.dataclass
class TrainState:
    """All that changes: what a checkpoint holds."""

    step: Int[Array, ""]  # how many are done
    trainable: PyTree  # what the optimizer moves
    opt_state: PyTree
    memory: PyTree  # what the algorithm remembers beside (a replay buffer), or None


@struct.dataclass
class Collected:
    """What a step learns from, before anything is learnt."""

    batches: PyTree  # the algorithm's own, P micro-batches on the leading axis
    memory: PyTree  # the state's, brought up to date
    metrics: dict[str, Float[Array, ""]]
