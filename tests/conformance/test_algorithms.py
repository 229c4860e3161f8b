"""What every algorithm must hold, whoever wrote it: a new line in `ALGORITHMS` needs a line in `SETTINGS`, no more.

Beside the registered ones: the tests' example of one from outside (`tests/algorithms/reinforce.py`), and next-token
training, of an adapter and of all weights.
"""

import dataclasses
import os
import pathlib
import re
import subprocess
import sys
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from tiny_worlds import all_sequences, left_padded, query_of, random_params, right_padded, sampling_settings, tiny

from gfn_jax.algorithms.entry import Ingredients
from gfn_jax.algorithms.language_model import Corpus, LanguageModeling, epoch_order
from gfn_jax.algorithms.sampling import Sampling
from gfn_jax.environments import NoTool
from gfn_jax.interfaces import Algorithm, Remembering
from gfn_jax.models import decoder
from gfn_jax.models.language_model import LanguageModel
from gfn_jax.models.lora import Lora, LoraConfig
from gfn_jax.objectives import Objective
from gfn_jax.policy.constraint import Constants, Rules, make_constraint
from gfn_jax.policy.teacher import teacher_force
from gfn_jax.rewards import TableReward
from gfn_jax.runs.defaults import policy_config
from gfn_jax.runs.registry import ALGORITHMS, algorithm_entry
from gfn_jax.runs.weights import place
from gfn_jax.training import mesh as meshes
from gfn_jax.training.step import init_state, make_step
from gfn_jax.types import Keys, TrainState, Trajectory

MODEL = tiny()
ARITY, STOP, LONGEST = 3, 5, 3
OPTIMIZER = optax.sgd(0.1, momentum=0.9)  # its updates are as smooth as the gradients that are compared
STEPS, PARTS, QUERIES, SAMPLES = 4, 4, 16, 4
OWN = "algorithms.reinforce:ALGORITHM"

# What is beside the defaults in an algorithm's own section. As much as there is, is switched on.
SETTINGS: dict[str, dict[str, Any]] = {
    "gflownet": {},
    "weighted_sft": {},
    "ctl": {},
    "dpo": {"round_steps": 2},
    "sft": {},
    "star": {},
    "reinforce": {},
    "rloo": {"target": "kl_to_base", "kl_target": 0.5, "kl_horizon": 50.0},
    "grpo": {"epochs": 1, "minibatches": 2},
    "ppo": {"epochs": 3, "minibatches": 2},
    OWN: {},
}
BUDGET = {"queries": QUERIES, "samples": SAMPLES, "micro_batches": PARTS}
BUDGET |= {"reward_temperature_start": 2.0, "reward_temperature_steps": 2}
ELSEWHERE = {"replay_samples": 1, "replay_capacity": 3, "replay_shares": {"reward": 0.5, "recency": 0.5}}
ELSEWHERE |= {"tempered": 0.3, "exploring": 0.3, "uniform_mix": 0.5}
Instance = tuple[Algorithm, Any]  # and its constants


# Objectives that an algorithm may be asked for, as much of them as goes together; with RapTB's, log Z is frozen.
TERMS = {"subtb": 1.0, "vargrad": 0.5, "flowrl": 0.2, "contrastive": 0.3}
# Plain gradient descent squares a rate, and all queries share the head: the default rate would overshoot.
OBJECTIVE = {"window": 2, "log_z": "amortised", "log_z_rate": 3.0, "contrastive_margin": 0.5}
FROZEN = {"log_z": "frozen", "log_z_samples": 5, "smoothing_steps": 1}


def on_a_task(name: str, lora: LoraConfig, terms: Mapping = TERMS, options: Mapping = OBJECTIVE) -> Instance:
    """An algorithm of a registered entry: 16 prompts, completions of three letters, a table of rewards."""
    entry = algorithm_entry(name)
    table = 2 * np.random.default_rng(0).standard_normal(len(all_sequences(ARITY, LONGEST)))
    reward = TableReward(jnp.asarray(table, jnp.float32), ARITY)
    objective = None
    if entry.objective:
        objective = Objective(tuple(terms.items()), "released_mean", samples_per_query=SAMPLES, **options)
    sampling = sampling_settings(**BUDGET | ELSEWHERE)
    own = None
    if not entry.off_policy:
        sampling = Sampling(sampling.budget)
    if entry.config is not None:
        own = entry.config(**{**policy_config("any")[entry.section], **SETTINGS[name]})
    constants = Constants(
        base=LanguageModel(MODEL, random_params(MODEL)),
        prepared=reward.prepare(None),
        queries=query_of(left_padded([[6, 6 + i, 7][i % 3 :] for i in range(QUERIES + 4)])),
        query_log_weight=jnp.zeros(QUERIES + 4),
        rules=Rules(make_constraint(MODEL.vocab_size, STOP, LONGEST, token_ids=np.arange(ARITY)), NoTool()),
        root=jax.random.key(5),
    )
    return entry.make(own, Ingredients(reward, sampling, lora, objective, steps=STEPS)), constants


