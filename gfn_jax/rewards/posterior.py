"""log R of stopping after every prefix, in two passes of the frozen base.

The reward of Hu et al. 2024 (ICLR), section 3: R(z_1:t stop) = p_LM(X z_1:t Y), here given a few-shot context that
is constant for the run; p_LM(X) and p_LM(context) do not depend on Z and are left out. The answer Y must be scored
after every prefix, so Z is read once and Y as T rows, one behind each prefix, which look at Z's keys up to there:

    z_1 ... z_T-1         [Y after z_1:0] [Y after z_1:1] ... [Y after z_1:T-1]

A Y token sees the context, its own prefix of Z and its own block, at the positions it would have had. Y's last token
is never an input, and its first is predicted by the state it follows, so a block costs Y - 1 tokens. With Y = the stop
alone (continuation) there is only the pass over Z. No array has (T Y)^2 numbers: T Y tokens look at T + Y keys. Where
that is more than a few tokens, Y is read only behind prefixes that may be completions, as many as some row has.
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Float, Int

from gfn_jax.models import decoder
from gfn_jax.models.language_model import LanguageModel
from gfn_jax.models.layers import KeyValues
from gfn_jax.models.partition import ROWS, parts_of, repeat_rows
from gfn_jax.types import Prefix, PyTree, Query, Rollout, Tokens

LONGEST_AT_ONCE = 32  # tokens of Z that are read in one pass; of more, those that some row has
PIECE = 16  # tokens of Z that are then read at a time
ANSWER_TOKENS = 1024  # of Y that a device reads at a time, about; no more are read behind all prefixes at once


@struct.dataclass
class Context:
    """What a `PosteriorReward` keeps for the whole run."""

    demonstrations: KeyValues | None
    penalty: Float[Array, " V"] | None


@dataclasses.dataclass(frozen=True)
class PosteriorReward:
    """log p_LM(z_1:t Y | demonstrations X), for every t, by the model that it is given.

    Attributes:
        demonstrations: [1, D], the few-shot context, or None.
        vocabulary_penalty: per token, nats taken off its logit (then renormalised) where it is scored as part of Z.
            The released code's way to lower the reward of tokens outside the vocabulary; None leaves p_LM alone.
        released_min_length: the released code writes -99 over the reward of shorter completions, also where the
            true one is lower. The constraint makes this unnecessary; 0 leaves rewards alone.
    """

    demonstrations: Tokens | None = None
    vocabulary_penalty: Float[Array, " V"] | None = None
    released_min_length: int = 0

    def prepare(self, model: LanguageModel) -> Context:
        """The demonstrations' keys and values: computed once, as the base is frozen."""
        cache = None
        if self.demonstrations is not None:
            _, cache = decoder.prefill(model, self.demonstrations)
        return Context(demonstrations=cache, penalty=self.vocabulary_penalty)

    def log_reward(
        self, model: LanguageModel, prepared: Context, query: Query, rollout: Rollout
    ) -> Float[Array, "B T"]:
        """Scores every prefix of B = Q * N completions, in nats; meaningful where `state_mask` holds.

        Elsewhere Y may be left out.
        """
        rows, horizon = rollout.completion.shape
        if horizon - 1 > LONGEST_AT_ONCE:
            return self._in_pieces(model, prepared, query, rollout)
        repeats = rows // query.example_id.shape[0]
        answer = jax.tree.map(lambda x: repeat_rows(x, repeats), query.answer)
        past = () if prepared.demonstrations is None else (prepared.demonstrations,)
        first, shared = decoder.prefill(model, query.context, past)
        first = repeat_rows(first[:, -1:], repeats)
        past = (*past, shared)
        start = decoder.past_length(past, rows)
        states, own = first, None
        if horizon > 1:
            positions, visible = start[:, None] + jnp.arange(horizon - 1), causal(horizon - 1)
            hidden, own = decoder.forward(model, rollout.completion[:, :-1], positions, visible, past)
            states = jnp.concatenate([first, hidden], axis=1)
        head = decoder.select_head(model)
        # Each state predicts two tokens: Z's next and Y's first.
        targets = jnp.stack([rollout.completion, jnp.broadcast_to(answer.ids[:, :1], (rows, horizon))], axis=-1)
        log_probs = token_log_probs(head, states, targets, prepared.penalty)
        log_z = jnp.where(rollout.token_mask, log_probs[..., 0], 0.0)
        log_z = jnp.cumsum(jnp.pad(log_z[:, :-1], ((0, 0), (1, 0))), axis=1)  # sum over k < t
        log_y = jnp.where(answer.mask[:, :1], log_probs[..., 1], 0.0)
        if answer.ids.shape[1] > 1:

            def rest(lengths: Int[Array, "*B k"]) -> Float[Array, "B k"]:
                seen = past if own is None else (*past, up_to(own, lengths))
                return rest_log_probs(model, head, seen, start, lengths, answer)

            at_once = prefixes_at_once(rows // parts_of(ROWS), horizon, answer.ids.shape[1])
            whole = at_once == horizon
            log_y = log_y + (rest(jnp.arange(horizon)) if whole else where_asked(rollout.state_mask, rest, at_once))
        return self._released(log_z + log_y)

    def _released(self, log_reward: Float[Array, "B T"]) -> Float[Array, "B T"]:
        """With what the released code writes over short completions' rewards."""
        if not self.released_min_length:
            return log_reward
        return jnp.where(jnp.arange(log_reward.shape[1]) < self.released_min_length, -99.0, log_reward)

    def _in_pieces(
        self, model: LanguageModel, prepared: Context, query: Query, rollout: Rollout
    ) -> Float[Array, "B T"]:
        """The same, `PIECE` columns after the other as far as the longest row goes; 0 behind them."""
        rows, horizon = rollout.completion.shape
        count = -(-(horizon - 1) // PIECE)
        followed = dataclasses.replace(self, released_min_length=0)
        fixed, state, prefix = followed.begin(model, prepared, query, (rows, horizon - 1, PIECE), True)
        room = ((0, 0), (0, count * PIECE - (horizon - 1)))
        tokens, mask = jnp.pad(rollout.completion[:, :-1], room), jnp.pad(rollout.token_mask[:, :-1], room)
        longest = mask.any(axis=0).sum()

        def one(carry: tuple[Array, PyTree, Array]) -> tuple[Array, PyTree, Array]:
            column, state, found = carry
            own, real = (jax.lax.dynamic_slice_in_dim(x, column, PIECE, axis=1) for x in (tokens, mask))
            state, prefix = followed.extend(model, prepared, fixed, state, own, real, column)
            assert prefix.log_reward is not None  # it was asked for
            found = jax.lax.dynamic_update_slice(found, prefix.log_reward, (0, column + 1))
            return column + PIECE, state, found

        found = jnp.zeros((rows, 1 + count * PIECE)).at[:, 0].set(prefix.log_reward)
        found = jax.lax.while_loop(lambda carry: carry[0] < longest, one, (jnp.int32(0), state, found))[-1]
        return self._released(found[:, :horizon])

    def begin(
        self, model: LanguageModel, prepared: Context, query: Query, shape: tuple[int, int, int], answers: bool
    ) -> tuple[PyTree, PyTree, Prefix]:
        """As `interfaces.Incremental` has it: a row's own keys are what is kept of it.

        Raises:
            ValueError: with `released_min_length`, which no prefix can tell of.
        """
        if self.released_min_length:
            raise ValueError("released_min_length writes over rewards: prefixes cannot be followed with it")
        rows, columns, chunk = shape
        queries = query.example_id.shape[0]
        past = () if prepared.demonstrations is None else (prepared.demonstrations,)
        hidden, shared = decoder.prefill(model, query.context, past)
        hidden, past, answer = hidden[:, -1], (*past, shared), query.answer if answers else None
        head, log_reward, start = decoder.select_head(model), None, decoder.past_length(past, queries)
        _, normaliser = decoder.logits_at(head, hidden, query.context.ids[:, :1], prepared.penalty)
        if answer is not None:  # what follows the empty prefix is the same in all rows of a query
            first = token_log_probs(head, hidden, answer.ids[:, :1])[:, 0]
            log_reward = jnp.where(answer.mask[:, 0], first, 0.0)
            if answer.ids.shape[1] > 1:
                rest = rest_log_probs(model, head, past, start, jnp.zeros(1, jnp.int32), answer)
                log_reward = log_reward + rest[:, 0]
        room = decoder.empty_cache(model.shape, rows, -(-columns // chunk) * chunk, hidden.dtype)
        answer, last, log_reward = jax.tree.map(
            lambda x: repeat_rows(x, rows // queries), (answer, (hidden, normaliser), log_reward)
        )
        log_prefix = jnp.zeros((rows,))
        return (
            (past, repeat_rows(start, rows // queries), answer, head),
            (room, last, log_prefix),
            Prefix(log_prefix, log_reward),
        )

    def extend(
        self,
        model: LanguageModel,
        prepared: Context,
        fixed: PyTree,
        state: PyTree,
        tokens: Int[Array, "B k"],
        mask: Bool[Array, "B k"],
        column: Int[Array, ""],
    ) -> tuple[PyTree, Prefix]:
        """Reads k tokens of Z and, behind each of them, Y: the whole reward's next piece."""
        past, start, answer, head = fixed
        room, (last, normaliser), log_prefix = state
        chunk = tokens.shape[1]
        lengths = column + 1 + jnp.arange(chunk)
        visible = (jnp.arange(room.mask.shape[1]) < lengths[:, None])[None]
        hidden, room = decoder.forward(model, tokens, start[:, None] + lengths - 1, visible, past, room, column)
        # A state's normaliser serves Y's first token and Z's next, which is not known before the next chunk.
        states = hidden.reshape(-1, hidden.shape[-1])
        following = jnp.pad(tokens[:, 1:], ((0, 0), (0, 1))).reshape(-1, 1)
        first = following if answer is None else repeat_rows(answer.ids[:, :1], chunk)
        picked, total = decoder.logits_at(head, states, jnp.concatenate([following, first], axis=1))
        log_first = (picked[:, 1] - total).reshape(tokens.shape)
        if prepared.penalty is not None:
            picked, total = decoder.logits_at(head, states, following, prepared.penalty)
        total = total.reshape(tokens.shape)
        log_next = picked[:, 0].reshape(tokens.shape) - total
        log_z = decoder.logit_of(head, last, tokens[:, 0], prepared.penalty) - normaliser
        log_z = jnp.concatenate([log_z[:, None], log_next[:, :-1]], axis=1)
        log_prefix = log_prefix[:, None] + jnp.cumsum(jnp.where(mask, log_z, 0.0), axis=1)
        log_reward = None
        if answer is not None:
            log_reward = log_prefix + jnp.where(answer.mask[:, :1], log_first, 0.0)
            if answer.ids.shape[1] > 1:
                seen = (*past, up_to(room, lengths))
                log_reward = log_reward + rest_log_probs(model, head, seen, start, lengths, answer)
        last = (hidden[:, -1], total[:, -1])
        return (room, last, log_prefix[:, -1]), Prefix(log_prefix, log_reward)


def causal(length: int) -> Bool[Array, "1 S S"]:
    """Every token sees itself and those before it."""
    return jnp.tril(jnp.ones((length, length), bool))[None]


def up_to(own: KeyValues, lengths: Int[Array, "*B k"]) -> KeyValues:
    """The keys of Z as k rows beside each other see them, each its first `lengths` columns."""
    rows, columns = own.positions.shape
    sees = jnp.arange(columns) < lengths[..., None]
    return dataclasses.replace(own, mask=jnp.broadcast_to(sees, (rows, *sees.shape[-2:])))


def prefixes_at_once(rows: int, horizon: int, answer: int) -> int:
    """Behind how many prefixes of a row Y is read at a time: of `rows` on a device, Y having `answer` tokens."""
    least = -(-ANSWER_TOKENS // max(1, rows * (answer - 1)))
    pieces = -(-horizon // least)
    return -(-horizon // pieces)


def layer_passes(rows: int, horizon: int, answer: int) -> int:
    """How often the layers are gone through for `rows` on a device, at most: the prompts, then Z, then Y behind it."""
    length = horizon - 1
    if length > LONGEST_AT_ONCE:
        pieces = -(-length // PIECE)
        return 1 + pieces + (1 + pieces) * (answer > 1)
    behind = -(-horizon // prefixes_at_once(rows, horizon, answer)) if answer > 1 else 0
    return 1 + (length > 0) + behind


def where_asked(
    asked: Bool[Array, "B T"], of: Callable[[Int[Array, "B k"]], Float[Array, "B k"]], at_once: int
) -> Float[Array, "B T"]:
    """`of` the columns that are asked for, a few of every row at a time, as many as some row has; 0 at the others."""
    horizon = asked.shape[1]
    padded = jnp.pad(asked, ((0, 0), (0, -horizon % at_once)))
    columns = jnp.argsort(~padded, axis=1)  # stable: those that are asked for come first
    most = asked.sum(axis=1).max()

    def one(carry: tuple[Array, Array]) -> tuple[Array, Array]:
        begin, found = carry
        some = of(jax.lax.dynamic_slice_in_dim(columns, begin, at_once, axis=1))
        return begin + at_once, jax.lax.dynamic_update_slice(found, some, (0, begin))

    start = (jnp.int32(0), jnp.zeros(padded.shape))
    _, found = jax.lax.while_loop(lambda carry: carry[0] < most, one, start)
    _, found = jax.lax.sort((columns, found), num_keys=1)  # back to where they were
    return jnp.where(asked, found[:, :horizon], 0.0)


def rest_log_probs(
    model: LanguageModel,
    head: decoder.Head,
    past: tuple[KeyValues, ...],
    start: Int[Array, " B"],
    lengths: Int[Array, "*B k"],
    answer: Tokens,
) -> Float[Array, "B k"]:
    """Log p of Y's tokens but the first, behind k prefixes of Z of `lengths` tokens, a row's own or all rows'.

    `past` ends with what they see of Z, where any is not empty; `start` is the position of a row's first token of Z.
    """
    rows, prefixes = len(start), lengths.shape[-1]
    ids, mask = repeat_rows(answer.ids, prefixes), repeat_rows(answer.mask, prefixes)
    begin = (start[:, None] + lengths).reshape(-1, 1)
    width = ids.shape[1] - 1
    # A row a prefix: the prompt's keys would be copied for each.
    model = dataclasses.replace(model, attention="xla")
    hidden, _ = decoder.forward(model, ids[:, :-1], begin + jnp.arange(width), causal(width), past)
    log_probs = token_log_probs(head, hidden, ids[:, 1:, None])[..., 0]
    return jnp.where(mask[:, 1:], log_probs, 0.0).sum(-1).reshape(rows, prefixes)


def token_log_probs(
    head: decoder.Head,
    hidden: Float[Array, "*b E"],
    targets: Int[Array, "*b M"],
    penalty: Float[Array, " V"] | None = None,
) -> Float[Array, "*b M"]:
    """Log p of M candidate next tokens after every hidden state; the logits of all others are never held.

    With `penalty`, the first candidate's distribution is the penalised one (it scores Z), the others' is not.
    """
    flat, wanted = hidden.reshape(-1, hidden.shape[-1]), targets.reshape(-1, targets.shape[-1])
    if penalty is None:
        out = decoder.log_probs_at(head, flat, wanted)
    else:
        first = decoder.log_probs_at(head, flat, wanted[:, :1], penalty)
        out = jnp.concatenate([first, decoder.log_probs_at(head, flat, wanted[:, 1:])], axis=1)
    return out.reshape(targets.shape)


def sequential_log_reward(
    reward: PosteriorReward, model: LanguageModel, prepared: Context, query: Query, rollout: Rollout
) -> Float[Array, "B T"]:
    """The same by one full forward pass per prefix, as the released code does: the packed pass's oracle."""
    rows, horizon = rollout.completion.shape
    repeats = rows // query.example_id.shape[0]
    context, answer = jax.tree.map(lambda x: repeat_rows(x, repeats), (query.context, query.answer))
    past = () if prepared.demonstrations is None else (prepared.demonstrations,)
    head = decoder.select_head(model)
    out = []
    for t in range(horizon):
        prefix = Tokens(ids=rollout.completion[:, :t], mask=jnp.ones((rows, t), bool))
        tokens = jax.tree.map(lambda *x: jnp.concatenate(x, axis=1), context, prefix, answer)
        hidden, _ = decoder.prefill(model, tokens, past)
        begin = context.ids.shape[1]
        targets, mask = tokens.ids[:, begin:], tokens.mask[:, begin:]
        predicting = hidden[:, begin - 1 : -1]
        z = token_log_probs(head, predicting[:, :t], targets[:, :t, None], prepared.penalty)
        y = token_log_probs(head, predicting[:, t:], targets[:, t:, None])
        log_probs = jnp.concatenate([z, y], axis=1)[..., 0]
        out.append(jnp.where(mask, log_probs, 0.0).sum(1))
    log_reward = jnp.stack(out, axis=1)
    if reward.released_min_length:
        log_reward = jnp.where(jnp.arange(horizon) < reward.released_min_length, -99.0, log_reward)
    return log_reward
