"""Worlds that decoding strategies are checked in: one that can be listed, and one with a calculator."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from tiny_worlds import calculator_world, left_padded, query_of, random_lora, random_params, tiny

from gfn_jax.environments import NoTool
from gfn_jax.evaluation.enumeration import enumerate_completions
from gfn_jax.evaluation.scoring import log_policy
from gfn_jax.models.language_model import LanguageModel
from gfn_jax.policy.constraint import Rules, make_constraint
from gfn_jax.policy.score import score
from gfn_jax.samplers.sampler import Problem

STOP, TOKENS, LONGEST = 6, (0, 1, 3, 4), 3
SHAPE = tiny(vocab_size=7)
POLICY = LanguageModel(SHAPE, random_params(SHAPE, seed=2, scale=0.3), random_lora(SHAPE))
PROMPT = left_padded([[2, 5, 1], [3]])
RULES = Rules(make_constraint(7, STOP, LONGEST, min_length=1, token_ids=np.array(TOKENS)), NoTool())
PROBLEM = Problem(None, query_of(PROMPT), RULES)


@functools.cache
def listed() -> list[dict[tuple[int, ...], float]]:
    """Completion, without its stop -> its log q, for both prompts."""
    completions = enumerate_completions(RULES)
    lengths = np.asarray(completions.token_mask.sum(1))
    rows = [tuple(row[:n]) for row, n in zip(np.asarray(completions.completion).tolist(), lengths)]
    prompts = [jax.tree.map(lambda x, i=i: x[i : i + 1], PROMPT) for i in range(2)]
    log_q = jax.jit(log_policy)
    return [dict(zip(rows, np.asarray(log_q(POLICY, each, completions, RULES), np.float64))) for each in prompts]


def next_tokens(query: int, prefix: tuple[int, ...]) -> dict[int, float]:
    """Token -> its probability behind a prefix, from the list of all completions."""
    if len(prefix) == LONGEST:
        return {STOP: 1.0}
    weight = dict.fromkeys((*TOKENS, STOP), 0.0)
    for z, log_q in listed()[query].items():
        if z[: len(prefix)] == prefix:
            weight[(*z, STOP)[len(prefix)]] += np.exp(log_q)
    total = sum(weight.values())
    return {token: value / total for token, value in weight.items() if value > 0}


TOKENIZER, CALCULATOR, WITH_CALLS = calculator_world()
CALLING_SHAPE = tiny(vocab_size=len(TOKENIZER))
# Of seeds 0 to 149 one with which greedy decoding and every search call the calculator.
CALLING = LanguageModel(
    CALLING_SHAPE, random_params(CALLING_SHAPE, seed=75, scale=0.3), random_lora(CALLING_SHAPE, seed=4)
)
CALLS = Problem(None, query_of(left_padded([[6, 7, 8], [9, 10]])), Rules(WITH_CALLS, CALCULATOR))

compiled_score = jax.jit(lambda rollout: score(CALLING, CALLS.query.prompt, rollout, CALLS.rules))


def written_by_tool(rollout) -> np.ndarray:
    """How many tokens of each row the calculator wrote, by running it over the row; the others obey the constraint."""
    step, forced = jax.jit(CALCULATOR.step), jax.jit(CALCULATOR.forced)
    completion, token_mask = np.asarray(rollout.completion), np.asarray(rollout.token_mask)
    state, written = CALCULATOR.init(len(completion)), np.zeros(len(completion), int)
    for token, inside in zip(completion.T, token_mask.T):
        result = np.asarray(forced(state))
        assert ((token == result) | ~inside | (result < 0)).all()
        assert np.isin(token[inside & (result < 0)], np.asarray(WITH_CALLS.token_ids)).all()
        written += inside & (result >= 0)
        state = step(state, jnp.asarray(token))
    return written


def check_calls(weighed) -> None:
    """Of completions in the calculator's world: whole, obedient, and counted right row by row."""
    rollout = weighed.rollout
    assert np.asarray(rollout.stop).sum(1).tolist() == [1] * len(rollout.stop)
    tool = written_by_tool(rollout)
    assert tool.sum() > 0  # or there is nothing to see here
    np.testing.assert_array_equal(np.asarray(rollout.token_mask & ~rollout.action_mask).sum(1), tool)


def chosen_tokens(rollout) -> np.ndarray:
    """Tokens that the policy chose of two queries' rows, their stops included."""
    return (np.asarray(rollout.token_mask).sum(1) + 1 - written_by_tool(rollout)).reshape(2, -1).sum(1)
