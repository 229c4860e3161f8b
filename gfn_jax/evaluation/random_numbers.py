"""How far a sampler of numbers is from its target, exactly: every token sequence that spells a number is scored.

With q(n) the policy's probability of the number n, summed over all its spellings in tokens, m = sum_n q(n) the valid
mass, and p the target over the support (Hu et al. 2024, section 2, where KL is estimated from samples):

    kl_to_target     KL(q(.|valid) || p) = sum_n q(n)/m log(q(n) / (m p(n)))
    kl_from_target   KL(p || q) = sum_n p(n) log(p(n) / q(n)), which counts the invalid mass: -log m is in it
    total_variation  1/2 (sum_n |q(n) - p(n)| + 1 - m), on the numbers and "invalid"
    covered          numbers of the support with q(n) > p(n) / 10

The least that a policy can reach by following its reward is not 0 in the second: a penalty in nats leaves invalid texts
some of R, and the floor of KL(p || q) is log(1 + their R / the numbers'), reached by q = R / Z (the row `target`).

The first must leave the invalid mass out, as p has none there; the second need not. An estimate of the first from v
valid samples has a bias of about (k - 1) / (2 v) for k numbers, which a perfect sampler shows too: its noise floor
(less where the target is peaked, as numbers that never occur add nothing).
"""

import collections
import dataclasses
import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from gfn_jax.environments import NoTool
from gfn_jax.evaluation.report import SHOWN_QUESTIONS, SHOWN_SAMPLES, Findings, Sample, table
from gfn_jax.evaluation.rows import gather, parts
from gfn_jax.evaluation.sampling import sample_completions
from gfn_jax.evaluation.scoring import log_policy
from gfn_jax.models.language_model import LanguageModel
from gfn_jax.policy.constraint import Constraint, Rules
from gfn_jax.policy.teacher import teacher_force
from gfn_jax.sections import Count, Seed
from gfn_jax.types import Query, Rollout, Tokens

# Hu et al. 2024, section 2: instruct GPT-J 6B, estimates from samples. For orientation only: another model.
PAPER = (
    ("paper, GPT-J 6B: base", "3.37", "-", "50.5 %", "-", "-"),
    ("paper, GPT-J 6B: PPO", "-", "-", "95.8 %", "-", "-"),
    ("paper, GPT-J 6B: GFlowNet (512,000 samples)", "9.75e-05", "-", "100 %", "-", "-"),
)
SMALLEST = 1e-300  # stands for a probability that is not above zero


@dataclasses.dataclass(frozen=True)
class RandomNumbersEvaluationConfig:
    """How it is measured.

    Attributes:
        every: steps between two exact measurements on the way.
        samples: drawn at the end, for the estimate.
        batch: samples at once.
        seed: of the samples.
    """

    every: Count
    samples: Count
    batch: Count
    seed: Seed


class Spelt(Protocol):
    """Token sequences, and the place in the support of the number each spells."""

    @property
    def completion(self) -> Int[np.ndarray, "S T"]: ...

    @property
    def length(self) -> Int[np.ndarray, " S"]: ...

    @property
    def number(self) -> Int[np.ndarray, " S"]: ...


class NumberTask(Protocol):
    """A task whose completions spell numbers."""

    @property
    def log_target(self) -> Mapping[int, float]: ...

    @property
    def spellings(self) -> Spelt: ...

    @property
    def floor(self) -> float: ...

    def constraint(self, training: bool = True) -> Constraint: ...

    def queries(self, split: str) -> Query: ...

    def question(self, split: str, example: int) -> str: ...

    def decode(self, ids: list[int]) -> str: ...

    def grade(self, split: str, example: int, completion: str) -> bool: ...


_log_policy = jax.jit(log_policy)


