"""Policy gradients against brute force: what they converge to, their gradients, and rows that are learnt from again."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_worlds import (
    calculator_world,
    left_padded,
    query_of,
    random_params,
    tiny,
)

from gfn_jax.algorithms.entry import Ingredients
from gfn_jax.algorithms.grpo import normalised
from gfn_jax.algorithms.on_task import Batch
from gfn_jax.algorithms.returns import ReturnConfig
from gfn_jax.algorithms.rloo import over_the_others
from gfn_jax.algorithms.sampling import Sampling, SamplingConfig
from gfn_jax.commands.train import parse
from gfn_jax.evaluation.enumeration import World, divergences, random_world
from gfn_jax.interfaces import Interruptible
from gfn_jax.models.language_model import LanguageModel
from gfn_jax.models.lora import LoraConfig
from gfn_jax.objectives.clipped import clipped_square, clipped_surrogate, generalized_advantage
from gfn_jax.policy.constraint import Constants, Rules, make_constraint
from gfn_jax.policy.score import score
from gfn_jax.policy.teacher import teacher_force
from gfn_jax.runs.config import read
from gfn_jax.runs.defaults import policy_config
from gfn_jax.runs.registry import algorithm_entry
from gfn_jax.training.optimizer import OptimizerConfig, make_optimizer
from gfn_jax.training.step import hosted_sample, init_state, make_step, make_step_halves, step_of_halves
from gfn_jax.types import Keys, Sampled, TrainState, Trajectory

POLICY_GRADIENTS = ("reinforce", "rloo", "grpo", "ppo")
# Where a program runs longer than it compiles: tests/conftest.py asks for the opposite.
OPTIMISED = {"xla_backend_optimization_level": 3, "xla_cpu_use_fusion_emitters": True}
TEMPERATURE = 0.8
REACHABLE = 0.5 * jax.random.normal(jax.random.key(103), (85,))  # log R: the best one has 1.3 % of the base


@pytest.fixture(scope="module")
def world() -> World:
    """85 completions, whose log R have a standard deviation of 0.5 nats; so the target is far from the base."""
    return random_world(jax.random.key(0), 4, 3, 0.5)


def make(name: str, reward, lora, own: dict | None = None, copies: int = 1, **budget):
    """An algorithm of the registry, its section being the defaults with some changes."""
    entry = algorithm_entry(name)
    assert entry.config is not None
    config = policy_config("any")
    sampling = Sampling(SamplingConfig(**{**config.sampling, **budget}))
    config = entry.config(**{**config[name], **(own or {})})
    return entry.make(config, Ingredients(reward, sampling, lora, copies=copies))


def section(target: str, **changes) -> ReturnConfig:
    return ReturnConfig(**{"target": target, "beta": 0.5, "kl_target": None, "kl_horizon": 100.0} | changes)


# What they converge to.


@dataclasses.dataclass(frozen=True)
class Trial:
    """What is trained, and for how long; towards another table of log R where there is one."""

    name: str
    own: dict
    steps: int
    learning_rate: float = 3e-3
    samples: int = 64
    table: jax.Array | None = None


TRIALS = {
    "reinforce": Trial("reinforce", {}, steps=200, samples=128, table=REACHABLE),
    "rloo": Trial("rloo", {}, steps=200),
    "rloo, kl_to_base": Trial("rloo", {"target": "kl_to_base", "beta": 0.5}, steps=300),
    "grpo": Trial("grpo", {}, steps=300),
    "ppo": Trial("ppo", {"value_coefficient": 1.0, "epochs": 2}, steps=400, samples=128),
}


@pytest.fixture(scope="module")
def learnt(world):
    """Trial -> log q of every completion, the reward being tempered."""

    @functools.cache
    def train(trial: str):
        given = TRIALS[trial]
        tempered = {"reward_temperature_start": TEMPERATURE, "reward_temperature_end": TEMPERATURE}
        algorithm = make(given.name, world.reward, world.lora, given.own, queries=1, samples=given.samples, **tempered)
        rates = OptimizerConfig(learning_rate=given.learning_rate, total_steps=given.steps, clip_norm=10.0)
        optimizer = make_optimizer(rates)

        @functools.partial(jax.jit, compiler_options=OPTIMISED)
        def run(constants):
            state = init_state(algorithm, optimizer, jax.random.key(1), constants)
            step = make_step(algorithm, optimizer)
            state, _ = jax.lax.scan(lambda state, _: step(state, constants), state, None, length=given.steps)
            return world.log_policy(algorithm.policy(state.trainable, constants))

        table = world.reward.table if given.table is None else given.table
        return run(world.constants.replace(prepared=table))

    return train


def total_variation(log_q, log_p) -> float:
    return float(divergences(log_q, log_p)["total_variation"])


@pytest.mark.slow
@pytest.mark.parametrize("trial", ["rloo", "grpo", "ppo"])
def test_training_reaches_the_posterior(world, learnt, trial):
    target = world.log_target(TEMPERATURE)
    assert total_variation(world.log_policy(world.constants.base), target) > 0.4  # where training starts
    assert total_variation(learnt(trial), target) <= 0.01


@pytest.mark.slow
def test_with_a_penalty_it_is_the_tilted_base(world, learnt):
    """p exp(r / beta), r being log R/T; and that is not the posterior."""
    base, posterior = world.log_policy(world.constants.base), world.log_target(TEMPERATURE)
    tilted = jax.nn.log_softmax(base + posterior / 0.5)
    assert total_variation(learnt("rloo, kl_to_base"), tilted) <= 0.01
    assert total_variation(learnt("rloo, kl_to_base"), posterior) > 0.1


@pytest.mark.slow
def test_of_the_reward_alone_nothing_but_the_best_is_left(world, learnt):
    """In a world whose best completion is not too rare to begin with (1.3 %; of a mean of 1.2 %).

    Where it is, even the exact gradient ends on another one: of `world`, by enumeration, on the second best.
    """
    log_q = learnt("reinforce")
    assert jnp.exp(log_q[jnp.argmax(REACHABLE)]) > 0.95
    assert total_variation(log_q, jax.nn.log_softmax(REACHABLE / TEMPERATURE)) > 0.9


# Gradients.


def test_the_expected_gradient_of_rloo_is_that_of_the_divergence():
    """Over all pairs of rows that a step of two may draw, each by its probability; KL(q || posterior) by listing."""
    world, temperature = random_world(jax.random.key(3), 2, 2, 1.0, width=8, layers=1), 0.7
    tempered = {"reward_temperature_start": temperature, "reward_temperature_end": temperature}
    algorithm = make("rloo", world.reward, world.lora, queries=1, samples=2, **tempered)
    constants, completions = world.constants, world.completions
    trainable, memory = algorithm.init(jax.random.key(1), constants)
    trainable = jax.tree.map(lambda x: x + 0.3 * jax.random.normal(jax.random.key(2), x.shape), trainable)
    state, keys = TrainState(jnp.int32(0), trainable, None, memory), Keys.of(constants.root, jnp.int32(0))

    @jax.jit
    def divergence(trainable):
        log_q = world.log_policy(algorithm.policy(trainable, constants))
        return divergences(log_q, world.log_target(temperature))["kl_q_p"]

    @jax.jit
    def of_pairs(trainable, pairs):
        policy = algorithm.policy(trainable, constants)
        log_q = score(policy, constants.queries.prompt, completions, constants.rules).log_pf
        listed = dataclasses.replace(completions, log_behavior=log_q)
        log_reward = world.reward.log_reward(constants.base, constants.prepared, constants.queries, completions)

        def one(pair):
            drawn = Trajectory(*jax.tree.map(lambda x: x[pair][None], (listed, log_reward)))
            sampled = Sampled(jax.tree.map(lambda x: x[None], constants.queries), drawn)
            batches = algorithm.store(dataclasses.replace(state, trainable=trainable), constants, sampled, keys).batches
            batch = jax.tree.map(lambda x: x[0], batches)
            weights = algorithm.weights(batch)
            gradient = jax.grad(lambda t: algorithm.loss(t, constants, batch, weights, jax.random.key(0))[0])(trainable)
            probability = jnp.exp(log_q[pair].sum())
            return jax.tree.map(lambda x: x * probability, gradient)

        return jax.tree.map(lambda x: x.sum(0), jax.lax.map(one, pairs))

    count = len(world.reward.table)
    pairs = jnp.stack(jnp.meshgrid(jnp.arange(count), jnp.arange(count)), axis=-1).reshape(-1, 2)
    expected, exact = of_pairs(trainable, pairs), jax.jit(jax.grad(divergence))(trainable)
    for a, b in zip(jax.tree.leaves(expected), jax.tree.leaves(exact), strict=True):
        assert jnp.abs(b).max() > 1e-3
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4 * float(jnp.abs(b).max()))


def test_a_row_is_compared_with_those_of_its_query_that_count():
    """By a loop: what is left out, and a query of which one row counts, or none."""
    rng = np.random.default_rng(0)
    returns, used = rng.standard_normal((4, 5)), np.ones((4, 5), bool)
    used[1, :2], used[2, 1:], used[3] = False, False, False
    others, scaled = np.zeros((2, 4, 5))
    for query, row in zip(*np.nonzero(used)):
        mine = used[query] & (np.arange(5) != row)
        if mine.any():
            others[query, row] = returns[query, row] - returns[query, mine].mean()
            all_of_it = returns[query, used[query]]
            scaled[query, row] = (returns[query, row] - all_of_it.mean()) / all_of_it.std()
    given = jnp.asarray(returns, jnp.float32), jnp.asarray(used)
    np.testing.assert_allclose(over_the_others(*given), others, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(normalised(*given), scaled, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("discount", [0.0, 0.6, 1.0])
def test_generalised_advantages_are_those_of_a_loop(discount):
    rng = np.random.default_rng(0)
    reward, value = rng.standard_normal((2, 5, 8))
    chose = rng.random((5, 8)) < 0.6
    chose[0], chose[1] = True, False
    expected = np.zeros((5, 8))
    for row in range(5):
        columns = np.flatnonzero(chose[row]).tolist()
        for place, t in enumerate(columns):
            later, total = columns[place:], 0.0
            for distance, s in enumerate(later):
                following = value[row, later[distance + 1]] if distance + 1 < len(later) else 0.0
                total += discount**distance * (reward[row, s] + following - value[row, s])
            expected[row, t] = total
    found = generalized_advantage(*map(jnp.float32, (reward, value)), jnp.asarray(chose), discount)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def test_what_has_moved_too_far_has_no_gradient():
    """Ratios 0.5, 1 and 2 with either advantage, at a clip of 0.2."""
    ratio, advantage = jnp.array([0.5, 1.0, 2.0, 0.5, 1.0, 2.0]), jnp.array([3.0, 3.0, 3.0, -3.0, -3.0, -3.0])
    loss, clipped = clipped_surrogate(jnp.log(ratio), advantage, 0.2)
    np.testing.assert_allclose(loss, [-1.5, -3.0, -3.6, 2.4, 3.0, 6.0], rtol=1e-6)
    assert clipped.tolist() == [False, False, True, True, False, False]
    gradient = jax.grad(lambda x: clipped_surrogate(x, advantage, 0.2)[0].sum())(jnp.log(ratio))
    assert (gradient == 0).tolist() == clipped.tolist()


def test_a_value_moves_no_further_than_its_clip():
    """The greater of two losses: a value past the clip has no gradient, unless it went the wrong way."""
    old, aim = jnp.zeros(4), jnp.array([3.0, 3.0, 3.0, 3.0])
    value = jnp.array([0.5, 2.0, -2.0, 0.0])
    loss, gradient = jax.vmap(jax.value_and_grad(lambda v, o, a: clipped_square(v, o, a, 1.0)))(value, old, aim)
    np.testing.assert_allclose(loss, [3.125, 2.0, 12.5, 4.5])
    np.testing.assert_allclose(gradient, [-2.5, 0.0, -5.0, -3.0])
    np.testing.assert_allclose(clipped_square(value, old, aim, None), (value - aim) ** 2 / 2)


# Rewards of choices.


def test_a_tools_tokens_cost_nothing_and_are_worth_nothing():
    """Rows of a calculator's world: rewards, advantages and values' aims are of what the policy chose alone."""
    tokenizer, environment, _ = calculator_world()
    constraint = make_constraint(len(tokenizer), tokenizer.eos_token_id, 12, call_room=2)
    texts = [" 60 + 30 = 90, 1 - 30 = -29", " 1 + 30", " 1 + 30 = 31, 1", " 2"]
    ids = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
    completion = jnp.asarray([row + [0] * (13 - len(row)) for row in ids])
    model = tiny(vocab_size=len(tokenizer))
    base = LanguageModel(model, random_params(model))
    rules, query = Rules(constraint, environment), query_of(left_padded([[3, 5]]))
    constants = Constants(base, None, query, jnp.zeros(1), rules, jax.random.key(5))
    sampled = jax.jit(lambda completion, length: teacher_force(completion, length, rules))(
        completion, jnp.asarray([len(row) for row in ids])
    )
    chose, written = np.asarray(sampled.action_mask), np.asarray(sampled.token_mask & ~sampled.action_mask)
    assert written.any(axis=1).tolist() == [True, False, True, False]
    log_q = jnp.where(sampled.action_mask, jax.random.normal(jax.random.key(6), chose.shape), 0.0)
    sampled = dataclasses.replace(sampled, log_behavior=log_q)
    log_reward = jnp.asarray(np.random.default_rng(0).standard_normal(chose.shape), jnp.float32)
    batch = Batch.of(query, Trajectory(sampled, log_reward))
    log_base = jnp.where(sampled.action_mask, sampled.log_behavior + 1.0, 0.0)  # a nat more in each choice

    rewards = section("posterior").rewards(batch, 0.5, None)
    assert not np.asarray(rewards)[~chose].any()
    np.testing.assert_allclose(rewards.sum(1), batch.log_reward - sampled.log_behavior.sum(1), rtol=1e-5)
    np.testing.assert_array_equal(section("reward").rewards(batch, 0.5, None).sum(1), batch.log_reward)
    rewards = section("kl_to_base").rewards(batch, 0.25, log_base)
    assert not np.asarray(rewards)[~chose].any()
    np.testing.assert_allclose(rewards.sum(1), batch.log_reward + 0.25 * chose.sum(1), rtol=1e-5)

    own = {"gae_lambda": 1.0, "whiten": False}

    algorithm = make("ppo", None, LoraConfig(2, 2, ("q",)), own, queries=1, samples=4)
    trainable = algorithm.untrained(jax.random.key(0), constants)
    trainable = trainable.replace(value=jax.tree.map(lambda x: x + 0.3, trainable.value))
    found, _ = algorithm.experience(trainable, constants, jax.tree.map(lambda x: x[None], batch), rewards[None])
    advantage, value = np.asarray(found.advantage[0]), np.asarray(found.own.old[0])
    left = np.cumsum(np.asarray(rewards)[:, ::-1], axis=1)[:, ::-1]  # what is still to come
    assert not advantage[~chose].any()
    np.testing.assert_allclose(advantage[chose], (left - value)[chose], rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(np.asarray(found.own.aim[0])[chose], left[chose], rtol=1e-4, atol=1e-4)


# The controller of beta.


def test_beta_follows_the_divergence():
    config = section("kl_to_base", kl_target=2.0)
    beta = jnp.float32(0.5)
    assert config.next_beta(beta, jnp.float32(2.0), 10) == beta
    np.testing.assert_allclose(config.next_beta(beta, jnp.float32(2.2), 10), 0.5 * 1.01, rtol=1e-6)
    np.testing.assert_allclose(config.next_beta(beta, jnp.float32(9.0), 10), 0.5 * 1.02, rtol=1e-6)
    np.testing.assert_allclose(config.next_beta(beta, jnp.float32(0.0), 10), 0.5 * 0.98, rtol=1e-6)
    assert section("kl_to_base").next_beta(beta, jnp.float32(9.0), 10) == beta


@pytest.fixture(scope="module")
def small() -> World:
    return random_world(jax.random.key(3), 3, 2, 1.0, width=8, layers=1)


def started(algorithm, world: World):
    """A step, and the state before the first."""
    optimizer = make_optimizer(OptimizerConfig(learning_rate=1e-2, total_steps=100))
    state = init_state(algorithm, optimizer, jax.random.key(0), world.constants)
    return jax.jit(make_step(algorithm, optimizer)), state


def test_beta_is_in_the_state(small):
    """The policy starts as the base: beta falls while the KL is below its target; far from the base it rises."""
    own = {"target": "kl_to_base", "kl_target": 0.05, "kl_horizon": 100.0, "beta": 0.3}
    step, state = started(make("rloo", small.reward, small.lora, own, queries=1, samples=16), small)
    assert float(state.memory.beta) == pytest.approx(0.3)
    state, metrics = step(state, small.constants)
    assert float(metrics["kl_to_base"]) == pytest.approx(0.0, abs=1e-5)
    assert float(metrics["beta"]) == pytest.approx(0.3)
    assert float(state.memory.beta) == pytest.approx(0.3 * (1 - 0.2 * 16 / 100))
    moved = jax.tree.map(lambda x: x + 0.5 * jax.random.normal(jax.random.key(7), x.shape), state.trainable)
    after, metrics = step(dataclasses.replace(state, trainable=moved), small.constants)
    assert metrics["kl_to_base"] > 0.06
    assert float(metrics["beta"]) == float(state.memory.beta)
    assert float(after.memory.beta) == pytest.approx(float(state.memory.beta) * (1 + 0.2 * 16 / 100))


# The same rows again.


BLOCK = {"epochs": 2, "minibatches": 2, "clip": 0.1}
MANY = {"queries": 4, "samples": 4, "micro_batches": 2}


@pytest.fixture(scope="module")
def several(small) -> World:
    """Six queries of different prompts, in the small world."""
    prompts = query_of(left_padded([[i] for i in (0, 1, 2, 3, 4, 0)]))
    constants = small.constants.replace(queries=prompts, query_log_weight=jnp.zeros(6))
    return dataclasses.replace(small, constants=constants)


def held(state):
    return state.memory.held.experience.batch.trajectory.rollout.completion


def test_a_block_shares_its_rows_and_resumes_within(several):
    """Four updates on the same rows, then others; from any state on the run goes as it went, bit for bit."""
    step, state = started(make("ppo", several.reward, several.lora, BLOCK, **MANY), several)
    states, measured = [state], []
    for _ in range(6):
        state, metrics = step(state, several.constants)
        states.append(jax.device_get(state))
        measured.append(jax.device_get(metrics))
    for number in range(2, 5):
        np.testing.assert_array_equal(held(states[number]), held(states[1]))
        assert measured[number - 1]["return"] == measured[0]["return"]
    assert (held(states[5]) != held(states[1])).any()
    np.testing.assert_array_equal(held(states[6]), held(states[5]))
    assert len({float(metrics["loss"]) for metrics in measured}) == 6
    assert step._cache_size() == 1

    state = jax.tree.map(jnp.asarray, states[2])
    for number in range(3, 7):
        state, metrics = step(state, several.constants)
        jax.tree.map(np.testing.assert_array_equal, jax.device_get(state), states[number])
        jax.tree.map(np.testing.assert_array_equal, jax.device_get(metrics), measured[number - 1])


def test_an_epoch_learns_from_every_row_once(several):
    """Each part has two of the four rows of every query; two epochs cut differently."""
    algorithm = make("grpo", several.reward, several.lora, BLOCK, **MANY)
    _, state = started(algorithm, several)
    collect = jax.jit(lambda state: algorithm.collect(state, several.constants, Keys.of(several.constants.root, 0)))
    # The advantages tell rows apart: nothing else does where two are the same.
    memory = collect(state).memory
    experience = memory.held.experience
    marked = experience.replace(advantage=jnp.arange(16.0)[:, None] + jnp.zeros_like(experience.advantage))
    memory = memory.replace(held=memory.held.replace(experience=marked))
    parts = []
    for number in (4, 5, 6, 7):  # the second block, were its first step not to sample
        share = algorithm.share(marked, jnp.int32(number), several.constants.root)
        rows = share.advantage[:, 0].reshape(4, 2)
        assert (rows // 4 == jnp.arange(4)[:, None]).all()
        np.testing.assert_array_equal(share.batch.query.example_id, experience.batch.query.example_id)
        picked = rows.astype(int).ravel()
        np.testing.assert_array_equal(share.batch.trajectory.log_reward, experience.batch.trajectory.log_reward[picked])
        parts.append(picked.tolist())
    for epoch in (parts[:2], parts[2:]):
        assert sorted(epoch[0] + epoch[1]) == list(range(16))
    assert sorted(parts[0]) != sorted(parts[2])
    batches = collect(state.replace(step=jnp.int32(1), memory=memory)).batches
    assert batches.advantage.shape[:2] == (2, 4)


def test_far_from_what_has_drawn_the_rows_nothing_is_learnt(several):
    """All choices a nat likelier than when drawn: those of positive advantage have no gradient, the others do."""
    algorithm = make("grpo", several.reward, several.lora, {"epochs": 1}, **MANY)
    _, state = started(algorithm, several)
    batches = jax.jit(algorithm.collect)(state, several.constants, Keys.of(several.constants.root, 0)).batches
    batch = jax.tree.map(lambda x: x[0], batches)
    drawn = batch.batch.trajectory.rollout
    less = dataclasses.replace(drawn, log_behavior=drawn.log_behavior - jnp.where(drawn.action_mask, 1.0, 0.0))
    trajectory = dataclasses.replace(batch.batch.trajectory, rollout=less)

    @jax.jit
    def gradient(sign):
        advantage = sign * jnp.abs(batch.advantage)
        given = batch.replace(batch=batch.batch.replace(trajectory=trajectory), advantage=advantage)
        weights = algorithm.weights(given)
        loss = jax.value_and_grad(algorithm.loss, has_aux=True)
        (_, terms), found = loss(state.trainable, several.constants, given, weights, jax.random.key(0))
        return terms["clip_share"].mean(), jnp.stack([jnp.abs(x).max() for x in jax.tree.leaves(found)]).max()

    share, largest = gradient(1.0)
    assert share > 0.5
    assert largest == 0
    share, largest = gradient(-1.0)
    assert share == 0
    assert largest > 1e-3


def test_a_unit_is_what_values_are_counted_in(several):
    """The same values in units of three nats: the same advantages, and a ninth of the values' loss."""
    found = {}
    for unit in (1.0, 3.0):
        own = {"value_unit": unit, "whiten": False, "value_clip": None}
        algorithm = make("ppo", several.reward, several.lora, own, **MANY)
        step, state = started(algorithm, several)
        head = state.trainable.value
        head = head.replace(kernel=jnp.linspace(-1.0, 1.0, head.kernel.size) / unit, bias=jnp.float32(-2.0 / unit))
        state = state.replace(trainable=state.trainable.replace(value=head))
        after, metrics = step(state, several.constants)
        found[unit] = after.memory.held.experience.advantage, metrics
    np.testing.assert_allclose(found[3.0][0], found[1.0][0], rtol=1e-5, atol=1e-5)
    assert jnp.abs(found[1.0][0]).max() > 0.1
    assert float(found[3.0][1]["loss_value"]) == pytest.approx(float(found[1.0][1]["loss_value"]) / 9, rel=1e-5)
    assert float(found[3.0][1]["explained_variance"]) == pytest.approx(float(found[1.0][1]["explained_variance"]), 1e-4)


