"""Prompting: what stands around a question in the policy's prompt; the reward's context stays as it is.

Zero-shot chain of thought is a cue behind the question, "Let's think step by step." (Kojima et al. 2022,
arXiv:2205.11916); few-shot is demonstrations before it (Wei et al. 2022, arXiv:2201.11903). Where a task writes its own
demonstrations (`queries(split, shots)`), those are tokenized as one text with the question: prefer them.
"""

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from gfn_jax.types import Query, Tokens


def with_cue(query: Query, ids: Sequence[int]) -> Query:
    """The queries with these tokens behind every prompt, encoded where they stand (`text.tokens.encode_after`)."""
    cue = jnp.asarray(ids, jnp.int32)[None]
    return dataclasses.replace(query, prompt=_joined(query.prompt, Tokens(cue, jnp.ones_like(cue, bool))))


def with_demonstrations(query: Query, demonstrations: Tokens) -> Query:
    """The queries with [1, D] tokens before every prompt, whose padding then lies in between.

    Positions are counted by the masks, so padding may lie anywhere. A begin-of-text token with which the prompts begin
    stays where it is. That all fits into the model's positions is for the caller to see.

    Raises:
        ValueError: not one row of demonstrations.
    """
    if demonstrations.ids.shape[0] != 1:
        raise ValueError(f"demonstrations are one row that all prompts share, not {demonstrations.ids.shape[0]}")
    return dataclasses.replace(query, prompt=_joined(demonstrations, query.prompt))


def _joined(first: Tokens, second: Tokens) -> Tokens:
    """[Q, ...]: the rows of both, one behind the other; those of one row are every row's."""
    rows = max(len(first.ids), len(second.ids))
    first, second = (jax.tree.map(lambda x: jnp.broadcast_to(x, (rows, x.shape[1])), part) for part in (first, second))
    return jax.tree.map(lambda *parts: jnp.concatenate(parts, axis=1), first, second)
