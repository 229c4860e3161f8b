"""The parts of a step, compiled apart, on random weights and random tokens: what `gfn_jax.benchmark` times."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import optax

from gfn_jax.algorithms.gflownet import Constants, GFlowNet, GFlowNetConfig
from gfn_jax.environments import Calculator, NoTool
from gfn_jax.models.config import ModelConfig
from gfn_jax.models.decoder import init_params
from gfn_jax.models.flops import Flops, StepShape
from gfn_jax.models.lora import LoraConfig
from gfn_jax.objectives import Objective
from gfn_jax.policy.constraint import Constraint, make_constraint
from gfn_jax.policy.rollout import rollout
from gfn_jax.rewards import PosteriorReward, sequential_log_reward
from gfn_jax.sections import checked, section
from gfn_jax.tasks.arithmetic import CHARACTERS, STOP
from gfn_jax.text.tokens import allowed_ids, encode_after
from gfn_jax.text.wordlevel import build_tokenizer
from gfn_jax.training.step import TrainState, make_step
from gfn_jax.types import Query, Tokens


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


def build_benchmark(config: ml_collections.ConfigDict) -> Parts:
    """Random weights of the config's shape, and the compiled parts of a step on them.

    Raises:
        ValueError: a shape that does not fit together.
    """
    model = checked(ModelConfig, config.model, "model.", partial=True)
    lora = section(LoraConfig, config, "lora")
    constraint, environment = _constraint(config)
    keys = iter(jax.random.split(jax.random.key(config.seed), 8))
    params = init_params(next(keys), model, jnp.dtype(config.dtype))

    def tokens(rows: int, length: int) -> Tokens:
        ids = jax.random.randint(next(keys), (rows, length), 0, model.vocab_size)
        return Tokens(ids=ids, mask=jnp.ones((rows, length), bool))

    query = Query(
        example_id=jnp.arange(config.queries),
        prompt=tokens(config.queries, config.prompt),
        context=tokens(config.queries, config.context),
        answer=tokens(config.queries, config.answer),
    )
    reward = PosteriorReward(model, demonstrations=tokens(1, config.few_shot) if config.few_shot else None)
    settings = GFlowNetConfig(queries=config.queries, samples=config.samples, tempered=0.5)
    objective = Objective(terms=(("subtb", 1.0),), normalization="released_mean")
    algorithm = GFlowNet(model, reward, objective, settings, dropout=lora.dropout, remat=config.remat)
    trainable, buffer = algorithm.init(next(keys), lora, config.queries, constraint.horizon)
    constants = Constants(
        params=params,
        prepared=jax.jit(reward.prepare)(params),
        queries=query,
        query_log_weight=jnp.zeros(config.queries),
        constraint=constraint,
        environment=environment,
        root=next(keys),
    )
    shape = StepShape(
        queries=config.queries,
        samples=config.samples,
        prompt=config.prompt,
        context=config.context,
        answer=config.answer,
        few_shot=config.few_shot,
        horizon=constraint.horizon,
        allowed=len(constraint.token_ids),
    )
    calls = _calls(algorithm, reward, constants, trainable, buffer, shape)
    return Parts(shape, Flops(model), Flops(model, lora), calls)


def _constraint(config: ml_collections.ConfigDict) -> tuple[Constraint, Any]:
    """With the calculator: its characters among the first ids; else the whole vocabulary, stop 0."""
    if not config.calculator:
        return make_constraint(config.model.vocab_size, 0, config.length, min_length=config.length), NoTool()
    tokenizer = build_tokenizer()
    calculator = Calculator.from_tokenizer(tokenizer, max_abs_value=60)
    vocabulary = config.model.vocab_size
    triggers = jnp.zeros(vocabulary, bool).at[: len(calculator.triggers)].set(calculator.triggers)
    constraint = make_constraint(
        vocabulary,
        encode_after(tokenizer, "1", STOP)[0],
        config.length,
        min_length=config.length,
        token_ids=allowed_ids(tokenizer, CHARACTERS, STOP),
        opens_call=jax.device_get(triggers),
        call_room=calculator.max_result_tokens,
    )
    return constraint, calculator


def _calls(
    algorithm: GFlowNet, reward: PosteriorReward, constants: Constants, trainable: Any, buffer: Any, shape: StepShape
) -> dict[str, Callable[[], Any]]:
    """The parts as nullary calls. All completions have the full length, so that the work is what was counted."""
    query, rows = constants.queries, jnp.ones(shape.rows)
    optimizer = optax.adamw(1e-4)
    key = jax.random.key(1)
    sample = jax.jit(
        lambda constants, lora: rollout(
            algorithm.model,
            constants.params,
            lora,
            query.prompt,
            constants.constraint,
            constants.environment,
            key,
            rows,
            0 * rows,
        )
    )
    # What the parts below read comes from a program of its own, so that each part's first call compiles that part.
    batch, _, _ = jax.jit(algorithm.collect)(
        constants, trainable, buffer, query, dict.fromkeys(range(5), key), jnp.ones(())
    )

    def reward_of(function: Callable) -> Callable[[], Any]:
        call = jax.jit(lambda constants, sampled: function(constants.params, constants.prepared, query, sampled))
        return lambda: call(constants, batch.trajectory.rollout)

    @jax.jit
    def update(trainable: Any, opt_state: Any, constants: Constants, batch: Any) -> Any:
        grads, _ = jax.grad(algorithm.loss, has_aux=True)(
            trainable, constants, batch, algorithm.weights(batch), jnp.ones(()), key
        )
        updates, opt_state = optimizer.update(grads, opt_state, trainable)
        return optax.apply_updates(trainable, updates), opt_state

    opt_state = optimizer.init(trainable)
    step = jax.jit(make_step(algorithm, optimizer))
    state = TrainState(jnp.zeros((), jnp.int32), trainable, opt_state, buffer)
    calls = {
        "rollout": lambda: sample(constants, trainable.lora),
        "reward": reward_of(reward.log_reward),
        "score_update": lambda: update(trainable, opt_state, constants, batch),
        "step": lambda: step(state, constants),
    }
    if shape.answer > 1:  # Y is more than the stop: without packing, every prefix would take a pass of its own
        calls["reward_sequential"] = reward_of(lambda *args: sequential_log_reward(reward, *args))
    return calls
