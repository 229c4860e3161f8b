"""Sentence continuation (Hu et al. 2024, section 4.1): likely next sentences, without searching for them.

X is a prompt of one to three sentences, Z the next sentence without its full stop. That full stop is the stop, forced
at the maximum length, and the reward is the frozen model's own probability of the whole sentence,

    log R(Z) = log p_LM(Z stop | X),        to be tempered: q(Z | X) = R^(1/T) / sum R^(1/T).

It is the `PosteriorReward` whose answer is the stop alone. What ends a sentence and what may not be in one is read off
the tokens' surface texts: the stop is the token that writes "." behind a word. Every other token with a full stop in
it ('."', '.)', ' .', '...', '.com') is illegal, since Z would go on behind its own end; so the closing quote or bracket
behind a full stop is never part of Z. "!" and "?" do not end Z, as in the paper.
"""

import dataclasses
import functools
import logging
import re
from collections.abc import Callable
from typing import TYPE_CHECKING

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from gfn_jax.datasets.prompts import ABBREVIATIONS, TITLES, load_prompts, split_prompts
from gfn_jax.environments import NoTool
from gfn_jax.evaluation.continuation import ContinuationEvaluationConfig, ContinuationEvaluator
from gfn_jax.models.config import ModelConfig
from gfn_jax.policy.constraint import Constraint, make_constraint
from gfn_jax.rewards.posterior import PosteriorReward
from gfn_jax.sections import Count, Natural
from gfn_jax.tasks.task import TaskEntry
from gfn_jax.text.batching import make_seeds, pad_left, pad_right
from gfn_jax.text.joining import decode_after, leading_ids
from gfn_jax.text.tokens import encode_after, stop_token, token_strings
from gfn_jax.types import Query, Seeds
from gfn_jax.worlds.stories import draw_stories

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

logger = logging.getLogger(__name__)

_URL = re.compile(r"https?|www|://")
_REPEAT = re.compile(r"([^\w\s]|_)\s?\1")
_NOT_END = {*TITLES, *ABBREVIATIONS}

# Rule -> whether a token with this surface text is illegal.
ILLEGAL: dict[str, Callable[[str], bool]] = {
    "newlines": lambda text: any(mark in text for mark in "\n\r\t\v\f"),
    "urls": lambda text: _URL.search(text) is not None,
    "repeats": lambda text: _REPEAT.search(text) is not None,
    # "I" and "A" are words. A vocabulary of a few hundred tokens spells with the others: leave this rule out there.
    "initials": lambda text: len(text.strip()) == 1 and text.strip().isupper() and text.strip() not in "IA",
    "titles": lambda text: text.strip() in _NOT_END,
}


@dataclasses.dataclass(frozen=True)
class ContinuationConfig:
    """What may be chosen about the task.

    Attributes:
        path: a file with a prompt a line, or raw text; None for openings of the project's own stories.
        raw: `path` is raw text, to be cut into prompts by the paper's rule (1-3 sentences of 5-30 tokens).
        count: prompts of both splits together, or all there are where there are fewer; None for all.
        validation: how many of them are held out.
        begin_of_text: put the tokenizer's begin-of-text before a prompt, for models that saw it before every text.
        stop: what ends a sentence, a single token.
        min_length, max_length: tokens of Z.
        illegal: the rules of `ILLEGAL` that hold.
    """

    path: str | None
    raw: bool
    count: Count | None
    validation: Count
    begin_of_text: bool
    stop: str
    min_length: Natural
    max_length: Count
    illegal: tuple[str, ...]

    def __post_init__(self):
        unknown = sorted(set(self.illegal) - set(ILLEGAL))
        if unknown:
            raise ValueError(f"illegal has unknown {', '.join(unknown)}; there are {', '.join(ILLEGAL)}")
        if self.min_length > self.max_length:
            raise ValueError(f"min_length is {self.min_length}; it must be at most max_length, {self.max_length}")


