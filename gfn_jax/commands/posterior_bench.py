"""PosteriorBench: `python -m gfn_jax.posterior_bench`, its flags."""

from collections.abc import Iterator

from absl import flags

from gfn_jax.commands import cli, cluster
from gfn_jax.commands.progress import progress

BUDGETS = ("smoke", "small", "full", "tiny")
TEXT = {
    "methods": ("all", "names of methods, separated by commas"),
    "targets": ("all", "names of targets, separated by commas"),
    "out": (None, "folder to write results.json, results.md and the figure to"),
    "stories260k": (None, "folder of the model stories260k; without, its targets are left out"),
}


def main(argv: list[str], doc: str | None) -> int:
    """Runs the command and returns its exit code."""
    return cli.run(argv, doc, parse, prepare, listen=lambda values: progress(values.debug))


def parse(argv: list[str]) -> flags.FlagValues:
    """The flags of a command line.

    Raises:
        flags.Error: an unknown flag, or a value of the wrong type.
        ValueError: no folder to write to, or words that are no flag.
    """
    values = cli.common_flags(TEXT)
    flags.DEFINE_enum("budget", "smoke", BUDGETS, "how much is done (bench/run.py)", flag_values=values)
    flags.DEFINE_integer("seeds", 1, "how many: 0, 1, 2, ...", flag_values=values)
    return cli.read(values, argv, "--methods=importance", out="name a folder, for instance --out=runs/bench")


def prepare(values: flags.FlagValues) -> Iterator[str]:
    """Checks the names; a target is built when its table is asked for."""
    cluster.alone()
    # Compiling is most of a small budget's time.
    cli.configure_jax(optimization_level=0 if values.budget in ("smoke", "tiny") else 1)
    from gfn_jax.bench.methods import METHODS
    from gfn_jax.bench.run import Settings, run
    from gfn_jax.bench.targets import TARGETS

    def chosen(given: str, there: dict) -> tuple[str, ...]:
        return tuple(there) if given == "all" else tuple(dict.fromkeys(given.split(",")))

    methods, targets = chosen(values.methods, METHODS), chosen(values.targets, TARGETS)
    return run(Settings(methods, targets, values.budget, values.seeds, values.out, values.stories260k))
