"""What all commands have in common: their flags, how they end, and how they say what is wrong.

A command is a function from a command line to the values of its flags, and one from those to what it prints. What is
wrong with the command, its config or its data ends in one line `error: ...` and exit code 2; what goes wrong later,
in one line and exit code 1. Nothing here imports jax: a misspelt flag is answered at once.
"""

import contextlib
import gc
import importlib.metadata
import importlib.util
import os
import pathlib
import re
import sys
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from absl import flags

from gfn_jax.commands.progress import notes
from gfn_jax.errors import TrainingStopped

FAILED, USAGE, INTERRUPTED = 1, 2, 130
ANOTHER = 75  # another process of the job has ended before it was done: EX_TEMPFAIL of sysexits.h

# What a person can put right, phase by phase; anything else is a fault of ours and keeps its traceback.
# ml_collections wraps the KeyError of a misspelt key in an AttributeError.
PARSING = (flags.Error, ValueError, KeyError, AttributeError, OSError)
BUILDING = (ValueError, OSError, ImportError)
RUNNING = (ValueError, OSError, RuntimeError)

# The jaxlib that has the flags of `configure_jax`. XLA dies of one that it does not know.
FLAGS_KNOWN_TO = "0.10."


def run(
    argv: list[str],
    doc: str | None,
    parse: Callable[[list[str]], Any],
    prepare: Callable[[Any], Iterable[str]],
    *,
    listen: Callable[[Any], contextlib.AbstractContextManager[None]] = lambda values: notes(),
    interrupted: str | None = None,
) -> int:
    """Runs a command and returns its exit code.

    Args:
        argv: the command line, program included.
        doc: what `--help` prints before the flags.
        parse: reads the flags, into absl's values or anything else that has a `help`.
        prepare: finds out what is wrong with what they ask for, and returns the texts to print, each of which is made
            when it is asked for. What is slow to import is imported there.
        listen: where what the library says goes, as a context.
        interrupted: what Ctrl-C is answered with.
    """
    # Read when transformers is imported, which a config may do.
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    gc.set_threshold(100_000)  # tracing makes objects by the million: to look among them every 700 costs a run 0.3 s
    debug = debugging(argv)
    expected: tuple[type[Exception], ...] = PARSING
    code = USAGE
    try:
        values = parse(argv)
        if values.help:
            show([f"{doc}\nFlags:\n{values.get_help()}"])
            return 0
        with listen(values):
            expected = BUILDING
            texts = prepare(values)
            expected, code = RUNNING, FAILED
            show(texts)
        return 0
    except TrainingStopped as stop:
        print(stop, file=sys.stderr)
        return stop.exit_code
    except KeyboardInterrupt:
        if interrupted is not None:
            print(interrupted, file=sys.stderr)
        return INTERRUPTED
    except expected as error:
        if debug:
            raise
        print(f"error: {one_line(error)}", file=sys.stderr)
        return code


def show(texts: Iterable[str]) -> None:
    """Prints every text as soon as it is there, as long as somebody reads them."""
    for text in texts:
        try:
            print(text, flush=True)
        except BrokenPipeError:  # `| head` has seen enough; what is left unwritten must not be flushed at exit
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return


def configure_jax(keep: bool = True, optimization_level: int = 1) -> None:
    """How jax compiles, if said before it is imported, which a config may do; what the environment says comes first.

    Programs are kept for the next command, small ones too: to read the seventy of a run's beginning takes a second less
    than to compile them. Where there are only CPUs, LLVM's dearest optimisations are left out: compiling takes half as
    long, and steps about as long as before, some parts more and some less (docs/BENCHMARKS.md).

    Args:
        keep: whether programs are kept.
        optimization_level: LLVM's, on CPUs; at 0 compiling takes a sixth, and a step twice as long.
    """
    if keep:
        os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(pathlib.Path.home() / ".cache" / "gfn_jax" / "jax"))
        os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
    quick = f"--xla_cpu_use_fusion_emitters=false --xla_backend_optimization_level={optimization_level}"
    given = os.environ.get("XLA_FLAGS", "")
    if only_cpus() and quick not in given and importlib.metadata.version("jaxlib").startswith(FLAGS_KNOWN_TO):
        os.environ["XLA_FLAGS"] = f"{quick} {given}".strip()  # of a flag that is there twice the last counts


