"""Reads every import in the package and holds it to the order of the rooms: imports point down only."""

import ast
import pathlib
from collections.abc import Iterator

import pytest

PACKAGE = pathlib.Path(__file__).parents[1] / "gfn_jax"

# From the ground up. Rooms of one level do not know each other.
LEVELS = (
    {"types", "errors", "sections"},
    {"models", "text"},
    {"datasets", "interfaces"},
    {"policy"},
    {"objectives", "rewards", "replay", "environments", "worlds"},
    {"algorithms", "tasks"},
    {"training", "evaluation"},
    {"runs"},
    {"commands"},
)
TOP = len(LEVELS)  # launch, and every other module that is a command
LEVEL = {room: level for level, rooms in enumerate(LEVELS) for room in rooms}
# Objectives see arrays only.
ONLY = {"objectives": {"types"}}


def level_of(room: str) -> int:
    """A module beside the rooms is a command and sits at the top; a folder must be given its level here."""
    if room in LEVEL:
        return LEVEL[room]
    assert not (PACKAGE / room).is_dir(), f"gfn_jax/{room} is a room that has no level in {pathlib.Path(__file__).name}"
    return TOP


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
        below = level_of(other) < level_of(room) or level_of(room) == TOP
        if not below or other not in ONLY.get(room, {other}):
            found.append(f"{path.relative_to(PACKAGE.parent)}:{line}: {room} may not import {other}")
    return found


def test_imports_point_down_only():
    paths = sorted(PACKAGE.rglob("*.py"))
    assert len(paths) > 20
    assert [fault for path in paths for fault in faults(path, path.read_text())] == []


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
        ("models/decoder.py", "from gfn_jax.text import tokens"),
        ("rewards/compose.py", "from gfn_jax.environments import NoTool"),
        ("training/loop.py", "from gfn_jax.evaluation import accuracy"),
        ("training/loop.py", "from gfn_jax.runs.build import build"),
        ("runs/build.py", "from gfn_jax.commands import sampling"),
        ("runs/build.py", "from gfn_jax.launch import main"),
        ("runs/build.py", "from gfn_jax import benchmark"),
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
        ("launch.py", "from gfn_jax.runs.build import build"),
        ("benchmark.py", "from gfn_jax.launch import parse"),
        ("training/loop.py", "import jax"),
        ("training/loop.py", "from gfn_jax.errors import TrainingStopped"),
    ],
)
def test_a_right_import_is_let_be(place, line):
    assert faults(PACKAGE / place, line) == []
