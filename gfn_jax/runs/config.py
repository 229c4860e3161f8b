"""What a config says of a run, read once and checked before anything is loaded: below this, no ConfigDict is seen.

    PolicyRun    a policy trained on a task
    Pretraining  a tiny base made from nothing
    Finetuning   an existing model, or an adapter beside it, trained on texts

Each holds its sections as their dataclasses, `values`, what the config holds beside them, and `described`, the plain
values that a workdir's config.json and its digest are made of.
"""

import dataclasses
from collections.abc import Collection, Mapping
from typing import Annotated, Any, Literal

import ml_collections

from gfn_jax.algorithms.entry import AlgorithmEntry
from gfn_jax.algorithms.language_model import Phase
from gfn_jax.algorithms.sampling import ExplorationConfig, ReplayConfig, Sampling, SamplingConfig
from gfn_jax.models.config import BaseModelConfig, ModelConfig
from gfn_jax.models.lora import LoraConfig
from gfn_jax.objectives import Objective
from gfn_jax.objectives.mixture import OF_PAIRS
from gfn_jax.runs.asynchronous import AsynchronousConfig, check_asynchronous
from gfn_jax.runs.certifying import CertificateConfig
from gfn_jax.runs.registry import ALGORITHMS, algorithm_entry, blamed, task_entry
from gfn_jax.runs.rewards import RewardConfig
from gfn_jax.sections import (
    LARGEST_INT,
    Count,
    Natural,
    Nonnegative,
    Positive,
    Range,
    RunConfig,
    Share,
    check,
    check_secrets,
    checked,
    described,
    section,
    top_level,
    values_of,
)
from gfn_jax.tasks.task import TaskEntry
from gfn_jax.tasks.texts import TextConfig
from gfn_jax.training.mesh import MeshConfig
from gfn_jax.training.optimizer import OptimizerConfig
from gfn_jax.worlds.corpora import CorpusKind, corpus_kind

# Keys of `model` that came after runs had been described: a config without one means this, and so does a description.
LATER: Mapping[str, Any] = {"remat_policy": None, "cache_dtype": None, "attention": "xla"}
UNKNOWN_STEPS = LARGEST_INT  # of so many epochs of texts that are not read yet


@dataclasses.dataclass(frozen=True)
class PolicyConfig(RunConfig):
    """What the config of a policy's training holds beside its sections.

    Attributes:
        algorithm: how it is trained: a name in `runs.registry.ALGORITHMS`, or "package.module:NAME" of your own.
        steps: of training, those before the first update included.
        start: whose adapter the policy begins with: the workdir of a run that has ended, or a PEFT folder; None for a
            fresh one, with which it begins as the base.
        report: what the end of a run reads: the test split, or validation alone (`runs.ending`).
    """

    algorithm: str
    steps: Count
    start: str | None
    report: Literal["test", "validation"]


@dataclasses.dataclass(frozen=True)
class ObjectiveConfig:
    """`objectives.Objective` as a config has it.

    Attributes:
        terms: name -> coefficient; 0 leaves a term out.
        normalization, and what follows: as there.
    """

    terms: Mapping[str, Nonnegative]
    normalization: Literal["paper_sum", "released_mean", "row_mean"]
    subtb_lambda: Annotated[float, Range(0, 2)]
    window: Count | None
    huber: Positive | None
    log_z: Literal["learnt", "amortised", "frozen"]
    log_z_rate: Positive
    log_z_samples: Count
    ratio_clip: Share
    contrastive_margin: Nonnegative
    imitation_steps: Natural
    smoothing_steps: Natural


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """Where a task's data lies.

    Attributes:
        path: a file or a folder, as the task's `path` says; None for the data that the project generates.
    """

    path: str | None


@dataclasses.dataclass(frozen=True)
class EMConfig:
    """The rounds of expectation maximisation, and what an M-step does.

    Attributes:
        rounds: of an E-step and an M-step each; 0 trains the policy alone.
        samples: reasons a training query that an M-step reads.
        steps: of an M-step.
        batch: rows (X, Z, Y) a step.
        learning_rate, warmup_steps: of an M-step; the rest of the optimizer is the policy's.
    """

    rounds: Natural
    samples: Count
    steps: Count
    batch: Count
    learning_rate: Nonnegative
    warmup_steps: Natural

    def __post_init__(self):
        if self.warmup_steps >= self.steps:
            raise ValueError(f"warmup_steps is {self.warmup_steps}; it must be less than em.steps, {self.steps}")


