import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_worlds import (
    all_sequences,
    given_other,
    left_padded,
    query_of,
    random_lora,
    random_params,
    sampling_settings,
    tiny,
)

from gfn_jax import replay
from gfn_jax.algorithms.diagnostics import describe
from gfn_jax.algorithms.entry import Ingredients
from gfn_jax.algorithms.gflownet import GFlowNet, Trainable
from gfn_jax.algorithms.on_task import Memory
from gfn_jax.environments import NoTool
from gfn_jax.models.language_model import LanguageModel
from gfn_jax.models.lora import LoraConfig
from gfn_jax.objectives.mixture import Objective
from gfn_jax.policy.constraint import Constants, Rules, make_constraint
from gfn_jax.rewards import TableReward
from gfn_jax.types import Keys, TrainState

ARITY, STOP, LONGEST = 3, 5, 3
CONFIG = tiny()
QUERIES = query_of(left_padded([[6, 7, 8], [9, 10], [11], [12, 6, 6]]))
TABLE = jnp.asarray(np.random.default_rng(0).standard_normal(len(all_sequences(ARITY, LONGEST))) * 2, jnp.float32)
TERMS = (("subtb", 1.0), ("db", 0.5), ("tb", 0.3), ("vargrad", 0.2))


def algorithm(table=TABLE, terms=TERMS, **changes):
    settings = {
        "queries": 4,
        "samples": 5,
        "replay_samples": 2,
        "tempered": 0.3,
        "exploring": 0.3,
        "uniform_mix": 0.5,
    }
    config = sampling_settings(**(settings | changes))
    objective = Objective(terms=terms, normalization="released_mean", samples_per_query=config.samples)
    return GFlowNet(Ingredients(TableReward(table, ARITY), config, LoraConfig(2, 2, ("q",)), objective))


def constants_of(table=TABLE, weight=(0.0, 0.0, 0.0, 0.0)):
    return Constants(
        base=LanguageModel(CONFIG, random_params(CONFIG)),
        prepared=table,
        queries=QUERIES,
        query_log_weight=jnp.asarray(weight),
        rules=Rules(make_constraint(23, STOP, LONGEST, token_ids=np.arange(ARITY)), NoTool()),
        root=jax.random.key(0),
    )


TRAINABLE = Trainable(lora=random_lora(CONFIG), log_z=jnp.asarray([0.01, -0.02, 0.03, 0.04]))
KEYS = Keys.of(jax.random.key(0), 0)


def collect(algo, constants, buffer):
    """The only micro-batch of a step, the buffer after it, and its metrics."""
    collected = algo.collect(TrainState(jnp.int32(0), TRAINABLE, None, buffer), constants, KEYS)
    return jax.tree.map(lambda x: x[0], collected.batches), collected.memory, collected.metrics


@functools.cache
def collector():
    return jax.jit(functools.partial(collect, algorithm()))


@pytest.fixture(scope="module")
def collected():
    return collector()(constants_of(), Memory(replay.init(4, 6, LONGEST + 1)))


def test_fresh_rows_come_first_and_replayed_ones_from_the_same_query(collected):
    batch, buffer, _ = collected
    assert batch.trajectory.log_reward.shape == (20, 4)
    assert batch.row_mask.all()
    np.testing.assert_array_equal(np.asarray(batch.fresh).reshape(4, 5), 4 * [[True] * 3 + [False] * 2])
    assert np.asarray(batch.trajectory.rollout.log_behavior[:, 0]).reshape(4, 5)[:, :3].all()
    assert not np.asarray(batch.trajectory.rollout.log_behavior).reshape(4, 5, 4)[:, 3:].any()
    completion = np.asarray(batch.trajectory.rollout.completion).reshape(4, 5, 4)
    assert sorted(batch.query.example_id.tolist()) == [0, 1, 2, 3]
    for place, query in enumerate(batch.query.example_id):
        stored = np.asarray(buffer.buffer.completion[query])[np.asarray(buffer.buffer.filled[query])]
        for row in completion[place, 3:]:
            assert (stored == row).all(1).any()


def test_every_row_carries_the_rewards_of_its_own_prefixes(collected):
    batch, _, _ = collected
    table = dict(zip(all_sequences(ARITY, LONGEST), np.asarray(TABLE), strict=True))
    rollout = batch.trajectory.rollout
    for row in range(20):
        length = int(rollout.token_mask[row].sum())
        tokens = np.asarray(rollout.completion[row, :length]).tolist()
        expected = [table[tuple(tokens[:t])] for t in range(length + 1)]
        np.testing.assert_array_equal(batch.trajectory.log_reward[row, : length + 1], expected)


