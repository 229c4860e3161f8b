"""Config sections as frozen dataclasses, field by field.

A key that no field has, or a field that no key sets, is an error before anything is computed. What is built knows
only the dataclasses.
"""

import dataclasses
import importlib
import typing
from collections.abc import Mapping
from typing import Any, TypeVar

import ml_collections

Section = TypeVar("Section")


def section(cls: type[Section], values: Mapping[str, Any], partial: bool = False, **fixed: Any) -> Section:
    """A dataclass from a config section; `fixed` fields come from elsewhere.

    Args:
        cls: the dataclass.
        values: the section; its keys are the fields.
        partial: fields that the section does not name keep their defaults.
        **fixed: fields that are not the section's.

    Raises:
        ValueError: keys and fields differ.
    """
    fields = {field.name for field in dataclasses.fields(typing.cast(Any, cls))} - fixed.keys()
    missing, unknown = sorted(fields - set(values)) * (not partial), sorted(set(values) - fields)
    if missing or unknown:
        raise ValueError(
            f"the config section for {cls.__name__} "
            + " and ".join(
                f"{verb} {', '.join(names)}" for verb, names in (("lacks", missing), ("has unknown", unknown)) if names
            )
        )
    plain = {name: tuple(value) if isinstance(value, list | tuple) else value for name, value in values.items()}
    return cls(**plain, **fixed)


def described(config: ml_collections.ConfigDict) -> dict[str, Any]:
    """What training depends on, as plain values: what a workdir belongs to. How, and how often, to look is no part."""
    looking = ("log_every", "save_every", "tensorboard", "evaluation")
    return {name: value for name, value in config.to_dict().items() if name not in looking}


def imported(path: str) -> Any:
    """What "package.module:name" names; modules of the current folder count.

    Raises:
        ValueError: no such module or name.
    """
    module, colon, name = path.partition(":")
    if not colon or not name:
        raise ValueError(f"{path!r} must be 'package.module:name'")
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"{path!r} cannot be imported: {error}") from error
