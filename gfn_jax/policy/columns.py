"""What programs that write completions column after column have in common (`rollout`, beam search, SMC)."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from gfn_jax.models import decoder
from gfn_jax.models.language_model import LanguageModel
from gfn_jax.models.layers import KeyValues
from gfn_jax.policy.constraint import Constraint
from gfn_jax.types import Rollout

Columns = dict[str, Array]  # the fields of a `Rollout`, [T, B] each, or one column of them, [B]


def empty_columns(constraint: Constraint, rows: int) -> Columns:
    """[T, B]: nothing written yet."""
    horizon = constraint.horizon
    false = jnp.zeros((horizon, rows), bool)
    return {
        "completion": jnp.full((horizon, rows), constraint.stop_id, jnp.int32),
        "token_mask": false,
        "action_mask": false,
        "state_mask": false,
        "log_behavior": jnp.zeros((horizon, rows), jnp.float32),
    }


def next_column(
    constraint: Constraint,
    forced: Int[Array, " B"],
    may_stop: Bool[Array, " B"],
    drawn: Int[Array, " B"],
    log_behavior: Float[Array, " B"],
    done: Bool[Array, " B"],
) -> tuple[Columns, Bool[Array, " B"]]:
    """A column, and which rows are done after it.

    Args:
        constraint: whose columns `drawn` are.
        forced: the token that the tool writes, or -1.
        may_stop: whether the stop was among the choices.
        drawn: the policy's choice; it counts where nothing is forced and the row is not done.
        log_behavior: its log-probability in nats.
        done: the rows that had stopped before.
    """
    decides = ~done & (forced < 0)
    token = jnp.where(forced < 0, constraint.token_ids[drawn], forced)
    token = jnp.where(done, constraint.stop_id, token)
    stops = decides & constraint.is_stop[drawn]
    column = {
        "completion": token.astype(jnp.int32),
        "token_mask": ~done & ~stops,
        "action_mask": decides,
        "state_mask": decides & may_stop,
        "log_behavior": jnp.where(decides, log_behavior, 0.0),
    }
    return column, done | stops


def as_rollout(columns: Columns) -> Rollout:
    """[B, T]: what has been written."""
    return Rollout(**{name: jnp.swapaxes(value, 0, 1) for name, value in columns.items()})


def read_token(
    model: LanguageModel,
    token: Int[Array, " B"],
    start: Int[Array, " B"],
    past: tuple[KeyValues, ...],
    cache: KeyValues,
    column: Int[Array, ""],
) -> tuple[Float[Array, "B E"], KeyValues]:
    """The state after a column's tokens, and the cache with them; `start` is the position of a row's first token."""
    visible = (jnp.arange(cache.mask.shape[1]) <= column)[None, None, :]
    hidden, cache = decoder.forward(model, token[:, None], (start + column)[:, None], visible, past, cache, column)
    return hidden[:, 0], cache


def once(condition: Bool[Array, ""], change: Callable[[Any], Any], x: Any) -> Any:
    """`change(x)` under a condition, else x: a loop of one round or none.

    A `cond` would copy what it may change (a cache); a loop changes it in place.
    """

    def one(carry: tuple[Any, Any]) -> tuple[Any, Any]:
        return jnp.bool_(False), change(carry[1])

    return jax.lax.while_loop(lambda carry: carry[0], one, (condition, x))[1]
