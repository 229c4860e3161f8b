"""Every method on every task: it builds, steps are taken, and taken again from where they were interrupted; in CI on
the smallest task, but for methods that `test_algorithms.py` has there; with `-m slow` on all. `--dry_run` knows the
memory of each.

What cannot be is refused in one line: a method that needs demonstrations on a task that has none.
"""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conformance.test_tasks import OWN, at_the_root, small_config  # noqa: F401

from gfn_jax.commands import dry_run
from gfn_jax.models.checkpoint import load_model
from gfn_jax.models.language_model import LanguageModel
from gfn_jax.runs.config import read_policy_run
from gfn_jax.runs.policy import initial, policy_parts
from gfn_jax.runs.registry import ALGORITHMS, TASKS, algorithm_entry
from gfn_jax.text.loading import load_tokenizer, model_folder
from gfn_jax.training import mesh as meshes
from gfn_jax.training.step import make_step

ONE = meshes.MeshConfig(1, 1, 1)
# STaR is several runs, of supervised fine-tuning on what it has found: tests/runs/test_star.py.
STEPS = [name for name in ALGORITHMS if algorithm_entry(name).program is None]
PAIRS = list(itertools.product([*TASKS, OWN], STEPS))
QUICK = {("random_numbers", method) for method in ("weighted_sft", "reinforce", "rloo", "grpo")}
# Where a task has nobody's completions to learn from, or nobody who grades them.
REFUSED = {("sft", task) for task in ("random_numbers", "continuation", OWN)}


def config_of(task, method):
    config = small_config(task)
    config.algorithm = method
    return config


@functools.cache
def base_of(path):
    model, params = load_model(model_folder(path))
    return model, LanguageModel(model, params), load_tokenizer(model_folder(path))


def started(task, method):
    """The step, its constants and its first state."""
    config = read_policy_run(config_of(task, method))
    model, base, tokenizer = base_of(config.model.path)
    parts = policy_parts(config, model, tokenizer, meshes.abstract_mesh(ONE))
    _ = parts.task.environment
    return config, parts, base


@pytest.mark.parametrize(
    ("task", "method"),
    [
        pytest.param(task, method, marks=[] if (task, method) in QUICK else pytest.mark.slow)
        for task, method in PAIRS
        if (method, task) not in REFUSED
    ],
)
def test_steps_are_taken_and_taken_again(task, method):
    config, parts, base = started(task, method)
    constants, state = initial(config, parts, base)
    step = jax.jit(make_step(parts.algorithm, parts.optimizer))
    states, found = [state], []
    for _ in range(3):
        state, metrics = step(states[-1], constants)
        states.append(state)
        found.append(metrics)
    assert np.isfinite([float(value) for metrics in found for value in metrics.values()]).all()
    again, metrics = step(jax.tree.map(jnp.array, jax.device_get(states[2])), constants)
    jax.tree.map(np.testing.assert_array_equal, (again, metrics), (states[3], found[2]))
    before, after = (jax.device_get(x.trainable.lora) for x in (states[0], states[3]))
    assert max(jax.tree.leaves(jax.tree.map(lambda a, b: np.abs(a - b).max(), before, after))) > 0


@pytest.mark.parametrize(
    "method", [name if name in ("ppo", "sft") else pytest.param(name, marks=pytest.mark.slow) for name in ALGORITHMS]
)
def test_its_memory_is_known(method, monkeypatch):
    monkeypatch.setattr(dry_run, "activations", lambda *args: 0)  # traces the whole loss; tested with the command
    task = "arithmetic" if method in ("sft", "star") else "random_numbers"
    plan = dry_run.estimate(config_of(task, method))
    config, parts, base = started(task, method)
    _, state = jax.eval_shape(functools.partial(initial, config, parts), base)
    held = {"memory": state.memory, "adapter": state.trainable, "optimizer": state.opt_state}
    sizes = {name: sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(tree)) for name, tree in held.items()}
    assert plan.memory["buffer"] == sizes["memory"]
    assert plan.memory["adapter"] == sizes["adapter"]
    assert plan.memory["optimizer"] == sizes["optimizer"]


@pytest.mark.parametrize(("method", "task"), sorted(REFUSED))
def test_what_cannot_be_is_one_line(task, method):
    problem = f"algorithm {method} needs demonstrations; the task {task} has none"
    with pytest.raises(ValueError, match=problem) as caught:
        started(task, method)
    assert "\n" not in str(caught.value)
