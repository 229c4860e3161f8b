"""Beam search and diverse beam search: completions that are searched for, token for token as `transformers` does.

W running beams and a pool of the W best finished ones, by (sum of log q) / length^`length_penalty`, the length
counting the stop. In every column the 2 W likeliest continuations of the running beams are looked at: those among the
first W that stop go to the pool, the first W that do not stop run on. It ends when the pool is full and no running
beam, by the bound of `early_stopping`, can enter it. With no length penalty log q(Z stop) itself is looked for.

In diverse beam search (Vijayakumar et al. 2016, arXiv:1610.02424, Hamming diversity) G groups of W / G beams, each
with a pool of its own, take turns in every column; a token costs group g `diversity_penalty` nats for each time that
the running beams of the groups before it have just taken it, and the cost stays in the beam's score.

In terms of `transformers`' settings: num_beams = num_return_sequences is the budget; max_new_tokens = T with
forced_eos_token_id the stop, since in the last column only the stop is left, at log-probability 0; min_new_tokens =
min_length; the constraint is a mask before the softmax (`renormalize_logits`). Where it differs, as it must: what a
tool writes has log-probability 0 and costs nothing; a beam without a continuation is dropped, where theirs takes a
forbidden token; a finished group's padding, which theirs counts as a token, costs later groups nothing.
"""

import dataclasses
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Float, Int

from gfn_jax.models import decoder
from gfn_jax.models.language_model import LanguageModel
from gfn_jax.models.layers import NEGATIVE, KeyValues
from gfn_jax.models.partition import repeat_rows
from gfn_jax.policy.columns import once, read_token
from gfn_jax.policy.constraint import Rules
from gfn_jax.policy.teacher import teacher_force
from gfn_jax.samplers.sampler import Problem, Weighed
from gfn_jax.types import PyTree, Rollout, Tokens

EarlyStopping = bool | Literal["never"]


@dataclasses.dataclass(frozen=True)
class Beam:
    """Beam search; the budget is how many beams run at once. Greedy decoding is `Ancestral(temperature=0)`.

    Attributes:
        num_beam_groups: G; the budget is a multiple.
        diversity_penalty: nats that a repetition of an earlier group's token costs.
        length_penalty: the power of the length that a log-probability is divided by; positive prefers long ones.
        early_stopping: when a full pool ends the search: at once (True); when no running beam, were it finished now,
            would enter (False); when none could at any length ("never").
    """

    num_beam_groups: int = 1
    diversity_penalty: float = 0.0
    length_penalty: float = 0.0
    early_stopping: EarlyStopping = False

    def __post_init__(self):
        if self.num_beam_groups < 1:
            raise ValueError(f"num_beam_groups must be at least 1, it is {self.num_beam_groups}")
        if not self.diversity_penalty >= 0:
            raise ValueError(f"diversity_penalty must not be negative, it is {self.diversity_penalty}")
        if self.diversity_penalty and self.num_beam_groups == 1:
            raise ValueError("diversity_penalty sets groups apart; num_beam_groups is 1")
        if self.early_stopping not in (True, False, "never"):
            raise ValueError(f"early_stopping must be True, False or 'never', it is {self.early_stopping!r}")

    def sample(self, model: LanguageModel, problem: Problem, budget: int, key: jax.Array) -> Weighed:
        """All that were found, each counting alike, by falling score; nothing is drawn.

        `log_behavior` is the policy's own log q of every token it chose, without penalties. `generated`: the tokens
        that were read to go on from, also of beams that were given up, and the stops of all that entered the pool.
        """
        del key
        rollout, score, generated = beam_search(
            model,
            problem.query.prompt,
            problem.rules,
            budget,
            self.num_beam_groups,
            self.diversity_penalty,
            self.length_penalty,
            self.early_stopping,
        )
        return Weighed(
            rollout=rollout,
            log_weight=jnp.where(score.reshape(-1) > -jnp.inf, 0.0, -jnp.inf),
            log_reward=None,
            log_z=None,
            generated=generated,
            scored=jnp.zeros_like(generated),
        )


@struct.dataclass
class _Beams:
    """Completions of Q queries: running ones, or a pool. A score of about -1e30 or less: there is none.

    Attributes:
        completion: filled up with the stop.
        log_q: of each token under the policy; 0 where a tool wrote it.
        score: what they are ranked by, the length penalty being in a pool's alone.
        length: tokens of Z.
    """

    completion: Int[Array, "Q N T"]
    log_q: Float[Array, "Q N T"]
    score: Float[Array, "Q N"]
    length: Int[Array, "Q N"]


