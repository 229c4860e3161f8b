"""Completions for evaluation: many queries, several samples each, in batches of one shape (one compilation)."""

import jax
import jax.numpy as jnp
import numpy as np

from gfn_jax.evaluation.rows import copies_of, gather, parts
from gfn_jax.interfaces import Environment
from gfn_jax.models.config import ModelConfig
from gfn_jax.models.lora import Lora
from gfn_jax.policy.constraint import Constraint
from gfn_jax.policy.rollout import rollout
from gfn_jax.types import Params, Rollout, Tokens

_rollout = jax.jit(rollout, static_argnums=0)


def sample_completions(
    config: ModelConfig,
    params: Params,
    lora: Lora | None,
    prompt: Tokens,
    constraint: Constraint,
    environment: Environment,
    key: jax.Array,
    samples: int,
    temperature: float,
    batch: int,
) -> list[list[list[int]]]:
    """Samples `samples` completions of every prompt.

    Args:
        config: the policy's shape.
        params: the frozen base.
        lora: the adapter; None samples the base.
        prompt: [M, P], padded left.
        constraint: vocabulary and length.
        environment: the tool, if any.
        key: randomness; batch i uses `fold_in(key, i)`.
        samples: N a prompt.
        temperature: of the samples; 0 is greedy.
        batch: prompts at once.

    Returns:
        The tokens of Z, stop excluded: [M][N][length].
    """
    copies = copies_of(min(batch, len(prompt.ids)), samples, params)
    out: list[list[list[int]]] = []
    for number, (part, count) in enumerate(parts(prompt, batch, params, copies)):
        rows = jnp.full((len(part.ids) // copies * samples,), temperature, jnp.float32)
        sampled = _rollout(
            config,
            params,
            lora,
            part,
            constraint,
            environment,
            jax.random.fold_in(key, number),
            rows,
            rows * 0,
        )
        out.extend(_by_query(gather(sampled), samples)[:count])
    return out


def _by_query(sampled: Rollout, samples: int) -> list[list[list[int]]]:
    completion, lengths = np.asarray(sampled.completion), np.asarray(sampled.token_mask).sum(1)
    rows = [row[:length].tolist() for row, length in zip(completion, lengths, strict=True)]
    return [rows[i : i + samples] for i in range(0, len(rows), samples)]
