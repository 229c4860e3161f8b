"""Settings, chosen on validation questions with the same number of trials for every method.

Trial 0 is the config as it stands; each other one draws a value for every key of its method's space, by a generator
that (task, method, number of the trial) seed: anybody draws the same. A trial is a run with `report=validation` for
every seed of the search, which are none of those that are reported; its score is the mean over them. All trials are
written down, with the space and the command, in tuned/TASK-METHOD.json.
"""

import dataclasses
import hashlib
import json
import math
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

import numpy as np

from gfn_jax.evaluation.report import write_whole
from gfn_jax.runs.ending import OWN
from gfn_jax.studies.study import LAUNCH, Job, config_words

TUNED = pathlib.Path(__file__).parent / "tuned"
SEEDS = (10, 11)  # reports begin with 0


@dataclasses.dataclass(frozen=True)
class Factor:
    """A factor of what the config says, log-uniform; of a whole number, rounded."""

    low: float
    high: float

    def draw(self, generator: np.random.Generator, value: float) -> float | int:
        """A value, of three digits."""
        factor = math.exp(generator.uniform(math.log(self.low), math.log(self.high)))
        return max(round(value * factor), 1) if isinstance(value, int) else float(f"{value * factor:.3g}")

    def __str__(self) -> str:
        return f"the config's, times {self.low:g} to {self.high:g}, log-uniform"


@dataclasses.dataclass(frozen=True)
class Choice:
    """One of some values, all alike."""

    values: tuple[Any, ...]

    def draw(self, generator: np.random.Generator, value: Any) -> Any:
        """One of them."""
        return self.values[int(generator.integers(len(self.values)))]

    def __str__(self) -> str:
        return f"one of {', '.join(map(str, self.values))}"


Space = Mapping[str, Factor | Choice]
Overrides = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Method:
    """What is searched, and what a trial runs.

    Attributes:
        space: key of the config -> where its value is drawn from.
        fixed: overrides of every trial.
        module: what is run, with a config and a workdir.
        flags: its other flags.
    """

    space: Space
    fixed: Overrides = dataclasses.field(default_factory=dict)
    module: str = LAUNCH
    flags: tuple[str, ...] = ()


COMMON: Space = {"optimizer.learning_rate": Factor(0.25, 4.0), "steps": Factor(0.5, 2.0)}
# The target (reward, temperatures, what policy gradients maximise), the base, the adapter's targets and the evaluation
# are in none of them.
SPACES: Mapping[str, Space] = {
    "gflownet": {"objective.terms.vargrad": Factor(0.25, 4.0)},
    "weighted_sft": {"weighted_sft.proposal": Choice(("policy", "base"))},
    "ctl": {"ctl.value_rate": Factor(0.25, 4.0)},
    "dpo": {"dpo.beta": Choice((0.05, 0.1, 0.2, 0.5)), "dpo.labels": Choice(("rank", "bradley_terry"))},
    "sft": {"sft.learn": Choice(("completion", "joint", "text"))},
    "star": {"star.temperature": Choice((0.5, 0.7, 1.0)), "star.rationalisation": Choice((True, False))},
    "reinforce": {},
    "rloo": {},
    "grpo": {"grpo.epochs": Choice((1, 2, 4))},
    "ppo": {"ppo.epochs": Choice((1, 2, 4)), "ppo.gae_lambda": Choice((0.95, 1.0))},
}
OF_M_STEP: Space = {"em.learning_rate": Factor(0.25, 4.0), "em.steps": Factor(0.5, 2.0)}
METHODS: Mapping[str, Method] = {
    **{name: Method({**COMMON, **own}, {"algorithm": name}) for name, own in SPACES.items()},
    "em": Method(OF_M_STEP, {"em.rounds": 1}),
    "direct": Method(OF_M_STEP, module="gfn_jax.commands.baselines", flags=("--what=direct",)),
}
# Task -> the validated value that counts, and which way is better.
SCORES: Mapping[str, tuple[str, Literal["more", "less"]]] = {
    "arithmetic": ("accuracy", "more"),
    "subjectivity": ("accuracy", "more"),
    "infilling": ("kl", "less"),
    "continuation": ("balance_spread", "less"),
    "random_numbers": ("kl_from_target", "less"),
}


def method_of(task: str, name: str) -> Method:
    """A method's search.

    Raises:
        ValueError: none has that name, or nothing scores the task.
    """
    if name not in METHODS:
        raise ValueError(f"--algorithm is {name!r}; there are {', '.join(METHODS)}")
    if task not in SCORES:
        raise ValueError(f"nothing says what a good run of the task {task!r} is; there are {', '.join(SCORES)}")
    return METHODS[name]


