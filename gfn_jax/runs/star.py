"""STaR, the self-taught reasoner (Zelikman et al. 2022, arXiv:2203.14465): fine-tuning on what came out right.

    round k    sample rationales Z for the training queries X from the policy of round k - 1 (round 1: the base);
               keep those that the task grades as right; where none is, sample with the answer in the prompt, and
               keep those (rationalisation), as if the prompt had been X;
               train a new adapter beside the base on all that was kept: supervised fine-tuning, `algorithms.sft`

Every kept row counts, so that a query weighs as much as it has right rationales. In terms of a reward that is 1 where
the answer is right and 0 elsewhere, a round is a step of policy iteration: its optimum is q(Z | X) in proportion to
q_before(Z | X) R(Z), but for the hinted ones.

Round k is a run of its own, WORKDIR/round_K, of `steps` * star.growth^(k-1) steps. What it learns from is in its
rationales.jsonl, written once, before its first step (what the sampling took is in sampling.json); it goes on from its
own checkpoints, and a round that has left its results is not repeated. WORKDIR/results.json has the last round's
findings and a row for each; WORKDIR/adapter is the last round's. Any task will do that is `tasks.task.Graded`:
arithmetic (the last result is the answer; it is `Hinted`, too) and random numbers (a number of the support).
Subjectivity's label is not in Z but what the reward model says after it: there is nothing to grade.
"""

import dataclasses
import inspect
import json
import logging
import pathlib
import shutil
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any, Literal

import jax
import numpy as np

from gfn_jax.algorithms.entry import AlgorithmEntry
from gfn_jax.algorithms.sft import SFTConfig, SupervisedFinetuning
from gfn_jax.evaluation.report import RESULTS, read_json, write_whole
from gfn_jax.evaluation.sampling import sample_completions
from gfn_jax.models.checkpoint import read_config
from gfn_jax.models.language_model import LanguageModel
from gfn_jax.models.tensor_files import resolve, whole_folder
from gfn_jax.policy.constraint import Rules
from gfn_jax.runs.budget import sampling_budget, total
from gfn_jax.runs.config import PolicyRun
from gfn_jax.runs.ending import OWN, own_metrics
from gfn_jax.runs.policy import Parts, build_policy
from gfn_jax.runs.rounds import completed, last_words, results_of, write_rounds
from gfn_jax.runs.saved import read_run, restore_adapter
from gfn_jax.runs.tasks import make_task
from gfn_jax.runs.weights import place
from gfn_jax.sections import Count, Natural, Range, SamplingTemperature
from gfn_jax.tasks.checking import check_positions
from gfn_jax.tasks.task import Graded, Hinted, Task
from gfn_jax.text.batching import rows_as_seeds
from gfn_jax.text.loading import load_tokenizer, model_folder
from gfn_jax.training import mesh as meshes
from gfn_jax.training.checkpoint import claim_workdir, config_digest
from gfn_jax.training.loop import Run, stoppable
from gfn_jax.types import Query, Seeds

# The stream of what is sampled: fold_in(fold_in(key of the seed, RATIONALES), round), behind those of a policy's run.
RATIONALES = 6
RATIONALES_FILE, SAMPLING_FILE = "rationales.jsonl", "sampling.json"
_log = logging.getLogger("gfn_jax")


@dataclasses.dataclass(frozen=True)
class StarConfig:
    """The rounds, and what is sampled in each.

    Attributes:
        rounds: how many.
        samples: rationales a training query; as many again, hinted, where none of them is right.
        shots: demonstrations in the prompt that rationales are sampled with, in every round; they are trained, and
            evaluated, without.
        temperature: of the samples.
        batch: queries at once.
        rationalisation: sample again with the answer as a hint, where the task has hinted queries.
        learn: as of `algorithms.sft.SFTConfig`.
        growth: factor of the steps from round to round; the first has the config's `steps` (the paper: 40, then 1.2).
    """

    rounds: Count
    samples: Count
    shots: Natural
    temperature: SamplingTemperature
    batch: Count
    rationalisation: bool
    learn: Literal["completion", "joint", "text"]
    growth: Annotated[float, Range(1, 10)]


