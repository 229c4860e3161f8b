"""Next-token training: of a new model, of all weights of an old one, or of an adapter beside its frozen base.

Maximum likelihood of chosen tokens,

    loss(w) = - sum_i m_i log p_w(x_i | x_<i) / sum_i m_i          (nats a token)

with m = 1 on the tokens to be learnt: all of a document; of (X, Z, Y) only Z and Y, which makes it the M-step of
expectation maximisation, X being given. Which rows a step reads is a table made beforehand, so a step's rows are a
function of its number alone.
"""

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import struct
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int

from gfn_jax.models import decoder
from gfn_jax.models.config import ModelConfig
from gfn_jax.models.lora import Lora
from gfn_jax.objectives.likelihood import next_token
from gfn_jax.sections import Count
from gfn_jax.types import Params, Tokens, Weighted


@dataclasses.dataclass(frozen=True)
class Phase:
    """Some steps over some of the documents: a corpus may change its mixture as training goes on.

    Attributes:
        steps: how many.
        first, end: the documents drawn from are [first, end).
    """

    steps: Count
    first: int
    end: int


@struct.dataclass
class Corpus:
    """What a training run reads, on the device.

    Attributes:
        documents: one a row, padded on either side.
        loss_mask: the tokens to be learnt; the others are only read. A row's first token never counts.
        order: the rows of every step.
        root: of the run's randomness (dropout).
        base: the frozen weights under an adapter; None where all weights are trained.
    """

    documents: Tokens  # [documents, S]
    loss_mask: Bool[Array, "documents S"]
    order: Int[Array, "steps batch"]
    root: jax.Array
    base: Params | None = None


def phase_order(root: jax.Array, phases: Sequence[Phase], batch: int) -> Int[Array, "steps batch"]:
    """Rows drawn with replacement from each step's phase."""
    first = jnp.concatenate([jnp.full(phase.steps, phase.first) for phase in phases])
    end = jnp.concatenate([jnp.full(phase.steps, phase.end) for phase in phases])

    def draw(step: Int[Array, ""], first: Int[Array, ""], end: Int[Array, ""]) -> Int[Array, " batch"]:
        return jax.random.randint(jax.random.fold_in(root, step), (batch,), first, end)

    return jax.vmap(draw)(jnp.arange(len(first)), first, end)


def epoch_order(root: jax.Array, documents: int, batch: int, steps: int) -> Int[Array, "steps batch"]:
    """Every row once an epoch, in an order of its own; a batch may end one epoch and begin the next."""
    epochs = jnp.arange(-(-steps * batch // documents))
    keys = jax.vmap(lambda epoch: jax.random.fold_in(root, epoch))(epochs)
    rows = jax.vmap(lambda key: jax.random.permutation(key, documents))(keys)
    return rows.reshape(-1)[: steps * batch].reshape(steps, batch)


@dataclasses.dataclass(frozen=True)
class LanguageModeling:
    """Next-token training; what is trained is told by its type, `Lora` or all parameters.

    Attributes:
        model: the model's shape.
        micro_batches: parts that a step's rows are worked through in; the gradient is the whole batch's.
        dropout: rate at which an adapter's inputs are dropped.
        remat: recompute activations in the backward pass.
        dtype: of the arithmetic where all weights are trained; they themselves and the optimizer keep theirs.
    """

    model: ModelConfig
    micro_batches: int = 1
    dropout: float = 0.0
    remat: bool = False
    dtype: DTypeLike = jnp.float32

    def collect(self, corpus: Corpus, step: Int[Array, ""]) -> tuple[Tokens, Bool[Array, "batch S"]]:
        """The step's documents and their loss masks."""
        index = corpus.order[step]
        return jax.tree.map(lambda x: x[index], (corpus.documents, corpus.loss_mask))

    def measure(
        self,
        trainable: Params | Lora,
        base: Params | None,
        documents: Tokens,
        loss_mask: Bool[Array, "B S"],
        key: jax.Array | None = None,
    ) -> Weighted:
        """Nats of the tokens that count, and how many they are; `key` switches dropout on."""
        params, lora = (base, trainable) if isinstance(trainable, Lora) else (self._cast(trainable), None)
        dropout = None if key is None or lora is None or not self.dropout else (key, self.dropout)
        hidden, _ = decoder.prefill(self.model, params, lora, documents, dropout=dropout, remat=self.remat)
        head = decoder.select_head(self.model, params, lora)
        return next_token(decoder.logits(self.model, head, hidden), documents.ids, loss_mask & documents.mask)

    def loss(
        self,
        trainable: Params | Lora,
        base: Params | None,
        documents: Tokens,
        loss_mask: Bool[Array, "B S"],
        weight: Float[Array, ""],
        key: jax.Array | None = None,
    ) -> Float[Array, ""]:
        """A part's share of the mean nats a token over the batch, in which `weight` tokens count."""
        return self.measure(trainable, base, documents, loss_mask, key).total / jnp.maximum(weight, 1.0)

    def _cast(self, params: Params) -> Params:
        return jax.tree.map(lambda x: x.astype(self.dtype), params)
