"""Certifying: `python -m gfn_jax.certify`, its flags."""

import dataclasses
from typing import Any

from absl import flags

from gfn_jax.commands import cli, cluster

EXAMPLE = "write --workdir=DIR"
TEXT = {
    "workdir": (None, "workdir of the run whose posterior is meant"),
    "step": ("best", "best, newest, or the number of a step"),
    "adapter": (None, "another adapter: a PEFT folder or hub id, the workdir of another run; none: the base"),
    "model": (None, "where the base lies, if not where the run had it"),
    "split": (None, "whose first queries; the task's held-out split by default"),
    "out": (None, "file to write the certificate to, as JSON"),
}
NUMBERS = {
    "queries": (8, "how many of them"),
    "samples": (1024, "rows of the policy a query"),
    "proposals": (16_384, "rejection sampling's, a query, at most; 0 does without exact samples"),
    "exact": (400, "exact samples of a query that are enough"),
    "seed": (0, "of the randomness"),
    "particles": (64, "rows a query of sequential Monte Carlo, with --twist"),
    "repeats": (16, "how often it is run"),
}
TWISTS = ("none", "unit", "answer", "flow", "value")


def main(argv: list[str], doc: str | None) -> int:
    """Runs the command and returns its exit code."""
    cli.configure_jax()
    return cluster.run(argv, doc, parse, prepare)


def parse(argv: list[str]) -> flags.FlagValues:
    """The flags of a command line.

    Raises:
        flags.Error: an unknown flag, or a value of the wrong type.
        ValueError: no workdir, or words that are no flag.
    """
    values = cli.common_flags(TEXT, NUMBERS)
    flags.DEFINE_enum(
        "twist",
        "none",
        TWISTS,
        "sequential Monte Carlo's; value: the one that algorithm ctl learnt",
        flag_values=values,
    )
    return cli.read(values, argv, "--workdir=DIR", workdir=EXAMPLE)


def prepare(values: flags.FlagValues) -> list[str]:
    """Measures: whatever goes wrong is for the person to put right."""
    cluster.join_if_any()
    from gfn_jax.commands.certifying import Settings, certify

    chosen: dict[str, Any] = {field.name: values[field.name].value for field in dataclasses.fields(Settings)}
    return [certify(Settings(**chosen))]