@dataclasses.dataclass(frozen=True)
class Rationale:
    """One that was graded as right.

    Attributes:
        example: the training query that it answers.
        ids: the tokens of Z, stop excluded.
        hinted: whether the answer stood in its prompt.
        text: Z.
    """

    example: int
    ids: list[int]
    hinted: bool
    text: str


@dataclasses.dataclass(frozen=True)
class STaR:
    """The rounds that are left, completed in turn, each built when the last one is done.

    Attributes:
        config: of all rounds; its `values.steps` are the first one's.
        workdir: of all rounds, and of the results.
        command: what repeats it.
        first: the number of the first round that is not done, or of the last.
        run: that round, built already: what is wrong is found before anything is trained.
    """

    config: PolicyRun
    workdir: pathlib.Path
    command: str
    first: int
    run: Run

    def complete(self) -> str:
        """Every round; then what a person reads of the last policy, and of each round.

        Raises:
            TrainingStopped, TrainingDiverged, EvaluationFailed, OSError, ValueError: as `training.loop.complete`;
            ValueError where a round keeps no rationale.
        """
        run, rounds, page = self.run, range(1, self.config.algorithm.rounds + 1), ""
        stopped = f"stopped; what the rounds have saved is in {self.workdir}; run the same command to go on"
        with stoppable(stopped):  # between two rounds, too
            for number in rounds[self.first - 1 :]:
                if number > self.first:
                    run = build_round(self.config, self.workdir, number, self.command)
                _, page = completed(run)
                _log.info(line_of(f"round {number}", row_of(self.workdir, number)))
            rows = {f"round_{number}": row_of(self.workdir, number) for number in rounds}
            runs = {f"round_{number}": round_folder(self.workdir, number) for number in rounds}
            seconds = sum(results_of(folder)["seconds"] for folder in runs.values())
            between, method = [sampling_of(folder) for folder in runs.values()], self.config.values.algorithm
            write_rounds(self.workdir, self.config, method, self.command, seconds, rows, runs, between)
            if jax.process_index() == 0:
                with whole_folder(self.workdir / "adapter") as draft:
                    shutil.copytree(run.workdir / "adapter", draft, dirs_exist_ok=True)
        return last_words(page, [f"  {line_of(name, row)}" for name, row in rows.items()], self.workdir)


def build_star(config: PolicyRun, workdir: pathlib.Path, command: str = "") -> STaR:
    """The rounds, ready to be completed, the first of them sampled for; `command` is what repeats them.

    Raises:
        ValueError, FileNotFoundError: what is wrong with a workdir, the task, the model or the data, in one line.
    """
    check_task(config)
    rounds = range(1, config.algorithm.rounds + 1)
    for number in rounds:
        claim_workdir(round_folder(workdir, number), round_config(config, number).described)
    left = (number for number in rounds if not is_done(config, workdir, number))
    first = next(left, config.algorithm.rounds)
    return STaR(config, workdir, command, first, build_round(config, workdir, first, command))


def check_task(config: PolicyRun) -> None:
    """Raises ValueError where nothing could be graded, or shown in a prompt."""
    folder, star, name = resolve(model_folder(config.model.path)), config.algorithm, config.values.task
    _, model = read_config(folder)
    task = make_task(config, load_tokenizer(folder), model)
    if not isinstance(task, Graded):
        who = f"algorithm {config.values.algorithm}"
        raise ValueError(f"{who} learns from completions that the task grades as right; the task {name} grades none")
    if star.shots and "shots" not in inspect.signature(task.queries).parameters:
        raise ValueError(f"star.shots is {star.shots}; the task {name} puts no demonstrations into a prompt: make it 0")
    for query in prompted(task, star):
        check_positions(model, query, task.constraint().max_length)


