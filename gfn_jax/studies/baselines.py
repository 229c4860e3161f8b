"""Rivals that are no run of a policy: prompting, decoding, the posterior itself, labels without rationales.

Each is one function, from what a job was asked for to what it found, measured by the task's own evaluator: the same
questions, samples, vote, calculator and seed as of any run with that config.

    prompting      arithmetic   the base with 0, 3, 5, 10 and 20 demonstrations in its prompt, and with a cue behind it
    decoding       arithmetic   the base decoded otherwise: chain-of-thought decoding, beams
    posterior      arithmetic   exact samples of p(Z | X, Y), and the best of N: both are told the answer
    direct         subjectivity an adapter trained on labels without rationales; the base alone; the best possible

A job leaves the files of a run (`runs.ending`), results.json last. What cannot be had is left out, and `left_out` there
says why. With `config.report` "validation" the questions are those that a run validates with, and no test question is
read: settings are chosen so.
"""

import dataclasses
import functools
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gfn_jax.evaluation.accuracy import Accuracy, measure_accuracy, measure_diversity
from gfn_jax.evaluation.arithmetic import ArithmeticEvaluator, More, Samples, Writer
from gfn_jax.evaluation.report import RESULTS, SHOWN_QUESTIONS, Findings, Sample, table
from gfn_jax.evaluation.rows import gather, parts
from gfn_jax.evaluation.subjectivity import SubjectivityEvaluator
from gfn_jax.models.checkpoint import read_config
from gfn_jax.models.language_model import LanguageModel
from gfn_jax.models.tensor_files import resolve
from gfn_jax.runs.budget import text_budget
from gfn_jax.runs.config import EMConfig, PolicyRun
from gfn_jax.runs.em import adapter_run, joined_rows
from gfn_jax.runs.ending import OWN, Report, leave
from gfn_jax.runs.rewards import build_reward
from gfn_jax.runs.tasks import make_evaluator, make_task
from gfn_jax.runs.weights import load_base
from gfn_jax.samplers.beam import Beam
from gfn_jax.samplers.cot_decoding import CoTDecoding, NumberBehind
from gfn_jax.samplers.prompting import with_cue
from gfn_jax.samplers.sampler import Problem, Sampler, Weighed
from gfn_jax.samplers.selection import BestOfN, Rejection, exact_samples, prior
from gfn_jax.sections import checked
from gfn_jax.tasks.arithmetic import Arithmetic
from gfn_jax.tasks.checking import check_positions
from gfn_jax.tasks.subjectivity import Subjectivity
from gfn_jax.text.loading import load_tokenizer, model_folder
from gfn_jax.text.tokens import encode_after
from gfn_jax.training import mesh as meshes
from gfn_jax.training.checkpoint import claim_workdir
from gfn_jax.training.loop import train
from gfn_jax.types import Query
from gfn_jax.worlds.reviews import bayes_label

SHOTS = (0, 3, 5, 10, 20)
CUE = " Let's think step by step."  # Kojima et al. 2022, arXiv:2205.11916
PATHS = 10  # of chain-of-thought decoding: the paper's k
# Of rejection sampling: questions at once, and proposals a question and round.
QUESTIONS, AT_ONCE = 4, 64


@dataclasses.dataclass(frozen=True)
class World:
    """What a baseline is measured on.

    Attributes:
        config: of the runs that it is compared with.
        workdir: the job's folder.
        task: the questions.
        evaluator: of the config.
        base: the frozen model.
    """

    config: PolicyRun
    workdir: pathlib.Path
    task: Any
    evaluator: Any
    base: LanguageModel

    @property
    def split(self) -> Report:
        """What is reported on: test, or validation where settings are chosen."""
        return self.config.values.report


@dataclasses.dataclass(frozen=True)
class Found:
    """What a baseline found.

    Attributes:
        findings: as of a run.
        facts: more for results.json.
        left_out: which of its methods could not be had -> why.
    """

    findings: Findings
    facts: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    left_out: Mapping[str, str] = dataclasses.field(default_factory=dict)


