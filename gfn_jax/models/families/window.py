"""Which layers attend through a sliding window, as transformers spells it, to and from `ModelConfig`."""

from typing import Any

from gfn_jax.models.config import ModelConfig
from gfn_jax.models.families.family import Settings

LOCAL, GLOBAL = "sliding_attention", "full_attention"


def read_window(settings: Settings) -> dict[str, Any]:
    """`local_window` and `local_layers` from `layer_types` and `sliding_window`.

    Raises:
        ValueError: a type of layer that is not implemented, or a window without a width.
    """
    settings.drop("sliding_window_pattern")  # transformers makes `layer_types` of it
    types, width = settings.take("layer_types"), settings.take("sliding_window")
    for kind in types:
        if kind not in (LOCAL, GLOBAL):
            raise settings.refusal("layer_types", kind, f" (implemented: {LOCAL!r}, {GLOBAL!r})")
    if LOCAL not in types:
        return {}
    return {"local_window": checked_width(settings, width), "local_layers": tuple(kind == LOCAL for kind in types)}


def checked_width(settings: Settings, width: int | None) -> int:
    """The width of a window that some layer attends through; a ValueError where it has none or shows nothing."""
    if width is None or width < 1:
        raise settings.refusal("sliding_window", width, " (implemented: 1 or more)")
    return width


def write_window(config: ModelConfig) -> dict[str, Any]:
    """What `read_window` reads."""
    local = config.local_layers or (False,) * config.num_layers
    return {
        "layer_types": [LOCAL if is_local else GLOBAL for is_local in local],
        "sliding_window": config.local_window,
    }