def only_cpus() -> bool:
    """Whether jax will find nothing but CPUs: it is told so, or no accelerator's package is installed."""
    platforms = os.environ.get("JAX_PLATFORMS", "")
    if platforms:
        return platforms == "cpu"
    return not any(importlib.util.find_spec(name) for name in ("jax_plugins", "libtpu"))


def debugging(argv: list[str]) -> bool:
    """Whether tracebacks are asked for; the flags themselves may be what is wrong, so they are not parsed for it."""
    return os.environ.get("GFN_JAX_DEBUG", "0") not in ("", "0") or any(
        re.fullmatch("--?debug(=(true|1))?", word, re.IGNORECASE) for word in argv
    )


def common_flags(
    text: Mapping[str, tuple[str | None, str]] | None = None,
    numbers: Mapping[str, tuple[int | None, str]] | None = None,
) -> flags.FlagValues:
    """The flags of every command. They are values of their own, not absl's global ones: a command may run twice.

    Args:
        text: a command's own that take a text: the default, and what `--help` says.
        numbers: those that take a whole number.
    """
    values = flags.FlagValues()
    flags.DEFINE_bool("debug", debugging([]), "show tracebacks", flag_values=values)
    flags.DEFINE_bool("help", False, "show this help", short_name="h", flag_values=values)
    for name, (default, line) in (text or {}).items():
        flags.DEFINE_string(name, default, line, flag_values=values)
    for name, (number, line) in (numbers or {}).items():
        flags.DEFINE_integer(name, number, line, flag_values=values)
    return values


def read(values: flags.FlagValues, argv: list[str], example: str, **needed: str) -> flags.FlagValues:
    """Reads a command line into the flags that are defined, and returns them.

    Args:
        values: the flags.
        argv: the command line.
        example: what may be written instead of a word that is no flag.
        needed: flags that must be given, each with what is said where it is not.

    Raises:
        flags.Error: an unknown flag, or a value of the wrong type.
        ValueError: a needed flag is missing, or there are words that are no flag; not where help is asked for.
        KeyError, AttributeError: a config key that is not there.
    """
    words = values(argv)
    if values.help:
        return values
    if len(words) > 1:
        raise ValueError(f"{words[1]!r} is no flag; write {example}")
    for name, line in needed.items():
        if values[name].value is None:
            raise ValueError(f"no {name}; {line}")
    return values


def whole_numbers(values: flags.FlagValues, name: str) -> tuple[int, ...]:
    """A flag that is a list of them, each once, as they were given.

    Raises:
        ValueError: it is empty, or a word is no whole number.
    """
    return distinct_numbers(values[name].value or (), name)


def distinct_numbers(words: Iterable[str], name: str) -> tuple[int, ...]:
    """Words as whole numbers, each once; `name` is the flag's.

    Raises:
        ValueError: there is none, or one is no whole number.
    """
    words = [word.strip() for word in words]
    if not words or not all(word.isdecimal() for word in words):
        raise ValueError(f"--{name} is {','.join(words)!r}; it must be whole numbers, for instance 0,1,2")
    return tuple(dict.fromkeys(map(int, words)))


def check_counts(values: flags.FlagValues, *names: str) -> None:
    """Raises ValueError where a flag that is given is less than 1."""
    for name in names:
        number = values[name].value
        if number is not None and number < 1:
            raise ValueError(f"--{name} is {number}; it must be 1 or more")


def one_line(error: BaseException) -> str:
    """What an exception says, in one line: its cause, not the layers it was wrapped in."""
    while error.args and isinstance(error.args[0], BaseException):
        error = error.args[0]
    text = str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)
    key = re.match(r"'([^'\s]+)'(\s+Did you mean .*)?$", text, re.DOTALL)
    if key:
        text = f"unknown key {key[1]!r}.{key[2] or ''}"
    text = re.sub(r"^.*\[Errno \d+\] ", "", " ".join(text.split()))
    return text or type(error).__name__