def chosen(what: str, config: PolicyRun, workdir: pathlib.Path, command: str = "") -> Callable[[], str]:
    """A job, ready to be done: it writes its files, and returns what a person reads.

    Args:
        what: a name in `BASELINES`.
        config: a run's; its evaluation, model, task and seed are read, and its `em` where an adapter is trained.
        workdir: where the job writes.
        command: what repeats it.

    Raises:
        ValueError, OSError: what is wrong with the name, the config, the model or the data, in one line.
    """
    if what not in BASELINES:
        raise ValueError(f"--what is {what!r}; there are {', '.join(BASELINES)}")
    name, baseline = BASELINES[what]
    if config.values.task != name:
        raise ValueError(f"--what={what} is of the task {name}; the config's is {config.values.task}")
    digest = claim_workdir(workdir, {**config.described, "baseline": what})
    world = opened(config, workdir)
    facts = {"task": name, "method": what, "seed": config.values.seed, "config_digest": digest, "command": command}

    def measure() -> str:
        found = baseline(world)
        left_out = {"left_out": dict(found.left_out)} if found.left_out else {}
        leave(workdir, {**facts, "report": world.split, **found.facts, **left_out}, found.findings)
        reasons = [f"left out: {method}: {reason}" for method, reason in found.left_out.items()]
        return "\n".join([found.findings.page, "", *reasons, f"Results: {workdir / RESULTS}"])

    return measure


def opened(config: PolicyRun, workdir: pathlib.Path) -> World:
    """Task, evaluator and base of a config."""
    folder = resolve(model_folder(config.model.path))
    mesh = meshes.use_mesh(config.mesh)
    _, model = read_config(folder)
    task = make_task(config, load_tokenizer(folder), model)
    evaluator = make_evaluator(config, task, model)
    if isinstance(evaluator, ArithmeticEvaluator) and config.values.report == "validation":
        settings = dataclasses.replace(evaluator.config, test_questions=evaluator.config.questions)
        evaluator = dataclasses.replace(evaluator, config=settings, test=evaluator.validation)
    base = load_base(folder, config.model.dtype, mesh, config.model.quantize)
    return World(config, workdir, task, evaluator, base)


def prompting(world: World) -> Found:
    """`shots_K`: K demonstrations before the question; `step_by_step`: "Let's think step by step." behind it.

    `step_by_step_K` has K demonstrations too, as many as the config's k-shot base.
    """
    task: Arithmetic = world.task
    evaluator: ArithmeticEvaluator = world.evaluator
    cue = encode_after(task.tokenizer, "Answer:", CUE)
    unknown = sum(token == task.tokenizer.unk_token_id for token in cue)
    writers: dict[str, Writer] = {}
    left_out: dict[str, str] = {}
    for shots, words in [*((shots, []) for shots in SHOTS), *((shots, cue) for shots in few_shots(world))]:
        name = with_shots("step_by_step", shots) if words else f"shots_{shots}"
        if words and unknown:
            left_out[name] = f"the tokenizer does not know {unknown} of the {len(cue)} tokens of {CUE.strip()!r}"
            continue
        try:
            check_shown(world, shots, len(words))
        except ValueError as error:
            left_out[name] = str(error)
        else:
            writers[name] = (
                functools.partial(shown, world, shots, words) if words else evaluator.voting(world.base, shots)
            )
    plain = {"shots_0": functools.partial(evaluator.diversity, world.base)}
    return Found(compared(world, writers, plain), left_out=left_out)


def few_shots(world: World) -> list[int]:
    """Numbers of demonstrations: none, and as many as the k-shot base has."""
    return sorted({0, world.config.evaluation.shots})


def with_shots(name: str, shots: int) -> str:
    """A method's name; with its demonstrations, if there are any."""
    return f"{name}_{shots}" if shots else name


def check_shown(world: World, shots: int, more: int) -> None:
    """Raises ValueError where there are fewer demonstrations, or they and `more` tokens exceed the positions."""
    longest = more + world.task.constraint(training=False).max_length
    for split in world.evaluator.test.values():
        check_positions(world.base.shape, world.task.queries(split, shots), longest)


def shown(world: World, shots: int, words: list[int], split: str) -> tuple[Accuracy, Samples]:
    """What the base writes behind a cue, graded."""
    query = with_cue(plain_query(world, shots, split), words)
    return world.evaluator.graded(world.base, split, jax.tree.map(np.asarray, query.prompt))


def plain_query(world: World, shots: int, split: str) -> Query:
    """The first questions of a split, for a sampler that asks no reward: nothing but the prompt is read."""
    prompt = world.evaluator.prompts(split, shots, world.evaluator.config.test_questions)
    return Query(jnp.arange(len(prompt.ids)), prompt, prompt, prompt)


