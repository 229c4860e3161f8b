"""The parts of a step, compiled apart, on random weights and random tokens: what `gfn_jax.benchmark` times."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import optax

from gfn_jax.algorithms.entry import Ingredients
from gfn_jax.algorithms.gflownet import ALGORITHM, GFlowNet
from gfn_jax.environments import CALL, Calculator, NoTool
from gfn_jax.models.config import ModelConfig
from gfn_jax.models.decoder import init_params
from gfn_jax.models.flops import Flops, StepShape
from gfn_jax.models.language_model import LanguageModel
from gfn_jax.models.lora import LoraConfig, init_lora
from gfn_jax.objectives import Objective
from gfn_jax.policy.constraint import Constants, Rules, make_constraint
from gfn_jax.policy.rollout import Behavior, rollout
from gfn_jax.rewards import PosteriorReward, sequential_log_reward
from gfn_jax.runs.config import read_sampling
from gfn_jax.runs.defaults import policy_config
from gfn_jax.sections import checked, section
from gfn_jax.tasks.arithmetic import CHARACTERS, STOP
from gfn_jax.text.tokens import allowed_ids, encode_after
from gfn_jax.text.wordlevel import build_tokenizer
from gfn_jax.training.step import init_state, make_step
from gfn_jax.types import Keys, Query, Tokens, TrainState


@dataclasses.dataclass(frozen=True)
class Parts:
    """What is timed.

    Attributes:
        shape: the step's sizes.
        base_flops, policy_flops: counters for the base and for base and adapter.
        calls: name -> a call that computes that part on the device.
    """

    shape: StepShape
    base_flops: Flops
    policy_flops: Flops
    calls: dict[str, Callable[[], Any]]


@dataclasses.dataclass(frozen=True)
class Ready:
    """Random weights and tokens of a config's shape, before anything is compiled; `policy` has a fresh adapter."""

    model: ModelConfig
    lora: LoraConfig
    reward: PosteriorReward
    constants: Constants
    policy: LanguageModel


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
    reward = PosteriorReward(demonstrations=tokens(1, config.few_shot) if config.few_shot else None)
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


def step_parts(config: ml_collections.ConfigDict) -> Parts:
    """The compiled parts of a step on what a config describes.

    Raises:
        ValueError: a shape that does not fit together.
    """
    given = ready(config)
    constants, rules = given.constants, given.constants.rules
    common = policy_config("benchmark")
    common.sampling.update({"queries": config.queries, "samples": config.samples})
    common.exploration.tempered, common.replay.samples = 0.5, 0
    sampling = read_sampling(common, ALGORITHM)
    objective = Objective(terms=(("subtb", 1.0),), normalization="released_mean")
    algorithm = GFlowNet(Ingredients(given.reward, sampling, given.lora, objective, config.remat))
    shape = StepShape(
        queries=config.queries,
        samples=config.samples,
        prompt=config.prompt,
        context=config.context,
        answer=config.answer,
        few_shot=config.few_shot,
        horizon=rules.constraint.horizon,
        allowed=len(rules.constraint.token_ids),
    )
    optimizer = optax.adamw(1e-4)
    state = init_state(algorithm, optimizer, jax.random.key(config.seed), constants)
    calls = _calls(algorithm, given.reward, optimizer, constants, state, shape)
    return Parts(shape, Flops(given.model), Flops(given.model, given.lora), calls)


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


def _calls(
    algorithm: GFlowNet,
    reward: PosteriorReward,
    optimizer: optax.GradientTransformation,
    constants: Constants,
    state: TrainState,
    shape: StepShape,
) -> dict[str, Callable[[], Any]]:
    """The parts as nullary calls. All completions have the full length, so that the work is what was counted."""
    query, behavior = constants.queries, Behavior.at(1.0, shape.rows)
    key = jax.random.key(1)
    sample = jax.jit(
        lambda constants, trainable: rollout(
            algorithm.policy(trainable, constants), query.prompt, constants.rules, behavior, key
        )
    )
    # What the parts below read comes from a program of its own, so that each part's first call compiles that part.
    collected = jax.jit(algorithm.collect)(state, constants, Keys.of(constants.root, state.step))
    batch = jax.tree.map(lambda x: x[0], collected.batches)

    def reward_of(function: Callable) -> Callable[[], Any]:
        call = jax.jit(lambda constants, sampled: function(constants.base, constants.prepared, query, sampled))
        return lambda: call(constants, batch.trajectory.rollout)

    @jax.jit
    def update(state: TrainState, constants: Constants, batch: Any) -> Any:
        weights = algorithm.weights(batch)
        grads, _ = jax.grad(algorithm.loss, has_aux=True)(state.trainable, constants, batch, weights, key)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.trainable)
        return optax.apply_updates(state.trainable, updates), opt_state

    step = jax.jit(make_step(algorithm, optimizer))
    calls = {
        "rollout": lambda: sample(constants, state.trainable),
        "reward": reward_of(reward.log_reward),
        "score_update": lambda: update(state, constants, batch),
        "step": lambda: step(state, constants),
    }
    if shape.answer > 1:  # Y is more than the stop: without packing, every prefix would take a pass of its own
        calls["reward_sequential"] = reward_of(lambda *args: sequential_log_reward(reward, *args))
    return calls
