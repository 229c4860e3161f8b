r"""adapter_config.json of PEFT: the rank and the scale of every module, and the refusal of what is not implemented.

A key of `rank_pattern` and `alpha_pattern` is a regular expression for the end of a module's name in the base, or with
`^` for all of it; the first that matches counts, as in PEFT's `get_pattern_key`. The file comes from anywhere, and some
expressions take Python's matcher forever. So a key may hold names, `.`, `\.`, `\d`, `\w`, sets such as `[0-3]`, `^`,
`$`, and at most four of: a group `(q|v)`, a repeated character `.*`, `\d+`, `x?`. Groups are not repeated.
"""

import dataclasses
import functools
import json
import math
import pathlib
import re
from collections.abc import Callable, Mapping
from typing import Any

from gfn_jax.models.tensor_files import read_json

CONFIG = "adapter_config.json"

# What an adapter_config.json may say beside what is read here. `target_modules` and kin say what to build;
# the tensors that are there say what was built.
_HARMLESS = """
    auto_mapping base_model_name_or_path eva_config exclude_modules fan_in_fan_out inference_mode
    layers_pattern megatron_core peft_version qalora_group_size revision target_modules task_type
"""
HARMLESS = frozenset(_HARMLESS.split())
# Ways of initialising that leave the base as it was; others (PiSSA, OLoRA, CorDA, LoftQ) change it.
INITIALISATIONS = (True, False, "gaussian", "eva", "orthogonal")

_SAFE = re.compile(r"(?:[\w.^$|-]|\\[.dw]|\[[\w-]+\]|\((?!\?)|\(\?:|\)(?![*+?])|(?<![*+?(|^])[*+?])*", re.ASCII)
_CHOICES, _LONGEST = 4, 200  # of a pattern: more of either could take the matcher minutes


@dataclasses.dataclass(frozen=True)
class AdapterSettings:
    """What an adapter_config.json says.

    Attributes:
        rank: r of the modules that no pattern names.
        alpha: numerator of their scale.
        dropout: rate at which the adapter's inputs are dropped while training.
        rank_stabilized: scale by alpha / sqrt(r) instead of alpha / r.
        ranks: pattern -> r of the modules whose names it matches.
        alphas: pattern -> alpha of the modules whose names it matches.
    """

    rank: int
    alpha: float
    dropout: float
    rank_stabilized: bool
    ranks: Mapping[re.Pattern[str], int]
    alphas: Mapping[re.Pattern[str], float]

    def rank_of(self, module: str) -> int:
        """The rank of the module of that name in the base."""
        return _first_match(self.ranks, module, self.rank)

    def scale_of(self, module: str) -> float:
        """The factor on A B of the module of that name in the base."""
        return self._scale(self.rank_of(module), _first_match(self.alphas, module, self.alpha))

    @property
    def scale(self) -> float:
        """The factor on A B of a module that no pattern names."""
        return self._scale(self.rank, self.alpha)

    def _scale(self, rank: int, alpha: float) -> float:
        return alpha / (math.sqrt(rank) if self.rank_stabilized else rank)


def _first_match(patterns: Mapping[re.Pattern[str], Any], module: str, default: Any) -> Any:
    return next((value for pattern, value in patterns.items() if pattern.match(module)), default)


def read_adapter_settings(folder: pathlib.Path, num_layers: int) -> AdapterSettings:
    """Reads adapter_config.json for a base of that many layers.

    Raises:
        ValueError: no such file, or a setting that is missing, invalid or not implemented, by name.
    """
    given = {name: value for name, value in read_json(folder, CONFIG).items() if value is not None}
    where = folder / CONFIG
    # PEFT's own defaults for what older files leave out.
    optional: dict[str, Any] = {"peft_type": "LORA", "bias": "none", "init_lora_weights": True}
    optional |= {"use_rslora": False, "lora_dropout": 0.0, "rank_pattern": {}, "alpha_pattern": {}}
    optional |= {"layers_to_transform": []}
    settings = optional | given
    allowed = {"peft_type": ("LORA",), "bias": ("none",), "init_lora_weights": INITIALISATIONS}
    for name, values in allowed.items():
        if settings[name] not in values:
            raise ValueError(f"{where}: {name} = {settings[name]!r} is not implemented")
    for name, (valid, expected) in _checks(num_layers).items():
        if name not in settings:
            raise ValueError(f"{where} lacks {name!r}")
        if not valid(settings[name]):
            raise ValueError(f"{where}: {name} = {_shown(settings[name])} is not implemented; {expected}")
    known = {*optional, "r", "lora_alpha", *HARMLESS}  # any other of PEFT's settings is off where it is falsy
    for name, value in given.items():
        if value and name not in known:
            raise ValueError(f"{where}: {name} = {_shown(value)} is not implemented")
    return AdapterSettings(
        rank=settings["r"],
        alpha=float(settings["lora_alpha"]),
        dropout=float(settings["lora_dropout"]),
        rank_stabilized=settings["use_rslora"],
        ranks={_pattern(f"{where}: rank_pattern", key): rank for key, rank in settings["rank_pattern"].items()},
        alphas={_pattern(f"{where}: alpha_pattern", key): alpha for key, alpha in settings["alpha_pattern"].items()},
    )


def _checks(num_layers: int) -> dict[str, tuple[Callable[[Any], bool], str]]:
    """Setting -> (whether a value is valid, what it must be)."""

    def every_layer(value: Any) -> bool:
        """Whether the layers it names are all of them; none named means all."""
        named = value if isinstance(value, list) else [value]
        return not named or all(layer in named for layer in range(num_layers))

    def mapping(value: Any, valid: Callable[[Any], bool]) -> bool:
        return isinstance(value, dict) and all(map(valid, value.values()))

    return {
        "r": (_is_rank, "it is a whole number of at least 1"),
        "lora_alpha": (lambda value: _is_number(value) and value != 0, "it is a finite number other than 0"),
        "lora_dropout": (lambda value: _is_number(value) and 0 <= value <= 1, "it is a number from 0 to 1"),
        "use_rslora": (lambda value: isinstance(value, bool), "it is true or false"),
        "rank_pattern": (functools.partial(mapping, valid=_is_rank), "it maps patterns to whole numbers of at least 1"),
        "alpha_pattern": (functools.partial(mapping, valid=_is_number), "it maps patterns to finite numbers"),
        "layers_to_transform": (every_layer, f"every one of the base's {num_layers} layers must have an adapter"),
    }


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e38  # float32; no NaN is


def _is_rank(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 1 <= value < 2**31


def _pattern(where: str, key: str) -> re.Pattern[str]:
    """What matches the modules that a key means; a ValueError if it is no expression, or may take too long."""
    choices = len(re.findall(r"(?<!\\)[(*+?]", key.replace("(?:", "(")))
    if len(key) > _LONGEST or choices > _CHOICES or not _SAFE.fullmatch(key):
        raise ValueError(
            f"{where} has the pattern {_shown(key)}; implemented are names with . \\. \\d \\w [..] ^ $ and at most "
            f"{_CHOICES} groups (a|b) and repetitions of one character, in {_LONGEST} characters"
        )
    try:
        return re.compile(rf"(.*\.)?({key})$")
    except re.error as error:
        raise ValueError(f"{where} has the pattern {_shown(key)}, no regular expression: {error.msg}") from error


def _shown(value: Any) -> str:
    """A value as the file has it, in so much of one line."""
    text = json.dumps(value)
    return text if len(text) <= 80 else f"{text[:80]}..."
