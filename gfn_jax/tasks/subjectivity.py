"""The task of telling whether a movie review is objective or subjective, and why (Hu et al. 2024, 4.3, appendix D).

    Classify this movie review as objective or subjective: "{X}" This review is {Z}, so it is {Y}.

The policy sees X alone and writes the reason Z, a few words; the reward is p_LM(Z Y | X), Y being ", so it is
objective.". The stop is Y's comma, so that log q(stop | Z) starts from what the base already thinks of ending there.
Only the 10, 20 or 50 labels of the training table are ever read. The buffer starts with what the base itself says
when the label is given away (inverse prompting): "This review is {Y} because it is" ... cut at the first non-word.
"""

import dataclasses
import functools
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from gfn_jax.datasets import subj
from gfn_jax.datasets.building import default_cache
from gfn_jax.environments import NoTool
from gfn_jax.evaluation.subjectivity import SubjectivityEvaluationConfig, SubjectivityEvaluator
from gfn_jax.interfaces import Reward
from gfn_jax.models.config import ModelConfig
from gfn_jax.models.language_model import LanguageModel
from gfn_jax.models.lora import Lora
from gfn_jax.policy.constraint import Constraint, Rules, make_constraint
from gfn_jax.policy.rollout import Behavior, rollout
from gfn_jax.rewards.compose import Adapted
from gfn_jax.rewards.posterior import Context, PosteriorReward
from gfn_jax.sections import Count, Natural, Nonnegative, Range
from gfn_jax.tasks.checking import check_positions, check_shots
from gfn_jax.tasks.task import TaskEntry
from gfn_jax.text.batching import pad_left, pad_right
from gfn_jax.text.joining import encode_prompt
from gfn_jax.text.tokens import encode_after, pad_token, token_strings
from gfn_jax.types import Query, Rollout, Seeds, Tokens
from gfn_jax.worlds.reviews import LABELS, draw_reviews
from gfn_jax.worlds.reviews_corpus import ANSWER, INVERSE, PROMPT

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

# Different reviews are drawn until there are as many: far beyond this it takes for ever.
Reviews = Annotated[int, Range(1, 20_000)]
DIRECT = " {label}."  # behind the prompt: the label without a reason
_WORD = re.compile(r" ?[A-Za-z][A-Za-z'’-]*\Z")


@dataclasses.dataclass(frozen=True)
class SubjectivityConfig:
    """What may be chosen about the task.

    Attributes:
        path: folder of the original SUBJ files; None for the project's own synthetic reviews.
        labels: labelled reviews to train with; 10, 20, 50 or 8000 of SUBJ.
        data_seed: of the synthetic reviews.
        validation, test: reviews to validate and to test with; SUBJ has 2,000 to test with.
        min_length, max_length: tokens of Z.
        forbidden: no token of Z may hold one of these (the labels, which would make Z an answer and no reason).
        seed_samples: completions by inverse prompting a query that the buffer starts with; 0 switches it off.
        wrong_label_penalty: nats taken off where the base finds the wrong label likelier after X Z; the code released
            with the paper takes 50, the paper itself says nothing of it: 0.
        reward_adapter: a PEFT folder, the adapter that the last M-step left to the reward model; None for the base.
    """

    path: str | None
    labels: Reviews
    data_seed: Natural
    validation: Reviews
    test: Reviews
    min_length: Natural
    max_length: Count
    forbidden: tuple[str, ...]
    seed_samples: Natural
    wrong_label_penalty: Nonnegative
    reward_adapter: str | None

    def __post_init__(self):
        if self.min_length > self.max_length:
            raise ValueError(f"min_length is {self.min_length}; it must be at most max_length, {self.max_length}")


