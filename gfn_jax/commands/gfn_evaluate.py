"""`gfn evaluate WORKDIR`: its flags; those that are no flag of its own are keys of the run's config."""

import ast
import json
import pathlib
import shlex
from collections.abc import Iterator, Mapping
from typing import Any

from absl import flags

from gfn_jax.commands import cli, cluster
from gfn_jax.commands.gfn_train import meant, split
from gfn_jax.commands.progress import progress
from gfn_jax.sections import leaves

EXAMPLE = "write gfn evaluate WORKDIR"
TEXT = {
    "workdir": (None, "workdir of the run"),
    "step": ("newest", "newest, best, or the number of a step"),
    "adapter": (None, "another adapter: a PEFT folder or hub id, the workdir of another run; none: the base"),
    "model": (None, "where the base lies, if not where the run had it"),
    "out": (None, "file to write, WORKDIR/evaluation-SPLIT.json by default"),
}
NUMBERS = {"samples": (None, "completions a question; the run's by default (evaluation.samples)")}
SPLITS = ("test", "validation")
SWITCHES = ("debug", "help", "h")
ASKED = ("evaluation", "data", "model", "mesh")  # sections of a run's config that say what is asked, beside its task's


def main(argv: list[str], doc: str | None) -> int:
    """Runs the command and returns its exit code."""
    cli.configure_jax()
    return cli.run(argv, doc, parse, prepare, listen=lambda values: progress(values.debug))


def parse(argv: list[str]) -> flags.FlagValues:
    """The flags of a command line; `given` are the keys of the run's config, and their values.

    Raises:
        flags.Error: a value of the wrong type.
        ValueError: no workdir or none of a run, a key that the run's config has not, or words that are no flag.
        OSError: the run's config cannot be read.
    """
    values = cli.common_flags(TEXT, NUMBERS)
    flags.DEFINE_enum("split", None, SPLITS, "what is asked: the run's `report` by default", flag_values=values)
    flags.DEFINE_list("seeds", [], "of the samples, separated by commas; the run's by default", flag_values=values)
    pairs, bare = split(argv[1:])
    own = [(name, value) for name, value in pairs if name in values or name.removeprefix("no") in SWITCHES]
    words = [f"--{name}" if value is None else f"--{name}={value}" for name, value in own]
    cli.read(values, [argv[0], *words, *bare], "--KEY=VALUE", workdir=EXAMPLE)
    if values.help:
        return values
    cli.check_counts(values, "samples")
    config = read_config(pathlib.Path(values.workdir))
    keys = {
        key: value
        for section in (*ASKED, config["task"], *own_section(config))
        for key, value in leaves(config.get(section, {}), f"{section}.")
    }
    given: dict[str, Any] = {}
    for name, value in pairs:
        key = name.removeprefix("config.")
        if (name, value) in own:
            continue
        if key not in keys:
            raise ValueError(f"there is no --{name}{meant(name, key, [*keys, *TEXT, *NUMBERS, 'split', 'seeds'])}")
        given[key] = value_of(value or "", keys[key])
    if values.samples is not None:
        given["evaluation.samples"] = values.samples
    if values.seeds:
        cli.whole_numbers(values, "seeds")
    flags.DEFINE_string("given", json.dumps(given), "keys and values", flag_values=values)
    return values


def read_config(workdir: pathlib.Path) -> dict[str, Any]:
    """A run's config.json.

    Raises:
        ValueError: there is no run; where there are several below, they are named.
        OSError: it cannot be read.
    """
    path = workdir / "config.json"
    if not path.is_file():
        below = sorted(found.parent.name for found in workdir.glob("*/config.json"))
        several = f"; below it are {', '.join(below)}: name one" if below else ""
        raise ValueError(f"{workdir} is no run's workdir, it has no config.json{several}")
    config: dict[str, Any] = json.loads(path.read_text())
    if "task" not in config:
        raise ValueError(f"{path} names no task")
    return config


def own_section(config: Mapping[str, Any]) -> list[str]:
    """The section of a task that is a user's own, which may be called anything: those that nothing else reads."""
    if ":" not in config["task"]:
        return []
    known = {"lora", "sampling", "exploration", "replay", "objective", "optimizer", "reward", "certificate", "em"}
    return [name for name, value in config.items() if isinstance(value, dict) and name not in known | {*ASKED}]


def value_of(text: str, before: Any) -> Any:
    """What a word on a command line means where `before` stood: a text, or a Python value; `None` unsets."""
    if isinstance(before, str) and text != "None":
        return text
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def prepare(values: flags.FlagValues) -> Iterator[str]:
    """Reads the run and the base; it is measured when the table is asked for."""
    cluster.alone()
    from gfn_jax.commands.gfn_evaluating import Settings, evaluate

    given = json.loads(values.given)
    words = [f"--{key}={value}" for key, value in given.items()]
    words += [
        f"--{name}={values[name].value}" for name in ("split", "step", "adapter", "model") if values[name].present
    ]
    seeds = cli.whole_numbers(values, "seeds") if values.seeds else ()
    words += [f"--seeds={','.join(map(str, seeds))}"] * bool(seeds)
    return evaluate(
        Settings(
            workdir=values.workdir,
            given=given,
            seeds=seeds,
            split=values.split,
            step=values.step,
            adapter=values.adapter,
            model=values.model,
            out=values.out,
            command=shlex.join(["gfn", "evaluate", values.workdir, *words]),
        )
    )
