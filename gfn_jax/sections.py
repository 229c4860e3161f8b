"""Config sections as frozen dataclasses, field by field, each value checked against its field's type and range.

    rank: Annotated[int, Range(1, 16384)]        samples: Count        clip_norm: Positive | None

A key that no field has, a field that no key sets, and a value out of its field's range are errors before anything is
computed; a message names `section.field`, what it is and what it may be. What is built knows only the dataclasses.
"""

import dataclasses
import importlib
import importlib.util
import inspect
import math
import numbers
import re
import types
import typing
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal, TypeVar

import ml_collections

Section = TypeVar("Section")
LARGEST_FLOAT = 3e38  # what lies beyond is infinite in float32
LARGEST_INT = 2**31 - 1  # steps and indices are int32

_USER = re.compile(r"\s*[\w+.-]+://[^/?#]*@")


@dataclasses.dataclass(frozen=True)
class Range:
    """Which numbers a field takes: from `low` to `high`, an open end excluded; never NaN, never infinite."""

    low: float = -math.inf
    high: float = math.inf
    above: bool = False  # low itself is excluded
    below: bool = False  # high itself is excluded

    def __contains__(self, value: float) -> bool:
        lower = self.low < value if self.above else self.low <= value
        upper = value < self.high if self.below else value <= self.high
        return bool(lower and upper and -LARGEST_FLOAT <= value <= LARGEST_FLOAT)

    def __str__(self) -> str:
        if self.low == -math.inf:
            return "" if self.high == math.inf else f" {'below' if self.below else 'of at most'} {self.high}"
        if self.high in (math.inf, LARGEST_INT):
            return f" {'above' if self.above else 'of at least'} {self.low}"
        return f" {'above' if self.above else 'from'} {self.low} {'and below' if self.below else 'to'} {self.high}"


Count = Annotated[int, Range(1, LARGEST_INT)]
Natural = Annotated[int, Range(0, LARGEST_INT)]  # 0 switches something off, or stands for all there is
Seed = Annotated[int, Range(0, 2**32 - 1)]  # of a key's 32 bits: a larger one would be cut, unnoticed
Share = Annotated[float, Range(0, 1)]
Positive = Annotated[float, Range(0, above=True)]
Nonnegative = Annotated[float, Range(0)]
# Logits are divided by it: much closer to 0 and the masked ones are no longer finite.
Temperature = Annotated[float, Range(0.001, 1000)]
SamplingTemperature = Temperature | Literal[0]  # 0 is greedy


@dataclasses.dataclass(frozen=True)
class RunConfig:
    """What every run's config holds beside its sections.

    Attributes:
        task: what is run: a name, or "package.module:NAME" of your own.
        seed: of all randomness.
        log_every: steps between two lines of progress.
        save_every: steps between two checkpoints.
        tensorboard: write metrics for TensorBoard too.
        wandb: a project of Weights & Biases that gets them as well, or None.
    """

    task: str
    seed: Seed
    log_every: Count
    save_every: Count
    tensorboard: bool
    wandb: str | None

    def __post_init__(self):
        if self.wandb is not None and importlib.util.find_spec("wandb") is None:
            raise ValueError(f"wandb is {self.wandb!r}, and that package is not installed: pip install wandb")


def meanings(*classes: type) -> dict[str, str]:
    """Field -> what its dataclass's docstring says of it under "Attributes:", in one line; of its parents' fields, too.

    Args:
        *classes: of several, the later ones say it, unless they say "as there".
    """
    found: dict[str, str] = {}
    for cls in (parent for one in classes for parent in reversed(one.__mro__)):
        _, _, attributes = inspect.cleandoc(vars(cls).get("__doc__") or "").partition("Attributes:\n")
        names: list[str] = []
        for line in attributes.split("\n\n")[0].splitlines():
            entry = re.match(r"    (\w[\w, ]*): (.*)", line)
            if entry and not entry[2].startswith("as there"):
                names = [name.strip() for name in entry[1].split(",")]
                found |= dict.fromkeys(names, entry[2])
            else:
                names = [] if entry else names
                found |= {name: f"{found[name]} {line.strip()}" for name in names}
    return found


def section(cls: type[Section], config: Mapping[str, Any], name: str, **fixed: Any) -> Section:
    """A dataclass from a section of a config; `fixed` fields come from elsewhere.

    Args:
        cls: the dataclass.
        config: the whole config.
        name: the section's; its keys are the fields.
        **fixed: fields that are not the section's.

    Raises:
        ValueError: there is no such section, keys and fields differ, or a value is not one that its field takes.
    """
    return checked(cls, values_of(config, name), f"{name}.", **fixed)


def top_level(cls: type[Section], config: Mapping[str, Any]) -> Section:
    """A dataclass whose fields are keys of the config itself, among its sections.

    Raises:
        ValueError: as for `section`.
    """
    return checked(cls, {name: config[name] for name in field_types(cls) if name in config})


