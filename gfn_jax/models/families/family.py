"""What a model family is: how its settings become a `ModelConfig` and where its tensors lie in a file.

A family is data over the one decoder: settings that translate one to one, constants, a few that need a line
of code, and the name of every module in Hugging Face's layout. Both directions follow from one description.
"""

import dataclasses
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import traverse_util
from jax.typing import DTypeLike

from gfn_jax.models.config import ModelConfig
from gfn_jax.models.decoder import init_params
from gfn_jax.types import Params

Path = tuple[str, ...]

# Settings that cannot change what a frozen decoder computes: dropout and initialisation of training the base,
# special token ids (the tokenizer's business), other heads, ways of generating, bookkeeping.
_HARMLESS = """
    _attn_implementation_autoset _name_or_path _num_labels _sliding_window_pattern architectures attention_dropout
    attention_probs_dropout_prob attn_pdrop auto_map begin_suppress_tokens bad_words_ids bos_token_id
    cache_implementation classifier_dropout custom_pipelines decoder_start_token_id diversity_penalty do_sample dtype
    early_stopping embd_pdrop encoder_no_repeat_ngram_size eos_token_id exponential_decay_length_penalty
    finetuning_task forced_bos_token_id forced_eos_token_id gradient_checkpointing hidden_dropout hidden_dropout_prob
    id2label initializer_range is_decoder is_llama_config label2id length_penalty max_length max_sequence_length
    min_length model_type n_ctx n_special neftune_noise_alpha no_repeat_ngram_size num_beam_groups num_beams
    num_return_sequences output_attentions output_hidden_states output_past output_scores pad_token_id
    predict_special_tokens prefix pretraining_tp problem_type remove_invalid_values reorder_and_upcast_attn
    repetition_penalty resid_pdrop return_dict return_dict_in_generate rotary sep_token_id sliding_window_size
    summary_activation summary_first_dropout summary_proj_to_labels summary_type summary_use_proj suppress_tokens
    task_specific_params temperature tf_legacy_loss tokenizer_class top_k top_p torch_dtype torchscript
    transformers.js_config transformers_version typical_p unk_token_id unsloth_fixed unsloth_version use_bfloat16
    use_cache
"""
HARMLESS = frozenset(_HARMLESS.split())
# What checkpoints say is off though their family's configuration class knows nothing of it.
_OFF = """
    add_cross_attention cross_attention_hidden_size pruned_heads rope_interleaved
    scale_attn_by_inverse_layer_idx tie_encoder_decoder use_mrope
"""
OFF = frozenset(_OFF.split())
ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "silu": "silu",
    "swish": "silu",
    "relu": "relu",
}


class Settings:
    """A checkpoint's settings, defaults filled in; each must be taken, harmless, at its default, or known and off.

    Args:
        model_type: whose settings they are, for messages.
        values: the settings.
        defaults: what the family's configuration class says where a file says nothing.
    """

    def __init__(self, model_type: str, values: Mapping[str, Any], defaults: Mapping[str, Any]):
        self._model_type, self._values, self._defaults = model_type, values, defaults
        self._taken: set[str] = set()

    def take(self, name: str) -> Any:
        """The setting `name`, which thereby counts as implemented."""
        if name not in self._values:
            raise ValueError(f"config.json of model_type {self._model_type!r} lacks {name!r}")
        self._taken.add(name)
        return self._values[name]

    def __contains__(self, name: str) -> bool:
        return name in self._values

    def drop(self, *names: str) -> None:
        """Marks settings as deliberately not read: others say the same."""
        self._taken.update(names)

    def choose(self, name: str, allowed: Mapping[Any, Any]) -> Any:
        """The setting `name` translated, or a refusal that names it."""
        value = self.take(name)
        if value not in allowed:
            raise self.refusal(name, value, f" (implemented: {', '.join(map(repr, allowed))})")
        return allowed[value]

    def refusal(self, name: str, value: Any, rest: str = "") -> ValueError:
        """The error for a setting that the code does not implement."""
        return ValueError(f"model_type {self._model_type!r}: {name} = {value!r} is not implemented{rest}")

    def finish(self) -> None:
        """Refuses by name whatever was not taken, unless it is known to change nothing.

        A falsy value is off where the family's configuration class has the setting, off as well. Of any other
        setting it may be what switches something: `is_causal` false is no decoder.
        """
        for name, value in self._values.items():
            default = self._defaults.get(name)
            off = not value and not default and (name in self._defaults or name in OFF)
            at_default = name in self._defaults and value == default
            if not (off or at_default or name in self._taken or name in HARMLESS):
                raise self.refusal(name, value)


