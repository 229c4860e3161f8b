"""Worlds small enough to list every completion: the policy's exact distance from its target.

A policy trained by any balance objective should be, exactly,

    q(Z) = R(Z)^(1/T) / sum_Z' R(Z')^(1/T)            (Hu et al. 2024, ICLR, section 3)

Where all completions Z can be listed, one `score` of the list gives q and nothing has to be sampled:
total variation 1/2 sum |q - p|, KL(q | p), KL(p | q), and the share of completions that q has not lost.
The loss on the policy's own samples can be near zero while a mode is lost.

`random_world` makes such a world for tests and benchmarks: a decoder with random weights, a table of rewards.
"""

import dataclasses
import functools
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from gfn_jax.environments import NoTool
from gfn_jax.evaluation.rows import parts
from gfn_jax.evaluation.scoring import log_policy
from gfn_jax.models import decoder
from gfn_jax.models.config import ModelConfig
from gfn_jax.models.language_model import LanguageModel
from gfn_jax.models.lora import LoraConfig
from gfn_jax.policy.constraint import Constants, Rules, make_constraint
from gfn_jax.policy.teacher import teacher_force
from gfn_jax.rewards import TableReward
from gfn_jax.types import Params, PyTree, Query, Rollout, Tokens, Trajectory

# Beyond this many the list itself is the problem; all of at most two tokens of a vocabulary of 512 are fewer.
MOST_COMPLETIONS = 300_000
ROWS = 16_384  # of a list, whose masks are made at once


def enumerate_completions(rules: Rules) -> Rollout:
    """Every completion that can be written under the rules, shortest first, in order within a length.

    Breadth first: prefixes of t tokens, with the tool's state after each, become those of t + 1. With min_length 0 and
    no tool the order is `TableReward`'s.

    Raises:
        ValueError: there are more than `MOST_COMPLETIONS`.
    """
    constraint, environment = rules.constraint, rules.environment
    token_ids, is_stop = np.asarray(constraint.token_ids), np.asarray(constraint.is_stop)
    prefixes = np.zeros((1, 0), np.int32)
    tool, found, count = environment.init(1), [], 0
    for length in range(constraint.max_length + 1):
        last = length == constraint.max_length  # where all that a prefix can do is end: its choices are not listed
        forced, may_end, choices = jax.device_get(_look(rules, tool, length, last))
        found.append(prefixes[may_end])
        if last:
            break
        tokens = np.where(forced[:, None] < 0, np.where(choices & ~is_stop, token_ids, -1), -1)
        tokens = np.concatenate([tokens, forced[:, None]], axis=1)  # a forced token is the only one
        parents, columns = np.nonzero(tokens >= 0)
        count += int(may_end.sum())
        if count + len(parents) > MOST_COMPLETIONS:
            raise ValueError(
                f"there are at least {count + len(parents)} completions; {MOST_COMPLETIONS} at most can be listed"
            )
        chosen = tokens[parents, columns].astype(np.int32)
        prefixes = np.concatenate([prefixes[parents], chosen[:, None]], axis=1)
        tool = _follow(rules, tool, parents, chosen)
    lengths = np.concatenate([np.full(len(ended), ended.shape[1], np.int32) for ended in found])
    return listed_rollout([row for ended in found for row in ended.tolist()], rules, lengths)


def listed_rollout(
    completions: Sequence[Sequence[int]], rules: Rules, lengths: Int[np.ndarray, " S"] | None = None
) -> Rollout:
    """The rollouts that given completions would have been, tool tokens included, made in parts of `ROWS`.

    Raises:
        ValueError: one of them is longer than the rules allow.
    """
    horizon = rules.constraint.horizon
    lengths = np.array([len(row) for row in completions], np.int32) if lengths is None else lengths
    if lengths.max() >= horizon:
        raise ValueError(f"a listed completion has {lengths.max()} tokens; the rules allow {horizon - 1}")
    ids = np.full((len(lengths), horizon), rules.constraint.stop_id, np.int32)
    ids[np.arange(horizon) < lengths[:, None]] = np.fromiter((i for row in completions for i in row), np.int32)
    made = [
        jax.tree.map(lambda x, count=count: np.asarray(x)[:count], _teacher_force(*part, rules))
        for part, count in parts((ids, lengths), ROWS, rules.constraint.token_ids)
    ]
    return jax.tree.map(lambda *x: jnp.asarray(np.concatenate(x)), *made)


_teacher_force = jax.jit(teacher_force)


@functools.partial(jax.jit, static_argnums=(2, 3))
def _look(rules: Rules, tool: PyTree, length: int, last: bool) -> tuple[Array, Array, Array | None]:
    """Of prefixes of that length: the token the tool writes or -1, whether they may end, and the choices [n, A]."""
    forced, may_stop = rules.environment.forced(tool), rules.environment.may_stop(tool)
    if last:
        return forced, forced < 0, None
    choices = rules.constraint.allowed(jnp.full(forced.shape, length), may_stop)
    return forced, (forced < 0) & jnp.any(choices & rules.constraint.is_stop, axis=1), choices


