"""Which methods find a mode that the base hardly knows, and which keep one that they have.

    python benchmarks/modes.py                     # all methods, 5 seeds: benchmarks/results/modes.json and .md
    python benchmarks/modes.py --methods=rloo,gflownet --seeds=2 --steps=100

A world of 341 completions that can be listed. The target has 70 % of its mass where the base has all of its own (there
it is the base), and 30 % on completions that begin with a certain word, to which the base gives one in a million. Every
method has the same target, adapter, optimizer and number of sampled rows; its learning rate is chosen among `--rates`
by the total variation to the target on seeds of its own (100, 101), never on those that are reported. For every seed:

    found   training starts from the base: the mass on the rare mode at the end (0.30 is right)
    kept    training starts from the target itself: the mass on the rare mode at the end, and on the other
    TV      the total variation to the target, of either

Seeds differ in all that is drawn; the world is one. Where a method's optimum is not the target (`reward` in its row),
distance is no fault of its optimisation.
"""

import argparse
import dataclasses
import datetime
import json
import math
import pathlib
import platform
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from gfn_jax.algorithms.entry import Ingredients
from gfn_jax.evaluation.enumeration import World, divergences, random_world
from gfn_jax.interfaces import Algorithm
from gfn_jax.models.lora import Lora, init_lora
from gfn_jax.objectives import Objective
from gfn_jax.rewards import TableReward
from gfn_jax.runs.config import read_sampling
from gfn_jax.runs.defaults import policy_config
from gfn_jax.runs.registry import algorithm_entry
from gfn_jax.training.optimizer import OptimizerConfig, make_optimizer
from gfn_jax.training.step import init_state, make_step

RESULTS = pathlib.Path(__file__).parent / "results"
ARITY, LONGEST, RARE, SHARE = 4, 4, 1e-6, 0.3
VALIDATION = (100, 101)
EXPLORING = {"tempered": 0.25, "temperature_high": 2.0, "exploring": 0.25, "uniform_mix": 1.0}
OWN = {"tempered": 0.0, "exploring": 0.0}

# Name -> (algorithm, its own section's changes, exploration, rows from the buffer of 64, what it converges to).
METHODS: dict[str, tuple[str, dict[str, Any], dict[str, float], int, str]] = {
    "gflownet, subtb": ("gflownet", {"subtb": 1.0}, EXPLORING, 16, "target"),
    "gflownet, subtb, own rows": ("gflownet", {"subtb": 1.0}, OWN, 0, "target"),
    "gflownet, tb": ("gflownet", {"tb": 1.0}, EXPLORING, 16, "target"),
    "gflownet, vargrad": ("gflownet", {"vargrad": 1.0}, EXPLORING, 16, "target"),
    "gflownet, vargrad, own rows": ("gflownet", {"vargrad": 1.0}, OWN, 0, "target"),
    "gflownet, flowrl": ("gflownet", {"flowrl": 1.0}, EXPLORING, 16, "R^(1/T) z^-length"),
    "gflownet, raptb": ("gflownet", {"raptb": 1.0}, EXPLORING, 16, "target"),
    "weighted_sft": ("weighted_sft", {}, EXPLORING, 16, "target"),
    "weighted_sft, own rows": ("weighted_sft", {}, OWN, 0, "target"),
    "weighted_sft, base's rows": ("weighted_sft", {"proposal": "base"}, OWN, 0, "target"),
    "rloo": ("rloo", {}, OWN, 0, "target"),
    "grpo": ("grpo", {}, OWN, 0, "target"),
    "ppo": ("ppo", {}, OWN, 0, "target"),
    "ppo, kl_to_base 0.1": ("ppo", {"target": "kl_to_base", "beta": 0.1}, OWN, 0, "p R^10"),
    "reinforce": ("reinforce", {}, OWN, 0, "best Z"),
    "dpo": ("dpo", {"labels": "bradley_terry", "beta": 1.0}, EXPLORING, 16, "p R"),
    "ipo": ("dpo", {"ipo": True}, EXPLORING, 16, "p, by ranks"),
}