@dataclasses.dataclass(frozen=True)
class Continuation:
    """The task on one tokenizer and one model's vocabulary."""

    config: ContinuationConfig
    tokenizer: "PreTrainedTokenizerFast"
    vocab_size: int

    environment = NoTool()

    @functools.cached_property
    def splits(self) -> dict[str, list[str]]:
        """`train` and `validation`, which share no prompt."""
        config = self.config
        if config.path is not None:
            splits = load_prompts(config.path, config.validation, config.raw, config.count)
        else:
            logger.info("prompts: openings of the project's own stories (data.path names a file of yours)")
            splits = split_prompts(story_openings(), config.count, config.validation)
        found = sum(map(len, splits.values()))
        if config.count is not None and found < config.count:
            logger.info("prompts: all %d there are; continuation.count would take %d", found, config.count)
        return splits

    @functools.cached_property
    def stop_id(self) -> int:
        """The token that ends Z."""
        return stop_token(self.tokenizer, self.config.stop)

    @functools.cached_property
    def illegal_ids(self) -> dict[str, list[int]]:
        """Rule -> the ids that it forbids; `ends` (the stop inside a token) and `special` always hold."""
        strings = token_strings(self.tokenizer)[: self.vocab_size]
        special = [i for i in self.tokenizer.all_special_ids if i != self.stop_id]
        found = {
            "special": special + list(range(len(strings), self.vocab_size)),
            "ends": [i for i, text in enumerate(strings) if self.config.stop in text and i != self.stop_id],
        }
        for rule in self.config.illegal:
            found[rule] = [i for i, text in enumerate(strings) if ILLEGAL[rule](text) and i != self.stop_id]
        return found

    @functools.cached_property
    def _constraint(self) -> Constraint:
        illegal = {i for ids in self.illegal_ids.values() for i in ids}
        shares = ", ".join(f"{rule} {len(ids)}" for rule, ids in self.illegal_ids.items())
        logger.info("illegal tokens: %d of %d (%s)", len(illegal), self.vocab_size, shares)
        legal = np.setdiff1d(np.arange(self.vocab_size), np.fromiter(illegal, int))
        return make_constraint(
            self.vocab_size, self.stop_id, self.config.max_length, self.config.min_length, token_ids=legal
        )

    def constraint(self, training: bool = True) -> Constraint:
        """All legal tokens, and the stop; the same at test."""
        del training
        return self._constraint

    def queries(self, split: str) -> Query:
        """The policy and the reward read the same prompt; Y is the stop."""
        rows = [[*self.begin_ids, *encode_after(self.tokenizer, "", text)] for text in self.splits[split]]
        prompt = pad_left(rows, self.stop_id)
        answer = pad_right([[self.stop_id]] * len(rows), self.stop_id)
        return Query(example_id=jnp.arange(len(rows)), prompt=prompt, context=prompt, answer=answer)

    @functools.cached_property
    def begin_ids(self) -> list[int]:
        """What stands before every prompt: what the tokenizer itself puts there, or a begin-of-text.

        Raises:
            ValueError: a begin-of-text is wanted and the tokenizer has none.
        """
        begin = self.tokenizer.bos_token_id
        if self.config.begin_of_text and begin is None:
            raise ValueError("continuation.begin_of_text is set, and the tokenizer has no such token")
        return [begin] if self.config.begin_of_text else leading_ids(self.tokenizer)

    def query_weight(self) -> Float[np.ndarray, " E"]:
        """All prompts alike."""
        return np.ones(len(self.splits["train"]))

    def reward(self, model: ModelConfig) -> PosteriorReward:
        """Log p_LM(Z stop | X)."""
        return PosteriorReward()

    def seeds(self) -> Seeds:
        """None: nobody has likely sentences."""
        return make_seeds([], [], self.stop_id, self.config.max_length)

    def question(self, split: str, example: int) -> str:
        """X as text."""
        return self.splits[split][example]

    def decode(self, ids: list[int]) -> str:
        """Z as text, without its full stop, as it reads behind a sentence."""
        return decode_after(self.tokenizer, [self.stop_id], ids)


def story_openings(stories: int = 2000) -> list[str]:
    """The first one, two or three sentences of the project's own stories, each once."""
    texts = (
        " ".join(story.sentences[: 1 + number % 3]) for number, story in enumerate(draw_stories("training", stories))
    )
    return list(dict.fromkeys(texts))


TASK = TaskEntry(
    section="continuation",
    config=ContinuationConfig,
    evaluation=ContinuationEvaluationConfig,
    task=lambda config, tokenizer, model: Continuation(config, tokenizer, model.vocab_size),
    evaluator=lambda config, task, model, temperature: ContinuationEvaluator(task, config, temperature),
    certified="validation",
    stand_in="tiny-stories",
)
