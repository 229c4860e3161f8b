"""log R of stopping after every prefix, in one packed pass of the frozen base.

The reward of Hu et al. 2024 (ICLR), section 3: R(z_1:t stop) = p_LM(X z_1:t Y), here given a few-shot context that
is constant for the run; p_LM(X) and p_LM(context) do not depend on Z and are left out. The answer Y must be scored
after every prefix, so the tokens are laid out as

    [z_1 ... z_T-1] [Y after z_1:0] [Y after z_1:1] ... [Y after z_1:T-1]

and the attention mask branches: a Y token sees the context, its own prefix of Z and its own block, at the positions it
would have had. Y's last token is never an input, and its first is predicted by the state it follows, so a block costs
Y - 1 tokens. With Y = the stop alone (continuation) the packed sequence is Z itself.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Array, Bool, Float, Int

from gfn_jax.models import decoder
from gfn_jax.models.language_model import LanguageModel
from gfn_jax.models.layers import KeyValues
from gfn_jax.models.partition import repeat_rows
from gfn_jax.types import Prefix, PyTree, Query, Rollout, Tokens


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
        """Scores every prefix of B = Q * N completions, in nats; meaningful where `state_mask` holds."""
        rows, horizon = rollout.completion.shape
        repeats = rows // query.example_id.shape[0]
        answer = jax.tree.map(lambda x: repeat_rows(x, repeats), query.answer)
        past = () if prepared.demonstrations is None else (prepared.demonstrations,)
        first, shared = decoder.prefill(model, query.context, past)
        first = repeat_rows(first[:, -1:], repeats)
        past = (*past, shared)
        start = decoder.past_length(past, rows)
        ids, offsets, visible = pack(rollout.completion, answer.ids)
        hidden, _ = decoder.forward(model, ids, start[:, None] + offsets, visible, past)
        states = jnp.concatenate([first, hidden[:, : horizon - 1]], axis=1)
        head = decoder.select_head(model)
        # Each state predicts two tokens: Z's next and Y's first.
        targets = jnp.stack([rollout.completion, jnp.broadcast_to(answer.ids[:, :1], (rows, horizon))], axis=-1)
        log_probs = token_log_probs(head, states, targets, prepared.penalty)
        log_z = jnp.where(rollout.token_mask, log_probs[..., 0], 0.0)
        log_z = jnp.cumsum(jnp.pad(log_z[:, :-1], ((0, 0), (1, 0))), axis=1)  # sum over k < t
        log_y = jnp.where(answer.mask[:, :1], log_probs[..., 1], 0.0)
        if answer.ids.shape[1] > 1:
            log_y = log_y + rest_log_probs(head, hidden[:, horizon - 1 :], answer)
        log_reward = log_z + log_y
        if self.released_min_length:
            log_reward = jnp.where(jnp.arange(horizon) < self.released_min_length, -99.0, log_reward)
        return log_reward

    def begin(
        self, model: LanguageModel, prepared: Context, query: Query, shape: tuple[int, int, int], answers: bool
    ) -> tuple[PyTree, PyTree, Prefix]:
        """As `interfaces.Incremental` has it: a row's own keys, and room for blocks, which the next chunk overwrites.

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
        head, log_reward, width = decoder.select_head(model), None, 0
        _, normaliser = decoder.logits_at(head, hidden, query.context.ids[:, :1], prepared.penalty)
        if answer is not None:  # what follows the empty prefix is the same in all rows of a query
            width = answer.ids.shape[1] - 1
            first = token_log_probs(head, hidden, answer.ids[:, :1])[:, 0]
            log_reward = jnp.where(answer.mask[:, 0], first, 0.0)
            if width:
                offsets, visible = layout(0, np.zeros(1, int), width)
                positions = decoder.past_length(past, queries)[:, None] + offsets
                block, _ = decoder.forward(model, answer.ids[:, :-1], positions, jnp.asarray(visible[None]), past)
                log_reward = log_reward + rest_log_probs(head, block, answer)[:, 0]
        room = decoder.empty_cache(model.shape, rows, -(-columns // chunk) * chunk + chunk * width, hidden.dtype)
        answer, last, log_reward = jax.tree.map(
            lambda x: repeat_rows(x, rows // queries), (answer, (hidden, normaliser), log_reward)
        )
        log_prefix = jnp.zeros((rows,))
        return (
            (past, decoder.past_length(past, rows), answer, head),
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
        """One pass over k tokens of Z and, behind each of them, Y: the packed reward's next piece."""
        past, start, answer, head = fixed
        room, (last, normaliser), log_prefix = state
        chunk = tokens.shape[1]
        ids, width = tokens, 0
        if answer is not None:
            ids, width = with_blocks(tokens, answer.ids, chunk), answer.ids.shape[1] - 1
        offsets, visible = layout(chunk, np.arange(1, chunk + 1), width)
        places = jnp.arange(room.mask.shape[1])
        own = jnp.zeros((len(offsets), len(places)), bool)
        own = jax.lax.dynamic_update_slice(own, jnp.asarray(visible), (0, column))
        sees, positions = (own | (places < column))[None], (start + column)[:, None] + offsets
        hidden, room = decoder.forward(model, ids, positions, sees, past, room, column)
        # A state's normaliser serves Y's first token and Z's next, which is not known before the next chunk.
        states = hidden[:, :chunk].reshape(-1, hidden.shape[-1])
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
            if width:
                log_reward = log_reward + rest_log_probs(head, hidden[:, chunk:], answer)
        last = (hidden[:, chunk - 1], total[:, -1])
        return (room, last, log_prefix[:, -1]), Prefix(log_prefix, log_reward)


def pack(
    completion: Int[Array, "B T"], answer: Int[Array, "B Y"]
) -> tuple[Int[Array, "B S"], Int[np.ndarray, " S"], Array]:
    """The packed tokens, their positions after the context, and who sees whom ([1, S, S]); S = T - 1 + T (Y - 1)."""
    horizon, width = completion.shape[1], answer.shape[1] - 1
    offsets, visible = layout(horizon - 1, np.arange(horizon), width)
    return with_blocks(completion[:, :-1], answer, horizon), offsets, jnp.asarray(visible[None])


def with_blocks(tokens: Int[Array, "B Z"], answer: Int[Array, "B Y"], states: int) -> Int[Array, "B S"]:
    """Tokens of Z, then Y less its last token once for each of some states."""
    blocks = jnp.broadcast_to(answer[:, None, :-1], (len(tokens), states, answer.shape[1] - 1))
    return jnp.concatenate([tokens, blocks.reshape(len(tokens), -1)], axis=1)


def layout(
    length: int, states: Int[np.ndarray, " k"], width: int
) -> tuple[Int[np.ndarray, " S"], Bool[np.ndarray, "S S"]]:
    """Positions, and who sees whom, of `length` tokens of Z and a block of `width` tokens behind some of its prefixes.

    `states` says how many tokens of Z each block stands behind; S = length + k width.
    """
    z = np.arange(length)
    state, column = (index.ravel() for index in np.meshgrid(states, np.arange(width), indexing="ij"))
    offsets = np.concatenate([z, state + column])
    # A Z token is "state k, no block"; a Y token sees Z up to its state, and its own block up to itself.
    in_block = np.concatenate([np.zeros(length, bool), np.ones(len(state), bool)])
    prefix = np.concatenate([z + 1, state])  # how many tokens of Z each position sees
    block = np.concatenate([np.full(length, -1), state])
    sees_z = ~in_block[None, :] & (np.concatenate([z, state])[None, :] < prefix[:, None])
    sees_block = in_block[None, :] & (block[:, None] == block[None, :]) & (offsets[:, None] >= offsets[None, :])
    return offsets, sees_z | sees_block


def rest_log_probs(head: decoder.Head, blocks: Float[Array, "B R E"], answer: Tokens) -> Float[Array, "B k"]:
    """Log p of Y's tokens but the first, behind k prefixes whose blocks of Y - 1 hidden states follow each other."""
    rows, width = len(blocks), answer.ids.shape[1] - 1
    blocks = blocks.reshape(rows, -1, width, blocks.shape[-1])
    rest = jnp.broadcast_to(answer.ids[:, None, 1:], blocks.shape[:3])
    log_probs = token_log_probs(head, blocks, rest[..., None])[..., 0]
    return jnp.where(answer.mask[:, None, 1:], log_probs, 0.0).sum(-1)


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
