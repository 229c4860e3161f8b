"""What every task offers. A task never sees an algorithm: it says what is wanted, not how it is learnt."""

import dataclasses
from collections.abc import Callable, Hashable
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import jax
import numpy as np
from jaxtyping import Array, Bool, Float

from gfn_jax.evaluation.report import Evaluator
from gfn_jax.interfaces import Environment, Reward
from gfn_jax.models.config import ModelConfig
from gfn_jax.models.language_model import LanguageModel
from gfn_jax.policy.constraint import Constraint
from gfn_jax.types import Query, Rollout, Seeds

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


class Task(Protocol):
    """One problem family on one tokenizer: its queries, how completions are written, rewarded and graded."""

    @property
    def environment(self) -> Environment:
        """The tool, or `NoTool`."""

    def queries(self, split: str) -> Query:
        """All of a split's queries; `train` is the table that steps draw from."""

    def query_weight(self) -> Float[np.ndarray, " E"]:
        """How often each training query is drawn, relative to the others."""

    def constraint(self, training: bool = True) -> Constraint:
        """Vocabulary, stop and lengths, while training and at test."""

    def reward(self, model: ModelConfig) -> Reward:
        """What the policy is trained to sample in proportion to, `model` being the base's shape."""

    def seeds(self) -> Seeds:
        """Completions that the replay buffer starts with; none is fine."""

    def decode(self, ids: list[int]) -> str:
        """Z as text."""


@runtime_checkable
class SeededByBase(Protocol):
    """A task whose seeds the base itself writes, instead of `seeds`."""

    def prompted_seeds(self, base: LanguageModel, key: jax.Array) -> Seeds:
        """E queries' seeds, the rows of one query adjacent: [E] ids, [E * N, T] completions. Pure in `base`."""


@runtime_checkable
class Validating(Protocol):
    """A task that knows on the device which completions are what they should be: not how likely, but whether right."""

    def valid(self, query: Query, rollout: Rollout) -> Bool[Array, " B"]:
        """Of B = Q * N completions, rows of one training query adjacent. Pure and jittable."""


@runtime_checkable
class Graded(Protocol):
    """A task that can tell a right completion by itself; one whose `queries` take `shots` can show it how, too."""

    def grade(self, split: str, example: int, completion: str) -> bool:
        """Whether Z, as text, is right for the split's query of that number."""


@runtime_checkable
class Modal(Protocol):
    """A task that can name what its posterior should cover: a number, a right chain."""

    def mode(self, split: str, example: int, completion: str) -> Hashable | None:
        """The mode that Z, as text, belongs to; None for none."""

    def modes(self, split: str, example: int) -> int | None:
        """How many there are; None where nobody knows."""


@runtime_checkable
class Hinted(Protocol):
    """A task whose answers can be given away in the prompt, for completions to be found that lead there."""

    def hinted_queries(self, split: str, shots: int = 0) -> Query:
        """A split's queries, each prompt holding its answer, and so those of the `shots` demonstrations before it."""


@dataclasses.dataclass(frozen=True)
class TaskEntry:
    """What a config's `task` names: the sections of a task and its evaluator, and how the two are made from them.

    Attributes:
        section: the name of the task's own section of a config.
        config: the dataclass that it is read into. One with a `reward_adapter`, a PEFT folder or None, belongs to a
            task that EM may train: a dataclass with an `adapter`, which the folder is read into.
        evaluation: the dataclass of the evaluator's section, `evaluation`.
        task: from (its section, tokenizer, model).
        evaluator: from (its section, task, model, T), R^(1/T) being what the policy is trained towards at the end.
        certified: the split whose first queries a run's certificate is about.
        stand_in: the shipped model whose tokenizer counts tokens where a model's own is not at hand (`--dry_run`).
    """

    section: str
    config: type
    evaluation: type
    task: "Callable[[Any, PreTrainedTokenizerFast, ModelConfig], Task]"
    evaluator: Callable[[Any, Any, ModelConfig, float], Evaluator]
    stand_in: str = "tiny-arithmetic"
    certified: str = "train"
