"""What all commands do alike: help, errors in one line, tracebacks if asked for, notes, and what they print."""

import importlib
import importlib.metadata
import importlib.util
import io
import logging
import os
import pathlib
import re
import subprocess
import sys
import time

import pytest

from gfn_jax.commands import cli, progress

ROOT = pathlib.Path(__file__).parents[2]
# A face -> a command line that is wrong in a value, which is seen before anything is computed.
WRONG = {
    "launch": [f"--config={ROOT}/configs/arith.py", "--config.lora.dropout=1", "--workdir=run"],
    "sample": ["--model=tiny-arithmetic", "--prompt=1", "--samples=0"],
    "export": ["--workdir=absent", "--out=out"],
    "benchmark": [f"--config={ROOT}/configs/benchmark.py", "--config.samples=0"],
    "posterior_bench": ["--out=out", "--methods=absent"],
    "reproduce": ["--seeds=one"],
}


def main(face: str, *arguments: str) -> int:
    return importlib.import_module(f"gfn_jax.{face}").main([face, *arguments])


@pytest.mark.parametrize("face", WRONG)
def test_help(capsys, face):
    assert main(face, "--help") == 0
    out = capsys.readouterr().out
    assert out.startswith(importlib.import_module(f"gfn_jax.{face}").__doc__)
    assert f"python -m gfn_jax.{face} --" in out
    assert "--[no]debug: show tracebacks" in out


@pytest.mark.parametrize("face", WRONG)
def test_what_is_wrong_is_one_line_and_with_debug_a_traceback(face, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert main(face, *WRONG[face]) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    with pytest.raises((ValueError, OSError)):
        main(face, *WRONG[face], "--debug")
    monkeypatch.setenv("GFN_JAX_DEBUG", "1")
    with pytest.raises((ValueError, OSError)):
        main(face, *WRONG[face])


@pytest.mark.parametrize(
    ("face", "arguments"),
    [
        ("launch", [f"--config={ROOT}/configs/arith.py", "--config.sed=1"]),
        ("sample", ["--model=m", "--prompt=p", "--sed=1"]),
        ("export", ["--workdir=w", "--out=o", "--sed=1"]),
        ("benchmark", [f"--config={ROOT}/configs/benchmark.py", "--config.sed=1"]),
        ("reproduce", ["--what=table4", "--sed=1"]),
    ],
)
def test_what_is_misspelt_is_said_at_once(face, arguments):
    """What a person sees: one line, before anything heavy is imported."""
    command = [sys.executable, "-X", "importtime", "-m", f"gfn_jax.{face}", *arguments]
    environ = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, env=environ)
    assert done.returncode == 2
    lines = [line for line in done.stderr.splitlines() if not line.startswith("import time:")]
    assert len(lines) == 1
    assert lines[0].startswith("error: ")
    assert "sed" in lines[0]
    imported = {line.rsplit("|", 1)[-1].strip() for line in done.stderr.splitlines() if "import time:" in line}
    assert not imported & {"jax", "orbax.checkpoint", "transformers", "numpy"}


def test_on_cpus_programs_are_compiled_quickly_and_kept_unless_the_environment_says_otherwise(tmp_path):
    """In a process of its own: the options are those that jax compiles with there."""
    program = """
from gfn_jax.commands import cli
cli.configure_jax()
cli.configure_jax()
import jax
from jax._src.compiler import get_compile_options
options = get_compile_options(1, 1).executable_build_options.debug_options
print(options.xla_backend_optimization_level, jax.config.jax_compilation_cache_dir)
"""
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("JAX_", "XLA_"))}

    def said(**environment: str) -> list[str]:
        line = [sys.executable, "-c", program]
        return subprocess.run(line, env=clean | environment, capture_output=True, text=True, check=True).stdout.split()

    assert said(HOME=str(tmp_path), JAX_PLATFORMS="cpu") == ["1", f"{tmp_path}/.cache/gfn_jax/jax"]
    given = {"XLA_FLAGS": "--xla_backend_optimization_level=2", "JAX_COMPILATION_CACHE_DIR": str(tmp_path)}
    assert said(JAX_PLATFORMS="cpu", **given) == ["2", str(tmp_path)]


