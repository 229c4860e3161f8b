"""Table 4 of the paper: accuracy on 3, 4 and 5 operands, of the base with no and with k demonstrations, and after."""

import dataclasses
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import jax
import jax.numpy as jnp

from gfn_jax.evaluation.accuracy import Accuracy, Graded, measure_accuracy
from gfn_jax.evaluation.report import PAPER_ARITHMETIC, table, write_results
from gfn_jax.evaluation.sampling import sample_completions
from gfn_jax.interfaces import Environment
from gfn_jax.models.config import ModelConfig
from gfn_jax.models.lora import Lora
from gfn_jax.policy.constraint import Constraint
from gfn_jax.types import Params, Query


@dataclasses.dataclass(frozen=True)
class EvaluationConfig:
    """How completions are sampled for evaluation.

    Attributes:
        every: steps between two evaluations on validation questions.
        questions: validation questions a split, then.
        samples: rationales a question, which vote.
        temperature: of the samples.
        batch: questions at once.
        test_questions: questions of each test split at the end; 0 for all.
        shots: demonstrations in the prompt of the k-shot baseline; 0 leaves it out.
        seed: of the samples.
    """

    every: int
    questions: int
    samples: int
    temperature: float
    batch: int
    test_questions: int
    shots: int
    seed: int

    def __post_init__(self):
        for name in ("every", "questions", "samples", "batch"):
            if getattr(self, name) < 1:
                raise ValueError(f"evaluation {name} must be at least 1, not {getattr(self, name)}")


class Answered(Graded, Protocol):
    """A task with questions in splits."""

    @property
    def environment(self) -> Environment: ...

    def queries(self, split: str, shots: int = 0) -> Query: ...

    def question(self, split: str, example: int) -> str: ...


@dataclasses.dataclass(frozen=True)
class Evaluator:
    """Samples a split's questions and grades them."""

    model: ModelConfig
    task: Answered
    constraint: Constraint
    config: EvaluationConfig

    def accuracy(
        self, params: Params, lora: Lora | None, split: str, questions: int, shots: int = 0
    ) -> tuple[Accuracy, list[list[list[int]]]]:
        """Accuracy on the first `questions` of a split (0: all), and the completions it comes from."""
        prompt = self.task.queries(split, shots).prompt
        if questions:
            prompt = jax.tree.map(lambda x: x[:questions], prompt)
        samples = sample_completions(
            self.model,
            params,
            lora,
            prompt,
            self.constraint,
            self.task.environment,
            jax.random.key(self.config.seed),
            self.config.samples,
            self.config.temperature,
            self.config.batch,
        )
        return measure_accuracy(self.task, split, samples), samples

    def validate(self, params: Params, lora: Lora, splits: dict[str, str]) -> dict[str, float]:
        """`accuracy_3` and so on, in percent, on a few validation questions; `accuracy` is their mean."""
        found = {
            name: self.accuracy(params, lora, split, self.config.questions)[0].voted for name, split in splits.items()
        }
        return {**found, "accuracy": float(jnp.mean(jnp.asarray(list(found.values()))))}


@dataclasses.dataclass(frozen=True)
class Report:
    """The end of a run: the table, sample chains, `results.json`.

    Attributes:
        evaluator: samples and grades.
        facts: what `results.json` says besides the metrics (task, method, seed, config digest).
        workdir: where `results.json` goes.
        splits: metric -> test split, "accuracy_3" -> "test_3".
    """

    evaluator: Evaluator
    facts: Mapping[str, Any]
    workdir: pathlib.Path
    splits: Mapping[str, str]

    def write(self, params: Params, lora: Lora, steps: int, seconds: float) -> str:
        """Evaluates the base and the policy on the test splits, and returns what a person reads."""
        config = self.evaluator.config
        methods = {
            "base_0shot": (None, 0),
            "base_kshot": (None, config.shots),
            self.facts["method"]: (lora, 0),
        }
        if not config.shots:
            del methods["base_kshot"]
        found: dict[str, dict[str, Accuracy]] = {}
        chains: list[str] = []
        for method, (adapter, shots) in methods.items():
            found[method] = {}
            for metric, split in self.splits.items():
                accuracy, samples = self.evaluator.accuracy(params, adapter, split, config.test_questions, shots)
                found[method][metric] = accuracy
                if adapter is not None:
                    chains += self._chains(split, samples)
        results = {
            **self.facts,
            "steps": steps,
            "seconds": round(seconds, 1),
            "metrics": self._metrics(found.pop(self.facts["method"])),
            **{method: self._metrics(accuracies) for method, accuracies in found.items()},
        }
        write_results(self.workdir / "results.json", results)
        return self._page(results, chains)

    def _metrics(self, accuracies: Mapping[str, Accuracy]) -> dict[str, float]:
        """`accuracy_3`: the vote; `single_3`, `chains_3`...: the other shares."""
        metrics = {name: round(accuracy.voted, 2) for name, accuracy in accuracies.items()}
        for name, accuracy in accuracies.items():
            for field in ("single", "chains", "unreadable", "agreement"):
                metrics[name.replace("accuracy", field)] = round(getattr(accuracy, field), 2)
        return metrics

    def _chains(self, split: str, samples: list[list[list[int]]], count: int = 2) -> list[str]:
        """A few questions with a sampled chain each."""
        task = self.evaluator.task
        lines = []
        for example in range(min(count, len(samples))):
            text = task.decode(samples[example][0])
            verdict = "right" if task.grade(split, example, text) else "wrong"
            lines.append(f"  {task.question(split, example)}{text}   [{verdict}]")
        return lines

    def _page(self, results: Mapping[str, Any], chains: Sequence[str]) -> str:
        names = {
            "base_0shot": "base, 0-shot",
            "base_kshot": f"base, {self.evaluator.config.shots}-shot",
            "metrics": f"{self.facts['method']} (this run)",
        }
        rows = [
            (title, *(results[key][metric] for metric in self.splits)) for key, title in names.items() if key in results
        ]
        header = ("accuracy, %", *(metric.removeprefix("accuracy_") for metric in self.splits))
        orientation = PAPER_ARITHMETIC if len(self.splits) == 3 else ()
        return "\n".join(
            [
                f"Test accuracy by number of operands, vote over {self.evaluator.config.samples} samples at "
                f"temperature {self.evaluator.config.temperature}:",
                "",
                table(header, [*rows, *orientation]),
                "",
                "Sampled chains:",
                *chains,
                "",
                f"Results: {self.workdir / 'results.json'}; metrics of every step: {self.workdir / 'metrics.jsonl'}; "
                f"adapter, optimizer and buffer: {self.workdir / 'checkpoints'}",
            ]
        )
