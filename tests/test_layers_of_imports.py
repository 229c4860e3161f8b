"""Reads every import in the package and holds it to the order of the rooms: imports point down only."""

import ast
import pathlib
from collections.abc import Iterator

import pytest

ROOT = pathlib.Path(__file__).parents[1]
PACKAGE = ROOT / "gfn_jax"
# What people type, `python -m gfn_jax.launch`: nothing imports them, and they import what the commands are made of.
FACES = {"gfn", "launch", "sample", "export", "benchmark", "certify", "posterior_bench", "reproduce"}

# From the ground up. Rooms of one level do not know each other.
LEVELS = (
    {"types", "errors", "sections"},
    {"models", "text", "objectives"},
    {"datasets", "interfaces"},
    {"policy"},
    {"rewards", "replay", "environments", "worlds"},
    {"samplers"},
    {"evaluation", "training"},  # a step knows no algorithm, an evaluator no task
    {"tasks", "algorithms"},  # a task says what is wanted, an algorithm how it is learnt
    {"runs"},
    {"bench"},
    {"studies"},
    {"commands"},
    FACES,
)
LEVEL = {room: level for level, rooms in enumerate(LEVELS) for room in rooms}
# Objectives see arrays only, a face what it is the face of.
ONLY = {"objectives": {"types"}, **{face: {"commands"} for face in FACES}}

# A task says what is wanted and an algorithm how it is learnt, whatever the step.
NEVER = {"tasks": {"training"}, "algorithms": {"training", "evaluation"}}


def level_of(room: str) -> int:
    assert room in LEVEL, f"gfn_jax/{room} has no level in {pathlib.Path(__file__).name}"
    return LEVEL[room]


def imported_rooms(source: str, room: str, package: tuple[str, ...]) -> Iterator[tuple[int, str]]:
    """(line, room) for every import of the package itself, wherever in the file it stands."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(package[: len(package) - node.level + 1]) if node.level else ""
            module = ".".join(part for part in (base, node.module) if part)
            names = [f"{module}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            parts = name.split(".")
            if parts[0] == "gfn_jax" and len(parts) > 1 and parts[1] != room:
                yield node.lineno, parts[1]


def faults(path: pathlib.Path, source: str) -> list[str]:
    inside = path.relative_to(PACKAGE).with_suffix("").parts
    room = inside[0]
    found = []
    for line, other in imported_rooms(source, room, ("gfn_jax", *inside[:-1])):
        below = level_of(other) < level_of(room)
        if not below or other not in ONLY.get(room, {other}) or other in NEVER.get(room, ()):
            found.append(f"{path.relative_to(PACKAGE.parent)}:{line}: {room} may not import {other}")
    return found


def test_imports_point_down_only():
    paths = sorted(PACKAGE.rglob("*.py"))
    assert len(paths) > 20
    assert [fault for path in paths for fault in faults(path, path.read_text())] == []


def test_the_root_is_small():
    files = {path.stem for path in PACKAGE.glob("*.py")} - {"__init__"}
    assert files >= FACES
    assert len(files - FACES) <= 6
    for face in FACES:
        assert (PACKAGE / f"{face}.py").read_text().count("\n") <= 40


@pytest.mark.parametrize("folder", ["benchmarks", "configs", "launch"])
def test_scripts_and_configs_import_no_face(folder):
    for path in (ROOT / folder).glob("*.py"):
        assert {room for _, room in imported_rooms(path.read_text(), "", ())} & FACES == set(), path


@pytest.mark.parametrize(
    ("place", "line"),
    [
        ("policy/score.py", "from gfn_jax.replay import add"),
        ("policy/score.py", "from gfn_jax import replay"),
        ("policy/score.py", "import gfn_jax.replay as buffer"),
        ("policy/score.py", "def f():\n    from gfn_jax.training import step"),
        ("policy/score.py", "from ..replay import add"),
        ("policy/score.py", "from .. import replay"),
        ("algorithms/gflownet.py", "from gfn_jax.tasks import arithmetic"),
        ("tasks/arithmetic.py", "from gfn_jax.algorithms import gflownet"),
        ("tasks/arithmetic.py", "from gfn_jax.training import step"),
        ("evaluation/arithmetic.py", "from gfn_jax.tasks import arithmetic"),
        ("models/decoder.py", "from gfn_jax.text import tokens"),
        ("rewards/compose.py", "from gfn_jax.environments import NoTool"),
        ("training/loop.py", "from gfn_jax.evaluation import accuracy"),
        ("training/loop.py", "from gfn_jax.runs.build import build"),
        ("runs/build.py", "from gfn_jax.commands import sampling"),
        ("runs/build.py", "from gfn_jax.launch import main"),
        ("runs/build.py", "from gfn_jax import benchmark"),
        ("commands/train.py", "from gfn_jax.launch import main"),
        ("benchmark.py", "from gfn_jax.launch import main"),
        ("launch.py", "from gfn_jax.runs.build import build"),
        ("objectives/subtb.py", "from gfn_jax.policy.score import score"),
        ("objectives/subtb.py", "from gfn_jax.interfaces import Reward"),
        ("types.py", "from gfn_jax.interfaces import Reward"),
    ],
)
def test_a_wrong_import_is_found(place, line):
    assert len(faults(PACKAGE / place, line)) == 1


@pytest.mark.parametrize(
    ("place", "line"),
    [
        ("policy/score.py", "from gfn_jax.policy.constraint import Constraint"),
        ("policy/score.py", "from .constraint import Constraint"),
        ("policy/score.py", "from gfn_jax.models import decoder"),
        ("objectives/mixture.py", "from gfn_jax.objectives.subtb import subtb"),
        ("objectives/mixture.py", "from gfn_jax.types import PolicyScores"),
        ("launch.py", "from gfn_jax.commands import train"),
        ("commands/train.py", "from gfn_jax.runs.build import build"),
        ("tasks/arithmetic.py", "from gfn_jax.evaluation.arithmetic import ArithmeticEvaluator"),
        ("training/loop.py", "import jax"),
        ("training/loop.py", "from gfn_jax.errors import TrainingStopped"),
    ],
)
def test_a_right_import_is_let_be(place, line):
    assert faults(PACKAGE / place, line) == []
