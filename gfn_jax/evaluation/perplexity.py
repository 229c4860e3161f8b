"""Perplexity of held-out text: exp of the mean nats a token, each document's first token being given."""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from gfn_jax.algorithms.language_model import LanguageModeling
from gfn_jax.models.lora import Lora
from gfn_jax.types import Params, Tokens, Weighted

Perplexity = Callable[[Params | Lora, Params | None], dict[str, float]]


def make_perplexity(
    algorithm: LanguageModeling,
    documents: Tokens,
    loss_mask: Bool[Array, "D S"],
    batch: int,
    rows_sharding: jax.sharding.Sharding | None = None,
) -> Perplexity:
    """(trainable, base) -> `nll` (nats a token) and `perplexity`.

    Args:
        algorithm: how a model is read; no dropout here.
        documents: [D, S].
        loss_mask: the tokens that count.
        batch: documents a pass.
        rows_sharding: how they are spread over devices; None leaves it to the compiler.
    """
    text = (documents, loss_mask)
    count = loss_mask.shape[0]

    @jax.jit
    def measure(
        trainable: Params | Lora, base: Params | None, text: tuple[Tokens, Array], start: Int[Array, ""]
    ) -> Weighted:
        index = start + jnp.arange(batch)
        rows, mask = jax.tree.map(lambda x: x[jnp.minimum(index, count - 1)], text)
        mask &= (index < count)[:, None]  # the last pass is filled up with rows that do not count
        if rows_sharding is not None:
            rows, mask = jax.lax.with_sharding_constraint((rows, mask), rows_sharding)
        return algorithm.measure(trainable, base, rows, mask)

    def perplexity(trainable: Params | Lora, base: Params | None) -> dict[str, float]:
        parts = [jax.device_get(measure(trainable, base, text, start)) for start in range(0, count, batch)]
        nll = sum(float(part.total) for part in parts) / max(sum(float(part.weight) for part in parts), 1.0)
        return {"nll": nll, "perplexity": math.exp(nll)}

    return perplexity