def test_the_metrics_are_means_over_the_fresh_rows(collected):
    batch, _, metrics = collected
    fresh = jax.tree.map(lambda x: x.reshape(4, 5, *x.shape[1:])[:, :3].reshape(12, *x.shape[1:]), batch.trajectory)
    length = np.asarray(fresh.rollout.token_mask.sum(1))
    last = np.asarray(fresh.log_reward)[np.arange(12), length]
    np.testing.assert_allclose(metrics["length"], length.mean(), rtol=1e-6)
    np.testing.assert_allclose(metrics["log_reward"], last.mean(), rtol=1e-5)
    assert metrics["finished"] == metrics["finite_rewards"] == metrics["reward_temperature"] == 1
    assert describe(fresh)["log_reward"].weight == 12


def test_copies_of_a_prompt_change_nothing():
    """Three devices share the rows of each query: the same rows, rewards and loss."""

    def collected_and_loss(copies):
        algo = given_other(algorithm(samples=6, replay_samples=3), copies=copies)

        @jax.jit
        def both(constants, buffer):
            batch, _, _ = collect(algo, constants, buffer)
            return batch, algo.loss(TRAINABLE, constants, batch, algo.weights(batch), KEYS.dropout)

        return both(constants_of(), Memory(replay.init(4, 6, LONGEST + 1)))

    (one, loss), (shared, same) = collected_and_loss(1), collected_and_loss(3)
    np.testing.assert_array_equal(shared.trajectory.rollout.completion, one.trajectory.rollout.completion)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-5), (shared, same), (one, loss))


def test_rows_of_an_empty_buffer_are_masked_and_weigh_nothing():
    """Rewards of zero (log R = -inf) are never stored, so nothing can be replayed."""
    algo, nothing = algorithm(), jnp.full_like(TABLE, -jnp.inf)
    batch, buffer, metrics = collector()(constants_of(nothing), Memory(replay.init(4, 6, LONGEST + 1)))
    assert not buffer.buffer.filled.any()
    assert np.asarray(batch.row_mask).reshape(4, 5).tolist() == [[True] * 3 + [False] * 2] * 4
    assert metrics["replay_log_reward"] == 0
    trajectory = batch.trajectory.replace(log_reward=jnp.where(batch.row_mask[:, None], 0.5, jnp.full((20, 4), 1e9)))
    batch = batch.replace(trajectory=trajectory)
    empty = ~batch.row_mask[:, None]
    rollout = trajectory.rollout
    claims = rollout.replace(action_mask=rollout.action_mask | empty, state_mask=rollout.state_mask | empty)
    louder = batch.replace(trajectory=trajectory.replace(rollout=claims))

    @jax.jit
    def loss(constants, batch):
        return algo.loss(TRAINABLE, constants, batch, algo.weights(batch), KEYS.dropout)[0]

    quiet = loss(constants_of(), batch)
    assert 0 < quiet < 1e4
    np.testing.assert_allclose(loss(constants_of(), louder), quiet, rtol=1e-6)


def cut(tree, first, end):
    return jax.tree.map(lambda x: x[first:end], tree)


def test_micro_batches_add_up_to_the_whole_gradient(collected):
    algo, constants = algorithm(), constants_of()
    batch = collected[0]

    @jax.jit
    def gradient(trainable, constants, batch, weights):
        return jax.value_and_grad(algo.loss, has_aux=True)(trainable, constants, batch, weights, KEYS.dropout)

    parts = [
        batch.replace(
            **(
                {name: cut(rows, 5 * i, 5 * i + 10) for name, rows in vars(batch).items()}
                | {"query": cut(batch.query, i, i + 2)}
            )
        )
        for i in (0, 2)
    ]
    weights = algo.weights(batch)
    summed = jax.tree.map(jnp.add, *(algo.weights(part) for part in parts))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), weights, summed)
    whole = gradient(TRAINABLE, constants, batch, weights)
    added = jax.tree.map(jnp.add, *(gradient(TRAINABLE, constants, part, weights) for part in parts))

    def close(a, b):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4 * np.abs(a).max())

    jax.tree.map(close, whole, added)
    assert np.abs(whole[1].log_z).min() > 0
    assert set(whole[0][1]) >= {f"loss_{name}" for name, _ in TERMS}