def bimodal_world() -> tuple[World, jax.Array]:
    """The world, and which completions are the rare mode."""
    world = random_world(jax.random.key(3), ARITY, LONGEST, 1.0)
    base = world.constants.base
    # A base that is sure of itself: its logits three times as large.
    params = {**base.params, "head": {**base.params["head"], "kernel": 3 * base.params["head"]["kernel"]}}
    constants = dataclasses.replace(world.constants, base=dataclasses.replace(base, params=params))
    world = dataclasses.replace(world, constants=constants)
    log_p = np.asarray(jax.jit(world.log_policy)(constants.base), np.float64)
    words = np.asarray(world.completions.completion)
    prefixes = {tuple(row[:n]) for row in words.tolist() for n in (1, 2, 3) if max(row[:n]) < ARITY}
    masses = {prefix: np.exp(log_p[(words[:, : len(prefix)] == prefix).all(1)]).sum() for prefix in sorted(prefixes)}
    chosen = min(masses, key=lambda prefix: abs(math.log(masses[prefix] / RARE)))
    rare = (words[:, : len(chosen)] == chosen).all(1)
    # The mode's own mass is RARE exactly: what is missing is made up by its completions' rewards alone.
    inside, outside = log_p - np.log(masses[chosen]), log_p - np.log1p(-masses[chosen])
    table = np.where(rare, math.log(SHARE) + inside, math.log(1 - SHARE) + outside)
    print(f"the rare mode: completions that begin with {chosen}; the base gives them {masses[chosen]:.2g}", flush=True)
    reward = TableReward(jnp.asarray(table, jnp.float32), ARITY)
    constants = dataclasses.replace(constants, prepared=reward.prepare(constants.base))
    return dataclasses.replace(world, reward=reward, constants=constants), jnp.asarray(rare)


def algorithm_of(name: str, world: World, rows: int, steps: int) -> Algorithm:
    """A method on that world."""
    kind, own, exploration, replayed, _ = METHODS[name]
    entry, config = algorithm_entry(kind), policy_config("modes")
    config.sampling.update({"queries": 1, "samples": rows})
    config.exploration.update(exploration)
    config.replay.update({"samples": replayed, "capacity": 64, "tolerance": 0.0})
    sampling, objective, settings = read_sampling(config, entry), None, None
    if entry.objective:
        objective = Objective(tuple(own.items()), "released_mean", samples_per_query=rows)
    elif entry.config is not None:
        settings = entry.config(**{**config[entry.section], **own})
    return entry.make(settings, Ingredients(world.reward, sampling, world.lora, objective, steps=steps))


def fitted(world: World) -> Lora:
    """An adapter whose policy is the target: fitted to all completions at once."""
    target, optimizer = jnp.exp(world.log_target()), optax.adam(optax.cosine_decay_schedule(5e-3, 1000))
    base = world.constants.base

    @jax.jit
    def fit(lora: Lora) -> tuple[Lora, jax.Array]:
        def loss(lora: Lora) -> jax.Array:
            return -(target * world.log_policy(base.adapted(lora))).sum()

        def step(carry: Any, _: None) -> Any:
            lora, state = carry
            updates, state = optimizer.update(jax.grad(loss)(lora), state)
            return (optax.apply_updates(lora, updates), state), None

        (lora, _), _ = jax.lax.scan(step, (lora, optimizer.init(lora)), None, length=1000)
        return lora, divergences(world.log_policy(base.adapted(lora)), world.log_target())["total_variation"]

    lora, distance = fit(init_lora(jax.random.key(0), base.shape, world.lora))
    print(f"the adapter that has the target: total variation {distance:.2g}", flush=True)
    return lora


