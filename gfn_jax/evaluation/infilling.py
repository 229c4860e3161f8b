"""Story infilling measured: exactly where the stories are generated, by text metrics and a judge where they are real.

Three writers are compared on held-out stories: the policy; the base with the policy's prompt ("prompting"); the base
continuing X without knowing Y. A judge also reads the stories as they were written. Generated stories: see
`infilling_exact`. Any story: BLEU-4 and GLEU-4 against the author's sentence, the mean log p_LM(Z Y | X), the share of
a story's samples that differ, and optionally BERTScore and a judge.
"""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import jax
import numpy as np
from jaxtyping import Float

from gfn_jax.environments import NoTool
from gfn_jax.evaluation.infilling_exact import Listed, distances, divergence, list_sentences, log_posterior
from gfn_jax.evaluation.judge import Judge
from gfn_jax.evaluation.report import GAP, Findings, Sample, shown, table
from gfn_jax.evaluation.sampling import sample_completions
from gfn_jax.evaluation.scoring import Scorer, padded
from gfn_jax.evaluation.text_metrics import BertScore, bleu, gleu
from gfn_jax.interfaces import Reward
from gfn_jax.models.language_model import LanguageModel
from gfn_jax.policy.constraint import Constraint, Rules
from gfn_jax.sections import Count, Natural, SamplingTemperature, Seed
from gfn_jax.types import Query, Tokens

Samples = list[list[list[int]]]

# Hu et al. 2024, Table 2, for orientation: GPT-2 Large on ROCStories, BLEU-4 and GLEU-4.
PAPER = (("paper, GPT-2 Large: prompting", 1.3, 3.2), ("supervised", 1.6, 3.7), ("GFlowNet", 2.1, 4.2))
# Samples a story by which the posterior's share of unlisted sentences is estimated.
UNLISTED_SAMPLES = 32


@dataclasses.dataclass(frozen=True)
class InfillingEvaluationConfig:
    """How sentences are sampled for evaluation, and who judges them.

    Attributes:
        every: steps between two validations.
        stories: validation stories then.
        test_stories: test stories at the end; 0 for all.
        samples: sentences a story, of which BLEU and the other text metrics are averages.
        temperature: of the samples; what is exact is exact at temperature 1.
        batch: stories at once.
        seed: of the samples.
        bert_folder, bert_layer: an encoder's folder and the layer compared for BERTScore; None leaves it out.
        judge_url, judge_model: an OpenAI-compatible API and its model; None leaves the judge out.
        judge_samples: sentences a story that the judge reads.
    """

    every: Count
    stories: Count
    test_stories: Natural
    samples: Count
    temperature: SamplingTemperature
    batch: Count
    seed: Seed
    bert_folder: str | None
    bert_layer: Natural
    judge_url: str | None
    judge_model: str | None
    judge_samples: Count

    def __post_init__(self):
        if self.judge_url is not None and not self.judge_model:
            raise ValueError("judge_url is set: name its model in evaluation.judge_model")


class Story(Protocol):
    """A problem's texts."""

    @property
    def beginning(self) -> str: ...

    @property
    def middle(self) -> str: ...

    @property
    def ending(self) -> str: ...

    def story(self, middle: str) -> str: ...


class Infills(Protocol):
    """A task whose Z is the fourth sentence of a story."""

    @property
    def splits(self) -> Mapping[str, Sequence[Story]]: ...

    def queries(self, split: str) -> Query: ...

    def constraint(self, training: bool = True) -> Constraint: ...

    def candidates(self, split: str, example: int) -> dict[tuple[int, ...], float]: ...

    def decode(self, ids: list[int]) -> str: ...


