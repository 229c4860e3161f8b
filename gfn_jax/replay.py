"""The replay buffer: the best distinct completions of every query, as arrays.

A priority queue per query, keyed by log R of the completion as it stopped (untempered, nats), in which two
completions a, b are near-duplicates when their token edit distance is small (Hu et al., ICLR 2024):

    distance(a, b) < tolerance · (|a| + |b|)        (strict; Z alone counts, without its stop)

`add` takes a new completion z by the first rule that applies:

1. z did not stop, or its log R is not finite: not added.
2. z is stored already: nothing changes (the stored reward stays, even if the new one differs).
3. near-duplicates of z are stored: z meets the nearest (of several the lowest log R, then the first slot) and
   takes its place if its own log R is strictly higher; otherwise z is dropped. The others are left alone.
4. a slot is free: z takes it.
5. the weakest item gives way to z if z's log R is strictly higher; otherwise z is dropped.

Everything is a pure function over one pytree whose leading axis is the table of queries, so the buffer
shards, checkpoints and resumes like any other state, and no call leaves the device. To divide over devices the axis
may be longer than the table (`padded`): queries behind its end are never named, so their slots stay free.
"""

import math
from collections.abc import Mapping

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Float, Int

from gfn_jax.models.layers import NEGATIVE
from gfn_jax.text.edit_distance import edit_distance
from gfn_jax.types import Rollout, Trajectory

MODES = ("reward", "recency", "uniform")
DEVICES = 128  # `padded` divides by this, and so by every smaller power of two

# Distances are whole numbers and tolerances short decimals, so a true difference between the two sides of the
# rule is far above this, and a rounding error of float32 (0.3 * 50 > 15) far below it.
ROUNDING_SLACK = 1e-4

PAIRS_AT_ONCE = 2**13  # of texts whose distances are worked on, so that these stay in a core's own memory


@struct.dataclass
class ReplayBuffer:
    """Trajectories by query and slot. The same class without its leading axes describes a single item.

    Attributes:
        completion, token_mask, action_mask, state_mask, log_reward: as in `Trajectory`; zeros in a free slot.
        priority: log R at the state where the completion stopped; -inf marks a free slot.
        log_behavior: log-probability (nats) of the whole completion under the policy that drew it.
        drawn_at: the step that drew it; -1 where somebody else wrote it, whose `log_behavior` means nothing.
    """

    completion: Int[Array, "*slots T"]
    token_mask: Bool[Array, "*slots T"]
    action_mask: Bool[Array, "*slots T"]
    state_mask: Bool[Array, "*slots T"]
    log_reward: Float[Array, "*slots T"]
    priority: Float[Array, "*slots"]
    log_behavior: Float[Array, "*slots"]
    drawn_at: Int[Array, "*slots"]

    @property
    def filled(self) -> Bool[Array, "*slots"]:
        """Whether the slot holds an item."""
        return self.priority > -jnp.inf

    @property
    def length(self) -> Int[Array, "*slots"]:
        """The number of tokens of Z, stop excluded."""
        return self.token_mask.sum(-1, dtype=jnp.int32)


@struct.dataclass
class Replayed:
    """Rows drawn from a buffer.

    Attributes:
        trajectory: the completions; their rollout's `log_behavior` is 0 at every token, which were not kept.
        row_mask: which rows are real: where a query has no item its rows are all zeros and False.
        log_chosen: log-probability (nats) with which the item was chosen among its query's.
        log_behavior, drawn_at: as in `ReplayBuffer`.
    """

    trajectory: Trajectory
    row_mask: Bool[Array, " B"]
    log_chosen: Float[Array, " B"]
    log_behavior: Float[Array, " B"]
    drawn_at: Int[Array, " B"]


def init(num_queries: int, capacity: int, horizon: int) -> ReplayBuffer:
    """An empty buffer for `num_queries` queries of at most `capacity` items of `horizon` columns each."""
    shape = (num_queries, capacity, horizon)
    return ReplayBuffer(
        completion=jnp.zeros(shape, jnp.int32),
        token_mask=jnp.zeros(shape, bool),
        action_mask=jnp.zeros(shape, bool),
        state_mask=jnp.zeros(shape, bool),
        log_reward=jnp.zeros(shape, jnp.float32),
        priority=jnp.full(shape[:2], -jnp.inf, jnp.float32),
        log_behavior=jnp.zeros(shape[:2], jnp.float32),
        drawn_at=jnp.zeros(shape[:2], jnp.int32),
    )


