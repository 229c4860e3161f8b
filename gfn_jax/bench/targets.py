"""The targets of PosteriorBench, by name, each small enough to be listed whole on a CPU.

    numbers            integers 0..100, uniform: every sequence of up to three digits, the wrong ones with their penalty
    stories-infill     p_LM(X Z Y) of the tiny story model, over all Z of at most two tokens
    stories-power      p_LM(Z stop | X)^2 of the same model, over the same kind of list
    reviews-answer     p_LM(X Z Y) of the tiny review model, Y being the label
    stories260k-*      the same three kinds with a model of 512 tokens, where its folder is given: 144,781 Z
                       of the 380 that write a text
    story-world        the hidden fourth sentence of generated stories: the sentences that the generator can write
    review-world       the reason of generated reviews, given its label: the reasons that there are
    countdown          expressions of four numbers with the right value
    arithmetic         p_LM(X Z Y)^(1/3) of chains of calls of the calculator for a sum of two numbers

Every one is exact. The short ones, `numbers` and `arithmetic` list all that their rules allow. The worlds and Countdown
list their support (`SupportReward`): everything else together has an R of e^-60 at most, which `ExactTarget.unlisted`
says and `make_target` holds against the lists. In all of them the policy's prompt is what the reward's model reads
before Z, so that a sampler's proposal is the base's own p_LM(Z | X).
"""

import dataclasses
import pathlib
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Int

from gfn_jax.bench.exact import ExactTarget, make_target
from gfn_jax.environments import Calculator, NoTool
from gfn_jax.evaluation.enumeration import enumerate_completions, listed_rollout
from gfn_jax.interfaces import Reward
from gfn_jax.models import decoder
from gfn_jax.models.checkpoint import load_model
from gfn_jax.models.language_model import LanguageModel
from gfn_jax.policy.constraint import Rules, make_constraint
from gfn_jax.rewards import PosteriorReward, Product
from gfn_jax.rewards.support import PENALTY, SupportReward
from gfn_jax.tasks.random_numbers import RandomNumbers, RandomNumbersConfig
from gfn_jax.text.batching import pad_left, pad_right
from gfn_jax.text.joining import encode_prompt
from gfn_jax.text.loading import load_tokenizer, model_folder
from gfn_jax.text.tokens import encode_after, token_strings
from gfn_jax.types import Query, Tokens
from gfn_jax.worlds import countdown
from gfn_jax.worlds.arithmetic_examples import make_example
from gfn_jax.worlds.numbers_corpus import PROMPTS
from gfn_jax.worlds.reviews import LABELS, REASONS, draw_reviews
from gfn_jax.worlds.reviews_corpus import ANSWER, EMPTY_REASONS, PROMPT
from gfn_jax.worlds.stories import draw_stories, events, posterior

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

POWER = 2.0
FLAT = 1 / 3  # the exponent of p_LM in `arithmetic`, whose base is sure of one chain
STOP = "."


@dataclasses.dataclass(frozen=True)
class Size:
    """How large targets are, and where the model is that is not shipped.

    Attributes:
        vocabulary: the most tokens that the Z of at most two are made of, the likeliest ones; None for all.
        queries: of the worlds and Countdown.
        stories260k: folder of that model, or None.
    """

    vocabulary: int | None = 64
    queries: int = 2
    stories260k: str | None = None


@dataclasses.dataclass(frozen=True)
class Base:
    """A model and its tokenizer."""

    model: LanguageModel
    tokenizer: "PreTrainedTokenizerFast"

    @classmethod
    def read(cls, name: str) -> "Base":
        """A shipped model, or that of a folder.

        Raises:
            ValueError, OSError: what is wrong with the folder, in one line.
        """
        folder = pathlib.Path(model_folder(name))
        return cls(LanguageModel(*load_model(folder)), load_tokenizer(folder))

    @property
    def vocab_size(self) -> int:
        """Of the model."""
        return self.model.shape.vocab_size

    def prompts(self, texts: Sequence[str]) -> Tokens:
        """[Q, P]."""
        return pad_left([encode_prompt(self.tokenizer, text) for text in texts], 0)

    def after(self, text: str, continuation: str) -> list[int]:
        """The ids of a text behind another."""
        return encode_after(self.tokenizer, text, continuation)


def numbers(size: Size) -> ExactTarget:
    """Integers, uniform on 0..100: the task of `configs/rng.py` over digits alone. A mode is a number."""
    base = Base.read("tiny-numbers")
    config = RandomNumbersConfig(
        prompt=next(iter(PROMPTS)),
        stop=None,
        distribution="uniform",
        low=0,
        high=100,
        mean=30.0,
        table={},
        penalty=10.0,
        min_length=0,
        max_length=3,
        digits_only=True,
        copies=1,
    )
    task = RandomNumbers(config, base.tokenizer, base.vocab_size)
    rules = Rules(task.constraint(), task.environment)

    def mode_of(query: int, completion: tuple[int, ...]) -> str | None:
        text = task.decode(list(completion))
        return text if text.isdigit() and text == str(int(text)) and int(text) in task.log_target else None

    listed = enumerate_completions(rules)
    return make_target(
        "numbers", base.model, task.reward(base.model.shape), rules, task.queries("train"), listed, mode_of
    )


