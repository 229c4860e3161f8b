"""Labels by rationale: N reasons a review from the policy, a label each from p_LM(Y | X Z), the majority decides.

    p_LM(Y | X Z) = p_LM(Z Y | X) / sum_Y' p_LM(Z Y' | X)

over the labels (Hu et al. 2024, section 4.3, Tables 3, D.4 and D.5). Beside the vote: a single rationale's accuracy (no
aggregation), the posterior predictive with its uncertainty, and which rationales are the most frequent.
"""

import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from gfn_jax.environments import NoTool
from gfn_jax.evaluation.predictive import summarize, summarize_votes, vote_entropy, vote_histogram
from gfn_jax.evaluation.report import Findings, Sample, shown, table
from gfn_jax.evaluation.rows import gather, parts
from gfn_jax.models.language_model import LanguageModel
from gfn_jax.models.lora import Lora
from gfn_jax.policy.constraint import Constraint, Rules
from gfn_jax.policy.rollout import Behavior, rollout
from gfn_jax.rewards.posterior import PosteriorReward
from gfn_jax.sections import Count, Natural, SamplingTemperature, Seed
from gfn_jax.types import Query, Rollout, Tokens


@dataclasses.dataclass(frozen=True)
class SubjectivityEvaluationConfig:
    """How reviews are judged.

    Attributes:
        every: steps between two validations.
        reviews: validation reviews then.
        samples: rationales a review, which vote.
        temperature: of the rationales.
        batch: reviews at once.
        shots: labelled reviews in the prompt of the few-shot baseline; 0 leaves it out.
        frequent: how many of the most frequent rationales are reported for each label.
        seed: of rationales and answers.
    """

    every: Count
    reviews: Count
    samples: Count
    temperature: SamplingTemperature
    batch: Count
    shots: Natural
    frequent: Natural
    seed: Seed


class Labelled(Protocol):
    """A task whose answers are labels."""

    @property
    def labels(self) -> tuple[str, ...]: ...

    @property
    def adapter(self) -> Lora | None: ...

    def queries(self, split: str, shots: int = 0) -> Query: ...

    def truth(self, split: str) -> Int[np.ndarray, " M"]: ...

    def answers(self) -> Tokens: ...

    def direct_answers(self) -> Tokens: ...

    def constraint(self, training: bool = True) -> Constraint: ...

    def review(self, split: str, example: int) -> str: ...

    def decode(self, ids: Sequence[int]) -> str: ...


@dataclasses.dataclass(frozen=True)
class Judgement:
    """Of M reviews: p(label | X Z) after each of N rationales, and the rationales as tokens."""

    probabilities: Float[np.ndarray, "M N A"]
    rationales: list[list[tuple[int, ...]]]


@jax.jit
def _judge(
    policy: LanguageModel,
    answering: LanguageModel,
    prompt: Tokens,
    answers: Tokens,
    rules: Rules,
    behavior: Behavior,
    key: jax.Array,
) -> tuple[Rollout, Float[Array, "B A"]]:
    sampled = rollout(policy, prompt, rules, behavior, key)
    return sampled, label_probabilities(answering, prompt, answers, sampled)


def label_probabilities(
    model: LanguageModel, prompt: Tokens, answers: Tokens, rationales: Rollout
) -> Float[Array, "B A"]:
    """p_LM(Y | X Z), normalised over the labels, after each of B = Q * N rationales.

    Args:
        model: the answering model.
        prompt: [Q, P], X.
        answers: [A, Y], what follows Z for each label.
        rationales: Z.
    """
    reward = PosteriorReward()
    prepared = reward.prepare(model)
    queries = len(prompt.ids)
    length = rationales.token_mask.sum(axis=1)[:, None]

    def joint(answer: Tokens) -> Float[Array, " B"]:
        spread = jax.tree.map(lambda x: jnp.broadcast_to(x, (queries, *x.shape)), answer)
        query = Query(example_id=jnp.arange(queries), prompt=prompt, context=prompt, answer=spread)
        log_reward = reward.log_reward(model, prepared, query, rationales.stopping())
        return jnp.take_along_axis(log_reward, length, axis=1)[:, 0]

    return jax.nn.softmax(jax.lax.map(joint, answers).T, axis=-1)


@jax.jit
def _direct(model: LanguageModel, prompt: Tokens, answers: Tokens) -> Float[Array, "Q A"]:
    empty = jnp.zeros((len(prompt.ids), 1))
    nothing = Rollout(empty.astype(jnp.int32), empty > 0, empty == 0, empty == 0, empty)
    return label_probabilities(model, prompt, answers, nothing)