def test_behaviour_is_drawn_in_the_shares_asked_for():
    algo = algorithm(temperature_low=0.5, temperature_high=2.0)
    behavior = algo.given.sampling.behavior(jax.random.key(0), 20000)
    temperature, mix = np.asarray(behavior.temperature), np.asarray(behavior.uniform_mix)
    tempered, exploring = temperature != 1.0, mix > 0
    assert abs(tempered.mean() - 0.3) < 0.02
    assert abs(exploring.mean() - 0.3) < 0.02
    assert not (tempered & exploring).any()
    assert set(mix.tolist()) == {0.0, 0.5}
    drawn = temperature[tempered]
    assert 0.5 <= drawn.min() < 0.51
    assert 1.99 < drawn.max() <= 2.0
    assert abs(drawn.mean() - 1.25) < 0.03


def test_exploration_ends_where_it_is_to():
    sampling = algorithm(tempered=1.0, exploring=0.0).given.sampling
    sampling = dataclasses.replace(sampling, exploration=dataclasses.replace(sampling.exploration, steps=5))
    behave = jax.jit(lambda step: sampling.behavior(jax.random.key(0), 100, step))
    assert (behave(4).temperature != 1.0).all()
    assert (behave(5).temperature == 1.0).all()
    assert (behave(5).uniform_mix == 0.0).all()


def test_queries_are_distinct_and_drawn_by_weight():
    algo = algorithm(queries=2)
    weight = np.log([1.0, 2.0, 7.0, 1e-30])
    select = jax.jit(jax.vmap(functools.partial(algo.select, constants_of(weight=weight))))
    chosen = np.asarray(select(jax.random.split(jax.random.key(0), 4000)).example_id)
    assert (chosen[:, 0] != chosen[:, 1]).all()
    assert not (chosen == 3).any()
    first = np.bincount(chosen[:, 0], minlength=4) / 4000
    np.testing.assert_allclose(first, [0.1, 0.2, 0.7, 0.0], atol=0.03)
    query = algo.select(constants_of(weight=weight), jax.random.key(1))
    np.testing.assert_array_equal(query.prompt.ids, QUERIES.prompt.ids[query.example_id])


def test_init_is_a_new_adapter_an_empty_buffer_and_log_z_where_tb_needs_it():
    trainable, memory = algorithm(replay_capacity=7).init(jax.random.key(0), constants_of())
    assert set(trainable.lora.layers) == {"q"}
    assert trainable.log_z.shape == (4,)
    assert memory.buffer.completion.shape == (replay.padded(4), 7, 4)
    without, _ = algorithm(terms=(("subtb", 1.0),)).init(jax.random.key(0), constants_of())
    assert without.log_z is None


def test_describe_leaves_unfinished_rows_out(collected):
    trajectory = collected[0].trajectory
    cut = trajectory.rollout.replace(action_mask=trajectory.rollout.action_mask & trajectory.rollout.token_mask)
    unfinished = describe(trajectory.replace(rollout=cut))
    assert unfinished["length"].total == unfinished["log_reward"].total == unfinished["finished"].total == 0
    assert unfinished["finished"].weight == 20


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"micro_batches": 3}, r"queries is 4; they do not divide into 3"),
        ({"replay_samples": 5}, "replay.samples is 5; it must be less than sampling.samples, 5"),
        ({"replay_shares": {"reward": 0.0}}, "shares is {'reward': 0.0}; it must be each a share of reward, recency"),
        ({"replay_shares": {"best": 1.0}}, "shares is {'best': 1.0}"),
        ({"tempered": 0.8}, "at most 1"),
        ({"temperature_low": 3.0}, "at most temperature_high, 2.0"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        algorithm(**change)


def test_describe_says_how_many_rewards_are_numbers(collected):
    """What a diverged run is asked first: a reward of -inf is no matter of the learning rate."""
    trajectory = collected[0].trajectory
    states = trajectory.rollout.state_mask
    found = describe(trajectory)["finite_rewards"]
    assert found.total == found.weight == states.sum()
    elsewhere = trajectory.replace(log_reward=jnp.where(states, trajectory.log_reward, -jnp.inf))
    assert describe(elsewhere)["finite_rewards"].total == states.sum()
    first = trajectory.replace(log_reward=trajectory.log_reward.at[:, 0].set(-jnp.inf))
    found = describe(first)["finite_rewards"]
    assert found.total == found.weight - states[:, 0].sum() < found.weight
