"""Runs methods on targets: `python -m gfn_jax.posterior_bench`.

For every target and method, every number of rows and every seed: how far the method's weighted rows are from the target
(`exact.distances`), beside what as many exact samples would show; of a method whose rows are a policy's own, how far
that policy's exact probabilities are; and what it took. Tokens are those that a model wrote and those that a model read
to score them, training included.
"""

import dataclasses
import datetime
import json
import logging
import math
import pathlib
import platform
import time
import zlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from gfn_jax.bench.exact import ExactTarget, compare, empirical, exact_log_policy, noise_floor
from gfn_jax.bench.methods import METHODS, Method, Trained, Training, make_trainer
from gfn_jax.bench.page import page, plot
from gfn_jax.bench.targets import TARGETS, Size
from gfn_jax.samplers.sampler import Problem, Weighed

FOUND_ABOVE = 0.1  # of a policy's exact probabilities: a mode is found if it has more than this share of what it should
_log = logging.getLogger("gfn_jax")


@dataclasses.dataclass(frozen=True)
class Budget:
    """How much is done.

    Attributes:
        vocabulary, queries: as of `targets.Size`.
        rows: a query; each number is a run of its own.
        steps, step_rows: of training, and rows a query of each.
    """

    vocabulary: int | None
    queries: int
    rows: tuple[int, ...]
    steps: int
    step_rows: int


BUDGETS: dict[str, Budget] = {
    "tiny": Budget(vocabulary=6, queries=1, rows=(16,), steps=2, step_rows=4),
    "smoke": Budget(vocabulary=32, queries=2, rows=(128,), steps=20, step_rows=16),
    "small": Budget(vocabulary=128, queries=4, rows=(32, 128, 512), steps=300, step_rows=32),
    "full": Budget(vocabulary=None, queries=8, rows=(64, 256, 1024, 4096), steps=2000, step_rows=64),
}


@dataclasses.dataclass(frozen=True)
class Settings:
    """What is run (see `gfn_jax/commands/posterior_bench.py`).

    Raises:
        ValueError: an unknown name, or no seed.
    """

    methods: tuple[str, ...]
    targets: tuple[str, ...]
    budget: str
    seeds: int
    out: str
    stories260k: str | None = None

    def __post_init__(self):
        for kind, given, there in (
            ("method", self.methods, METHODS),
            ("target", self.targets, TARGETS),
            ("budget", (self.budget,), BUDGETS),
        ):
            unknown = [name for name in given if name not in there]
            if unknown or not given:
                raise ValueError(f"{kind} {', '.join(unknown)!r} is unknown; there are {', '.join(there)}")
        if self.seeds < 1:
            raise ValueError(f"--seeds is {self.seeds}; it must be at least 1")


def run(settings: Settings) -> Iterator[str]:
    """A target's table after the other, then where the files are; they are written anew after every target."""
    budget, out = BUDGETS[settings.budget], pathlib.Path(settings.out)
    size = Size(budget.vocabulary, budget.queries, settings.stories260k)
    out.mkdir(parents=True, exist_ok=True)
    record: dict[str, Any] = {
        "budget": settings.budget,
        "seeds": settings.seeds,
        "date": datetime.date.today().isoformat(),
        "machine": f"{platform.machine()}, {jax.default_backend()}, jax {jax.__version__}",
        "targets": {},
    }
    for name in settings.targets:
        _log.info("%s: listing it", name)
        began = time.perf_counter()
        target = TARGETS[name](size)
        if target is None:
            yield f"{name}: left out, its model is not there (--{name.split('-')[0]}=FOLDER)\n"
            continue
        found = facts(target, time.perf_counter() - began, budget.rows)
        _log.info("%s: %s completions, %s modes, %.1f s", name, found["completions"], found["modes"], found["seconds"])
        policies = Policies(target, budget, settings.seeds)
        for method in settings.methods:
            found["runs"] += list(measured(policies, method, METHODS[method]))
        record["targets"][name] = found
        (out / "results.json").write_text(json.dumps(finite(record), indent=1) + "\n")
        (out / "results.md").write_text("\n".join(page(key, value) for key, value in record["targets"].items()))
        yield page(name, found)
    drawn = plot(record["targets"], out / "kl_against_tokens.png")
    yield f"In {out}: results.json, results.md" + (
        ", kl_against_tokens.png" if drawn else "; no figure, matplotlib is not installed (pip install matplotlib)"
    )


def facts(target: ExactTarget, seconds: float, rows: Sequence[int]) -> dict[str, Any]:
    """What a target is, and what exact samples of it would show."""
    return {
        "completions": [len(log_reward) for log_reward in target.log_reward],
        "modes": [len(set(modes) - {None}) for modes in target.modes],
        "log_z": target.log_z.tolist(),
        "entropy": [float(-(np.exp(log_p) * log_p).sum()) for log_p in target.log_target],
        "unlisted": target.unlisted,
        "seconds": seconds,
        "floor": {str(count): noise_floor(target, count) for count in rows},
        "runs": [],
    }


