"""Token lists of different lengths as one padded array with its mask."""

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np

from gfn_jax.types import Tokens


def pad_left(rows: Sequence[Sequence[int]], pad_id: int, length: int | None = None) -> Tokens:
    """[rows, longest]: real tokens at the end, as prompts are, so that a completion can follow.

    Raises:
        ValueError: a row is empty, or longer than `length`.
    """
    return _pad(rows, pad_id, length, left=True)


def pad_right(rows: Sequence[Sequence[int]], pad_id: int, length: int | None = None) -> Tokens:
    """[rows, longest]: real tokens at the start, as completions and answers are.

    Raises:
        ValueError: a row is empty, or longer than `length`.
    """
    return _pad(rows, pad_id, length, left=False)


def _pad(rows: Sequence[Sequence[int]], pad_id: int, length: int | None, left: bool) -> Tokens:
    longest = max(len(row) for row in rows)
    length = longest if length is None else length
    if longest > length or not min(len(row) for row in rows):
        raise ValueError(f"rows must have 1..{length} tokens; they have {min(map(len, rows))}..{longest}")
    ids = np.full((len(rows), length), pad_id, np.int32)
    mask = np.zeros((len(rows), length), bool)
    for i, row in enumerate(rows):
        where = slice(length - len(row), length) if left else slice(0, len(row))
        ids[i, where], mask[i, where] = row, True
    return Tokens(ids=jnp.asarray(ids), mask=jnp.asarray(mask))
