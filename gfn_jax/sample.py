r"""The command that samples: completions of prompts by a base and an adapter, with log q and log R.

    python -m gfn_jax.sample --model=tiny-arithmetic --adapter=runs/arith-tiny --calculator \
        --characters="0123456789+-=, " --prompt="Question: 6 - 0 - 4 = ? Answer:" --samples=4

log q is the policy's log-probability of the whole completion, its stop included, under the constraint; log R that of
completion and answer (or stop) under the base alone. Both are in nats and at temperature 1, whatever --temperature.
Every batch is printed as soon as it is drawn; notes and errors go to standard error.

With the workdir of a run as adapter, prompts begin and the calculator reckons as in that run (see --bos,
--max_abs_value). A large base goes onto several devices with --fsdp or --tensor, or into 8 or 4 bits with --quantize.

What is wrong with the command or its files ends in one line `error: ...` and exit code 2.
"""

import contextlib
import dataclasses
import json
import logging
import os
import sys
from collections.abc import Iterable, Iterator
from typing import Any

from absl import flags
from absl import logging as absl_logging

from gfn_jax.launch import BUILDING, FAILED, INTERRUPTED, PARSING, RUNNING, USAGE, one_line
from gfn_jax.text.files import read_lines, read_text

TEXT = {
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


def main(argv: list[str] | None = None) -> int:
    """Runs the command and returns its exit code."""
    argv = list(sys.argv if argv is None else argv)
    expected: tuple[type[Exception], ...] = PARSING
    code = USAGE
    try:
        values = parse(argv)
        if values.help:
            print(f"{__doc__}\nFlags:\n{values.get_help()}")
            return 0
        prompts = read_prompts(values.prompt, values.prompts)
        expected = BUILDING
        absl_logging.set_verbosity(absl_logging.WARNING)
        from gfn_jax.commands.sampling import Settings, sample  # jax and all: only once the flags are known to be right

        names = {field.name for field in dataclasses.fields(Settings)} - {"prompts", "context"}
        context = None if values.context is None else read_text(values.context)
        chosen: dict[str, Any] = {name: values[name].value for name in names}
        settings = Settings(prompts=prompts, context=context, **chosen)
        with notes():
            drawn = sample(settings)
            expected, code = RUNNING, FAILED
            for batch in drawn:
                write(batch, values.jsonl)
        return 0
    except BrokenPipeError:  # `| head` has seen enough; what is left unwritten must not be flushed at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        return INTERRUPTED
    except expected as error:
        if os.environ.get("GFN_JAX_DEBUG", "0") not in ("", "0"):
            raise
        print(f"error: {one_line(error)}", file=sys.stderr)
        return code


def parse(argv: list[str]) -> flags.FlagValues:
    """The flags of a command line, as values of their own.

    Raises:
        flags.Error: an unknown flag, or a value of the wrong type.
        ValueError: no model, or words that are no flag.
    """
    values = flags.FlagValues()
    for name, (default, text) in TEXT.items():
        flags.DEFINE_string(name, default, text, flag_values=values)
    for name, (number, text) in NUMBERS.items():
        flags.DEFINE_integer(name, number, text, flag_values=values)
    for name, (options, text) in CHOICES.items():
        flags.DEFINE_enum(name, options[0], options, text, flag_values=values)
    flags.DEFINE_multi_string("prompt", [], "a prompt; may be given several times", flag_values=values)
    flags.DEFINE_float("temperature", 1.0, "of the samples; 0 is greedy", flag_values=values)
    flags.DEFINE_bool("calculator", False, "let the calculator write what follows '='", flag_values=values)
    flags.DEFINE_bool("jsonl", False, "print one JSON object a line", flag_values=values)
    flags.DEFINE_bool("help", False, "show this help", short_name="h", flag_values=values)
    words = values(argv)
    if len(words) > 1:
        raise ValueError(f"{words[1]!r} is no flag; write --prompt=TEXT")
    if not values.help and values.model is None:
        raise ValueError("no model; name a folder, a hub id, or --model=tiny-arithmetic")
    return values


@contextlib.contextmanager
def notes() -> Iterator[None]:
    """The library's notes and warnings as plain lines on standard error."""
    logger, handler = logging.getLogger("gfn_jax"), logging.StreamHandler(sys.stderr)
    before = logger.level, logger.propagate
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False  # else again, by whatever handler a library gave the root
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(before[0])
        logger.propagate = before[1]


def read_prompts(given: list[str], file: str | None) -> tuple[str, ...]:
    """The prompts of the command line, then those of the file; its empty lines are none."""
    lines = [] if file is None else read_lines(file)
    prompts = (*given, *(line for line in lines if line))
    if not prompts:
        raise ValueError("no prompt; write --prompt=TEXT, or --prompts=FILE with one a line")
    return prompts


def write(batch: Iterable, jsonl: bool) -> None:
    """Prints a batch at once."""
    for sample in batch:
        if jsonl:
            print(json.dumps(dataclasses.asdict(sample), ensure_ascii=False))
        else:
            end = "" if sample.finished else "  (cut at the maximum length)"
            print(f"{sample.prompt}{sample.completion}\n  log q {sample.log_q:.2f}  log R {sample.log_r:.2f}{end}")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