@dataclasses.dataclass
class Policies:
    """The policies of a target, a seed each: each training is done once, whichever methods sample with it."""

    target: ExactTarget
    budget: Budget
    seeds: int
    trained: list[tuple[Training, list[Trained]]] = dataclasses.field(default_factory=list)

    def of(self, training: Training | None) -> list[Trained]:
        """Those that a training makes; without one the base."""
        if training is None:
            return [Trained(self.target.base, None, 0, 0, 0.0)] * self.seeds
        for known, policies in self.trained:
            if known is training:
                return policies
        train = make_trainer(training, self.target, self.budget.step_rows, self.budget.steps)
        stream = zlib.crc32(f"{self.target.name} {training.algorithm}".encode())
        policies = [train(jax.random.fold_in(jax.random.key(seed), stream)) for seed in range(self.seeds)]
        self.trained.append((training, policies))
        return policies


def measured(policies: Policies, name: str, method: Method) -> Iterator[dict[str, Any]]:
    """The results of a method on a target; of one that refuses it, why."""
    target, began = policies.target, time.perf_counter()
    try:
        for result in _measured(policies, name, method):
            _log.info(
                "%s: %s, %d rows: KL %.3g, total variation %.3g, %d tokens, %.1f s",
                *(target.name, name, result["rows"], result["kl_to_target"], result["total_variation"]),
                *(result["tokens"], time.perf_counter() - began),
            )
            yield result
    except ValueError as error:
        _log.info("%s: %s refuses it: %s", target.name, name, error)
        yield {"method": name, "refused": str(error)}


def _measured(given: Policies, name: str, method: Method) -> Iterator[dict[str, Any]]:
    target, budget, seeds = given.target, given.budget, given.seeds
    problem, policies = target.problem(), given.of(method.training)
    stream = zlib.crc32(f"{target.name} {name}".encode())
    keys = [jax.random.fold_in(jax.random.key(seed), stream) for seed in range(seeds)]
    exact: list[dict[str, float] | None] = [None] * seeds
    if method.exact:
        exact = [exact_of(target, trained) for trained in (policies if method.training else policies[:1])]
        exact *= seeds // len(exact)  # without training the seeds have one policy
    for rows in dict.fromkeys(min(rows, method.most or rows) for rows in budget.rows):

        @jax.jit
        def draw(model: Any, trainable: Any, problem: Problem, key: jax.Array, rows: int = rows) -> Weighed:
            return method.sampler(target.reward, trainable).sample(model, problem, rows, key)

        began = time.perf_counter()
        compiled = draw.lower(policies[0].model, policies[0].trainable, problem, keys[0]).compile()
        compile_seconds = time.perf_counter() - began
        for seed, (key, trained) in enumerate(zip(keys, policies)):
            began = time.perf_counter()
            weighed = jax.block_until_ready(
                compiled(trained.model, trained.trainable, problem, jax.random.fold_in(key, rows))
            )
            seconds = time.perf_counter() - began
            if np.any(weighed.notes.get("exceeded", 0.0)):
                raise ValueError(f"R / q exceeds its bound, by up to {np.max(weighed.notes['largest']):.3g} nats")
            yield {
                "method": name,
                "seed": seed,
                "rows": rows,
                **compare(target, empirical(target, weighed)),
                "exact": exact[seed],
                **sampled(target, weighed),
                "training_tokens": trained.generated + trained.scored,
                "tokens": int(weighed.generated.sum() + weighed.scored.sum()) + trained.generated + trained.scored,
                "seconds": seconds + trained.seconds,
                "compile_seconds": compile_seconds,
            }


def exact_of(target: ExactTarget, trained: Trained) -> dict[str, float]:
    """Of a policy's exact probabilities: nothing is sampled."""
    return compare(target, [np.exp(log_q) for log_q in exact_log_policy(target, trained.model)], FOUND_ABOVE)


def sampled(target: ExactTarget, weighed: Weighed) -> dict[str, Any]:
    """What a sampler says of itself; its log Z beside the exact one, in nats."""
    log_z_error = None
    if weighed.log_z is not None:
        log_z_error = float(np.mean(np.asarray(weighed.log_z, np.float64) - target.log_z))
    return {
        "log_z_error": log_z_error,
        "generated": int(weighed.generated.sum()),
        "scored": int(weighed.scored.sum()),
        "notes": {name: float(np.mean(np.asarray(value))) for name, value in weighed.notes.items()},
    }


def finite(value: Any) -> Any:
    """The same with None for what JSON has no number for."""
    if isinstance(value, Mapping):
        return {key: finite(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [finite(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
