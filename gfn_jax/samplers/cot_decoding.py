"""Chain-of-thought decoding (Wang & Zhou 2024, arXiv:2402.10200): k first tokens, each continued greedily.

Of the paths that begin with the k likeliest tokens, the one whose answer the model is surest of is taken. The
confidence of a path is

    Delta = 1/|answer| sum over t in the answer of p(x_t^1) - p(x_t^2),

x_t^1 and x_t^2 being the two likeliest tokens in state t, under the constraint; where a tool wrote token t, they are
what the policy would have chosen from there. Which tokens are the answer is the task's to say (`Span`).
"""

import dataclasses
import re
from collections.abc import Callable
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from gfn_jax.models import decoder
from gfn_jax.models.language_model import LanguageModel
from gfn_jax.models.layers import NEGATIVE
from gfn_jax.policy.constraint import Rules
from gfn_jax.policy.rollout import Behavior, rollout
from gfn_jax.policy.score import score_states
from gfn_jax.samplers.sampler import Problem, Weighed, generated_tokens, per_query
from gfn_jax.text.tokens import token_strings
from gfn_jax.types import Rollout, Tokens

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

Span = Callable[[Rollout], Bool[Array, "B T"]]


@dataclasses.dataclass(frozen=True)
class LastTokens:
    """The answer is the last tokens of Z before the stop; all of a shorter Z.

    Attributes:
        count: how many.
    """

    count: int = 1

    def __post_init__(self):
        if self.count < 1:
            raise ValueError(f"an answer has at least 1 token, not {self.count}")

    def __call__(self, rollout: Rollout) -> Bool[Array, "B T"]:
        length = rollout.token_mask.sum(axis=1, keepdims=True)
        return rollout.token_mask & (jnp.arange(rollout.token_mask.shape[1]) >= length - self.count)


@dataclasses.dataclass(frozen=True, eq=False)
class NumberBehind:
    """The answer is the number directly behind the last mark; make it with `from_tokenizer`.

    Attributes:
        marks: the token ends in the mark.
        digits: it has a digit.
        signs: it has a sign, which ends a number that has a digit already.
        numeric: it is made of spaces, a sign and digits alone.
    """

    marks: Bool[np.ndarray, " V"]
    digits: Bool[np.ndarray, " V"]
    signs: Bool[np.ndarray, " V"]
    numeric: Bool[np.ndarray, " V"]

    @classmethod
    def from_tokenizer(cls, tokenizer: "PreTrainedTokenizerFast", mark: str = "=") -> "NumberBehind":
        """Reads the tokens' texts.

        Raises:
            ValueError: no token ends in the mark.
        """
        strings = token_strings(tokenizer)
        marks = np.array([text.endswith(mark) for text in strings])
        if not marks.any():
            raise ValueError(f"the tokenizer has no token that ends in {mark!r}")
        return cls(
            marks=marks,
            digits=np.array([any(c in "0123456789" for c in text) for text in strings]),
            signs=np.array([any(c in "+-" for c in text) for text in strings]),
            numeric=np.array([re.fullmatch(r" *[-+]? *[0-9]* *", text) is not None and text != "" for text in strings]),
        )

    def __call__(self, rollout: Rollout) -> Bool[Array, "B T"]:
        read = {name: jnp.asarray(getattr(self, name))[rollout.completion] for name in ("digits", "signs", "numeric")}
        columns = jnp.arange(rollout.completion.shape[1])
        marked = jnp.asarray(self.marks)[rollout.completion] & rollout.token_mask
        last = jnp.where(marked, columns, -1).max(axis=1, keepdims=True)
        behind = rollout.token_mask & (last >= 0) & (columns > last)
        digits = behind & read["digits"]
        begun = jnp.cumsum(digits, axis=1) - digits > 0
        over = behind & (~read["numeric"] | (read["signs"] & begun))
        return behind & (jnp.cumsum(over, axis=1) == 0)


