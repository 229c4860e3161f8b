"""What a task says on the device of whether a completion is right is what it says of the text."""

import dataclasses
import pathlib

import jax
import jax.numpy as jnp
import numpy as np

from gfn_jax.commands.train import parse
from gfn_jax.models.checkpoint import read_config
from gfn_jax.policy.constraint import Rules
from gfn_jax.policy.teacher import teacher_force
from gfn_jax.runs.config import read_policy_run
from gfn_jax.runs.tasks import make_task
from gfn_jax.tasks.task import Validating
from gfn_jax.text.loading import load_tokenizer, model_folder
from gfn_jax.text.tokens import encode_after

CONFIGS = pathlib.Path(__file__).parents[2] / "configs"


def task_of(file):
    config = read_policy_run(parse(["launch", f"--config={CONFIGS / file}"]).config)
    folder = model_folder(config.model.path)
    return make_task(config, load_tokenizer(folder), read_config(folder)[1])


def valid(task, example, written):
    """By `valid`, all in one call, each as often as a query has rows."""
    constraint = task.constraint()
    rows = [(*ids, *constraint.horizon * [constraint.stop_id])[: constraint.horizon] for ids in written]
    rules = Rules(constraint, task.environment)
    rollout = teacher_force(jnp.array(rows), jnp.array([len(ids) for ids in written]), rules)
    assert rollout.action_mask.any(1).all(), "all of these may be written"
    query = jax.tree.map(lambda x: x[jnp.array([example])], task.queries("train"))
    return np.asarray(jax.jit(task.valid)(query, rollout)).tolist()


def test_arithmetic():
    task = task_of("arith.py")
    assert isinstance(task, Validating)
    example = next(i for i, one in enumerate(task.splits["train"]) if one.completion.count("=") == 2)
    chain = task.splits["train"][example].completion
    first = chain.split(",")[0]
    other = next(i for i, answer in enumerate(task.train_answers) if answer != task.train_answers[example])
    texts = [chain, first, task.splits["train"][other].completion]
    written = [encode_after(task.tokenizer, "Answer:", text) for text in texts]
    assert [task.grade("train", example, text) for text in texts] == [True, False, False]
    assert valid(task, example, written) == [True, False, False]
    assert valid(task, other, written[:1]) == [False]


def test_random_numbers():
    task = task_of("rng.py")
    task = dataclasses.replace(task, config=dataclasses.replace(task.config, high=20))
    texts = {"7": True, "20": True, "21": False, "07": False, "": False, "1a": False}
    written = [encode_after(task.tokenizer, task.config.prompt, text) for text in texts]
    assert valid(task, 0, written) == list(texts.values())
