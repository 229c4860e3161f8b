r"""Story infilling (Hu et al. 2024, section 4.2): the fourth of five sentences, given the others.

The policy sees both ends, "Beginning: {X}\nEnding: {Y}\nMiddle:", and writes Z, a sentence without its full stop. The
frozen base is a language model of stories that has never seen such a prompt; it judges the story told in order,

    log R(Z) = log p_LM(Z Y | X),        so q(Z | X, Y) should be p_LM(Z | X, Y), the base's own posterior.

Of generated stories the target may be kept to the sentences that the generator could write after X (`unlisted`): a
small base also says what cannot happen, about 12 % of its posterior. Which of these sentences Y allows, and how likely
they are, is still the base's to say.

The stop is the full stop of Z, and Y begins with it (". He came home with wet feet."), as in arithmetic: q(stop | Z)
starts from what the base thinks of ending there, and every token of the story is scored once.

Z is one sentence: of the tokens that end one (with ".", "!" or "?" in them) only the stop may be written, and no
newline. Seeds are the true sentences that can be written so.
"""

import dataclasses
import functools
import logging
from typing import TYPE_CHECKING, Annotated

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from gfn_jax.datasets.rocstories import load_stories
from gfn_jax.environments import NoTool
from gfn_jax.evaluation.infilling import InfillingEvaluationConfig, InfillingEvaluator
from gfn_jax.interfaces import Reward
from gfn_jax.models.config import ModelConfig
from gfn_jax.policy.constraint import Constraint, make_constraint
from gfn_jax.rewards.compose import Product
from gfn_jax.rewards.posterior import PosteriorReward
from gfn_jax.rewards.support import SupportReward
from gfn_jax.sections import Count, Natural, Nonnegative, Range
from gfn_jax.tasks.task import TaskEntry
from gfn_jax.text.batching import make_seeds, pad_left, pad_right
from gfn_jax.text.joining import decode_after, encode_prompt
from gfn_jax.text.tokens import encode_after, pad_token, stop_token, token_strings
from gfn_jax.types import Query, Seeds
from gfn_jax.worlds.stories import Beginning, Room, draw_stories, events, posterior

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

logger = logging.getLogger(__name__)

STOP = "."
# What ends a sentence or a line; only the stop itself may be written.
ENDS = ".!?\n\r\t\v\f"
# Different stories are drawn until there are as many: beyond this it takes minutes, and in the end for ever.
Stories = Annotated[int, Range(1, 100_000)]
ROOMS: dict[str, Room] = {"train": "training", "validation": "validation", "test": "test"}


@dataclasses.dataclass(frozen=True)
class InfillingConfig:
    """What may be chosen about the task.

    Attributes:
        path: folder of the ROCStories CSV files; None for the project's own generated stories.
        train_stories: stories that training draws from; of ROCStories there are 900.
        validation_stories, test_stories: stories to validate and to test with; of ROCStories there are 100 each.
        seed_stories: training stories whose true fourth sentence seeds the replay buffer.
        min_length, max_length: tokens of Z.
        unlisted: nats off for a Z that the generator cannot write after X; 0 leaves the base's posterior as it is, the
            only target that there is of ROCStories.
    """

    path: str | None
    train_stories: Stories
    validation_stories: Stories
    test_stories: Stories
    seed_stories: Natural
    min_length: Natural
    max_length: Count
    unlisted: Nonnegative

    def __post_init__(self):
        if self.unlisted and self.path is not None:
            raise ValueError(f"unlisted is {self.unlisted}; of ROCStories no sentences are listed: it must be 0")
        if self.seed_stories > self.train_stories:
            raise ValueError(f"seed_stories is {self.seed_stories}; it must be at most train_stories")
        if self.min_length > self.max_length:
            raise ValueError(f"min_length is {self.min_length}; it must be at most max_length, {self.max_length}")


