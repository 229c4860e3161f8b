"""What a run makes of the task that its config names: the task itself, and its evaluator."""

import dataclasses
from typing import TYPE_CHECKING, Any

from gfn_jax.evaluation.report import Evaluator
from gfn_jax.models.adapters import load_adapter
from gfn_jax.models.checkpoint import read_config
from gfn_jax.models.config import ModelConfig
from gfn_jax.models.tensor_files import resolve
from gfn_jax.runs.config import PolicyRun
from gfn_jax.runs.registry import TASKS, blamed
from gfn_jax.tasks.checking import check_task
from gfn_jax.tasks.task import Task
from gfn_jax.text.loading import model_folder

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


def make_task(run: PolicyRun, tokenizer: "PreTrainedTokenizerFast", model: ModelConfig) -> Task:
    """The run's task; a user's own is asked at once for all that a run needs of it.

    Raises:
        ValueError: what is wrong with its data or, of a user's own, with its code.
    """
    name = f"task {run.values.task}"
    with blamed(run.values.task, name):
        task = run.entry.task(run.task, tokenizer, model)
    if run.reward_adapter is not None:
        task = with_adapter(task, run.reward_adapter, run.model.path, model)
    if run.values.task not in TASKS:
        check_task(name, task, model)
    return task


def with_adapter(task: Any, adapter: str, base: str, model: ModelConfig) -> Task:
    """The task, its reward model being the base with the adapter in a PEFT folder."""
    folder = resolve(model_folder(base))
    model_type, _ = read_config(folder)
    return dataclasses.replace(task, adapter=load_adapter(adapter, model, model_type, base=folder)[1])


def make_evaluator(run: PolicyRun, task: Task, model: ModelConfig) -> Evaluator:
    """The evaluator of the run's task.

    Raises:
        ValueError: what it needs and cannot find or, of a user's own, what is wrong with its code.
    """
    with blamed(run.values.task, f"the evaluator of task {run.values.task}"):
        return run.entry.evaluator(run.evaluation, task, model, run.sampling.target_temperature)
