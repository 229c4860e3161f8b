"""The tasks, by the name that a config's `task` gives: how each and its evaluator are made from the config.

`config[config.task]` is the task's own section, `config.evaluation` its evaluator's.
"""

import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import ml_collections

from gfn_jax.errors import user_code
from gfn_jax.evaluation.arithmetic import ArithmeticEvaluator, EvaluationConfig
from gfn_jax.evaluation.continuation import ContinuationEvaluationConfig, ContinuationEvaluator
from gfn_jax.evaluation.infilling import InfillingEvaluationConfig, InfillingEvaluator
from gfn_jax.evaluation.random_numbers import RandomNumbersEvaluationConfig, RandomNumbersEvaluator
from gfn_jax.evaluation.report import Evaluator
from gfn_jax.evaluation.subjectivity import SubjectivityEvaluationConfig, SubjectivityEvaluator
from gfn_jax.models.adapters import load_adapter
from gfn_jax.models.checkpoint import read_config
from gfn_jax.models.config import ModelConfig
from gfn_jax.models.tensor_files import resolve
from gfn_jax.sections import imported, section
from gfn_jax.tasks.arithmetic import Arithmetic, ArithmeticConfig
from gfn_jax.tasks.checking import check_task
from gfn_jax.tasks.continuation import Continuation, ContinuationConfig
from gfn_jax.tasks.infilling import Infilling, InfillingConfig
from gfn_jax.tasks.random_numbers import RandomNumbers, RandomNumbersConfig
from gfn_jax.tasks.subjectivity import Subjectivity, SubjectivityConfig
from gfn_jax.tasks.task import Task
from gfn_jax.text.loading import model_folder

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


@dataclasses.dataclass(frozen=True)
class TaskEntry:
    """How a task and its evaluator are made.

    Attributes:
        task: from (config, tokenizer, model).
        evaluator: from (config, task, model).
        stand_in: the shipped model whose tokenizer counts tokens where a model's own is not at hand (`--dry_run`).
    """

    task: "Callable[[ml_collections.ConfigDict, PreTrainedTokenizerFast, ModelConfig], Task]"
    evaluator: Callable[[ml_collections.ConfigDict, Any, ModelConfig], Evaluator]
    stand_in: str = "tiny-arithmetic"


def arithmetic(
    config: ml_collections.ConfigDict, tokenizer: "PreTrainedTokenizerFast", model: ModelConfig
) -> Arithmetic:
    """Chains of calculator calls."""
    return Arithmetic(section(ArithmeticConfig, config, "arithmetic"), tokenizer, model.vocab_size)


def arithmetic_evaluator(
    config: ml_collections.ConfigDict, task: Arithmetic, model: ModelConfig
) -> ArithmeticEvaluator:
    """Accuracy by number of operands; on the released data also without the questions it shares with training."""
    test = {f"accuracy_{k}": f"test_{k}" for k in (3, 4, 5)}
    if task.config.data_dir is not None:
        test |= {f"accuracy_{k}_decontaminated": f"test_{k}_decontaminated" for k in (3, 4, 5)}
    validation = {f"accuracy_{k}": f"validation_{k}" for k in (3, 4, 5)}
    settings = section(EvaluationConfig, config, "evaluation")
    check_shots(settings.shots, len(task.splits["context"]), "the demonstrations of arithmetic.reward_shots")
    return ArithmeticEvaluator(model, task, settings, validation, test)


def continuation(
    config: ml_collections.ConfigDict, tokenizer: "PreTrainedTokenizerFast", model: ModelConfig
) -> Continuation:
    """The next sentence."""
    return Continuation(section(ContinuationConfig, config, "continuation"), tokenizer, model.vocab_size)


def continuation_evaluator(
    config: ml_collections.ConfigDict, task: Continuation, model: ModelConfig
) -> ContinuationEvaluator:
    """Likelihood and diversity beside the base's other samplers."""
    settings = section(ContinuationEvaluationConfig, config, "evaluation")
    return ContinuationEvaluator(model, task, settings, config.gflownet.reward_temperature_end)


def infilling(config: ml_collections.ConfigDict, tokenizer: "PreTrainedTokenizerFast", model: ModelConfig) -> Infilling:
    """The fourth sentence of a story."""
    return Infilling(section(InfillingConfig, config, "infilling"), tokenizer, model.vocab_size)


