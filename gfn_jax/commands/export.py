"""Exporting: `python -m gfn_jax.export`, its flags."""

import dataclasses
from typing import Any

from absl import flags

from gfn_jax.commands import cli, cluster

EXAMPLE = "write --workdir=DIR --out=DIR"
TEXT = {
    "workdir": (None, "workdir of the run"),
    "out": (None, "folder to write; it must be empty or not there"),
    "step": ("newest", "newest, best, or the number of a step"),
    "model": (None, "where the base lies, if not where the run had it"),
    "dtype": (None, "of the merged model: float32, bfloat16 or float16; the run's by default"),
    "push_to_hub": (None, "OWNER/NAME of a model on the Hugging Face hub that gets the folder, too"),
    "command": (None, "for the card: what reproduces the run"),
}


def main(argv: list[str], doc: str | None) -> int:
    """Runs the command and returns its exit code."""
    cli.configure_jax()
    return cluster.run(argv, doc, parse, prepare)


def parse(argv: list[str]) -> flags.FlagValues:
    """The flags of a command line.

    Raises:
        flags.Error: an unknown flag, or a value of the wrong type.
        ValueError: no workdir or no folder to write, or words that are no flag.
    """
    values = cli.common_flags(TEXT)
    flags.DEFINE_bool("merged", False, "write base and adapter as one model", flag_values=values)
    return cli.read(values, argv, "--workdir=DIR --out=DIR", workdir=EXAMPLE, out=EXAMPLE)


def prepare(values: flags.FlagValues) -> list[str]:
    """Writes the folder: whatever goes wrong is for the person to put right."""
    cluster.join_if_any()
    from gfn_jax.commands.exporting import Settings, export

    chosen: dict[str, Any] = {field.name: values[field.name].value for field in dataclasses.fields(Settings)}
    return [export(Settings(**chosen))]
