"""The parts of a step, compiled apart, on random weights and random tokens: what `gfn_jax.benchmark` times."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import optax
from jaxtyping import Array, Float

from gfn_jax.algorithms.entry import Ingredients
from gfn_jax.algorithms.gflownet import ALGORITHM, GFlowNet
from gfn_jax.commands.dry_run import traffic
from gfn_jax.environments import CALL, Calculator, NoTool
from gfn_jax.models.config import ModelConfig, Remat
from gfn_jax.models.decoder import init_params
from gfn_jax.models.flops import Flops, StepShape, sequential_reward_flops
from gfn_jax.models.language_model import LanguageModel
from gfn_jax.models.lora import LoraConfig, init_lora
from gfn_jax.objectives import Objective
from gfn_jax.policy.constraint import Constants, Rules, make_constraint
from gfn_jax.policy.rollout import Behavior, rollout
from gfn_jax.rewards import PosteriorReward, sequential_log_reward
from gfn_jax.rewards.posterior import Context
from gfn_jax.runs.budget import step_flops, step_shape
from gfn_jax.runs.config import read_sampling
from gfn_jax.runs.defaults import policy_config
from gfn_jax.sections import checked, section
from gfn_jax.tasks.arithmetic import CHARACTERS, STOP
from gfn_jax.text.tokens import allowed_ids, encode_after
from gfn_jax.text.wordlevel import build_tokenizer
from gfn_jax.training.mesh import (
    REST_REPLICATED,
    RULES,
    MeshConfig,
    abstract_mesh,
    nbytes,
    place,
    replicated,
    shardings,
)
from gfn_jax.training.step import init_state, make_step
from gfn_jax.types import Collected, Keys, Query, Rollout, Sampled, Tokens, TrainState


@dataclasses.dataclass(frozen=True)
class Parts:
    """What is timed, each a call that computes a part on the device, with what it cannot do without.

    Attributes:
        shape: the step's sizes.
        calls: name -> a call.
        flops: name -> operations of its matrix products.
        nbytes: name -> bytes that it must read and write.
    """

    shape: StepShape
    calls: dict[str, Callable[[], Any]]
    flops: dict[str, int]
    nbytes: dict[str, int]


@dataclasses.dataclass(frozen=True)
class Ready:
    """Random weights and tokens of a config's shape, before anything is compiled; `policy` has a fresh adapter."""

    model: ModelConfig
    lora: LoraConfig
    reward: PosteriorReward
    constants: Constants
    policy: LanguageModel


@dataclasses.dataclass(frozen=True)
class EveryPrefix(PosteriorReward):
    """The reward with an answer behind every prefix: the timed completions may stop in their last state alone."""

    def log_reward(
        self, model: LanguageModel, prepared: Context, query: Query, rollout: Rollout
    ) -> Float[Array, "B T"]:
        """As if any prefix were a completion."""
        every = jnp.ones(rollout.state_mask.shape, bool)
        return super().log_reward(model, prepared, query, dataclasses.replace(rollout, state_mask=every))


def ready(config: ml_collections.ConfigDict) -> Ready:
    """What a config describes.

    Raises:
        ValueError: a shape that does not fit together.
    """
    model = checked(ModelConfig, config.model, "model.", partial=True)
    lora = section(LoraConfig, config, "lora")
    rules = _rules(config)
    keys = iter(jax.random.split(jax.random.key(config.seed), 8))
    base = LanguageModel(model, init_params(next(keys), model, jnp.dtype(config.dtype)))

    def tokens(rows: int, length: int) -> Tokens:
        ids = jax.random.randint(next(keys), (rows, length), 0, model.vocab_size)
        return Tokens(ids=ids, mask=jnp.ones((rows, length), bool))

    query = Query(
        example_id=jnp.arange(config.queries),
        prompt=tokens(config.queries, config.prompt),
        context=tokens(config.queries, config.context),
        answer=tokens(config.queries, config.answer),
    )
    reward = EveryPrefix(demonstrations=tokens(1, config.few_shot) if config.few_shot else None)
    policy = base.adapted(init_lora(next(keys), model, lora))
    constants = Constants(
        base=base,
        prepared=jax.jit(reward.prepare)(base),
        queries=query,
        query_log_weight=jnp.zeros(config.queries),
        rules=rules,
        root=next(keys),
    )
    return Ready(model, lora, reward, constants, policy)


def objective() -> Objective:
    """What the timed step minimises: SubTB."""
    return Objective(terms=(("subtb", 1.0),), normalization="released_mean")


@dataclasses.dataclass(frozen=True)
class Built:
    """A step, nothing of it compiled."""

    algorithm: GFlowNet
    optimizer: optax.GradientTransformation
    constants: Constants
    state: TrainState
    shape: StepShape


def build(config: ml_collections.ConfigDict, given: Ready) -> Built:
    """The step that a config describes, on weights and tokens that are there.

    Raises:
        ValueError: a shape that does not fit together.
    """
    common = policy_config("benchmark")
    common.sampling.update({"queries": config.queries, "samples": config.samples})
    common.exploration.tempered = 0.5
    common.replay.update({"samples": 0, "capacity": config.capacity})
    sampling = read_sampling(common, ALGORITHM)
    remat: Remat = "full" if config.remat else "none"
    algorithm = GFlowNet(Ingredients(given.reward, sampling, given.lora, objective(), remat))
    optimizer = optax.adamw(1e-4)
    state = init_state(algorithm, optimizer, jax.random.key(config.seed), given.constants)
    return Built(algorithm, optimizer, given.constants, state, step_shape(algorithm, given.constants))


