"""gfn_jax's side: makes the problem's files, and computes it with the parts that `gfn_jax.benchmark` times."""

import dataclasses
import pathlib
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from gfn_jax.commands.benchmark_parts import Ready, objective, ready, step_parts
from gfn_jax.commands.benchmarking import peak_memory
from gfn_jax.commands.config_flag import load_config
from gfn_jax.environments import Calculator
from gfn_jax.models.adapters import save_adapter
from gfn_jax.models.checkpoint import save_model
from gfn_jax.models.lora import Lora
from gfn_jax.policy.rollout import Behavior, rollout
from gfn_jax.policy.score import score
from gfn_jax.text.tokens import token_strings
from gfn_jax.text.wordlevel import build_tokenizer
from gfn_jax.types import Trajectory
from peer.problem import Problem


def given(source: str) -> tuple[ml_collections.ConfigDict, Ready]:
    """A config, and the same weights and tokens for every process that asks; the adapter is not zero."""
    config = load_config(source)
    found = ready(config)
    layers = dict(found.policy.adapter.layers)
    keys = iter(jax.random.split(jax.random.key(config.seed + 1), len(layers)))
    for name, pair in layers.items():
        b = 0.02 * jax.random.normal(next(keys), pair["b"].shape)
        # PEFT gives GPT-2's q, k and v one A between them.
        shared = layers["q"]["a"] if name in ("q", "k", "v") else pair["a"]
        layers[name] = {"a": shared, "b": b}
    adapter = Lora(layers, None, found.policy.adapter.scale)
    return config, dataclasses.replace(found, policy=found.constants.base.adapted(adapter))


def write(source: str, folder: pathlib.Path) -> None:
    """The problem's files, and reference.npz: what the sides must agree on."""
    config, found = given(source)
    constraint, environment = found.constants.rules.constraint, found.constants.rules.environment
    calculator = environment if isinstance(environment, Calculator) else None
    queries, shots = found.constants.queries, found.reward.demonstrations
    family = "gpt2" if found.model.positions == "learned" else "gptj"
    save_model(folder / "base", found.model, found.constants.base.params, family)
    save_adapter(folder / "adapter", found.model, found.lora, found.policy.adapter, family)
    Problem(
        samples=config.samples,
        dtype=config.dtype,
        min_length=constraint.min_length,
        max_length=constraint.max_length,
        call_room=constraint.call_room,
        largest=None if calculator is None else calculator.max_abs_value,
        strings=[] if calculator is None else token_strings(build_tokenizer()),
        prompt=np.asarray(queries.prompt.ids),
        context=np.asarray(queries.context.ids),
        answer=np.asarray(queries.answer.ids),
        few_shot=np.zeros(0, int) if shots is None else np.asarray(shots.ids[0]),
        token_ids=np.asarray(constraint.token_ids),
        is_stop=np.asarray(constraint.is_stop),
        opens_call=np.asarray(constraint.opens_call),
        results=np.zeros((0, 0), int) if calculator is None else np.asarray(calculator.results),
    ).save(folder)
    np.savez(folder / "reference.npz", **reference(found, config.queries * config.samples))


def reference(found: Ready, rows: int) -> dict[str, np.ndarray]:
    """Completions that may stop early, and what gfn_jax makes of them, for the others to agree with."""
    rules, query = found.constants.rules, found.constants.queries
    rules = dataclasses.replace(rules, constraint=dataclasses.replace(rules.constraint, min_length=1))

    @jax.jit
    def compute(policy, constants):
        sampled = rollout(policy, query.prompt, rules, Behavior.at(1.0, rows), jax.random.key(7))
        log_reward = found.reward.log_reward(constants.base, constants.prepared, query, sampled)
        scores = score(policy, query.prompt, sampled, rules)
        own, trajectory, every = objective(), Trajectory(sampled, log_reward), jnp.ones(rows, bool)
        loss = own.loss(own.measure(trajectory, scores, 1.0, every), own.weights(trajectory, 1.0, every))
        return sampled, jnp.where(sampled.state_mask, log_reward, 0.0), scores, loss

    sampled, log_reward, scores, loss = jax.device_get(compute(found.policy, found.constants))
    masks = {name: getattr(sampled, name) for name in ("token_mask", "action_mask", "state_mask")}
    numbers = {"log_pf": scores.log_pf, "log_pterm": scores.log_pterm, "log_reward": log_reward, "loss": loss}
    return {"completion": sampled.completion, **masks, **numbers}


class Ours:
    """The step of gfn_jax."""

    def __init__(self, source: str):
        self.calls = step_parts(*given(source)).calls

    def step(self, clock: Callable[[], float]) -> dict[str, float]:
        """Seconds of the parts, each a program of its own, and of the step, which is one."""
        seconds = {}
        for part in ("rollout", "reward", "update", "step"):
            start = clock()
            jax.block_until_ready(self.calls[part]())
            seconds[part] = clock() - start
        return seconds

    def peak_device_mib(self) -> float | None:
        """Of the device's memory, where it counts."""
        return peak_memory().get("device")

    @staticmethod
    def versions() -> dict[str, str]:
        """Of what computes here."""
        return {"jax": jax.__version__, "device": jax.devices()[0].device_kind, "date": time.strftime("%Y-%m-%d")}