def draw(task: str, name: str, number: int, config: Mapping[str, Any]) -> dict[str, Any]:
    """The overrides of a trial.

    Args:
        task: of the config.
        name: of the method.
        number: of the trial, from 0, which is the config as it stands.
        config: as nested mappings; factors are of its values.
    """
    if number == 0:
        return {}
    digest = hashlib.sha256(f"{task} {name} {number}".encode()).digest()
    generator = np.random.default_rng(int.from_bytes(digest[:8], "little"))
    return {key: how.draw(generator, value_of(config, key)) for key, how in METHODS[name].space.items()}


def value_of(config: Mapping[str, Any], key: str) -> Any:
    """What a config says of "section.field".

    Raises:
        ValueError: nothing.
    """
    value: Any = config
    for part in key.split("."):
        if not isinstance(value, Mapping) or part not in value:
            raise ValueError(f"the config has no {key}, which the search draws")
        value = value[part]
    return value


def trial_jobs(
    task: str, name: str, source: str, overrides: Overrides, number: int, given: Sequence[str], seeds: Sequence[int]
) -> tuple[Job, ...]:
    """The runs of a trial, one a seed.

    Args:
        task: of the config.
        name: of the method.
        source: the config, FILE:preset.
        overrides: of the trial.
        number: of the trial.
        given: flags of all trials (`config_words`).
        seeds: of the search; of the synthetic reviews, too.
    """
    method, data_seed = METHODS[name], ["subjectivity.data_seed"] * (task == "subjectivity")
    jobs = []
    for seed in seeds:
        own = {"report": "validation", "certificate.queries": 0, **method.fixed, **overrides}
        own |= dict.fromkeys(["seed", *data_seed], seed)
        arguments = (*method.flags, f"--config={source}", *given, *config_words(own))
        jobs.append(Job(f"trial-{number}/seed-{seed}", method.module, arguments))
    return tuple(jobs)


def score(task: str, results: Mapping[str, Any]) -> float:
    """What a run's results are worth; more is better.

    Raises:
        ValueError: they do not say.
    """
    metric, better = SCORES[task]
    own = OWN["validation"]
    found = results.get(own, {})
    if metric not in found:
        raise ValueError(f"the results have no {own}.{metric}")
    return float(found[metric]) if better == "more" else -float(found[metric])


@dataclasses.dataclass(frozen=True)
class Trial:
    """One that is done.

    Attributes:
        overrides: of the config.
        score: the mean over seeds; more is better.
        scores: seed -> its own.
        seconds: that its runs have computed, on one thread each.
    """

    overrides: Overrides
    score: float
    scores: Mapping[int, float]
    seconds: float


def best(trials: Sequence[Trial]) -> Trial:
    """The one of the highest score; of equals the first, so that a config is changed for a reason.

    Raises:
        ValueError: there is none.
    """
    if not trials:
        raise ValueError("there is no trial")
    return max(trials, key=lambda trial: trial.score)


def write(path: pathlib.Path, facts: Mapping[str, Any], trials: Sequence[Trial]) -> None:
    """Writes all trials and what they chose, whole or not at all.

    Args:
        path: the file.
        facts: task, config, method, command, date, machine and whatever else they depend on.
        trials: in order, one at least.
    """
    space = {key: str(how) for key, how in METHODS[facts["method"]].space.items()}
    rows = [dataclasses.asdict(trial) for trial in trials]
    metric, better = SCORES[facts["task"]]
    found = {**facts, "score": f"validation {metric}{'' if better == 'more' else ', negative'}, mean over seeds"}
    path.parent.mkdir(parents=True, exist_ok=True)
    record = {**found, "space": space, "trials": rows, "chosen": dict(best(trials).overrides)}
    write_whole(path, json.dumps(record, indent=1) + "\n")


def record_of(task: str, name: str, folder: pathlib.Path = TUNED) -> dict[str, Any]:
    """The trials of a method, as they were written down.

    Raises:
        ValueError: there are none.
    """
    path = file_of(task, name, folder)
    if not path.exists():
        command = f"python -m gfn_jax.commands.tune --algorithm={name}"
        raise ValueError(f"there are no trials of {name} on {task} in {folder}; {command} makes them")
    found: dict[str, Any] = json.loads(path.read_text())
    return found


def tuned(task: str, name: str, folder: pathlib.Path = TUNED) -> dict[str, Any]:
    """What the trials of a method have chosen, key of the config -> value; all keys that were searched.

    Where the config as it stood was the best, these are its values as they were then, whatever it says now. Nothing
    where there were no trials (`protocol.check_trials`).
    """
    if not file_of(task, name, folder).exists():
        return {}
    record = record_of(task, name, folder)
    return {**record["start"], **record["chosen"]}


def untuned(task: str, names: Iterable[str], folder: pathlib.Path = TUNED) -> list[str]:
    """Those of some methods that have no trials."""
    return [name for name in names if not file_of(task, name, folder).exists()]


def file_of(task: str, name: str, folder: pathlib.Path = TUNED) -> pathlib.Path:
    """Where the trials of a method are written down."""
    return folder / f"{task}-{name}.json"