@pytest.mark.slow
def test_what_the_host_adds_counts_once(several):
    """In every step of a block: the host is asked again, but of rows that are remembered its word was heard."""
    algorithm = make("ppo", several.reward, several.lora, {**BLOCK, "target": "reward"}, **MANY)
    assert isinstance(algorithm, Interruptible)
    optimizer = make_optimizer(OptimizerConfig(learning_rate=0.0, total_steps=100))
    sample, update = map(jax.jit, make_step_halves(algorithm, optimizer))
    state = init_state(algorithm, optimizer, jax.random.key(0), several.constants)
    drawn = sample(state, several.constants).trajectory
    own = float(jnp.where(drawn.rollout.stop, drawn.log_reward, 0.0).sum(axis=-1).mean())
    step = step_of_halves(hosted_sample(sample, lambda ids, rows: np.full(rows.completion.shape, 3.0)), update)
    for _ in range(3):
        state, metrics = step(state, several.constants)
        assert float(metrics["return"]) == pytest.approx(own + 3.0, abs=1e-5)


# Configs.


@pytest.mark.parametrize(
    ("name", "own", "budget", "problem"),
    [
        ("rloo", {}, {"samples": 1}, "sampling.samples is 1; .* 2 or more"),
        ("grpo", {}, {"samples": 1}, "sampling.samples is 1; .* 2 or more"),
        ("ppo", {"minibatches": 3}, {"samples": 4}, "minibatches is 3; the 4 samples of a query do not divide"),
        ("ppo", {"minibatches": 2}, {"samples": 4, "copies": 4}, "each of them shared by 4 devices"),
        ("rloo", {"kl_target": 1.0}, {}, "kl_target is 1.0; .* target is 'posterior'"),
        ("ppo", {"kl_target": 1.0, "target": "kl_to_base", "beta": 0.0}, {}, "kl_target is 1.0; .* beta 0.0"),
    ],
)
def test_what_cannot_be_learnt_is_refused(small, name, own, budget, problem):
    with pytest.raises(ValueError, match=problem) as caught:
        make(name, small.reward, small.lora, own, **budget)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", POLICY_GRADIENTS)
def test_a_config_that_names_it_has_its_section_alone(name):
    config = parse(["launch", "--config=configs/rng.py", f"--config.algorithm={name}"]).config
    run = read(config, [f"{name}.target"])
    assert run.algorithm.target == ("reward" if name == "reinforce" else "posterior")
    assert not {"objective", "replay", "exploration", *POLICY_GRADIENTS} & set(run.described) - {name}
    with pytest.raises(ValueError, match="does not read it"):
        read(config, ["replay.samples"])


def test_the_papers_ppo():
    run = read(parse(["launch", "--config=configs/arith.py:ppo"]).config)
    assert (run.values.algorithm, run.sampling.queries, run.sampling.samples) == ("ppo", 64, 16)
    own = run.algorithm
    assert (own.epochs, own.minibatches, own.clip, own.target, own.beta) == (4, 1, 0.2, "kl_to_base", 0.2)
    assert own.kl_target is not None
    assert run.optimizer.learning_rate == 1e-4
