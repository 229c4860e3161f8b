"""Whether a task gives what `task.Task` says, asked when a run is built: a user's own task is told what is missing.

Only shapes are looked at, and the numbers that are there before any step; no weight is read, nothing is compiled.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gfn_jax.errors import UserCodeError, user_code
from gfn_jax.models.config import ModelConfig
from gfn_jax.models.decoder import init_params
from gfn_jax.models.language_model import LanguageModel
from gfn_jax.policy.constraint import Constraint
from gfn_jax.tasks.task import Task
from gfn_jax.types import Query, Rollout, Seeds

ROWS = 2  # of the reward's trial


def check_task(name: str, task: Task, model: ModelConfig) -> None:
    """Asks a task for everything that a run needs of it.

    Args:
        name: what it is called in messages.
        task: any task.
        model: the base's shape.

    Raises:
        UserCodeError: something raises, or is not what `Task` says; names the method and what was expected.
    """
    with user_code(f"{name}: queries('train')"):
        query = task.queries("train")
    _check_query(f"{name}: queries('train')", query)
    with user_code(f"{name}: query_weight()"):
        weight = np.asarray(task.query_weight())
    rows = len(query.example_id)
    if weight.shape != (rows,) or not np.isfinite(weight).all() or weight.min() < 0 or not weight.any():
        raise UserCodeError(
            f"{name}: query_weight() must return {rows} finite numbers of at least 0, not all 0; it returned shape "
            f"{weight.shape} with {np.unique(weight)[:3].tolist()}"
        )
    with user_code(f"{name}: constraint()"):
        constraint = task.constraint()
    _expect(f"{name}: constraint()", constraint, Constraint)
    with user_code(f"{name}: seeds()"):
        _expect(f"{name}: seeds()", task.seeds(), Seeds)
    _check_reward(f"{name}: reward(model)", task, model, query, constraint.horizon)


def check_shots(shots: int, there: int, what: str) -> None:
    """Raises ValueError where the few-shot baseline would have fewer examples in its prompt than its name says."""
    if shots > there:
        raise ValueError(f"evaluation.shots is {shots}; there are {there} examples for a prompt, {what}")


def _expect(name: str, value: Any, kind: type) -> None:
    if not isinstance(value, kind):
        raise UserCodeError(f"{name} must return a {kind.__module__}.{kind.__name__}, not {type(value).__name__}")


def _check_query(name: str, query: Any) -> None:
    _expect(name, query, Query)
    rows = np.shape(query.example_id)[0]
    for field in ("prompt", "context", "answer"):
        tokens = getattr(query, field)
        ids, mask = np.asarray(tokens.ids), np.asarray(tokens.mask)
        right = ids.ndim == 2 and len(ids) == rows >= 1 and ids.shape == mask.shape
        if not right or ids.dtype.kind != "i" or mask.dtype.kind != "b":
            raise UserCodeError(
                f"{name}: {field} must have ids, whole numbers [{rows}, length], and a mask of True and False like it; "
                f"it has {ids.dtype} {ids.shape} and {mask.dtype} {mask.shape}"
            )


def _check_reward(name: str, task: Task, model: ModelConfig, query: Query, horizon: int) -> None:
    def trial(base: LanguageModel) -> jax.Array:
        reward = task.reward(model)
        one = jax.tree.map(lambda x: jnp.asarray(x)[:1], query)
        tokens, mask = jnp.zeros((ROWS, horizon), jnp.int32), jnp.ones((ROWS, horizon), bool)
        sampled = Rollout(tokens, mask, mask, mask, jnp.zeros((ROWS, horizon)))
        return reward.log_reward(base, reward.prepare(base), one, sampled)

    _ = task.environment  # its tables may be made at first use, which must not be while others are traced
    base = jax.eval_shape(lambda key: LanguageModel(model, init_params(key, model, jnp.float32)), jax.random.key(0))
    with user_code(f"{name}.log_reward"):
        found = jax.eval_shape(trial, base)
    shape, dtype = getattr(found, "shape", None), getattr(found, "dtype", type(found).__name__)
    if shape != (ROWS, horizon) or not jnp.issubdtype(dtype, jnp.floating):
        raise UserCodeError(
            f"{name}.log_reward must return a number for every prefix, floats [rows, {horizon}]; for {ROWS} rows it "
            f"returned {dtype} {shape}"
        )


def check_positions(shape: ModelConfig, query: Query, max_length: int, demonstrations: int = 0) -> None:
    """Raises ValueError where a completion does not fit into the model's positions.

    Args:
        shape: the base's.
        query: all queries, padded to one length.
        max_length: tokens of Z.
        demonstrations: tokens of the reward's few-shot context.
    """
    prompt, context, answer = (tokens.ids.shape[1] for tokens in (query.prompt, query.context, query.answer))
    needed = max(prompt, demonstrations + context) + max_length + answer
    if needed > shape.max_positions:
        raise ValueError(
            f"demonstrations, question, {max_length} tokens and answer take {needed} positions; the model has "
            f"{shape.max_positions}: fewer demonstrations, shorter texts or a lower max_length would fit"
        )