def beam_search(
    model: LanguageModel,
    prompt: Tokens,
    rules: Rules,
    num_beams: int,
    num_beam_groups: int = 1,
    diversity_penalty: Float[Array, ""] | float = 0.0,
    length_penalty: Float[Array, ""] | float = 0.0,
    early_stopping: EarlyStopping = False,
) -> tuple[Rollout, Float[Array, "Q N"], Int[Array, " Q"]]:
    """N = `num_beams` completions of each of Q prompts, the penalties being traced.

    Args:
        model: the policy.
        prompt: [Q, P], padded left.
        rules: vocabulary, length and tool.
        num_beams: N, of all groups together.
        num_beam_groups: G.
        diversity_penalty: in nats.
        length_penalty: the power of the length.
        early_stopping: as in `Beam`.

    Returns:
        The completions by falling score; their scores (-inf: nothing was found, and the row is empty); how many tokens
        were generated for each prompt.

    Raises:
        ValueError: the beams do not divide into the groups, or fewer tokens than beams may be chosen.
    """
    constraint, environment = rules.constraint, rules.environment
    queries, rows, horizon = len(prompt.ids), len(prompt.ids) * num_beams, constraint.horizon
    if num_beams % num_beam_groups:
        raise ValueError(f"{num_beams} beams do not divide into {num_beam_groups} groups")
    width, count = num_beams // num_beam_groups, len(constraint.token_ids)
    if width >= count:
        raise ValueError(f"{count} tokens are too few for {width} beams a group")
    hidden, shared = decoder.prefill(model, prompt)
    hidden = repeat_rows(hidden[:, -1], num_beams)
    start = decoder.past_length((shared,), rows)
    head = decoder.select_head(model, constraint.columns)
    cache = decoder.empty_cache(model.shape, rows, horizon - 1, hidden.dtype)

    def extend(t, hidden, tool, running: _Beams, pool: _Beams, done):
        """Column t of all beams: which of them run on and from where, what has finished, and which groups are done."""
        forced = environment.forced(tool)
        allowed = constraint.allowed(jnp.full((rows,), t), environment.may_stop(tool))
        log_q = jax.nn.log_softmax(jnp.where(allowed, decoder.logits(head, hidden), NEGATIVE))
        # What the tool writes is the only choice, and stands in the first column.
        only = jnp.where(jnp.arange(count) == 0, 0.0, NEGATIVE)
        log_q = jnp.where(forced[:, None] < 0, log_q, only).reshape(queries, num_beams, count)
        forced = forced.reshape(queries, num_beams)
        used = jnp.zeros((queries, count))
        parents, tokens, goes_on, pools, ends = [], [], [], [], []
        stopped = jnp.zeros((queries,), jnp.int32)
        for group in range(num_beam_groups):
            own = slice(group * width, (group + 1) * width)
            free = forced[:, own] < 0
            cost = jnp.where(free[..., None] & (t < horizon - 1), diversity_penalty * used[:, None], 0.0)
            gain = log_q[:, own].reshape(queries, -1)
            scores = (running.score[:, own, None] - cost).reshape(queries, -1) + gain
            best, index = jax.lax.top_k(scores, 2 * width)
            best = jnp.maximum(best, NEGATIVE)
            parent, column = index // count, index % count
            free = _take(free, parent)
            stops = free & constraint.is_stop[column]
            token = jnp.where(free, constraint.token_ids[column], _take(forced[:, own], parent))
            parent = parent + own.start
            after = _Beams(
                completion=_take(running.completion, parent).at[..., t].set(token),
                log_q=_take(running.log_q, parent).at[..., t].set(_take(gain, index)),
                score=best,
                length=jnp.full_like(parent, t),
            )
            # Of what stops only the first W count; the others of the 2 W are there so that W can go on.
            finished = stops & _there(best) & (jnp.arange(2 * width) < width) & ~done[:, group, None]
            final = jnp.where(finished, best / (t + 1.0) ** length_penalty, NEGATIVE)
            merged = jax.tree.map(
                lambda old, new, own=own: jnp.concatenate([old[:, own], new], axis=1),
                pool,
                dataclasses.replace(after, score=final),
            )
            ranked, kept = jax.lax.top_k(merged.score, width)
            pools.append(jax.tree.map(lambda x, kept=kept: _take(x, kept), merged))
            going, chosen = jax.lax.top_k(jnp.where(stops, NEGATIVE, best), width)
            # Here `transformers`' two searches differ: the best running beam leads, with groups the best candidate.
            leader = going[:, 0] if num_beam_groups == 1 else best[:, 0]
            longest = jnp.where((early_stopping == "never") & (length_penalty > 0), horizon, t + 1.0)
            beaten = ranked[:, -1] >= leader / longest**length_penalty
            ends.append(done[:, group] | (_there(ranked[:, -1]) & (beaten | (early_stopping is True))))
            # The policy's own choices; a group that has just ended still costs those after it, and writes no more.
            chose = _there(going) & _take(free, chosen) & ~done[:, group, None]
            used = used + (jax.nn.one_hot(_take(column, chosen), count) * chose[..., None]).sum(1)
            chose &= ~ends[-1][:, None]
            goes_on.append(jax.tree.map(lambda x, chosen=chosen: _take(x, chosen), after))
            parents.append(_take(parent, chosen))
            tokens.append(_take(token, chosen))
            stopped = stopped + finished.sum(1) + chose.sum(1)
        parent, token, running, pool = (_join(x) for x in (parents, tokens, goes_on, pools))
        flat = (jnp.arange(queries)[:, None] * num_beams + parent).reshape(-1)
        tool = environment.step(jax.tree.map(lambda x: x[flat], tool), token.reshape(-1))
        return flat, token.reshape(-1), tool, running, pool, jnp.stack(ends, axis=1), stopped

    def step(carry: tuple[Any, ...]) -> tuple[Any, ...]:
        t, hidden, cache, tool, running, pool, done, generated = carry
        flat, token, tool, running, pool, done, more = extend(t, hidden, tool, running, pool, done)
        # In the last column only the stop is left: the model need not be asked.
        asked = ~jnp.all(done) & (t < horizon - 2)

        def advance(held: tuple[Array, KeyValues]) -> tuple[Array, KeyValues]:
            return read_token(model, token, start, (shared,), decoder.follow(held[1], flat, t), t)

        hidden, cache = once(asked, advance, (hidden, cache))
        return t + 1, hidden, cache, tool, running, pool, done, generated + more

    shape = (queries, num_beams, horizon)
    nothing = _Beams(
        completion=jnp.full(shape, constraint.stop_id, jnp.int32),
        log_q=jnp.zeros(shape),
        score=jnp.full(shape[:2], NEGATIVE),
        length=jnp.zeros(shape[:2], jnp.int32),
    )
    # All beams of a group are the same before the first token: only its first is there.
    first = jnp.broadcast_to(jnp.where(jnp.arange(num_beams) % width, NEGATIVE, 0.0), shape[:2])
    done = jnp.zeros((queries, num_beam_groups), bool)
    zeros = jnp.zeros((queries,), jnp.int32)
    carry = (
        jnp.int32(0),
        hidden,
        cache,
        environment.init(rows),
        dataclasses.replace(nothing, score=first),
        nothing,
        done,
        zeros,
    )
    carry = jax.lax.while_loop(lambda carry: (carry[0] < horizon) & ~jnp.all(carry[-2]), step, carry)
    pool, generated = carry[-3], carry[-1]
    order = jnp.argsort(-pool.score, axis=1)
    pool = jax.tree.map(lambda x: _take(x, order), pool)
    found = _there(pool.score)
    return _written(pool, found, rules), jnp.where(found, pool.score, -jnp.inf), generated


def _there(score: Float[Array, "*b"]) -> Bool[Array, "*b"]:
    """Whether there is such a beam."""
    return score > NEGATIVE / 2


def _take(x: Array, index: Int[Array, "Q M"]) -> Array:
    """[Q, M, ...]: rows of each query."""
    return jnp.take_along_axis(x, index.reshape(*index.shape, *[1] * (x.ndim - 2)), axis=1)


def _join(groups: list[PyTree]) -> PyTree:
    """Groups side by side."""
    return jax.tree.map(lambda *parts: jnp.concatenate(parts, axis=1), *groups)


def _written(pool: _Beams, found: Bool[Array, "Q N"], rules: Rules) -> Rollout:
    """The pool as a rollout; rows that hold nothing have no masks."""
    completion, log_q, length, found = (
        x.reshape(-1, *x.shape[2:]) for x in (pool.completion, pool.log_q, pool.length, found)
    )
    written = teacher_force(completion, length, rules)
    masks = {name: getattr(written, name) & found[:, None] for name in ("token_mask", "action_mask", "state_mask")}
    return dataclasses.replace(written, **masks, log_behavior=jnp.where(masks["action_mask"], log_q, 0.0))
