"""A GFlowNet's flow as the twist of sequential Monte Carlo, beside a learnt twist and the answer's probability.

    for s in 0 1 2; do
        python -m gfn_jax.launch --config=configs/arith.py:prompted --config.seed=$s \
            --workdir=runs/twists/arith-gflownet-$s
        python -m gfn_jax.launch --config=configs/arith.py:prompted --config.algorithm=ctl --config.seed=$s \
            --workdir=runs/twists/arith-ctl-$s
    done                                                    # and the same with configs/infill.py
    python benchmarks/twists.py --runs=runs/twists          # results/twists.json, .md
    python benchmarks/twists.py --correction                # results/corrections.json, .md: needs no runs

For the first held-out queries of each task, every pair of a proposal and a twist is run `--repeats` times with
`--particles` rows. What is reported, over queries and seeds (the mean, and its range over seeds):

    mean log Z-hat      at most log Z, by how much says how good the sampler is
    variance            of log Z-hat over repeats
    x tokens            that variance times the tokens that a run has generated: less is better at equal cost
    ESS                 the final effective size, a share of the rows
    roots               first ancestors left at the end, a share of the rows

The second command trains a GFlowNet on two of PosteriorBench's targets, draws one completion from the weighted rows of
importance sampling and of SMC with 1, 4, 16 and 64 particles, many times, and compares what was drawn with the target.
"""

import argparse
import datetime
import itertools
import json
import os
import pathlib
import platform
from typing import Any

import jax
import numpy as np

from gfn_jax.bench.exact import compare, empirical, noise_floor
from gfn_jax.bench.methods import GFLOWNET, make_trainer
from gfn_jax.bench.targets import TARGETS, Size
from gfn_jax.commands.certifying import Settings, adapted, make_twist, policy_run
from gfn_jax.evaluation.report import table
from gfn_jax.models.checkpoint import read_config
from gfn_jax.models.tensor_files import resolve
from gfn_jax.policy.constraint import Rules
from gfn_jax.rewards import Product
from gfn_jax.runs.policy import policy_parts
from gfn_jax.runs.saved import read_run
from gfn_jax.runs.weights import load_base
from gfn_jax.samplers.independent import Importance
from gfn_jax.samplers.sampler import Problem, Weighed, per_query
from gfn_jax.samplers.smc import SMC
from gfn_jax.samplers.twists import Answer, Flow, NoTwist
from gfn_jax.text.loading import load_tokenizer, model_folder
from gfn_jax.training import mesh as meshes

RESULTS = pathlib.Path(__file__).parent / "results"
PARTICLES = (1, 4, 16, 64)


def pairs_of(method: str, reward: Any, value: Any) -> dict[str, Any]:
    """Name -> a sampler, for a run of some method; the base's with the GFlowNet's run."""
    if method == "base":
        return {
            "base, importance": Importance(reward),
            "base, no twist": SMC(reward, NoTwist()),
            "base, answer": SMC(reward, Answer()),
        }
    name = {"gflownet": "GFlowNet", "ctl": "ctl"}[method]
    own = {"its flow": SMC(reward, Flow())} if method == "gflownet" else {"its learnt twist": SMC(reward, value)}
    common = {"importance": Importance(reward), "no twist": SMC(reward, NoTwist()), "answer": SMC(reward, Answer())}
    return {f"{name}, {twist}": sampler for twist, sampler in {**common, **own}.items()}