@dataclasses.dataclass(frozen=True)
class Subjectivity:
    """The task on one tokenizer and one model's vocabulary; `adapter` is the reward model's."""

    config: SubjectivityConfig
    tokenizer: "PreTrainedTokenizerFast"
    vocab_size: int
    adapter: Lora | None = None

    environment = NoTool()
    labels = LABELS

    @functools.cached_property
    def splits(self) -> dict[str, list[tuple[str, int]]]:
        """`train`, `validation` and `test`: (review, label) each.

        Raises:
            FileNotFoundError, ValueError: the data is not there, or has no such training set.
        """
        config = self.config
        if config.path is None:
            counts = {"train": config.labels, "validation": config.validation, "test": config.test}
            return {
                split: [(review.text, review.label) for review in draw_reviews(split, count, config.data_seed)]
                for split, count in counts.items()
            }
        load = functools.partial(subj.load, config.path, cache=default_cache())
        everything = load(split="train")
        if config.labels == len(everything):
            train = everything[: -config.validation]
        elif f"train_{config.labels}" in subj.FILES:
            train = load(split=f"train_{config.labels}")
        else:
            raise ValueError(f"subjectivity.labels is {config.labels}; SUBJ has 10, 20, 50 and all {len(everything)}")
        taken = {text for text, _ in train}
        rest = {
            "validation": [example for example in everything if example[0] not in taken],
            "test": load(split="test"),
        }
        for split, examples in rest.items():
            asked = getattr(config, split)
            if not train or asked > len(examples):
                raise ValueError(
                    f"subjectivity.{split} is {asked}; {config.path} has {len(examples)} beside the {len(train)} "
                    "to train with"
                )
        return {"train": train, **{split: examples[: getattr(config, split)] for split, examples in rest.items()}}

    def truth(self, split: str) -> Int[np.ndarray, " M"]:
        """The labels, as indices into `labels`."""
        return np.array([label for _, label in self.splits[split]], np.int32)

    def prompt(self, review: str) -> str:
        """What the policy sees."""
        return PROMPT.format(review=review)

    def queries(self, split: str, shots: int = 0) -> Query:
        """A split's reviews with their labels as answers; `shots` labelled training reviews stand before the prompt."""
        examples = self.splits[split]
        before = "".join(
            self.prompt(review) + DIRECT.format(label=LABELS[label]) + "\n"
            for review, label in self.splits["train"][:shots]
        )
        prompt = pad_left([self.encode_prompt(before + self.prompt(review)) for review, _ in examples], self.pad_id)
        return Query(
            example_id=jnp.arange(len(examples)),
            prompt=prompt,
            context=prompt,
            answer=jax.tree.map(lambda x: x[self.truth(split)], self.answers()),
        )

    def encode_prompt(self, text: str) -> list[int]:
        """The ids of a text with which everything begins."""
        return encode_prompt(self.tokenizer, text)

    def answers(self, template: str = ANSWER) -> Tokens:
        """[labels, Y]: what follows a reason for each label; with `DIRECT`, what follows the prompt itself."""
        before = self.prompt("a film .") + ("" if template == DIRECT else " a review")
        return pad_right(
            [encode_after(self.tokenizer, before, template.format(label=label)) for label in LABELS], self.pad_id
        )

    def direct_answers(self) -> Tokens:
        """[labels, Y]: what follows the prompt where no reason is asked for."""
        return self.answers(DIRECT)

    @property
    def stop_id(self) -> int:
        """The token that ends Z: Y's first."""
        return encode_after(self.tokenizer, f"{self.prompt('a film .')} a review", ANSWER)[0]

    @property
    def pad_id(self) -> int:
        """Fills masked positions; never seen."""
        return pad_token(self.tokenizer, self.stop_id)

    @functools.cached_property
    def is_word(self) -> Bool[np.ndarray, " V"]:
        """Which ids are words or parts of one."""
        known = [bool(_WORD.match(text)) for text in token_strings(self.tokenizer)]
        return np.array([*known, *[False] * self.vocab_size][: self.vocab_size])

    def constraint(self, training: bool = True) -> Constraint:
        """Words; the stop; `min_length` to `max_length` tokens, at test too."""
        del training
        strings = token_strings(self.tokenizer)
        ids = [i for i in np.flatnonzero(self.is_word) if not any(word in strings[i] for word in self.config.forbidden)]
        return make_constraint(
            self.vocab_size, self.stop_id, self.config.max_length, self.config.min_length, np.array(ids, np.int32)
        )

    def query_weight(self) -> Float[np.ndarray, " E"]:
        """All reviews alike."""
        return np.ones(len(self.splits["train"]))

    def reward(self, model: ModelConfig) -> Reward:
        """p_LM(Z Y | X), less the penalty where the config has one.

        Raises:
            ValueError: it does not fit into the model's positions.
        """
        check_positions(model, self.queries("train"), self.config.max_length)
        posterior = PosteriorReward()
        reward: Reward = posterior
        if self.config.wrong_label_penalty:
            wrong = jax.tree.map(lambda x: x[1 - self.truth("train")], self.answers())
            reward = PenalizedReward(posterior, wrong, self.config.wrong_label_penalty)
        return reward if self.adapter is None else Adapted(reward, self.adapter)

    def seeds(self) -> Seeds:
        """None: they need the base (`prompted_seeds`)."""
        horizon = self.config.max_length + 1
        return Seeds(jnp.zeros(0, jnp.int32), jnp.zeros((0, horizon), jnp.int32), jnp.zeros(0, jnp.int32))

    def prompted_seeds(self, base: LanguageModel, key: jax.Array) -> Seeds:
        """What the base says is the reason, given the label: `seed_samples` completions a query, pure in `base`.

        One without a word is left with length 0, which no constraint with a `min_length` lets into the buffer.
        """
        train, samples = self.splits["train"], self.config.seed_samples
        if not samples:
            return self.seeds()
        texts = [self.prompt(review) + INVERSE.format(label=LABELS[label]) for review, label in train]
        prompt = jax.tree.map(jnp.asarray, pad_left([self.encode_prompt(text) for text in texts], self.pad_id))
        anything = make_constraint(self.vocab_size, self.stop_id, self.config.max_length)
        rules = Rules(anything, self.environment)
        said = rollout(base.adapted(self.adapter), prompt, rules, Behavior.at(1.0, len(train) * samples), key)
        words = said.token_mask & jnp.asarray(self.is_word)[said.completion]
        length = jnp.cumprod(words, axis=1).sum(1, dtype=jnp.int32)
        return Seeds(jnp.arange(len(train)), said.completion, length)

    def review(self, split: str, example: int) -> str:
        """X as text."""
        return self.splits[split][example][0]

    question = review

    def decode(self, ids: Sequence[int]) -> str:
        """Z as text."""
        return str(self.tokenizer.decode(list(ids)))


