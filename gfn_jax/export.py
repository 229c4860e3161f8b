r"""The command that exports: the adapter of a run as a PEFT folder, or merged into its base, with a model card.

    python -m gfn_jax.export --workdir=runs/arith-tiny --out=arith-adapter
    python -m gfn_jax.export --workdir=runs/arith-tiny --out=arith-model --merged

The newest checkpoint is taken, which is the one that `results.json` was measured with; --step=best takes the one that
validated best, --step=N any other that is still there. The card has the results of its own step or none.

What is wrong with the command or its files ends in one line `error: ...` and exit code 2.
"""

import dataclasses
import os
import sys
from typing import Any

from absl import flags
from absl import logging as absl_logging

from gfn_jax.launch import BUILDING, INTERRUPTED, PARSING, USAGE, one_line
from gfn_jax.sample import notes

TEXT = {
    "workdir": (None, "workdir of the run"),
    "out": (None, "folder to write; it must be empty or not there"),
    "step": ("newest", "newest, best, or the number of a step"),
    "model": (None, "where the base lies, if not where the run had it"),
    "dtype": (None, "of the merged model: float32, bfloat16 or float16; the run's by default"),
    "command": (None, "for the card: what reproduces the run"),
}


def main(argv: list[str] | None = None) -> int:
    """Runs the command and returns its exit code."""
    argv = list(sys.argv if argv is None else argv)
    expected: tuple[type[Exception], ...] = PARSING
    try:
        values = parse(argv)
        if values.help:
            print(f"{__doc__}\nFlags:\n{values.get_help()}")
            return 0
        expected = BUILDING
        absl_logging.set_verbosity(absl_logging.WARNING)
        from gfn_jax.commands.exporting import (  # jax and all: only once the flags are known to be right
            Settings,
            export,
        )

        chosen: dict[str, Any] = {field.name: values[field.name].value for field in dataclasses.fields(Settings)}
        with notes():
            print(export(Settings(**chosen)))
        return 0
    except KeyboardInterrupt:
        return INTERRUPTED
    except expected as error:
        if os.environ.get("GFN_JAX_DEBUG", "0") not in ("", "0"):
            raise
        print(f"error: {one_line(error)}", file=sys.stderr)
        return USAGE


def parse(argv: list[str]) -> flags.FlagValues:
    """The flags of a command line, as values of their own.

    Raises:
        flags.Error: an unknown flag, or a value of the wrong type.
        ValueError: no workdir or no folder to write, or words that are no flag.
    """
    values = flags.FlagValues()
    for name, (default, text) in TEXT.items():
        flags.DEFINE_string(name, default, text, flag_values=values)
    flags.DEFINE_bool("merged", False, "write base and adapter as one model", flag_values=values)
    flags.DEFINE_bool("help", False, "show this help", short_name="h", flag_values=values)
    words = values(argv)
    if values.help:
        return values
    if len(words) > 1:
        raise ValueError(f"{words[1]!r} is no flag; write --workdir=DIR --out=DIR")
    for name in ("workdir", "out"):
        if values[name].value is None:
            raise ValueError(f"no {name}; write --workdir=DIR --out=DIR")
    return values


if __name__ == "__main__":
    sys.exit(main())
