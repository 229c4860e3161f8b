"""Sampling completions: prefill once a query, then column after column until every row has ended. No gradient.

The behaviour policy of a row is (1 - e) softmax(logits / temperature) + e uniform, both over the allowed tokens,
with temperature and e traced, a value a row. Where the environment forces a token (a tool's result), the row
takes it and the policy's draw is discarded. Decoding strategies leave a part of the allowed tokens out (`Narrow`).
Where tokens are given, the row takes those, and says how likely they were.
"""

from typing import Any, Protocol

import jax
import jax.numpy as jnp
from flax import struct
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int

from gfn_jax.models import decoder
from gfn_jax.models.language_model import LanguageModel
from gfn_jax.models.layers import NEGATIVE, KeyValues
from gfn_jax.models.lora import merging_pays
from gfn_jax.models.partition import repeat_rows
from gfn_jax.policy.columns import as_rollout, empty_columns, next_column, once, read_token
from gfn_jax.policy.constraint import Rules
from gfn_jax.policy.draw import draw
from gfn_jax.types import Rollout, Tokens


@struct.dataclass
class Behavior:
    """How rows choose their tokens: (1 - e) softmax(logits / temperature) + e uniform, over what is allowed.

    Attributes:
        temperature: a row's; 0 decodes greedily.
        uniform_mix: e, a row's share of the uniform distribution.
    """

    temperature: Float[Array, " B"]
    uniform_mix: Float[Array, " B"]

    @classmethod
    def at(cls, temperature: Float[Array, ""] | float, rows: int) -> "Behavior":
        """The policy itself at one temperature in all rows."""
        return cls(jnp.full((rows,), temperature, jnp.float32), jnp.zeros((rows,), jnp.float32))


class Narrow(Protocol):
    """What is left of the allowed tokens to choose from in state t: one at least, and none besides."""

    def __call__(self, t: Int[Array, ""], logits: Float[Array, "B A"], allowed: Bool[Array, "B A"]) -> Array: ...


def choose(
    key: jax.Array,
    logits: Float[Array, "B A"],
    allowed: Bool[Array, "B A"],
    temperature: Float[Array, " B"],
    uniform_mix: Float[Array, " B"],
    given: tuple[Int[Array, " B"], Bool[Array, " B"]] | None = None,
) -> tuple[Int[Array, " B"], Float[Array, " B"]]:
    """A column of every row from its behaviour policy, and the log-probability it had there (0 where greedy).

    `given` is a column a row, and the rows that take it instead of what they draw.
    """
    source, token = jax.random.split(key)
    greedy = temperature <= 0
    inverse = 1 / jnp.where(greedy, 1.0, temperature)
    # A draw from a mixture: draw which part, then from that part. The uniform is the policy at infinite temperature.
    uniform = ~greedy & (jax.random.uniform(source, greedy.shape) < uniform_mix)
    drawn, best, total = draw(token, masked(logits, jnp.where(uniform, 0.0, inverse)[:, None], allowed))
    drawn = jnp.where(greedy, best, drawn)
    if given is not None:
        drawn = jnp.where(given[1], given[0], drawn)
    # The density needs the tempered part's normaliser, which is at hand unless some row drew from the uniform.
    tempered = masked(logits, inverse[:, None], allowed)
    total = jax.lax.cond(jnp.any(uniform), lambda: jax.nn.logsumexp(tempered, axis=-1), lambda: total)
    # The normaliser's own number: multiplied once more, it might be rounded otherwise.
    log_tempered = jnp.take_along_axis(tempered, drawn[:, None], axis=-1)[:, 0] - total
    log_uniform = -jnp.log(allowed.sum(-1).astype(jnp.float32))
    # log 0 is kept out: where one part has no share, the other's density is taken as it is.
    share = jnp.clip(uniform_mix, 1e-30, 1 - 1e-7)
    mixed = jnp.logaddexp(jnp.log1p(-share) + log_tempered, jnp.log(share) + log_uniform)
    mixed = jnp.where(uniform_mix <= 0, log_tempered, jnp.where(uniform_mix >= 1, log_uniform, mixed))
    return drawn, jnp.where(greedy, 0.0, mixed)


def masked(
    logits: Float[Array, "B A"], inverse_temperature: Float[Array, "B 1"], allowed: Bool[Array, "B A"]
) -> Float[Array, "B A"]:
    """Tempered logits of the allowed tokens; about -1e30 for the others."""
    return jnp.where(allowed, logits * inverse_temperature, NEGATIVE)


