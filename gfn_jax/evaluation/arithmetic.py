"""Table 4 of the paper: accuracy on 3, 4 and 5 operands, of the base with no and with k demonstrations, and after."""

import dataclasses
import functools
import itertools
import json
import logging
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

import jax
import jax.numpy as jnp
import numpy as np

from gfn_jax.evaluation.accuracy import Accuracy, Graded, mean, measure_accuracy, measure_diversity
from gfn_jax.evaluation.remembered import remembered
from gfn_jax.evaluation.report import RESULTS, Findings, Sample, shown, table
from gfn_jax.evaluation.sampling import sample_completions
from gfn_jax.interfaces import Environment
from gfn_jax.models.language_model import LanguageModel
from gfn_jax.policy.constraint import Constraint, Rules
from gfn_jax.sections import Count, Natural, SamplingTemperature, Seed
from gfn_jax.types import Query, Tokens

_log = logging.getLogger("gfn_jax")

# Hu et al. 2024, Table 4: instruct GPT-J 6B, accuracy in percent on 3, 4 and 5 operands. For orientation only:
# another model, another base, another test set.
PAPER: tuple[tuple[str, float, float, float], ...] = (
    ("paper, GPT-J 6B: 0-shot", 10.2, 6.4, 3.2),
    ("paper, GPT-J 6B: 3-shot", 15.8, 11.0, 5.4),
    ("paper, GPT-J 6B: supervised", 72.1, 19.6, 12.8),
    ("paper, GPT-J 6B: PPO", 30.6, 13.7, 5.6),
    ("paper, GPT-J 6B: GFlowNet", 95.2, 75.4, 40.7),
)


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
        diverse_questions: the first of them, of which `diverse_samples` at temperature 1 are told apart at the end,
            the policy's and the base's; 0 for none.
        diverse_samples: see there.
        shots: demonstrations in the prompt of the k-shot baseline; 0 leaves it out.
        beside: workdirs of other runs, as "title=WORKDIR", whose policies have a row in the table.
        seed: of the samples.
    """

    every: Count
    questions: Count
    samples: Count
    temperature: SamplingTemperature
    batch: Count
    test_questions: Natural
    diverse_questions: Natural
    diverse_samples: Count
    shots: Natural
    beside: tuple[str, ...]
    seed: Seed


Samples = list[list[list[int]]]
# From a split to what somebody has written for its first questions, graded; and to more that is known of each question.
Writer = Callable[[str], tuple[Accuracy, Samples]]
More = Callable[[str], dict[str, list[float]]]


class Answered(Graded, Protocol):
    """A task with questions in splits."""

    @property
    def environment(self) -> Environment: ...

    def queries(self, split: str, shots: int = 0) -> Query: ...

    def constraint(self, training: bool = True) -> Constraint: ...

    def question(self, split: str, example: int) -> str: ...


@dataclasses.dataclass(frozen=True)
class ArithmeticEvaluator:
    """Samples a split's questions and grades them.

    Attributes:
        task: questions and grades.
        config: how completions are sampled.
        validation, test: metric -> split, "accuracy_3" -> "test_3".
    """

    task: Answered
    config: EvaluationConfig
    validation: Mapping[str, str]
    test: Mapping[str, str]

    best_metric = "accuracy"

    @property
    def every(self) -> int:
        """Steps between two validations."""
        return self.config.every

    @functools.cached_property
    def rules(self) -> Rules:
        """At test a completion may be longer."""
        return Rules(self.task.constraint(training=False), self.task.environment)

    @functools.cached_property
    def _prompts(self) -> dict[tuple[str, int], Tokens]:
        return {}

    def _prompt(self, split: str, shots: int) -> Tokens:
        """A split's prompts with so many demonstrations, on the host."""
        if (split, shots) not in self._prompts:
            self._prompts[split, shots] = jax.tree.map(np.asarray, self.task.queries(split, shots).prompt)
        return self._prompts[split, shots]

    def prompts(self, split: str, shots: int, questions: int) -> Tokens:
        """The first prompts of a split, as long as any that is measured with it: a method is compiled once.

        Validation reads no test question, not even for its length.
        """
        prompt = self._prompt(split, shots)
        together = self.validation if split in self.validation.values() else self.test
        longest = max(self._prompt(other, shots).ids.shape[1] for other in together.values())
        room = ((0, 0), (longest - prompt.ids.shape[1], 0))
        return jax.tree.map(lambda x: np.pad(x[: questions or None], room), prompt)

    def accuracy(self, model: LanguageModel, split: str, questions: int, shots: int = 0) -> tuple[Accuracy, Samples]:
        """Accuracy on the first `questions` of a split (0: all), and the completions it comes from."""
        return self.graded(model, split, self.prompts(split, shots, questions))

    def graded(self, model: LanguageModel, split: str, prompt: Tokens) -> tuple[Accuracy, Samples]:
        """The same, whatever stands in the prompts of the first questions."""
        samples = self._sampled(model, prompt, self.config.samples, self.config.temperature)
        return measure_accuracy(self.task, split, samples), samples

    def diversity(self, model: LanguageModel, split: str) -> dict[str, list[float]]:
        """`measure_diversity` of samples at temperature 1, the votes' being nearly alike; nothing where nobody asks."""
        if not self.config.diverse_questions:
            return {}
        prompt = self.prompts(split, 0, self.config.diverse_questions)
        return measure_diversity(self.task, split, self._sampled(model, prompt, self.config.diverse_samples, 1.0))

    def _sampled(self, model: LanguageModel, prompt: Tokens, samples: int, temperature: float) -> Samples:
        # What a base says no training changes: it is sampled once.
        sample = sample_completions if model.adapter else functools.partial(remembered, sample_completions)
        key = jax.random.key(self.config.seed)
        return sample(model, prompt, self.rules, key, samples, temperature, self.config.batch)

    def validate(self, model: LanguageModel) -> dict[str, float]:
        """`accuracy_3` and so on, in percent, on a few validation questions; `accuracy` is their mean."""
        return self.validated(model)[0]

    def validated(self, model: LanguageModel) -> tuple[dict[str, float], dict[str, Sequence[float]]]:
        """As `report.Questioned` has it."""
        questions = self.config.questions
        found = {name: self.accuracy(model, split, questions)[0] for name, split in self.validation.items()}
        voted = {name: accuracy.voted for name, accuracy in found.items()}
        metrics = {**voted, "accuracy": float(jnp.mean(jnp.asarray(list(voted.values()))))}
        return metrics, {name: accuracy.questions["voted"] for name, accuracy in found.items()}

    def describe(self, validated: Mapping[str, float]) -> str:
        """Accuracies by number of operands."""
        return "validation " + " / ".join(f"{validated[name]:.0f}" for name in self.validation) + " %"

    def report(self, model: LanguageModel) -> Findings:
        """Evaluates the base and the policy on the test splits."""
        shots = self.config.shots
        methods = {"base_0shot": (model.base, 0), "base_kshot": (model.base, shots), "policy": (model, 0)}
        if not shots:
            del methods["base_kshot"]
        return self.compare(
            {name: self.voting(writer, shots) for name, (writer, shots) in methods.items()},
            {name: functools.partial(self.diversity, writer) for name, (writer, shots) in methods.items() if not shots},
        )

    def voting(self, model: LanguageModel, shots: int = 0) -> Writer:
        """A model's samples, which vote."""
        return lambda split: self.accuracy(model, split, self.config.test_questions, shots)

    def compare(self, writers: Mapping[str, Writer], more: Mapping[str, More]) -> Findings:
        """Methods by name on the test splits, with more of some of them: `diversity`, say."""
        titles = self._titles()
        found: dict[str, dict[str, float]] = {}
        questions: dict[str, dict[str, Sequence[float]]] = {}
        written: list[Sample] = []
        for method, writer in writers.items():
            accuracies: dict[str, Accuracy] = {}
            added: dict[str, list[float]] = {}
            for metric, split in self.test.items():
                _log.info("final evaluation: %s on %s", titles.get(method, method), split)
                accuracies[metric], samples = writer(split)
                written += self._samples(method, split, samples)
                several = more[method](split) if method in more else {}
                added |= {metric.replace("accuracy", name): values for name, values in several.items()}
            found[method] = self._metrics(accuracies) | {n: round(mean(v), 4) for n, v in added.items()}
            questions[method] = self._questions(accuracies) | added
        return Findings(found, self._page(found, self._chains(written)), questions, written)

    def _questions(self, accuracies: Mapping[str, Accuracy]) -> dict[str, Sequence[float]]:
        """By the names of `_metrics`, a value a question."""
        return {
            name if field == "voted" else name.replace("accuracy", field): values
            for name, accuracy in accuracies.items()
            for field, values in accuracy.questions.items()
        }

    def _samples(self, method: str, split: str, samples: Samples) -> list[Sample]:
        """The first of what was written for the first questions."""
        task, texts = self.task, ((example, self.task.decode(row)) for example, row in shown(samples))
        return [
            Sample(method, split, task.question(split, example), text, task.grade(split, example, text))
            for example, text in texts
        ]

    def _metrics(self, accuracies: Mapping[str, Accuracy]) -> dict[str, float]:
        """`accuracy_3`: the vote; `single_3`, `chains_3`...: the other shares; `vote_entropy_3`... in nats."""
        metrics = {name: round(accuracy.voted, 4) for name, accuracy in accuracies.items()}
        for name, accuracy in accuracies.items():
            for field in ("single", "chains", "unreadable", "agreement"):
                metrics[name.replace("accuracy", field)] = round(getattr(accuracy, field), 4)
            for field, nats in accuracy.uncertainty.items():
                metrics[name.replace("accuracy", field)] = round(nats, 4)
        return metrics

    def _chains(self, samples: Sequence[Sample], count: int = 2) -> list[str]:
        """A few questions of each split with a chain each, of the last method."""
        last = [sample for sample in samples if sample.method == samples[-1].method]
        lines = []
        for _, own in itertools.groupby(last, lambda sample: sample.split):
            first = {sample.question: sample for sample in reversed([*own])}
            lines += [
                f"  {sample.question}{sample.completion}   [{'right' if sample.right else 'wrong'}]"
                for sample in [*reversed(first.values())][:count]
            ]
        return lines

    @functools.cached_property
    def others(self) -> dict[str, dict[str, float]]:
        """Title -> metrics of the policies of the runs in `config.beside`.

        Raises:
            ValueError: a run that has left no results of these splits.
        """
        found = {}
        for title, _, workdir in (text.partition("=") for text in self.config.beside):
            path = pathlib.Path(workdir) / RESULTS
            try:
                metrics = json.loads(path.read_text())["policy"]
                found[title] = {name: float(metrics[name]) for name in self.test}
            except (OSError, KeyError, ValueError) as error:
                wanted = 'evaluation.beside has "title=WORKDIR" of runs that have measured the same splits'
                raise ValueError(f"{wanted}; {path} is none ({type(error).__name__})") from error
        return found

    def _titles(self) -> dict[str, str]:
        """What a person reads for the name of a method."""
        return {
            "base_0shot": "base, 0-shot",
            "base_kshot": f"base, {self.config.shots}-shot",
            "policy": "this run",
        }

    def _page(self, found: Mapping[str, Mapping[str, float]], chains: Sequence[str]) -> str:
        titles = self._titles()
        shown = {titles.get(method, method): metrics for method, metrics in found.items()} | self.others
        rows = [(title, *(metrics[name] for name in self.test)) for title, metrics in shown.items()]
        header = ("accuracy, %", *(metric.removeprefix("accuracy_") for metric in self.test))
        orientation = PAPER if len(self.test) == 3 else ()
        return "\n".join(
            [
                f"Test accuracy by number of operands, vote over {self.config.samples} samples at "
                f"temperature {self.config.temperature}:",
                "",
                table(header, [*rows, *orientation]),
                "",
                "Sampled chains:",
                *chains,
            ]
        )
