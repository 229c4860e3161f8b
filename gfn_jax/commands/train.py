"""Training: `python -m gfn_jax.launch`, whose flags are described there."""

import contextlib
import logging
import os
import pathlib
import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from absl import flags

from gfn_jax.commands import cli, cluster
from gfn_jax.commands.config_flag import EXAMPLE, define_config, given_keys, split_config
from gfn_jax.commands.progress import keep, notes, progress
from gfn_jax.errors import EvaluationFailed, first_line

DEFAULT_PRESET = "tiny"
LOG = "log.txt"  # in the workdir: what was printed


def main(argv: list[str], doc: str | None) -> int:
    """Runs the command and returns its exit code."""
    cli.configure_jax()
    return cluster.run(
        argv,
        doc,
        parse,
        lambda values: prepare(values, argv),
        listen=listen,
        interrupted="interrupted; run the same command to go on from the newest checkpoint",
    )


def parse(argv: list[str]) -> flags.FlagValues:
    """The flags of a command line, the config's overrides applied and the config locked.

    Raises:
        flags.Error: an unknown flag, or a value of the wrong type.
        ValueError: no config or two, one that is none, or words that are no flag.
        KeyError, AttributeError: a config key that is not there.
        OSError: a config file that is not there.
    """
    argv, source = split_config(argv)
    values = cli.common_flags()
    flags.DEFINE_bool("distributed", False, "join the processes of a cluster", flag_values=values)
    flags.DEFINE_bool("dry_run", False, "say what the run would take, and end", flag_values=values)
    flags.DEFINE_integer("sampler", None, "draw rows for the run's learner", lower_bound=0, flag_values=values)
    workdir = source and default_workdir(source, argv)
    flags.DEFINE_string("workdir", workdir, "where the run writes", flag_values=values)
    define_config(values, argv, source)
    return cli.read(values, argv, EXAMPLE, config="name one, for instance --config=configs/arith.py")


def default_workdir(config: str, argv: Sequence[str] = ()) -> str:
    """`runs/<file's name>-<preset>` for a value of `--config`, and `-<algorithm>` where the command line names one."""
    path, _, preset = config.partition(":")
    named = [word.partition("=")[2] for word in argv if word.lstrip("-").startswith("config.algorithm=")]
    suffix = "".join(f"-{re.sub(r'[^0-9A-Za-z]+', '-', name)}" for name in named)
    return f"runs/{pathlib.Path(path).stem}-{preset or DEFAULT_PRESET}{suffix}"


def listen(values: flags.FlagValues) -> contextlib.AbstractContextManager[None]:
    """Progress of a run; of a dry run, which is a page, only notes beside it."""
    return notes() if values.dry_run else progress(values.debug)


def prepare(values: flags.FlagValues, argv: list[str]) -> Iterable[str]:
    """Builds the run, or the page of a dry one."""
    if values.dry_run:
        from gfn_jax.commands.dry_run import dry_run

        return [dry_run(values.config, given_keys(values))]
    workdir = pathlib.Path(values.workdir)
    log = logging.getLogger("gfn_jax")
    if values.distributed or cluster.in_cluster(os.environ):
        cluster.join(os.environ)
    log.info(banner(values.config))
    log.info("starting in %s", workdir)
    if values.sampler is not None:
        from gfn_jax.runs.build import build_sampler

        sampler = build_sampler(values.config, workdir, values.sampler, given_keys(values))
        return (words() for words in [sampler.complete])
    from gfn_jax.runs.build import build

    command = shlex.join(["python", "-m", "gfn_jax.launch", *argv[1:]])
    program = build(values.config, workdir, command, given_keys(values))
    import jax

    if jax.process_index() != 0:
        return (words() for words in [program.complete])  # when they are asked for
    keep(workdir / LOG)
    return (words() for words in [program.complete, lambda: shown(workdir, command)])


def banner(config: Mapping[str, Any]) -> str:
    """What a config is about, in a line; what it does not say is left out."""
    model = config.get("model") or {}
    facts = {
        "task": config.get("task"),
        "method": config.get("algorithm") or config.get("mode"),
        "model": model.get("path") or config.get("corpus"),
        "seed": config.get("seed"),
    }
    return ", ".join(f"{name} {value}" for name, value in facts.items() if value is not None)


def shown(workdir: pathlib.Path, command: str) -> str:
    """Writes a run's page, and says where it is.

    Raises:
        EvaluationFailed: it could not be made; the run itself is done, and all it found is written.
    """
    from gfn_jax.studies.run_page import write_run_page

    logging.getLogger("gfn_jax").info("drawing the page")
    try:
        return f"All of it on a page, with its curves: {write_run_page(workdir, command)}"
    except Exception as error:  # whatever drawing raises: nothing of the run depends on it
        where = f"its results are in {workdir}; run the same command for the page"
        raise EvaluationFailed(f"the run is done and its page failed ({first_line(error)}); {where}") from error
