"""`gfn train CONFIG`: the launcher's command line from a short one; of several seeds or a sweep, one for each run."""

import contextlib
import dataclasses
import itertools
import logging
import os
import pathlib
import shlex
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from absl import flags
from ml_collections import ConfigDict

from gfn_jax.commands import cli, cluster, train
from gfn_jax.commands.config_flag import load_config
from gfn_jax.commands.progress import progress
from gfn_jax.commands.shipped import nearest, resolve
from gfn_jax.sections import leaves
from gfn_jax.studies.study import LAUNCH, Job, config_words

EXAMPLE = "name one, for instance `gfn train arith`; `gfn configs` lists them"
OF_LAUNCH = ("workdir", "distributed", "sampler", "dry_run", "debug")  # flags of the launcher, passed on
OWN = ("print_config", "workers")
SWITCHES = ("distributed", "dry_run", "debug", "print_config")  # take no value
CONFIG, SWEEP, SEED = "config.", "sweep.", "seed"


@dataclasses.dataclass(frozen=True)
class Line:
    """A command line, read.

    Attributes:
        source: the config, FILE:preset.
        flags: the launcher's own, as words.
        given: the config's, as words, but for those that follow.
        seeds: of several runs, in order; () where the config's own, or one, is meant.
        sweep: key -> its values, as texts.
        print_config: the config is to be printed, and nothing else.
        workers: runs at once, of several.
    """

    source: str
    flags: tuple[str, ...]
    given: tuple[str, ...]
    seeds: tuple[int, ...] = ()
    sweep: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
    print_config: bool = False
    workers: int = 1

    @property
    def several(self) -> bool:
        """Whether it is more than one run."""
        return bool(self.seeds or self.sweep)

    @property
    def points(self) -> tuple[dict[str, str], ...]:
        """Every combination of the sweep's values; a single empty one without a sweep."""
        return tuple(dict(zip(self.sweep, values)) for values in itertools.product(*self.sweep.values()))

    def launch(self, **own: Any) -> list[str]:
        """The launcher's command line, with values of the config beside those that were given."""
        return ["launch", f"--config={self.source}", *self.flags, *self.given, *config_words(own)]


@dataclasses.dataclass(frozen=True)
class Request:
    """A command line and its flags, of its first run where they are several."""

    line: Line
    values: flags.FlagValues
    help = False


def main(argv: list[str], doc: str | None) -> int:
    """Runs the command and returns its exit code."""
    if any(word in ("--help", "-h", "--helpfull", "-help") for word in argv):
        print(doc)
        return 0
    cli.configure_jax()
    return cluster.run(
        argv,
        doc,
        parse,
        prepare,
        listen=listen,
        interrupted="interrupted; run the same command to go on from the newest checkpoint",
    )


def parse(argv: list[str]) -> Request:
    """The command line, all keys of which are known, and whose values are of their types.

    Raises:
        flags.Error, ValueError, KeyError, AttributeError, OSError: what is wrong with it, in one line.
    """
    line = read_line(argv[1:])
    first = None
    for point in line.points:
        for seed in line.seeds or (None,):
            values = train.parse(line.launch(**point, **({} if seed is None else {SEED: seed})))
            first = first or values
    assert first is not None
    if line.several and (first.distributed or cluster.in_cluster(os.environ)):
        raise ValueError("several runs are one machine's, one after the other; in a cluster start one at a time")
    if line.several and first.sampler is not None:
        raise ValueError("--sampler is one run's, and these are several: start the samplers of each with its own seed")
    return Request(line, first)


def read_line(words: Sequence[str]) -> Line:
    """What the words of a command line say.

    Raises:
        ValueError: no config or two, a flag that is none, or a list that makes no sense.
        OSError: a config file that is not there.
    """
    pairs, bare = split(words)
    named = [*bare, *(value or "" for name, value in pairs if name == "config")]
    if not named or not named[0]:
        raise ValueError(f"no config; {EXAMPLE}")
    if len(named) > 1:
        raise ValueError(f"{named[1]!r} is no flag; write --KEY=VALUE (the config is {named[0]})")
    source = resolve(named[0])
    keys = list(keys_of(load_config(source)))
    launch, given, sweep, own = [], [], {}, {}
    seeds: tuple[int, ...] = ()
    for name, value in pairs:
        plain = name.removeprefix("no") if value is None else name
        key = name.removeprefix(SWEEP).removeprefix(CONFIG)
        text = "" if value is None else f"={value}"
        if name == "config":
            continue
        if plain in OF_LAUNCH:
            launch.append(f"--{name}{text}")
        elif plain in OWN:
            own[plain] = value
        elif key not in keys:
            raise ValueError(f"there is no --{name}{meant(name, key, keys)}")
        elif name.startswith(SWEEP):
            sweep[key] = listed(name, value)
        elif key == SEED and "," in (value or ""):
            seeds = cli.distinct_numbers((value or "").split(","), SEED)
        else:
            given.append(f"--{CONFIG}{key}{text}")
    if SEED in sweep:
        raise ValueError(f"seeds are no sweep, for their mean is wanted: write --seed={','.join(sweep[SEED])}")
    taken = sorted(key for key in sweep for word in given if word.partition("=")[0] == f"--{CONFIG}{key}")
    if taken:
        raise ValueError(f"--{taken[0]} and --{SWEEP}{taken[0]} are both given: leave one out")
    workers = cli.distinct_numbers((own.get("workers") or "1").split(","), "workers")[0]
    if workers < 1:
        raise ValueError(f"--workers is {workers}; it must be 1 or more")
    return Line(source, tuple(launch), tuple(given), seeds, sweep, "print_config" in own, workers)


