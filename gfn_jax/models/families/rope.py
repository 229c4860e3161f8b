"""Rotary settings as transformers spells them, to and from the fields of `ModelConfig`."""

from collections.abc import Mapping
from typing import Any

from gfn_jax.models.config import RopeScaling
from gfn_jax.models.families.family import Settings

_LLAMA3 = {
    "factor": "factor",
    "low_freq_factor": "low_freq_factor",
    "high_freq_factor": "high_freq_factor",
    "original_max_positions": "original_max_position_embeddings",
}
_FIELDS = {"default": {}, "linear": {"factor": "factor"}, "llama3": _LLAMA3}


def read_rope(settings: Settings, rope: Mapping[str, Any]) -> tuple[float, RopeScaling | None]:
    """(theta, scaling) of one `rope_parameters`.

    Raises:
        ValueError: a type of scaling, or a parameter of one, that is not implemented.
    """
    kind = rope["rope_type"]
    if kind not in _FIELDS:
        raise settings.refusal("rope_type", kind, f" (implemented: {', '.join(map(repr, _FIELDS))})")
    names = _FIELDS[kind]
    for name, value in rope.items():
        if name not in {"rope_type", "type", "rope_theta", *names.values()}:
            raise settings.refusal(f"rope_parameters.{name}", value)
    for name in names.values():
        if name not in rope:
            raise ValueError(f"rope_parameters of type {kind!r} lack {name!r}")
    fields = {field: rope[name] for field, name in names.items()}
    return float(rope["rope_theta"]), RopeScaling(kind=kind, **fields) if fields else None


def write_rope(theta: float, scaling: RopeScaling | None) -> dict[str, Any]:
    """The `rope_parameters` that `read_rope` reads back."""
    rope: dict[str, Any] = {"rope_type": scaling.kind if scaling else "default", "rope_theta": theta}
    if scaling:
        rope |= {name: vars(scaling)[field] for field, name in _FIELDS[scaling.kind].items()}
    return rope
