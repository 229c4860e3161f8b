"""Tasks by name: an entry is imported when a config names it, and not before."""

import pathlib
import subprocess
import sys

import pytest

from gfn_jax.runs.registry import TASKS, task_entry

ROOT = pathlib.Path(__file__).parents[2]
LOADED = """
import sys
import gfn_jax.launch, gfn_jax.runs.build, gfn_jax.training.step
tasks = {tasks!r}

def loaded():
    return [f"{{room}}.{{name}}" for room in ("tasks", "evaluation") for name in tasks
            if f"gfn_jax.{{room}}.{{name}}" in sys.modules]

assert loaded() == [], loaded()
from gfn_jax.commands.train import parse
from gfn_jax.runs.config import read
read(parse(["launch", "--config=configs/rng.py"]).config)
assert loaded() == ["tasks.random_numbers", "evaluation.random_numbers"], loaded()
"""


def test_only_the_named_task_is_imported():
    code = LOADED.format(tasks=list(TASKS))
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", TASKS)
def test_a_task_has_the_section_of_its_name(name):
    assert task_entry(name).section == name