@dataclasses.dataclass(frozen=True)
class Source:
    """Where one parameter lies in a checkpoint.

    Attributes:
        names: the tensors it is stacked from, one a layer, or the one it is.
        stacked: whether its leading axis counts layers.
        transposed: whether the file holds [out, in].
        fused: (groups, index, parts): its outputs are part `index` of `parts` of each group of a tensor.
    """

    names: tuple[str, ...]
    stacked: bool
    transposed: bool
    fused: tuple[int, int, int] | None

    def renamed(self, new: str, old: str) -> "Source":
        """The same in a file whose names begin with `old` instead of `new`."""
        names = (old + name[len(new) :] if name.startswith(new) else name for name in self.names)
        return dataclasses.replace(self, names=tuple(names))

    def shape(self, parameter: tuple[int, ...]) -> tuple[int, ...]:
        """The shape of each tensor in the file, for a parameter of this shape."""
        *rest, out = parameter[1:] if self.stacked else parameter
        shape = (*rest, out * self.fused[2] if self.fused else out)
        return shape[::-1] if self.transposed else shape

    def spans(self, start: int, stop: int, outputs: int) -> Iterator[slice]:
        """The file's output columns that hold the parameter's columns start..stop of `outputs`."""
        if self.fused is None:
            yield slice(start, stop)
            return
        groups, index, parts = self.fused
        size = outputs // groups
        for group in range(start // size, -(-stop // size)):
            first = (group * parts + index - group) * size  # of the group in the file, less its place among ours
            yield slice(first + max(start, group * size), first + min(stop, (group + 1) * size))


@dataclasses.dataclass(frozen=True)
class Family:
    """One `model_type` of Hugging Face.

    Attributes:
        architecture: the class name that a written config.json carries.
        names: fields of `ModelConfig` that are one setting under another name.
        constants: fields that are the same for every model of the family.
        read: the remaining fields from the settings.
        write: the settings that give those fields back.
        modules: our modules -> theirs, `{}` standing for the layer.
        older: how a name may begin in other checkpoints: of older versions, or of the bare decoder.
        fused: how q, k, v share a tensor: side by side (`blocks`), per head (`heads`), or not at all.
        input_major: linear layers of blocks are stored [in, out] (GPT-2's Conv1D).
        skipped: pattern of tensors that hold no parameter (constant buffers).
    """

    architecture: str
    names: Mapping[str, str]
    constants: Mapping[str, Any]
    read: Callable[[Settings], dict[str, Any]]
    write: Callable[[ModelConfig], dict[str, Any]]
    modules: Mapping[str, str]
    older: Mapping[str, str]
    fused: Literal["blocks", "heads"] | None = None
    input_major: bool = False
    skipped: str = r".*\.rotary_emb\.inv_freq"

    def read_config(self, settings: Settings) -> ModelConfig:
        """Translates settings.

        Raises:
            ValueError: a setting that is missing or not implemented, by name.
        """
        fields = {field: settings.take(name) for field, name in self.names.items()}
        fields |= {**self.constants, **self.read(settings)}
        settings.finish()
        return ModelConfig(**fields)

    def write_config(self, config: ModelConfig) -> dict[str, Any]:
        """The settings of config.json that describe `config`."""
        fields = dataclasses.asdict(config)
        return {name: fields[field] for field, name in self.names.items()} | self.write(config)

    def sources(self, config: ModelConfig, present: Collection[str] | None = None) -> dict[Path, Source]:
        """Every parameter and where it lies in a checkpoint, by default one as transformers writes it now."""
        sources = {path: self._source(config, path) for path in abstract_params(config)}
        if present is not None:
            for new, old in self.older.items():
                if not any(name.startswith(new) for name in present):
                    sources = {path: source.renamed(new, old) for path, source in sources.items()}
        return sources

    def skips(self, name: str) -> bool:
        """Whether a tensor is left out on purpose: a constant buffer."""
        return re.fullmatch(self.skipped, name) is not None

    def fusion(self, config: ModelConfig, module: str) -> tuple[int, int, int] | None:
        """(groups, index, parts) of a module whose tensor is shared with others."""
        if self.fused is None or module not in ("q", "k", "v"):
            return None
        return (1 if self.fused == "blocks" else config.num_heads, ("q", "k", "v").index(module), 3)

    def _source(self, config: ModelConfig, path: Path) -> Source:
        stacked = path[0] == "layers"
        module = path[1] if path[0] in ("layers", "embed") else path[0]
        leaf = "bias" if path[-1] == "bias" else "weight"
        template = f"{self.modules[module]}.{leaf}"
        return Source(
            names=tuple(template.format(i) for i in range(config.num_layers)) if stacked else (template,),
            stacked=stacked,
            transposed=path[-1] == "kernel" and not (self.input_major and stacked),
            fused=self.fusion(config, module),
        )


def abstract_params(config: ModelConfig, dtype: DTypeLike = jnp.float32) -> dict[Path, jax.ShapeDtypeStruct]:
    """Path -> shape and dtype of every parameter, without allocating any."""
    params: Params = jax.eval_shape(lambda key: init_params(key, config, dtype), jax.random.key(0))
    return traverse_util.flatten_dict(params)


def activation_name(config: ModelConfig, gelu_tanh: str = "gelu_pytorch_tanh") -> str:
    """Hugging Face's name of the MLP's activation; `gelu_tanh` is the family's for that one of many names."""
    return next(
        gelu_tanh if ours == "gelu_tanh" else name for name, ours in ACTIVATIONS.items() if ours == config.activation
    )