@pytest.mark.parametrize(
    ("platforms", "installed", "only"),
    [("cpu", "jax_plugins", True), ("cuda,cpu", "", False), ("", "jax_plugins", False), ("", "libtpu", False)],
)
def test_an_accelerator_is_compiled_for_as_ever(monkeypatch, platforms, installed, only):
    monkeypatch.setenv("JAX_PLATFORMS", platforms)
    monkeypatch.setenv("XLA_FLAGS", "--own=1")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name == installed or None)
    cli.configure_jax()
    assert cli.only_cpus() is only
    assert (os.environ["XLA_FLAGS"] == "--own=1") is not only


def test_an_xla_that_may_not_know_the_flags_gets_none(monkeypatch):
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    monkeypatch.setenv("XLA_FLAGS", "")
    monkeypatch.setattr(importlib.metadata, "version", {"jaxlib": "0.12.0"}.__getitem__)
    cli.configure_jax()
    assert os.environ["XLA_FLAGS"] == ""


def test_what_nobody_reads_is_neither_printed_nor_made(monkeypatch):
    read, write = os.pipe()
    os.close(read)
    made = []
    with os.fdopen(write, "w") as pipe:
        monkeypatch.setattr("sys.stdout", pipe)
        cli.show(made.append(number) or "a text" for number in range(3))
    assert made == [0]


def test_what_the_library_says_is_heard_in_one_place_and_for_so_long(capsys, caplog):
    logger = logging.getLogger("gfn_jax")
    before = logger.handlers, logger.level, logger.propagate
    with progress.notes():
        logger.info("a note")
    assert capsys.readouterr().err == "a note\n"
    with progress.progress():
        logger.info("a step")
    assert capsys.readouterr().out.endswith("  a step\n")
    assert not caplog.messages
    assert (logger.handlers, logger.level, logger.propagate) == before


@pytest.mark.parametrize("place", [None, (3, 8)])
def test_silence_is_broken_by_what_takes_so_long(place):
    stream = io.StringIO()
    logger = logging.Logger("gfn_jax.test")
    handler = progress.Progress(stream, patience=0.02)
    logger.addHandler(handler)
    logger.info("compiling the step")
    if place:
        logger.debug("training", extra={"place": place})
    waited = time.monotonic() + 5
    while stream.getvalue().count("still: compiling the step") < 2 and time.monotonic() < waited:
        time.sleep(0.01)
    handler.close()
    lines = stream.getvalue().splitlines()
    assert lines[0] == "compiling the step"
    where = "; 3 of 8" if place else ""
    assert f"  still: compiling the step{where} (0 s)" in lines[1:]
    assert set(lines[1:]) <= {"  still: compiling the step (0 s)", f"  still: compiling the step{where} (0 s)"}
    assert len(lines) >= 3
    time.sleep(0.1)
    assert len(stream.getvalue().splitlines()) <= len(lines) + 1  # closed, it is silent


class Terminal(io.StringIO):
    """A stream that says it is one; `text` is what is written without what moves the cursor."""

    def isatty(self) -> bool:
        return True

    @property
    def text(self) -> str:
        return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]|\r", "", self.getvalue())


def test_a_terminal_has_a_bar_beneath_the_lines_until_all_is_done(tmp_path, monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr(sys, "stdout", terminal)
    logger, long = logging.getLogger("gfn_jax"), "a line " + 30 * "that is longer than the terminal is wide "
    with progress.progress():
        logger.info("starting")
        logger.debug("training", extra={"place": (3, 8)})
        logger.debug("not a line")
        logger.info(long)
        logger.debug("evaluating", extra={"place": (1, 2)})
        progress.keep(tmp_path / "run" / "log.txt")
        logger.debug("evaluating", extra={"place": (2, 2)})
        before = terminal.getvalue()
        print("the table")
    for shown in ("training", "3/8", "evaluating", "1/2", long):
        assert shown in terminal.text
    assert terminal.getvalue() == before + "the table\n"  # no bar is left behind
    kept = (tmp_path / "run" / "log.txt").read_text()
    assert [line.partition("  ")[2] or line for line in kept.splitlines()] == ["starting", long, "the table"]
    assert sys.stdout is terminal


def test_elsewhere_there_is_no_bar(capsys):
    with progress.progress():
        logging.getLogger("gfn_jax").debug("training", extra={"place": (3, 8)})
    assert capsys.readouterr().out == ""
