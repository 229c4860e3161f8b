"""Supervised fine-tuning: the likelihood of demonstrations, under the policy as it samples.

Over demonstrations z_1 .. z_M of the queries x_1 .. x_M, each as often as it was given,

    loss(w) = - 1/M sum_i log q_w(z_i | x_i) = E_x [KL(p || q_w) + H(p)],    p(z | x) = share of z among x's,

x being drawn in proportion to its number of demonstrations, so that the optimum is the demonstrations' own
distribution, q = p, whatever the reward says. It is the supervised baseline of Hu et al. 2024 (section 4), with the
policy, constraint, tool and adapter of every other algorithm: log q counts what the policy chooses, its stop included,
among the tokens that the task allows, and not what the tool writes. A step reads Q x N rows in the order of the epochs;
nothing is sampled, and no reward is asked for.

With `learn=joint` the tokens of Z, of the answer Y behind it and of the text's end are learnt as a text is, over the
whole vocabulary, the tool's tokens too: - log p_w(Z Y | X); with `learn=text` those of X as well. The optimum for Z is
the same, and few demonstrations teach more: where Z ends, Y says again.
"""

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Float, Int

from gfn_jax.algorithms.diagnostics import of_rows
from gfn_jax.algorithms.entry import AlgorithmEntry, Ingredients
from gfn_jax.algorithms.on_task import Adapter
from gfn_jax.interfaces import Measure
from gfn_jax.models.language_model import LanguageModel
from gfn_jax.models.lora import init_lora
from gfn_jax.models.partition import split_rows
from gfn_jax.policy.constraint import Constants
from gfn_jax.policy.likelihood import next_token_loss
from gfn_jax.policy.score import score
from gfn_jax.types import Collected, Keys, Query, Rollout, Tokens, TrainState, Trajectory, Weighted

ORDER = 2**31 - 1  # of the epochs: folded into the run's root, where a step's number is folded in; no step has this one


@dataclasses.dataclass(frozen=True)
class SFTConfig:
    """Its section.

    Attributes:
        learn: `completion`: the policy's own choices; `joint`: Z and the answer behind it, token by token; `text`: the
            prompt before them, too.
    """

    learn: Literal["completion", "joint", "text"]


@struct.dataclass
class Demonstrations:
    """Completions that somebody else wrote, one a row, as often as they were given.

    Attributes:
        example_id: the query that a row answers; any number of rows may answer one.
        rollout: the rows; what the rules refuse has masks of False alone.
    """

    example_id: Int[Array, "*parts B"]
    rollout: Rollout  # [*parts, B, T]

    def take(self, index: Int[Array, "..."]) -> "Demonstrations":
        """The rows of that index, in its shape."""
        return jax.tree.map(lambda x: x[index], self)