def short(
    name: str, base: Base, before: str, after: str, size: Size, power: float = 1.0, max_length: int = 2
) -> ExactTarget:
    """p_LM(X Z Y)^`power` over all Z of at most `max_length` tokens, Y's first token being the stop.

    Args:
        name: of the target.
        base: the model.
        before: X.
        after: Y; where it is one token, Z is a continuation that ends there.
        size: how many different tokens Z is made of.
        power: alpha.
        max_length: most tokens of Z.
    """
    prompt = base.prompts([before])
    answer = base.after(f"{before} a", after)
    written = [i for i, text in enumerate(token_strings(base.tokenizer)[: base.vocab_size]) if text and i != answer[0]]
    tokens = likeliest(base.model, prompt, np.array(written, np.int32), size.vocabulary)
    rules = Rules(make_constraint(base.vocab_size, answer[0], max_length, token_ids=tokens), NoTool())
    query = Query(jnp.arange(1), prompt, prompt, pad_right([answer], 0))
    posterior_reward = PosteriorReward()
    reward: Reward = posterior_reward if power == 1.0 else Product((posterior_reward,), (power,))
    return make_target(name, base.model, reward, rules, query, enumerate_completions(rules))


def likeliest(
    model: LanguageModel, prompt: Tokens, among: Int[np.ndarray, " A"], count: int | None
) -> Int[np.ndarray, " K"]:
    """The `count` of some tokens that the model finds likeliest as the first or the second token after a prompt."""
    if count is None or count >= len(among):
        return among

    @jax.jit
    def next_probs(model: LanguageModel, tokens: Tokens) -> jax.Array:
        hidden, _ = decoder.prefill(model, tokens)
        return jax.nn.softmax(decoder.logits(decoder.select_head(model), hidden[:, -1]), axis=-1)

    first = np.asarray(next_probs(model, prompt))[0]
    rows, column = len(among), jnp.asarray(among)[:, None]
    longer = Tokens(
        ids=jnp.concatenate([jnp.repeat(prompt.ids, rows, axis=0), column], axis=1),
        mask=jnp.concatenate([jnp.repeat(prompt.mask, rows, axis=0), jnp.ones_like(column, bool)], axis=1),
    )
    second = first[among] @ np.asarray(next_probs(model, longer))
    return np.sort(among[np.argsort(-(first + second)[among], kind="stable")[:count]])


def stories_infill(size: Size) -> ExactTarget:
    """What happened to the kite, the rest of the story being known."""
    before = "Tom took a kite to the beach. He was tired and went there alone. It was a very windy day."
    return short("stories-infill", Base.read("tiny-stories"), before, " the kite into the sea.", size)


def stories_power(size: Size) -> ExactTarget:
    """The likely ends of a sentence, made likelier."""
    before = (
        "Ann took a ball to the park. She was happy and met Tom there. It was a very sunny day. She gave the ball to"
    )
    return short("stories-power", Base.read("tiny-stories"), before, STOP, size, POWER)


def reviews_answer(size: Size) -> ExactTarget:
    """A reason of two words for a label."""
    before = PROMPT.format(review="the dull script and that long mess with the second bore .")
    return short("reviews-answer", Base.read("tiny-reviews"), before, ANSWER.format(label=LABELS[1]), size)


def stories260k(name: str, before: str, after: str, power: float = 1.0) -> Callable[[Size], ExactTarget | None]:
    """A target of the model that is not shipped; None where its folder is not given."""

    def build(size: Size) -> ExactTarget | None:
        if size.stories260k is None:
            return None
        return short(name, Base.read(size.stories260k), before, after, size, power)

    return build


def supported(
    name: str,
    base: Base,
    contexts: Sequence[str],
    answers: Sequence[str],
    lists: Sequence[Sequence[str]],
    allowed: Callable[[str], bool],
    mode_of: Callable[[int, str], object | None],
) -> ExactTarget:
    """p_LM(X Z Y) of a world's own texts: everything else is out of its support.

    Args:
        name: of the target.
        base: the model.
        contexts: X of every query.
        answers: Y, all of which begin with the stop.
        lists: of every query the texts of Z, each as it stands behind X.
        allowed: which tokens may be written, by their texts, besides those that end Z.
        mode_of: (query, text of Z) -> its mode, or None.
    """
    ids = [[tuple(base.after(x, text)) for text in texts] for x, texts in zip(contexts, lists, strict=True)]
    answer_ids = [base.after(f"{x}{texts[0]}", y) for x, texts, y in zip(contexts, lists, answers, strict=True)]
    (stop,) = {row[0] for row in answer_ids}
    strings = token_strings(base.tokenizer)[: base.vocab_size]
    tokens = np.array([i for i, text in enumerate(strings) if text and i != stop and allowed(text)], np.int32)
    longest = max(len(row) for rows in ids for row in rows)
    rules = Rules(make_constraint(base.vocab_size, stop, longest, token_ids=tokens), NoTool())
    prompt = base.prompts(contexts)
    query = Query(jnp.arange(len(contexts)), prompt, prompt, pad_right(answer_ids, 0))
    reward = Product((PosteriorReward(), SupportReward.of(ids)), (1.0, 1.0))
    texts = [dict(zip(rows, own, strict=True)) for rows, own in zip(ids, lists, strict=True)]
    listed = [listed_rollout(rows, rules) for rows in ids]
    # Z has no stop in it and Y begins with one, so p_LM(Z Y | X) adds up to at most one over all Z.
    return make_target(
        name, base.model, reward, rules, query, listed, lambda q, row: mode_of(q, texts[q][row]), unlisted=-PENALTY
    )