@dataclasses.dataclass(frozen=True)
class PretrainingConfig(RunConfig):
    """What the config of a pretraining holds beside its sections.

    Attributes:
        corpus: a name in `worlds.corpora.CORPORA`.
        start: the model whose weights are trained further, of the same shape and vocabulary; None for random ones.
        batch: documents a step.
        seq_length: tokens a document is cut at.
    """

    corpus: str
    start: str | None
    batch: Count
    seq_length: Count


@dataclasses.dataclass(frozen=True)
class FinetuningConfig(RunConfig):
    """What the config of a fine-tuning holds beside its sections.

    Attributes:
        mode: what is trained: all weights, or an adapter.
        epochs: over the documents.
        steps: counts instead of the epochs where it is set.
        batch: documents a step, in all micro-batches.
        micro_batches: parts that a step is computed in.
    """

    mode: Literal["full", "lora"]
    epochs: Positive
    steps: Count | None
    batch: Count
    micro_batches: Count

    def __post_init__(self):
        if self.batch % self.micro_batches:
            raise ValueError(f"batch is {self.batch}; it does not divide into {self.micro_batches} micro_batches")


@dataclasses.dataclass(frozen=True)
class PerplexityConfig:
    """When a fine-tuning measures itself on held-out text.

    Attributes:
        every: steps between two measurements.
        batch: documents at once.
    """

    every: Count
    batch: Count


@dataclasses.dataclass(frozen=True)
class PolicyRun:
    """A policy's training on a task.

    Attributes:
        method: what `values.algorithm` names.
        algorithm: its own section, a `method.config`; None where it has none.
        sampling: what a step samples.
        objective: what it minimises; None for one that minimises something of its own.
        entry: what `values.task` names.
        task: the task's own section, an `entry.config`.
        evaluation: its evaluator's, an `entry.evaluation`.
        em: the rounds that this is the E-step of, or None.
        asynchronous: who samples.
    """

    values: PolicyConfig
    model: BaseModelConfig
    mesh: MeshConfig
    lora: LoraConfig
    method: AlgorithmEntry
    algorithm: Any
    sampling: Sampling
    objective: Objective | None
    optimizer: OptimizerConfig
    reward: RewardConfig
    entry: TaskEntry
    task: Any
    evaluation: Any
    certificate: CertificateConfig
    em: EMConfig | None
    asynchronous: AsynchronousConfig
    described: Mapping[str, Any]

    @property
    def reward_adapter(self) -> str | None:
        """The PEFT folder of the reward model's adapter; None for the base, and for a task that knows no other."""
        return getattr(self.task, "reward_adapter", None)


@dataclasses.dataclass(frozen=True)
class Pretraining:
    """A tiny base, made from nothing.

    Attributes:
        corpus: what `values.corpus` names.
        phases: in the order of their names.
        documents: what each phase's are made of, a `corpus.config` each.
        model: its shape, the corpus's vocabulary included.
    """

    values: PretrainingConfig
    corpus: CorpusKind
    phases: tuple[Phase, ...]
    documents: tuple[Any, ...]
    model: ModelConfig
    optimizer: OptimizerConfig
    described: Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Finetuning:
    """An existing model, or an adapter beside it, trained on texts.

    Attributes:
        optimizer: for `UNKNOWN_STEPS` where the number of documents is to decide.
    """

    values: FinetuningConfig
    model: BaseModelConfig
    mesh: MeshConfig
    lora: LoraConfig
    data: TextConfig
    optimizer: OptimizerConfig
    evaluation: PerplexityConfig
    described: Mapping[str, Any]


def read(config: ml_collections.ConfigDict, given: Collection[str] = ()) -> PolicyRun | Pretraining | Finetuning:
    """The run that a config describes; its `task` says of which kind.

    Args:
        config: the whole of it.
        given: the keys that the command line has set, which must be read by somebody.

    Raises:
        ValueError: a section, a field or a value that is not as it must be, named `section.field`.
    """
    top_level(RunConfig, config)  # what any run has: a config of another command is none of these
    check_secrets(config)
    if config.task == "pretrain":
        return read_pretraining(config)
    if config.task == "finetune":
        return read_finetuning(config)
    return read_policy_run(config, given)


