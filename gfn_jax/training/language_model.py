"""One step of next-token training as one compiled program.

Micro-batches share the batch's count of learnt tokens, so the gradient summed over them is the whole batch's exactly.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from flax import struct
from jaxtyping import Array, Float, Int

from gfn_jax.algorithms.language_model import Corpus, LanguageModeling
from gfn_jax.models.lora import Lora
from gfn_jax.training.step import Metrics
from gfn_jax.types import Params, PyTree, Tokens


@struct.dataclass
class ModelState:
    """What changes when a language model, or an adapter beside it, is trained on text."""

    step: Int[Array, ""]
    trainable: Params | Lora
    opt_state: PyTree


LanguageModelStep = Callable[[ModelState, Corpus], tuple[ModelState, Metrics]]


def make_language_model_step(
    algorithm: LanguageModeling,
    optimizer: optax.GradientTransformation,
    rows_sharding: jax.sharding.Sharding | None = None,
) -> LanguageModelStep:
    """One step of next-token training, to be jitted with its state donated.

    Args:
        algorithm: what to minimise.
        optimizer: from the gradient to its update.
        rows_sharding: how rows are spread over devices; None leaves it to the compiler.
    """
    parts = algorithm.micro_batches
    value_and_grad = jax.value_and_grad(algorithm.loss)

    def step(state: ModelState, corpus: Corpus) -> tuple[ModelState, Metrics]:
        documents, loss_mask = algorithm.collect(corpus, state.step)
        weight = (loss_mask & documents.mask)[:, 1:].sum(dtype=jnp.float32)
        key = jax.random.fold_in(corpus.root, state.step)

        def measured(documents: Tokens, loss_mask: Array, key: jax.Array) -> tuple[Float[Array, ""], PyTree]:
            if rows_sharding is not None:
                documents, loss_mask = jax.lax.with_sharding_constraint((documents, loss_mask), rows_sharding)
            return value_and_grad(state.trainable, corpus.base, documents, loss_mask, weight, key)

        def accumulate(total: PyTree, part: tuple) -> tuple[PyTree, None]:
            return jax.tree.map(jnp.add, total, measured(*part)), None

        if parts == 1:
            loss, grads = measured(documents, loss_mask, key)
        else:
            rows = jax.tree.map(lambda x: x.reshape(parts, -1, *x.shape[1:]), (documents, loss_mask))
            zeros = jax.tree.map(jnp.zeros_like, (weight, state.trainable))
            (loss, grads), _ = jax.lax.scan(accumulate, zeros, (*rows, jax.random.split(key, parts)))
        updates, opt_state = optimizer.update(grads, state.opt_state, state.trainable)
        trainable = optax.apply_updates(state.trainable, updates)
        metrics = {"loss": loss, "gradient_norm": optax.global_norm(grads)}
        return ModelState(state.step + 1, trainable, opt_state), metrics

    return step
