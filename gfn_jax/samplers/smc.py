"""Sequential Monte Carlo over prefixes: rows that look bad are given up, for copies of rows that look good.

The policy q is the proposal. With gamma_t a twisted target (`twists`) and gamma = R of what has stopped, a row weighs

    w_t = gamma_t(z_1:t) / (gamma_s(z_1:s) q(z_s+1:t | z_1:s))        since its last resampling, at s

and where the effective size of a query's weights has fallen below `threshold` of its rows, they are resampled
(systematically; Doucet & Johansen 2009), each query by itself. The product of the mean weights at all resamplings and
at the end is an unbiased estimate of Z = sum R(Z), whatever the twist. With q = p_LM this is the sampler of Zhao et al.
2024 (arXiv:2404.17546) with the base as the proposal; with a trained q it corrects the policy.

One program, shaped as `policy.rollout`: a prompt is read once, a column is written after the other, and the reward
follows along (`interfaces.Incremental`). A copy takes its row's caches along, as many columns as have been written.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Float, Int

from gfn_jax.interfaces import Reward
from gfn_jax.models import decoder
from gfn_jax.models.language_model import LanguageModel
from gfn_jax.models.layers import NEGATIVE
from gfn_jax.models.partition import repeat_rows
from gfn_jax.policy.draw import draw
from gfn_jax.rewards.compose import incremental
from gfn_jax.samplers.sampler import (
    Problem,
    Weighed,
    effective_size,
    final_log_reward,
    log_mean_weight,
    per_query,
)
from gfn_jax.samplers.twists import Answer, States, Twist
from gfn_jax.types import Prefix, PyTree, Rollout


@struct.dataclass
class _Rows:
    """All that a copy takes along.

    Attributes:
        log_probs: log q of what may be chosen next.
        hidden: the state it is read off.
        cache: the policy's keys.
        tool: the environment's state.
        reward: the reward's.
        prefix: what it makes of the row so far.
        columns: the rollout's, so far, column leading.
        done: the row has stopped.
        log_q: log q(z_1:t) in nats.
        level: log gamma - log q, where gamma was last known.
        root: the row's first ancestor.
    """

    log_probs: Float[Array, "B A"]
    hidden: Float[Array, "B E"]
    cache: PyTree
    tool: PyTree
    reward: PyTree
    prefix: Prefix
    columns: dict[str, Array]
    done: Bool[Array, " B"]
    log_q: Float[Array, " B"]
    level: Float[Array, " B"]
    root: Int[Array, " B"]


@struct.dataclass
class _Books:
    """What is kept a query: log Z so far, tokens, resamplings; and a row's level when it was last resampled."""

    base: Float[Array, " B"]
    log_z: Float[Array, " Q"]
    generated: Int[Array, " Q"]
    scored: Int[Array, " Q"]
    resampled: Int[Array, " Q"]


