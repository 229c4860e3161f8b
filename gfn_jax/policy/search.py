"""Completions that are searched for instead of sampled: nucleus, beam and diverse beam.

Baselines for sentence continuation (Hu et al. 2024, section 4.1), all under the policy's own constraint:

    nucleus       a draw from the fewest tokens that hold a share top_p of the probability (Holtzman et al. 2019)
    beam          the W likeliest unfinished or finished completions after every token, by log q(Z stop)
    diverse beam  G groups of beams that take turns; a token costs group g `diversity` nats for each time that the
                  groups before it chose it in the same column (Vijayakumar et al. 2016, Hamming diversity). The cost
                  decides the choice and is not carried on: a beam's log-probability stays its own.

A finished beam stays in its group at its log-probability: there is no length normalisation, as log q(Z stop) is what
is looked for. Greedy decoding is a `rollout` at temperature 0, or beam search of width 1.
"""

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Float, Int

from gfn_jax.models import decoder
from gfn_jax.models.language_model import LanguageModel
from gfn_jax.models.layers import NEGATIVE
from gfn_jax.models.partition import repeat_rows
from gfn_jax.policy.constraint import Constraint
from gfn_jax.types import Tokens

Choice = tuple[Int[Array, "Q N"], Int[Array, "Q N"]]


@struct.dataclass
class Nucleus:
    """Independent draws from the head of the distribution.

    Attributes:
        top_p: the share in (0, 1] that the head must hold; 1 is ancestral sampling.
    """

    top_p: Float[Array, ""] | float

    def start(self, rows: int) -> Float[Array, " N"]:
        """Log-probabilities before the first token."""
        return jnp.zeros(rows)

    def choose(
        self, key: jax.Array, log_probs: Float[Array, "Q N A"], totals: Float[Array, "Q N"], done: Bool[Array, "Q N"]
    ) -> Choice:
        """Each row goes on by itself."""
        probs = jnp.exp(log_probs)

        def halve(_, bounds: tuple[Array, Array]) -> tuple[Array, Array]:
            """The head is all tokens above a bound; the highest bound that leaves it its share is wanted."""
            low, high = bounds
            middle = (low + high) / 2
            enough = jnp.where(probs >= middle, probs, 0.0).sum(-1, keepdims=True) >= self.top_p
            return jnp.where(enough, middle, low), jnp.where(enough, high, middle)

        # Halving 40 times is exact to float32, and far cheaper than sorting a vocabulary.
        most = probs.max(-1, keepdims=True)
        least, _ = jax.lax.fori_loop(0, 40, halve, (jnp.zeros_like(most), 2 * most))
        column = jax.random.categorical(key, jnp.where(probs >= least, log_probs, NEGATIVE))
        return jnp.broadcast_to(jnp.arange(totals.shape[1]), totals.shape), column


