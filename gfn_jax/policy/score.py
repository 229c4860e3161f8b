"""The policy's log-probabilities of what was sampled, in one parallel forward pass, with gradient.

`log_pf[t]` = log q(z_t | z_<t), `log_pterm[t]` = log q(stop | z_<t), under the constraint and at temperature 1: what
`rollout` would report of the same tokens.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from gfn_jax.models import decoder
from gfn_jax.models.config import Remat
from gfn_jax.models.language_model import LanguageModel
from gfn_jax.models.partition import repeat_rows
from gfn_jax.policy.constraint import Rules, masked_log_probs
from gfn_jax.types import PolicyScores, Rollout, Tokens


def score(
    model: LanguageModel,
    prompt: Tokens,
    rollout: Rollout,
    rules: Rules,
    dropout: tuple[jax.Array, float] | None = None,
    remat: Remat = "none",
) -> PolicyScores:
    """The first of `score_states`."""
    return score_states(model, prompt, rollout, rules, dropout, remat)[0]


def score_states(
    model: LanguageModel,
    prompt: Tokens,
    rollout: Rollout,
    rules: Rules,
    dropout: tuple[jax.Array, float] | None = None,
    remat: Remat = "none",
) -> tuple[PolicyScores, Float[Array, "B T E"]]:
    """Scores B = Q * N completions against their Q prompts.

    Args:
        model: the policy.
        prompt: [Q, P], padded left.
        rollout: the completions; rows of a prompt adjacent.
        rules: those they were sampled under.
        dropout: a key and a rate for the adapter's inputs, or None.
        remat: which activations the backward pass computes again.

    Returns:
        `log_pf` where `action_mask` holds and `log_pterm` where `state_mask` holds, zero elsewhere, float32; and the
        hidden state that each choice was read off, in the model's dtype (the first is the prompt's last).
    """
    constraint = rules.constraint
    rows, horizon = rollout.completion.shape
    queries = prompt.ids.shape[0]
    keys: list[tuple[jax.Array, float] | None] = [None, None]
    if dropout is not None:
        keys = [(key, dropout[1]) for key in jax.random.split(dropout[0])]
    first, shared = decoder.prefill(model, prompt, dropout=keys[0], remat=remat)
    first = repeat_rows(first[:, -1:], rows // queries)
    start = decoder.past_length((shared,), rows)
    positions = start[:, None] + jnp.arange(horizon - 1)
    # Completions are padded right: a causal mask alone keeps padding out of what matters.
    visible = jnp.tril(jnp.ones((horizon - 1, horizon - 1), bool))[None]
    rest, _ = decoder.forward(
        model,
        rollout.completion[:, :-1],
        positions,
        visible,
        (shared,),
        dropout=keys[1],
        remat=remat,
    )
    hidden = jnp.concatenate([first, rest], axis=1)
    head = decoder.select_head(model, constraint.columns)
    states = jnp.broadcast_to(jnp.arange(horizon), (rows, horizon))
    chosen = constraint.column_of[rollout.completion]
    stop = jnp.broadcast_to(constraint.column_of[constraint.stop_id], chosen.shape)
    wanted = jnp.stack([chosen, stop], axis=-1)

    def read(
        hidden: Float[Array, "B c E"],
        state: Int[Array, "B c"],
        may_stop: Bool[Array, "B c"],
        wanted: Int[Array, "B c 2"],
    ) -> Float[Array, "B c 2"]:
        return masked_log_probs(decoder.logits(head, hidden), constraint.allowed(state, may_stop), wanted)

    # `state_mask` is the environment's and the length's word on stopping, as rollout heard it.
    log_probs = decoder.by_columns(read, hidden, states, rollout.state_mask, wanted, width=len(constraint.token_ids))
    scores = PolicyScores(
        log_pf=jnp.where(rollout.action_mask, log_probs[..., 0], 0.0),
        log_pterm=jnp.where(rollout.state_mask, log_probs[..., 1], 0.0),
    )
    return scores, hidden