def measure_run(folder: pathlib.Path, method: str, args: argparse.Namespace) -> dict[str, dict[str, float]]:
    """What every sampler of a run shows."""
    saved = read_run(folder)
    config, mesh = policy_run(saved), meshes.use_mesh(meshes.MeshConfig())
    path = resolve(model_folder(saved.base))
    model_type, shape = read_config(path)
    parts = policy_parts(config, shape, load_tokenizer(path), mesh)
    base = load_base(path, config.model.dtype, mesh)
    temperature = config.sampling.target_temperature
    reward = parts.reward if temperature == 1 else Product((parts.reward,), (1 / temperature,))
    query = jax.tree.map(lambda x: x[: args.queries], parts.task.queries(config.entry.certified))
    problem = Problem(jax.jit(reward.prepare)(base), query, Rules(parts.task.constraint(), parts.task.environment))
    settings = Settings(str(folder), twist="value" if method == "ctl" else "none")
    policy = base if method == "base" else adapted(settings, saved, base, shape, model_type)[0]
    value = make_twist(settings, saved, shape) if method == "ctl" else None
    keys = jax.random.split(jax.random.key(args.seed), args.repeats)
    found = {}
    for name, sampler in pairs_of(method, reward, value).items():

        @jax.jit
        def run(model: Any, problem: Problem, key: jax.Array, sampler: Any = sampler) -> Weighed:
            return sampler.sample(model, problem, args.particles, key)

        drawn = [jax.device_get(run(policy, problem, key)) for key in keys]
        log_z = np.array([weighed.log_z for weighed in drawn], np.float64)  # [repeats, queries]
        generated = np.mean([weighed.generated for weighed in drawn], axis=0)
        variance = log_z.var(axis=0, ddof=1)
        found[name] = {
            "log_z": float(log_z.mean()),
            "log_mean_z": float((np.logaddexp.reduce(log_z, axis=0) - np.log(len(log_z))).mean()),
            "variance": float(variance.mean()),
            "variance_x_tokens": float((variance * generated).mean()),
            "ess": float(np.mean([weighed.notes["ess"] for weighed in drawn]) / args.particles),
            "roots": float(np.mean([weighed.notes.get("roots", args.particles) for weighed in drawn]) / args.particles),
            "generated": float(generated.mean()),
            "scored": float(np.mean([weighed.scored for weighed in drawn])),
        }
        print(f"{folder.name}: {name}: {found[name]}", flush=True)
    return found


