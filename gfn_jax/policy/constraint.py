"""Which tokens may be chosen in which state: one rule, read by `rollout` and by `score` alike.

A completion Z has between `min_length` and `max_length` tokens, then the stop; so the horizon is
T = max_length + 1 and in the last column only the stop is left. Tokens that open a tool's call are closed
off near the end, where the tool could not finish writing: every completion then ends in a state that counts.
"""

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Array, Bool, Float, Int

from gfn_jax.interfaces import Environment
from gfn_jax.models.language_model import LanguageModel
from gfn_jax.models.layers import NEGATIVE
from gfn_jax.types import PyTree, Query


@struct.dataclass
class Constraint:
    """A vocabulary and a length.

    Attributes:
        token_ids: the ids that may be chosen, the stop among them (A of them).
        column_of: id -> its column in `token_ids`; for ids that may not be chosen the value means nothing.
        is_stop: the stop's column.
        opens_call: columns that hand over to a tool.
        stop_id: the stop's id.
        min_length: fewest tokens of Z.
        max_length: most tokens of Z, tool tokens included.
        call_room: tokens a tool may write after it is called.
        full: every id of the vocabulary may be chosen, in order, so that no gather is needed.
    """

    token_ids: Int[Array, " A"]
    column_of: Int[Array, " V"]
    is_stop: Bool[Array, " A"]
    opens_call: Bool[Array, " A"]
    stop_id: int = struct.field(pytree_node=False)
    min_length: int = struct.field(pytree_node=False)
    max_length: int = struct.field(pytree_node=False)
    call_room: int = struct.field(pytree_node=False)
    full: bool = struct.field(pytree_node=False)

    @property
    def horizon(self) -> int:
        """T: states, and columns of a completion."""
        return self.max_length + 1

    @property
    def columns(self) -> Int[Array, " A"] | None:
        """Columns of the output head to compute; None for all of them."""
        return None if self.full else self.token_ids

    def allowed(self, state: Int[Array, "*b"], may_stop: Bool[Array, "*b"]) -> Bool[Array, "*b A"]:
        """The choices in `state` (its index t); `may_stop` is the environment's word on ending here."""
        state, may_stop = state[..., None], may_stop[..., None]
        last = state >= self.max_length
        stop = last | (may_stop & (state >= self.min_length))
        # A call in state t writes columns t+1 ... t+call_room, which must all lie before the last column.
        call = state + self.call_room < self.max_length
        other = ~last & (call | ~self.opens_call)
        return jnp.where(self.is_stop, stop, other)


@struct.dataclass
class Rules:
    """How completions are written: which tokens may be chosen, and the tool that writes some itself."""

    constraint: Constraint
    environment: Environment


@struct.dataclass
class Constants:
    """A task as a step sees it: what a run never changes, on the device.

    Attributes:
        base: the frozen model, which policy and reward share.
        prepared: what the reward keeps for the run (`Reward.prepare`).
        queries: the table that steps draw from, E rows.
        query_log_weight: how often each is drawn, relative to the others.
        rules: how completions are written.
        root: of the run's randomness.
    """

    base: LanguageModel
    prepared: PyTree
    queries: Query
    query_log_weight: Float[Array, " E"]
    rules: Rules
    root: jax.Array


def make_constraint(
    vocab_size: int,
    stop_id: int,
    max_length: int,
    min_length: int = 0,
    token_ids: np.ndarray | None = None,
    opens_call: np.ndarray | None = None,
    call_room: int = 0,
) -> Constraint:
    """Builds a constraint.

    Args:
        vocab_size: V, of the model.
        stop_id: the token that ends Z.
        max_length: most tokens of Z.
        min_length: fewest tokens of Z.
        token_ids: ids that may be chosen besides the stop; None for all.
        opens_call: per id of the vocabulary, whether it hands over to a tool.
        call_room: most tokens a tool writes after one call.

    Raises:
        ValueError: lengths or ids out of range.
    """
    if not 0 <= min_length <= max_length or max_length < 1:
        raise ValueError(f"lengths must satisfy 0 <= min_length <= max_length >= 1, not {min_length} and {max_length}")
    ids = np.arange(vocab_size) if token_ids is None else np.union1d(token_ids, [stop_id])
    if ids[0] < 0 or ids[-1] >= vocab_size or not 0 <= stop_id < vocab_size:
        raise ValueError(f"token ids {ids[0]}..{ids[-1]} and stop {stop_id} must lie in a vocabulary of {vocab_size}")
    column_of = np.zeros(vocab_size, np.int32)
    column_of[ids] = np.arange(len(ids))
    calls = np.zeros(vocab_size, bool) if opens_call is None else np.asarray(opens_call, bool)
    if (calls[ids] | (ids == stop_id)).all():
        raise ValueError("no token besides the stop and those that open a call may be chosen: Z could not go on")
    return Constraint(
        token_ids=jnp.asarray(ids, jnp.int32),
        column_of=jnp.asarray(column_of),
        is_stop=jnp.asarray(ids == stop_id),
        opens_call=jnp.asarray(calls[ids]),
        stop_id=int(stop_id),
        min_length=min_length,
        max_length=max_length,
        call_room=call_room,
        full=token_ids is None,
    )


def masked_log_probs(
    logits: Float[Array, "*b A"], allowed: Bool[Array, "*b A"], columns: Int[Array, "*b M"]
) -> Float[Array, "*b M"]:
    """Log softmax over the allowed tokens, of which there is one at least, at a few columns.

    The normaliser sums the very numbers that are picked: no probability exceeds 1, and the only token allowed has
    exactly 1, however coarse the products behind the logits are.
    """
    logits = jnp.where(allowed, logits.astype(jnp.float32), NEGATIVE)
    return jnp.take_along_axis(logits, columns, axis=-1) - jax.nn.logsumexp(logits, axis=-1, keepdims=True)
