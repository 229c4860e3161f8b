"""Likelihood against diversity: the policy beside what else one can do with the base (paper, Figure 3).

N sentences a prompt, of which the maximum and the mean of log p_LM(Z stop | X) are averaged over prompts. Every
sentence, whoever wrote it, is scored under the base *and* under the policy (log q, over legal tokens): the two are not
to be mixed. How well the policy balances is the standard deviation, within a prompt and over its own samples, of

    log p_LM(Z stop | X) / T - log q(Z stop | X),

which is 0 exactly where q is proportional to p^(1/T). Likelihoods of whole sentences favour whoever writes short ones:
beside them stands how much likelier sentences are than ancestral ones of the same length (`equal_length`).
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Annotated, Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from gfn_jax.environments import NoTool
from gfn_jax.evaluation.diversity import SentenceEncoder, distinct, mean_hidden_states, mean_pairwise_distance
from gfn_jax.evaluation.equal_length import gain_at_equal_length
from gfn_jax.evaluation.report import Findings, Sample, shown, table
from gfn_jax.evaluation.rows import gather, parts
from gfn_jax.evaluation.sampling import sample_completions
from gfn_jax.evaluation.scoring import Scorer, padded
from gfn_jax.models.language_model import LanguageModel
from gfn_jax.policy.constraint import Constraint, Rules
from gfn_jax.rewards.posterior import PosteriorReward
from gfn_jax.samplers.beam import Beam
from gfn_jax.samplers.independent import Ancestral
from gfn_jax.samplers.sampler import Problem, Sampler, Weighed
from gfn_jax.sections import Count, Natural, Nonnegative, Range, Seed, Temperature
from gfn_jax.types import Query, Tokens

Samples = list[list[list[int]]]


@dataclasses.dataclass(frozen=True)
class ContinuationEvaluationConfig:
    """How sentences are written for evaluation, and what they are compared with.

    Attributes:
        every: steps between two validations.
        prompts: validation prompts then; 0 for all, as at the end.
        samples: N, sentences a prompt; diversity needs two.
        batch: prompts at once.
        seed: of the samples.
        temperatures: of the tempered baselines; 1 is ancestral sampling.
        nucleus: top_p of the nucleus baselines.
        beams: beam search, greedy decoding and diverse beam search too.
        diverse_groups: groups of diverse beam search; N must be a multiple.
        diverse_penalty: its penalty in nats.
        encoder: folder of a sentence encoder; None for the base's hidden states.
    """

    every: Count
    prompts: Natural
    samples: Annotated[int, Range(2, 10_000)]
    batch: Count
    seed: Seed
    temperatures: tuple[Temperature, ...]
    nucleus: tuple[Annotated[float, Range(0, 1, above=True)], ...]
    beams: bool
    diverse_groups: Natural
    diverse_penalty: Nonnegative
    encoder: str | None

    def __post_init__(self):
        if self.beams and (not self.diverse_groups or self.samples % self.diverse_groups):
            raise ValueError(f"samples is {self.samples}; they do not divide into {self.diverse_groups} diverse_groups")


class Sentences(Protocol):
    """A task whose Z is a sentence."""

    def queries(self, split: str) -> Query: ...

    def constraint(self, training: bool = True) -> Constraint: ...

    @property
    def begin_ids(self) -> list[int]: ...

    def question(self, split: str, example: int) -> str: ...

    def decode(self, ids: list[int]) -> str: ...


@dataclasses.dataclass(frozen=True)
class ContinuationEvaluator:
    """Writes sentences in many ways and measures them all alike.

    Attributes:
        task: prompts and constraint.
        config: what is compared.
        temperature: T that the reward ends at, to measure the balance with.
        split: whose prompts.
    """

    task: Sentences
    config: ContinuationEvaluationConfig
    temperature: float
    split: str = "validation"

    best_metric = None

    def __post_init__(self):
        _ = self._encoder  # what is missing is to be said now, not after hours of training

    @property
    def every(self) -> int:
        """Steps between two validations."""
        return self.config.every

    @functools.cached_property
    def scorer(self) -> Scorer:
        """Log q of given sentences, and log p_LM(Z stop | X) as their reward."""
        rules = Rules(self.task.constraint(training=False), NoTool())
        return Scorer(PosteriorReward(), rules, self.config.batch)

    def query(self, count: int) -> Query:
        """The first `count` prompts (0: all)."""
        query = self.task.queries(self.split)
        return jax.tree.map(lambda x: x[:count], query) if count else query

    def sample(self, model: LanguageModel, query: Query, temperature: float = 1.0) -> Samples:
        """Sentences that a model writes; one a prompt at temperature 0."""
        config = self.config
        samples = config.samples if temperature > 0 else 1
        key = jax.random.key(config.seed)
        return sample_completions(model, query.prompt, self.scorer.rules, key, samples, temperature, config.batch)

    def decode(self, base: LanguageModel, query: Query, sampler: Sampler) -> Samples:
        """Sentences that a sampler without a reward gets out of the base."""
        config, rules = self.config, self.scorer.rules
        found: Samples = []
        for number, (part, count) in enumerate(parts(query, config.batch, base)):
            key = jax.random.fold_in(jax.random.key(config.seed), number)
            rollout = gather(_decode(sampler, config.samples, base, Problem(None, part, rules), key).rollout)
            rows = [row[:n].tolist() for row, n in zip(rollout.completion, rollout.token_mask.sum(1))]
            found += [rows[i * config.samples : (i + 1) * config.samples] for i in range(count)]
        return found

    def measure(self, model: LanguageModel, query: Query, samples: Samples) -> "Measured":
        """What model and base make of sentences that somebody wrote."""
        ids, lengths = padded(samples, self.scorer.rules.constraint)
        return Measured(
            log_p=self.scorer.log_reward(model.base, query, ids, lengths),
            log_q=self.scorer.log_policy(model, query.prompt, ids, lengths),
            lengths=lengths,
            diversity=mean_pairwise_distance(self._embeddings(model.base, ids, lengths)),
            samples=samples,
            temperature=self.temperature,
        )

    def methods(self, model: LanguageModel, query: Query) -> dict[str, Callable[[], Samples]]:
        """Name in `results.json` -> how it writes; `metrics` is the policy, `base` ancestral sampling of the base."""
        config = self.config
        out: dict[str, Callable[[], Samples]] = {"policy": lambda: self.sample(model, query)}
        base = model.base
        out["base"] = lambda: self.sample(base, query)
        for temperature in config.temperatures:
            if temperature != 1.0:
                out[f"tempered_{temperature:g}"] = functools.partial(self.sample, base, query, temperature)
        for top_p in config.nucleus:
            out[f"nucleus_{top_p:g}"] = functools.partial(self.decode, base, query, Ancestral(top_p=top_p))
        if config.beams:
            # One group has nobody to be set apart from.
            diverse = Beam(config.diverse_groups, config.diverse_penalty if config.diverse_groups > 1 else 0.0)
            out["greedy"] = functools.partial(self.sample, base, query, 0.0)
            out["beam"] = functools.partial(self.decode, base, query, Beam())
            out["diverse_beam"] = functools.partial(self.decode, base, query, diverse)
        return out

    def validate(self, model: LanguageModel) -> dict[str, float]:
        """The policy alone, on a few prompts."""
        query = self.query(self.config.prompts)
        return self.measure(model, query, self.sample(model, query)).means

    def describe(self, validated: Mapping[str, float]) -> str:
        """Likelihood and diversity."""
        shown = ("log_likelihood_max", "log_likelihood_mean", "diversity")
        return "log p max {:.2f} mean {:.2f} diversity {:.3f}".format(*(validated[name] for name in shown))

    def report(self, model: LanguageModel) -> Findings:
        """All methods on all prompts."""
        query = self.query(0)
        written = {name: write() for name, write in self.methods(model, query).items()}
        measured = {name: self.measure(model, query, samples) for name, samples in written.items()}
        found = {name: {**one.means, **one.against(measured["base"])} for name, one in measured.items()}
        questions = {
            name: {key: values.tolist() for key, values in one.by_prompt.items()} for name, one in measured.items()
        }
        return Findings(found, self.page(found, written), questions, self._shown(written))

    def _shown(self, written: Mapping[str, Samples]) -> list[Sample]:
        """The first sentences for the first prompts, each way of writing."""
        return [
            Sample(name, self.split, self.task.question(self.split, example), self.task.decode(row))
            for name, samples in written.items()
            for example, row in shown(samples)
        ]

    def page(self, found: Mapping[str, Mapping[str, Any]], written: Mapping[str, Samples]) -> str:
        """The table, and a few sentences."""
        names = {"policy": "this run", "base": "base, ancestral"}
        rows = [
            (
                names[name] if name in names else name.replace("_", " "),
                *(f"{m[key]:.{d}f}" for key, _, d in COLUMNS),
                interval(m),
                f"{m['balance_spread']:.2f}" if name == "policy" else "",
            )
            for name, m in found.items()
        ]
        encoder = self.config.encoder or "mean of the base's last hidden states"
        lines = [
            f"{self.config.samples} sentences for each of {len(written['policy'])} prompts (greedy: one), averages:",
            "",
            table(("", *(title for _, title, _ in COLUMNS), "gain at equal length", "spread"), rows),
            "",
            "log p: of the sentence with its full stop, under the base; log q: under the policy; nats.",
            "Gain at equal length: log p above the base's ancestral sentences of the same lengths, its 95 % interval "
            "over prompts, and the share of those sentences whose length was written.",
            f"Spread: of log p / {self.temperature:g} - log q over a prompt's sentences, 0 at the policy's target.",
            f"Diversity: mean pairwise cosine distance; embedding: {encoder}.",
            "",
        ]
        for example in range(min(2, len(written["policy"]))):
            lines.append(f"  {self.task.question(self.split, example)}")
            for name in ("policy", "base"):
                sentences = [self.task.decode(row).strip() for row in written[name][example][:3]]
                lines += [f"    {names[name]}: {sentence}." for sentence in sentences]
        return "\n".join(lines)

    def _embeddings(
        self, base: LanguageModel, ids: Int[np.ndarray, "M N T"], lengths: Int[np.ndarray, "M N"]
    ) -> Float[np.ndarray, "M N E"]:
        """Embeddings of Z with its full stop."""
        if self._encoder is not None:
            written = zip(ids.reshape(-1, ids.shape[-1]), lengths.ravel())
            texts = [self.task.decode(row[:n].tolist()).strip() + "." for row, n in written]
            return self._encoder.embed(texts).reshape(*lengths.shape, -1)
        begin = np.array(self.task.begin_ids, np.int32)  # what stands before a prompt, so before a sentence by itself
        found = []
        for (part, length), count in parts((ids, lengths), self.config.batch, base):
            rows = jnp.asarray(part).reshape(-1, part.shape[-1])
            rows = jnp.concatenate([jnp.broadcast_to(begin, (len(rows), len(begin))), rows], axis=1)
            columns = jnp.arange(rows.shape[1])
            real = columns <= len(begin) + length.reshape(-1, 1)
            hidden = gather(mean_hidden_states(base, Tokens(rows, real), real & (columns >= len(begin))))
            found.append(hidden.reshape(*length.shape, -1)[:count])
        return np.concatenate(found)

    @functools.cached_property
    def _encoder(self) -> SentenceEncoder | None:
        return None if self.config.encoder is None else SentenceEncoder(self.config.encoder)


@dataclasses.dataclass(frozen=True)
class Measured:
    """N sentences of each of M prompts by one writer; logarithms in nats.

    Attributes:
        log_p, log_q: of the sentence with its stop, under the base and under the policy.
        lengths: tokens, without the stop.
        diversity: mean pairwise cosine distance.
        samples: the sentences.
        temperature: T.
    """

    log_p: Float[np.ndarray, "M N"]
    log_q: Float[np.ndarray, "M N"]
    lengths: Int[np.ndarray, "M N"]
    diversity: Float[np.ndarray, " M"]
    samples: Samples
    temperature: float

    @functools.cached_property
    def by_prompt(self) -> dict[str, Float[np.ndarray, " M"]]:
        """What this way of writing gives, a value a prompt.

        Returns:
            `log_likelihood_max`, `log_likelihood_mean` (base), `log_likelihood_token` (a token, the stop counted),
            `log_policy_max`, `log_policy_mean` (log q), `balance_spread`, `length`, `diversity`, `distinct_1`,
            `distinct_2`, `unique` (the share of different sentences).
        """
        return {
            "log_likelihood_max": self.log_p.max(1),
            "log_likelihood_mean": self.log_p.mean(1),
            "log_likelihood_token": (self.log_p / (self.lengths + 1)).mean(1),
            "log_policy_max": self.log_q.max(1),
            "log_policy_mean": self.log_q.mean(1),
            "balance_spread": np.std(self.log_p / self.temperature - self.log_q, axis=1),
            "length": self.lengths.mean(1),
            "diversity": self.diversity,
            "distinct_1": np.array([distinct(rows, 1) for rows in self.samples]),
            "distinct_2": np.array([distinct(rows, 2) for rows in self.samples]),
            "unique": np.array([len({tuple(row) for row in rows}) / len(rows) for rows in self.samples]),
        }

    @property
    def means(self) -> dict[str, float]:
        """The same, averaged over prompts."""
        return {name: float(values.mean()) for name, values in self.by_prompt.items()}

    def against(self, base: "Measured") -> dict[str, float | None]:
        """`gain`, `gain_low`, `gain_high` and `covered` on the base's ancestral sentences (`equal_length`)."""
        found = gain_at_equal_length(self.log_p, self.lengths, base.log_p, base.lengths)
        return {"gain": found.gain, "gain_low": found.low, "gain_high": found.high, "covered": found.covered}


def interval(found: Mapping[str, Any]) -> str:
    """The gain at equal length as a table has it."""
    gain, low, high = (found[name] for name in ("gain", "gain_low", "gain_high"))
    if gain is None:
        return "no common length"
    return f"{gain:+.2f} [{low:+.2f}, {high:+.2f}] on {found['covered']:.0%}"


# Metric, title, decimals.
COLUMNS = (
    ("log_likelihood_max", "max log p", 2),
    ("log_likelihood_mean", "mean log p", 2),
    ("log_policy_mean", "mean log q", 2),
    ("log_likelihood_token", "log p/token", 3),
    ("length", "tokens", 1),
    ("diversity", "diversity", 4),
    ("distinct_1", "distinct-1", 3),
    ("distinct_2", "distinct-2", 3),
    ("unique", "unique", 2),
)


@functools.partial(jax.jit, static_argnames=("sampler", "samples"))
def _decode(sampler: Sampler, samples: int, base: LanguageModel, problem: Problem, key: jax.Array) -> Weighed:
    return sampler.sample(base, problem, samples, key)
