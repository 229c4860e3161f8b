"""`gfn configs [NAME[:preset]]`: the shipped configs and their presets; of one, what every key means."""

import pathlib
import shutil
import textwrap
from collections.abc import Iterable

from absl import flags

from gfn_jax.commands import cli
from gfn_jax.commands.config_flag import load_config
from gfn_jax.commands.shipped import presets, resolve, shipped, summary
from gfn_jax.commands.train import DEFAULT_PRESET

UNNAMED = {"pretrain": "arithmetic", "benchmark": "a"}  # what a config's default preset is called, if not tiny


def main(argv: list[str], doc: str | None) -> int:
    """Runs the command and returns its exit code."""
    return cli.run(argv, doc, parse, prepare)


def parse(argv: list[str]) -> flags.FlagValues:
    """The flags of a command line; `source` is the config that it names, FILE:preset, or None.

    Raises:
        flags.Error: an unknown flag.
        ValueError, OSError: two configs, or one that is not there.
    """
    values = cli.common_flags()
    words = values(argv)[1:]
    if len(words) > 1:
        raise ValueError(f"{words[1]!r} is one too many; name a single config, for instance arith:paper")
    flags.DEFINE_string("source", resolve(words[0]) if words else None, "FILE:preset", flag_values=values)
    return values


def prepare(values: flags.FlagValues) -> Iterable[str]:
    """The page."""
    if values.source is None:
        return [every()]
    return [one(values.source)]


def every() -> str:
    """All configs with their presets, a line each."""
    blocks = []
    for name, path in shipped().items():
        blocks.append("\n".join([wrapped(f"{name}: ", summary(path)), *listed(presets(path))]))
    ending = "`gfn configs NAME[:preset]` says what every key means; `gfn train NAME[:preset]` trains it."
    return "\n\n".join([*blocks, ending])


def listed(found: dict[str, str]) -> list[str]:
    """Presets, each with its meaning in the width of the terminal."""
    width = max(map(len, found), default=0)
    return [wrapped(f"    :{name.ljust(width)}  ", meaning) for name, meaning in found.items()]


def wrapped(head: str, text: str) -> str:
    """A text behind a head, its further lines under its first."""
    width = max(min(shutil.get_terminal_size((100, 24)).columns, 120), 40)
    return textwrap.fill(f"{head}{text}", width, subsequent_indent=" " * len(head)) if text else head.rstrip()


def one(source: str) -> str:
    """A config: its presets, and its keys with value, kind and meaning.

    Raises:
        ValueError: the file is no config, or names a task that is not there.
    """
    from gfn_jax.runs.explained import classes_of, explained

    file, _, preset = source.partition(":")
    path = pathlib.Path(file)
    config = load_config(source).to_dict()
    classes = classes_of(config) if "task" in config else timed()
    lines = [wrapped(f"{path.stem}: ", summary(path)), *listed(presets(path)), ""]
    lines += [f"Keys of :{preset or UNNAMED.get(path.stem, DEFAULT_PRESET)}; `--KEY=VALUE` changes one:", ""]
    for key in explained(config, classes):
        shown = f"; {key.kind}" if key.kind else ""
        lines.append(f"  {key.name} = {key.value!r}")
        lines.append(wrapped("      ", f"{key.meaning.rstrip('.')}{shown}".lstrip("; ")))
    return "\n".join(lines)


def timed() -> dict[str, tuple[type, ...]]:
    """The dataclasses of `configs/benchmark.py`, which is no run's."""
    from gfn_jax.commands.benchmark import BenchmarkConfig
    from gfn_jax.models.config import ModelConfig
    from gfn_jax.models.lora import LoraConfig

    return {"": (BenchmarkConfig,), "model": (ModelConfig,), "lora": (LoraConfig,)}
