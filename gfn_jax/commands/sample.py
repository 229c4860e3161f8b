"""Sampling: `python -m gfn_jax.sample`, its flags and what it prints."""

import dataclasses
import json
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

from absl import flags

from gfn_jax.commands import cli, cluster
from gfn_jax.text.files import read_lines, read_text

if TYPE_CHECKING:
    from gfn_jax.commands.sampling import Sample

TEXT = {
    "workdir": (None, "of a run: base, adapter, prompts, tool, tokens and lengths are its own, but for given flags"),
    "step": ("newest", "of the run's checkpoints: newest, best, or a number"),
    "split": (None, "of the run's questions, where no prompt is given; a held-out one by default"),
    "model": (None, "base: a folder, a hub id, or the shipped tiny-arithmetic"),
    "adapter": (None, "adapter: a PEFT folder or hub id, or the workdir of a run; none samples the base"),
    "prompts": (None, "file of prompts, one a line"),
    "stop": (None, "text of the token that ends a completion; end-of-text by default, '.' with the calculator"),
    "characters": (None, "the only characters a completion may have, as in '0123456789+-=, '"),
    "answer": (None, "Y: rewards p(Z Y | X); without it p(Z stop | X)"),
    "context": (None, "file of few-shot text that the reward reads before the prompt"),
    "dtype": ("float32", "float32, bfloat16 or float16, of the base"),
}
NUMBERS = {
    "queries": (4, "of the run's questions, where no prompt is given"),
    "samples": (1, "completions of every prompt"),
    "max_length": (32, "most tokens of a completion"),
    "min_length": (0, "fewest tokens of a completion"),
    "max_abs_value": (
        None,
        "largest operand and result of the calculator; as in the adapter's run, else what the tokenizer has up to 99",
    ),
    "batch": (8, "prompts at once"),
    "seed": (0, "of the randomness"),
    "data": (-1, "devices that share the rows, each with all weights; -1 takes what the other two leave"),
    "fsdp": (1, "devices that share the weights, and the rows"),
    "tensor": (1, "devices that share every matrix product"),
}
CHOICES = {
    "bos": (
        ("auto", "yes", "no"),
        "begin-of-text before prompts; auto: none with the adapter of a run, else as the tokenizer has it",
    ),
    "quantize": (("none", "int8", "nf4"), "bits of the base's weights"),
}


def main(argv: list[str], doc: str | None) -> int:
    """Runs the command and returns its exit code."""
    cli.configure_jax()
    return cluster.run(argv, doc, parse, prepare)


def parse(argv: list[str]) -> flags.FlagValues:
    """The flags of a command line.

    Raises:
        flags.Error: an unknown flag, or a value of the wrong type.
        ValueError: neither model nor run, or words that are no flag.
    """
    values = cli.common_flags(TEXT, NUMBERS)
    for name, (options, text) in CHOICES.items():
        flags.DEFINE_enum(name, options[0], options, text, flag_values=values)
    flags.DEFINE_multi_string("prompt", [], "a prompt; may be given several times", flag_values=values)
    flags.DEFINE_float("temperature", 1.0, "of the samples; 0 is greedy", flag_values=values)
    flags.DEFINE_bool("calculator", False, "let the calculator write what follows '='", flag_values=values)
    flags.DEFINE_bool("jsonl", False, "print one JSON object a line", flag_values=values)
    cli.read(values, argv, "--prompt=TEXT")
    if not values.help:
        if values.model is None and values.workdir is None:
            raise ValueError("no model; name a folder, a hub id, or --model=tiny-arithmetic, or a run's --workdir")
        cli.check_counts(values, "queries")
    return values


def prepare(values: flags.FlagValues) -> Iterator[str]:
    """Reads the texts, then the models; a batch is drawn when its text is asked for."""
    of_run = values.workdir is not None
    own_questions = of_run and not values.prompt and values.prompts is None
    prompts = () if own_questions else read_prompts(values.prompt, values.prompts)
    context = None if values.context is None else read_text(values.context)
    cluster.join_if_any()
    from gfn_jax.commands import sampling

    names = {field.name for field in dataclasses.fields(sampling.Settings)} - {"prompts", "context"}
    chosen: dict[str, Any] = {name: values[name].value for name in names} | {"model": values.model or ""}
    settings = sampling.Settings(prompts=prompts, context=context, **chosen)
    if of_run:
        from gfn_jax.commands.sampling_runs import OfRun, sample_run

        given = {name for name in names if values[name].present}
        drawn = sample_run(OfRun(values.workdir, values.step, values.split, values.queries), settings, given)
    else:
        drawn = sampling.sample(settings)
    return (written(batch, values.jsonl) for batch in drawn)


def read_prompts(given: list[str], file: str | None) -> tuple[str, ...]:
    """The prompts of the command line, then those of the file; its empty lines are none."""
    lines = [] if file is None else read_lines(file)
    prompts = (*given, *(line for line in lines if line))
    if not prompts:
        raise ValueError("no prompt; write --prompt=TEXT, or --prompts=FILE with one a line")
    return prompts


def written(batch: Iterable["Sample"], jsonl: bool) -> str:
    """A batch as text."""
    lines = []
    for sample in batch:
        if jsonl:
            lines.append(json.dumps(dataclasses.asdict(sample), ensure_ascii=False))
        else:
            end = "" if sample.finished else "  (cut at the maximum length)"
            lines.append(f"{sample.prompt}{sample.completion}")
            lines.append(f"  log q {sample.log_q:.2f}  log R {sample.log_r:.2f}{end}")
    return "\n".join(lines)