@jax.jit
def _follow(rules: Rules, tool: PyTree, parents: Int[Array, " n"], token: Int[Array, " n"]) -> PyTree:
    """The tool's states after prefixes that are one token longer than their parents."""
    return rules.environment.step(jax.tree.map(lambda x: x[parents], tool), token)


def log_target(trajectory: Trajectory, temperature: Float[Array, ""] | float = 1.0) -> Float[Array, " S"]:
    """Log of R(Z)^(1/T), normalised over the listed completions, in nats."""
    rollout = trajectory.rollout
    return jax.nn.log_softmax(jnp.where(rollout.stop, trajectory.log_reward, 0.0).sum(axis=1) / temperature)


def divergences(log_q: Float[Array, " S"], log_p: Float[Array, " S"]) -> dict[str, Float[Array, ""]]:
    """How far q is from p, completion by completion.

    Returns:
        `total_variation` in 0..1; `kl_q_p` and `kl_p_q` in nats; `coverage`, the share of completions with
        q > p / 10.
    """
    q, p = jnp.exp(log_q), jnp.exp(log_p)
    return {
        "total_variation": jnp.abs(q - p).sum() / 2,
        "kl_q_p": (q * (log_q - log_p)).sum(),
        "kl_p_q": (p * (log_p - log_q)).sum(),
        "coverage": (log_q > log_p - math.log(10)).mean(dtype=jnp.float32),
    }


@dataclasses.dataclass(frozen=True)
class World:
    """One query, a random decoder, and the table of the rewards of everything it can write.

    Attributes:
        lora: a full-rank adapter on every projection and the head.
        reward: log R by completion.
        constants: what a training step needs.
        completions: all of them, in the table's order.
    """

    lora: LoraConfig
    reward: TableReward
    constants: Constants
    completions: Rollout

    def log_target(self, temperature: float = 1.0) -> Float[Array, " S"]:
        """The distribution to be learnt, as logarithms."""
        constants = self.constants
        log_reward = self.reward.log_reward(constants.base, constants.prepared, constants.queries, self.completions)
        return log_target(Trajectory(rollout=self.completions, log_reward=log_reward), temperature)

    def log_policy(self, model: LanguageModel) -> Float[Array, " S"]:
        """A policy's exact distribution, as logarithms."""
        return log_policy(model, self.constants.queries.prompt, self.completions, self.constants.rules)


def random_world(
    key: jax.Array, arity: int, max_length: int, reward_scale: float, width: int = 32, layers: int = 2
) -> World:
    """A world of sum_l arity^l completions whose log R are normal(0, `reward_scale`), in nats.

    A target is flat where the scale is small and peaked where it is large. The base's weights have unit
    gain, so that its next-token distributions differ from state to state.
    """
    weights, rewards, root = jax.random.split(key, 3)
    stop, begin = arity, arity + 1
    shape = ModelConfig(
        vocab_size=arity + 2,
        width=width,
        num_layers=layers,
        num_heads=4,
        num_kv_heads=4,
        head_dim=width // 4,
        mlp_width=2 * width,
        max_positions=max_length + 2,
        rotary_dim=width // 4,
    )
    constraint = make_constraint(shape.vocab_size, stop, max_length, token_ids=np.arange(arity))
    rules = Rules(constraint, NoTool())
    completions = enumerate_completions(rules)
    table = reward_scale * jax.random.normal(rewards, (completions.completion.shape[0],))
    reward = TableReward(table, arity)
    base = LanguageModel(shape, jax.jit(lambda key: unit_gain(decoder.init_params(key, shape)))(weights))
    prompt = Tokens(ids=jnp.full((1, 1), begin), mask=jnp.ones((1, 1), bool))
    constants = Constants(
        base=base,
        prepared=reward.prepare(base),
        queries=Query(example_id=jnp.arange(1), prompt=prompt, context=prompt, answer=prompt),
        query_log_weight=jnp.zeros(1),
        rules=rules,
        root=root,
    )
    lora = LoraConfig(rank=width, alpha=width, targets=(*shape.projections, "head"))
    return World(lora=lora, reward=reward, constants=constants, completions=completions)


def unit_gain(params: Params) -> Params:
    """Random weights rescaled to variance 1 / inputs (the embedding: 1), whatever their scale was."""

    def rescale(path: tuple, x: Array) -> Array:
        names = [entry.key for entry in path]
        if names[-1] == "kernel":
            return x / (x.std() * math.sqrt(x.shape[-2]))
        return x / x.std() if names[0] == "embed" else x

    return jax.tree_util.tree_map_with_path(rescale, params)