def step_parts(config: ml_collections.ConfigDict, given: Ready | None = None) -> Parts:
    """The compiled parts of a step on what a config describes.

    Args:
        config: the step.
        given: its weights and tokens, where they are there already.

    Raises:
        ValueError: a shape that does not fit together.
    """
    given = given or ready(config)
    built = build(config, given)
    mesh = abstract_mesh(MeshConfig(1, 1, 1))
    flops = step_flops(built.algorithm, given.model, built.shape)
    moved = traffic(built.algorithm, built.constants, built.state, built.shape, 1, mesh)
    buffer = nbytes(built.state.memory.buffer) // len(built.state.memory.buffer.priority) * config.queries
    names = {"rollout": ("rollout",), "reward": ("reward",), "update": ("score, update", "recomputed")}
    counts, sizes = {"buffer": 0}, {"buffer": 2 * buffer}  # read and written once
    for part, kinds in names.items():
        counts[part] = sum(flops.get(kind, 0) for kind in kinds)
        sizes[part] = sum(moved[kind] for kind in kinds if kind in flops)
    counts["step"], sizes["step"] = sum(counts.values()), sum(sizes.values())
    counts["reward_sequential"] = sequential_reward_flops(Flops(given.model), built.shape)
    sizes["reward_sequential"] = built.shape.horizon * sizes["reward"]
    return Parts(built.shape, _calls(built, given.reward), counts, sizes)


def step_on(mesh: jax.sharding.Mesh, config: ml_collections.ConfigDict) -> Callable[[], Any]:
    """The whole step, its rows and weights over a mesh; the call is for within `jax.set_mesh(mesh)`."""
    built = build(config, ready(config))
    where = shardings(built.state, mesh)
    state = place(built.state, where)
    constants = place(built.constants, shardings(built.constants, mesh, (*RULES, *REST_REPLICATED)))
    step = jax.jit(make_step(built.algorithm, built.optimizer), out_shardings=(where, replicated(mesh)))
    return lambda: step(state, constants)


def _rules(config: ml_collections.ConfigDict) -> Rules:
    """With the calculator: its characters among the first ids; else the whole vocabulary, stop 0."""
    if not config.calculator:
        return Rules(make_constraint(config.model.vocab_size, 0, config.length, min_length=config.length), NoTool())
    tokenizer = build_tokenizer()
    calculator = Calculator.from_tokenizer(tokenizer, max_abs_value=60)
    vocabulary = config.model.vocab_size
    triggers = jnp.zeros(vocabulary, bool).at[: len(calculator.triggers)].set(calculator.triggers)
    constraint = make_constraint(
        vocabulary,
        encode_after(tokenizer, "1", STOP)[0],
        config.length,
        min_length=config.length,
        token_ids=allowed_ids(tokenizer, CHARACTERS, STOP, CALL),
        opens_call=jax.device_get(triggers),
        call_room=calculator.max_result_tokens,
    )
    return Rules(constraint, calculator)


def _calls(built: Built, reward: PosteriorReward) -> dict[str, Callable[[], Any]]:
    """The parts as nullary calls. All completions have the full length, so that the work is what was counted."""
    algorithm, optimizer, constants, state = built.algorithm, built.optimizer, built.constants, built.state
    query, behavior = constants.queries, Behavior.at(1.0, built.shape.rows)
    keys = Keys.of(constants.root, state.step)
    sample = jax.jit(
        lambda constants, trainable: rollout(
            algorithm.policy(trainable, constants), query.prompt, constants.rules, behavior, keys.sample
        )
    )

    # What the parts below read comes from a program of its own, so that each part's first call compiles that part.
    @jax.jit
    def collect(state: TrainState, constants: Constants) -> tuple[Sampled, Collected]:
        sampled = algorithm.sample(state, constants, keys)
        return sampled, algorithm.store(state, constants, sampled, keys)

    sampled, collected = collect(state, constants)
    batch = jax.tree.map(lambda x: x[0], collected.batches)

    def reward_of(function: Callable) -> Callable[[], Any]:
        call = jax.jit(lambda constants, sampled: function(constants.base, constants.prepared, query, sampled))
        return lambda: call(constants, batch.trajectory.rollout)

    store = jax.jit(lambda state, constants, sampled: algorithm.store(state, constants, sampled, keys))

    @jax.jit
    def update(state: TrainState, constants: Constants, batch: Any) -> Any:
        weights = algorithm.weights(batch)
        grads, _ = jax.grad(algorithm.loss, has_aux=True)(state.trainable, constants, batch, weights, keys.dropout)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.trainable)
        return optax.apply_updates(state.trainable, updates), opt_state

    step = jax.jit(make_step(algorithm, optimizer))
    calls = {
        "rollout": lambda: sample(constants, state.trainable),
        "reward": reward_of(reward.log_reward),
        "buffer": lambda: store(state, constants, sampled),
        "update": lambda: update(state, constants, batch),
        "step": lambda: step(state, constants),
    }
    if built.shape.answer > 1:  # Y is more than the stop: without packing, every prefix would take a pass of its own
        calls["reward_sequential"] = reward_of(lambda *args: sequential_log_reward(reward, *args))
    return calls
