"""Every command that README and docs show can be typed.

All are read: the program is there, its flags and the config's keys and values are understood. With `-m slow` those
that need nothing but this checkout are run, shortened, in the order in which they stand; `-rs` says why the others
are not.
"""

import dataclasses
import importlib
import os
import pathlib
import re
import subprocess
import sys
import types

import pytest
from documents import ROOT, Command, code, command_of, commands
from ml_collections import ConfigDict

from gfn_jax.commands import gfn_evaluate, local, train
from gfn_jax.commands.config_flag import given_keys, split_config
from gfn_jax.text.loading import SHIPPED

COMMANDS = commands()
# Evaluation's keys, whatever the task, as small as they may be.
SMALL = {
    **dict.fromkeys(("questions", "test_questions", "diverse_questions", "diverse_samples", "batch"), 2),
    **dict.fromkeys(("stories", "test_stories", "every", "diverse_groups", "shots"), 2),
    **dict.fromkeys(("samples", "prompts", "reviews"), 4),
}
SHORT = {"steps": 2, "log_every": 1, "save_every": 2, "optimizer.warmup_steps": 1, "certificate.queries": 0}


def face(module: str) -> types.ModuleType:
    """The module that reads the flags of `python -m MODULE`: itself, or the command whose face it is."""
    found = importlib.import_module(module)
    if hasattr(found, "parse"):
        return found
    return next(part for part in vars(found).values() if isinstance(part, types.ModuleType) and hasattr(part, "parse"))


def read_config(config: ConfigDict, given: list[str]) -> None:
    """What a run would say of its config before it looks at any file."""
    from gfn_jax.runs.config import read

    read(config, given)


def reader(command: Command) -> tuple[types.ModuleType, list[str]]:
    """The module of `gfn_jax.commands` that reads a command's words, and the words as it takes them."""
    if command.module is not None:
        return face(command.module), list(command.words)
    gfn = importlib.import_module("gfn_jax.commands.gfn")
    named = gfn.COMMANDS[command.words[0]]
    module = importlib.import_module(f"gfn_jax.commands.{named.module}")
    return module, gfn.placed(list(command.words[1:]), named.bare)


def parse(command: Command):
    """The flags of a command of the package, or None: it is only named, or its config is the reader's."""
    module, words = reader(command)
    source = split_config(["", *words])[1]
    if not command.words or (source is not None and re.search("[A-Z]{3}", source)):
        return None
    found = module.parse(["command", *(word for word in words if not re.match("--config.[A-Z]+=", word))])
    return getattr(found, "values", found)  # of several runs at once those of the first


def config_of(values) -> ConfigDict | None:
    """The config among a command's flags, where it has one that a run reads."""
    found = values is not None and "config" in values and values.config
    return found if found and "task" in found else None


def flags_of(script: pathlib.Path) -> set[str]:
    """The flags that a script's text defines, by argparse or absl."""
    text = script.read_text(encoding="utf-8")
    return {name for pair in re.findall(r'"--([\w-]+)"|DEFINE_\w+\(\s*"(\w+)"', text) for name in pair if name}


@pytest.fixture(autouse=True)
def in_the_checkout(monkeypatch):
    """Where commands are typed."""
    monkeypatch.chdir(ROOT)
    monkeypatch.syspath_prepend(str(ROOT))
    # The keys that `gfn evaluate` takes are those of a run, which the commands before it would have made.
    made = train.parse(["launch", "--config=configs/arith.py"]).config.to_dict()
    monkeypatch.setattr(gfn_evaluate, "read_config", lambda workdir: made)


def test_there_are_commands():
    """None of the programs was lost on the way from the text."""
    programs = {command.program for command in COMMANDS}
    assert {"make", "python -m gfn_jax.launch", "python -m gfn_jax.certify"} <= programs
    assert len(COMMANDS) > 40


def test_commands_are_found_in_blocks_and_lines():
    text = (
        "Try `python -m gfn_jax.launch\n--config=a.py`:\n\n    make test  # all\n\n```\ngfn train x \\\n  --a=1\n```\n"
    )
    assert list(code(text)) == ["make test  # all", "gfn train x  --a=1", "python -m gfn_jax.launch --config=a.py"]
    assert command_of("", "make test  # all") == Command("", "make", ("test",))
    found = command_of("", ".venv/bin/python -m gfn_jax.certify --workdir=A [--twist=none|flow] ...")
    assert found == Command("", "python -m gfn_jax.certify", ("--workdir=A", "--twist=none"))