def values_of(config: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """A section of a config.

    Raises:
        ValueError: the config has none of that name.
    """
    if name not in config or not hasattr(config[name], "items"):
        raise ValueError(f"the config has no section {name!r}")
    return config[name]


def checked(
    cls: type[Section], values: Mapping[str, Any], prefix: str = "", partial: bool = False, **fixed: Any
) -> Section:
    """A dataclass from the values of its fields.

    Args:
        cls: the dataclass.
        values: field -> value.
        prefix: what stands before a field's name in messages: its section and a dot, or "--" of a command's flags.
        partial: fields without a value keep their defaults.
        **fixed: fields that are known to be right.

    Raises:
        ValueError: as for `section`. A message of `__post_init__` should begin with a field's name, too.
    """
    kinds = {field: kind for field, kind in field_types(cls).items() if field not in fixed}
    missing, unknown = sorted(kinds.keys() - set(values)) * (not partial), sorted(set(values) - kinds.keys())
    for verb, names in (("lacks", missing), ("has unknown", unknown)):
        if names:
            where = f" section {prefix.rstrip('.')!r}" if prefix else ""
            raise ValueError(f"the config{where} {verb} {', '.join(names)}")
    plain = {field: tuple(value) if isinstance(value, list | tuple) else value for field, value in values.items()}
    check(cls, plain, prefix)
    try:
        return cls(**plain, **fixed)
    except ValueError as error:
        raise ValueError(f"{prefix}{error}") from error


def check(cls: type, values: Mapping[str, Any], prefix: str = "") -> None:
    """Raises ValueError where a value is not one that its field takes."""
    kinds = field_types(cls)
    for field, value in values.items():
        check_value(prefix + field, value, kinds[field])


def check_value(name: str, value: Any, kind: Any) -> None:
    """Raises ValueError where the value, or one in a mapping, is not of the kind."""
    if typing.get_origin(kind) is Mapping and hasattr(value, "items"):
        for key, one in value.items():
            check_value(f"{name}.{key}", one, typing.get_args(kind)[1])
    elif not fits(value, kind):
        raise ValueError(f"{name} is {value!r}; it must be {allowed(kind, name)}")


def field_types(cls: type) -> dict[str, Any]:
    """Field -> its type, with what it is annotated with."""
    hints = typing.get_type_hints(cls, include_extras=True)
    return {field.name: hints[field.name] for field in dataclasses.fields(typing.cast(Any, cls))}


def fits(value: Any, kind: Any) -> bool:
    """Whether a field of that type takes the value; what is none of a config's types is not looked at."""
    origin, of = typing.get_origin(kind), typing.get_args(kind)
    if origin is Annotated:
        return fits(value, of[0]) and value in of[1]
    if origin in (types.UnionType, typing.Union):
        return any(fits(value, one) for one in of)
    if origin is Literal:
        return value in of
    if origin is tuple and of[-1] is Ellipsis:
        return isinstance(value, tuple) and all(fits(one, of[0]) for one in value)
    if origin is Mapping:
        return hasattr(value, "items")
    if kind in (int, float):
        number: Any = numbers.Integral if kind is int else numbers.Real
        return isinstance(value, number) and not isinstance(value, bool) and value in Range()
    return isinstance(value, kind) if kind in (str, bool, types.NoneType) else True


def allowed(kind: Any, name: str) -> str:
    """What a field of that type takes, in words; `name` is its own, with the section's."""
    origin, of = typing.get_origin(kind), typing.get_args(kind)
    if origin is Annotated:
        return f"{allowed(of[0], name)}{of[1]}"
    if origin in (types.UnionType, typing.Union):
        return " or ".join(allowed(one, name) for one in of)
    if origin is Literal:
        return f"one of {', '.join(map(str, of))}" if len(of) > 1 else str(of[0])
    if origin is tuple:
        return f"a tuple of values that are each {allowed(of[0], name)}"
    if origin is Mapping:
        return "values by name"
    if kind is types.NoneType:
        return "left out" if name.startswith("--") else f"unset with --config.{name}=None"
    words = {int: "a whole number", float: "a finite number", str: "a text", bool: "True or False"}
    return words.get(kind, str(kind))


def leaves(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(`section.field`, value) of nested mappings; an empty one is a value."""
    for name, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from leaves(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


# How often to look at a run, and who else does: keys of a config that nothing of what is computed depends on.
LOOKING = ("log_every", "save_every", "tensorboard", "wandb")


def described(config: ml_collections.ConfigDict) -> dict[str, Any]:
    """What the result depends on, as plain values: what a workdir's config.json holds. How often to look is no part."""
    return {name: value for name, value in config.to_dict().items() if name not in LOOKING}


def check_secrets(config: ml_collections.ConfigDict) -> None:
    """Raises ValueError where a value is a URL with a user name or a password: a run writes down what it was told."""

    def check(name: str, value: Any) -> None:
        if isinstance(value, Mapping):
            for key, inner in value.items():
                check(f"{name}.{key}" if name else key, inner)
        elif isinstance(value, str) and _USER.match(value):
            raise ValueError(f"{name} is a URL with a user name or a password in it, which a run would write down")

    check("", config.to_dict())


def imported(path: str) -> Any:
    """What "package.module:name" names; modules of the current folder count.

    Raises:
        ValueError: no such module or name, or the module itself fails.
    """
    module, colon, name = path.partition(":")
    if not colon or not name:
        raise ValueError(f"{path!r} must be 'package.module:name'")
    try:
        return getattr(importlib.import_module(module), name)
    except Exception as error:  # whatever the user's module raises
        raise ValueError(f"{path!r} cannot be imported: {type(error).__name__}: {error}") from error