@struct.dataclass
class Beam:
    """Beam search, in `groups` that avoid each other's tokens.

    Attributes:
        groups: G; 1 is plain beam search, one a beam is the usual diverse beam search.
        diversity: nats a repetition of an earlier group's token costs.
    """

    groups: int = struct.field(pytree_node=False, default=1)
    diversity: Float[Array, ""] | float = 0.0

    def start(self, rows: int) -> Float[Array, " N"]:
        """All beams of a group are the same before the first token: only its first counts."""
        if self.groups < 1 or rows % self.groups:
            raise ValueError(f"{rows} beams do not divide into {self.groups} groups")
        return jnp.where(jnp.arange(rows) % (rows // self.groups), NEGATIVE, 0.0)

    def choose(
        self, key: jax.Array, log_probs: Float[Array, "Q N A"], totals: Float[Array, "Q N"], done: Bool[Array, "Q N"]
    ) -> Choice:
        """The likeliest continuations of each group, the groups one after the other."""
        del key
        queries, rows, count = log_probs.shape
        width = rows // self.groups
        used = jnp.zeros((queries, count))
        parents, columns = [], []
        for begin in range(0, rows, width):
            own = slice(begin, begin + width)
            cost = jnp.where(done[:, own, None], 0.0, self.diversity * used[:, None])
            scores = (totals[:, own, None] + log_probs[:, own] - cost).reshape(queries, -1)
            _, best = jax.lax.top_k(scores, width)
            parent, column = begin + best // count, best % count
            alive = ~jnp.take_along_axis(done, parent, axis=1)
            used = used + (jax.nn.one_hot(column, count) * alive[..., None]).sum(1)
            parents.append(parent)
            columns.append(column)
        return jnp.concatenate(parents, axis=1), jnp.concatenate(columns, axis=1)


def search(
    model: LanguageModel,
    prompt: Tokens,
    constraint: Constraint,
    strategy: Nucleus | Beam,
    rows: int,
    key: jax.Array,
) -> tuple[Int[Array, "Q N T"], Int[Array, "Q N"], Float[Array, "Q N"]]:
    """`rows` (N) completions of each of Q prompts, without a tool.

    Args:
        model: the policy.
        prompt: [Q, P], padded left.
        constraint: vocabulary and length.
        strategy: how tokens are chosen.
        rows: N.
        key: randomness; column t uses `fold_in(key, t)`.

    Returns:
        Completions filled up with the stop, the number of tokens of Z, and log q(Z stop) in nats, all by falling
        log q within a prompt.

    Raises:
        ValueError: fewer tokens than beams may be chosen.
    """
    queries, horizon = prompt.ids.shape[0], constraint.horizon
    if isinstance(strategy, Beam) and rows // strategy.groups >= len(constraint.token_ids):
        raise ValueError(f"{len(constraint.token_ids)} tokens are too few for {rows // strategy.groups} beams a group")
    hidden, shared = decoder.prefill(model, prompt)
    hidden = repeat_rows(hidden[:, -1], rows)
    start = decoder.past_length((shared,), queries * rows)
    head = decoder.select_head(model, constraint.columns)
    cache = decoder.empty_cache(model.shape, queries * rows, horizon - 1, hidden.dtype)
    written = jnp.full((queries, rows, horizon), constraint.stop_id, jnp.int32)

    def step(carry, t):
        hidden, cache, written, done, totals = carry
        may_stop = jnp.ones(queries * rows, bool)
        allowed = constraint.allowed(jnp.full(queries * rows, t), may_stop)
        log_probs = jax.nn.log_softmax(jnp.where(allowed, decoder.logits(head, hidden), NEGATIVE))
        log_probs = log_probs.reshape(queries, rows, -1)
        # What has stopped can only stay as it is, at no cost.
        log_probs = jnp.where(done[..., None], jnp.where(constraint.is_stop, 0.0, NEGATIVE), log_probs)
        parent, column = strategy.choose(jax.random.fold_in(key, t), log_probs, totals, done)

        def follow(x: Array) -> Array:
            return jax.vmap(lambda row, index: row[index])(x, parent)

        totals = follow(totals) + jnp.take_along_axis(follow(log_probs), column[..., None], axis=-1)[..., 0]
        token = constraint.token_ids[column]
        written = follow(written).at[..., t].set(token)
        done = follow(done) | constraint.is_stop[column]
        flat = (jnp.arange(queries)[:, None] * rows + parent).reshape(-1)
        cache = cache.replace(k=cache.k[:, flat], v=cache.v[:, flat])
        visible = (jnp.arange(horizon - 1) <= t)[None, None, :]
        hidden, cache = decoder.forward(
            model,
            token.reshape(-1, 1),
            (start + t)[:, None],
            visible,
            (shared,),
            cache,
            t,
        )
        return (hidden[:, 0], cache, written, done, totals), None

    totals = jnp.broadcast_to(strategy.start(rows), (queries, rows))
    carry = (hidden, cache, written, jnp.zeros((queries, rows), bool), totals)
    # In the last column only the stop is left, which is there already and certain.
    (_, _, written, _, totals), _ = jax.lax.scan(step, carry, jnp.arange(horizon - 1))
    order = jnp.argsort(-totals, axis=1)
    written, totals = (jax.vmap(lambda x, i: x[i])(x, order) for x in (written, totals))
    return written, (written != constraint.stop_id).sum(-1), totals