@dataclasses.dataclass(frozen=True)
class SubjectivityEvaluator:
    """Judges a split's reviews with any policy and any answering model.

    Attributes:
        task: reviews, labels; its `adapter` is the answering model's.
        config: how.
    """

    task: Labelled
    config: SubjectivityEvaluationConfig

    best_metric = "accuracy"

    @property
    def every(self) -> int:
        """Steps between two validations."""
        return self.config.every

    def judge(
        self, policy: LanguageModel, answering: LanguageModel, split: str, reviews: int | None = None
    ) -> Judgement:
        """Rationales of the one model, labels of the other."""
        config, answers = self.config, self.task.answers()
        rules = Rules(self.task.constraint(training=False), NoTool())
        key = jax.random.key(config.seed)
        probabilities, rationales = [], []
        prompts = parts(self._prompt(split, reviews), config.batch, policy)
        for number, (prompt, count) in enumerate(prompts):
            behavior = Behavior.at(config.temperature, len(prompt.ids) * config.samples)
            own = jax.random.fold_in(key, number)
            judged = _judge(policy, answering, prompt, answers, rules, behavior, own)
            sampled, found = gather(judged)
            probabilities.append(found.reshape(len(prompt.ids), config.samples, -1)[:count])
            rows = zip(sampled.completion, sampled.token_mask.sum(1), strict=True)
            texts = [tuple(row[:length].tolist()) for row, length in rows]
            rationales += [texts[i : i + config.samples] for i in range(0, count * config.samples, config.samples)]
        return Judgement(np.concatenate(probabilities), rationales)

    def direct(
        self, answering: LanguageModel, split: str, reviews: int | None = None, shots: int = 0
    ) -> Float[np.ndarray, "M A"]:
        """p(label | X) without a rationale: zero-shot, few-shot, or supervised where the answering model was."""
        answers = self.task.direct_answers()
        prompts = parts(self._prompt(split, reviews, shots), self.config.batch, answering)
        found = [gather(_direct(answering, prompt, answers))[:count] for prompt, count in prompts]
        return np.concatenate(found)

    def metrics(self, judgement: Judgement, split: str) -> dict[str, float]:
        """The vote, one rationale alone, the posterior predictive and its uncertainty, by name."""
        questions, answers = self.questions(judgement, split), self.answers(judgement)
        found = {name: float(np.mean(values)) for name, values in questions.items()}
        found |= summarize_votes(answers.tolist(), [bool(right) for right in questions["accuracy"]])
        return {name: round(value, 4) for name, value in found.items()}

    def answers(self, judgement: Judgement) -> Int[np.ndarray, "M N"]:
        """A label drawn after each rationale."""
        return draw_answers(judgement.probabilities, self.config.seed)

    def questions(self, judgement: Judgement, split: str) -> dict[str, list[float]]:
        """Those of `metrics` that are means over reviews, of every review."""
        truth = self.task.truth(split)[: len(judgement.probabilities)]
        answers = self.answers(judgement)
        votes = [next(iter(vote_histogram(row))) for row in answers.tolist()]  # the first seen among equals
        found = {
            "accuracy": 100.0 * (np.array(votes) == truth),
            "accuracy_single": 100.0 * (answers == truth[:, None]).mean(1),
            **summarize(judgement.probabilities, truth),
            "vote_entropy": vote_entropy(answers.tolist()),
        }
        return {name: values.tolist() for name, values in found.items()}

    def shown(self, method: str, judgement: Judgement, split: str) -> list[Sample]:
        """The first rationales of the first reviews, with the labels drawn after them."""
        task, truth, answers = self.task, self.task.truth(split), self.answers(judgement)
        return [
            Sample(method, split, task.review(split, i), task.decode(z), bool(answer == truth[i]), task.labels[answer])
            for i, (z, answer) in shown([[*zip(*own, strict=True)] for own in zip(judgement.rationales, answers)])
        ]

    def frequent_rationales(self, judgement: Judgement, split: str) -> dict[str, list[tuple[str, float]]]:
        """For each true label the commonest rationales and their shares in percent (Table D.5)."""
        truth = self.task.truth(split)
        found = {}
        for label, name in enumerate(self.task.labels):
            counts = Counter(z for row, own in zip(judgement.rationales, truth) if own == label for z in row)
            found[name] = [
                (self.task.decode(z).strip(), round(100 * count / counts.total(), 2))
                for z, count in counts.most_common(self.config.frequent)
            ]
        return found

    def validate(self, model: LanguageModel) -> dict[str, float]:
        """`accuracy` and `accuracy_single` on a few validation reviews."""
        judgement = self.judge(model, self.answering(model), "validation", self.config.reviews)
        found = self.metrics(judgement, "validation")
        return {name: found[name] for name in ("accuracy", "accuracy_single", "mutual_information")}

    def describe(self, validated: Mapping[str, float]) -> str:
        """With and without aggregation."""
        return f"validation {validated['accuracy']:.0f} % (one rationale {validated['accuracy_single']:.0f})"

    def answering(self, policy: LanguageModel) -> LanguageModel:
        """Who answers: the policy's base with the task's adapter, if it has one."""
        return policy.adapted(self.task.adapter)

    def baselines(self, base: LanguageModel, split: str = "test") -> Findings:
        """The base alone: with its own rationales, asked at once, and asked at once after some labelled reviews."""
        truth = self.task.truth(split)
        judgement = self.judge(base, base, split)
        found: dict[str, dict[str, Any]] = {
            "base": self.metrics(judgement, split),
            "base_rationales": self.frequent_rationales(judgement, split),
        }
        questions = {"base": self.questions(judgement, split)}
        for name, shots in {"zero_shot": 0, "few_shot": self.config.shots}.items():
            if name == "zero_shot" or shots:
                probabilities = self.direct(base, split, shots=shots)
                found[name] = self.describe_direct(probabilities, truth)
                questions[name] = self.direct_questions(probabilities, truth)
        return Findings(found, "", questions, self.shown("base", judgement, split))

    def describe_direct(
        self, probabilities: Float[np.ndarray, "M A"], truth: Int[np.ndarray, " M"]
    ) -> dict[str, float]:
        """Accuracy, log loss and entropy of labels given without a rationale."""
        questions = self.direct_questions(probabilities, truth)
        return {name: round(float(np.mean(values)), 4) for name, values in questions.items()}

    def direct_questions(
        self, probabilities: Float[np.ndarray, "M A"], truth: Int[np.ndarray, " M"]
    ) -> dict[str, list[float]]:
        """The same of every review."""
        found = summarize(probabilities[:, None], truth)
        return {
            "accuracy": found["predictive_accuracy"].tolist(),
            "predictive_log_loss": found["predictive_log_loss"].tolist(),
            "predictive_entropy": found["predictive_entropy"].tolist(),
        }

    def report(self, model: LanguageModel) -> Findings:
        """The policy on the test split, beside the base's own ways."""
        judgement, base = self.judge(model, self.answering(model), "test"), self.baselines(model.base)
        methods: dict[str, Mapping[str, Any]] = {
            "policy": self.metrics(judgement, "test"),
            "rationales": self.frequent_rationales(judgement, "test"),
            **base.methods,
        }
        questions = {"policy": self.questions(judgement, "test"), **base.questions}
        samples = [*self.shown("policy", judgement, "test"), *base.samples]
        return Findings(methods, self.page(methods), questions, samples)

    def page(self, methods: Mapping[str, Mapping[str, Any]]) -> str:
        """The table, and the commonest rationales of the trained policy."""
        names = {
            "zero_shot": "base, zero-shot",
            "few_shot": f"base, {self.config.shots}-shot",
            "base": "base, its own rationales",
            "policy": "this run",
        }
        columns = ("accuracy", "accuracy_single", "predictive_log_loss", "vote_entropy", "mutual_information")
        rows = [
            (title, *(_cell(methods[key], column) for column in columns))
            for key, title in names.items()
            if key in methods
        ]
        header = ("test", "vote, %", "one, %", "log loss", "vote entropy", "mutual inf.")
        lines = [
            f"Test accuracy; the vote is over {self.config.samples} rationales; log loss, entropies in nats:",
            "",
            table(header, rows),
            "",
            "Most frequent rationales:",
        ]
        for label, frequent in methods["rationales"].items():
            lines.append(f"  {label}: " + ", ".join(f"{text} {share:.1f} %" for text, share in frequent))
        return "\n".join(lines)

    def _prompt(self, split: str, reviews: int | None, shots: int = 0) -> Tokens:
        """The first reviews of a split; None for all."""
        return jax.tree.map(lambda x: x[:reviews], self.task.queries(split, shots).prompt)


def draw_answers(probabilities: Float[np.ndarray, "M N A"], seed: int) -> Int[np.ndarray, "M N"]:
    """An answer from every p(Y | X Z)."""
    uniform = np.random.default_rng(seed).random(probabilities.shape[:2])
    below = uniform[..., None] >= probabilities.cumsum(-1)
    return np.minimum(below.sum(-1), probabilities.shape[-1] - 1)


def _cell(found: Mapping[str, Any], column: str) -> str:
    if column not in found:
        return "-"
    return f"{found[column]:.1f}" if column.startswith("accuracy") else f"{found[column]:.3f}"