@dataclasses.dataclass(frozen=True)
class RandomNumbersEvaluator:
    """Exact distances to the target, and the sampled estimate beside them."""

    task: NumberTask
    config: RandomNumbersEvaluationConfig

    best_metric = None  # the learning rate ends at zero: the last step is the best

    @property
    def every(self) -> int:
        """Steps between two validations."""
        return self.config.every

    @functools.cached_property
    def rules(self) -> Rules:
        """What may be written."""
        return Rules(self.task.constraint(training=False), NoTool())

    @functools.cached_property
    def prompt(self) -> Tokens:
        """[1, P]: of the one query, which all splits have."""
        return jax.tree.map(lambda x: x[:1], self.task.queries("train").prompt)

    @functools.cached_property
    def log_p(self) -> Float[np.ndarray, " K"]:
        """The target of every number of the support, as logarithms."""
        return np.array(list(self.task.log_target.values()))

    @functools.cached_property
    def spelt(self) -> Rollout:
        """All sequences that spell a number, as they would have been written."""
        spellings = self.task.spellings
        completion, length = jnp.asarray(spellings.completion), jnp.asarray(spellings.length)
        return teacher_force(completion, length, self.rules)

    def probabilities(self, model: LanguageModel) -> Float[np.ndarray, " K"]:
        """The chance of every number of the support, which a model gives it; they add up to the valid mass."""
        numbers = self.task.spellings.number
        ((spelt, count),) = parts(self.spelt, len(numbers), model)
        log_q = gather(_log_policy(model, self.prompt, spelt, self.rules))[:count]
        return np.bincount(numbers, np.exp(log_q.astype(np.float64)), len(self.log_p))

    def validate(self, model: LanguageModel) -> dict[str, float]:
        """The exact distances."""
        return distances(self.probabilities(model), self.log_p)

    def describe(self, validated: Mapping[str, float]) -> str:
        """The same for a line of progress."""
        return (
            f"KL {validated['kl_to_target']:.2g}  valid {100 * validated['valid_mass']:.2f} %  "
            f"covered {validated['covered']:.0f}/{len(self.log_p)}"
        )

    def draw(self, model: LanguageModel) -> list[list[int]]:
        """The section's `samples` completions, or a few more: whole batches."""
        batch = min(self.config.batch, self.config.samples)
        count = -(-self.config.samples // batch)
        prompts = jax.tree.map(lambda x: np.repeat(np.asarray(x), count, axis=0), self.prompt)
        key = jax.random.key(self.config.seed)
        groups = sample_completions(model, prompts, self.rules, key, samples=batch, temperature=1.0, batch=1)
        return [ids for group in groups for ids in group]

    def estimate(self, drawn: Sequence[Sequence[int]]) -> dict[str, float | None]:
        """KL(q(.|valid) || p) from samples, as one would have to without the enumeration.

        Returns:
            `sampled_kl` (None where no sample is valid) and its `sampled_noise_floor` in nats, `sampled_valid_mass`,
            and the number of `samples`.
        """
        spellings = self.task.spellings
        place = {
            tuple(ids[:n].tolist()): number
            for ids, n, number in zip(spellings.completion, spellings.length, spellings.number, strict=True)
        }
        counts = collections.Counter(place.get(tuple(ids)) for ids in drawn)
        samples = counts.total()
        valid = samples - counts.pop(None, 0)
        share = np.array([counts[number] for number in range(len(self.log_p))]) / max(valid, 1)
        return {
            "sampled_kl": kl(share, self.log_p) if valid else None,
            "sampled_noise_floor": (len(self.log_p) - 1) / (2 * max(valid, 1)),
            "sampled_valid_mass": valid / samples,
            "samples": samples,
        }

    def report(self, model: LanguageModel) -> Findings:
        """Policy and base, and both distributions number by number."""
        found: dict[str, dict[str, Any]] = {}
        listed: dict[str, list[float]] = {"number": list(self.task.log_target), "target": np.exp(self.log_p).tolist()}
        shown: list[Sample] = []
        for method, writer in (("policy", model), ("base", model.base)):
            q, drawn = self.probabilities(writer), self.draw(writer)
            found[method] = {**distances(q, self.log_p), **self.estimate(drawn)}
            shown += self._shown(method, drawn)
            listed[method] = q.tolist()
        found["target"] = {**distances(np.exp(self.log_p - self.task.floor), self.log_p), "kl_to_target": 0.0}
        return Findings({**found, "distribution": listed}, self.page(found, listed), samples=shown)

    def _shown(self, method: str, drawn: Sequence[Sequence[int]]) -> list[Sample]:
        """As many as of other tasks' questions together: here there is but one."""
        texts = [self.task.decode(list(ids)) for ids in drawn[: SHOWN_QUESTIONS * SHOWN_SAMPLES]]
        question = self.task.question("test", 0)
        return [Sample(method, "test", question, text, self.task.grade("test", 0, text)) for text in texts]

    def page(self, found: Mapping[str, Mapping[str, float]], listed: Mapping[str, list[float]]) -> str:
        """The table, and what the base likes best."""
        size = len(self.log_p)

        def row(title: str, values: Mapping[str, Any]) -> tuple[str, ...]:
            estimate, sampled = values.get("sampled_kl"), "-"
            if "sampled_kl" in values:
                shown = "none valid" if estimate is None else f"{estimate:.2e}"
                sampled = f"{shown} ({values['sampled_noise_floor']:.1e})"
            return (
                title,
                f"{values['kl_to_target']:.2e}",
                f"{values['kl_from_target']:.2e}",
                f"{100 * values['valid_mass']:.3f} %",
                f"{values['covered']} of {size}",
                sampled,
            )

        header = ("exact, in nats", "KL(q|p), valid", "KL(p|q)", "valid", "covered", "sampled KL (floor)")
        titles = {"base": "base", "policy": "this run", "target": "R / Z, as the reward has it"}
        rows = [row(title, found[method]) for method, title in titles.items() if method in found]
        favourites = np.argsort(listed["base"])[::-1][:5]
        likes = ", ".join(f"{listed['number'][i]} ({100 * listed['base'][i]:.1f} %)" for i in favourites)
        return "\n".join(
            [
                f"Distance to the target over {size} numbers; estimates from {found['policy']['samples']} samples:",
                "",
                table(header, [*rows, *PAPER]),
                "",
                f"The base says most often: {likes}",
            ]
        )


def kl(q: Float[np.ndarray, " K"], log_p: Float[np.ndarray, " K"]) -> float:
    """KL(q || p) in nats of two distributions; every term is made non-negative, so that none cancel."""
    return float((q * (log_of(q) - log_p) - q + np.exp(log_p)).sum())


def log_of(q: Float[np.ndarray, " K"]) -> Float[np.ndarray, " K"]:
    """Its logarithm, finite."""
    return np.log(np.maximum(q, SMALLEST))


def distances(q: Float[np.ndarray, " K"], log_p: Float[np.ndarray, " K"]) -> dict[str, float]:
    """The measures of the module docstring, of q which adds up to the valid mass.

    Returns:
        `kl_to_target`, `kl_from_target` in nats, `total_variation` and `valid_mass` in 0..1, `covered` numbers.
    """
    valid, p = float(q.sum()), np.exp(log_p)
    return {
        "kl_to_target": kl(q / valid, log_p),
        "kl_from_target": float((p * (log_p - log_of(q))).sum()),
        "total_variation": float(np.abs(q - p).sum() + 1 - valid) / 2,
        "valid_mass": valid,
        "covered": int((log_of(q) > log_p - math.log(10)).sum()),
    }
