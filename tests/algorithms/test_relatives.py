"""The relatives of SubTB in a world of 85 completions: what each converges to, exactly.

All but FlowRL reach q = R / Z; FlowRL reaches R(Z) z^(-|Z|), where its log Z is the root of another equation, which is
solved here. As in test_enumerable.py all is real, and programs are shared: coefficients are arguments.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from tiny_worlds import sampling_settings

from gfn_jax.algorithms.entry import Ingredients
from gfn_jax.algorithms.gflownet import GFlowNet, OfStep
from gfn_jax.algorithms.on_task import Batch
from gfn_jax.evaluation.enumeration import World, divergences, random_world
from gfn_jax.models.lora import init_lora
from gfn_jax.objectives.mixture import Objective
from gfn_jax.policy.head import Head
from gfn_jax.training.optimizer import OptimizerConfig, make_optimizer
from gfn_jax.training.step import init_state, make_step
from gfn_jax.types import Collected, Keys, Query, Tokens, Trajectory

# Standard deviation of log R in nats; of the peaked target's 85 completions one has .61.
REWARDS = {"flat": 0.5, "peaked": 5.0}
PEAKED_FIRST = [pytest.param("flat", marks=pytest.mark.slow), "peaked"]  # in CI the harder one alone
SAMPLES, STEPS = 64, 1500
BEHAVIOR = {"tempered": 0.25, "exploring": 0.25, "uniform_mix": 1.0}
MIXED = {"queries": 1, "samples": SAMPLES, "replay_samples": 0, "replay_capacity": 1, **BEHAVIOR}
OPTIMISED = {"xla_backend_optimization_level": 3, "xla_cpu_use_fusion_emitters": True}


@pytest.fixture(scope="module")
def worlds() -> dict[str, World]:
    return {name: random_world(jax.random.key(0), 4, 3, scale) for name, scale in REWARDS.items()}


def make_algorithm(world: World, terms: dict, settings: dict = MIXED, steps: int = STEPS, **options) -> GFlowNet:
    sampling = sampling_settings(**settings)
    objective = Objective(tuple(terms.items()), "released_mean", samples_per_query=sampling.samples, **options)
    return GFlowNet(Ingredients(world.reward, sampling, world.lora, objective, steps=steps))


def log_z_of(algorithm: GFlowNet, state, constants) -> jax.Array:
    """Log Z of the world's query, as a loss would read it."""
    collected = algorithm.collect(state, constants, Keys.of(constants.root, state.step))
    batch = jax.tree.map(lambda x: x[0], collected.batches)
    _, hidden = algorithm.score(state.trainable, constants, batch, constants.root)
    return algorithm.log_z(state.trainable, batch, hidden)[0]


@functools.cache
def trainer(names: tuple[str, ...], **options):
    """(constants, coefficients) -> the policy, exactly, and its log Z: one program for worlds and terms."""
    world = random_world(jax.random.key(0), 4, 3, 1.0)
    optimizer = make_optimizer(OptimizerConfig(learning_rate=3e-3, total_steps=STEPS, clip_norm=10.0))

    @functools.partial(jax.jit, compiler_options=OPTIMISED)
    def train(constants, coefficients):
        algorithm = make_algorithm(world, dict(zip(names, list(coefficients), strict=True)), **options)
        state = init_state(algorithm, optimizer, jax.random.key(1), constants)
        step = make_step(algorithm, optimizer)
        state, _ = jax.lax.scan(lambda state, _: step(state, constants), state, None, length=STEPS)
        log_q = world.log_policy(algorithm.policy(state.trainable, constants))
        return log_q, log_z_of(algorithm, state, constants) if algorithm.objective.needs_log_z else jnp.zeros(())

    def only(world: World, name: str):
        return train(world.constants, jnp.array([float(name == other) for other in names]))

    return only


def total_variation(log_q, log_p) -> float:
    return float(divergences(log_q, jnp.asarray(log_p, jnp.float32))["total_variation"])


def log_sum(world: World) -> float:
    return float(np.logaddexp.reduce(np.asarray(world.reward.table, np.float64)))


def flowrl_optimum(world: World) -> tuple[np.ndarray, float]:
    """Log of R(Z) z^(-|Z|), and log z such that it sums to 1, by bisection; |Z| counts the stop."""
    log_reward = np.asarray(world.reward.table, np.float64)
    actions = np.asarray(world.completions.action_mask.sum(axis=1))
    low, high = -100.0, 100.0
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if np.logaddexp.reduce(log_reward - actions * middle) > 0 else (low, middle)
    return log_reward - actions * middle, middle