def decoding(world: World) -> Found:
    """The base decoded otherwise: without demonstrations and, `_K`, with as many as the config's k-shot base has.

    `cot_decoding`: chain-of-thought decoding, ten paths whose answers vote with their confidence; `beam`: the best of
    ten beams. Where a tool writes the answers, the confidence is of what the base would have written in their place.
    """
    answer = NumberBehind.from_tokenizer(world.task.tokenizer)
    writers: dict[str, Writer] = {}
    for shots in few_shots(world):
        query_of = functools.partial(plain_query, world, shots)
        for name, sampler, kept in (("cot_decoding", CoTDecoding(answer, aggregate=True), PATHS), ("beam", Beam(), 1)):
            writers[with_shots(name, shots)] = drawn_by(world, sampler, query_of, kept=kept)
    return Found(compared(world, writers, {}))


def drawn_by(
    world: World,
    sampler: Sampler,
    query_of: Callable[[str], Query],
    prepared: Any = None,
    kept: int = PATHS,
    batch: int | None = None,
) -> Writer:
    """What a sampler of `PATHS` rows a question finds, its weights being those of the votes.

    Args:
        world: whose base is sampled.
        sampler: any; compiled once for all questions of one shape.
        query_of: a split's questions.
        prepared: what its reward keeps.
        kept: the first rows of a question that are looked at.
        batch: questions at once; as many as the evaluator's by default.
    """
    evaluator: ArithmeticEvaluator = world.evaluator
    rules, root = evaluator.rules, jax.random.key(evaluator.config.seed)

    @jax.jit
    def draw(model: LanguageModel, prepared: Any, query: Query, key: jax.Array) -> Weighed:
        return sampler.sample(model, Problem(prepared, query, rules), PATHS, key)

    def write(split: str) -> tuple[Accuracy, Samples]:
        samples: Samples = []
        weights: list[list[float]] = []
        for number, (part, count) in enumerate(parts(query_of(split), batch or evaluator.config.batch, world.base)):
            found = gather(draw(world.base, prepared, part, jax.random.fold_in(root, number)))
            rows = zip(found.rollout.completion, found.rollout.token_mask.sum(1), strict=True)
            texts = [row[:length].tolist() for row, length in rows]
            firsts = range(0, count * PATHS, PATHS)
            samples += [texts[first : first + kept] for first in firsts]
            weights += [found.log_weight[first : first + kept].tolist() for first in firsts]
        return measure_accuracy(world.task, split, samples, weights), samples

    return write


def posterior(world: World) -> Found:
    """What knows the answer: no rival, but what a rival could at best be distilled from.

    `posterior_mode`: votes of exact samples of p(Z | X, Y), by rejection from the base (`samplers.selection`), as
    many a question as the evaluator samples, of at most certificate.proposals proposals. A question of which none was
    accepted counts as wrong; `covered_K` is the share, in percent, of those that have as many as vote. `best_of_n`: of
    ten rows of the base with the reward's demonstrations the one with the largest p(Z Y | X).

    Raises:
        ValueError: the reward is not one that the base is an exact proposal for.
    """
    config, task = world.config, world.task
    evaluator: ArithmeticEvaluator = world.evaluator
    reward = build_reward(config.reward, task, world.base.shape, task.tokenizer)
    prepared, rejection = jax.jit(reward.prepare)(world.base), Rejection(reward)
    wanted, most = evaluator.config.samples, config.certificate.proposals
    if not most:
        raise ValueError("certificate.proposals is 0; --what=posterior needs some")
    root, accepted = jax.random.key(evaluator.config.seed), {}
    diverse = evaluator.config.diverse_questions

    def query_of(split: str) -> Query:
        query = jax.tree.map(lambda x: x[: evaluator.config.test_questions or None], task.queries(split))
        return prior(reward, query)

    def exact(split: str) -> tuple[Accuracy, Samples]:
        rows: Samples = []
        for number, (part, count) in enumerate(parts(query_of(split), QUESTIONS, world.base)):
            enough = max(wanted, evaluator.config.diverse_samples) if len(rows) < diverse else wanted
            problem, key = Problem(prepared, part, evaluator.rules), jax.random.fold_in(root, number)
            found = exact_samples(rejection, world.base, problem, min(AT_ONCE, most), key, enough, most)
            for ids, lengths in list(zip(found.completion, found.length, strict=True))[:count]:
                rows.append([row[:length].tolist() for row, length in zip(ids, lengths, strict=True)])
        accepted[split] = rows
        samples = [own[:wanted] or [[]] for own in rows]
        return measure_accuracy(task, split, samples), samples

    def more(split: str) -> dict[str, list[float]]:
        covered = {"covered": [100.0 * (len(rows) >= wanted) for rows in accepted[split]]}
        several = [rows[: evaluator.config.diverse_samples] or [[]] for rows in accepted[split][:diverse]]
        return covered | (measure_diversity(task, split, several) if several else {})

    best = drawn_by(world, BestOfN(reward), query_of, prepared, batch=QUESTIONS)
    return Found(compared(world, {"posterior_mode": exact, "best_of_n": best}, {"posterior_mode": more}))


