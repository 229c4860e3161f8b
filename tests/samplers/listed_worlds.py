"""Worlds whose completions can be listed, and what samplers should do in them, by sums over the list."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from tiny_worlds import all_sequences, left_padded, random_lora, random_params, right_padded, tiny

from gfn_jax.environments import NoTool
from gfn_jax.evaluation.enumeration import random_world
from gfn_jax.interfaces import Reward
from gfn_jax.models.language_model import LanguageModel
from gfn_jax.policy.constraint import Rules, make_constraint
from gfn_jax.policy.score import score
from gfn_jax.policy.teacher import teacher_force
from gfn_jax.rewards import PosteriorReward, sequential_log_reward
from gfn_jax.samplers.sampler import Problem
from gfn_jax.types import Query, Rollout

CALL, STOP = 1, 2


@struct.dataclass
class Echo(NoTool):
    """A tool that answers every `CALL` with one token: 3 after an even number of tokens, 4 after an odd one.

    A row's state is twice the number of tokens, and whether the last one was a call that the policy made.
    """

    def init(self, rows):
        return jnp.zeros(rows, jnp.int32)

    def step(self, state, token):
        return (state // 2 + 1) * 2 + ((token == CALL) & (state % 2 == 0))

    def forced(self, state):
        return jnp.where(state % 2 == 1, 3 + (state // 2 + 1) % 2, -1)

    def may_stop(self, state):
        return self.forced(state) < 0


@dataclasses.dataclass(frozen=True)
class Listed:
    """A model, a problem of Q queries, and each query's S completions with log R and, by token, log q.

    Attributes:
        rows: [S, T].
        log_reward: [Q, S].
        log_pf: [Q, S, T].
    """

    model: LanguageModel
    reward: Reward
    problem: Problem
    rows: Rollout
    log_reward: np.ndarray
    log_pf: np.ndarray

    @property
    def log_weight(self):
        return self.log_reward - self.log_pf.sum(-1)

    @property
    def q(self):
        return np.exp(self.log_pf.sum(-1))

    @property
    def posterior(self):
        return np.exp(self.log_reward) / self.z[:, None]

    @property
    def z(self):
        return np.exp(self.log_reward).sum(1)

    def counts(self, rollout, weight=None):
        """[Q, S]: how often each completion is among a sampler's rows, those of weight -inf left out."""
        index = {tuple(row): place for place, row in enumerate(np.asarray(self.rows.completion).tolist())}
        queries, size = self.log_reward.shape
        out = np.zeros((queries, size))
        rows = np.asarray(rollout.completion).reshape(queries, -1, rollout.completion.shape[1])
        taken = np.ones(rows.shape[:2], bool) if weight is None else np.asarray(weight).reshape(queries, -1) == 0
        for query in range(queries):
            for row in rows[query, taken[query]].tolist():
                out[query, index[tuple(row)]] += 1
        return out

    def of_one(self, copies: int) -> Problem:
        """The first query, `copies` times: so many independent runs in one call."""
        first = jax.tree.map(lambda x: jnp.repeat(x[:1], copies, axis=0), self.problem.query)
        return self.problem.replace(query=first)


@jax.jit
def _scored(model, prompt, rows, rules):
    return score(model, prompt, rows, rules).log_pf


def list_rows(rules: Rules, ids) -> Rollout:
    """Every completion over these ids that the rules allow."""
    constraint = rules.constraint
    sequences = [tuple(ids[i] for i in s) for s in all_sequences(len(ids), constraint.max_length)]
    padded = [(*s, *[constraint.stop_id] * constraint.horizon)[: constraint.horizon] for s in sequences]
    rows = teacher_force(jnp.asarray(padded), jnp.asarray([len(s) for s in sequences]), rules)
    possible = np.asarray(rows.stop.any(1))
    return jax.tree.map(lambda x: x[possible], rows)


def listed(model, reward, problem, ids, log_reward) -> Listed:
    rows = list_rows(problem.rules, ids)
    queries, size = len(problem.query.example_id), len(rows.completion)
    every = jax.tree.map(lambda x: jnp.tile(x, (queries, 1)), rows)
    log_pf = np.asarray(_scored(model, problem.query.prompt, every, problem.rules), np.float64)
    final = np.where(every.stop, log_reward(model.base, problem.prepared, problem.query, every), 0.0).sum(1)
    return Listed(
        model=model,
        reward=reward,
        problem=problem,
        rows=rows,
        log_reward=final.astype(np.float64).reshape(queries, size),
        log_pf=log_pf.reshape(queries, size, -1),
    )


@functools.cache
def table_world() -> Listed:
    """15 completions of one query, their rewards from a table: R / q is anything."""
    world = random_world(jax.random.key(3), arity=2, max_length=3, reward_scale=1.0, width=16)
    constants = world.constants
    problem = Problem(constants.prepared, constants.queries, constants.rules)
    return listed(constants.base, world.reward, problem, (0, 1), world.reward.log_reward)


def posterior_problem(answers) -> tuple[LanguageModel, PosteriorReward, Problem]:
    """A policy and its base, two queries whose prompts are not the reward's contexts, and a tool."""
    shape = tiny(vocab_size=5)
    model = LanguageModel(shape, random_params(shape, scale=0.2), random_lora(shape, scale=0.25))
    constraint = make_constraint(
        5, STOP, 4, min_length=1, token_ids=np.array([0, CALL]), opens_call=np.arange(5) == CALL, call_room=1
    )
    reward = PosteriorReward(demonstrations=right_padded([[4, 0, 2]], width=4))
    query = Query(
        example_id=jnp.arange(2),
        prompt=left_padded([[3, 4], [0]]),
        context=left_padded([[3], [4, 0, 1]]),
        answer=right_padded(answers),
    )
    return model, reward, Problem(jax.jit(reward.prepare)(model.base), query, Rules(constraint, Echo()))


@functools.cache
def posterior_world() -> Listed:
    """11 completions of two queries, some with the tool's tokens, R = p(Z Y) by the sequential oracle."""
    model, reward, problem = posterior_problem([[STOP, 3], [STOP]])
    oracle = jax.jit(functools.partial(sequential_log_reward, reward))
    return listed(model, reward, problem, (0, CALL, 3, 4), oracle)


def assert_follows(counts, probability, inflation=1.0):
    """A chi-square test over cells expected 5 times at least, the rest pooled.

    The statistic has mean `degrees` and standard deviation sqrt(2 degrees): beyond 4.5 of them about one seed in ten
    thousand goes. `inflation` is how much wider than a multinomial's the counts are.
    """
    expected = probability * counts.sum()
    rare = expected < 5
    seen, expected = (np.append(x[~rare], x[rare].sum()) for x in (counts, expected))
    statistic = ((seen - expected) ** 2 / np.maximum(expected, 1e-9)).sum() / inflation
    degrees = len(seen) - 1
    assert degrees > 1
    assert statistic < degrees + 4.5 * np.sqrt(2 * degrees), (statistic, degrees, seen, expected)


def compiled(sampler, budget):
    """`sample` as one program."""
    return jax.jit(lambda model, problem, key: sampler.sample(model, problem, budget, key))