LEARNT = ("tb", "flowrl", "contrastive", "raptb")


@pytest.mark.slow
@pytest.mark.parametrize("reward", PEAKED_FIRST)
@pytest.mark.parametrize("name", [pytest.param("contrastive", marks=pytest.mark.slow), "raptb"])
def test_relatives_reach_the_target(worlds, reward, name):
    world = worlds[reward]
    log_q, log_z = trainer(LEARNT)(world, name)
    assert total_variation(log_q, world.log_target()) <= 0.01
    if name == "raptb":
        assert float(log_z) == pytest.approx(log_sum(world), abs=0.01)


@pytest.mark.slow
@pytest.mark.parametrize("reward", PEAKED_FIRST)
def test_flowrls_z_does_not_normalise_the_reward(worlds, reward):
    """Its users ask. It is the root of sum R z^(-|Z|) = 1, and q is the distribution that this makes."""
    world = worlds[reward]
    log_q, log_z = trainer(LEARNT)(world, "flowrl")
    optimum, root = flowrl_optimum(world)
    assert total_variation(log_q, optimum) <= 0.01
    assert total_variation(log_q, world.log_target()) > 0.3
    assert float(log_z) == pytest.approx(root, abs=0.01)
    assert abs(float(log_z) - log_sum(world)) > 1


@pytest.mark.slow
def test_a_margin_keeps_the_target(worlds):
    """Pairs that are 2 nats apart still connect all completions."""
    log_q, _ = trainer(("contrastive",), contrastive_margin=2.0)(worlds["peaked"], "contrastive")
    assert total_variation(log_q, worlds["peaked"].log_target()) <= 0.01


@pytest.mark.slow
def test_a_window_reaches_the_target(worlds):
    """Of two states; a window of one is detailed balance, and that is in test_enumerable.py."""
    for world in worlds.values():
        log_q, _ = trainer(("subtb",), window=2)(world, "subtb")
        assert total_variation(log_q, world.log_target()) <= 0.001


@pytest.mark.slow
@pytest.mark.parametrize("name", ["tb", "flowrl"])
def test_an_amortised_log_z_does_what_a_learnt_one_does(worlds, name):
    for world in worlds.values():
        log_q, log_z = trainer(("tb", "flowrl"), log_z="amortised")(world, name)
        target, expected = flowrl_optimum(world) if name == "flowrl" else (world.log_target(), log_sum(world))
        assert total_variation(log_q, target) <= 0.01
        assert float(log_z) == pytest.approx(expected, abs=0.02)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["tb", "raptb"])
def test_a_frozen_log_z_that_is_right_is_as_good(worlds, name):
    world = worlds["flat"]
    log_q, log_z = trainer(("tb", "raptb"), log_z="frozen", log_z_samples=1 << 15)(world, name)
    assert float(log_z) == pytest.approx(log_sum(world), abs=0.02)
    assert total_variation(log_q, world.log_target()) <= 0.01


# Several queries.


def of_queries(world: World, prompts: list[int]):
    """Constants of as many queries, all with the world's rewards."""
    ids = jnp.asarray(prompts)[:, None]
    prompt = Tokens(ids=ids, mask=jnp.ones(ids.shape, bool))
    query = Query(example_id=jnp.arange(len(ids)), prompt=prompt, context=prompt, answer=prompt)
    return world.constants.replace(queries=query, query_log_weight=jnp.zeros(len(ids)))


@pytest.mark.parametrize("how", ["eager", "jit", "shapes"])
def test_a_frozen_log_z_is_estimated_wherever_init_is_called(worlds, how):
    """Of five queries in chunks of two, at the run's last temperature: T = 1 has another log Z."""
    world, temperature = worlds["peaked"], 2.0
    constants = of_queries(world, [0, 1, 2, 3, 4])
    settings = MIXED | {"queries": 4, "micro_batches": 2, "reward_temperature_end": temperature}
    algorithm = make_algorithm(world, {"tb": 1.0}, settings, log_z="frozen", log_z_samples=2000)
    init = {"eager": algorithm.init, "jit": jax.jit(algorithm.init)}.get(how)
    if init is None:
        _, memory = jax.eval_shape(algorithm.init, jax.random.key(0), constants)
        assert memory.own.shape == (128,)
        return
    trainable, memory = init(jax.random.key(0), constants)
    assert trainable.log_z is None
    expected = np.logaddexp.reduce(np.asarray(world.reward.table, np.float64) / temperature)
    assert abs(expected - log_sum(world)) > 2
    np.testing.assert_allclose(memory.own[:5], expected, atol=0.5)
    assert len(set(np.asarray(memory.own[:5]).tolist())) == 5  # each by samples of its own
    assert not memory.own[5:].any()


