"""The reward that a config's `reward` section composes around the task's own.

    log R = task log R_task + unconditional log p(Z Y) + reverse log p(Z X)
            - penalty (missing required + present forbidden words) + automaton_weight automaton + function

Everything but the last is compiled into the step; a user's Python function sees decoded text and runs on the host,
between the step's two halves.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from gfn_jax.errors import UserCodeError, user_code
from gfn_jax.interfaces import Reward
from gfn_jax.models.config import ModelConfig
from gfn_jax.rewards.automaton import AutomatonReward, word_reward
from gfn_jax.rewards.compose import Product, Rearranged, context_last, without_context
from gfn_jax.rewards.posterior import PosteriorReward
from gfn_jax.sections import LARGEST_FLOAT, Nonnegative, Range, imported
from gfn_jax.tasks.checking import check_positions
from gfn_jax.tasks.task import Task
from gfn_jax.text.joining import encode_prompt
from gfn_jax.text.tokens import token_strings
from gfn_jax.types import Rollout

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

Exponent = Annotated[float, Range(-100, 100)]
RewardFunction = Callable[[Sequence[str], Sequence[str]], Sequence[float]]


@dataclasses.dataclass(frozen=True)
class RewardConfig:
    """Factors of the reward, in logarithms: exponents, and constraints.

    Attributes:
        task: exponent of the task's own reward, p_LM(X Z Y) for most.
        unconditional: exponent of p_LM(Z Y), without X; task 1, unconditional -0.5 is the contrast of both.
        reverse: exponent of p_LM(Z X): Z as what may come before X.
        required: words that Z must hold.
        forbidden: words that it must not.
        penalty: nats for each word that is missing, and for each that should be.
        automaton: "package.module:name" of a function (token strings) -> (following [states, V], value [states]).
        automaton_weight: the values are multiplied by it; 0 leaves the automaton out.
        function: "package.module:name" of a function (prompts, completions) -> log-factors in nats, on the host.
    """

    task: Exponent
    unconditional: Exponent
    reverse: Exponent
    required: tuple[str, ...]
    forbidden: tuple[str, ...]
    penalty: Nonnegative
    automaton: str | None
    automaton_weight: Exponent
    function: str | None


def build_reward(config: RewardConfig, task: Task, model: ModelConfig, tokenizer: "PreTrainedTokenizerFast") -> Reward:
    """All compiled factors; the task's own reward alone where nothing else is asked for.

    Raises:
        ValueError: an automaton that cannot be imported or is none, a word that is none, no factor at all; or Z is to
            begin a text, and the tokenizer has no token for that.
    """
    factors: list[tuple[float, Reward]] = []
    if config.task:
        factors.append((config.task, task.reward(model)))
    if config.unconditional or config.reverse:
        start = jnp.asarray(encode_prompt(tokenizer, ""), jnp.int32)
        free = PosteriorReward()
        backwards = functools.partial(context_last, start=start)
        if config.unconditional:
            factors.append((config.unconditional, Rearranged(free, functools.partial(without_context, start=start))))
        if config.reverse:
            check_positions(model, backwards(task.queries("train")), task.constraint().max_length)
            factors.append((config.reverse, Rearranged(free, backwards)))
    if config.required or config.forbidden:
        strings = _strings(tokenizer, model)
        factors.append((1.0, word_reward(strings, config.required, config.forbidden, config.penalty)))
    if config.automaton is not None and config.automaton_weight:
        automaton = build_automaton(config.automaton, _strings(tokenizer, model))
        factors.append((config.automaton_weight, automaton))
    if not factors:
        raise ValueError("the config's reward has no factor: every exponent is 0 and there is no constraint")
    if [weight for weight, _ in factors] == [1.0]:
        return factors[0][1]
    weights, rewards = zip(*factors, strict=True)
    return Product(rewards, weights)


def build_automaton(path: str, strings: Sequence[str]) -> AutomatonReward:
    """The automaton that a user's function makes for the tokens' texts.

    Raises:
        ValueError: the function cannot be imported, raises, or returns something else.
    """
    function, name = imported(path), f"reward.automaton {path}"
    with user_code(name):
        made = function(strings)
    try:
        following, value = (np.asarray(table) for table in made)
        right = following.dtype.kind in "iu" and value.ndim == 1 and bool(np.isfinite(value).all())
    except (TypeError, ValueError):
        right = False
    if not right or following.shape != (len(value), len(strings)):
        raise UserCodeError(
            f"{name} must return (following, value): whole numbers [states, {len(strings)}] and finite numbers [states]"
        )
    try:
        return AutomatonReward(following, value)
    except ValueError as error:
        raise UserCodeError(f"{name}: {error}") from error


def _strings(tokenizer: "PreTrainedTokenizerFast", model: ModelConfig) -> list[str]:
    strings = token_strings(tokenizer)
    return [*strings, *[""] * (model.vocab_size - len(strings))]


@dataclasses.dataclass(frozen=True)
class HostReward:
    """A user's function as a factor of the reward.

    Attributes:
        function: (prompts, completions) -> log-factors in nats.
        prompts: X of every training query, as text.
        decode: tokens of Z -> text.
        name: what the function is called in messages.
    """

    function: RewardFunction
    prompts: Sequence[str]
    decode: Callable[[list[int]], str]
    name: str = "reward.function"

    def __call__(self, example_id: Int[np.ndarray, " B"], rollout: Rollout) -> Float[np.ndarray, "B T"]:
        """Nats for every prefix that may be a completion, 0 elsewhere; equal texts are asked about once.

        Raises:
            ValueError: the function raises, or returns something else than one finite number a completion.
        """
        completion, states = np.asarray(rollout.completion), np.asarray(rollout.state_mask)
        where = np.argwhere(states)
        out = np.zeros(states.shape, np.float32)
        if not len(where):  # a tool may be writing in all of them
            return out
        texts = [(self.prompts[example_id[b]], self.decode(completion[b, :t].tolist())) for b, t in where]
        distinct = list(dict.fromkeys(texts))
        with user_code(self.name):
            answered = self.function(*map(list, zip(*distinct, strict=True)))
        value_of = dict(zip(distinct, self._numbers(answered, len(distinct)), strict=True))
        out[tuple(where.T)] = [value_of[text] for text in texts]
        return out

    def _numbers(self, answered: Any, count: int) -> Float[np.ndarray, " count"]:
        try:
            values = np.asarray(answered, np.float64)
        except (TypeError, ValueError):
            values = np.zeros(())
        if values.shape != (count,) or not (np.abs(values) <= LARGEST_FLOAT).all():
            found = "some that are not finite" if values.shape == (count,) else f"{answered!r:.60}"
            raise UserCodeError(
                f"{self.name} must return {count} finite numbers, one a completion, in nats; it returned {found}"
            )
        return values


def build_host_reward(config: RewardConfig, task: Task, tokenizer: "PreTrainedTokenizerFast") -> HostReward | None:
    """The user's function, if there is one.

    Raises:
        ValueError: it cannot be imported, or there are several processes, which would each see a part of the rows.
    """
    if config.function is None:
        return None
    if jax.process_count() > 1:
        raise ValueError("reward.function runs in one process only; write it as reward.automaton, or use one host")
    context = task.queries("train").context
    ids, mask = np.asarray(context.ids), np.asarray(context.mask)
    prompts = [str(tokenizer.decode(row[real])) for row, real in zip(ids, mask, strict=True)]
    name = f"reward.function {config.function}"
    return HostReward(imported(config.function), prompts, task.decode, name)
