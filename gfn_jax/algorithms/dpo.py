"""Direct preference optimisation, and IPO as its switch: completions in pairs, ranked by their reward.

With d = log q(a)/p(a) - log q(b)/p(b) for two completions a, b of one query, p the reference, and P the probability
that a is the better one (`labels`):

    DPO  - P log sigmoid(beta d) - (1 - P) log sigmoid(-beta d)          (Rafailov et al. 2023, arXiv:2305.18290)
    IPO  P (d - 1/(2 beta))^2 + (1 - P) (d + 1/(2 beta))^2               (Azar et al. 2023, arXiv:2310.12036)

`labels=bradley_terry`: P = sigmoid((log R(a) - log R(b)) / T), the model under which DPO was derived: its optimum is
q proportional to p R^(1/(beta T)), whatever pairs it sees, if they see every completion. `labels=rank`: P = 1 where
log R(a) > log R(b) (ties are left out). IPO then has the optimum

    log q(a)/p(a) = (Pr[R(b) < R(a)] - Pr[R(b) > R(a)]) / (2 beta) + constant,     b as the pairs' rows are distributed,

and DPO none: every margin grows, and q goes to the best completion. The posterior is neither's but for bradley_terry
with beta = 1 and a uniform p. Pairs are (i, i + N/2) of the N rows of a query, fresh ones or the buffer's, drawn anew
each step. The reference is the base or, with `round_steps`, the policy as it was at the start of the round of that many
steps: q is then multiplied by the same factor round after round, and goes to the best completion too.
"""

import dataclasses
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from gfn_jax.algorithms.entry import AlgorithmEntry
from gfn_jax.algorithms.on_task import Adapter, Batch, Memory, OffPolicy
from gfn_jax.interfaces import Measure
from gfn_jax.policy.constraint import Constants
from gfn_jax.policy.score import score
from gfn_jax.sections import Natural, Positive
from gfn_jax.types import Collected, Keys, Sampled, TrainState, Weighted

LEAST_MARGIN = 1e-4  # nats: what is below it is rounding


@dataclasses.dataclass(frozen=True)
class DPOConfig:
    """Its section.

    Attributes:
        beta: how much a nat of log q/p counts; the smaller, the farther from the reference.
        labels: which of two is the better one: the one with the higher reward, or by chance (Bradley & Terry).
        ipo: the squared loss instead of the logistic one.
        round_steps: steps a round, at whose start the policy becomes the reference; 0: the reference stays the base.
    """

    beta: Positive
    labels: Literal["rank", "bradley_terry"]
    ipo: bool
    round_steps: Natural


@dataclasses.dataclass(frozen=True)
class DPO(OffPolicy):
    """Preference optimisation, as `interfaces.Interruptible` has it.

    `Memory.own` is the reference's adapter, `Batch.own` the reference's log-probabilities (nats) of the completions.

    Raises:
        ValueError: the rows of a query do not pair up.
    """

    config: DPOConfig

    def __post_init__(self):
        if self.given.sampling.samples % 2:
            raise ValueError(f"sampling.samples is {self.given.sampling.samples}; rows are paired: it must be even")

    @property
    def frozen_scores(self) -> int:
        """Once by the reference."""
        return 1

    def init(self, key: jax.Array, constants: Constants) -> tuple[Adapter, Memory]:
        """A fresh adapter, an empty buffer and, with rounds, the first reference: the same adapter."""
        trainable = Adapter(self.new_lora(key, constants))
        reference = jax.tree.map(jnp.copy, trainable.lora) if self.config.round_steps else None
        return trainable, Memory(self.new_buffer(constants), reference)

    def store(self, state: TrainState, constants: Constants, sampled: Sampled, keys: Keys) -> Collected:
        """As for every buffer; and what the reference thinks of the rows."""
        if self.config.round_steps:
            begins = state.step % self.config.round_steps == 0
            own = jax.tree.map(lambda new, old: jnp.where(begins, new, old), state.trainable.lora, state.memory.own)
            state = dataclasses.replace(state, memory=dataclasses.replace(state.memory, own=own))
        collected = super().store(state, constants, sampled, keys)
        reference = constants.base.adapted(state.memory.own)

        def scored(rows: Batch) -> Batch:
            prompt = self.spread(rows.query).prompt
            log_pf = score(reference, prompt, rows.trajectory.rollout, constants.rules).log_pf
            return dataclasses.replace(rows, own=log_pf.sum(axis=1))

        return dataclasses.replace(collected, batches=jax.lax.map(scored, collected.batches))

    def pairs(self, batch: Batch) -> tuple[Float[Array, " P"], Bool[Array, " P"]]:
        """P of every pair, and which pairs count."""
        used, log_reward = self.halves(batch.used), self.halves(batch.log_reward)
        excess = log_reward[0] - log_reward[1]
        if self.config.labels == "rank":
            return (excess > 0).astype(jnp.float32), used[0] & used[1] & (excess != 0)
        return jax.nn.sigmoid(excess), used[0] & used[1]

    def halves(self, rows: Array) -> Array:
        """[2, B/2]: the first half of each query's rows, and the second."""
        return jnp.moveaxis(rows.reshape(-1, 2, self.given.sampling.samples // 2), 1, 0).reshape(2, -1)

    def weights(self, batch: Batch) -> dict[str, Float[Array, ""]]:
        """How many pairs count."""
        return {"pairs": self.pairs(batch)[1].sum(dtype=jnp.float32)}

    def loss(
        self, trainable: Any, constants: Constants, batch: Batch, weights: dict[str, Float[Array, ""]], key: jax.Array
    ) -> tuple[Float[Array, ""], dict[str, Measure]]:
        """This micro-batch's share of the loss; `ranked`: the share of pairs that it ranks as the reward."""
        scores, _ = self.score(trainable, constants, batch, key)
        ratios = self.halves(scores.log_pf.sum(axis=1) - batch.own)
        preferred, counts = self.pairs(batch)
        cost = self.penalty(jnp.where(counts, ratios[0] - ratios[1], 0.0), preferred)
        loss = jnp.where(counts, cost, 0.0).sum() / jnp.maximum(weights["pairs"], 1.0)
        margin = jnp.where(preferred > 0.5, ratios[0] - ratios[1], ratios[1] - ratios[0])
        agree = counts & (margin > LEAST_MARGIN)
        pairs = counts.sum(dtype=jnp.float32)
        described = {
            "ranked": Weighted(agree.sum(dtype=jnp.float32), pairs),
            "margin": Weighted(jnp.where(counts, margin, 0.0).sum(), pairs),
        }
        return loss, {**described, **self.diagnose(batch, scores)}

    def penalty(self, margin: Float[Array, " P"], preferred: Float[Array, " P"]) -> Float[Array, " P"]:
        """Of d, the first one being the better with that probability."""
        beta = self.config.beta
        if self.config.ipo:
            return preferred * (margin - 0.5 / beta) ** 2 + (1 - preferred) * (margin + 0.5 / beta) ** 2
        logistic = preferred * jax.nn.log_sigmoid(beta * margin)
        return -logistic - (1 - preferred) * jax.nn.log_sigmoid(-beta * margin)


ALGORITHM = AlgorithmEntry(
    make=lambda config, given: DPO(given, config), section="dpo", config=DPOConfig, off_policy=True
)
