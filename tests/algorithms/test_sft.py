"""Supervised fine-tuning: what it reads, what it weighs, and that it ends where the demonstrations' own shares are."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_worlds import left_padded, query_of, random_lora, random_params, sampling_settings, tiny

from gfn_jax.algorithms.entry import Ingredients
from gfn_jax.algorithms.language_model import epoch_order
from gfn_jax.algorithms.on_task import Adapter
from gfn_jax.algorithms.sampling import Sampling
from gfn_jax.algorithms.sft import Demonstrations, SupervisedFinetuning, epoch_rows, joint_texts
from gfn_jax.commands.train import parse
from gfn_jax.environments import NoTool
from gfn_jax.evaluation.enumeration import divergences, random_world
from gfn_jax.interfaces import Interruptible, Remembering
from gfn_jax.models.checkpoint import read_config
from gfn_jax.models.language_model import LanguageModel
from gfn_jax.models.lora import LoraConfig
from gfn_jax.policy.constraint import Constants, Rules, make_constraint
from gfn_jax.policy.score import score
from gfn_jax.policy.teacher import teacher_force
from gfn_jax.rewards import TableReward
from gfn_jax.runs.config import read_policy_run
from gfn_jax.runs.policy import policy_parts
from gfn_jax.text.loading import load_tokenizer, model_folder
from gfn_jax.training import mesh as meshes
from gfn_jax.training.optimizer import OptimizerConfig, make_optimizer
from gfn_jax.training.step import init_state, make_step
from gfn_jax.types import Keys, Query, Rollout, Tokens, Trajectory

STOP, LONGEST = 5, 3
# Three queries with two demonstrations each; the second of the first is said twice over, and two are refused.
WRITTEN = [[0, 1], [2], [2], [2], [9, 1], [0, 1, 2, 0]]
RULES = Rules(make_constraint(23, STOP, LONGEST, token_ids=np.arange(3)), NoTool())


def algorithm_of(queries, samples, micro_batches=1, reward=None, lora=None):
    budget = sampling_settings(queries=queries, samples=samples, micro_batches=micro_batches, replay_samples=0).budget
    lora = lora or LoraConfig(3, 6, ("q", "head"))
    return SupervisedFinetuning(Ingredients(reward or TableReward(jnp.zeros(40), 3), Sampling(budget), lora))


def constants_of():
    return Constants(
        base=LanguageModel(tiny(), random_params(tiny())),
        prepared=None,
        queries=query_of(left_padded([[6, 7], [8], [9, 10, 11]])),
        query_log_weight=jnp.zeros(3),
        rules=RULES,
        root=jax.random.key(7),
    )


@functools.cache
def written():
    rows = jnp.asarray([[*row, *[STOP] * 4][:4] for row in WRITTEN])
    rollout = teacher_force(rows, jnp.asarray([len(row) for row in WRITTEN]), RULES)
    numbered = dataclasses.replace(rollout, log_behavior=jnp.arange(24.0).reshape(6, 4))  # which nothing reads
    return Trajectory(numbered, jnp.zeros((6, 4)))


def remembered(algorithm):
    return algorithm.remember(None, jnp.arange(3), written())


def state_of(algorithm, constants, step=0):
    state = init_state(algorithm, make_optimizer(OptimizerConfig(1e-3, 10)), jax.random.key(0), constants)
    return dataclasses.replace(state, memory=remembered(algorithm), step=jnp.asarray(step))


def test_all_demonstrations_are_remembered_as_often_as_they_were_given():
    algorithm = algorithm_of(2, 2)
    assert isinstance(algorithm, Remembering)
    assert not isinstance(algorithm, Interruptible), "nothing is sampled"
    memory = remembered(algorithm)
    assert memory.example_id.tolist() == [0, 0, 1, 1, 2, 2]
    np.testing.assert_array_equal(memory.rollout.completion, written().rollout.completion)
    more = algorithm.remember(memory, jnp.asarray([1, 1, 0, 1, 2, 1]), written())  # any number of times
    assert more.example_id.tolist() == [0, 0, 1, 1, 2, 2, 1, 1, 0, 1, 2, 1]
    assert len(more.rollout.completion) == 12


@pytest.mark.parametrize(("count", "rows"), [(6, 4), (6, 6), (5, 12), (7, 1), (1, 3), (8, 24)])
def test_every_demonstration_is_read_once_an_epoch(count, rows):
    """Whether a batch is smaller or larger than the set; in the order that fine-tuning on texts has."""
    root, steps = jax.random.key(3), 4 * count
    read = np.stack([epoch_rows(root, count, rows, step) for step in range(steps)])
    epochs = read.reshape(-1)[: steps * rows // count * count].reshape(-1, count)
    assert (np.sort(epochs, axis=1) == np.arange(count)).all()
    np.testing.assert_array_equal(read, epoch_order(root, count, rows, steps))
    assert count < 5 or len(np.unique(epochs[:8], axis=0)) > 1, "each in an order of its own"


def test_the_steps_of_an_epoch_read_all_rows_with_their_queries():
    algorithm, constants = algorithm_of(2, 1, micro_batches=2), constants_of()
    read = []
    for step in range(3):
        collected = algorithm.collect(state_of(algorithm, constants, step), constants, Keys.of(constants.root, step))
        assert collected.batches.example_id.shape == (2, 1)
        row = collected.batches.rollout.log_behavior[:, 0, 0]
        np.testing.assert_array_equal(collected.batches.example_id.ravel(), row // 8)
        read += row.tolist()
    assert sorted(read) == [0, 4, 8, 12, 16, 20]
    np.testing.assert_allclose(collected.metrics["epochs"], 1.0)


@pytest.mark.slow
def test_the_loss_is_the_mean_nats_of_a_completion_and_what_is_refused_weighs_nothing():
    algorithm, constants = algorithm_of(3, 2), constants_of()
    trainable, key = Adapter(random_lora(tiny())), jax.random.key(0)
    batch = remembered(algorithm)
    assert not batch.rollout.action_mask[4:].any()
    prompt = jax.tree.map(lambda x: x[batch.example_id], constants.queries.prompt)
    scores = score(algorithm.policy(trainable, constants), prompt, batch.rollout, RULES)
    nats = -np.asarray(scores.log_pf.sum(1))

    def measure(batch):
        weights = algorithm.weights(batch)
        loss = jax.value_and_grad(algorithm.loss, has_aux=True)
        (value, measured), gradient = loss(trainable, constants, batch, weights, key)
        return float(weights["rows"]), float(value), float(measured["loss_per_choice"].mean()), gradient

    rows, value, each, gradient = measure(batch)
    assert rows == 4
    np.testing.assert_allclose(value, nats[:4].mean(), rtol=1e-5)
    np.testing.assert_allclose(each, nats[:4].sum() / (3 + 2 + 2 + 2), rtol=1e-5)
    _, alone, _, same = measure(batch.take(jnp.arange(4)))
    np.testing.assert_allclose(value, alone, rtol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), gradient, same)
    _, nothing, _, none = measure(batch.take(jnp.asarray([4, 5])))
    assert nothing == 0
    assert all((x == 0).all() for x in jax.tree.leaves(none))


@pytest.mark.slow
def test_training_reaches_the_demonstrations_own_distribution_whatever_the_reward_says():
    """Of 512 draws out of 85 completions, many of them the same, and 32 rows that are refused."""
    world = random_world(jax.random.key(0), 4, 3, 2.0)
    count = len(world.completions.completion)
    drawn = np.random.default_rng(1).choice(count, 512, p=np.random.default_rng(2).dirichlet(np.full(count, 0.3)))
    share = np.bincount(drawn, minlength=count) / len(drawn)
    rows = jax.tree.map(lambda x: jnp.asarray(np.asarray(x)[drawn]), world.completions)
    refused = jax.tree.map(lambda x: jnp.zeros((32, *x.shape[1:]), x.dtype), rows)
    rows = jax.tree.map(lambda a, b: jnp.concatenate([a, b]), rows, refused)
    steps, algorithm = 600, algorithm_of(17, 16, reward=world.reward, lora=world.lora)
    optimizer = make_optimizer(OptimizerConfig(learning_rate=1e-2, total_steps=steps, clip_norm=10.0))

    @functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 3})
    def train(rows):
        memory = algorithm.remember(None, jnp.zeros(1, jnp.int32), Trajectory(rows, jnp.zeros(rows.completion.shape)))
        state = init_state(algorithm, optimizer, jax.random.key(1), world.constants)
        state = dataclasses.replace(state, memory=memory)
        step = make_step(algorithm, optimizer)
        state, metrics = jax.lax.scan(lambda s, _: step(s, world.constants), state, None, length=steps)
        return world.log_policy(world.constants.base.adapted(state.trainable.lora)), metrics

    log_policy, metrics = train(rows)
    policy = np.exp(np.asarray(log_policy))
    entropy = -(share[share > 0] * np.log(share[share > 0])).sum()
    assert np.abs(policy - share).sum() / 2 <= 0.01
    assert float(divergences(log_policy, world.log_target())["total_variation"]) > 0.4
    np.testing.assert_allclose(metrics["loss"][-10:].mean(), entropy, atol=0.1)  # its least value
    np.testing.assert_allclose(metrics["accepted"].mean(), 512 / 544, atol=1e-3)


@pytest.mark.parametrize("config", ["rng", "continuation"])
def test_a_task_without_demonstrations_is_refused_before_weights_are_read(config):
    words = ["launch", f"--config=configs/{config}.py", "--config.algorithm=sft"]
    run = read_policy_run(parse(words).config)
    folder = model_folder(run.model.path)
    mesh = meshes.abstract_mesh(meshes.MeshConfig(1, 1, 1))
    problem = f"^algorithm sft needs demonstrations; the task {run.values.task} has none$"
    with pytest.raises(ValueError, match=problem):
        policy_parts(run, read_config(folder)[1], load_tokenizer(folder), mesh)


def test_rows_that_do_not_divide_over_the_devices_are_refused():
    words = ["launch", "--config=configs/arith.py", "--config.algorithm=sft", "--config.sampling.queries=3"]
    run = read_policy_run(parse([*words, "--config.sampling.samples=2"]).config)
    folder, mesh = model_folder(run.model.path), meshes.abstract_mesh(meshes.MeshConfig(4, 1, 1))
    with pytest.raises(ValueError, match=r"does not divide over 4 devices"):
        policy_parts(run, read_config(folder)[1], load_tokenizer(folder), mesh)


def test_demonstrations_are_rows_of_a_pytree():
    taken = jax.jit(Demonstrations.take)(remembered(algorithm_of(2, 2)), jnp.asarray([[5, 0]]))
    assert taken.example_id.tolist() == [[2, 0]]


def test_texts_are_prompt_completion_and_answer():
    """Token for token, whatever is padded on which side; what could not be written is not learnt."""
    query = Query(
        example_id=jnp.arange(3),
        prompt=Tokens(jnp.array([[0, 7], [7, 8], [7, 8]]), jnp.array([[False, True], [True, True], [True, True]])),
        context=Tokens(jnp.zeros((3, 1), int), jnp.ones((3, 1), bool)),
        answer=Tokens(jnp.array([[5, 6], [5, 0], [5, 6]]), jnp.array([[True, True], [True, False], [True, True]])),
    )
    length, columns = jnp.array([1, 3, 0])[:, None], jnp.arange(4)
    stopped = jnp.array([True, True, False])[:, None]
    rollout = Rollout(
        completion=jnp.array([[1, 9, 9, 9], [1, 2, 3, 9], [9, 9, 9, 9]]),
        token_mask=columns < length,
        action_mask=(columns <= length) & stopped,
        state_mask=(columns <= length) & stopped,
        log_behavior=jnp.zeros((3, 4)),
    )
    texts, learnt = joint_texts(query, rollout)
    rows = [np.asarray(ids)[np.asarray(mask)].tolist() for ids, mask in zip(texts.ids, texts.mask, strict=True)]
    assert rows == [[7, 1, 5, 6], [7, 8, 1, 2, 3, 5], [7, 8]]
    learned = [np.asarray(ids)[np.asarray(mask)].tolist() for ids, mask in zip(texts.ids, learnt, strict=True)]
    assert learned == [[1, 5, 6], [1, 2, 3, 5], []]
    texts, learnt = joint_texts(query, rollout, end=4, with_prompt=True)
    whole = [np.asarray(ids)[np.asarray(mask)].tolist() for ids, mask in zip(texts.ids, learnt, strict=True)]
    assert whole == [[7, 1, 5, 6, 4], [7, 8, 1, 2, 3, 5, 4], []]
