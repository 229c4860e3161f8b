"""The methods of PosteriorBench, by name: a sampler of a reward, and the policy that it samples with.

Method(lambda reward, _: Importance(reward))               proposals: the base's own
Method(plain, Training("gflownet", {"subtb": 1.0}))        those of a policy that was trained on the target
"""

import dataclasses
import logging
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gfn_jax.algorithms.entry import Ingredients
from gfn_jax.bench.exact import ExactTarget
from gfn_jax.interfaces import Algorithm, Reward
from gfn_jax.models.language_model import LanguageModel
from gfn_jax.models.lora import LoraConfig
from gfn_jax.objectives import Objective
from gfn_jax.policy.constraint import Constants
from gfn_jax.runs.config import read_sampling
from gfn_jax.runs.defaults import policy_config
from gfn_jax.runs.registry import algorithm_entry
from gfn_jax.samplers.beam import Beam
from gfn_jax.samplers.independent import Ancestral, Importance
from gfn_jax.samplers.mcmc import SuffixMCMC
from gfn_jax.samplers.sampler import Sampler
from gfn_jax.samplers.selection import BestOfN, Rejection
from gfn_jax.samplers.smc import SMC
from gfn_jax.samplers.twists import Answer, Flow, NoTwist, Value
from gfn_jax.training.optimizer import OptimizerConfig, make_optimizer
from gfn_jax.training.step import init_state, make_step

RANK = 16
CHUNK = 10  # steps of training between two looks at the clock
EXPLORING: dict[str, float] = {"tempered": 0.25, "temperature_high": 2.0, "exploring": 0.25, "uniform_mix": 1.0}
MOVES = 8  # of a Markov chain
VALUE_RATE = 30.0
OWN: dict[str, float] = {"tempered": 0.0, "exploring": 0.0}
_log = logging.getLogger("gfn_jax")


@dataclasses.dataclass(frozen=True)
class Training:
    """How a policy is trained on a target before it is sampled from.

    Attributes:
        algorithm: a name in `runs.registry.ALGORITHMS`.
        own: of its own section what is not the default; of one with an objective, the objective's terms.
        exploration: the section of that name, for one that may learn from rows which are not the policy's own.
        replayed: share of a step's rows that come from the buffer.
        learning_rate: of AdamW, falling to zero.
    """

    algorithm: str
    own: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    exploration: Mapping[str, float] = dataclasses.field(default_factory=lambda: OWN)
    replayed: float = 0.0
    learning_rate: float = 3e-3


@dataclasses.dataclass(frozen=True)
class Method:
    """A way to answer a target's queries.

    Attributes:
        sampler: of a reward, and of what the training has trained (None without).
        training: of the policy that it samples with; None samples with the base.
        exact: its rows are the policy's own and count alike, so that its exact probabilities are the policy's.
        most: rows of a query that it is asked for at most; None for as many as the budget has.
    """

    sampler: Callable[[Reward, Any], Sampler]
    training: Training | None = None
    exact: bool = False
    most: int | None = None


def plain(reward: Reward, trainable: Any) -> Sampler:
    """The policy's own rows."""
    del reward, trainable
    return Ancestral()


GFLOWNET = Training("gflownet", {"subtb": 1.0}, EXPLORING, 0.25)
CTL = Training("ctl", {"value_rate": VALUE_RATE}, EXPLORING, 0.25)
METHODS: dict[str, Method] = {
    "ancestral": Method(plain, exact=True),
    "nucleus": Method(lambda reward, _: Ancestral(top_p=0.9)),
    "beam": Method(lambda reward, _: Beam(), most=8),
    "best_of_n": Method(lambda reward, _: BestOfN(reward)),
    "importance": Method(lambda reward, _: Importance(reward)),
    "rejection": Method(lambda reward, _: Rejection(reward)),
    "mcmc": Method(lambda reward, _: SuffixMCMC(reward, MOVES)),
    "smc": Method(lambda reward, _: SMC(reward, NoTwist())),
    "smc_answer": Method(lambda reward, _: SMC(reward, Answer())),
    "gflownet": Method(plain, GFLOWNET, exact=True),
    "gflownet_importance": Method(lambda reward, _: Importance(reward), GFLOWNET),
    "gflownet_mcmc": Method(lambda reward, _: SuffixMCMC(reward, MOVES), GFLOWNET),
    "gflownet_smc_flow": Method(lambda reward, _: SMC(reward, Flow()), GFLOWNET),
    "ctl": Method(plain, CTL, exact=True),
    "ctl_smc_value": Method(lambda reward, trainable: SMC(reward, Value(trainable.value, VALUE_RATE)), CTL),
    "weighted_sft": Method(plain, Training("weighted_sft", {}, EXPLORING, 0.25), exact=True),
    "rloo": Method(plain, Training("rloo"), exact=True),
}


