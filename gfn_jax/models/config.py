"""The one description of a decoder: every family is a value of `ModelConfig`, not a class of its own."""

import dataclasses
from typing import Literal

from gfn_jax.sections import Count, Natural, Nonnegative, Positive, check

Attention = Literal["xla", "cudnn"]
CacheDtype = Literal["bfloat16", "int8"]
Remat = Literal["none", "dots", "dots_except_mlp", "full"]

# What layers compute again in the backward pass is all but their inputs and the outputs of these projections.
KEPT: dict[Remat, tuple[str, ...]] = {
    "dots": ("q", "k", "v", "o", "gate", "up", "down"),
    "dots_except_mlp": ("q", "k", "v", "o"),
    "full": (),
}


@dataclasses.dataclass(frozen=True)
class RopeScaling:
    """How rotary frequencies are stretched beyond the length a model was trained on.

    Attributes:
        kind: `linear` divides every frequency by `factor`; `llama3` only the low ones, with a smooth ramp.
        factor: the stretch.
        low_freq_factor: llama3: wavelengths above original_max_positions / this are stretched in full.
        high_freq_factor: llama3: wavelengths below original_max_positions / this are left alone.
        original_max_positions: the length the model was trained on.
    """

    kind: Literal["linear", "llama3"]
    factor: float
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_positions: int = 8192


