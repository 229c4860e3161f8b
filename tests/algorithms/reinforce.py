"""REINFORCE with a KL penalty: an algorithm in one file, written as one outside the library would be.

With `config.algorithm = "reinforce:ALGORITHM"` it trains on any task. It maximises

    J(q) = E_q[log R(Z) - log q(Z)] = log sum_Z R(Z) - KL(q || R / sum_Z R(Z)),

log R(Z) being the reward and the penalty at once (log p_LM(Z | X) is a part of it: Korbak et al. 2022,
arXiv:2205.11275), by the gradient of Williams 1992,

    grad J = E_q[(log R(Z) - log q(Z) - b) grad log q(Z)],

b being the mean of log R - log q over the other rows of Z's query (Kool et al. 2019, ICLR workshop). Its optimum is
the GFlowNet's, q = R / sum_Z R(Z). There log R - log q is the same for every Z, so that no gradient is left in any
sample: the noise ends with the learning.
"""

import dataclasses

import jax
import jax.numpy as jnp
from flax import struct

from gfn_jax.algorithms.diagnostics import describe
from gfn_jax.algorithms.entry import AlgorithmEntry, Ingredients
from gfn_jax.models.lora import Lora, init_lora
from gfn_jax.policy.rollout import Behavior, rollout
from gfn_jax.policy.score import score
from gfn_jax.types import Collected, Sampled, Trajectory, Weighted


@struct.dataclass
class Trainable:
    """What is trained: the adapter, under the name that an `AlgorithmEntry` asks for."""

    lora: Lora


@dataclasses.dataclass(frozen=True)
class Reinforce:
    """As `interfaces.Algorithm` has it; a micro-batch is a `Sampled` of its queries and their rows."""

    given: Ingredients

    def __post_init__(self):
        if self.given.sampling.samples < 2:
            raise ValueError("sampling.samples is 1; a row is compared with the others of its query: 2 or more")

    def init(self, key, constants):
        """A fresh adapter; nothing is remembered."""
        return Trainable(init_lora(key, constants.base.shape, self.given.lora)), None

    def policy(self, trainable, constants):
        """The base with the adapter."""
        return constants.base.adapted(trainable.lora)

    def collect(self, state, constants, keys):
        """N rows for each of Q queries (drawn by weight, without replacement), from the policy as it is."""
        weight, sampling = constants.query_log_weight, self.given.sampling
        parts = sampling.micro_batches
        _, chosen = jax.lax.top_k(weight + jax.random.gumbel(keys.select, weight.shape), sampling.queries)
        queries = jax.tree.map(lambda x: x[chosen].reshape(parts, -1, *x.shape[1:]), constants.queries)
        policy = self.policy(state.trainable, constants)
        behavior = Behavior.at(1.0, sampling.queries // parts * sampling.samples)

        def one(part):
            number, query = part
            sampled = rollout(policy, query.prompt, constants.rules, behavior, keys.part(number).sample)
            return Trajectory(sampled, self.given.reward.log_reward(constants.base, constants.prepared, query, sampled))

        trajectory = jax.lax.map(one, (jnp.arange(parts), queries))
        rows = jax.tree.map(lambda x: x.reshape(-1, x.shape[-1]), trajectory)
        metrics = {name: value.mean() for name, value in describe(rows).items()}
        return Collected(Sampled(queries, trajectory), state.memory, metrics)

    def weights(self, batch):
        """How many rows there are."""
        return {"rows": jnp.float32(len(batch.trajectory.log_reward))}

    def loss(self, trainable, constants, batch, weights, key):
        """A loss whose gradient is -grad J; `loss_kl` is -J: KL(q || R / sum R) but for a constant."""
        policy, sampled = self.policy(trainable, constants), batch.trajectory.rollout
        rate = self.given.lora.dropout
        dropout = (key, rate) if rate else None
        log_q = score(policy, batch.query.prompt, sampled, constants.rules, dropout, self.given.remat)
        log_q = log_q.log_pf.sum(axis=1)
        log_reward = jnp.where(sampled.stop, batch.trajectory.log_reward, 0.0).sum(axis=1)
        excess = jax.lax.stop_gradient(log_q - log_reward).reshape(len(batch.query.example_id), -1)
        others = (excess.sum(axis=1, keepdims=True) - excess) / (excess.shape[1] - 1)
        loss = ((excess - others).ravel() * log_q).sum() / weights["rows"]
        return loss, {"loss_kl": Weighted(excess.sum(), self.weights(batch)["rows"])}


ALGORITHM = AlgorithmEntry(make=lambda config, given: Reinforce(given))
