"""A language model as a value: what sampling, scoring, rewards and evaluators are given."""

import dataclasses

from flax import struct

from gfn_jax.models.config import Attention, ModelConfig
from gfn_jax.models.lora import Lora, merge_lora
from gfn_jax.types import Params


@struct.dataclass
class LanguageModel:
    """A decoder's weights, with or without an adapter beside them; a pytree, so that programs take it as it is.

    A policy and its base are two of these on the same arrays: `policy.base` copies nothing.

    Attributes:
        shape: of the decoder; static, part of what a program is compiled for.
        params: the weights, layers stacked on axis 0.
        adapter: LoRA beside them, or None.
        attention: what attends where whole sequences are read (`config.BaseModelConfig`); static.
    """

    shape: ModelConfig = struct.field(pytree_node=False)
    params: Params
    adapter: Lora | None = None
    attention: Attention = struct.field(pytree_node=False, default="xla")

    @property
    def base(self) -> "LanguageModel":
        """The same without its adapter."""
        return dataclasses.replace(self, adapter=None)

    @property
    def merged(self) -> "LanguageModel":
        """The same with the adapter of the layers added into a copy of their kernels; that of the head stays beside it.

        For a while in which nothing learns: one product a projection, where an adapter beside it takes three.
        """
        if self.adapter is None:
            return self
        head = None if self.adapter.head is None else dataclasses.replace(self.adapter, layers={})
        params = merge_lora(self.shape, self.params, dataclasses.replace(self.adapter, head=None))
        return dataclasses.replace(self, params=params, adapter=head)

    def adapted(self, adapter: Lora | None) -> "LanguageModel":
        """The same weights with that adapter instead."""
        return dataclasses.replace(self, adapter=adapter)
