"""Token lists of different lengths as one padded array with its mask."""

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np

from gfn_jax.types import Seeds, Tokens


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


def make_seeds(
    example_ids: Sequence[int], completions: Sequence[Sequence[int]], stop_id: int, max_length: int
) -> Seeds:
    """Completions of the training queries `example_ids`, each filled up with the stop to `max_length` + 1 tokens.

    Args:
        example_ids: each at most once.
        completions: as many for every query, those of one query adjacent.
        stop_id: fills them up.
        max_length: tokens of Z.

    Raises:
        ValueError: a completion is longer than `max_length`, or queries and completions do not match.
    """
    if len(set(example_ids)) < len(example_ids) or len(completions) % max(len(example_ids), 1):
        raise ValueError(f"{len(completions)} seeding completions do not match {len(set(example_ids))} queries")
    return rows_as_seeds(example_ids, completions, stop_id, max_length)


def rows_as_seeds(
    example_ids: Sequence[int], completions: Sequence[Sequence[int]], stop_id: int, max_length: int
) -> Seeds:
    """As `make_seeds`, whose arguments these are, but that a query may be there any number of times.

    That is for an algorithm which keeps every row, and not for a replay buffer.

    Raises:
        ValueError: a completion is longer than `max_length`.
    """
    lengths = np.asarray([len(ids) for ids in completions], np.int32)
    if len(lengths) and lengths.max() > max_length:
        raise ValueError(f"a seeding completion has {lengths.max()} tokens; max_length is {max_length}")
    padded = np.full((len(lengths), max_length + 1), stop_id, np.int32)
    for row, ids in zip(padded, completions, strict=True):
        row[: len(ids)] = ids
    return Seeds(jnp.asarray(example_ids, jnp.int32), jnp.asarray(padded), jnp.asarray(lengths))


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
