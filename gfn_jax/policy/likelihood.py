"""What a model thinks of texts that are there already: the nats of their tokens, with gradient."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from gfn_jax.models import decoder
from gfn_jax.models.config import Remat
from gfn_jax.models.language_model import LanguageModel
from gfn_jax.types import Tokens, Weighted


def next_token_loss(
    model: LanguageModel,
    documents: Tokens,
    loss_mask: Bool[Array, "B S"],
    dropout: tuple[jax.Array, float] | None = None,
    remat: Remat = "none",
) -> Weighted:
    """- sum of log p(x_i | x_<i) over the tokens that count, in nats, and how many they are.

    Args:
        model: with its adapter, if any.
        documents: [B, S], padded on either side.
        loss_mask: the tokens that count; a row's first never does.
        dropout: a key and a rate for the adapter's inputs, or None.
        remat: which activations the backward pass computes again.
    """
    hidden, _ = decoder.prefill(model, documents, dropout=dropout, remat=remat)
    head = decoder.select_head(model)

    def read(hidden: Float[Array, "B c E"], following: Int[Array, "B c"]) -> Float[Array, "B c"]:
        log_probs = jax.nn.log_softmax(decoder.logits(head, hidden))
        return jnp.take_along_axis(log_probs, following[..., None], axis=-1)[..., 0]

    width = head.weights["kernel"].shape[1]
    log_probs = decoder.by_columns(read, hidden[:, :-1], documents.ids[:, 1:], width=width)
    counted = (loss_mask & documents.mask)[:, 1:]
    return Weighted(total=-jnp.where(counted, log_probs, 0.0).sum(), weight=counted.sum(dtype=jnp.float32))
