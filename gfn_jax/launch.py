"""The command that trains: `python -m gfn_jax.launch --config=configs/arith.py[:preset]`.

    --config.KEY=VALUE  changes one value of the config
    --workdir=DIR       where the run writes, runs/CONFIG-PRESET by default; run again, it goes on from there
    --distributed       joins the other processes of a cluster; not needed where the environment names them
                        (SLURM, Open MPI, a TPU slice on Kubernetes, JAX_COORDINATOR_ADDRESS)
    --dry_run           says what the run would take in memory and arithmetic, on any --config.mesh, and ends there
    --debug             shows tracebacks; so does GFN_JAX_DEBUG=1

What is wrong with the command, its config or its data ends in one line `error: ...` and exit code 2; what
goes wrong later, in one line and exit code 1. Ctrl-C and SIGTERM save; the exit code is 128 + the signal.
"""

import logging
import os
import pathlib
import re
import shlex
import sys
from collections.abc import Mapping
from typing import Any

# Read when jax and transformers are imported: below, once the flags are known to be right.
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(pathlib.Path.home() / ".cache" / "gfn_jax" / "jax"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.3")

from absl import flags
from absl import logging as absl_logging
from ml_collections import config_flags

from gfn_jax.errors import TrainingStopped

DEFAULT_PRESET = "tiny"
FAILED, USAGE, INTERRUPTED = 1, 2, 130

# What a person can put right, phase by phase; anything else is a fault of ours and keeps its traceback.
# ml_collections wraps the KeyError of a misspelt key in an AttributeError.
PARSING = (flags.Error, ValueError, KeyError, TypeError, AttributeError, OSError, ImportError, SyntaxError)
BUILDING = (ValueError, KeyError, TypeError, OSError, ImportError)
RUNNING = (ValueError, OSError, RuntimeError)


def main(argv: list[str] | None = None, default_config: str | None = None) -> int:
    """Runs the command and returns its exit code.

    Args:
        argv: the command line, program included; this process's own by default.
        default_config: the config of a command that names none.
    """
    argv = list(sys.argv if argv is None else argv)
    debug = os.environ.get("GFN_JAX_DEBUG", "0") not in ("", "0")
    expected: tuple[type[Exception], ...] = PARSING
    code = USAGE
    try:
        values = parse(argv, default_config)
        debug = debug or values.debug
        if values.help:
            print(f"{__doc__}\nFlags:\n{values.get_help()}")
            return 0
        expected = BUILDING
        if values.dry_run:
            from gfn_jax.dry_run import dry_run

            print(dry_run(values.config), flush=True)
            return 0
        source = config_flags.get_config_filename(values["config"])
        workdir = pathlib.Path(values.workdir or default_workdir(source))
        set_up_logging(debug)
        if values.distributed or in_cluster(os.environ):
            join_cluster(os.environ)
        from gfn_jax.build import build  # jax and all: too slow to wait for when a flag is misspelt

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


def parse(argv: list[str], default_config: str | None = None) -> flags.FlagValues:
    """The flags of a command line, the config's overrides applied and the config locked.

    They are values of their own, not absl's global ones, so `main` may be called more than once.

    Raises:
        flags.Error: an unknown flag, or a value of the wrong type.
        ValueError: no config, or words that are no flag.
        KeyError, AttributeError: a config key that is not there.
        OSError: a config file that is not there.
    """
    # Of two configs the last would count, but overrides would be looked up in the first.
    named = any(re.match(r"--?config(=|$)", word) for word in argv[1:])
    if default_config is not None and not named:
        argv = [argv[0], f"--config={default_config}", *argv[1:]]
    values = flags.FlagValues()
    config_flags.DEFINE_config_file("config", None, "FILE:preset", flag_values=values, sys_argv=argv)
    flags.DEFINE_string("workdir", None, "where the run writes", flag_values=values)
    flags.DEFINE_bool("distributed", False, "join the processes of a cluster", flag_values=values)
    flags.DEFINE_bool("dry_run", False, "say what the run would take, and end", flag_values=values)
    flags.DEFINE_bool("debug", False, "show tracebacks", flag_values=values)
    flags.DEFINE_bool("help", False, "show this help", short_name="h", flag_values=values)
    words = values(argv)
    if values.help:
        return values
    if len(words) > 1:
        raise ValueError(f"{words[1]!r} is no flag; write --config=FILE:preset or --config.KEY=VALUE")
    if values["config"].value is None:
        raise ValueError("no config; name one, for instance --config=configs/arith.py")
    values.config.lock()  # locked already; but a file that is not there is said only when it is looked at
    return values


def default_workdir(config: str) -> str:
    """`runs/<file's name>-<preset>` for a value of `--config`."""
    path, _, preset = config.partition(":")
    return f"runs/{pathlib.Path(path).stem}-{preset or DEFAULT_PRESET}"


def one_line(error: BaseException) -> str:
    """What an exception says, in one line: its cause, not the layers it was wrapped in."""
    while error.args and isinstance(error.args[0], BaseException):
        error = error.args[0]
    text = str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)
    if "Traceback (most recent call last)" in text:  # ml_collections quotes one when a config file raises
        text = re.sub(r"^[\w.]+: ", "", text.strip().splitlines()[-1])
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
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(logging.Formatter("%(asctime)s  %(message)s", datefmt="%H:%M:%S"))
    logger.handlers = [handler]
    logger.propagate = False
    logger.setLevel(logging.INFO)


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