@dataclasses.dataclass(frozen=True)
class SupervisedFinetuning:
    """Supervised fine-tuning, as `interfaces.Algorithm` and `Remembering` have it.

    What it remembers is its `Demonstrations`, None before `remember`; a micro-batch is some rows of them.

    Attributes:
        given: sampling (its Q x N rows, and their parts) and adapter.
        config: what is learnt.
    """

    given: Ingredients
    config: SFTConfig = SFTConfig("completion")

    def init(self, key: jax.Array, constants: Constants) -> tuple[Adapter, None]:
        """A fresh adapter (the policy starts as the base), and no demonstrations yet."""
        return Adapter(init_lora(key, constants.base.shape, self.given.lora)), None

    def remember(
        self, memory: Demonstrations | None, example_id: Int[Array, " Q"], trajectory: Trajectory
    ) -> Demonstrations:
        """All rows beside those that there are, duplicates too; rows of one query adjacent, queries in any number."""
        each = len(trajectory.log_reward) // len(example_id)
        found = Demonstrations(jnp.repeat(example_id, each), trajectory.rollout)
        if memory is None:
            return found
        return jax.tree.map(lambda old, new: jnp.concatenate([old, new]), memory, found)

    def policy(self, trainable: Adapter, constants: Constants) -> LanguageModel:
        """The policy."""
        return constants.base.adapted(trainable.lora)

    def collect(self, state: TrainState, constants: Constants, keys: Keys) -> Collected:
        """The step's rows in their parts, and what they are like."""
        sampling, known = self.given.sampling, state.memory
        rows = sampling.queries * sampling.samples
        order = jax.random.fold_in(constants.root, ORDER)
        batch = known.take(epoch_rows(order, len(known.example_id), rows, state.step))
        written = batch.rollout.stop.any(axis=1)
        metrics = {
            "length": of_rows(written, batch.rollout.token_mask.sum(axis=1, dtype=jnp.float32)).mean(),
            "accepted": written.mean(dtype=jnp.float32),
            "epochs": (state.step + 1) * (rows / len(known.example_id)),
        }
        parts = jax.tree.map(lambda x: x.reshape(sampling.micro_batches, -1, *x.shape[1:]), batch)
        return Collected(parts, known, metrics)

    def weights(self, batch: Demonstrations) -> dict[str, Float[Array, ""]]:
        """How many rows could have been written."""
        return {"rows": batch.rollout.stop.any(axis=1).sum(dtype=jnp.float32)}

    def loss(
        self,
        trainable: Adapter,
        constants: Constants,
        batch: Demonstrations,
        weights: dict[str, Float[Array, ""]],
        key: jax.Array,
    ) -> tuple[Float[Array, ""], dict[str, Measure]]:
        """A part's share of the mean nats a completion; and the nats a choice of the policy."""
        query = jax.tree.map(lambda x: x[batch.example_id], constants.queries)
        query, written = jax.tree.map(split_rows, (query, batch.rollout))
        dropout = (key, self.given.lora.dropout) if self.given.lora.dropout else None
        policy = self.policy(trainable, constants)
        if self.config.learn != "completion":
            texts, learnt = joint_texts(query, written, self.given.end_of_text, self.config.learn == "text")
            nats = next_token_loss(policy, texts, learnt, dropout, self.given.remat)
            loss = nats.total / jnp.maximum(weights["rows"], 1.0)
            return loss, {"loss_per_token": nats}
        scores = score(policy, query.prompt, written, constants.rules, dropout, self.given.remat)
        nats = of_rows(written.stop.any(axis=1), -scores.log_pf.sum(axis=1))
        choices = written.action_mask.sum(dtype=jnp.float32)
        return nats.total / jnp.maximum(weights["rows"], 1.0), {"loss_per_choice": Weighted(nats.total, choices)}


def joint_texts(
    query: Query, written: Rollout, end: int | None = None, with_prompt: bool = False
) -> tuple[Tokens, Bool[Array, "B S"]]:
    """Rows X Z Y of as many queries as completions, with their end, and which of their tokens are to be learnt.

    Those of Z and Y, the end and, `with_prompt`, those of X, which is what the policy sees. A row that could not have
    been written has none.
    """
    length = written.token_mask.sum(axis=1)[:, None]
    answers = length + query.answer.mask.sum(axis=1)[:, None]
    columns = jnp.arange(written.completion.shape[1] + query.answer.ids.shape[1])
    place = jnp.clip(columns - length, 0, query.answer.ids.shape[1] - 1)
    own = jnp.broadcast_to(jnp.minimum(columns, written.completion.shape[1] - 1), place.shape)
    ids = jnp.where(
        columns < length,
        jnp.take_along_axis(written.completion, own, axis=1),
        jnp.take_along_axis(query.answer.ids, place, axis=1),
    )
    real = columns < answers
    if end is not None:
        ids, real = jnp.where(columns == answers, end, ids), columns <= answers
    accepted = written.stop.any(axis=1)[:, None]
    real &= accepted
    prompt = query.prompt
    given = prompt.mask & accepted & with_prompt
    texts = Tokens(jnp.concatenate([prompt.ids, ids], axis=1), jnp.concatenate([prompt.mask, real], axis=1))
    return texts, jnp.concatenate([given, real], axis=1)


def epoch_rows(root: jax.Array, count: int, rows: int, step: Int[Array, ""] | int) -> Int[Array, " rows"]:
    """The rows that a step reads, after `step` others: every one once an epoch, in an order of the epoch's own.

    What `language_model.epoch_order` tables for all steps. A batch may end one epoch and begin the next, or span many.

    Args:
        root: of the orders.
        count: rows there are.
        rows: of a step.
        step: its number; step * rows must stay below 2^31.
    """
    place = step * rows + jnp.arange(rows)
    first = step * rows // count
    epochs = first + jnp.arange((rows + count - 2) // count + 1)
    orders = jax.vmap(lambda epoch: jax.random.permutation(jax.random.fold_in(root, epoch), count))(epochs)
    return orders[place // count - first, place % count]


ALGORITHM = AlgorithmEntry(
    make=lambda config, given: SupervisedFinetuning(given, config),
    section="sft",
    config=SFTConfig,
    seeds=True,
    rewards=False,
)
