"""Which columns of a batch are there: how long a run's completions are, and what the reward reads of them.

    taskset -c 0 python benchmarks/columns.py WORKDIR... --out benchmarks/results

Batches of fresh rows, as a step samples them, by the run's last adapter. `T`: the columns that arrays have. The rest is
of those batches: the mean length, the mean of the longest, the mean of the most states in which a row may stop, and the
reward's CPU time with Y behind every prefix, behind those that may be completions, and behind whole completions alone.
Writes columns.md.
"""

import argparse
import pathlib
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from gfn_jax.algorithms.on_task import OnPolicy
from gfn_jax.commands.certifying import policy_run
from gfn_jax.evaluation.report import table
from gfn_jax.models.checkpoint import read_config
from gfn_jax.models.tensor_files import resolve
from gfn_jax.policy.rollout import rollout
from gfn_jax.rewards import posterior
from gfn_jax.runs.policy import constants_of, policy_parts
from gfn_jax.runs.saved import read_run, restore_adapter
from gfn_jax.runs.weights import load_base
from gfn_jax.text.loading import load_tokenizer, model_folder
from gfn_jax.training import mesh as meshes
from gfn_jax.types import Query, Rollout

HEADER = ("task", "T", "rows", "mean", "longest", "may stop", "every prefix, ms", "may stop, ms", "completions, ms")
EVERY, SHIPPED = 10**9, posterior.ANSWER_TOKENS


def milliseconds(call: Callable[..., Any], batches: Sequence[tuple[Query, Rollout]]) -> float:
    """The median of its CPU times, the first call apart."""
    jax.block_until_ready(call(*batches[0]))
    times = []
    for batch in batches:
        start = time.process_time()
        jax.block_until_ready(call(*batch))
        times.append(time.process_time() - start)
    return 1e3 * statistics.median(times)


def measure(workdir: pathlib.Path, count: int) -> tuple[str, ...]:
    """A run's line of the table."""
    saved = read_run(workdir)
    config, folder = policy_run(saved), resolve(model_folder(saved.base))
    mesh, (_, shape) = meshes.use_mesh(config.mesh), read_config(folder)
    parts = policy_parts(config, shape, load_tokenizer(folder), mesh)
    constants = constants_of(config, parts, load_base(folder, config.model.dtype, mesh, config.model.quantize))
    algorithm, rows = parts.algorithm, config.sampling.queries * config.sampling.fresh_samples
    assert isinstance(algorithm, OnPolicy)
    lora = restore_adapter(saved, saved.steps[-1], shape)

    @jax.jit
    def draw(key: jax.Array) -> tuple[Query, Rollout]:
        select, behave, sample = jax.random.split(key, 3)
        query = algorithm.select(constants, select)
        behavior = config.sampling.behavior(behave, rows)
        return query, rollout(constants.base.adapted(lora), query.prompt, constants.rules, behavior, sample)

    def reward(tokens: int) -> Callable[[Query, Rollout], Any]:
        def log_reward(query: Query, sampled: Rollout) -> jax.Array:
            posterior.ANSWER_TOKENS = tokens  # read as the program is traced
            return parts.reward.log_reward(constants.base, constants.prepared, query, sampled)

        return jax.jit(log_reward)

    batches = [draw(jax.random.key(number)) for number in range(count)]
    ended = [(query, sampled.stopping()) for query, sampled in batches]
    length = np.stack([np.asarray(sampled.token_mask.sum(axis=1)) for _, sampled in batches])
    states = np.stack([np.asarray(sampled.state_mask.sum(axis=1)) for _, sampled in batches])
    asked = reward(SHIPPED)
    times = (milliseconds(reward(EVERY), batches), milliseconds(asked, batches), milliseconds(asked, ended))
    means = (length.mean(), length.max(axis=1).mean(), states.max(axis=1).mean())
    horizon = str(constants.rules.constraint.horizon)
    return (
        str(config.values.task),
        horizon,
        str(rows),
        *(f"{mean:.1f}" for mean in means),
        *(f"{each:.0f}" for each in times),
    )


def main() -> None:
    """Reads the command line, measures, and writes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("workdirs", nargs="+", type=pathlib.Path)
    parser.add_argument("--batches", type=int, default=10)
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("benchmarks/results"))
    settings = parser.parse_args()
    page = table(HEADER, [measure(workdir, settings.batches) for workdir in settings.workdirs])
    print(page)
    settings.out.mkdir(parents=True, exist_ok=True)
    (settings.out / "columns.md").write_text(f"```\n{page}\n```\n")


if __name__ == "__main__":
    main()