def story_world(size: Size) -> ExactTarget:
    """The fourth sentence of a story, of those the generator can write after X. A mode is one that Y allows."""
    stories = draw_stories("test", size.queries)
    fitting = [posterior(story.beginning, story.ending) for story in stories]
    lists = [[f" {event.sentence[:-1]}" for event in events(story.beginning)] for story in stories]
    return supported(
        "story-world",
        Base.read("tiny-stories"),
        [story.beginning.text for story in stories],
        [f"{STOP} {story.ending}" for story in stories],
        lists,
        lambda text: not set(text) & set(".:\n"),
        lambda query, text: text if f"{text[1:]}{STOP}" in fitting[query] else None,
    )


def review_world(size: Size) -> ExactTarget:
    """Why a review has its label, of all reasons and the empty ones. A mode is a reason of that label."""
    reviews = draw_reviews("test", size.queries, 0)
    of_label = [{f" {reason.text}" for reason in REASONS if reason.label == review.label} for review in reviews]
    texts = [f" {text}" for text in (*(reason.text for reason in REASONS), *EMPTY_REASONS)]
    return supported(
        "review-world",
        Base.read("tiny-reviews"),
        [PROMPT.format(review=review.text) for review in reviews],
        [ANSWER.format(label=LABELS[review.label]) for review in reviews],
        [texts] * len(reviews),
        lambda text: text.strip().isalpha(),
        lambda query, text: text if text in of_label[query] else None,
    )


def countdown_target(size: Size) -> ExactTarget:
    """p_LM(Z | X) of the right expressions alone. A mode is a solution up to commutation and association."""
    problems = countdown.draw_problems("bench", size.queries)
    return supported(
        "countdown",
        Base.read("tiny-countdown"),
        [problem.question for problem in problems],
        [STOP] * len(problems),
        [[f" {text}" for text in countdown.solutions(problem)] for problem in problems],
        lambda text: text.strip() in (*map(str, countdown.DIGITS), *countdown.OPERATORS),
        lambda query, text: countdown.form(text[1:]),
    )


def arithmetic(size: Size, expression: str = "3 + 4", max_length: int = 5) -> ExactTarget:
    """Chains of calls over the question's own numbers and operator; the calculator writes what follows an "="."""
    base, example = Base.read("tiny-arithmetic"), make_example(expression)
    calculator = Calculator.from_tokenizer(base.tokenizer, max_abs_value=60)
    words = {*expression.split(), "="}
    tokens = np.array(sorted(base.after("1", f" {word}")[0] for word in words), np.int32)
    triggers = np.asarray(calculator.triggers)[: base.vocab_size]
    answer = base.after(f"{example.question} 1", example.answer_text)
    constraint = make_constraint(
        base.vocab_size,
        answer[0],
        max_length,
        token_ids=tokens,
        opens_call=np.pad(triggers, (0, base.vocab_size - len(triggers))),
        call_room=calculator.max_result_tokens,
    )
    rules, prompt = Rules(constraint, calculator), base.prompts([example.question])
    query = Query(jnp.arange(1), prompt, prompt, pad_right([answer], 0))

    reward = Product((PosteriorReward(),), (FLAT,))
    return make_target("arithmetic", base.model, reward, rules, query, enumerate_completions(rules))


# Name -> how it is built; None is returned where what it needs is not there.
TARGETS: dict[str, Callable[[Size], ExactTarget | None]] = {
    "numbers": numbers,
    "stories-infill": stories_infill,
    "stories-power": stories_power,
    "reviews-answer": reviews_answer,
    "stories260k-infill": stories260k(
        "stories260k-infill", "Once upon a time, there was a little", " named Lily. She loved to play."
    ),
    "stories260k-power": stories260k("stories260k-power", "One day, Tim went to the", STOP, POWER),
    "stories260k-answer": stories260k(
        "stories260k-answer", "Lily lost her toy. Lily was very", ". Her mom gave her a big hug."
    ),
    "story-world": story_world,
    "review-world": review_world,
    "countdown": countdown_target,
    "arithmetic": arithmetic,
}