def on_texts(lora: LoraConfig | None) -> Instance:
    """Next-token training: 20 texts of two to seven tokens, whose first two are only read in every other one."""
    documents = right_padded([[(3 * i + 5 * j) % 23 for j in range(2 + i % 6)] for i in range(20)])
    loss_mask = documents.mask & (jnp.arange(7) >= 2 * (jnp.arange(20) % 2)[:, None])
    base = None if lora is None else LanguageModel(MODEL, random_params(MODEL))
    order = epoch_order(jax.random.key(4), 20, QUERIES, STEPS)
    constants = Corpus(documents, loss_mask, order, jax.random.key(5), base)
    return LanguageModeling(MODEL, lora, micro_batches=PARTS), constants


INSTANCES: dict[str, Callable[[LoraConfig], Instance]] = {
    **{name: lambda lora, name=name: on_a_task(name, lora) for name in SETTINGS},
    "gflownet, log Z frozen": lambda lora: on_a_task("gflownet", lora, {"subtb": 1.0, "tb": 0.1, "raptb": 0.2}, FROZEN),
    "language_model": on_texts,
    "language_model, all weights": lambda lora: on_texts(None),
}


def instance(name: str, dropout: float = 0.0) -> Instance:
    """An algorithm, and what it works on."""
    return INSTANCES[name](LoraConfig(3, 6, ("q", "head"), dropout))