@dataclasses.dataclass(frozen=True)
class SMC:
    """Sequential Monte Carlo with N rows a query.

    Attributes:
        reward: log R; one that can follow completions (`interfaces.Incremental`).
        twist: what unfinished rows are worth.
        threshold: a query is resampled where its effective size is below this share of N; 0 never, 1 always.
        every: columns between two looks at the weights, which are scored together.

    Raises:
        ValueError: the reward cannot follow completions, or a number is out of range.
    """

    reward: Reward
    twist: Twist = dataclasses.field(default_factory=Answer)
    threshold: float = 0.5
    every: int = 1

    def __post_init__(self):
        incremental(self.reward)
        if not 0 <= self.threshold <= 1 or self.every < 1:
            raise ValueError(f"threshold must lie in 0..1 and every be at least 1, not {self.threshold}, {self.every}")

    def sample(self, model: LanguageModel, problem: Problem, budget: int, key: jax.Array) -> Weighed:
        """`notes`: the final effective size, how often a query was resampled, and how many first ancestors are left."""
        constraint, environment = problem.rules.constraint, problem.rules.environment
        queries, horizon = len(problem.query.example_id), constraint.horizon
        rows, reward = queries * budget, incremental(self.reward)
        hidden, shared = decoder.prefill(model, problem.query.prompt)
        hidden = repeat_rows(hidden[:, -1], budget)
        start = decoder.past_length((shared,), rows)
        head, stop = decoder.select_head(model, constraint.columns), constraint.column_of[constraint.stop_id]
        answer_tokens = problem.query.answer.mask.sum(axis=1)
        fixed, following, prefix = reward.begin(
            model.base, problem.prepared, problem.query, (rows, horizon - 1, self.every), self.twist.answers
        )

        def choices(t: Array | int, hidden: Array, tool: PyTree) -> Float[Array, "B A"]:
            allowed = constraint.allowed(jnp.full((rows,), t), environment.may_stop(tool))
            return jax.nn.log_softmax(jnp.where(allowed, decoder.logits(head, hidden), NEGATIVE))

        def measure(rows: _Rows) -> _Rows:
            """The rows' levels, where their states are known."""
            log_stop = rows.log_probs[:, stop]
            may_stop = (environment.forced(rows.tool) < 0) & (log_stop > NEGATIVE / 2)
            log_gamma, known = self.twist.log_potential(States(rows.prefix, log_stop, rows.hidden, may_stop))
            return dataclasses.replace(rows, level=jnp.where(~rows.done & known, log_gamma - rows.log_q, rows.level))

        def resample(t: Array, rows: _Rows, books: _Books) -> tuple[_Rows, _Books]:
            """The queries whose weights have become too uneven."""
            log_weight = per_query(rows.level - books.base, queries)
            wanted = effective_size(log_weight) < self.threshold * budget
            parent = systematic(jax.random.fold_in(jax.random.fold_in(key, t), 1), log_weight)
            parent = jnp.where(wanted[:, None], parent, jnp.arange(budget)).astype(jnp.int32)
            flat = (parent + budget * jnp.arange(queries)[:, None]).reshape(-1)
            log_z = books.log_z + jnp.where(wanted, log_mean_weight(log_weight), 0.0)
            rows = _once(wanted.any(), lambda rows: _copied(rows, flat, t), rows)
            base = jnp.where(repeat_rows(wanted, budget), rows.level, books.base)
            return rows, dataclasses.replace(books, base=base, log_z=log_z, resampled=books.resampled + wanted)

        def write(t: Array, rows: _Rows) -> tuple[_Rows, Array, Array, Array]:
            """Column t; returns the tokens, which belong to Z, and which the policy chose."""
            drawn, _, _ = draw(jax.random.fold_in(key, t), rows.log_probs)
            forced = environment.forced(rows.tool)
            decides = ~rows.done & (forced < 0)
            token = jnp.where(forced < 0, constraint.token_ids[drawn], forced)
            token = jnp.where(rows.done, constraint.stop_id, token).astype(jnp.int32)
            stops = decides & constraint.is_stop[drawn]
            log_q = jnp.where(decides, jnp.take_along_axis(rows.log_probs, drawn[:, None], axis=1)[:, 0], 0.0)
            column = {
                "completion": token,
                "token_mask": ~rows.done & ~stops,
                "action_mask": decides,
                "state_mask": decides & (rows.log_probs[:, stop] > NEGATIVE / 2),
                "log_behavior": log_q,
            }
            columns = {name: whole.at[t].set(column[name], mode="drop") for name, whole in rows.columns.items()}
            tool = environment.step(rows.tool, token)
            rows = dataclasses.replace(
                rows, columns=columns, tool=tool, done=rows.done | stops, log_q=rows.log_q + log_q
            )
            return rows, token, column["token_mask"], decides

        def advance(t: Array, rows: _Rows, token: Int[Array, " B"]) -> _Rows:
            """The policy reads the token; in the last column only the stop is left, and it need not be asked."""

            def read(held: tuple[Array, Any]) -> tuple[Array, Any]:
                _, cache = held
                visible = (jnp.arange(cache.mask.shape[1]) <= t)[None, None, :]
                positions = (start + t)[:, None]
                hidden, cache = decoder.forward(model, token[:, None], positions, visible, (shared,), cache, t)
                return hidden[:, 0], cache

            asked = ~jnp.all(rows.done) & (t < horizon - 2)
            hidden, cache = _once(asked, read, (rows.hidden, rows.cache))
            return dataclasses.replace(rows, hidden=hidden, cache=cache, log_probs=choices(t + 1, hidden, rows.tool))

        def step(carry: tuple[Array, _Rows, _Books]) -> tuple[Array, _Rows, _Books]:
            t, rows, books = carry
            rows, books = resample(t, measure(rows), books)

            def one(rows: _Rows, i: Array) -> tuple[_Rows, tuple[Array, Array, Array]]:
                rows, token, real, decides = write(t + i, rows)
                return advance(t + i, rows, token), (token, real, decides)

            rows, (tokens, real, decides) = jax.lax.scan(one, rows, jnp.arange(self.every))
            read = per_query(real.T, queries).sum(axis=(1, 2))

            def extend(held: tuple[PyTree, Prefix]) -> tuple[PyTree, Prefix]:
                following, before = held
                following, new = reward.extend(model.base, problem.prepared, fixed, following, tokens.T, real.T, t)
                last = real.sum(axis=0)  # tokens of Z in this chunk
                at = jnp.maximum(last - 1, 0)[:, None]
                picked = jax.tree.map(lambda x: jnp.take_along_axis(x, at, axis=1)[:, 0], new)
                return following, jax.tree.map(lambda old, x: jnp.where(last > 0, x, old), before, picked)

            following, prefix = _once(real.any(), extend, (rows.reward, rows.prefix))
            rows = dataclasses.replace(rows, reward=following, prefix=prefix)
            if rows.prefix.log_reward is not None:
                rows = dataclasses.replace(
                    rows, level=jnp.where(rows.done, rows.prefix.log_reward - rows.log_q, rows.level)
                )
            books = dataclasses.replace(
                books,
                generated=books.generated + per_query(decides.T, queries).sum(axis=(1, 2)),
                scored=books.scored + read * (1 + self.twist.answers * answer_tokens),
            )
            return t + self.every, rows, books

        zeros, none = jnp.zeros((rows,)), jnp.zeros((queries,), jnp.int32)
        tool = environment.init(rows)
        cache = decoder.empty_cache(model.shape, rows, horizon - 1, hidden.dtype)
        initial = _Rows(
            log_probs=choices(0, hidden, tool),
            hidden=hidden,
            cache=cache,
            tool=tool,
            reward=following,
            prefix=prefix,
            columns=_empty_columns(horizon, rows, constraint.stop_id),
            done=zeros > 0,
            log_q=zeros,
            level=zeros,
            root=jnp.tile(jnp.arange(budget), queries),
        )
        scored = answer_tokens * self.twist.answers
        books = _Books(base=zeros, log_z=jnp.zeros((queries,)), generated=none, scored=scored, resampled=none)
        _, last, books = jax.lax.while_loop(
            lambda carry: (carry[0] < horizon) & ~jnp.all(carry[1].done), step, (jnp.int32(0), initial, books)
        )
        sampled = Rollout(**{name: jnp.swapaxes(value, 0, 1) for name, value in last.columns.items()})
        log_reward, scored = last.prefix.log_reward, books.scored
        if log_reward is None:
            log_reward, read = final_log_reward(self.reward, model, problem, sampled)
            scored = scored + read
        log_weight = log_reward - last.log_q - books.base
        by_query, roots = per_query(log_weight, queries), jnp.sort(per_query(last.root, queries), axis=1)
        return Weighed(
            rollout=sampled,
            log_weight=log_weight,
            log_reward=log_reward,
            log_z=books.log_z + log_mean_weight(by_query),
            generated=books.generated,
            scored=scored,
            notes={
                "ess": effective_size(by_query),
                "resampled": books.resampled.astype(jnp.float32),
                "roots": 1.0 + (roots[:, 1:] != roots[:, :-1]).sum(axis=1),
            },
        )


