"""What is to be run: the jobs of studies in order, whose each folder is, and what became of it.

A job's identity is a digest of its module, of what its arguments say (of a launch: the config that they resolve to,
the sections of evaluation and certificate included, for they change results) and of the identities of what it needs.
FOLDER/job.json, which only the parent of the job's process writes, says whose the folder is. A job is done where it
says exit code 0 with the same identity, and results.json is there. A folder of another identity is not removed, since
a config changed by mistake would cost the hours that lie in it: it is moved to WORKDIR/.aside/JOB/IDENTITY, and moved
back when that identity is asked for again.
"""

import collections
import dataclasses
import graphlib
import hashlib
import importlib.metadata
import json
import os
import pathlib
import platform
import re
import shutil
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal

from gfn_jax.studies.found import Found
from gfn_jax.studies.study import SEED, Job, Study

State = Literal["done", "interrupted", "failed", "changed", "missing"]
RECORD, PARTIAL = "job.json", "job.partial"
PACKAGES = ("gfn_jax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "transformers")
_NAME = re.compile(r"\w[\w.+-]*(/\w[\w.+-]*)*")
_FOLDER = re.compile(r"\{([\w./+-]+)\}")


@dataclasses.dataclass(frozen=True)
class Planned:
    """A job and its folder.

    Attributes:
        job: the job.
        identity: twelve hexadecimal digits.
        folder: its own.
        aside: where it lies, or would lie, while another identity has the folder.
        arguments: the job's, with the folders of those it needs, and --workdir.
    """

    job: Job
    identity: str
    folder: pathlib.Path
    aside: pathlib.Path
    arguments: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Record:
    """What job.json says.

    Attributes:
        identity: of the job that the folder belongs to.
        module, arguments: what was run.
        exit_code: of its process, -N where signal N killed it; None while it runs, and where it was interrupted.
        seconds: by the clock, of all its processes together.
        cpu_seconds: that they computed.
        gigabytes: the most memory that one of them held.
        version: of the package.
    """

    identity: str
    module: str
    arguments: tuple[str, ...]
    exit_code: int | None
    seconds: float
    cpu_seconds: float
    gigabytes: float
    version: str


@dataclasses.dataclass(frozen=True)
class Expected:
    """What a job takes: seconds on one core, and gigabytes."""

    seconds: float
    gigabytes: float


def chosen_jobs(studies: Mapping[str, Study], names: Sequence[str]) -> tuple[Job, ...]:
    """The jobs of some studies and all that they need, in order.

    Args:
        studies: all there are; a job may need one of a study that is not chosen.
        names: of those chosen.

    Raises:
        ValueError: a study or a job that is not there, two jobs of one name, or as `ordered`.
    """
    known: dict[str, Job] = {}
    for study in studies.values():
        for job in study.jobs:
            if known.setdefault(job.name, job) != job:
                raise ValueError(f"two jobs are called {job.name!r}, and differ")
    unknown = [name for name in names if name not in studies]
    if unknown:
        raise ValueError(f"there is no study {unknown[0]!r}; there are {', '.join(studies)}")
    chosen: set[str] = set()
    reached = [job for name in names for job in studies[name].jobs]
    while reached:
        job = reached.pop()
        if job.name not in chosen:
            chosen.add(job.name)
            absent = [need for need in job.needs if need not in known]
            if absent:
                raise ValueError(f"{job.name} needs {absent[0]!r}, which is no job")
            reached += [known[need] for need in job.needs]
    return ordered([job for job in known.values() if job.name in chosen])


def ordered(jobs: Sequence[Job]) -> tuple[Job, ...]:
    """Jobs behind those that they need; first those that most seconds hang on, their own and of a chain of others.

    Args:
        jobs: with all that they need, in any order.

    Raises:
        ValueError: jobs that need each other in a circle; a name that is no folder's, or within another's folder.
    """
    named = {job.name: job for job in jobs}
    for name in named:
        if not _NAME.fullmatch(name):
            raise ValueError(f"{name!r} cannot be a job's name: it is its folder below the workdir")
        inside = [str(folder) for folder in pathlib.PurePosixPath(name).parents if str(folder) in named]
        if inside:
            raise ValueError(f"the folder of {name} would lie in that of {inside[0]}")
    try:
        order = list(graphlib.TopologicalSorter({name: job.needs for name, job in named.items()}).static_order())
    except graphlib.CycleError as error:
        raise ValueError(f"jobs need each other in a circle: {' -> '.join(reversed(error.args[1]))}") from None
    behind = dict.fromkeys(order, 0.0)
    for name in reversed(order):
        for need in named[name].needs:
            behind[need] = max(behind[need], named[name].seconds + behind[name])
    return tuple(named[name] for name in sorted(order, key=lambda name: -named[name].seconds - behind[name]))


def make_plan(jobs: Sequence[Job], workdir: pathlib.Path, meaning: Callable[[Job], Any]) -> tuple[Planned, ...]:
    """Jobs with their identities and folders.

    Args:
        jobs: in order.
        workdir: of all.
        meaning: what a job's arguments say, as plain values.

    Raises:
        ValueError: an argument has the folder of a job that is not needed; or of `meaning`.
    """
    plan: dict[str, Planned] = {}
    for job in jobs:
        needs = [plan[need].identity for need in job.needs]
        text = json.dumps([job.module, meaning(job), needs], sort_keys=True)
        identity = hashlib.sha256(text.encode()).hexdigest()[:12]
        aside = workdir / ".aside" / job.name / identity
        plan[job.name] = Planned(job, identity, workdir / job.name, aside, arguments_of(job, workdir))
    return tuple(plan.values())


def arguments_of(job: Job, workdir: pathlib.PurePath) -> tuple[str, ...]:
    """A job's arguments, the folders of those it needs and its own being below `workdir`.

    Raises:
        ValueError: one has the folder of a job that is not needed.
    """
    for argument in job.arguments:
        for name in _FOLDER.findall(argument):
            if name not in job.needs:
                raise ValueError(f"{job.name} has {argument!r}, and does not need a job {name!r}")
    given = (_FOLDER.sub(lambda match: str(workdir / match[1]), argument) for argument in job.arguments)
    return (*given, f"--workdir={workdir / job.name}")


def home(planned: Planned) -> pathlib.Path | None:
    """Where the job's folder lies, in its place or aside; None where it has none."""
    for folder in (planned.folder, planned.aside):
        record = read_record(folder)
        if record is not None and record.identity == planned.identity:
            return folder
    return None


def state(planned: Planned) -> State:
    """What became of a job; "changed" is one whose folder another identity has."""
    folder = home(planned)
    record = folder and read_record(folder)
    if not folder or not record:
        return "changed" if read_record(planned.folder) else "missing"
    if record.exit_code is None:
        return "interrupted"
    return "done" if record.exit_code == 0 and (folder / "results.json").exists() else "failed"


def settle(planned: Planned) -> None:
    """Makes the folder the job's own, if there is one: what belongs to another identity is moved aside.

    Raises:
        ValueError: there is a folder which no job of ours has made.
    """
    own, record = home(planned), read_record(planned.folder)
    if own == planned.folder:
        return
    if record is not None:
        other = planned.aside.with_name(record.identity)
        other.parent.mkdir(parents=True, exist_ok=True)
        planned.folder.rename(other)
    elif planned.folder.exists():
        if {path.name for path in planned.folder.iterdir()} - {PARTIAL}:
            raise ValueError(f"{planned.folder} is no job's, for it has no {RECORD}; move it away")
        shutil.rmtree(planned.folder)
    if own is not None:
        own.rename(planned.folder)


def read_record(folder: pathlib.Path) -> Record | None:
    """What job.json says; None where there is none.

    Raises:
        ValueError: it is none of ours.
    """
    path = folder / RECORD
    try:
        fields = json.loads(path.read_text())
        return Record(**(fields | {"arguments": tuple(fields["arguments"])}))
    except FileNotFoundError:
        return None
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(f"{path} cannot be read ({error}); move {folder} away") from error


def write_record(folder: pathlib.Path, record: Record) -> None:
    """Writes job.json, whole or not at all, in a folder that is made if need be."""
    folder.mkdir(parents=True, exist_ok=True)
    partial = folder / PARTIAL
    partial.write_text(json.dumps(dataclasses.asdict(record), indent=1) + "\n")
    os.replace(partial, folder / RECORD)


def new_record(planned: Planned) -> Record:
    """Of a job that has never run."""
    return Record(planned.identity, planned.job.module, planned.arguments, None, 0.0, 0.0, 0.0, version())


def versions() -> dict[str, str]:
    """Of Python and the packages that what is found may depend on."""
    return {"python": platform.python_version()} | {name: version(name) for name in PACKAGES}


def version(package: str = "gfn_jax") -> str:
    """Of an installed package; "not installed" of another."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def found(plan: Iterable[Planned]) -> dict[str, Found]:
    """What the jobs that are done have left, by name.

    Raises:
        ValueError: a file of theirs that cannot be read.
    """
    done = {planned.job.name: home(planned) for planned in plan if state(planned) == "done"}
    return {
        name: Found(folder, results, _read(folder / "questions.json"), job)
        for name, folder in done.items()
        if folder and (results := _read(folder / "results.json")) and (job := _read(folder / RECORD))
    }


def _read(path: pathlib.Path) -> dict[str, Any] | None:
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise ValueError(f"{path} cannot be read ({error}); remove {path.parent}") from error


def expected(plan: Sequence[Planned]) -> dict[str, Expected]:
    """What each job takes: what it took, or else those that differ in the seed alone; or else what its study says."""
    took: dict[str, list[Expected]] = collections.defaultdict(list)
    for planned in plan:
        folder = home(planned)
        record = folder and read_record(folder)
        if record and record.exit_code == 0:
            own = Expected(record.seconds, record.gigabytes)
            took[planned.job.name].append(own)
            took[_kind(planned.job.name)].append(own)
    estimates = {}
    for job in (planned.job for planned in plan):
        like = took.get(job.name) or took.get(_kind(job.name)) or [Expected(job.seconds, job.gigabytes)]
        estimates[job.name] = Expected(statistics.mean(one.seconds for one in like), max(one.gigabytes for one in like))
    return estimates


def _kind(name: str) -> str:
    return SEED.sub("seed-*", name)


def by_the_clock(rest: Mapping[str, float], plan: Sequence[Planned], workers: int) -> float:
    """Seconds until all is done: all workers at work without a gap, or a chain of jobs that wait for each other.

    Args:
        rest: job -> the seconds that it still takes; others take none.
        plan: in order.
        workers: jobs at once.
    """
    end: dict[str, float] = {}
    for job in (planned.job for planned in plan):
        end[job.name] = rest.get(job.name, 0.0) + max((end[need] for need in job.needs), default=0.0)
    return max(sum(rest.values()) / workers, *end.values(), 0.0)


def readable_time(seconds: float) -> str:
    """To two units: 41 s, 12 min, 1 h 20 min."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"