@dataclasses.dataclass(frozen=True)
class InfillingEvaluator:
    """Measures policies on a split's first stories.

    Attributes:
        task: the stories.
        reward: log p_LM(Z Y | X), whether or not the target is kept to the generator's sentences: p is over those.
        config: what is measured.
        temperature: T that the reward ends at.
    """

    task: Infills
    reward: Reward
    config: InfillingEvaluationConfig
    temperature: float
    # By split, what is listed, and the base's log posterior: it never changes, and takes longer than the policy's side.
    _listed: dict[str, Listed] = dataclasses.field(default_factory=dict, repr=False)
    _posteriors: dict[str, np.ndarray] = dataclasses.field(default_factory=dict, repr=False)

    best_metric = None

    def __post_init__(self):
        # What is missing is to be said now, not after hours of training.
        _ = self._bert_score
        if self._judge is not None:
            self._judge.check()

    @functools.cached_property
    def _bert_score(self) -> BertScore | None:
        config = self.config
        return None if config.bert_folder is None else BertScore(config.bert_folder, config.bert_layer)

    @property
    def _judge(self) -> Judge | None:
        return None if self.config.judge_url is None else Judge(self.config.judge_url, str(self.config.judge_model))

    @property
    def every(self) -> int:
        """Steps between two validations."""
        return self.config.every

    @functools.cached_property
    def scorer(self) -> Scorer:
        """Log q and log R of given sentences."""
        rules = Rules(self.task.constraint(False), NoTool())
        return Scorer(self.reward, rules, self.config.batch)

    @functools.cached_property
    def is_listed(self) -> bool:
        """Whether the stories are generated, so that every sentence that the generator could write is known."""
        return bool(self.task.candidates("validation", 0))

    def listed(self, split: str) -> Listed:
        """The sentences that the generator could write, for the first stories of a split."""
        if split not in self._listed:
            horizon = self.scorer.rules.constraint.horizon
            self._listed[split] = list_sentences(self.task, split, self._count(split), horizon)
        return self._listed[split]

    def _count(self, split: str) -> int:
        wanted, available = self.config.stories, len(self.task.splits[split])
        if split == "test":
            wanted = self.config.test_stories or available
        return min(wanted, available)

    def query(self, split: str) -> Query:
        """The first stories of a split."""
        return jax.tree.map(lambda x: x[: self._count(split)], self.task.queries(split))

    def posterior(self, base: LanguageModel, split: str) -> np.ndarray:
        """[M, K] the base's log posterior over the listed sentences."""
        if split not in self._posteriors:
            listed = self.listed(split)
            log_reward = self.scorer.log_reward(base, self.query(split), listed.ids, listed.lengths)
            self._posteriors[split] = log_posterior(log_reward, listed.mask, self.temperature)
        return self._posteriors[split]

    def exact(self, model: LanguageModel, split: str, prompt: Tokens) -> dict[str, Float[np.ndarray, " M"]]:
        """What `infilling_exact.distances` says of a writer who is told `prompt`."""
        listed = self.listed(split)
        log_q = self.scorer.log_policy(model, prompt, listed.ids, listed.lengths)
        return distances(log_q, self.posterior(model.base, split), listed)

    def sample(self, model: LanguageModel, prompt: Tokens, samples: int, temperature: float) -> Samples:
        """Sentences of a writer who is told `prompt`."""
        key = jax.random.key(self.config.seed)
        return sample_completions(model, prompt, self.scorer.rules, key, samples, temperature, self.config.batch)

    def likelihood(self, base: LanguageModel, split: str, samples: Samples) -> np.ndarray:
        """[M, N] log p_LM(Z Y | X) in nats."""
        return self.scorer.log_reward(base, self.query(split), *padded(samples, self.scorer.rules.constraint))

    def validate(self, model: LanguageModel) -> dict[str, float]:
        """The exact measures of generated stories; of others the mean log p_LM(Z Y | X) of samples, and GLEU-4."""
        query = self.query("validation")
        if self.is_listed:
            return means(self.exact(model, "validation", query.prompt))
        samples = self.sample(model, query.prompt, self.config.samples, self.config.temperature)
        return self.corpus_metrics("validation", samples) | means(self.text_metrics(model.base, "validation", samples))

    def describe(self, validated: Mapping[str, float]) -> str:
        """The same for a line of progress."""
        if "kl" in validated:
            return f"validation KL {validated['kl']:.3f} nats, consistent {validated['consistency']:.0f} %"
        return f"validation log R {validated['log_reward']:.2f}, GLEU-4 {validated['gleu_4']:.2f}"

    def texts(self, samples: Samples) -> list[list[str]]:
        """Sampled sentences as one reads them."""
        return [[self.task.decode(row).strip() + "." for row in rows] for rows in samples]

    def text_metrics(self, base: LanguageModel, split: str, samples: Samples) -> dict[str, Float[np.ndarray, " M"]]:
        """Of each story: the mean log p_LM(Z Y | X) in nats, the share in percent of sentences that differ, tokens."""
        return {
            "log_reward": self.likelihood(base, split, samples).mean(1),
            "distinct": np.array([100 * len(set(rows)) / len(rows) for rows in self.texts(samples)]),
            "length": np.array([np.mean([len(row) for row in rows]) for rows in samples]),
        }

    def corpus_metrics(self, split: str, samples: Samples) -> dict[str, float]:
        """Against the authors' sentences, over all stories together: no mean over them."""
        stories = self.task.splits[split][: len(samples)]
        pairs = [(text, story.middle) for story, rows in zip(stories, self.texts(samples)) for text in rows]
        written, references = zip(*pairs)
        found = {"bleu_4": bleu(written, references), "gleu_4": gleu(written, references)}
        if self._bert_score is not None:
            found["bert_score"] = self._bert_score(written, references)
        return found

    def judged(self, stories: Sequence[str]) -> dict[str, float]:
        """The judge's mean score, if there is a judge."""
        return {} if self._judge is None else self._judge.mean_score(stories)

    def report(self, model: LanguageModel) -> Findings:
        """All writers on the test stories."""
        query, stories = self.query("test"), self.task.splits["test"][: self._count("test")]
        writers = {
            "base": (model.base, query.prompt),
            "base_continuation": (model.base, query.context),
            "policy": (model, query.prompt),
        }
        found: dict[str, dict[str, Any]] = {}
        questions: dict[str, dict[str, list[float]]] = {}
        shown: list[Sample] = []
        for name, (writer, prompt) in writers.items():
            samples = self.sample(writer, prompt, self.config.samples, self.config.temperature)
            exact = self.exact(writer, "test", prompt) if self.is_listed else {}
            each = {**exact, **self.text_metrics(model.base, "test", samples)}
            questions[name] = {metric: values.tolist() for metric, values in each.items()}
            shown += self._shown(name, samples)
            found[name] = {
                **means(each),
                **self.corpus_metrics("test", samples),
                **self.judged(
                    [
                        story.story(self.task.decode(row))
                        for story, rows in zip(stories, samples)
                        for row in rows[: self.config.judge_samples]
                    ]
                ),
            }
        if self.is_listed:
            found["posterior"] = self.posterior_facts(model.base)
        if self._judge is not None:
            found["reference"] = self.judged([story.story(story.middle.removesuffix(".")) for story in stories])
        rounded = {name: {key: round(value, 4) for key, value in values.items()} for name, values in found.items()}
        return Findings(rounded, self._page(rounded, samples), questions, shown)

    def posterior_facts(self, base: LanguageModel) -> dict[str, float]:
        """Of the target itself: how spread it is, how far from the generator's, what lies outside the list.

        `unlisted` is estimated with sentences Z' ~ q' that the base writes after X, weighted by R(Z') / q'(Z').
        """
        listed, log_p, query = self.listed("test"), self.posterior(base, "test"), self.query("test")
        samples = self.sample(base, query.context, UNLISTED_SAMPLES, 1.0)
        ids, lengths = padded(samples, self.scorer.rules.constraint)
        log_q = self.scorer.log_policy(base, query.context, ids, lengths)
        log_weight = self.scorer.log_reward(base, query, ids, lengths) / self.temperature - log_q
        weight = np.exp(log_weight - log_weight.max(1, keepdims=True))
        known = np.array(
            [
                [tuple(row) in self.task.candidates("test", example) for row in rows]
                for example, rows in enumerate(samples)
            ]
        )
        p = np.exp(log_p)
        return {
            "entropy": float(-np.where(listed.mask, p * np.where(listed.mask, log_p, 0.0), 0.0).sum(1).mean()),
            "kl_generator": float(divergence(listed.generator, log_p).mean()),
            "consistency": 100 * float((p * (listed.generator > 0)).sum(1).mean()),
            "unlisted": 100 * float(np.mean((weight * ~known).sum(1) / weight.sum(1))),
        }

    def _page(self, found: Mapping[str, Mapping[str, float]], samples: Samples) -> str:
        names = {
            "base": "base, prompted",
            "base_continuation": "base, told X alone",
            "policy": "this run",
        }
        columns = {"kl": "KL(p|q)", "kl_generator": "KL(g|q)", "consistency": "consistent, %", "listed": "listed, %"}
        texts = {"bleu_4": "BLEU-4", "gleu_4": "GLEU-4", "log_reward": "log R", "distinct": "distinct, %"}
        extra = {"bert_score": "BERTScore", "judge": "judge, 1-5"}
        columns = {key: name for key, name in (columns | texts | extra).items() if key in found["policy"]}
        rows = [(title, *(f"{found[key][c]:.2f}" for c in columns)) for key, title in names.items()]
        lines = [
            f"{len(samples)} held-out stories; what is sampled: {self.config.samples} sentences a story at temperature "
            f"{self.config.temperature}:",
            "",
            table(("", *columns.values()), rows),
        ]
        if self.is_listed:
            target = found["posterior"]
            lines += [
                "",
                f"p: the base's posterior over the generator's sentences (entropy {target['entropy']:.2f} nats, "
                f"{target['consistency']:.1f} % consistent, KL(g|p) {target['kl_generator']:.2f}); left to itself the "
                f"base has {target['unlisted']:.1f} % of its posterior elsewhere. g: the generator's own.",
            ]
        else:
            lines += ["", table(("another model and test set", "BLEU-4", "GLEU-4"), PAPER)]
        return "\n".join([*lines, "", "Sampled stories, the fourth sentence by the policy:", *self._stories(samples)])

    def _shown(self, method: str, samples: Samples) -> list[Sample]:
        """The first sentences for the first stories; X is the story without them."""
        stories = self.task.splits["test"]
        return [
            Sample(method, "test", f"{stories[number].beginning} {GAP} {stories[number].ending}", text)
            for number, text in shown(self.texts(samples))
        ]

    def _stories(self, samples: Samples, count: int = 3) -> list[str]:
        stories = self.task.splits["test"]
        return [
            f"  {story.beginning} [{self.task.decode(rows[0]).strip()}.] {story.ending}"
            for story, rows in list(zip(stories, samples))[:count]
        ]


def means(found: Mapping[str, Float[np.ndarray, " M"]]) -> dict[str, float]:
    """Averages over stories."""
    return {name: float(values.mean()) for name, values in found.items()}