@dataclasses.dataclass(frozen=True)
class BaseModelConfig:
    """Which model is the base, and how it is computed.

    Attributes:
        path: a folder, a hub id, or the name of a model that the project ships.
        dtype: of weights and activations.
        remat: recompute activations in the backward pass.
        quantize: what becomes of the kernels of the blocks' projections.
        remat_policy: which of them: all (`full`), none, all but what the projections give (`dots`), or but what those
            of the attention give (`dots_except_mlp`); None for what `remat` says, all or none.
        cache_dtype: of keys and values while a step samples; None for `dtype`. What samples is then a little off the
            policy that is scored and evaluated.
        attention: by what whole sequences attend: the library's own products (`xla`), or cuDNN's kernel on NVIDIA GPUs.
    """

    path: str
    dtype: Literal["float32", "bfloat16", "float16"]
    remat: bool
    quantize: Literal["none", "int8", "nf4"]
    remat_policy: Remat | None = None
    cache_dtype: CacheDtype | None = None
    attention: Attention = "xla"

    def __post_init__(self):
        if not self.path:
            raise ValueError("path is empty; name a folder, a hub id or a model that the project ships")

    @property
    def recomputed(self) -> Remat:
        """What the backward pass computes again, by name."""
        return self.remat_policy or ("full" if self.remat else "none")


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """The shape and the arithmetic of a decoder-only transformer.

    Attributes:
        vocab_size: rows of the embedding, padding rows included.
        width: size of the residual stream (E).
        num_layers: L.
        num_heads: query heads (H).
        num_kv_heads: key/value heads (K); H is a multiple of K.
        head_dim: D.
        mlp_width: hidden size of the MLP.
        max_positions: the longest sequence the model may see.
        norm: `layer` (mean and variance, with bias) or `rms`.
        norm_eps: added to the variance.
        norm_offset: 1.0 where the stored RMS scale is a difference from one (Gemma), else 0.0.
        norm_placement: `pre`; `parallel` (attention and MLP read one norm of the same input, GPT-J);
            `parallel_two` (each its own norm of the same input, NeoX); `sandwich` (before and after, Gemma).
        positions: `learned` or `rotary`.
        rotary_dim: leading dimensions of a head that are rotated, in pairs.
        rotary_interleaved: rotate pairs (0, 1), (2, 3)... (GPT-J) instead of halves.
        rope_theta: base of the rotary frequencies.
        rope_scaling: their stretch, or None.
        activation: of the MLP; `gelu` is exact, `gelu_tanh` its approximation.
        gated_mlp: down(act(gate(x)) * up(x)) instead of down(act(up(x))).
        qkv_bias, out_bias, mlp_bias, head_bias: which projections add a bias.
        tied_head: the output head is the transposed embedding.
        qk_norm: RMS-normalise queries and keys per head before rotating them (Qwen3, Gemma 3).
        query_scale: attention scores are scaled by this; None means head_dim ** -0.5.
        attention_softcap, logit_softcap: c * tanh(x / c), or None.
        embed_scale: factor on the embedding (Gemma), 1.0 elsewhere.
        local_window: width of sliding-window attention, or None where every layer is global.
        local_layers: per layer, whether it attends through the window; empty means none does.
        local_rope_theta: base of the rotary frequencies in local layers; None means `rope_theta`.
    """

    vocab_size: Count
    width: Count
    num_layers: Count
    num_heads: Count
    num_kv_heads: Count
    head_dim: Count
    mlp_width: Count
    max_positions: Count
    norm: Literal["layer", "rms"] = "rms"
    norm_eps: Nonnegative = 1e-5
    norm_offset: float = 0.0
    norm_placement: Literal["pre", "parallel", "parallel_two", "sandwich"] = "pre"
    positions: Literal["learned", "rotary"] = "rotary"
    rotary_dim: Natural = 0
    rotary_interleaved: bool = False
    rope_theta: Positive = 10000.0
    rope_scaling: RopeScaling | None = None
    activation: Literal["gelu", "gelu_tanh", "silu", "relu"] = "silu"
    gated_mlp: bool = True
    qkv_bias: bool = False
    out_bias: bool = False
    mlp_bias: bool = False
    head_bias: bool = False
    tied_head: bool = False
    qk_norm: bool = False
    query_scale: Positive | None = None
    attention_softcap: Positive | None = None
    logit_softcap: Positive | None = None
    embed_scale: Positive = 1.0
    local_window: Count | None = None
    local_layers: tuple[bool, ...] = ()
    local_rope_theta: Positive | None = None

    def __post_init__(self):
        check(ModelConfig, vars(self))
        if self.num_heads % self.num_kv_heads:
            raise ValueError(f"num_heads {self.num_heads} is not a multiple of num_kv_heads {self.num_kv_heads}")
        if self.positions == "rotary" and (self.rotary_dim % 2 or not 0 < self.rotary_dim <= self.head_dim):
            raise ValueError(f"rotary_dim {self.rotary_dim} must be even, and in 2..head_dim ({self.head_dim})")
        if self.local_layers and len(self.local_layers) != self.num_layers:
            raise ValueError(f"local_layers names {len(self.local_layers)} layers of {self.num_layers}")

    @property
    def projections(self) -> dict[str, tuple[int, int]]:
        """Name -> (inputs, outputs) of every linear layer of a block, in the order they are applied."""
        heads, kv = self.num_heads * self.head_dim, self.num_kv_heads * self.head_dim
        sizes = {
            "q": (self.width, heads),
            "k": (self.width, kv),
            "v": (self.width, kv),
            "o": (heads, self.width),
            "gate": (self.width, self.mlp_width),
            "up": (self.width, self.mlp_width),
            "down": (self.mlp_width, self.width),
        }
        if not self.gated_mlp:
            del sizes["gate"]
        return sizes

    @property
    def biased(self) -> frozenset[str]:
        """The projections of a block that add a bias."""
        groups = {
            ("q", "k", "v"): self.qkv_bias,
            ("o",): self.out_bias,
            ("gate", "up", "down"): self.mlp_bias,
        }
        return frozenset(name for names, on in groups.items() if on for name in names if name in self.projections)

    @property
    def block_norms(self) -> tuple[str, ...]:
        """The norms of a block."""
        return {
            "pre": ("attn_norm", "mlp_norm"),
            "parallel": ("attn_norm",),
            "parallel_two": ("attn_norm", "mlp_norm"),
            "sandwich": ("attn_norm", "attn_post_norm", "mlp_norm", "mlp_post_norm"),
        }[self.norm_placement]
