"""Completions for evaluation: many queries, several samples each, in batches of one shape (one compilation)."""

import jax
import numpy as np

from gfn_jax.evaluation.rows import copies_of, gather, parts
from gfn_jax.models.language_model import LanguageModel
from gfn_jax.policy.constraint import Rules
from gfn_jax.policy.rollout import Behavior, rollout
from gfn_jax.types import Rollout, Tokens

_rollout = jax.jit(rollout)


def sample_completions(
    model: LanguageModel,
    prompt: Tokens,
    rules: Rules,
    key: jax.Array,
    samples: int,
    temperature: float,
    batch: int,
) -> list[list[list[int]]]:
    """Samples `samples` completions of every prompt.

    Args:
        model: the policy, or a base.
        prompt: [M, P], padded left.
        rules: vocabulary, length and tool.
        key: randomness; batch i uses `fold_in(key, i)`.
        samples: N a prompt.
        temperature: of the samples; 0 is greedy.
        batch: prompts at once.

    Returns:
        The tokens of Z, stop excluded: `[M][N][length]`.
    """
    copies = copies_of(min(batch, len(prompt.ids)), samples, model)
    out: list[list[list[int]]] = []
    for number, (part, count) in enumerate(parts(prompt, batch, model, copies)):
        behavior = Behavior.at(temperature, len(part.ids) // copies * samples)
        sampled = _rollout(model, part, rules, behavior, jax.random.fold_in(key, number))
        out.extend(_by_query(gather(sampled), samples)[:count])
    return out


def _by_query(sampled: Rollout, samples: int) -> list[list[list[int]]]:
    completion, lengths = np.asarray(sampled.completion), np.asarray(sampled.token_mask).sum(1)
    rows = [row[:length].tolist() for row, length in zip(completion, lengths, strict=True)]
    return [rows[i : i + samples] for i in range(0, len(rows), samples)]
