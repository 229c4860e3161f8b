"""The paper's tables: `python -m gfn_jax.reproduce`, its flags, and how its jobs become a report."""

import contextlib
import datetime
import pathlib
import platform
import shlex
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from absl import flags

from gfn_jax.commands import cli, cluster, train
from gfn_jax.commands.config_flag import given_keys
from gfn_jax.errors import TrainingStopped
from gfn_jax.studies import plan, pool
from gfn_jax.studies.found import Facts
from gfn_jax.studies.study import LAUNCH, Job, Study

PRESETS = ("tiny", "paper")
TEXT = {
    "what": ("all", "names of tables and figures, separated by commas"),
    "workdir": ("runs/reproduce", "where every job has a folder; run again, what is missing is run"),
    "out": (None, "folder of the report, WORKDIR/report by default"),
}
NUMBERS = {"workers": (None, "jobs at once; by default as many as there are cores, one with --preset=paper")}
NOT_RUN = (
    "--preset=paper has not been run here: what jobs that are not done would take is an estimate, an accelerator "
    "each; `python -m gfn_jax.launch ARGUMENTS --dry_run` says more of one."
)


def main(argv: list[str], doc: str | None) -> int:
    """Runs the command and returns its exit code."""
    cli.configure_jax()
    return cli.run(argv, doc, parse, lambda values: prepare(values, argv))


def parse(argv: list[str]) -> flags.FlagValues:
    """The flags of a command line.

    Raises:
        flags.Error: an unknown flag, or a value of the wrong type.
        ValueError: a list or a number that makes no sense, or words that are no flag.
    """
    values = cli.common_flags(TEXT, NUMBERS)
    flags.DEFINE_enum("preset", "tiny", PRESETS, "the worlds: tiny ones, or the paper's", flag_values=values)
    flags.DEFINE_list("seeds", ["0"], "of every row, separated by commas", flag_values=values)
    flags.DEFINE_bool("list", False, "say what would run, and end", flag_values=values)
    cli.read(values, argv, "--what=table4")
    if not values.help:
        cli.whole_numbers(values, "seeds")
        cli.check_counts(values, "workers")
    return values


def prepare(values: flags.FlagValues, argv: list[str]) -> Iterable[str]:
    """Checks the names and every job's arguments; jobs run when the report is asked for."""
    cluster.alone()
    from gfn_jax.studies.protocol import check_protocol
    from gfn_jax.studies.tables import GROUPS, studies

    seeds, workdir = cli.whole_numbers(values, "seeds"), pathlib.Path(values.workdir).resolve()
    out = pathlib.Path(values.out).resolve() if values.out else workdir / "report"
    there = studies(values.preset, seeds)
    asked = there if values.what == "all" else values.what.split(",")
    names = list(dict.fromkeys(name for word in asked for name in GROUPS.get(word, (word,))))
    jobs, root = plan.chosen_jobs(there, names), checkout()
    with contextlib.chdir(root):
        said = {job.name: config_flags(job) for job in jobs}
        planned = plan.make_plan(jobs, workdir, lambda job: meaning(job, said[job.name]))
    configs = {name: flagged.config.to_dict() for name, flagged in said.items() if flagged is not None}
    for name in names:
        check_protocol(there[name], configs)
    workers = values.workers or (1 if values.preset == "paper" else pool.cores())
    if values["list"].value:
        return [page(planned, workers, values.preset)]
    command = shlex.join(["python", "-m", "gfn_jax.reproduce", *argv[1:]])
    now = datetime.datetime.now().astimezone().isoformat(timespec="minutes")
    facts = Facts(command, values.preset, seeds, now, machine(), plan.versions())
    return reproduce(planned, [there[name] for name in names], workers, root, workdir, out, facts)


