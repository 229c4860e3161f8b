"""The model families by `model_type`: one file and one line here for each."""

import json
import os
from collections.abc import Mapping
from typing import Any

from gfn_jax.models.config import ModelConfig
from gfn_jax.models.families.family import Family, Settings
from gfn_jax.models.families.gemma import GEMMA2, GEMMA3
from gfn_jax.models.families.gpt import GPT2, GPT_NEOX, GPTJ
from gfn_jax.models.families.llama import LLAMA, MISTRAL, QWEN2, QWEN3

MODELS: dict[str, Family] = {
    "gpt2": GPT2,
    "gptj": GPTJ,
    "gpt_neox": GPT_NEOX,
    "llama": LLAMA,
    "mistral": MISTRAL,
    "qwen2": QWEN2,
    "qwen3": QWEN3,
    "gemma2": GEMMA2,
    "gemma3_text": GEMMA3,
}


def family_of(model_type: str) -> Family:
    """The family of that name.

    Raises:
        ValueError: it is not one of `MODELS`.
    """
    if model_type not in MODELS:
        raise ValueError(f"model_type {model_type!r} is not implemented; there are {', '.join(sorted(MODELS))}")
    return MODELS[model_type]


def read_settings(raw: Mapping[str, Any]) -> ModelConfig:
    """The `ModelConfig` of a config.json, whose defaults transformers' own configuration class supplies.

    Raises:
        ValueError: unknown model_type, a setting that is missing, invalid or not implemented.
    """
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")  # else it remarks that torch is missing
    from transformers import CONFIG_MAPPING  # 1.5 s to import, and only wanted where a checkpoint is read

    if "model_type" not in raw:
        raise ValueError("config.json names no model_type")
    model_type = raw["model_type"]
    family = family_of(model_type)
    known = CONFIG_MAPPING[model_type]
    try:
        values = known.from_dict(dict(raw)).to_dict()
    except Exception as error:  # its validators raise classes of their own, over several lines
        raise ValueError(f"config.json of {model_type!r}: {' '.join(str(error).split())}") from error
    return family.read_config(Settings(model_type, values, known().to_dict()))


def write_settings(config: ModelConfig, model_type: str) -> dict[str, Any]:
    """The config.json that reads back as `config`.

    Raises:
        ValueError: the family cannot express it.
    """
    family = family_of(model_type)
    settings = {
        # The special tokens are the tokenizer's; unsaid, transformers assumes the original's.
        **dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id")),
        "model_type": model_type,
        "architectures": [family.architecture],
        **family.write_config(config),
    }
    back = read_settings(json.loads(json.dumps(settings)))
    if back != config:
        lost = [name for name, value in vars(config).items() if vars(back)[name] != value]
        raise ValueError(f"model_type {model_type!r} cannot express this configuration's {', '.join(lost)}")
    return settings