def compared(world: World, writers: Mapping[str, Writer], more: Mapping[str, More]) -> Findings:
    """The evaluator's comparison, with a page of its own."""
    found = world.evaluator.compare(writers, more)
    metrics = [*world.evaluator.test]
    rows = [(name, *(values[metric] for metric in metrics)) for name, values in found.methods.items()]
    return dataclasses.replace(found, page=table((f"{world.split}, %", *metrics), rows))


def direct(world: World) -> Found:
    """Labels without rationales.

    By the name of a run's own policy (`runs.ending.OWN`): an adapter trained on "This review is {label}." of the
    training reviews, by the steps, batch and rate of the config's `em`. `zero_shot`, `few_shot` and `base` (its own
    rationales): the base. `bayes`: the best possible, where the reviews are generated.
    """
    config, split = world.config, world.split
    task: Subjectivity = world.task
    evaluator: SubjectivityEvaluator = world.evaluator
    truth = task.truth(split)
    trained, facts = supervised(world)
    probabilities = evaluator.direct(trained, split)
    found = evaluator.baselines(world.base, split)
    own = OWN[split]
    methods = {own: evaluator.describe_direct(probabilities, truth), **found.methods}
    questions = {own: evaluator.direct_questions(probabilities, truth), **found.questions}
    if config.task.path is None:
        guesses = np.array([bayes_label(task.review(split, i)) for i in range(len(truth))])
        questions["bayes"] = {"accuracy": (100.0 * (guesses == truth)).tolist()}
        methods["bayes"] = {"accuracy": float(np.mean(questions["bayes"]["accuracy"]))}
    said = probabilities.argmax(1)[:SHOWN_QUESTIONS]
    samples = [
        Sample(own, split, task.review(split, i), "", bool(label == truth[i]), task.labels[label])
        for i, label in enumerate(said)
    ]
    rows = [(name, values["accuracy"]) for name, values in methods.items() if "accuracy" in values]
    page = table((f"{split}, %", "accuracy"), rows)
    return Found(Findings(methods, page, questions, [*samples, *found.samples]), facts)


def supervised(world: World) -> tuple[LanguageModel, dict[str, Any]]:
    """The base with an adapter trained on the labels alone, next token by next token; and what that took."""
    config, task, folder = world.config, world.task, world.workdir / "supervised"
    if "em" not in config.described:
        raise ValueError("--what=direct trains an adapter as the config's section em says, and there is none")
    settings = checked(EMConfig, config.described["em"], "em.")
    claim_workdir(folder, config.described)
    truth = task.truth("train")
    answers = jax.tree.map(lambda x: x[truth], task.direct_answers())
    query = dataclasses.replace(task.queries("train"), answer=answers)
    documents, learnt = joined_rows(query, [[[]]] * len(truth))
    run = adapter_run(config, settings, folder, world.base, documents, learnt)
    trained = train(run)
    spent = text_budget(world.base.shape, config.lora, documents, settings.batch, settings.steps, trained.seconds)
    facts = {"steps": trained.steps, "seconds": round(trained.seconds, 1), "budget": spent.as_dict()}
    return world.base.adapted(trained.state.trainable), facts


# Name -> the task that it is of, and what it does.
BASELINES: dict[str, tuple[str, Callable[[World], Found]]] = {
    "prompting": ("arithmetic", prompting),
    "decoding": ("arithmetic", decoding),
    "posterior": ("arithmetic", posterior),
    "direct": ("subjectivity", direct),
}
