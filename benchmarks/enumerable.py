"""How close every balance objective comes to its exact target in a world of 781 completions.

    python benchmarks/enumerable.py --out benchmarks/results

A random decoder (2 layers of 32) with an adapter on every projection and the head learns R/Z over words of
up to 4 of 5 letters, for a flat and a peaked table of rewards. The distance is exact: total variation and
both KL divergences over all completions, not over samples. Writes enumerable.json and, where matplotlib is
installed, enumerable.png.
"""

import argparse
import json
import os
import pathlib
import platform
import shlex
import sys
import time
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np

from gfn_jax.algorithms.entry import Ingredients
from gfn_jax.algorithms.gflownet import ALGORITHM, GFlowNet
from gfn_jax.evaluation.enumeration import World, divergences, random_world
from gfn_jax.evaluation.scoring import log_policy
from gfn_jax.objectives.mixture import Objective
from gfn_jax.runs.config import read_sampling
from gfn_jax.runs.defaults import policy_config
from gfn_jax.training.optimizer import OptimizerConfig, make_optimizer
from gfn_jax.training.step import init_state, make_step
from gfn_jax.types import TrainState

OBJECTIVES = ("subtb", "db", "tb", "vargrad")
REWARDS = {"flat": 0.5, "peaked": 5.0}  # standard deviation of log R, in nats
EVERY = 50  # steps between two measurements


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("benchmarks/results"))
    parser.add_argument("--objectives", nargs="+", choices=OBJECTIVES, default=OBJECTIVES)
    parser.add_argument("--rewards", nargs="+", choices=REWARDS, default=tuple(REWARDS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--arity", type=int, default=5, help="tokens besides the stop")
    parser.add_argument("--max-length", type=int, default=4)
    parser.add_argument("--steps", type=int, default=4000)
    parser.add_argument("--samples", type=int, default=128, help="completions a step")
    parser.add_argument("--learning-rate", type=float, default=3e-3)
    parser.add_argument("--exploring", type=float, default=0.25, help="share of rows drawn uniformly")
    parser.add_argument("--tempered", type=float, default=0.25, help="share of rows at temperature 0.5 to 2")
    parser.add_argument("--replayed", type=float, default=0.25, help="share of rows from the buffer")
    parser.add_argument("--log-z-rate", type=float, default=30.0, help="learning rate of TB's log Z, relative")
    parser.add_argument("--huber", type=float, default=None, help="residual from which penalties are linear")
    return parser.parse_args()


def make_trainer(world: World, args: argparse.Namespace):
    """One program for every objective, table and seed: they are its arguments."""
    config = policy_config("enumerable")
    config.sampling.update({"queries": 1, "samples": args.samples})
    config.exploration.update({"tempered": args.tempered, "exploring": args.exploring, "uniform_mix": 1.0})
    buffer = {"samples": int(args.samples * args.replayed), "capacity": args.samples, "tolerance": 0.0}
    config.replay.update({**buffer, "shares": {"reward": 0.0, "uniform": 1.0}})
    sampling = read_sampling(config, ALGORITHM)
    optimizer = make_optimizer(OptimizerConfig(args.learning_rate, args.steps, clip_norm=10.0))

    @jax.jit
    def train(constants, coefficients, log_p, key):
        objective = Objective(
            tuple(zip(OBJECTIVES, list(coefficients), strict=True)),
            normalization="released_mean",
            samples_per_query=args.samples,
            huber=args.huber,
            log_z_rate=args.log_z_rate,
        )
        algorithm = GFlowNet(Ingredients(world.reward, sampling, world.lora, objective))
        state = init_state(algorithm, optimizer, key, constants)
        step = make_step(algorithm, optimizer)

        def stretch(state: TrainState, _):
            policy = algorithm.policy(state.trainable, constants)
            log_q = log_policy(policy, constants.queries.prompt, world.completions, constants.rules)
            state, metrics = jax.lax.scan(lambda s, _: step(s, constants), state, None, length=EVERY)
            return state, {**divergences(log_q, log_p), "loss": metrics["loss"].mean()}

        # The last stretch is trained for nothing but its first line: the measurement after all steps.
        _, curve = jax.lax.scan(stretch, state, None, length=args.steps // EVERY + 1)
        return curve

    return train


def describe(log_p: jax.Array) -> dict[str, float]:
    """How flat a target is."""
    p = np.exp(np.asarray(log_p, np.float64))
    return {
        "completions": len(p),
        "entropy": float(-(p * np.log(p)).sum()),
        "largest_entropy": float(np.log(len(p))),
        "top_probability": float(p.max()),
    }


def run(args: argparse.Namespace) -> Iterator[dict]:
    """All runs, one after the other."""
    train = None
    for seed in args.seeds:
        for reward in args.rewards:
            world = random_world(jax.random.key(seed), args.arity, args.max_length, REWARDS[reward])
            train = train or make_trainer(world, args)
            log_p = world.log_target()
            target = describe(log_p)
            print(f"seed {seed}, {reward} reward: " + ", ".join(f"{k} {v:.4g}" for k, v in target.items()))
            for name in args.objectives:
                began = time.perf_counter()
                coefficients = jnp.array([float(name == other) for other in OBJECTIVES])
                curve = jax.device_get(train(world.constants, coefficients, log_p, jax.random.key(seed)))
                seconds = time.perf_counter() - began
                final = {key: float(values[-1]) for key, values in curve.items() if key != "loss"}
                final["loss"] = float(curve["loss"][-2])
                start = float(curve["total_variation"][0])
                print(f"  {name:8} total variation {start:.3f} -> {final['total_variation']:.2e}", flush=True)
                yield {
                    "seed": seed,
                    "reward": reward,
                    "objective": name,
                    "target": target,
                    "seconds": round(seconds, 1),
                    "final": final,
                    "step": list(range(0, args.steps + 1, EVERY)),
                    "total_variation": [float(f"{x:.3e}") for x in curve["total_variation"]],
                }


def print_table(runs: list[dict]) -> None:
    """One line a run."""
    print(f"\n{'reward':8}{'objective':10}{'seed':>5}{'TV':>10}{'KL(q|p)':>10}{'KL(p|q)':>10}{'coverage':>10}{'s':>7}")
    for one in sorted(runs, key=lambda r: (r["reward"], OBJECTIVES.index(r["objective"]), r["seed"])):
        final = one["final"]
        numbers = "".join(f"{final[k]:10.1e}" for k in ("total_variation", "kl_q_p", "kl_p_q"))
        print(
            f"{one['reward']:8}{one['objective']:10}{one['seed']:5}{numbers}"
            f"{final['coverage']:10.3f}{one['seconds']:7.1f}"
        )


def plot(runs: list[dict], path: pathlib.Path) -> None:
    """Total variation against steps, a panel a reward and a colour an objective."""
    try:
        import matplotlib
    except ImportError:
        print("no plot: matplotlib is not installed (pip install matplotlib)", file=sys.stderr)
        return
    matplotlib.use("Agg")
    from matplotlib import pyplot

    rewards = list(dict.fromkeys(one["reward"] for one in runs))
    figure, axes = pyplot.subplots(1, len(rewards), figsize=(5 * len(rewards), 3.6), sharey=True, squeeze=False)
    for axis, reward in zip(axes[0], rewards, strict=True):
        for one in (one for one in runs if one["reward"] == reward):
            place = OBJECTIVES.index(one["objective"])
            label = one["objective"] if one["seed"] == runs[0]["seed"] else None
            axis.semilogy(one["step"], one["total_variation"], color=f"C{place}", alpha=0.8, label=label)
        target = next(one["target"] for one in runs if one["reward"] == reward)
        axis.set_title(f"{reward}: entropy {target['entropy']:.2f} of {target['largest_entropy']:.2f} nats")
        axis.set_xlabel("step")
        axis.axhline(1e-3, color="grey", linewidth=0.7, linestyle=":")
        axis.grid(alpha=0.2)
    axes[0][0].set_ylabel("total variation to R/Z")
    axes[0][-1].legend()
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    print(f"wrote {path}")


def main() -> None:
    """Runs, prints, writes; the record is written after every run, so that a stopped one keeps what it has."""
    args = parse()
    args.out.mkdir(parents=True, exist_ok=True)
    path = args.out / "enumerable.json"
    record = {
        "command": "python " + shlex.join(sys.argv),
        "date": time.strftime("%Y-%m-%d"),
        "machine": f"{os.cpu_count()}-core {platform.machine()}, {jax.default_backend()}",
        "jax": jax.__version__,
        "settings": {**vars(args), "out": str(args.out)},
    }
    began, runs = time.perf_counter(), []
    for one in run(args):
        runs.append(one)
        seconds = round(time.perf_counter() - began, 1)
        path.write_text(json.dumps({**record, "seconds": seconds, "runs": runs}) + "\n")
    print_table(runs)
    print(f"wrote {path}")
    plot(runs, args.out / "enumerable.png")


if __name__ == "__main__":
    main()