@pytest.mark.parametrize("command", COMMANDS, ids=str)
def test_is_understood(command):
    if command.program == "make":
        targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
        assert {word for word in command.words if "=" not in word} <= set(targets)
    elif command.module is not None or command.program == "gfn":
        values = parse(command)
        if (config := config_of(values)) is not None:
            read_config(config, given_keys(values))
    elif command.program == "python launch/local.py":
        line = local.parse([command.program, *command.words])
        assert parse(Command("", f"python -m {line.module}", line.words)) is not None
    elif command.program.startswith("python "):
        script = ROOT / command.program.split()[1]
        assert {word[2:].partition("=")[0] for word in command.words if word.startswith("--")} <= flags_of(script)
    elif command.program.startswith("launch/") or command.words[:1] == ("launch/slurm.sbatch",):
        script = command.program if command.program != "sbatch" else command.words[0]
        assert (ROOT / script).is_file()
        flags = [word for word in command.words if word.startswith("--")]
        values = train.parse(["launch", *flags]) if flags else None
        if (config := config_of(values)) is not None:
            read_config(config, given_keys(values))
    else:
        assert command.program in ("pip", "kubectl"), f"{command.program}: this test does not know it"
        files = [word for word in command.words if "/" in word]
        assert all((ROOT / word).exists() for word in files)


def kind(command: Command) -> str:
    """What reads its words, by name."""
    return reader(command)[0].__name__.rpartition(".")[2]


def refused(command: Command, made: pathlib.Path) -> str | None:
    """Why a command is not run here; None where it is."""
    if command.module is None and command.program != "gfn":
        return "it installs, takes long, or needs another machine"
    if not command.words:
        return "it is only named"
    if command.open_words:
        return f"{command.open_words[0]} is the reader's"
    if kind(command) in ("tune", "baselines"):
        return "it takes long"
    writes = ("--out", "--workdir") if kind(command) not in ("sample", "export", "certify") else ("--out",)
    for word in command.words:
        read = re.search(r"(?:^|=)((runs|out)/[\w./-]+)", word)
        # A folder of several runs, one a seed, may stand where a run is meant: only it has a config.
        if read and read[2] == "runs" and not word.startswith(writes) and not (made / read[1] / "config.json").exists():
            return f"{read[1]} is not made before it in this document"
    values = parse(command)
    config = config_of(values)
    if config is not None and not values.dry_run:
        path = config.model.get("path") or config.get("start")
        if path and not (SHIPPED / path).is_dir() and not (made / path).exists():
            return f"{path} is not here"
        if (data := config.get("data", {}).get("path")) and not pathlib.Path(data).exists():
            return f"{data} is the reader's"
    return None


def shortened(command: Command) -> list[str]:
    """The flags that make a command a matter of seconds, behind its own."""
    fixed = {
        "reproduce": ["--list"],
        "certify": ["--queries=1", "--samples=16", "--proposals=32"],
        "posterior_bench": ["--budget=tiny", "--methods=importance", "--targets=numbers"],
        "benchmark": ["--config.repeats=1"],
    }
    values = parse(command)
    config = config_of(values)
    if kind(command) in fixed or config is None or values.dry_run:
        return fixed.get(kind(command), [])
    workdir = [] if any(word.startswith("--workdir") for word in command.words) else [f"--workdir={values.workdir}"]
    return [*workdir, *(f"--config.{key}={value}" for key, value in short_config(config).items())]


def short_config(config: ConfigDict) -> dict[str, object]:
    """Values by key for a run of two steps."""
    if config.task == "pretrain":
        sizes = {"steps": 2, "documents": 32}
        return {f"phases.{name}.{key}": size for name in config.phases for key, size in sizes.items()} | {
            "optimizer.warmup_steps": 1
        }
    from gfn_jax.runs.registry import algorithm_entry

    short = SHORT | {f"evaluation.{key}": size for key, size in SMALL.items() if key in config.evaluation}
    reads = algorithm_entry(config.algorithm).reads
    if "replay" in reads:
        short["replay.discovery_steps"] = 0
    if "objective" in reads:
        short["objective.imitation_steps"] = 0
    if config.algorithm == "star":
        short |= {"star.rounds": 1, "star.samples": 1}
    if "em" in config:
        short |= {"em.steps": 2, "em.warmup_steps": 1, "em.samples": 2, "subjectivity.test": 8}
    return short


def test_what_shortens_a_run_is_understood():
    """Of every run that the documents show; those of the reader's own config aside."""
    for command in COMMANDS:
        if command.module != "gfn_jax.launch" and command.program != "gfn":
            continue
        config = config_of(parse(command))
        if config is None or config.task == "finetune" or command.open_words:
            continue
        values = parse(dataclasses.replace(command, words=(*command.words, *shortened(command))))
        read_config(values.config, given_keys(values))
        assert values.dry_run or config.task == "pretrain" or values.config.steps == 2


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> pathlib.Path:
    """Where what the documents make lies, runs/ and out/ of each in a folder of its own."""
    return tmp_path_factory.mktemp("documents")


@pytest.mark.slow
@pytest.mark.parametrize("command", COMMANDS, ids=str)
def test_is_run(command, made):
    folder = made / command.document.replace("/", "-")
    reason = refused(command, folder)
    if reason is not None:
        pytest.skip(f"only read: {reason}")
    words = [re.sub(r"\b(runs|out)/", f"{folder}/\\1/", word) for word in [*command.words, *shortened(command)]]
    line = [sys.executable, "-m", command.module or "gfn_jax.gfn", *words]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(line, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, f"{done.stderr[-2000:]}\n{done.stdout[-500:]}"