def read_policy_run(config: ml_collections.ConfigDict, given: Collection[str] = ()) -> PolicyRun:
    """As `read`, of a config whose task is one."""
    values = top_level(PolicyConfig, config)
    method, asynchronous = algorithm_entry(values.algorithm), section(AsynchronousConfig, config, "asynchronous")
    config = without_unread(config, method, given)
    sampling = read_sampling(config, method)
    if sampling.first_update >= values.steps:
        first = f"replay.discovery_steps is {sampling.first_update}"
        raise ValueError(f"{first}; it must be less than steps, {values.steps}")
    learning = values.steps - sampling.first_update
    entry = task_entry(values.task)
    with blamed(values.task, f"task {values.task}"):
        task = read_task(config, entry)
    with blamed(values.task, f"the evaluator of task {values.task}"):
        evaluation: Any = section(entry.evaluation, config, "evaluation")
    em = read_em(config, task, method)
    in_turn = em is not None or method.program is not None
    check_asynchronous(asynchronous, method.off_policy, values.algorithm, in_turn)
    if values.start is not None and in_turn:
        several = "em.rounds" if em is not None else f"algorithm {values.algorithm!r}"
        raise ValueError(f"start is given, and the runs of {several} begin with fresh adapters: leave it out")
    return PolicyRun(
        values=values,
        model=read_model(config),
        mesh=section(MeshConfig, config, "mesh"),
        lora=section(LoraConfig, config, "lora"),
        method=method,
        algorithm=section(method.config, config, method.section) if method.config and method.section else None,
        sampling=sampling,
        objective=read_objective(config, sampling, learning) if method.objective else None,
        optimizer=section(OptimizerConfig, config, "optimizer", total_steps=learning),
        reward=section(RewardConfig, config, "reward"),
        entry=entry,
        task=task,
        evaluation=evaluation,
        certificate=section(CertificateConfig, config, "certificate"),
        em=em,
        asynchronous=asynchronous,
        described=described_run(config),
    )


def described_run(config: ml_collections.ConfigDict) -> dict[str, Any]:
    """What a policy's run depends on.

    One that begins as the base and samples for itself is described as it was before there was anything else; of
    samplers, the staleness counts, and not how many there are, nor where.
    """
    found = described_training(config)
    if found["start"] is None:
        del found["start"]
    if found["asynchronous"]["samplers"]:
        found["asynchronous"] |= {"samplers": 1, "local": True}
    else:
        del found["asynchronous"]
    return found


def described_training(config: ml_collections.ConfigDict) -> dict[str, Any]:
    """What any run on a base depends on, without the keys of `model` that are `LATER` and as they were before."""
    found = described(config)
    found["model"] = {key: value for key, value in found["model"].items() if key not in LATER or value != LATER[key]}
    return found


def read_model(config: ml_collections.ConfigDict, **fixed: Any) -> BaseModelConfig:
    """The base's section; it need not have the keys that are `LATER`, and may not have those that are `fixed`."""
    later = {key: value for key, value in LATER.items() if key not in fixed}
    return checked(BaseModelConfig, {**later, **values_of(config, "model")}, "model.", **fixed)


def read_task(config: ml_collections.ConfigDict, entry: TaskEntry) -> Any:
    """The task's own section, with the path of its data where it has a field for one.

    Raises:
        ValueError: a path is given to a task that has none; as for `section`.
    """
    path = section(DataConfig, config, "data").path
    if "path" in {field.name for field in dataclasses.fields(entry.config)}:
        return section(entry.config, config, entry.section, path=path)
    if path is not None:
        raise ValueError(f"data.path is {path!r}; the task {config.task} reads no files")
    return section(entry.config, config, entry.section)


def without_unread(
    config: ml_collections.ConfigDict, method: AlgorithmEntry, given: Collection[str]
) -> ml_collections.ConfigDict:
    """The config without the sections of other algorithms, for which nobody asked.

    Raises:
        ValueError: somebody did: the command line gives one of them a value; or no algorithm and no task reads it.
    """
    fixed = {"model", "data", "mesh", "lora", "sampling", "optimizer", "reward", "evaluation", "certificate", "em"}
    fixed |= {"asynchronous"}
    fixed |= {task_entry(config.task).section}
    optional = {"exploration", "replay", "objective", *ALGORITHMS}
    for name in sorted(config):
        if hasattr(config[name], "items") and name not in fixed | optional | method.reads:
            raise ValueError(f"the config has a section {name!r}, which nothing reads: delete it")
    unread = optional - method.reads
    for key in given:
        if key.partition(".")[0] in unread:
            raise ValueError(f"{key} is given, and algorithm {config.algorithm!r} does not read it")
    return ml_collections.ConfigDict({name: config.get_ref(name) for name in config if name not in unread})