def rollout(
    model: LanguageModel,
    prompt: Tokens,
    rules: Rules,
    behavior: Behavior,
    key: jax.Array,
    narrow: Narrow | None = None,
    cache_dtype: DTypeLike | None = None,
) -> Rollout:
    """Samples B = Q * N completions, N for each of the Q prompts (rows of a prompt adjacent).

    Where that pays (`lora.merging_pays`) they are read with the adapter merged into a copy of the layers' kernels.

    Args:
        model: the policy.
        prompt: [Q, P], padded left: every row's last token is real.
        rules: vocabulary, length and tool.
        behavior: how the B rows choose.
        key: randomness of this call; column t uses `fold_in(key, t)`.
        narrow: leaves tokens out; `log_behavior` is then over those that it keeps.
        cache_dtype: of keys and values while sampling, the prompts' too; None for the model's own. With a coarser one
            the policy that is drawn from, whose log-probabilities `log_behavior` are, is a little off that of `score`.
    """
    tokens = len(behavior.temperature) * (rules.constraint.horizon - 1)
    if model.adapter is not None and merging_pays(model.params, model.adapter, tokens):
        model = model.merged
    read = decoder.prefill(model, prompt)
    return complete(model, read, rules, behavior, key, narrow, cache_dtype=cache_dtype)


def complete(
    model: LanguageModel,
    read: tuple[Float[Array, "Q P E"], KeyValues],
    rules: Rules,
    behavior: Behavior,
    key: jax.Array,
    narrow: Narrow | None = None,
    given: tuple[Int[Array, "B T"], Int[Array, " B"]] | None = None,
    cache_dtype: DTypeLike | None = None,
) -> Rollout:
    """A `rollout` of prompts that the policy has read: `read` is what `decoder.prefill(model, prompt)` gave.

    `given` is a completion that the rules allow and a cut, a row: columns below the cut hold the completion's tokens,
    what follows is sampled. `log_behavior` of a given token is what it would have been, had it been drawn; a cut
    beyond the stop draws nothing.
    """
    constraint, environment = rules.constraint, rules.environment
    temperature, uniform_mix = behavior.temperature, behavior.uniform_mix
    hidden, shared = read
    rows, queries = temperature.shape[0], hidden.shape[0]
    horizon = constraint.horizon
    hidden = repeat_rows(hidden[:, -1], rows // queries)
    start = decoder.past_length((shared,), rows)
    head = decoder.select_head(model, constraint.columns)
    cache_dtype = cache_dtype or hidden.dtype
    shared = decoder.cached(shared, cache_dtype)
    cache = decoder.empty_cache(model.shape, rows, horizon - 1, cache_dtype)

    def decide(t, hidden, tool, done):
        forced = environment.forced(tool)
        allowed = constraint.allowed(jnp.full((rows,), t), environment.may_stop(tool))
        logits = decoder.logits(head, hidden)
        kept = allowed if narrow is None else narrow(t, logits, allowed)
        own = None if given is None else (constraint.column_of[given[0][:, t]], t < given[1])
        drawn, log_behavior = choose(jax.random.fold_in(key, t), logits, kept, temperature, uniform_mix, own)
        may_stop = jnp.any(allowed & constraint.is_stop, axis=-1)
        return next_column(constraint, forced, may_stop, drawn, log_behavior, done)

    def step(carry: tuple[Any, ...]) -> tuple[Any, ...]:
        t, hidden, cache, tool, done, columns = carry
        column, done = decide(t, hidden, tool, done)
        columns = jax.tree.map(lambda whole, new: whole.at[t].set(new), columns, column)
        tool = environment.step(tool, column["completion"])
        # In the last column only the stop is left, whatever the model would say: it need not be asked.
        asked = ~jnp.all(done) & (t < horizon - 2)
        token = column["completion"]
        hidden, cache = once(
            asked, lambda held: read_token(model, token, start, (shared,), held[1], t), (hidden, cache)
        )
        return t + 1, hidden, cache, tool, done, columns

    columns = empty_columns(constraint, rows)
    carry = (jnp.int32(0), hidden, cache, environment.init(rows), jnp.zeros((rows,), bool), columns)
    return as_rollout(jax.lax.while_loop(lambda carry: (carry[0] < horizon) & ~jnp.all(carry[4]), step, carry)[-1])