def checkout() -> pathlib.Path:
    """The folder in which configs/ lies: the repository's, or the current one.

    Raises:
        ValueError: neither has it.
    """
    repository = pathlib.Path(__file__).resolve().parents[2]
    for folder in (repository, pathlib.Path.cwd()):
        if (folder / "configs").is_dir():
            return folder
    raise ValueError(f"there is no configs/ in {repository}, nor in the current folder: run this in a checkout")


def config_flags(job: Job) -> flags.FlagValues | None:
    """What the flags of a job's config say, as the launcher reads them; None of a job without a config.

    Raises:
        ValueError: flags that would be refused.
    """
    launch = job.module == LAUNCH
    words = [word for word in job.arguments if launch or word.startswith("--config")]
    if not words and not launch:
        return None
    with naming(job):
        return train.parse(["launch", *words])


def meaning(job: Job, flagged: flags.FlagValues | None = None) -> Any:
    """What a job's arguments say: of a launch the whole config, as the launcher reads it, else themselves.

    Args:
        job: any.
        flagged: its `config_flags`, where they are known.

    Raises:
        ValueError: it is a launch that would refuse them.
    """
    if job.module != LAUNCH:
        return job.arguments
    from gfn_jax.runs.config import read

    flagged = flagged or config_flags(job)
    assert flagged is not None
    with naming(job):
        return read(flagged.config, given_keys(flagged)).described


@contextlib.contextmanager
def naming(job: Job) -> Iterator[None]:
    """Says which job it is whose config is refused."""
    try:
        yield
    except cli.PARSING as error:
        raise ValueError(f"job {job.name}: {cli.one_line(error)}") from error


def page(planned: Sequence[plan.Planned], workers: int, preset: str) -> str:
    """What would run: a line a job, and how long all of it takes."""
    from gfn_jax.evaluation.report import table

    states = {one.job.name: plan.state(one) for one in planned}
    expected = plan.expected(planned)
    rows = [[name, states[name], f"{one.seconds:.0f}", one.gigabytes] for name, one in expected.items()]
    left = {name: expected[name].seconds for name, state in states.items() if state != "done"}
    counts = ", ".join(
        f"{sum(state == one for state in states.values())} {one}" for one in dict.fromkeys(states.values())
    )
    clock = plan.readable_time(plan.by_the_clock(left, planned, workers))
    total = plan.readable_time(sum(left.values()))
    lines = [
        table(["job", "state", "seconds", "GB"], rows),
        "",
        f"{len(planned)} jobs: {counts}",
        f"left: {total} of one core, about {clock} by the clock with --workers={workers}",
    ]
    return "\n".join([*lines, *[NOT_RUN] * (preset == "paper")])


def machine() -> str:
    """This one, in words."""
    return f"{platform.system()} {platform.machine()}, {pool.cores()} cores, {pool.machine_gigabytes():.0f} GB"


def reproduce(
    planned: Sequence[plan.Planned],
    studies: Sequence[Study],
    workers: int,
    root: pathlib.Path,
    workdir: pathlib.Path,
    out: pathlib.Path,
    facts: Facts,
) -> Iterator[str]:
    """Runs what is missing, and gives the report of what is there then.

    Raises:
        TrainingStopped: a signal came; behind the report.
        RuntimeError: jobs failed; behind the report.
    """
    from gfn_jax.studies.report import write

    outcome = pool.run(planned, workers, root, workdir)
    yield write(studies, plan.found(planned), out, facts)
    check(outcome, planned)


def check(outcome: pool.Outcome, planned: Sequence[plan.Planned]) -> None:
    """Raises TrainingStopped where a signal came, RuntimeError where jobs failed."""
    if outcome.signal is not None:
        raise TrainingStopped("stopped; run the same command to go on", exit_code=128 + outcome.signal)
    if outcome.failed:
        needing = f"; {len(outcome.skipped)} that need them were skipped" if outcome.skipped else ""
        names = ", ".join(outcome.failed)
        raise RuntimeError(f"{len(outcome.failed)} of {len(planned)} jobs failed: {names}{needing} (see output.txt)")