def infilling_evaluator(config: ml_collections.ConfigDict, task: Infilling, model: ModelConfig) -> InfillingEvaluator:
    """The exact posterior of generated stories, text metrics and a judge for all."""
    settings = section(InfillingEvaluationConfig, config, "evaluation")
    return InfillingEvaluator(model, task, settings, config.gflownet.reward_temperature_end)


def subjectivity(
    config: ml_collections.ConfigDict, tokenizer: "PreTrainedTokenizerFast", model: ModelConfig
) -> Subjectivity:
    """Reasons for a label; the reward model is the base, or the base with the last M-step's adapter."""
    settings = section(SubjectivityConfig, config, "subjectivity")
    if settings.reward_adapter is None:
        return Subjectivity(settings, tokenizer, model.vocab_size)
    folder = resolve(model_folder(config.model.path))
    model_type, _ = read_config(folder)
    _, adapter = load_adapter(settings.reward_adapter, model, model_type, base=folder)
    return Subjectivity(settings, tokenizer, model.vocab_size, adapter)


def subjectivity_evaluator(
    config: ml_collections.ConfigDict, task: Subjectivity, model: ModelConfig
) -> SubjectivityEvaluator:
    """Votes of rationales."""
    settings = section(SubjectivityEvaluationConfig, config, "evaluation")
    check_shots(settings.shots, len(task.splits["train"]), "subjectivity.labels")
    return SubjectivityEvaluator(model, task, settings)


def check_shots(shots: int, there: int, what: str) -> None:
    """Raises ValueError where the few-shot baseline would have fewer examples in its prompt than its name says."""
    if shots > there:
        raise ValueError(f"evaluation.shots is {shots}; there are {there} examples for a prompt, {what}")


def random_numbers(
    config: ml_collections.ConfigDict, tokenizer: "PreTrainedTokenizerFast", model: ModelConfig
) -> RandomNumbers:
    """Integers from a given distribution."""
    return RandomNumbers(section(RandomNumbersConfig, config, "random_numbers"), tokenizer, model.vocab_size)


def random_numbers_evaluator(
    config: ml_collections.ConfigDict, task: RandomNumbers, model: ModelConfig
) -> RandomNumbersEvaluator:
    """Exact distances to the distribution."""
    return RandomNumbersEvaluator(model, task, section(RandomNumbersEvaluationConfig, config, "evaluation"))


TASKS: dict[str, TaskEntry] = {
    "arithmetic": TaskEntry(arithmetic, arithmetic_evaluator),
    "continuation": TaskEntry(continuation, continuation_evaluator, stand_in="tiny-stories"),
    "infilling": TaskEntry(infilling, infilling_evaluator, stand_in="tiny-stories"),
    "subjectivity": TaskEntry(subjectivity, subjectivity_evaluator, stand_in="tiny-reviews"),
    "random_numbers": TaskEntry(random_numbers, random_numbers_evaluator, stand_in="tiny-numbers"),
}


def entry_of(name: str) -> TaskEntry:
    """One of `TASKS` or, for "package.module:NAME", a user's own.

    Raises:
        ValueError: it is neither.
    """
    if ":" not in name:
        if name not in TASKS:
            raise ValueError(f"task {name!r} is unknown; there are {', '.join(TASKS)}, and your own as 'module:NAME'")
        return TASKS[name]
    entry = imported(name)
    if not isinstance(entry, TaskEntry):
        raise ValueError(f"{name} must be a gfn_jax.runs.tasks.TaskEntry, not {type(entry).__name__}")
    return entry


def make_task(config: ml_collections.ConfigDict, tokenizer: "PreTrainedTokenizerFast", model: ModelConfig) -> Task:
    """The config's task; a user's own is asked at once for all that a run needs of it.

    Raises:
        ValueError: what is wrong with its section or, of a user's own, with its code.
    """
    entry = entry_of(config.task)
    if config.task in TASKS:
        return entry.task(config, tokenizer, model)
    name = f"task {config.task}"
    with user_code(name, passed=(ValueError, OSError)):  # what it says of its section and files
        task = entry.task(config, tokenizer, model)
    check_task(name, task, model)
    return task


def make_evaluator(config: ml_collections.ConfigDict, task: Task, model: ModelConfig) -> Evaluator:
    """The evaluator of the config's task.

    Raises:
        ValueError: what is wrong with its section or, of a user's own, with its code.
    """
    entry = entry_of(config.task)
    if config.task in TASKS:
        return entry.evaluator(config, task, model)
    # Passed is what it says of its section and files.
    with user_code(f"the evaluator of task {config.task}", passed=(ValueError, OSError)):
        return entry.evaluator(config, task, model)
