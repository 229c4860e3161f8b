"""Perplexity of held-out text: exp of the mean nats a token, each document's first token being given."""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from gfn_jax.models.language_model import LanguageModel
from gfn_jax.models.partition import split_rows
from gfn_jax.policy.likelihood import next_token_loss
from gfn_jax.types import Tokens, Weighted

Perplexity = Callable[[LanguageModel], dict[str, float]]


def make_perplexity(documents: Tokens, loss_mask: Bool[Array, "D S"], batch: int) -> Perplexity:
    """A model -> `nll` (nats a token) and `perplexity`.

    Args:
        documents: [D, S].
        loss_mask: the tokens that count.
        batch: documents a pass.
    """
    text = (documents, loss_mask)
    count = loss_mask.shape[0]

    @jax.jit
    def measure(model: LanguageModel, text: tuple[Tokens, Array], start: Int[Array, ""]) -> Weighted:
        index = start + jnp.arange(batch)
        rows, mask = jax.tree.map(lambda x: x[jnp.minimum(index, count - 1)], text)
        mask &= (index < count)[:, None]  # the last pass is filled up with rows that do not count
        rows, mask = jax.tree.map(split_rows, (rows, mask))
        return next_token_loss(model, rows, mask)

    def perplexity(model: LanguageModel) -> dict[str, float]:
        parts = [jax.device_get(measure(model, text, start)) for start in range(0, count, batch)]
        nll = sum(float(part.total) for part in parts) / max(sum(float(part.weight) for part in parts), 1.0)
        return {"nll": nll, "perplexity": math.exp(nll)}

    return perplexity