@dataclasses.dataclass(frozen=True)
class Trained:
    """A policy, what was trained, and what it took: tokens of Z with its stop, and those that its rewards read.

    Both count a tool's tokens, too. `seconds` are without compilation.
    """

    model: LanguageModel
    trainable: Any
    generated: int
    scored: int
    seconds: float


def make_algorithm(training: Training, target: ExactTarget, rows: int, steps: int) -> Algorithm:
    """The algorithm of a config with these values, on a target's queries; `rows` a query and step."""
    entry, config = algorithm_entry(training.algorithm), policy_config("bench")
    config.sampling.update({"queries": len(target.listed), "samples": rows})
    config.exploration.update(training.exploration)
    config.replay.update({"samples": int(rows * training.replayed), "capacity": 4 * rows, "tolerance": 0.0})
    settings, objective = None, None
    if entry.objective:
        objective = Objective(tuple(training.own.items()), "released_mean", samples_per_query=rows)
    elif entry.config is not None:
        settings = entry.config(**{**config[entry.section], **training.own})
    shape = target.base.shape
    lora = LoraConfig(rank=RANK, alpha=RANK, targets=(*shape.projections, "head"))
    return entry.make(settings, Ingredients(target.reward, read_sampling(config, entry), lora, objective, steps=steps))


def make_trainer(training: Training, target: ExactTarget, rows: int, steps: int) -> Callable[[jax.Array], Trained]:
    """From a key to a policy that was trained for `steps` steps of `rows` rows a query; compiled once."""
    algorithm = make_algorithm(training, target, rows, steps)
    config = OptimizerConfig(learning_rate=training.learning_rate, total_steps=steps, clip_norm=1.0, decay="linear")
    optimizer = make_optimizer(config)
    queries = len(target.listed)
    fresh = queries * (rows - int(rows * training.replayed))
    answer = float(np.asarray(target.queries.answer.mask).sum(axis=1).mean())

    def constants(root: jax.Array) -> Constants:
        base, rules = target.base, target.rules
        prepared = target.reward.prepare(base)
        return Constants(base, prepared, target.queries, jnp.zeros(queries), rules, root)

    def init(key: jax.Array, constants: Constants) -> Any:
        return init_state(algorithm, optimizer, key, constants)

    def advance(state: Any, constants: Constants) -> tuple[Any, jax.Array]:
        step = make_step(algorithm, optimizer)

        def one(state: Any, _: None) -> tuple[Any, jax.Array]:
            state, metrics = step(state, constants)
            return state, metrics["length"]

        return jax.lax.scan(one, state, None, length=min(CHUNK, steps))

    _log.info("%s: %s, compiling", target.name, training.algorithm)
    given = constants(jax.random.key(0))
    start = jax.jit(init).lower(given.root, given).compile()
    go_on = jax.jit(advance).lower(start(given.root, given), given).compile()

    def train(key: jax.Array) -> Trained:
        began = time.perf_counter()
        root, adapter = jax.random.split(key)
        given = constants(root)
        state, length, chunks = start(adapter, given), 0.0, -(-steps // CHUNK)
        for chunk in range(chunks):
            state, lengths = go_on(state, given)
            length += float(lengths.sum())
            if chunk % max(chunks // 4, 1) == 0:
                _log.info("%s: %s, step %d of %d", target.name, training.algorithm, int(state.step), steps)
        done = int(state.step)
        return Trained(
            algorithm.policy(state.trainable, given),
            state.trainable,
            generated=round(fresh * (length + done)),
            scored=round(fresh * (length + done * answer)),
            seconds=time.perf_counter() - began,
        )

    return train
