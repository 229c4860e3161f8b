"""What a model thinks of texts that are there already: the nats of their tokens, with gradient."""

import jax
from jaxtyping import Array, Bool

from gfn_jax.models import decoder
from gfn_jax.models.language_model import LanguageModel
from gfn_jax.objectives.likelihood import next_token
from gfn_jax.types import Tokens, Weighted


def next_token_loss(
    model: LanguageModel,
    documents: Tokens,
    loss_mask: Bool[Array, "B S"],
    dropout: tuple[jax.Array, float] | None = None,
    remat: bool = False,
) -> Weighted:
    """- sum of log p(x_i | x_<i) over the tokens that count, in nats, and how many they are.

    Args:
        model: with its adapter, if any.
        documents: [B, S], padded on either side.
        loss_mask: the tokens that count; a row's first never does.
        dropout: a key and a rate for the adapter's inputs, or None.
        remat: recompute activations in the backward pass.
    """
    hidden, _ = decoder.prefill(model, documents, dropout=dropout, remat=remat)
    head = decoder.select_head(model)
    return next_token(decoder.logits(head, hidden), documents.ids, loss_mask & documents.mask)
