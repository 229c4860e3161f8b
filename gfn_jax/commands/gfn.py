"""`gfn COMMAND`: which command is meant, and which flags its leading bare words are the values of."""

import dataclasses
import importlib
import os
import sys
from collections.abc import Callable, Mapping

from gfn_jax.commands import cli
from gfn_jax.commands.gfn_help import HELP
from gfn_jax.commands.shipped import make_importable, nearest, resolve
from gfn_jax.studies.plan import version


def itself(word: str) -> str:
    """A word as it is."""
    return word


@dataclasses.dataclass(frozen=True)
class Command:
    """A command of `gfn`.

    Attributes:
        module: of `gfn_jax.commands`, whose `main(argv, doc)` is run.
        bare: flag -> what is made of the bare word that is its value, in the order of the words.
    """

    module: str
    bare: Mapping[str, Callable[[str], str]] = dataclasses.field(default_factory=dict)


COMMANDS: Mapping[str, Command] = {
    "train": Command("gfn_train"),
    "evaluate": Command("gfn_evaluate", {"workdir": itself}),
    "sample": Command("sample", {"workdir": itself}),
    "export": Command("export", {"workdir": itself, "out": itself}),
    "compare": Command("gfn_compare"),
    "configs": Command("gfn_configs"),
    "doctor": Command("gfn_doctor"),
    "certify": Command("certify", {"workdir": itself}),
    "tune": Command("tune", {"config": resolve}),
    "reproduce": Command("reproduce", {"what": itself}),
    "benchmark": Command("benchmark", {"config": lambda preset: resolve(f"benchmark:{preset}")}),
    "bench": Command("posterior_bench"),
}


def main(argv: list[str], doc: str | None) -> int:
    """Runs the command that is named, and returns its exit code."""
    name, *words = argv[1:] or ["--help"]
    if name in ("--help", "-h", "help"):
        print(overview(doc))
        return 0
    if name == "--version":
        print(f"gfn_jax {version()}")
        return 0
    here = os.getcwd()
    if here not in sys.path and "" not in sys.path:
        sys.path.insert(0, here)  # where a config's "module:NAME" is looked for, as by `python -m`
    try:
        command = COMMANDS.get(name)
        if command is None:
            known = nearest(name, COMMANDS) or f"; there are {', '.join(COMMANDS)}"
            raise ValueError(f"there is no command {name!r}{known}")
        make_importable()
        words = placed(words, command.bare)
    except (ValueError, OSError) as error:
        print(f"error: {cli.one_line(error)}", file=sys.stderr)
        return cli.USAGE
    module = importlib.import_module(f"gfn_jax.commands.{command.module}")
    code: int = module.main([f"gfn {name}", *words], HELP[name])
    return code


def placed(words: list[str], bare: Mapping[str, Callable[[str], str]]) -> list[str]:
    """Words whose leading bare ones have become flags: `RUN --step=best` is `--workdir=RUN --step=best`.

    Raises:
        ValueError, OSError: what `bare` says of a word.
    """
    flags = []
    for flag, meaning in bare.items():
        if not words or words[0].startswith("-"):
            break
        flags.append(f"--{flag}={meaning(words[0])}")
        words = words[1:]
    return [*flags, *words]


def overview(doc: str | None) -> str:
    """What `gfn --help` prints: the commands, a line each."""
    width = max(map(len, COMMANDS))
    lines = [f"    {name.ljust(width)}  {HELP[name].partition(chr(10))[0].rstrip('.')}" for name in COMMANDS]
    ending = (
        "`gfn COMMAND --help` says more of one. What is wrong ends in one line `error: ...`; --debug shows tracebacks."
    )
    return "\n".join([(doc or "").rstrip(), "", "Commands:", "", *lines, "", ending])
