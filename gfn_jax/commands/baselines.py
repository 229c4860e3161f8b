r"""The command that measures rivals which are no run of `gfn_jax.launch`; studies start it as a job.

python -m gfn_jax.commands.baselines --what=prompting --config=configs/arith.py --workdir=runs/prompting

--what              prompting, decoding, posterior (arithmetic); direct (subjectivity): `gfn_jax/studies/baselines.py`
--config.KEY=VALUE  changes one value of the config; config.report=validation reads no test question
--workdir=DIR       where results.json (written last), questions.json and samples.jsonl go
"""

import pathlib
import shlex
import sys
from collections.abc import Iterable

from absl import flags

from gfn_jax.commands import cli, cluster
from gfn_jax.commands.config_flag import define_config, given_keys, split_config
from gfn_jax.commands.progress import progress

EXAMPLE = "--what=NAME --config=FILE:preset --workdir=DIR"
TEXT = {"what": (None, "what is measured"), "workdir": (None, "where the job writes")}


def main(argv: list[str], doc: str | None) -> int:
    """Runs the command and returns its exit code."""
    cli.configure_jax()
    return cli.run(argv, doc, parse, lambda values: prepare(values, argv), listen=lambda values: progress(values.debug))


def parse(argv: list[str]) -> flags.FlagValues:
    """The flags of a command line, the config's overrides applied.

    Raises:
        flags.Error: an unknown flag, or a value of the wrong type.
        ValueError: nothing to measure, no config or no workdir, or words that are no flag.
        KeyError, AttributeError: a config key that is not there.
        OSError: a config file that is not there.
    """
    argv, source = split_config(argv)
    values = cli.common_flags(TEXT)
    define_config(values, argv, source)
    needed = dict.fromkeys(("what", "config", "workdir"), f"write {EXAMPLE}")
    return cli.read(values, argv, EXAMPLE, **needed)


def prepare(values: flags.FlagValues, argv: list[str]) -> Iterable[str]:
    """Measures when the page is asked for; what is wrong with the config is found before."""
    cluster.alone()
    from gfn_jax.runs.config import read_policy_run
    from gfn_jax.studies.baselines import chosen

    command = shlex.join(["python", "-m", "gfn_jax.commands.baselines", *argv[1:]])
    config = read_policy_run(values.config, given_keys(values))
    measure = chosen(values.what, config, pathlib.Path(values.workdir), command)
    return (words() for words in [measure])  # when they are asked for


if __name__ == "__main__":
    sys.exit(main(sys.argv, __doc__))
