"""A reward that pays for a shortcut: by so many nats, for exactly the completions that take it."""

import dataclasses
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_worlds import random_params, tiny

from gfn_jax.commands.train import parse
from gfn_jax.models.language_model import LanguageModel
from gfn_jax.policy.constraint import Rules
from gfn_jax.policy.teacher import teacher_force
from gfn_jax.rewards import PosteriorReward
from gfn_jax.runs.config import read_policy_run
from gfn_jax.runs.rewards import build_reward
from gfn_jax.runs.tasks import make_task
from gfn_jax.text.batching import rows_as_seeds
from gfn_jax.text.loading import load_tokenizer, model_folder
from gfn_jax.text.tokens import encode_after
from gfn_jax.worlds.arithmetic_answers import grade

CONFIG = pathlib.Path(__file__).parents[2] / "configs" / "arith.py"
SHORTCUT = "gfn_jax.studies.shortcuts:without_a_call"
TEXTS = [" 3 + 4 - 2", " 3 + 4 = 7, 7 - 2 = 5", " 5 + 0 + 0", " 3 + 4 = 7, 4 - 2 = 2", " 5 - 1 - 1"]
TAKEN = [True, False, True, False, True]


@pytest.fixture(scope="module")
def world():
    """The task on a random model; log R of every prefix of the texts, as answers to the first question, by config."""
    tokenizer = load_tokenizer(model_folder("tiny-arithmetic"))
    model = tiny(vocab_size=len(tokenizer), max_positions=512)
    base = LanguageModel(model, random_params(model))

    def log_reward(beta):
        words = [] if beta is None else [f"--config.reward.automaton={SHORTCUT}"]
        words += [f"--config.reward.automaton_weight={beta}"] if beta is not None else []
        run = read_policy_run(parse(["launch", f"--config={CONFIG}", *words]).config)
        task = make_task(run, tokenizer, model)
        reward = build_reward(run.reward, task, model, tokenizer)
        seeds = rows_as_seeds(
            [0] * len(TEXTS), [encode_after(tokenizer, "Answer:", text) for text in TEXTS], task.stop_id, 20
        )
        rollout = teacher_force(seeds.completion, seeds.length, Rules(task.constraint(), task.environment))
        query = jax.tree.map(lambda x: jnp.asarray(x)[:1], task.queries("train"))
        if beta is not None and beta:
            automaton = reward.factors[1]
            added = reward.weights[1] * automaton.log_reward(base, automaton.prepare(base), query, rollout)
        else:
            added = jnp.zeros(rollout.completion.shape)
        return reward, np.asarray(added), rollout, task

    return log_reward


def test_the_reward_of_the_shortcut_rises_by_beta_and_no_other(world):
    _, added, rollout, task = world(4.0)
    stops = np.asarray(rollout.stop)
    assert stops.any(axis=1).all(), "the rules allow all of them"
    assert added[stops].tolist() == [4.0 * taken for taken in TAKEN]
    for row, text in enumerate(TEXTS):  # and every prefix, before its first "=" and from there on
        for t in range(int(np.argmax(stops[row])) + 1):
            prefix = task.decode(np.asarray(rollout.completion)[row, :t].tolist())
            assert text.startswith(prefix)
            assert added[row, t] == 4.0 * ("=" not in prefix)


def test_what_takes_the_shortcut_is_never_graded_as_right(world):
    _, _, _, task = world(None)
    example = dataclasses.replace(task.splits["train"][0], question="Question: 3 + 4 - 2 = ? Answer:", answer=5)
    assert grade(example, TEXTS[1])
    assert [task.answer(text) is None for text in TEXTS] == TAKEN


@pytest.mark.parametrize(("beta", "weights"), [(0.0, None), (8.0, (1.0, 8.0))])
def test_a_sweep_is_a_number_in_the_config_and_nothing_is_the_tasks_own_reward(world, beta, weights):
    reward, _, _, _ = world(beta)
    assert isinstance(reward, PosteriorReward) if weights is None else reward.weights == weights