def systematic(key: jax.Array, log_weight: Float[Array, "Q N"]) -> Int[Array, "Q N"]:
    """N parents for each query, in order: row n is one floor or ceil(N w_n / sum w) times (Kitagawa 1996)."""
    queries, count = log_weight.shape
    share = jnp.cumsum(jax.nn.softmax(log_weight, axis=1), axis=1)
    point = (jnp.arange(count) + jax.random.uniform(key, (queries, 1))) / count
    return jnp.minimum(jax.vmap(jnp.searchsorted)(share, point), count - 1)


def _once(condition: Bool[Array, ""], change: Callable[[Any], Any], x: Any) -> Any:
    """`change(x)` under a condition, else x: a loop of one round or none, as a `cond` would copy what it may change."""

    def one(carry: tuple[Any, Any]) -> tuple[Any, Any]:
        return jnp.bool_(False), change(carry[1])

    return jax.lax.while_loop(lambda carry: carry[0], one, (condition, x))[1]


def _copied(rows: _Rows, parents: Int[Array, " B"], written: Int[Array, ""]) -> _Rows:
    """Rows in their parents' place; caches as far as they are written, columns of a rollout with the rows behind."""
    columns = {name: value[:, parents] for name, value in rows.columns.items()}
    return decoder.follow(dataclasses.replace(rows, columns={}), parents, written).replace(columns=columns)


def _empty_columns(horizon: int, rows: int, stop_id: int) -> dict[str, Array]:
    false = jnp.zeros((horizon, rows), bool)
    return {
        "completion": jnp.full((horizon, rows), stop_id, jnp.int32),
        "token_mask": false,
        "action_mask": false,
        "state_mask": false,
        "log_behavior": jnp.zeros((horizon, rows), jnp.float32),
    }
