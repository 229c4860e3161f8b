"""Timing a step: `python -m gfn_jax.benchmark`, its flags."""

import dataclasses
import json
import pathlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Literal

from absl import flags

from gfn_jax.commands import cli, cluster
from gfn_jax.commands.config_flag import EXAMPLE, define_config, split_config
from gfn_jax.sections import Count, Natural, Seed, top_level

if TYPE_CHECKING:
    from gfn_jax.commands.benchmark_parts import Parts


@dataclasses.dataclass(frozen=True)
class BenchmarkConfig:
    """The sizes of a step, and how often it is timed.

    Attributes:
        seed: of the weights and the tokens.
        repeats: calls of a part, the first apart.
        dtype: of the base.
        remat: whether the backward pass computes the layers again.
        queries, samples: of a step, and of every query.
        prompt, context, answer, few_shot: tokens of each.
        length: tokens of a completion.
        calculator: whether the calculator writes along.
        capacity: completions that the replay buffer keeps a query.
    """

    seed: Seed
    repeats: Count
    dtype: Literal["float32", "bfloat16", "float16"]
    remat: bool
    queries: Count
    samples: Count
    prompt: Count
    context: Count
    answer: Count
    few_shot: Natural
    length: Count
    calculator: bool
    capacity: Count


def main(argv: list[str], doc: str | None) -> int:
    """Runs the command and returns its exit code. No program is kept: what a first call takes is its compilation."""
    cli.configure_jax(keep=False)
    return cli.run(argv, doc, parse, prepare)


def parse(argv: list[str]) -> flags.FlagValues:
    """The flags of a command line, the config's overrides applied and the config locked.

    Raises:
        flags.Error: an unknown flag, or a value of the wrong type.
        ValueError: no config or two, one that is none, or words that are no flag.
        KeyError, AttributeError: a config key that is not there.
        OSError: a config file that is not there.
    """
    argv, source = split_config(argv)
    values = cli.common_flags()
    flags.DEFINE_string("output", None, "folder for benchmark.json, .md and pictures", flag_values=values)
    flags.DEFINE_bool("growth", False, "also time the parts as each size grows (minutes)", flag_values=values)
    flags.DEFINE_bool("scaling", False, "also time the step on 1, 2, 4, ... of the devices", flag_values=values)
    flags.DEFINE_string("trace", None, "folder for a profile of some steps; none if not given", flag_values=values)
    define_config(values, argv, source)
    return cli.read(values, argv, EXAMPLE, config="name one, for instance --config=configs/benchmark.py")


def prepare(values: flags.FlagValues) -> Iterator[str]:
    """Makes the parts, on random weights; they are timed when the page is asked for."""
    cluster.alone()
    from gfn_jax.commands.benchmark_parts import step_parts

    top_level(BenchmarkConfig, values.config)
    return timed(values, step_parts(values.config))


def timed(values: flags.FlagValues, parts: "Parts") -> Iterator[str]:
    """The page, and then the files."""
    import jax

    from gfn_jax.commands import benchmarking
    from gfn_jax.studies import figures

    result = benchmarking.benchmark(values.config, parts)
    if values.scaling:
        counts = [2**power for power in range(jax.device_count().bit_length())]
        result["scaling"] = benchmarking.scaling(values.config, counts)
    if values.growth:
        result["growth"] = benchmarking.growth(values.config)
    page = benchmarking.page(result)
    yield page
    if values.output:
        folder = pathlib.Path(values.output)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "benchmark.json").write_text(json.dumps(result, indent=1) + "\n")
        (folder / "benchmark.md").write_text(f"```\n{page}\n```\n")
        if figures.available():
            from gfn_jax.commands.benchmark_plots import draw

            draw(result, folder)
    if values.trace:
        benchmarking.trace(parts, values.trace)
        yield f"profile: {values.trace} (XProf opens the folder, ui.perfetto.dev the perfetto_trace.json.gz in it)"
