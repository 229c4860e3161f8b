"""The command that trains: `python -m gfn_jax.launch --config=configs/arith.py[:preset]`.

    --config.KEY=VALUE  changes one value of the config; None unsets it where it is optional
    --workdir=DIR       where the run writes, runs/CONFIG-PRESET by default; run again, it goes on from there
    --distributed       joins the other processes of a cluster; not needed where the environment names them
                        (SLURM, Open MPI, a TPU slice on Kubernetes, JAX_COORDINATOR_ADDRESS)
    --dry_run           says what the run would take in memory and arithmetic, on any --config.mesh, and ends there
    --debug             shows tracebacks; so does GFN_JAX_DEBUG=1

What is wrong with the command, its config or its data ends in one line `error: ...` and exit code 2; what
goes wrong later, in one line and exit code 1. Ctrl-C and SIGTERM save; the exit code is 128 + the signal.
"""

import importlib.machinery
import logging
import os
import pathlib
import re
import shlex
import sys
import threading
import time
import types
from collections.abc import Mapping
from typing import Any

# Read when jax and transformers are imported: below, once the flags are known to be right.
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(pathlib.Path.home() / ".cache" / "gfn_jax" / "jax"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.3")

from absl import flags
from absl import logging as absl_logging
from ml_collections import ConfigDict, config_flags

from gfn_jax.errors import TrainingStopped, user_code

DEFAULT_PRESET = "tiny"
FAILED, USAGE, INTERRUPTED = 1, 2, 130

# What a person can put right, phase by phase; anything else is a fault of ours and keeps its traceback.
# ml_collections wraps the KeyError of a misspelt key in an AttributeError.
PARSING = (flags.Error, ValueError, KeyError, AttributeError, OSError)
BUILDING = (ValueError, OSError, ImportError)
RUNNING = (ValueError, OSError, RuntimeError)


def main(argv: list[str] | None = None, default_config: str | None = None) -> int:
    """Runs the command and returns its exit code.

    Args:
        argv: the command line, program included; this process's own by default.
        default_config: the config of a command that names none.
    """
    argv = list(sys.argv if argv is None else argv)
    debug = debugging(argv)
    expected: tuple[type[Exception], ...] = PARSING
    code = USAGE
    try:
        values = parse(argv, default_config)
        if values.help:
            print(f"{__doc__}\nFlags:\n{values.get_help()}")
            return 0
        expected = BUILDING
        if values.dry_run:
            from gfn_jax.commands.dry_run import dry_run

            print(dry_run(values.config), flush=True)
            return 0
        workdir = pathlib.Path(values.workdir)
        set_up_logging(debug)
        logging.getLogger("gfn_jax").info("starting in %s", workdir)
        if values.distributed or in_cluster(os.environ):
            join_cluster(os.environ)
        from gfn_jax.runs.build import build  # jax and all: too slow to wait for when a flag is misspelt

        run = build(values.config, workdir, shlex.join(["python", "-m", "gfn_jax.launch", *argv[1:]]))
        expected, code = RUNNING, FAILED
        from gfn_jax.training.loop import complete

        print(complete(run), flush=True)
        return 0
    except TrainingStopped as stop:
        print(stop, file=sys.stderr)
        return stop.exit_code
    except KeyboardInterrupt:
        print("interrupted; run the same command to go on from the newest checkpoint", file=sys.stderr)
        return INTERRUPTED
    except expected as error:
        if debug:
            raise
        print(f"error: {one_line(error)}", file=sys.stderr)
        return code
    finally:
        logger = logging.getLogger("gfn_jax")
        for handler in [handler for handler in logger.handlers if isinstance(handler, Progress)]:
            logger.removeHandler(handler)
            handler.close()


def debugging(argv: list[str]) -> bool:
    """Whether tracebacks are asked for; the flags themselves may be what is wrong, so they are not parsed for it."""
    return os.environ.get("GFN_JAX_DEBUG", "0") not in ("", "0") or any(
        re.fullmatch("--?debug(=(true|1))?", word, re.IGNORECASE) for word in argv
    )


class Unsettable(flags.ArgumentParser):
    """What another parser makes of a word, but `None` unsets the value."""

    def __init__(self, parser: flags.ArgumentParser):
        self.parser = parser

    def parse(self, argument: Any) -> Any:
        return None if argument in (None, "None") else self.parser.parse(argument)

    def flag_type(self) -> str:
        return self.parser.flag_type()


UNSETTABLE: dict[type, flags.ArgumentParser] = {
    float: flags.FloatParser(),
    int: flags.IntegerParser(),
    str: flags.ArgumentParser(),
}


def parse(argv: list[str], default_config: str | None = None) -> flags.FlagValues:
    """The flags of a command line, the config's overrides applied and the config locked.

    They are values of their own, not absl's global ones, so `main` may be called more than once.

    Raises:
        flags.Error: an unknown flag, or a value of the wrong type.
        ValueError: no config or two, one that is none, or words that are no flag.
        KeyError, AttributeError: a config key that is not there.
        OSError: a config file that is not there.
    """
    argv, source = split_config(argv)
    source = source or default_config
    values = flags.FlagValues()
    flags.DEFINE_bool("distributed", False, "join the processes of a cluster", flag_values=values)
    flags.DEFINE_bool("dry_run", False, "say what the run would take, and end", flag_values=values)
    flags.DEFINE_bool("debug", False, "show tracebacks", flag_values=values)
    flags.DEFINE_bool("help", False, "show this help", short_name="h", flag_values=values)
    workdir = source and default_workdir(source)
    flags.DEFINE_string("workdir", workdir, "where the run writes", flag_values=values)
    if source is None:
        flags.DEFINE_string("config", None, "FILE:preset", flag_values=values)
    else:
        for kind, parser in UNSETTABLE.items():
            config_flags.register_flag_parser_for_type(kind, Unsettable(parser))
        config = load_config(source)
        config_flags.DEFINE_config_dict("config", config, "FILE:preset", flag_values=values, sys_argv=argv)
    words = values(argv)
    if values.help:
        return values
    if len(words) > 1:
        raise ValueError(f"{words[1]!r} is no flag; write --config=FILE:preset or --config.KEY=VALUE")
    if source is None:
        raise ValueError("no config; name one, for instance --config=configs/arith.py")
    return values


def split_config(argv: list[str]) -> tuple[list[str], str | None]:
    """The other words of a command line, and the FILE:preset that it names, if it does.

    Raises:
        ValueError: it names two, or an empty one.
    """
    words, named = [], []
    rest = iter(argv)
    for word in rest:
        flag = re.match(r"--?config(=|$)", word)
        if flag:
            named.append(word[flag.end() :] if flag[1] else next(rest, ""))
        else:
            words.append(word)
    if len(named) > 1:
        raise ValueError(f"there are {len(named)} configs, {' and '.join(named)}; name one")
    if named == [""]:
        raise ValueError("--config names no file; write --config=FILE:preset")
    return words, named[0] if named else None


def load_config(source: str) -> ConfigDict:
    """What `get_config` of FILE:preset returns, locked.

    Raises:
        OSError: no such file.
        ValueError: the file fails, or gives no config; or what it says itself of its preset.
    """
    path, colon, preset = source.partition(":")
    module = types.ModuleType("gfn_jax_config")
    sys.modules[module.__name__] = module  # where dataclasses look for what they refer to
    loader = importlib.machinery.SourceFileLoader(module.__name__, path)
    loader.get_data(path)  # a file that cannot be read is no fault of what is in it
    with user_code(path):
        loader.exec_module(module)
    if not hasattr(module, "get_config"):
        raise ValueError(f"{path} is no config: it defines no get_config()")
    with user_code(path, passed=(ValueError,)):  # an unknown preset
        config = module.get_config(*[preset] * bool(colon))
    if not isinstance(config, ConfigDict):
        raise ValueError(f"get_config of {path} must return an ml_collections.ConfigDict, not {type(config).__name__}")
    return config.lock()


def default_workdir(config: str) -> str:
    """`runs/<file's name>-<preset>` for a value of `--config`."""
    path, _, preset = config.partition(":")
    return f"runs/{pathlib.Path(path).stem}-{preset or DEFAULT_PRESET}"


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


def set_up_logging(debug: bool = False) -> None:
    """Progress on standard output, with the time; what orbax's threads say is heard with `debug` only.

    Where a checkpoint cannot be written they print hundreds of lines (on a full disk 325) about what is raised anyway
    where the run waits for them, and becomes the command's last line.
    """
    absl_logging.set_verbosity(absl_logging.WARNING if debug else absl_logging.FATAL)
    if not debug:
        sys.unraisablehook = lambda unraisable: None
    logger = logging.getLogger("gfn_jax")
    handler = Progress(sys.stdout)
    handler.setFormatter(logging.Formatter("%(asctime)s  %(message)s", datefmt="%H:%M:%S"))
    logger.handlers = [handler]
    logger.propagate = False
    logger.setLevel(logging.INFO)


class Progress(logging.StreamHandler):
    """Prints log lines, and where a line takes long to be followed by another (a compilation), that it still does.

    Args:
        stream: where to.
        patience: seconds of silence that a person is asked to bear.
    """

    def __init__(self, stream: Any, patience: float = 9.0):
        super().__init__(stream)
        self._patience = patience
        self._text, self._began, self._spoke = "", 0.0, time.monotonic()
        self._ended = threading.Event()
        threading.Thread(target=self._beat, daemon=True).start()

    def emit(self, record: logging.LogRecord) -> None:
        """Prints a line, and remembers it unless it is a repetition."""
        super().emit(record)
        self._spoke = time.monotonic()
        if not hasattr(record, "repeated"):
            self._text, self._began = record.getMessage(), self._spoke

    def close(self) -> None:
        """Says nothing more by itself."""
        self._ended.set()
        super().close()

    def _beat(self) -> None:
        while not self._ended.wait(self._patience / 10):
            now = time.monotonic()
            if self._text and now - self._spoke >= self._patience:
                text = f"  still: {self._text:.70} ({now - self._began:.0f} s)"
                self.handle(logging.makeLogRecord({"msg": text, "repeated": True}))


def in_cluster(environ: Mapping[str, str]) -> bool:
    """Whether the environment says that this is one of several processes."""
    hosts = environ.get("TPU_WORKER_HOSTNAMES", "").split(",")
    # SLURM_STEP_NODELIST is there only in what srun starts, not in the batch script around it.
    tasks = int(environ.get("SLURM_NTASKS", "1")) if "SLURM_STEP_NODELIST" in environ else 1
    ranks = int(environ.get("OMPI_COMM_WORLD_SIZE", "1"))
    return "JAX_COORDINATOR_ADDRESS" in environ or len(hosts) > 1 or tasks > 1 or ranks > 1


def join_cluster(environ: Mapping[str, str]) -> None:
    """Meets the other processes, whose number and places jax finds out by itself in a cluster it knows.

    Elsewhere set JAX_COORDINATOR_ADDRESS=host:port, JAX_NUM_PROCESSES and JAX_PROCESS_ID.
    """
    import jax

    place: dict[str, Any] = {}
    if "JAX_NUM_PROCESSES" in environ:
        place = {
            "num_processes": int(environ["JAX_NUM_PROCESSES"]),
            "process_id": int(environ["JAX_PROCESS_ID"]),
        }
    jax.distributed.initialize(**place)
    if jax.process_index() != 0:  # the first speaks for all
        logging.getLogger("gfn_jax").setLevel(logging.WARNING)


if __name__ == "__main__":
    sys.exit(main())
