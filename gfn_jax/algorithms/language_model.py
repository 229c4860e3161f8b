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

from gfn_jax.interfaces import Measure
from gfn_jax.models.config import ModelConfig, Remat
from gfn_jax.models.decoder import init_params
from gfn_jax.models.language_model import LanguageModel
from gfn_jax.models.lora import Lora, LoraConfig, init_lora
from gfn_jax.models.partition import split_rows
from gfn_jax.policy.likelihood import next_token_loss
from gfn_jax.sections import Count
from gfn_jax.types import Collected, Keys, Params, Tokens, TrainState


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
        base: the frozen model under an adapter; None where all weights are trained.
    """

    documents: Tokens  # [documents, S]
    loss_mask: Bool[Array, "documents S"]
    order: Int[Array, "steps batch"]
    root: jax.Array
    base: LanguageModel | None = None


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


@struct.dataclass
class Batch:
    """Documents, and which of their tokens are learnt."""

    documents: Tokens  # [B, S]
    loss_mask: Bool[Array, "B S"]


@dataclasses.dataclass(frozen=True)
class LanguageModeling:
    """Next-token training, as `interfaces.Algorithm` has it: of an adapter where there is one, else of all weights.

    Attributes:
        shape: the model's.
        lora: the adapter's shape and dropout; None trains all weights.
        micro_batches: parts that a step's rows are worked through in; the gradient is the whole batch's.
        remat: which activations the backward pass computes again.
        dtype: of the arithmetic where all weights are trained; they themselves and the optimizer keep theirs.
    """

    shape: ModelConfig
    lora: LoraConfig | None = None
    micro_batches: int = 1
    remat: Remat = "none"
    dtype: DTypeLike = jnp.float32

    def init(self, key: jax.Array, constants: Corpus) -> tuple[Params | Lora, None]:
        """A fresh adapter, or random weights; nothing is remembered."""
        if self.lora is None:
            return init_params(key, self.shape), None
        return init_lora(key, self.shape, self.lora), None

    def policy(self, trainable: Params | Lora, constants: Corpus) -> LanguageModel:
        """The model as it computes."""
        if constants.base is None:
            return LanguageModel(self.shape, jax.tree.map(lambda x: x.astype(self.dtype), trainable))
        return constants.base.adapted(trainable)

    def collect(self, state: TrainState, constants: Corpus, keys: Keys) -> Collected:
        """The step's documents and their loss masks."""
        index = constants.order[state.step].reshape(self.micro_batches, -1)
        rows = Batch(*jax.tree.map(lambda x: x[index], (constants.documents, constants.loss_mask)))
        return Collected(rows, state.memory, {})

    def weights(self, batch: Batch) -> dict[str, Float[Array, ""]]:
        """How many tokens are learnt."""
        return {"tokens": (batch.loss_mask & batch.documents.mask)[:, 1:].sum(dtype=jnp.float32)}

    def loss(
        self,
        trainable: Params | Lora,
        constants: Corpus,
        batch: Batch,
        weights: dict[str, Float[Array, ""]],
        key: jax.Array,
    ) -> tuple[Float[Array, ""], dict[str, Measure]]:
        """A part's share of the mean nats a token."""
        rows = jax.tree.map(split_rows, batch)
        rate = 0.0 if self.lora is None else self.lora.dropout
        dropout = (key, rate) if rate else None
        model = self.policy(trainable, constants)
        measured = next_token_loss(model, rows.documents, rows.loss_mask, dropout, self.remat)
        return measured.total / jnp.maximum(weights["tokens"], 1.0), {}