def split(words: Sequence[str]) -> tuple[list[tuple[str, str | None]], list[str]]:
    """Flags with their values, and bare words: `--steps 40` is `--steps=40`, and a switch has no value."""
    pairs: list[tuple[str, str | None]] = []
    bare: list[str] = []
    rest = list(words)
    while rest:
        word = rest.pop(0)
        if not word.startswith("-"):
            bare.append(word)
            continue
        name, equals, value = word.lstrip("-").partition("=")
        if equals:
            pairs.append((name, value))
        elif name.removeprefix("no") in SWITCHES or not rest or rest[0].startswith("--"):
            pairs.append((name, None))
        else:
            pairs.append((name, rest.pop(0)))
    return pairs, bare


def keys_of(config: ConfigDict) -> dict[str, Any]:
    """The keys of a config's values, `optimizer.learning_rate` among them, with these; not those of empty sections."""
    return {key: value for key, value in leaves(config.to_dict()) if value != {}}


def meant(name: str, key: str, keys: Sequence[str]) -> str:
    """`; did you mean ...?`: a key of that last part, or one that is written nearly so."""
    ends = [known for known in keys if known.rpartition(".")[2] == key]
    begins = name.removesuffix(key)
    if ends:
        return f"; did you mean {' or '.join(f'--{begins}{one}' for one in ends[:3])}?"
    words = [*(f"--{begins}{known}" for known in keys), *(f"--{flag}" for flag in (*OF_LAUNCH, *OWN))]
    return nearest(f"--{name}", words).replace("'", "") or "; `gfn configs CONFIG` lists the keys"


def listed(name: str, value: str | None) -> tuple[str, ...]:
    """The values of a sweep: commas within brackets are no separators.

    Raises:
        ValueError: there are fewer than two, or one twice.
    """
    found, depth = [""], 0
    for letter in value or "":
        depth += (letter in "([{") - (letter in ")]}")
        if letter == "," and not depth:
            found.append("")
        else:
            found[-1] += letter
    values = tuple(text.strip() for text in found)
    if len(values) < 2 or "" in values or len(set(values)) < len(values):
        raise ValueError(
            f"--{name} is {value or ''!r}; it must be two or more different values, for instance 1e-3,3e-3"
        )
    return values


def listen(request: Request) -> contextlib.AbstractContextManager[None]:
    """Progress, as the launcher has it; of what is printed, nothing."""
    if request.line.print_config:
        return contextlib.nullcontext()
    return progress(request.values.debug) if request.line.several else train.listen(request.values)


def prepare(request: Request) -> Iterable[str]:
    """The config; or builds the run, or the page of a dry one; or plans the runs."""
    line, values = request.line, request.values
    if line.print_config:
        return [shown(values.config)]
    if not line.several or values.dry_run:
        return train.prepare(values, line.launch(**({SEED: line.seeds[0]} if line.seeds else {})))
    return several(line, values)


def shown(config: ConfigDict) -> str:
    """A config as KEY=VALUE lines, each of which `gfn train` takes as a flag."""
    return "\n".join(f"{key}={value}" for key, value in keys_of(config).items())


def several(line: Line, values: flags.FlagValues) -> Iterable[str]:
    """Checks every run's config; they run when the table is asked for."""
    from gfn_jax.commands import gfn_runs
    from gfn_jax.commands.reproduce import meaning
    from gfn_jax.studies import plan

    if values.config.task == "pretrain":
        raise ValueError("a pretraining leaves a model and no measures, so that several have no table: start each")
    suffix = "-sweep" if line.sweep else "-seeds"
    given = any(word.lstrip("-").startswith("workdir") for word in line.flags)
    workdir = pathlib.Path(values.workdir if given else f"{values.workdir}{suffix}").resolve()
    logging.getLogger("gfn_jax").info("preparing the runs in %s", workdir)
    planned = plan.make_plan(jobs(line, values.config.task), workdir, meaning)
    words = [f"--workdir={workdir}", *line.given, *([f"--seed={','.join(map(str, line.seeds))}"] * bool(line.seeds))]
    words += [f"--{SWEEP}{key}={','.join(texts)}" for key, texts in line.sweep.items()]
    command = shlex.join(["gfn", "train", line.source, *words])
    runs = gfn_runs.Runs(values.config.task, command, line.points, line.seeds, bool(line.sweep))
    return gfn_runs.complete(runs, planned, line.workers, workdir)


def jobs(line: Line, task: str) -> tuple[Job, ...]:
    """The runs: for each point of the sweep one a seed. A sweep reads no test question, unless `report` says so."""
    found = []
    own = {}
    reported = any(word.startswith(f"--{CONFIG}report=") for word in line.given) or "report" in line.sweep
    if line.sweep and task != "finetune" and not reported:
        own["report"] = "validation"
    for point in line.points:
        for seed in line.seeds or (None,):
            values = {**own, **point, **({} if seed is None else {SEED: seed})}
            parts = [*([point_name(point)] if point else []), *([f"seed-{seed}"] if seed is not None else [])]
            arguments = (f"--config={line.source}", *line.given, *config_words(values))
            found.append(Job("/".join(parts), LAUNCH, arguments))
    names = [job.name for job in found]
    if len(set(names)) < len(names):
        raise ValueError("two points of the sweep have one name as a folder: use simpler values")
    return tuple(found)


def point_name(point: Mapping[str, str]) -> str:
    """A folder's name: `optimizer.learning_rate-1e-3+steps-40`."""
    return "+".join(f"{key}-{safe(value)}" for key, value in point.items())


def safe(value: str) -> str:
    """Letters, digits, points and dashes of a value."""
    return "-".join("".join(c if c.isalnum() or c in "._" else " " if c != "-" else "-" for c in value).split()) or "-"