@dataclasses.dataclass(frozen=True)
class PenalizedReward:
    """log R - penalty wherever the wrong label scores higher: the released code's variant.

    Attributes:
        posterior: log p_LM(Z Y | X).
        wrong: [E, Y], the other label's answer to every training query.
        penalty: nats.
    """

    posterior: PosteriorReward
    wrong: Tokens
    penalty: float

    def prepare(self, model: LanguageModel) -> tuple[Context, Tokens]:
        """What the posterior keeps, and the wrong answers."""
        return self.posterior.prepare(model), jax.tree.map(jnp.asarray, self.wrong)

    def log_reward(
        self, model: LanguageModel, prepared: tuple[Context, Tokens], query: Query, rollout: Rollout
    ) -> Float[Array, "B T"]:
        """Both labels scored after every prefix."""
        context, wrong = prepared
        other = dataclasses.replace(query, answer=jax.tree.map(lambda x: x[query.example_id], wrong))
        right, wrong_reward = (self.posterior.log_reward(model, context, q, rollout) for q in (query, other))
        return right - jnp.where(wrong_reward > right, self.penalty, 0.0)


def make_evaluator(
    config: SubjectivityEvaluationConfig, task: Subjectivity, model: ModelConfig, temperature: float
) -> SubjectivityEvaluator:
    """Votes of rationales."""
    check_shots(config.shots, len(task.splits["train"]), "subjectivity.labels")
    return SubjectivityEvaluator(task, config)


TASK = TaskEntry(
    section="subjectivity",
    config=SubjectivityConfig,
    evaluation=SubjectivityEvaluationConfig,
    task=lambda config, tokenizer, model: Subjectivity(config, tokenizer, model.vocab_size),
    evaluator=make_evaluator,
    certified="validation",
    stand_in="tiny-reviews",
)
