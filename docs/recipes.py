"""Writes docs/recipes.md: models by name on machines by name, with what `--dry_run` says of each.

python docs/recipes.py            writes the page; a few minutes
python docs/recipes.py --check    fails where the page says something else
"""

import dataclasses
import pathlib
import sys

from gfn_jax.commands import train
from gfn_jax.commands.dry_run import Estimate, estimate
from gfn_jax.commands.plan import duration, least_seconds, readable
from gfn_jax.models.chips import Chip, chip

ROOT = pathlib.Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "recipes.md"
STEPS = 1000  # of every preset that is used here


@dataclasses.dataclass(frozen=True)
class Machine:
    """Where a run is to go.

    Attributes:
        title: of its section.
        chip: a name in `models.chips`.
        devices: how many of them.
        words: of every command, for a model that fits a device.
        large: of a model that does not.
        remark: what else must be known.
    """

    title: str
    chip: str
    devices: int
    words: tuple[str, ...]
    large: tuple[str, ...]
    remark: str


@dataclasses.dataclass(frozen=True)
class Recipe:
    """One model on one machine."""

    model: str
    machine: Machine
    words: tuple[str, ...]

    @property
    def command(self) -> str:
        """What is typed, `--dry_run` left out."""
        return " ".join(("python -m gfn_jax.launch", *self.words))


# Name -> what names it on the command line, and whether it is large.
MODELS = {
    "GPT-2 124M": (("--config=configs/arith.py:gpt2",), False),
    "SmolLM2-135M": (("--config=configs/arith.py:llama", "--config.model.path=HuggingFaceTB/SmolLM2-135M"), False),
    "Qwen2.5-0.5B": (("--config=configs/arith.py:qwen",), False),
    "Llama-3.2-1B": (("--config=configs/arith.py:llama",), False),
    "Gemma-3-1b": (("--config=configs/arith.py:llama", "--config.model.path=google/gemma-3-1b-pt"), False),
    "GPT-J 6B": (("--config=configs/arith.py:paper",), True),
}
FLOATS, NF4 = "--config.model.dtype=float32", "--config.model.quantize=nf4"
MACHINES = (
    Machine(
        "A laptop",
        "laptop",
        1,
        (FLOATS, "--config.sampling.micro_batches=16"),
        (FLOATS, "--config.sampling.micro_batches=32", NF4),
        "16 GB of memory. A CPU multiplies no bfloat16 by itself, hence float32. What takes days is here to show that "
        "it does: `:tiny`, the default of every config, is what a laptop is for.",
    ),
    Machine("A GPU of 24 GB", "L4", 1, (), (NF4,), "The times are an L4's; an RTX 4090 has three times its bandwidth."),
    Machine("A GPU of 80 GB", "A100", 1, (), (), "The times are an A100's; `--dry_run` has H100 and H200 beside it."),
    Machine(
        "v5e-8",
        "v5e",
        8,
        ("--config.mesh.data=8",),
        ("--config.mesh.data=1", "--config.mesh.tensor=8"),
        "One host of 8 chips, 16 GB each: the command is typed on the host.",
    ),
    Machine(
        "v5p-64",
        "v5p",
        32,
        ("--config.sampling.micro_batches=1", "--config.mesh.data=32"),
        ("--config.sampling.micro_batches=1", "--config.mesh.data=32"),
        "64 cores are 32 chips of 95 GB on 8 hosts, and jax sees a chip as one device. `launch/tpu_pod.sh NAME ZONE "
        "WORKDIR` and the flags below start the run on all hosts, `launch/jobset.yaml` does under Kubernetes.",
    ),
)
INTRODUCTION = """# Recipes by name

Arithmetic with the paper's budget (configs/arith.py: 32 questions x 16 samples a step, 1,000 steps, a LoRA adapter of
rank 64, up to 24 tokens of Z) on six models and five machines. **None of these was run here**: the memory is what
`--dry_run` adds up from shapes, activations being an estimate, and the times are bounds from the makers' peak figures
(gfn_jax/models/chips.py), not measurements: real steps take longer. What the chips of one host or slice send each other
is counted as if it overlapped with the rest. Lengths were counted with the small tokenizer that the project ships; a
model's own may write more tokens.

Each command was planned with `--dry_run` behind it, which asks for no accelerator and downloads nothing here. A gated
model (Llama, Gemma) needs its licence accepted on the hub, and `hf auth login`. Weights are read as safetensors only: a
repository that has pickles alone must be converted first. Another task is another file: `configs/subj.py`,
`configs/infill.py`, `configs/continuation.py` and `configs/rng.py` have a `:paper` each, and take the same overrides.

This page is written by `python docs/recipes.py`.
"""


def recipes() -> list[Recipe]:
    """All of them, machine by machine."""
    return [
        Recipe(model, machine, (*words, *(machine.large if large else machine.words)))
        for machine in MACHINES
        for model, (words, large) in MODELS.items()
    ]


def planned(recipe: Recipe) -> Estimate:
    """What the dry run says of it."""
    config, *rest = recipe.words
    values = train.parse(["launch", config.replace("configs/", f"{ROOT}/configs/"), *rest])
    return estimate(values.config)


def row(recipe: Recipe) -> str:
    """A line of its machine's table."""
    plan, one = planned(recipe), chip(recipe.machine.chip)
    need = sum(plan.memory.values())
    parts = least_seconds(one, recipe.machine.devices, plan.flops, plan.traffic, plan.dtype, plan.sent)
    seconds = sum(parts.values())
    size = readable(need) + ("" if need <= one.memory else ", too much")
    return f"| {recipe.model} | {size} | {duration(seconds)} | {duration(STEPS * seconds)} |"


def section(machine: Machine) -> str:
    """A machine's part of the page."""
    own, one = [recipe for recipe in recipes() if recipe.machine == machine], chip(machine.chip)
    lines = [
        f"## {machine.title}",
        "",
        machine.remark,
        "",
        f"| model | memory a device, of {readable(one.memory)} | a step, at least | {STEPS} steps, at least |",
        "| --- | --- | --- | --- |",
        *map(row, own),
        "",
        *(f"    {recipe.command}" for recipe in own),
    ]
    return "\n".join(lines) + "\n"


def page() -> str:
    """The whole document."""
    return "\n".join([INTRODUCTION, *map(section, MACHINES), sources()])


def sources() -> str:
    """Where the peak figures are from."""

    def line(one: Chip) -> str:
        peak = f"{one.halves / 1e12:g} TFLOP/s in halves, {one.floats / 1e12:g} in floats"
        link = "" if one.link is None else f", {one.link / 1e9:g} GB/s to its neighbours"
        return f"- {one.name}: {peak}, {one.bandwidth / 1e9:g} GB/s{link} ({one.source})"

    return "\n".join(["## Peak figures", "", *(line(chip(machine.chip)) for machine in MACHINES)]) + "\n"


def main(arguments: list[str]) -> int:
    """Writes the page, or with --check says whether it would be another."""
    text = page()
    if "--check" in arguments:
        if PAGE.read_text(encoding="utf-8") != text:
            print("error: docs/recipes.md is not what --dry_run says; python docs/recipes.py", file=sys.stderr)
            return 1
        return 0
    PAGE.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