@dataclasses.dataclass(frozen=True)
class CoTDecoding:
    """Branches over the first token, then decodes greedily; the budget is how many branches.

    Attributes:
        span: which tokens of a completion are its answer. A path without one has confidence 0.
        aggregate: every path counts with its confidence, for a weighted vote over answers (the paper's aggregate over
            paths, `votes.majority`); otherwise the surest path alone counts.
    """

    span: Span = LastTokens()
    aggregate: bool = False

    def sample(self, model: LanguageModel, problem: Problem, budget: int, key: jax.Array) -> Weighed:
        """The n-th row of a query begins with its n-th likeliest token. Nothing is drawn.

        Rows for which no first token is left have weight -inf. `log_behavior` is 0: greedy choices are certain.
        `notes`: the largest confidence. `scored`: the tokens of all paths, read once more for their confidence.
        """
        prompt, rules = problem.query.prompt, problem.rules
        queries = len(problem.query.example_id)
        branch = jnp.tile(jnp.arange(budget), queries)

        def narrow(t: Array, logits: Float[Array, "B A"], allowed: Bool[Array, "B A"]) -> Bool[Array, "B A"]:
            rank = jnp.where(branch < allowed.sum(axis=1), branch, 0)
            _, ranked = jax.lax.top_k(jnp.where(allowed, logits, NEGATIVE), min(budget, logits.shape[1]))
            own = jnp.take_along_axis(ranked, rank[:, None], axis=1)
            return jnp.where(t == 0, jnp.arange(logits.shape[1]) == own, allowed)

        drawn = rollout(model, prompt, rules, Behavior.at(0.0, queries * budget), key, narrow)
        sure = per_query(confidence(model, prompt, drawn, rules, self.span(drawn)), queries)
        ended = per_query(drawn.stop.any(axis=1), queries)
        sure = jnp.where(ended & (jnp.arange(budget) < _first_choices(rules)), sure, -jnp.inf)
        chosen = jnp.arange(budget) == jnp.argmax(sure, axis=1)[:, None]
        one = jnp.where(chosen & (sure > -jnp.inf), 0.0, -jnp.inf)
        return Weighed(
            rollout=drawn,
            log_weight=(jnp.log(jnp.maximum(sure, 0.0)) if self.aggregate else one).reshape(-1),
            log_reward=None,
            log_z=None,
            generated=generated_tokens(drawn, queries),
            scored=per_query(drawn.token_mask.sum(axis=1), queries).sum(axis=1),
            notes={"confidence": sure.max(axis=1)},
        )


def confidence(
    model: LanguageModel, prompt: Tokens, rollout: Rollout, rules: Rules, answer: Bool[Array, "B T"]
) -> Float[Array, " B"]:
    """The mean, over an answer's tokens, of how much likelier the likeliest token was than the next; 0 without answer.

    Args:
        model: the policy.
        prompt: [Q, P], padded left.
        rollout: the completions; rows of a prompt adjacent.
        rules: those they were written under.
        answer: which of their tokens are the answer.
    """
    constraint = rules.constraint
    _, hidden = score_states(model, prompt, rollout, rules)
    allowed = constraint.allowed(jnp.broadcast_to(jnp.arange(answer.shape[1]), answer.shape), rollout.state_mask)
    logits = decoder.logits(decoder.select_head(model, constraint.columns), hidden)
    first, second = jnp.moveaxis(jax.lax.top_k(jax.nn.softmax(jnp.where(allowed, logits, NEGATIVE)), 2)[0], -1, 0)
    return jnp.where(answer, first - second, 0.0).sum(axis=1) / jnp.maximum(answer.sum(axis=1), 1)


def _first_choices(rules: Rules) -> Int[Array, ""]:
    """How many tokens may come first; one where the tool begins."""
    tool = rules.environment.init(1)
    allowed = rules.constraint.allowed(jnp.zeros((1,), jnp.int32), rules.environment.may_stop(tool))
    return jnp.where(rules.environment.forced(tool)[0] < 0, allowed.sum(), 1)