def read_sampling(config: ml_collections.ConfigDict, method: AlgorithmEntry) -> Sampling:
    """What a step samples, as the algorithm has it."""
    budget = section(SamplingConfig, config, "sampling")
    if not method.off_policy:
        return Sampling(budget)
    exploration, replay = section(ExplorationConfig, config, "exploration"), section(ReplayConfig, config, "replay")
    return Sampling(budget, exploration, replay)


def read_objective(config: ml_collections.ConfigDict, sampling: Sampling, steps: int) -> Objective:
    """The objective, for what a step samples, and so many steps that learn."""
    values, samples = section(ObjectiveConfig, config, "objective"), sampling.samples
    for name in OF_PAIRS:
        if values.terms.get(name) and samples < 2:
            raise ValueError(f"sampling.samples is {samples}; objective.terms.{name} needs 2 or more")
    if values.terms.get("flowrl") and any(values.terms.get(name) for name in ("tb", "raptb")):
        raise ValueError("objective.terms.flowrl has another log Z than tb and raptb, and there is only one: choose")
    for name in ("imitation_steps", "smoothing_steps"):
        value = getattr(values, name)
        if value and not sampling.replayed_samples:
            raise ValueError(f"objective.{name} is {value}; it needs replay.samples above 0")
        if value > steps:
            raise ValueError(f"objective.{name} is {value}; {steps} steps learn at all")
    terms = tuple((name, float(weight)) for name, weight in values.terms.items() if weight)
    rest = {name: value for name, value in vars(values).items() if name != "terms"}
    return Objective(terms, samples_per_query=samples, **rest)


def read_em(config: ml_collections.ConfigDict, task: Any, method: AlgorithmEntry) -> EMConfig | None:
    """The rounds, if there are to be any, around the task of that section."""
    if "em" not in config or not config.em.rounds:
        return None
    em = section(EMConfig, config, "em")
    if not hasattr(task, "reward_adapter"):
        raise ValueError(f"em.rounds is {em.rounds}; the task {config.task!r} has no reward_adapter to learn")
    if method.program is not None:
        raise ValueError(f"em.rounds is {em.rounds}; algorithm {config.algorithm!r} has rounds of its own: make it 0")
    return em


def read_pretraining(config: ml_collections.ConfigDict) -> Pretraining:
    """As `read`, of a config whose task is `pretrain`."""
    values = top_level(PretrainingConfig, config)
    corpus = corpus_kind(values.corpus)
    phases, documents = read_phases(config, values, corpus)
    steps = sum(phase.steps for phase in phases)
    shape = dict(values_of(config, "model"))
    shape |= {"vocab_size": len(corpus.build_tokenizer()), "rotary_dim": shape.get("head_dim")}
    return Pretraining(
        values=values,
        corpus=corpus,
        phases=phases,
        documents=documents,
        model=checked(ModelConfig, shape, "model.", partial=True),
        optimizer=section(OptimizerConfig, config, "optimizer", total_steps=steps),
        described=described(config),
    )


def read_phases(
    config: ml_collections.ConfigDict, values: PretrainingConfig, corpus: CorpusKind
) -> tuple[tuple[Phase, ...], tuple[Any, ...]]:
    """The phases in the order of their names, and what each one's documents are made of."""
    phases: list[Phase] = []
    corpora: list[Any] = []
    for number, (name, phase) in enumerate(sorted(values_of(config, "phases").items())):
        fields = {field: value for field, value in phase.items() if field != "steps"}
        fixed = {"seq_length": values.seq_length, "seed": 10 * values.seed + number}
        corpora.append(checked(corpus.config, fields, f"phases.{name}.", partial=True, **fixed))
        first = phases[-1].end if phases else 0
        check(Phase, {"steps": phase.get("steps")}, f"phases.{name}.")
        phases.append(Phase(phase.steps, first, first + corpora[-1].documents))
    return tuple(phases), tuple(corpora)


def read_finetuning(config: ml_collections.ConfigDict) -> Finetuning:
    """As `read`, of a config whose task is `finetune`."""
    values = top_level(FinetuningConfig, config)
    steps = values.steps or UNKNOWN_STEPS
    return Finetuning(
        values=values,
        model=read_model(config, quantize="none", cache_dtype=None, attention="xla"),
        mesh=section(MeshConfig, config, "mesh"),
        lora=section(LoraConfig, config, "lora"),
        data=section(TextConfig, config, "data"),
        optimizer=section(OptimizerConfig, config, "optimizer", total_steps=steps),
        evaluation=section(PerplexityConfig, config, "evaluation"),
        described=described_training(config),
    )
