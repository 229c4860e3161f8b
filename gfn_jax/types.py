"""The pytrees that flow through the library, and the letters their shapes are written in.

Letters: B rows (queries x samples), Q queries, N samples a query (B = Q * N, rows of one query adjacent),
P prompt, T completion (the horizon: at most T - 1 tokens of Z, then the stop), C context, Y answer,
V vocabulary, A allowed tokens, L layers, H heads, K key/value heads, D head size, E model width.

State t is the state in which token t is chosen, so everything about states and about actions is `[B, T]`
(DESIGN: "one shape"). Masks are made by `rollout` and carried; nothing re-derives them from token ids.
All log quantities are natural logarithms (nats) in float32.
"""

from typing import Any

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


@struct.dataclass
class Trajectory:
    """A rollout and the untempered log R of stopping at every state (read it only under `state_mask`)."""

    rollout: Rollout
    log_reward: Float[Array, "B T"]


@struct.dataclass
class PolicyScores:
    """log q(z_t | z_<t) and log q(stop | z_<t) at every state, under the policy at temperature 1."""

    log_pf: Float[Array, "B T"]
    log_pterm: Float[Array, "B T"]


@struct.dataclass
class Seeds:
    """Completions somebody else wrote, for the replay buffer to start with: N for each of Q queries, Q may be 0."""

    example_id: Int[Array, " Q"]  # each at most once
    completion: Int[Array, "B T"]  # rows of one query adjacent; tool tokens included, filled up with the stop
    length: Int[Array, " B"]  # tokens of Z


@struct.dataclass
class Weighted:
    """A sum and its weight: means are taken only after both have been added up (devices, micro-batches)."""

    total: Float[Array, ""]
    weight: Float[Array, ""]