def make_trainer(name: str, world: World, rare: jax.Array, args: argparse.Namespace) -> Any:
    """(seeds, rate, adapter or None) -> mass on the rare mode, on the rest, and the total variation, a seed each."""
    updates = getattr(algorithm_of(name, world, args.rows, 1), "updates", 1)
    steps = args.steps * updates  # the same rows are sampled, however often each is learnt from
    algorithm = algorithm_of(name, world, args.rows, steps)

    @jax.jit
    def train(seeds: jax.Array, rate: jax.Array, start: Lora, begin_there: jax.Array) -> dict[str, jax.Array]:
        optimizer = make_optimizer(OptimizerConfig(learning_rate=1.0, total_steps=steps, clip_norm=1.0))
        optimizer = optax.chain(optimizer, optax.scale(rate))

        def one(seed: jax.Array) -> dict[str, jax.Array]:
            key = jax.random.key(seed)
            constants = dataclasses.replace(world.constants, root=jax.random.fold_in(key, 1))
            state = init_state(algorithm, optimizer, jax.random.fold_in(key, 0), constants)
            lora = jax.tree.map(lambda a, b: jnp.where(begin_there, a, b), start, state.trainable.lora)
            state = dataclasses.replace(state, trainable=dataclasses.replace(state.trainable, lora=lora))
            step = make_step(algorithm, optimizer)
            state, _ = jax.lax.scan(lambda s, _: (step(s, constants)[0], None), state, None, length=steps)
            log_q = world.log_policy(algorithm.policy(state.trainable, constants))
            q = jnp.exp(log_q)
            far = divergences(log_q, world.log_target())["total_variation"]
            return {"rare": q[rare].sum(), "other": jnp.where(rare, 0.0, q).sum(), "total_variation": far}

        return jax.vmap(one)(seeds)

    return train


def main() -> None:
    """Trains, prints the table, and writes both files."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", default="", help="comma-separated beginnings of names; all of them otherwise")
    parser.add_argument("--seeds", type=int, default=5, help="0, 1, 2, ...")
    parser.add_argument("--steps", type=int, default=500, help="batches that are sampled")
    parser.add_argument("--rows", type=int, default=64, help="rows a batch")
    parser.add_argument("--rates", default="1e-3,3e-3", help="learning rates to choose from")
    parser.add_argument("--out", default=str(RESULTS / "modes"), help="the files, without .json and .md")
    args = parser.parse_args()
    wanted = [m for m in METHODS if not args.methods or any(m.startswith(w) for w in args.methods.split(","))]
    world, rare = bimodal_world()
    start = fitted(world)
    rates, found = [float(rate) for rate in args.rates.split(",")], {}
    for name in wanted:
        began, train = time.perf_counter(), make_trainer(name, world, rare, args)

        def run(seeds: Any, rate: float, there: bool, train: Any = train) -> dict[str, list[float]]:
            values = train(jnp.asarray(seeds), jnp.float32(rate), start, jnp.asarray(there))
            return {key: np.asarray(value, np.float64).tolist() for key, value in values.items()}

        tried = {rate: float(np.mean(run(VALIDATION, rate, False)["total_variation"])) for rate in rates}
        rate = min(tried, key=tried.__getitem__)
        seeds = range(args.seeds)
        found[name] = {
            "converges_to": METHODS[name][-1],
            "learning_rate": rate,
            "validation_total_variation": tried,
            "from_the_base": run(seeds, rate, False),
            "from_the_target": run(seeds, rate, True),
            "seconds": round(time.perf_counter() - began, 1),
        }
        print(row(name, found[name]), flush=True)
    facts = {
        "command": f"python benchmarks/modes.py --seeds={args.seeds} --steps={args.steps} --rows={args.rows}",
        "date": datetime.date.today().isoformat(),
        "machine": f"{platform.machine()}, {jax.default_backend()}, jax {jax.__version__}",
        "rates": rates,
        "methods": found,
    }
    out = pathlib.Path(args.out)
    out.with_suffix(".json").write_text(json.dumps(facts, indent=1) + "\n")
    out.with_suffix(".md").write_text("\n".join([HEAD, *(row(name, values) for name, values in found.items())]) + "\n")


HEAD = """| method | converges to | found: mass on the rare mode | TV | kept: mass on it | on the rest | TV |
|---|---|---|---|---|---|---|"""


def row(name: str, found: dict[str, Any]) -> str:
    """A line of the table: means over seeds, and the least and the greatest."""

    def spread(values: list[float]) -> str:
        return f"{np.mean(values):.2f} ({min(values):.2f}-{max(values):.2f})"

    base, target = found["from_the_base"], found["from_the_target"]
    cells = [spread(base["rare"]), spread(base["total_variation"])]
    cells += [spread(target[key]) for key in ("rare", "other", "total_variation")]
    return f"| {name} | {found['converges_to']} | {' | '.join(cells)} |"


if __name__ == "__main__":
    main()