def test_a_head_has_a_log_z_for_any_prompt():
    head = Head.init(jax.random.key(0), 8)
    hidden = jax.random.normal(jax.random.key(1), (3, 8))
    assert not head(hidden).any()
    moved = head.replace(outer=jnp.linspace(-1, 1, len(head.outer)), bias=jnp.ones(1))
    assert len(set(np.asarray(moved(hidden)).tolist())) == 3
    np.testing.assert_allclose(moved(7 * hidden), moved(hidden), rtol=1e-4)
    assert not jnp.any(jax.grad(lambda x: moved(x).sum())(hidden))  # the policy is not moved by it


@dataclasses.dataclass(frozen=True)
class FixedRows(GFlowNet):
    """Collects the same rows whatever the micro-batch, so that only the accumulation differs."""

    smoothing: bool = False

    def collect(self, state, constants, keys):
        parts = self.given.sampling.micro_batches
        query = jax.tree.map(lambda x: x.reshape(parts, -1, *x.shape[1:]), constants.queries)
        batches = jax.tree.map(lambda x: x.reshape(parts, -1, *x.shape[1:]), constants.prepared)
        own = OfStep(None, jnp.full((parts,), self.smoothing))
        return Collected(dataclasses.replace(batches, query=query, own=own), state.memory, {})


TERMS = {"subtb": 1.0, "tb": 0.1, "flowrl": 0.5, "contrastive": 0.3, "raptb": 0.2}


@pytest.mark.parametrize("smoothing", [pytest.param(False, marks=pytest.mark.slow), True])
def test_micro_batches_change_nothing(worlds, smoothing):
    """Four queries in one part and in two unequal ones: the same loss, gradients of terms and updates."""
    world, queries, samples = worlds["flat"], 4, 8
    chosen = jax.random.choice(jax.random.key(2), len(world.reward.table), (queries * samples,))
    completions = jax.tree.map(lambda x: x[chosen], world.completions)
    log_reward = jax.random.normal(jax.random.key(3), completions.completion.shape)
    row = jnp.tile(jnp.arange(samples), queries)
    constants = of_queries(world, [0, 1, 2, 3])
    batch = Batch.of(constants.queries, Trajectory(completions, log_reward)).replace(
        row_mask=row < jnp.repeat(2 * jnp.arange(1, queries + 1), samples),
        fresh=row < 4,
        log_behavior=jnp.linspace(-8, 0, queries * samples),
        known=row % 3 > 0,
    )
    constants = constants.replace(prepared=batch.replace(query=None))
    optimizer = optax.sgd(1.0)
    adapter = jax.tree.map(
        lambda x: 0.1 * jax.random.normal(jax.random.key(4), x.shape),
        init_lora(jax.random.key(1), constants.base.shape, world.lora),
    )

    def stepped(parts: int) -> tuple:
        settings = MIXED | {"queries": queries, "samples": samples, "micro_batches": parts, "replay_samples": 4}
        options = {"window": 2, "contrastive_margin": 0.5, "log_z": "amortised", "smoothing_steps": 1}
        algorithm = FixedRows(make_algorithm(world, TERMS, settings, **options).given, smoothing)
        state = init_state(algorithm, optimizer, jax.random.key(1), constants)
        before = state.trainable.replace(lora=adapter)
        state, metrics = jax.jit(make_step(algorithm, optimizer))(state.replace(trainable=before), constants)
        measured = {name: value for name, value in metrics.items() if name.startswith(("loss", "gradient"))}
        return measured, jax.tree.map(jnp.subtract, state.trainable, before)

    whole, parts = stepped(1), stepped(2)
    assert set(whole[0]) == {
        "loss",
        "loss_imitation",
        "gradient_norm",
        *(f"{kind}_{name}" for kind in ("loss", "gradient") for name in TERMS),
    }
    for a, b in zip(jax.tree.leaves(whole), jax.tree.leaves(parts), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5 * float(jnp.abs(a).max()))
    if smoothing:
        assert whole[0]["loss"] == pytest.approx(float(whole[0]["loss_imitation"]))