@dataclasses.dataclass(frozen=True)
class Problem:
    """X, the true Z and Y as texts, and, of a generated story, what the generator knows."""

    beginning: str
    middle: str
    ending: str
    world: Beginning | None = None

    @property
    def prompt(self) -> str:
        """What the policy sees."""
        return f"Beginning: {self.beginning}\nEnding: {self.ending}\nMiddle:"

    def story(self, middle: str) -> str:
        """The five sentences with another fourth one, given without its full stop."""
        return f"{self.beginning} {middle.strip()}{STOP} {self.ending}"


@dataclasses.dataclass(frozen=True)
class Infilling:
    """The task on one tokenizer and one model's vocabulary."""

    config: InfillingConfig
    tokenizer: "PreTrainedTokenizerFast"
    vocab_size: int
    # By sentence: X ends with a full stop, and which it is changes no token behind it.
    _encoded: dict[str, list[int] | None] = dataclasses.field(default_factory=dict, repr=False, compare=False)

    environment = NoTool()

    @functools.cached_property
    def splits(self) -> dict[str, list[Problem]]:
        """`train`, `validation` and `test`, which share no story.

        Raises:
            ValueError: there are fewer stories than the config asks for, or they cannot be read.
        """
        sizes = {split: getattr(self.config, f"{split}_stories") for split in ROOMS}
        if self.config.path is None:
            return {
                split: [
                    Problem(story.beginning.text, story.middle, story.ending, story.beginning)
                    for story in draw_stories(ROOMS[split], size)
                ]
                for split, size in sizes.items()
            }
        stories = load_stories(self.config.path)
        for split, size in sizes.items():
            if size > len(stories[split]):
                raise ValueError(f"infilling.{split}_stories is {size}; there are {len(stories[split])}")
        return {
            split: [Problem(" ".join(story[:3]), story[3], story[4]) for story in stories[split][:size]]
            for split, size in sizes.items()
        }

    @functools.cached_property
    def stop_id(self) -> int:
        """The token that ends Z."""
        return stop_token(self.tokenizer, STOP)

    @property
    def pad_id(self) -> int:
        """Fills masked positions; never seen."""
        return pad_token(self.tokenizer, self.stop_id)

    def constraint(self, training: bool = True) -> Constraint:
        """One sentence of `min_length` to `max_length` tokens."""
        del training
        strings = token_strings(self.tokenizer)[: self.vocab_size]
        written = [i for i, text in enumerate(strings) if text and not set(text) & set(ENDS)]
        return make_constraint(
            self.vocab_size,
            stop_id=self.stop_id,
            max_length=self.config.max_length,
            min_length=self.config.min_length,
            token_ids=np.asarray(written),
        )

    def queries(self, split: str) -> Query:
        """A split's problems: both ends for the policy, X as context and ". Y" as answer for the reward."""
        problems = self.splits[split]
        prompts = [encode_prompt(self.tokenizer, problem.prompt) for problem in problems]
        contexts = [encode_prompt(self.tokenizer, problem.beginning) for problem in problems]
        return Query(
            example_id=self._first(split) + jnp.arange(len(problems)),
            prompt=pad_left(prompts, self.pad_id),
            context=pad_left(contexts, self.pad_id),
            answer=pad_right([self._answer(problem) for problem in problems], self.pad_id),
        )

    def _first(self, split: str) -> int:
        """Where a split begins in the table of all: the reward's lists are of every split."""
        before = list(self.splits)[: list(self.splits).index(split)]
        return sum(len(self.splits[name]) for name in before)

    def _answer(self, problem: Problem) -> list[int]:
        """A full stop and Y; the word before them only stands for Z, on which their tokens do not depend."""
        ids = encode_after(self.tokenizer, f"{problem.beginning} a", f"{STOP} {problem.ending}")
        if ids[0] != self.stop_id:
            raise ValueError(f"the tokenizer does not set a full stop apart from what follows: {problem.ending!r:.60}")
        return ids

    def query_weight(self) -> Float[np.ndarray, " E"]:
        """All stories alike."""
        return np.ones(len(self.splits["train"]))

    def reward(self, model: ModelConfig) -> Reward:
        """Log p_LM(Z Y | X), less `unlisted` where the generator could not write Z."""
        if not self.config.unlisted:
            return PosteriorReward()
        lists = [list(self._listed(problem)) for problems in self.splits.values() for problem in problems]
        return Product((PosteriorReward(), SupportReward.of(lists, self.config.unlisted)), (1.0, 1.0))

    def encode_middle(self, problem: Problem, middle: str) -> list[int] | None:
        """A fourth sentence as the Z that it is, the stop excluded; None where it is not one that could be written."""
        sentence = middle.strip()
        if not sentence.endswith(STOP) or set(sentence[: -len(STOP)]) & set(ENDS):
            return None
        ids = encode_after(self.tokenizer, problem.beginning, f" {sentence[: -len(STOP)]}")
        return ids if self.config.min_length <= len(ids) <= self.config.max_length else None

    def seeds(self) -> Seeds:
        """The true sentences of the first `seed_stories` training stories, of those that can be written.

        Raises:
            ValueError: seeds are asked for, and none of these sentences can be written.
        """
        first = self.splits["train"][: self.config.seed_stories]
        encoded = [self.encode_middle(problem, problem.middle) for problem in first]
        found = [(index, ids) for index, ids in enumerate(encoded) if ids is not None]
        if len(found) < len(first):
            one = next(problem.middle for problem, ids in zip(first, encoded, strict=True) if ids is None)
            lengths = f"{self.config.min_length} to {self.config.max_length} tokens"
            refused = f"{len(first) - len(found)} of {len(first)} seed_stories are no sentence of {lengths}: {one!r}"
            if not found:
                raise ValueError(f"{refused}; infilling.seed_stories=0 starts with an empty buffer")
            logger.warning("%s", refused)
        return make_seeds(
            [index for index, _ in found], [ids for _, ids in found], self.stop_id, self.config.max_length
        )

    def candidates(self, split: str, example: int) -> dict[tuple[int, ...], float]:
        """Every Z that the generator could write after X, with its p(Z | X, Y), which is 0 for those that Y excludes.

        Empty where the story was not generated.

        Raises:
            ValueError: `min_length` or `max_length` excludes one of them.
        """
        problem = self.splits[split][example]
        if problem.world is None:
            return {}
        exact = posterior(problem.world, problem.ending)
        return {ids: exact.get(sentence, 0.0) for ids, sentence in self._listed(problem).items()}

    def _listed(self, problem: Problem) -> dict[tuple[int, ...], str]:
        """Every Z that the generator could write after X, and the sentence that it is."""
        assert problem.world is not None
        found = {}
        for event in events(problem.world):
            if event.sentence not in self._encoded:
                self._encoded[event.sentence] = self.encode_middle(problem, event.sentence)
            ids = self._encoded[event.sentence]
            if ids is None:
                raise ValueError(f"the lengths of Z exclude a sentence of the generator: {event.sentence!r}")
            found[tuple(ids)] = event.sentence
        return found

    def question(self, split: str, example: int) -> str:
        """X as text."""
        return self.splits[split][example].beginning

    def decode(self, ids: list[int]) -> str:
        """Z as text."""
        return decode_after(self.tokenizer, [self.stop_id], ids)


TASK = TaskEntry(
    section="infilling",
    config=InfillingConfig,
    evaluation=InfillingEvaluationConfig,
    task=lambda config, tokenizer, model: Infilling(config, tokenizer, model.vocab_size),
    evaluator=lambda config, task, model, temperature: InfillingEvaluator(task, PosteriorReward(), config, temperature),
    certified="validation",
    stand_in="tiny-stories",
)