def build_round(config: PolicyRun, workdir: pathlib.Path, number: int, command: str) -> Run:
    """Supervised fine-tuning of a new adapter on what the policy of the last round has found."""
    own, folder = round_config(config, number), round_folder(workdir, number)

    def demonstrate(parts: Parts, base: LanguageModel) -> Seeds:
        kept = remembered(own, folder)
        if kept is None:
            policy = base if number == 1 else trained_policy(round_folder(workdir, number - 1), base, config)
            key = jax.random.fold_in(jax.random.fold_in(jax.random.key(config.values.seed), RATIONALES), number)
            kept, spent = sample_rationales(parts.task, config, policy, key)
            if jax.process_index() == 0:
                write_whole(folder / SAMPLING_FILE, json.dumps(spent) + "\n")
            remember(own, folder, kept)
        if not kept:
            more = "more star.samples, star.shots or another base may help"
            raise ValueError(f"round {number} of {config.values.algorithm} found no rationale that is right: {more}")
        _log.info("round %d: learning from %s", number, described(counts_of(kept)))
        examples, rows, constraint = (
            [each.example for each in kept],
            [each.ids for each in kept],
            parts.task.constraint(),
        )
        return rows_as_seeds(examples, rows, constraint.stop_id, constraint.max_length)

    return build_policy(own, folder, command, demonstrate)


def round_config(config: PolicyRun, number: int) -> PolicyRun:
    """The config of one round, as it would be if it were the last: more of them may be asked for later."""
    steps = round(config.values.steps * config.algorithm.growth ** (number - 1))
    star = {**config.described["star"], "rounds": number}
    return dataclasses.replace(
        config,
        values=dataclasses.replace(config.values, steps=steps),
        optimizer=dataclasses.replace(config.optimizer, total_steps=steps),
        described={**config.described, "star": star},
    )


def prompted(task: Any, star: StarConfig) -> list[Query]:
    """The training queries as rationales are sampled for them: plainly and, where that is done, with a hint."""
    shots = {"shots": star.shots} if star.shots else {}
    hinted = [task.hinted_queries("train", **shots)] if star.rationalisation and isinstance(task, Hinted) else []
    return [task.queries("train", **shots), *hinted]


def sample_rationales(
    task: Task, config: PolicyRun, policy: LanguageModel, key: jax.Array
) -> tuple[list[Rationale], dict[str, Any] | None]:
    """What the policy writes for the training queries, of which right ones are kept; hinted ones where there are none.

    Args:
        task: that grades them.
        config: of the round, with how they are sampled.
        policy: on its devices.
        key: randomness of the round.

    Returns:
        The right ones, and what all of them took (`Budget.as_dict`).
    """
    star, rules = config.algorithm, Rules(task.constraint(), task.environment)
    kept: list[Rationale] = []
    spent: list[dict[str, Any]] = []
    for number, query in enumerate(prompted(task, star)):
        solved = {each.example for each in kept}
        asked = [example for example in range(len(query.example_id)) if example not in solved]
        if not asked:
            break
        _log.info("sampling rationales for %d queries%s", len(asked), ", hinted" if number else "")
        prompt = jax.tree.map(lambda x, asked=asked: np.asarray(x)[asked], query.prompt)
        own, began = jax.random.fold_in(key, number), time.perf_counter()
        rows = sample_completions(policy, prompt, rules, own, star.samples, star.temperature, star.batch)
        took = time.perf_counter() - began
        spent.append(sampling_budget(policy, config.lora, prompt, rules, rows, took).as_dict())
        kept += right_ones(task, asked, rows, hinted=bool(number))
    return kept, total(spent)


def right_ones(
    task: Any, examples: Sequence[int], rows: Iterable[Sequence[list[int]]], hinted: bool
) -> list[Rationale]:
    """Of `[M][N]` completions of some training queries those that the task grades as right."""
    written = ((example, ids, task.decode(ids)) for example, each in zip(examples, rows, strict=True) for ids in each)
    return [
        Rationale(example, ids, hinted, text) for example, ids, text in written if task.grade("train", example, text)
    ]