def test_the_gradient_of_a_term_is_by_the_scores(worlds):
    """Against the term alone: coefficient x its gradient by log_pf and log_pterm, over all rows."""
    world = worlds["flat"]
    constants = world.constants
    settings = MIXED | {"samples": len(world.reward.table)}
    algorithm = make_algorithm(world, {"subtb": 1.0, "tb": 0.1}, settings)
    trainable, _ = algorithm.init(jax.random.key(0), constants)
    log_reward = world.reward.log_reward(constants.base, constants.prepared, constants.queries, world.completions)
    batch = Batch.of(constants.queries, Trajectory(world.completions, log_reward))

    @jax.jit
    def found(trainable):
        _, said = algorithm.loss(trainable, constants, batch, algorithm.weights(batch), jax.random.key(0))
        scores, hidden = algorithm.score(trainable, constants, batch, jax.random.key(0))
        log_z = algorithm.log_z(trainable, batch, hidden)

        def alone(scores, name):
            term = algorithm.measure(batch, scores, log_z)[name]
            return dict(algorithm.objective.terms)[name] * term.total / term.weight

        norms = {name: optax.global_norm(jax.grad(alone)(scores, name)) for name in ("subtb", "tb")}
        return {name: said[f"gradient_{name}"].mean() for name in norms}, norms

    said, norms = found(trainable)
    assert norms["subtb"] > 0
    for name, norm in norms.items():
        np.testing.assert_allclose(said[name], norm, rtol=1e-5)


@pytest.mark.slow
def test_the_first_and_the_last_steps_imitate_the_buffer(worlds):
    """One program; which steps do is the state's number alone, so that a resumed run goes on as it would have."""
    world, steps, found, first, last = worlds["peaked"], 8, 1, 2, 2
    settings = MIXED | {"samples": 8, "replay_samples": 4, "replay_capacity": 16, "replay_tolerance": 0.0}
    settings |= {"discovery_steps": found}
    algorithm = make_algorithm(world, {"subtb": 1.0}, settings, steps, imitation_steps=first, smoothing_steps=last)
    optimizer = optax.sgd(0.01)
    state = init_state(algorithm, optimizer, jax.random.key(0), world.constants)
    step = jax.jit(make_step(algorithm, optimizer))
    losses, states = [], [state]
    for _ in range(steps):
        state, metrics = step(state, world.constants)
        losses.append({name: float(value) for name, value in metrics.items() if name.startswith("loss")})
        states.append(state)
    assert step._cache_size() == 1
    for number, said in enumerate(losses):
        smoothing = number < found + first or number >= steps - last
        assert (said["loss"] == pytest.approx(said["loss_imitation"])) == smoothing
        assert (said["loss"] == pytest.approx(said["loss_subtb"])) != smoothing
    _, again = step(states[steps - last], world.constants)
    assert float(again["loss"]) == losses[steps - last]["loss"]


@pytest.mark.slow
def test_imitation_of_a_buffer_that_holds_everything_reaches_the_target(worlds):
    """Rows are drawn in proportion to R, and maximum likelihood is where q is what they are drawn from."""
    world, steps = worlds["peaked"], 400
    constants = world.constants
    settings = MIXED | {"replay_samples": 48, "replay_capacity": 85, "replay_tolerance": 0.0}
    algorithm = make_algorithm(world, {"subtb": 1.0}, settings, steps, smoothing_steps=steps)
    optimizer = make_optimizer(OptimizerConfig(learning_rate=3e-3, total_steps=steps, clip_norm=10.0))
    log_reward = world.reward.log_reward(constants.base, constants.prepared, constants.queries, world.completions)

    @jax.jit
    def train(constants):
        state = init_state(algorithm, optimizer, jax.random.key(0), constants)
        memory = algorithm.remember(state.memory, jnp.arange(1), Trajectory(world.completions, log_reward))
        step = make_step(algorithm, optimizer)
        state = dataclasses.replace(state, memory=memory)
        state, _ = jax.lax.scan(lambda state, _: step(state, constants), state, None, length=steps)
        return world.log_policy(algorithm.policy(state.trainable, constants))

    assert total_variation(world.log_policy(constants.base), world.log_target()) > 0.4
    assert total_variation(train(constants), world.log_target()) <= 0.05
