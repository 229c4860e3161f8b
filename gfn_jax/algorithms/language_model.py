"""Training a base model from scratch, or all of its weights on new text, by next-token likelihood."""

import dataclasses

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Float

from gfn_jax.models import decoder
from gfn_jax.models.config import ModelConfig
from gfn_jax.objectives.likelihood import next_token
from gfn_jax.types import Params, Tokens


@dataclasses.dataclass(frozen=True)
class Phase:
    """Some steps over some of the documents: a corpus may change its mixture as training goes on.

    Attributes:
        steps: how many.
        first, end: the documents drawn from are [first, end).
    """

    steps: int
    first: int
    end: int


@struct.dataclass
class Corpus:
    """Documents on the device, and the root of the run's randomness."""

    documents: Tokens  # [documents, S]
    root: jax.Array


@dataclasses.dataclass(frozen=True)
class LanguageModeling:
    """Next-token training of every weight.

    Attributes:
        model: the model's shape.
        batch: documents a step.
        phases: in order.
        remat: recompute activations in the backward pass.
    """

    model: ModelConfig
    batch: int
    phases: tuple[Phase, ...]
    remat: bool = False

    @property
    def steps(self) -> int:
        """Of all phases."""
        return sum(phase.steps for phase in self.phases)

    def collect(self, corpus: Corpus, step: Array) -> Tokens:
        """The step's documents: drawn with replacement from its phase's, a function of the step number alone."""
        ends = jnp.cumsum(jnp.asarray([phase.steps for phase in self.phases]))
        phase = jnp.minimum(jnp.searchsorted(ends, step, side="right"), len(self.phases) - 1)
        first = jnp.asarray([phase.first for phase in self.phases])[phase]
        end = jnp.asarray([phase.end for phase in self.phases])[phase]
        index = jax.random.randint(jax.random.fold_in(corpus.root, step), (self.batch,), first, end)
        return jax.tree.map(lambda x: x[index], corpus.documents)

    def loss(self, params: Params, documents: Tokens) -> Float[Array, ""]:
        """Mean nats a token."""
        hidden, _ = decoder.prefill(self.model, params, None, documents, remat=self.remat)
        head = decoder.select_head(self.model, params, None)
        measured = next_token(decoder.logits(self.model, head, hidden), documents.ids, documents.mask)
        return measured.total / jnp.maximum(measured.weight, 1.0)
