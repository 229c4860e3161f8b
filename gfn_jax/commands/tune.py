r"""Settings of a method, chosen on validation questions: every trial is written down (`gfn_jax/studies/tuning.py`).

python -m gfn_jax.commands.tune --config=configs/arith.py:tiny --algorithm=sft

--algorithm         a config's algorithm; em or direct (subjectivity, with configs/subj.py:em)
--trials=N          how many, the config as it stands being the first; the same for all methods that are compared
--seeds=10,11       of every trial; reports use others
--config.KEY=VALUE  changes one value of the config in all trials
--workdir=DIR       where the trials run, runs/tune/TASK-METHOD by default; what was interrupted there goes on
--out=FILE          gfn_jax/studies/tuned/TASK-METHOD.json by default, written after every trial
--workers=N         runs at once, each on one thread
"""

import contextlib
import datetime
import pathlib
import re
import shlex
import sys
from collections.abc import Iterator

from absl import flags

from gfn_jax.commands import cli, cluster
from gfn_jax.commands.config_flag import define_config, given_keys, split_config
from gfn_jax.commands.progress import progress
from gfn_jax.commands.reproduce import checkout, machine, meaning
from gfn_jax.errors import TrainingStopped
from gfn_jax.studies.study import config_words

EXAMPLE = "--config=FILE:preset --algorithm=NAME"
TEXT = {
    "algorithm": (None, "the method"),
    "workdir": (None, "where the trials run"),
    "out": (None, "the file that they are written down in"),
}
PLACE = re.compile("--?(workdir|out|workers)=")  # where, and how many at once: what is found does not depend on it
NUMBERS = {"trials": (8, "how many"), "workers": (2, "runs at once")}


def main(argv: list[str], doc: str | None) -> int:
    """Runs the command and returns its exit code."""
    cli.configure_jax()
    return cli.run(argv, doc, parse, lambda values: prepare(values, argv), listen=lambda values: progress(values.debug))


def parse(argv: list[str]) -> flags.FlagValues:
    """The flags of a command line; the config's overrides are applied, and kept as words in `given`.

    Raises:
        flags.Error: an unknown flag, or a value of the wrong type.
        ValueError: no config or method, a number that makes no sense, or words that are no flag.
        KeyError, AttributeError: a config key that is not there.
        OSError: a config file that is not there.
    """
    words, source = split_config(argv)
    values = cli.common_flags(TEXT, NUMBERS)
    flags.DEFINE_list("seeds", ["10", "11"], "of every trial", flag_values=values)
    flags.DEFINE_string("source", source, "the config's name", flag_values=values)
    define_config(values, words, source)
    needed = dict.fromkeys(("config", "algorithm"), f"write {EXAMPLE}")
    values = cli.read(values, words, EXAMPLE, **needed)
    if values.help:
        return values
    cli.check_counts(values, "trials", "workers")
    cli.whole_numbers(values, "seeds")
    return values


def prepare(values: flags.FlagValues, argv: list[str]) -> Iterator[str]:
    """Checks every trial's arguments; they run when the words are asked for."""
    cluster.alone()
    from gfn_jax.studies import plan, tuning

    config = values.config.to_dict()
    task, name, seeds = config["task"], values.algorithm, cli.whole_numbers(values, "seeds")
    tuning.method_of(task, name)
    given = list(config_words({key: tuning.value_of(config, key) for key in given_keys(values)}))
    root, workdir = checkout(), pathlib.Path(values.workdir or f"runs/tune/{task}-{name}").resolve()
    overrides = [tuning.draw(task, name, number, config) for number in range(values.trials)]
    with contextlib.chdir(root):
        planned = [
            plan.make_plan(tuning.trial_jobs(task, name, values.source, own, number, given, seeds), workdir, meaning)
            for number, own in enumerate(overrides)
        ]
    out = pathlib.Path(values.out) if values.out else tuning.file_of(task, name)
    facts = {
        "task": task,
        "config": values.source,
        "given": given,
        "method": name,
        "start": {key: tuning.value_of(config, key) for key in tuning.METHODS[name].space},
        "seeds": list(seeds),
        "command": shlex.join(
            ["python", "-m", "gfn_jax.commands.tune", *(word for word in argv[1:] if not PLACE.match(word))]
        ),
        "date": datetime.date.today().isoformat(),
        "machine": machine(),
    }
    return search(facts, overrides, planned, values.workers, root, workdir, out.resolve())


def search(
    facts: dict,
    overrides: list[dict],
    planned: list[tuple],
    workers: int,
    root: pathlib.Path,
    workdir: pathlib.Path,
    out: pathlib.Path,
) -> Iterator[str]:
    """Runs the trials, a few at once, and writes down those that are done, in `out`, after every few.

    Raises:
        TrainingStopped: a signal came.
        RuntimeError: a trial failed: its score is not known, and the search not a fair one.
    """
    from gfn_jax.studies import plan, pool, tuning

    trials: list[tuning.Trial] = []
    together = max(workers // len(planned[0]), 1)
    for first in range(0, len(planned), together):
        part = planned[first : first + together]
        outcome = pool.run([one for trial in part for one in trial], workers, root, workdir)
        if outcome.signal is not None:
            raise TrainingStopped("stopped; run the same command to go on", exit_code=128 + outcome.signal)
        if outcome.failed:
            named = "; ".join(f"{job}: {line}" for job, line in outcome.failed.items())
            raise RuntimeError(f"the search is not complete, {named}")
        for own, trial in zip(overrides[first : first + together], part, strict=True):
            found = plan.found(trial)
            scores = {
                seed: tuning.score(facts["task"], found[one.job.name].results)
                for seed, one in zip(facts["seeds"], trial, strict=True)
            }
            seconds = sum(one.job["cpu_seconds"] for one in found.values())
            mean = sum(scores.values()) / len(scores)
            trials.append(tuning.Trial(own, round(mean, 6), scores, round(seconds, 1)))
            tuning.write(out, facts, trials)
            yield f"trial {len(trials) - 1}: {mean:.4g}  {own or 'the config as it stands'}"
    yield f"chosen: {dict(tuning.best(trials).overrides) or 'the config as it stands'}; all trials: {out}"


if __name__ == "__main__":
    sys.exit(main(sys.argv, __doc__))
