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

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Float, Int

from gfn_jax.interfaces import Reward
from gfn_jax.models import decoder
from gfn_jax.models.language_model import LanguageModel
from gfn_jax.models.layers import NEGATIVE
from gfn_jax.models.partition import repeat_rows
from gfn_jax.policy.columns import Columns, as_rollout, empty_columns, next_column, once, read_token
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
from gfn_jax.types import Prefix, PyTree


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
    columns: Columns
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
        # Y is read behind the empty prefix, and with every token of Z.
        answer_tokens = problem.query.answer.mask.sum(axis=1) * self.twist.answers
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
            rows = once(wanted.any(), lambda rows: _copied(rows, flat, t), rows)
            base = jnp.where(repeat_rows(wanted, budget), rows.level, books.base)
            return rows, dataclasses.replace(books, base=base, log_z=log_z, resampled=books.resampled + wanted)

        def write(t: Array, rows: _Rows) -> tuple[_Rows, Columns]:
            """Column t, which is behind the last one where a chunk reaches so far: nothing is kept of it there."""
            drawn, _, _ = draw(jax.random.fold_in(key, t), rows.log_probs)
            forced = environment.forced(rows.tool)
            log_q = jnp.take_along_axis(rows.log_probs, drawn[:, None], axis=1)[:, 0]
            may_stop = rows.log_probs[:, stop] > NEGATIVE / 2
            column, done = next_column(constraint, forced, may_stop, drawn, log_q, rows.done)
            columns = {name: whole.at[t].set(column[name], mode="drop") for name, whole in rows.columns.items()}
            tool = environment.step(rows.tool, column["completion"])
            log_q = rows.log_q + column["log_behavior"]
            return dataclasses.replace(rows, columns=columns, tool=tool, done=done, log_q=log_q), column

        def advance(t: Array, rows: _Rows, token: Int[Array, " B"]) -> _Rows:
            """The policy reads the token; in the last column only the stop is left, and it need not be asked."""
            asked = ~jnp.all(rows.done) & (t < horizon - 2)
            hidden, cache = once(
                asked, lambda held: read_token(model, token, start, (shared,), held[1], t), (rows.hidden, rows.cache)
            )
            return dataclasses.replace(rows, hidden=hidden, cache=cache, log_probs=choices(t + 1, hidden, rows.tool))

        def step(carry: tuple[Array, _Rows, _Books]) -> tuple[Array, _Rows, _Books]:
            t, rows, books = carry
            rows, books = resample(t, measure(rows), books)

            def one(rows: _Rows, i: Array) -> tuple[_Rows, Columns]:
                rows, column = write(t + i, rows)
                return advance(t + i, rows, column["completion"]), column

            rows, chunk = jax.lax.scan(one, rows, jnp.arange(self.every))
            tokens, real = chunk["completion"].T, chunk["token_mask"].T

            def extend(held: tuple[PyTree, Prefix]) -> tuple[PyTree, Prefix]:
                following, before = held
                following, new = reward.extend(model.base, problem.prepared, fixed, following, tokens, real, t)
                last = real.sum(axis=1)  # tokens of Z in this chunk
                at = jnp.maximum(last - 1, 0)[:, None]
                picked = jax.tree.map(lambda x: jnp.take_along_axis(x, at, axis=1)[:, 0], new)
                return following, jax.tree.map(lambda old, x: jnp.where(last > 0, x, old), before, picked)

            following, prefix = once(real.any(), extend, (rows.reward, rows.prefix))
            rows = dataclasses.replace(rows, reward=following, prefix=prefix)
            if rows.prefix.log_reward is not None:
                rows = dataclasses.replace(
                    rows, level=jnp.where(rows.done, rows.prefix.log_reward - rows.log_q, rows.level)
                )
            books = dataclasses.replace(
                books,
                generated=books.generated + per_query(chunk["action_mask"].T, queries).sum(axis=(1, 2)),
                scored=books.scored + per_query(real, queries).sum(axis=(1, 2)) * (1 + answer_tokens),
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
            columns=empty_columns(constraint, rows),
            done=zeros > 0,
            log_q=zeros,
            level=zeros,
            root=jnp.tile(jnp.arange(budget), queries),
        )
        books = _Books(base=zeros, log_z=jnp.zeros((queries,)), generated=none, scored=answer_tokens, resampled=none)
        _, last, books = jax.lax.while_loop(
            lambda carry: (carry[0] < horizon) & ~jnp.all(carry[1].done), step, (jnp.int32(0), initial, books)
        )
        sampled = as_rollout(last.columns)
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


def _copied(rows: _Rows, parents: Int[Array, " B"], written: Int[Array, ""]) -> _Rows:
    """Rows in their parents' place; caches as far as they are written, columns of a rollout with the rows behind."""
    columns = {name: value[:, parents] for name, value in rows.columns.items()}
    return decoder.follow(dataclasses.replace(rows, columns={}), parents, written).replace(columns=columns)