def trained_policy(folder: pathlib.Path, base: LanguageModel, config: PolicyRun) -> LanguageModel:
    """The base with the adapter that a round ended with: the same whether this process has trained it or another."""
    saved = read_run(folder)
    adapter = restore_adapter(saved, saved.choose("newest"), base.shape)
    return base.adapted(place(adapter, meshes.make_mesh(config.mesh)))


def remember(config: PolicyRun, folder: pathlib.Path, kept: Sequence[Rationale]) -> None:
    """Writes rationales.jsonl, whole: what it belongs to, then a line a rationale."""
    if jax.process_index() == 0:
        lines = [{"config_digest": config_digest(config.described)}, *map(dataclasses.asdict, kept)]
        write_whole(folder / RATIONALES_FILE, "".join(json.dumps(line) + "\n" for line in lines))


def sampling_of(folder: pathlib.Path) -> dict[str, Any] | None:
    """What was spent on a round's rationales (`Budget.as_dict`); None where that was not written down."""
    return read_json(folder / SAMPLING_FILE) or None


def remembered(config: PolicyRun, folder: pathlib.Path) -> list[Rationale] | None:
    """What `remember` has written for this config; None where it has not."""
    if not (folder / RATIONALES_FILE).exists():
        return None
    owner, kept = read_rationales(folder)
    return kept if owner == config_digest(config.described) else None


def read_rationales(folder: pathlib.Path) -> tuple[str, list[Rationale]]:
    """The digest of the config that a round's rationales belong to, and they themselves."""
    owner, *kept = map(json.loads, (folder / RATIONALES_FILE).read_text().splitlines())
    return owner["config_digest"], [Rationale(**each) for each in kept]


def is_done(config: PolicyRun, workdir: pathlib.Path, number: int) -> bool:
    """Whether a round of this config has left its results."""
    folder = round_folder(workdir, number)
    if not (folder / RESULTS).exists():
        return False
    found, digest = results_of(folder), config_digest(round_config(config, number).described)
    return found.get("config_digest") == digest and OWN[config.values.report] in found and not found.get("pending")


def row_of(workdir: pathlib.Path, number: int) -> dict[str, Any]:
    """A finished round in a few numbers: what it has learnt from, for how long, and what its policy is worth."""
    folder = round_folder(workdir, number)
    counts = counts_of(read_rationales(folder)[1])
    return {**counts, "steps": results_of(folder)["steps"], **own_metrics(results_of(folder))}


def counts_of(kept: Sequence[Rationale]) -> dict[str, int]:
    """How many there are, how many of them came by a hint, and how many queries have one."""
    hinted, queries = sum(each.hinted for each in kept), len({each.example for each in kept})
    return {"rationales": len(kept), "rationales_by_hint": hinted, "queries_solved": queries}


def described(row: Mapping[str, Any]) -> str:
    """The counts in a row, for people."""
    by_hint = f"{row['rationales_by_hint']} by a hint"
    return f"{row['rationales']} rationales ({by_hint}) for {row['queries_solved']} queries"


def line_of(name: str, row: Mapping[str, Any]) -> str:
    """A row for people: its counts, and how accurate its policy is, where that is measured."""
    accuracies = [f"{key} {value:.4g}" for key, value in row.items() if key.startswith("accuracy")]
    return ", ".join([f"{name.replace('_', ' ')}: {described(row)}", *accuracies])


def round_folder(workdir: pathlib.Path, number: int) -> pathlib.Path:
    """Where a round runs."""
    return workdir / f"round_{number}"


ALGORITHM = AlgorithmEntry(
    make=lambda config, given: SupervisedFinetuning(given, SFTConfig(config.learn)),
    section="star",
    config=StarConfig,
    rewards=False,
    program=build_star,
)