def twists(args: argparse.Namespace) -> dict[str, Any]:
    """Task -> sampler -> the seeds' numbers; a run that `twists.jsonl` holds already is not measured again."""
    path = args.out / "twists.jsonl"
    done = [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []
    known = {(one["task"], one["method"], one["seed"]): one["numbers"] for one in done}
    found: dict[str, Any] = {}
    for task, seed, method in itertools.product(args.tasks.split(","), range(args.seeds), ("base", "gflownet", "ctl")):
        if method == "base" and seed:
            continue  # there is one base
        place = (task, method, seed)
        if place not in known:
            run = "gflownet" if method == "base" else method
            known[place] = measure_run(args.runs / f"{task}-{run}-{seed}", method, args)
            with path.open("a") as file:
                file.write(json.dumps({"task": task, "method": method, "seed": seed, "numbers": known[place]}) + "\n")
        for name, numbers in known[place].items():
            found.setdefault(task, {}).setdefault(name, []).append(numbers)
    return found


def correction(args: argparse.Namespace) -> dict[str, Any]:
    """Target -> sampler -> particles -> the distance of one drawn row from the target, a seed each."""
    found: dict[str, Any] = {}
    for name in args.targets.split(","):
        target = TARGETS[name](Size(128, 2, None))
        assert target is not None
        train = make_trainer(GFLOWNET, target, 32, args.steps)
        policies = [train(jax.random.key(seed)).model for seed in range(args.seeds)]
        samplers = {"importance": Importance(target.reward), "SMC, flow": SMC(target.reward, Flow())}
        numbers: dict[str, Any] = {"floor": noise_floor(target, args.draws)}
        for label, sampler in samplers.items():
            for particles in PARTICLES:
                distances = one_of(target, sampler, policies, particles, args.draws)
                print(f"{name}: {label}, {particles} particles: {distances}", flush=True)
                numbers[f"{label}, {particles}"] = distances
        found[name] = numbers
    return found


def one_of(target: Any, sampler: Any, policies: list[Any], particles: int, draws: int) -> list[dict[str, float]]:
    """The distance from the target of a row drawn by weight from so many particles, from `draws` draws a policy."""
    queries, together = len(target.listed), max(1, 512 // particles)

    @jax.jit
    def draw(policy: Any, problem: Problem, key: jax.Array) -> Any:
        def one(key: jax.Array) -> Any:
            weighed = sampler.sample(policy, problem, particles, key)
            log_weight = per_query(weighed.log_weight, queries)
            chosen = jax.random.categorical(jax.random.fold_in(key, 1), log_weight) + particles * np.arange(queries)
            return jax.tree.map(lambda x: x[chosen], weighed.rollout)

        rows = jax.vmap(one)(jax.random.split(key, together))  # [together, queries, ...]
        return jax.tree.map(lambda x: x.swapaxes(0, 1), rows)

    problem, found = target.problem(), []
    for policy in policies:
        parts = [draw(policy, problem, jax.random.key(number)) for number in range(-(-draws // together))]
        rows = jax.tree.map(lambda *x: np.concatenate(x, axis=1)[:, :draws].reshape(-1, x[0].shape[-1]), *parts)
        equal, none = np.zeros(len(rows.completion)), np.zeros(queries, int)
        found.append(compare(target, empirical(target, Weighed(rows, equal, None, None, none, none))))
    return found


def spread(values: list[float], form: str) -> str:
    """The mean and the range over seeds."""
    mean = form.format(np.mean(values))
    return mean if len(values) == 1 else f"{mean} ({form.format(min(values))} to {form.format(max(values))})"


def page_of_twists(found: dict[str, Any], args: argparse.Namespace) -> list[str]:
    """A table a task."""
    lines = []
    for task, samplers in found.items():
        rows = [
            (
                name,
                spread([x["log_z"] for x in seeds], "{:.2f}"),
                spread([x["variance"] for x in seeds], "{:.3g}"),
                spread([x["variance_x_tokens"] for x in seeds], "{:.3g}"),
                spread([x["ess"] for x in seeds], "{:.2f}"),
                spread([x["roots"] for x in seeds], "{:.2f}"),
            )
            for name, seeds in samplers.items()
        ]
        header = ("proposal, twist", "mean log Z-hat", "variance", "x tokens", "ESS", "roots")
        lines += [f"{task}: {args.queries} held-out queries, {args.particles} particles, {args.repeats} repeats", ""]
        lines += ["```", table(header, rows), "```", ""]
    return lines


def page_of_corrections(found: dict[str, Any], args: argparse.Namespace) -> list[str]:
    """A table a target."""
    lines = []
    for target, numbers in found.items():
        floor = numbers["floor"]
        rows = [
            (
                name,
                spread([x["kl_to_target"] for x in seeds], "{:.3f}"),
                spread([x["total_variation"] for x in seeds], "{:.3f}"),
            )
            for name, seeds in numbers.items()
            if name != "floor"
        ]
        rows.append(("exact samples", f"{floor['kl_to_target']:.3f}", f"{floor['total_variation']:.3f}"))
        lines += [f"{target}: {args.steps} steps of training, {args.draws} draws", ""]
        lines += ["```", table(("sampler, particles", "KL to the target", "total variation"), rows), "```", ""]
    return lines


def main() -> None:
    """Measures and writes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=pathlib.Path, default=pathlib.Path("runs/twists"))
    parser.add_argument("--tasks", default="arith,infill")
    parser.add_argument("--queries", type=int, default=4)
    parser.add_argument("--particles", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=12)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--correction", action="store_true")
    parser.add_argument("--targets", default="stories-infill,reviews-answer")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--draws", type=int, default=4096)
    parser.add_argument("--out", type=pathlib.Path, default=RESULTS)
    args = parser.parse_args()
    name = "corrections" if args.correction else "twists"
    found = correction(args) if args.correction else twists(args)
    lines = page_of_corrections(found, args) if args.correction else page_of_twists(found, args)
    device = jax.devices()[0]
    machine = f"{device.platform} {platform.machine()}, {os.cpu_count()} cores, jax {jax.__version__}"
    lines.append(f"{datetime.date.today().isoformat()}, {machine}, seeds 0 to {args.seeds - 1}")
    settings = {key: str(value) for key, value in vars(args).items() if key not in ("runs", "out")}
    args.out.mkdir(parents=True, exist_ok=True)
    record = {"date": datetime.date.today().isoformat(), "machine": machine, "settings": settings, "found": found}
    (args.out / f"{name}.json").write_text(json.dumps(record, indent=1) + "\n")
    (args.out / f"{name}.md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
