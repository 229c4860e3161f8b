"""Completions that somebody else wrote (demonstrations, other policies), with the masks a rollout would have made."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from gfn_jax.policy.constraint import Rules
from gfn_jax.types import PyTree, Rollout


def teacher_force(
    completion: Int[Array, "B T"],
    length: Int[Array, " B"],
    rules: Rules,
) -> Rollout:
    """The rollout that a given completion would have been: its masks, by the same rules as `rollout`'s.

    A completion that could not have been written (a token or a stop that is not allowed, another result than the
    tool's, too long) has no probability to learn from: all its masks are False, so no loss and no buffer takes it.

    Args:
        completion: [B, T] tokens of Z, padded right with anything; tool tokens included.
        length: tokens of Z in each row; at most T - 1.
        rules: vocabulary, length and tool.
    """
    constraint, environment = rules.constraint, rules.environment
    rows, horizon = completion.shape
    columns = jnp.arange(horizon)
    completion = jnp.where(columns < length[:, None], completion, constraint.stop_id)

    def step(tool: PyTree, token: Int[Array, " B"]) -> tuple[PyTree, tuple[Array, Array]]:
        return environment.step(tool, token), (environment.forced(tool), environment.may_stop(tool))

    _, (forced, may_stop) = jax.lax.scan(step, environment.init(rows), completion.T)
    allowed = constraint.allowed(jnp.broadcast_to(columns, completion.shape), may_stop.T)
    column = constraint.column_of[completion]
    chosen = jnp.take_along_axis(allowed, column[..., None], axis=-1)[..., 0]
    chosen &= constraint.token_ids[column] == completion
    alive = columns <= length[:, None]
    decides = forced.T < 0
    possible = jnp.all(~alive | jnp.where(decides, chosen, completion == forced.T), axis=1, keepdims=True)
    alive, decides = alive & possible, alive & possible & decides
    return Rollout(
        completion=completion,
        token_mask=alive & (columns < length[:, None]),
        action_mask=decides,
        state_mask=decides & jnp.any(allowed & constraint.is_stop, axis=-1),
        log_behavior=jnp.zeros(completion.shape),
    )