def padded(num_queries: int) -> int:
    """Queries to make room for, so that any usual number of devices shares them evenly.

    It does not ask how many devices there are: a checkpoint may be read by another number of them.
    """
    return -(-num_queries // DEVICES) * DEVICES


def add(
    buffer: ReplayBuffer,
    example_id: Int[Array, " Q"],
    trajectory: Trajectory,
    tolerance: Float[Array, ""] | float,
    step: Int[Array, ""] | int = -1,
) -> ReplayBuffer:
    """Offers every row to its query's slots, in row order, by the rules above.

    Seeding with demonstrations is this same call with their trajectories.

    Args:
        buffer: the buffer, of [E, M] slots.
        example_id: the queries' places in [0, E), distinct within one call (a repeated id loses rows).
        trajectory: B = Q * N rows, those of one query adjacent.
        tolerance: share of the two lengths under which an edit distance makes a near-duplicate; traced.
        step: that drew the rows; -1 where somebody else wrote them.

    Raises:
        ValueError: the rows do not divide into the queries, or have another horizon than the buffer.
    """
    queries, (rows, horizon) = example_id.shape[0], trajectory.log_reward.shape
    if rows % queries or horizon != buffer.completion.shape[-1]:
        raise ValueError(
            f"the replay buffer has {buffer.completion.shape[-1]} columns and was offered {rows} rows of "
            f"{horizon} for {queries} queries: columns must agree and rows be a multiple of queries"
        )
    offered = jax.tree.map(lambda x: x.reshape(queries, -1, *x.shape[1:]), _items(trajectory, step))
    texts = (buffer.completion[example_id], buffer.token_mask[example_id].sum(-1, dtype=jnp.int32))
    places = jax.vmap(_insert, in_axes=(0, 0, 0, 0, None))(
        offered,
        buffer.priority[example_id],
        (_distances(offered, *texts), texts[1]),
        (_distances(offered, offered.completion, offered.length), offered.length),
        tolerance,
    )
    return jax.tree.map(lambda x, new: x.at[example_id[:, None], places].set(new, mode="drop"), buffer, offered)


def _items(trajectory: Trajectory, step: Int[Array, ""] | int) -> ReplayBuffer:
    """One item a row; the priority of a row that may not be stored is -inf, as if its slot were free."""
    rollout = trajectory.rollout
    priority = jnp.where(rollout.stop, trajectory.log_reward, 0.0).sum(-1)
    storable = rollout.stop.any(-1) & jnp.isfinite(priority)
    return ReplayBuffer(
        completion=rollout.completion,
        token_mask=rollout.token_mask,
        action_mask=rollout.action_mask,
        state_mask=rollout.state_mask,
        log_reward=trajectory.log_reward,
        priority=jnp.where(storable, priority, -jnp.inf),
        log_behavior=rollout.log_behavior.sum(-1),
        drawn_at=jnp.full(priority.shape, step, jnp.int32),
    )


def _distances(new: ReplayBuffer, completion: Int[Array, "Q M T"], length: Int[Array, "Q M"]) -> Int[Array, "Q N M"]:
    """Edit distances from each query's N new rows to M other texts, not of all pairs at once."""
    queries, rows = new.priority.shape
    count = length.shape[1]
    block = min(max(PAIRS_AT_ONCE // (queries * rows), 1), count)
    pieces = -(-count // block)

    def cut(x: Int[Array, "Q M ..."]) -> Int[Array, "n Q b ..."]:
        padded = jnp.pad(x, ((0, 0), (0, pieces * block - count), *[(0, 0)] * (x.ndim - 2)))
        return jnp.moveaxis(padded.reshape(queries, pieces, block, *x.shape[2:]), 1, 0)

    def one(texts: tuple[Int[Array, "Q b T"], Int[Array, "Q b"]]) -> Int[Array, "Q N b"]:
        return edit_distance(new.completion[:, :, None], new.length[:, :, None], *(x[:, None] for x in texts))

    found = jax.lax.map(one, (cut(completion), cut(length)))
    return jnp.moveaxis(found, 0, 2).reshape(queries, rows, -1)[..., :count]


def _insert(
    new: ReplayBuffer,
    level: Float[Array, " M"],
    to_stored: tuple[Int[Array, "N M"], Int[Array, " M"]],
    to_new: tuple[Int[Array, "N N"], Int[Array, " N"]],
    tolerance: Float[Array, ""] | float,
) -> Int[Array, " N"]:
    """The slot that each of a query's new rows has once all were offered; M where it has none.

    `level` is the slots' priority. Distances and lengths of what the slots hold are kept up to date by the scan.
    """
    (distances, lengths), (among, new_lengths), capacity = to_stored, to_new, len(level)

    def offer(carry: tuple[Array, Array, Array, Array], row: Int[Array, ""]) -> tuple[tuple, None]:
        level, distances, lengths, places = carry
        filled, distance = level > -jnp.inf, distances[row]
        duplicate = (filled & (distance == 0)).any()
        similar = filled & (distance < tolerance * (new_lengths[row] + lengths) - ROUNDING_SLACK)
        nearest = similar & (distance == jnp.where(similar, distance, jnp.iinfo(jnp.int32).max).min())
        rivals = nearest | ~similar.any()
        slot = jnp.where(rivals, level, jnp.inf).argmin()  # a free slot has level -inf, so it is taken first
        wins = ~duplicate & (new.priority[row] > level[slot])
        taken = jnp.where(wins, slot, capacity)
        return (
            level.at[taken].set(new.priority[row], mode="drop"),
            distances.at[:, taken].set(among[:, row], mode="drop"),
            lengths.at[taken].set(new_lengths[row], mode="drop"),
            jnp.where(places == taken, capacity, places).at[row].set(taken),
        ), None

    places = jnp.full(new_lengths.shape, capacity)
    return jax.lax.scan(offer, (level, distances, lengths, places), jnp.arange(len(places)))[0][-1]


def sampling_logits(
    priority: Float[Array, "*slots"],
    drawn_at: Int[Array, "*slots"],
    shares: Mapping[str, float],
    temperature: Float[Array, ""] | float = 1.0,
    now: Int[Array, ""] | int = 0,
    recency_steps: float = 1.0,
) -> Float[Array, "*slots"]:
    """Unnormalised log-probability of drawing each slot (last axis), -inf where it is free.

    Args:
        priority: the slots' log R, -inf where free.
        drawn_at: the step that drew each item.
        shares: mode of `MODES` -> its share of the mixture, static.
        temperature: positive; `reward` draws in proportion to R^(1 / temperature).
        now: the step that asks; only differences to `drawn_at` matter.
        recency_steps: `recency` draws in proportion to exp(-age / recency_steps).

    Raises:
        ValueError: an unknown mode, or no share above 0.
    """
    filled = priority > -jnp.inf
    levels = {
        "reward": lambda: jnp.where(filled, priority, 0.0) / temperature,
        "recency": lambda: (drawn_at - now) / recency_steps,
        "uniform": lambda: jnp.zeros(priority.shape),
    }
    parts = {mode: share for mode, share in shares.items() if share}
    if not parts or not set(parts) <= set(MODES):
        raise ValueError(f"replay shares {dict(shares)} are of unknown modes; there are {', '.join(MODES)}")
    logits = {mode: jnp.where(filled, levels[mode](), -jnp.inf) for mode in parts}
    if len(parts) == 1:
        return next(iter(logits.values()))
    total = sum(parts.values())
    mixed = [math.log(share / total) + log_shares(logits[mode], filled) for mode, share in parts.items()]
    return jnp.where(filled, jax.nn.logsumexp(jnp.stack(mixed), axis=0), -jnp.inf)


def log_shares(log_weight: Float[Array, "*b N"], counts: Bool[Array, "*b N"]) -> Float[Array, "*b N"]:
    """Log of each weight's share in the sum (last axis) of those that count; at most -1e30 elsewhere if any does."""
    return jax.nn.log_softmax(jnp.where(counts, log_weight, NEGATIVE), axis=-1)


def sample(
    buffer: ReplayBuffer,
    key: jax.Array,
    example_id: Int[Array, " Q"],
    num: int,
    shares: Mapping[str, float],
    temperature: Float[Array, ""] | float = 1.0,
    now: Int[Array, ""] | int = 0,
    recency_steps: float = 1.0,
) -> Replayed:
    """Draws `num` items of every query, with replacement; the rows of one query are adjacent (B = Q * num).

    Args:
        buffer: the buffer.
        key: randomness of this call.
        example_id: the queries' places.
        num: R, rows a query.
        shares: as of `sampling_logits`, and so is what follows.
        temperature: T.
        now: the step that asks.
        recency_steps: the scale of ages.
    """
    priority, drawn_at = buffer.priority[example_id], buffer.drawn_at[example_id]
    logits = sampling_logits(priority, drawn_at, shares, temperature, now, recency_steps)
    slot = jax.random.categorical(key, logits[:, None, :], shape=(example_id.shape[0], num))
    items = jax.tree.map(lambda x: x[example_id[:, None], slot].reshape(-1, *x.shape[2:]), buffer)
    chosen = jnp.take_along_axis(log_shares(logits, logits > -jnp.inf), slot, axis=-1)
    rollout = Rollout(
        completion=items.completion,
        token_mask=items.token_mask,
        action_mask=items.action_mask,
        state_mask=items.state_mask,
        log_behavior=jnp.zeros_like(items.log_reward),
    )
    return Replayed(
        trajectory=Trajectory(rollout=rollout, log_reward=items.log_reward),
        row_mask=items.filled,
        log_chosen=jnp.where(items.filled, chosen.reshape(-1), 0.0),
        log_behavior=items.log_behavior,
        drawn_at=items.drawn_at,
    )


def statistics(buffer: ReplayBuffer, num_queries: int) -> dict[str, Float[Array, ""]]:
    """What a log says of the buffer.

    Args:
        buffer: the buffer.
        num_queries: of the table; the buffer may have room for more.

    Returns:
        `filled`: share of slots that hold an item. `coverage`: share of queries with at least one.
        `best_priority`: a query's highest log R, averaged over the queries that have one (nats; 0 if none).
    """
    best = buffer.priority.max(axis=1)[:num_queries]
    found = best > -jnp.inf
    return {
        "filled": buffer.filled.sum(dtype=jnp.float32) / (num_queries * buffer.priority.shape[1]),
        "coverage": found.mean(dtype=jnp.float32),
        "best_priority": jnp.where(found, best, 0.0).sum() / jnp.maximum(found.sum(), 1),
    }
