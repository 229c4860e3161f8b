"""An adapter on its way out: PEFT's folder or a merged Hugging Face folder, each with its card."""

import dataclasses
import pathlib
from collections.abc import Mapping
from typing import Any

from gfn_jax.models.adapters import export_merged, save_adapter
from gfn_jax.models.config import ModelConfig
from gfn_jax.models.lora import Lora, LoraConfig
from gfn_jax.models.model_card import write_model_card
from gfn_jax.models.tensor_files import whole_folder
from gfn_jax.types import Params


@dataclasses.dataclass(frozen=True)
class Origin:
    """Where an adapter comes from, for its card.

    Attributes:
        base: the name or folder of the base model.
        task: what was trained on.
        config_digest: the fingerprint of the run's configuration.
        metrics: name -> value, as measured with this very adapter; what is no number is left out of the card.
        command: what reproduces the run.
    """

    base: str
    task: str
    config_digest: str
    metrics: Mapping[str, Any]
    command: str


def export_run_adapter(
    folder: str | pathlib.Path,
    config: ModelConfig,
    lora_config: LoraConfig,
    lora: Lora,
    model_type: str,
    origin: Origin,
) -> pathlib.Path:
    """Writes a run's adapter in PEFT's layout, with its card, all or nothing, and returns the folder.

    Args:
        folder: made if need be; one that is there is replaced.
        config: the base's shape.
        lora_config: rank, alpha and targets.
        lora: the weights, every shard of which this process must hold.
        model_type: the base's family.
        origin: for the card.

    Raises:
        ValueError: the weights' scale is not the configuration's.
        OSError: the folder cannot be written.
    """
    with whole_folder(folder) as draft:
        save_adapter(draft, config, lora_config, lora, model_type, origin.base)
        _write_card(draft, origin)
    return pathlib.Path(folder)


def export_run_model(
    folder: str | pathlib.Path,
    config: ModelConfig,
    params: Params,
    lora: Lora,
    model_type: str,
    origin: Origin,
    settings: Mapping[str, Any] | None = None,
) -> pathlib.Path:
    """Writes base and adapter as one model in Hugging Face's layout, with its card; the tokenizer is the caller's.

    Args:
        folder: made if need be.
        config: the base's shape.
        params: the base's weights, in the dtype that is written.
        lora: the adapter.
        model_type: the base's family.
        origin: for the card.
        settings: more of config.json (special token ids).

    Raises:
        ValueError: a quantised base, or a family that cannot express the result.
        OSError: the folder cannot be written.
    """
    folder = pathlib.Path(folder)
    export_merged(folder, config, params, lora, model_type, settings)
    _write_card(folder, origin)
    return folder


def _write_card(folder: pathlib.Path, origin: Origin) -> None:
    numbers = {name: value for name, value in origin.metrics.items() if isinstance(value, int | float)}
    write_model_card(folder, origin.base, origin.task, origin.config_digest, numbers, origin.command)