def first_state(algorithm: Algorithm, constants: Any) -> TrainState:
    """Before the first step; one that learns from demonstrations alone has two a query, the very last refused."""
    state = init_state(algorithm, OPTIMIZER, jax.random.key(0), constants)
    if state.memory is not None or not isinstance(algorithm, Remembering):
        return state
    written = jnp.asarray([[i % 3, i // 3 % 3, i // 9 % 3, STOP] for i in range(2 * (QUERIES + 4))])
    length = jnp.asarray([1 + i % 3 for i in range(len(written) - 1)] + [LONGEST + 1])
    rollout = teacher_force(written, length, constants.rules)
    rows = constants.queries.example_id
    trajectory = Trajectory(rollout, jnp.zeros(written.shape))
    return dataclasses.replace(state, memory=algorithm.remember(state.memory, rows, trajectory))


def started(name: str) -> tuple[Callable, Any, Any]:
    """The step, adapters' inputs being dropped in it, with its constants and its first state."""
    algorithm, constants = instance(name, dropout=0.2)
    state = first_state(algorithm, constants)
    return make_step(algorithm, OPTIMIZER), constants, state


def to_host(tree):
    """As numpy arrays; a key as the numbers that it is."""
    return jax.tree.map(lambda x: np.array(jax.random.key_data(x) if is_key(x) else x), tree)


def is_key(x):
    return jnp.issubdtype(x.dtype, jax.dtypes.prng_key)


def equal(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


def close(a, b, rtol, atol):
    """Within `rtol` of a number, or within `atol` of the largest of its array."""
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        largest = np.abs(x).max(initial=0, where=np.isfinite(x))
        np.testing.assert_allclose(x, y, rtol, atol * largest)


def described(tree):
    """All of a tree but the numbers."""
    return jax.tree.structure(tree), [(x.shape, x.dtype) for x in jax.tree.leaves(tree)]


@pytest.fixture(scope="module", autouse=True)
def quickly_compiled():
    """What is compiled here runs for milliseconds, however badly."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")  # of the process with eight devices
        jax.config.update("jax_disable_most_optimizations", True)
        yield
        jax.config.update("jax_disable_most_optimizations", False)


# Steps.


@dataclasses.dataclass(frozen=True)
class Ran:
    """A run of four steps: its program, the states between them and their metrics, on the host."""

    name: str
    step: Callable
    constants: Any
    untouched: Any
    states: list[Any]
    metrics: list[Any]


# One of every kind in CI; with `-m slow` the others, too.
CORE = ("gflownet", "dpo", "sft", "ppo", "language_model")
ALL = [pytest.param(name, marks=[] if name in CORE else pytest.mark.slow) for name in INSTANCES]


@pytest.fixture(scope="module", params=ALL)
def ran(request):
    step, constants, state = started(request.param)
    step, untouched = jax.jit(step, donate_argnums=0), to_host(constants)
    states, metrics = [to_host(state)], []
    for _ in range(STEPS):
        with jax.transfer_guard("allow" if not metrics else "disallow"):  # the first call compiles
            state, measured = step(state, constants)
        states.append(to_host(state))
        metrics.append(to_host(measured))
    return Ran(request.param, step, constants, untouched, states, metrics)


def test_every_algorithm_is_held_to_it():
    assert set(ALGORITHMS) <= set(SETTINGS), "a new algorithm needs its SETTINGS here"


@pytest.mark.parametrize("name", ALGORITHMS)
def test_an_algorithm_has_the_section_of_its_name(name):
    """So that a config with the section of another is refused."""
    assert algorithm_entry(name).section in (name, None)


def test_a_run_is_one_program_and_moves_nothing_between_host_and_device(ran):
    state = jax.tree.map(jnp.array, ran.states[1])
    with jax.transfer_guard("disallow"):
        for _ in range(2):
            state, _ = ran.step(state, ran.constants)
    assert ran.step._cache_size() == 1


def test_a_resumed_run_is_the_same_run(ran):
    state, again = jax.tree.map(jnp.array, ran.states[2]), []
    for _ in range(2):
        state, measured = ran.step(state, ran.constants)
        again.append(to_host(measured))
    equal(to_host(state), ran.states[4])
    equal(again, ran.metrics[2:])


def test_a_step_keeps_the_states_shape_and_leaves_the_constants_alone(ran):
    first, *later = ran.states
    assert all(described(state) == described(first) for state in later)
    assert [int(state.step) for state in ran.states] == list(range(STEPS + 1))
    equal(to_host(ran.constants), ran.untouched)
    moved = jax.tree.map(lambda a, b: (a != b).any(), first.trainable, later[-1].trainable)
    assert all(jax.tree.leaves(moved)), "what nothing moves need not be trained"


def test_every_number_is_finite_and_every_step_another(ran):
    for value in jax.tree.leaves((ran.metrics, [state.trainable for state in ran.states])):
        assert np.isfinite(value).all()
    assert len({float(metrics["loss"]) for metrics in ran.metrics}) == STEPS


def eight_devices(path: str, *names: str) -> None:
    """Two steps of the algorithms on data=2, fsdp=2, tensor=2; what is left of them goes into a file."""
    mesh, left = meshes.use_mesh(meshes.MeshConfig(data=2, fsdp=2, tensor=2)), {}
    for name in names:
        step, constants, state = started(name)
        constants, state = place(constants, mesh), place(state, mesh)
        step = jax.jit(step, out_shardings=(jax.tree.map(lambda x: x.sharding, state), meshes.replicated(mesh)))
        for _ in range(2):
            state, metrics = step(state, constants)
        assert any(not x.sharding.is_fully_replicated for x in jax.tree.leaves(state.trainable))
        left |= {f"{name}/{i}": np.asarray(x) for i, x in enumerate(jax.tree.leaves((state, metrics)))}
    np.savez(path, **left)


@pytest.fixture(scope="module")
def on_eight(request, tmp_path_factory):
    """Name -> the arrays of the state, and of the metrics, after two steps on eight devices."""
    here, path = pathlib.Path(__file__).parent, tmp_path_factory.mktemp("eight") / "left.npz"
    flags = {"XLA_FLAGS": "--xla_force_host_platform_device_count=8", "NPROC": "64", "PJRT_NPROC": "64"}
    flags["PYTHONPATH"] = os.pathsep.join(map(str, (here, here.parent, here.parents[1])))
    asked = {item.callspec.params["ran"] for item in request.session.items if "on_eight" in item.fixturenames}
    code = f"import test_algorithms; test_algorithms.eight_devices({str(path)!r}, *{sorted(asked)!r})"
    done = subprocess.run([sys.executable, "-c", code], env=os.environ | flags, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return np.load(path)


@pytest.mark.slow
def test_eight_devices_make_the_steps_of_one(ran, on_eight):
    one = jax.tree.leaves((ran.states[2], ran.metrics[1]))
    eight = [on_eight[f"{ran.name}/{i}"] for i in range(len(one))]
    assert f"{ran.name}/{len(one)}" not in on_eight
    close(one, eight, rtol=1e-3, atol=1e-4)


# The loss.


@dataclasses.dataclass(frozen=True)
class Learning:
    """What an algorithm has collected once, its `trainable` being moved away from where it begins, `fresh`."""

    algorithm: Algorithm
    constants: Any
    fresh: Any
    state: Any
    batches: Any
    measure: Callable

    @property
    def trainable(self):
        return self.state.trainable


@pytest.fixture(scope="module", params=ALL)
def learning(request):
    algorithm, constants = instance(request.param)
    state = first_state(algorithm, constants)
    rng = np.random.default_rng(3)
    fresh = state.trainable
    moved = jax.tree.map(lambda x: x + 0.2 * rng.standard_normal(x.shape).astype(x.dtype), fresh)
    state = dataclasses.replace(state, trainable=moved)
    collect = jax.jit(lambda state: algorithm.collect(state, constants, Keys.of(constants.root, state.step)))
    batches = collect(state).batches

    @jax.jit
    def measure(trainable, constants, batches, key):
        """Weights, and the sums over all parts of (loss, terms) and gradients."""
        weights = jax.tree.map(lambda x: x.sum(0), jax.vmap(algorithm.weights)(batches))
        loss = jax.value_and_grad(algorithm.loss, has_aux=True)
        parts = jax.lax.map(lambda batch: loss(trainable, constants, batch, weights, key), batches)
        return weights, jax.tree.map(lambda x: x.sum(0), parts)

    return Learning(algorithm, constants, fresh, state, batches, measure)


def joined(batches):
    """Four micro-batches as one: rows behind rows, and what a part has one of (it is the step's) once."""
    return jax.tree.map(lambda x: x.reshape(1, -1, *x.shape[2:]) if x.ndim > 1 else x[:1], batches)


def test_the_loss_is_pure(learning):
    """And so is collecting: the same program whenever it is traced, without effects; twice, it says the same."""
    algorithm, constants, trainable = learning.algorithm, learning.constants, learning.trainable
    batch, key = jax.tree.map(lambda x: x[0], learning.batches), jax.random.key(1)
    same_program(algorithm.loss, trainable, constants, batch, algorithm.weights(batch), key)
    same_program(algorithm.collect, learning.state, constants, Keys.of(key, learning.state.step))
    equal(*(learning.measure(trainable, constants, learning.batches, key) for _ in range(2)))


def same_program(function, *arguments):
    """Traced anew each time: a lambda of its own is in no cache. Python functions in it are named by where they lie."""
    once, again = (jax.make_jaxpr(lambda *given: function(*given))(*arguments) for _ in range(2))
    assert not once.effects
    assert re.sub("0x[0-9a-f]+", "", str(once)) == re.sub("0x[0-9a-f]+", "", str(again))
    equal(to_host(once.consts), to_host(again.consts))


def test_gradients_are_of_all_that_is_trained(learning):
    _, ((loss, terms), gradients) = learning.measure(
        learning.trainable, learning.constants, learning.batches, jax.random.key(1)
    )
    assert described(gradients) == described(learning.trainable)
    assert all(x.shape == () and jnp.isfinite(x) for x in (loss, *(term.mean() for term in terms.values())))
    for gradient in jax.tree.leaves(gradients):
        assert jnp.isfinite(gradient).all()
        assert jnp.abs(gradient).max() > 0
    held = {id(x) for x in jax.tree.leaves(learning.constants)}
    assert not any(id(x) in held for x in jax.tree.leaves(learning.fresh)), "what is constant is not trained"


def test_four_micro_batches_are_the_batch(learning):
    """The same rows in one part: the same weights, loss and gradients, and what is said of them."""
    assert len(jax.tree.leaves(learning.batches)[0]) == PARTS
    four, one = (
        learning.measure(learning.trainable, learning.constants, batches, jax.random.key(1))
        for batches in (learning.batches, joined(learning.batches))
    )
    (weights, ((loss, said), gradients)), (same, ((whole, also), all_at_once)) = four, one
    close((weights, loss, gradients), (same, whole, all_at_once), rtol=1e-4, atol=1e-5)
    assert said.keys() == also.keys()
    for name, measure in said.items():  # sums that cancel have no precision of their own
        np.testing.assert_allclose(measure.mean(), also[name].mean(), rtol=1e-3, atol=1e-5, err_msg=name)


# The policy.


@pytest.mark.parametrize("name", SETTINGS)
def test_the_adapter_lies_where_checkpoints_are_read(name):
    """`AlgorithmEntry`: sampling, exporting and EM take `trainable.lora` of any run on a task."""
    algorithm, constants = instance(name)
    trainable, _ = jax.eval_shape(lambda: algorithm.init(jax.random.key(0), constants))
    assert isinstance(trainable.lora, Lora)


def test_the_policy_is_the_trained_model_and_at_first_the_base(learning):
    """Bit for bit, where there is a base."""
    fresh, moved = (learning.algorithm.policy(x, learning.constants) for x in (learning.fresh, learning.trainable))
    prompt = left_padded([[6, 7, 8], [9]])

    @jax.jit
    def says(model):
        return decoder.logits(decoder.select_head(model), decoder.prefill(model, prompt)[0])

    assert isinstance(fresh, LanguageModel)
    assert fresh.shape == MODEL
    at_first = says(fresh)
    assert jnp.abs(says(moved) - at_first).max() > 0.1
    base = learning.constants.base
    if base is not None:
        np.testing.assert_array_equal(says(base), at_first)
