"""What every registered task must hold, whoever wrote it: a new line in `TASKS` is tested by these unasked."""

import dataclasses
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gfn_jax.commands import dry_run
from gfn_jax.commands.config_flag import load_config
from gfn_jax.commands.train import parse
from gfn_jax.models.checkpoint import load_model, read_config
from gfn_jax.models.language_model import LanguageModel
from gfn_jax.policy.constraint import Rules
from gfn_jax.policy.rollout import Behavior, rollout
from gfn_jax.policy.teacher import teacher_force
from gfn_jax.runs.build import build
from gfn_jax.runs.config import read_policy_run
from gfn_jax.runs.policy import policy_parts
from gfn_jax.runs.registry import TASKS, task_entry
from gfn_jax.text.loading import load_tokenizer, model_folder
from gfn_jax.training import mesh as meshes
from gfn_jax.training.loop import train

CONFIGS = pathlib.Path(__file__).parents[2] / "configs"
ONE = meshes.MeshConfig(1, 1, 1)
OWN = "configs.own_task:TASK"  # the guide's example is held to the same
# What an evaluator is asked for here; a task that is not listed is evaluated as its config says.
EVALUATION = {
    "arithmetic": {
        "questions": 2,
        "samples": 2,
        "test_questions": 2,
        "batch": 2,
        "diverse_questions": 2,
        "diverse_samples": 2,
    },
    "continuation": {"prompts": 4, "samples": 2, "batch": 4, "beams": False, "diverse_groups": 0},
    "infilling": {"stories": 2, "test_stories": 2, "samples": 2, "batch": 2},
    "random_numbers": {"samples": 64, "batch": 64},
    "subjectivity": {"reviews": 4, "samples": 2, "batch": 4},
    OWN: {"samples": 2},
}


def configs():
    """Task -> (the file of its config, its presets)."""
    found = {}
    for path in sorted(CONFIGS.glob("*.py")):
        task = load_config(str(path)).get("task")
        if task in TASKS or task == OWN:
            found[task] = path
    return found


FILES = configs()


@pytest.fixture(autouse=True)
def at_the_root(monkeypatch):
    """As a user would: `configs.own_task` is imported from the checkout."""
    monkeypatch.syspath_prepend(str(CONFIGS.parent))


def config_of(name, *overrides, preset="tiny"):
    suffix = "" if name == OWN else f":{preset}"
    return parse(["launch", f"--config={FILES[name]}{suffix}", *overrides]).config


def small_config(name):
    config = config_of(name)
    with config.unlocked():
        config.steps, config.save_every = 2, 2
        config.sampling.update({"queries": 1, "samples": 4, "micro_batches": 1})
        config.replay.samples = 2
        config.replay.update({"discovery_steps": 0, "capacity": 4})
        config.optimizer.warmup_steps = 0
        config.objective.imitation_steps = 0
        config.evaluation.update({"every": 2, **EVALUATION.get(name, {})})
        config.certificate.queries = 0
    return config


@dataclasses.dataclass(frozen=True)
class World:
    name: str
    config: object
    model: object
    base: object
    parts: object
    tokenizer: object


@pytest.fixture(scope="module", params=[*TASKS, OWN])
def world(request):
    name = request.param
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(CONFIGS.parent))
        config = small_config(name)
        folder = model_folder(config.model.path)
        model, params = load_model(folder)
        tokenizer = load_tokenizer(folder)
        parts = policy_parts(read_policy_run(config), model, tokenizer, meshes.abstract_mesh(ONE))
        return World(name, config, model, LanguageModel(model, params), parts, tokenizer)


def test_every_task_has_a_config():
    assert set(FILES) == {*TASKS, OWN}


def test_the_table_of_queries(world):
    task = world.parts.task
    query, weight = task.queries("train"), np.asarray(task.query_weight())
    count = len(query.example_id)
    assert np.asarray(query.example_id).tolist() == list(range(count))
    assert weight.shape == (count,)
    assert (weight >= 0).all()
    assert weight.sum() > 0
    for tokens, left in ((query.prompt, True), (query.context, True), (query.answer, False)):
        ids, mask = np.asarray(tokens.ids), np.asarray(tokens.mask)
        assert len(ids) == count
        assert (ids >= 0).all()
        assert (ids < world.model.vocab_size).all()
        steps = np.diff(mask.astype(int), axis=1)
        assert (steps >= 0 if left else steps <= 0).all(), "padding stands on one side"
    assert np.asarray(query.prompt.mask).any(1).all()
    assert np.asarray(query.context.mask).any(1).all()


def test_the_constraint(world):
    task = world.parts.task
    training, testing = task.constraint(), task.constraint(training=False)
    assert training.stop_id == testing.stop_id
    assert int(training.is_stop.sum()) == 1
    assert len(training.column_of) == world.model.vocab_size
    assert isinstance(task.decode([training.stop_id]), str)


def test_seeds_keep_to_the_constraint(world):
    task = world.parts.task
    seeds, constraint = task.seeds(), task.constraint()
    count = len(seeds.length)
    assert seeds.completion.shape == (count, constraint.horizon)
    if not count:
        return
    assert len(set(np.asarray(seeds.example_id).tolist())) == len(seeds.example_id)
    assert count % len(seeds.example_id) == 0
    assert int(seeds.example_id.max()) < len(task.queries("train").example_id)
    assert int(seeds.length.min()) >= constraint.min_length
    forced = teacher_force(seeds.completion, seeds.length, Rules(constraint, task.environment))
    refused = ~np.asarray(forced.action_mask).any(1)  # a row that could not have been written has no action left
    assert not refused.any(), [task.decode(np.asarray(row).tolist()) for row in np.asarray(seeds.completion)[refused]]


def test_rewards_of_what_the_base_samples_are_finite(world):
    task, reward = world.parts.task, world.parts.reward
    rules = Rules(task.constraint(), task.environment)
    query = jax.tree.map(lambda x: jnp.asarray(x[:2]), task.queries("train"))

    @jax.jit
    def sample(base):
        drawn = rollout(base, query.prompt, rules, Behavior.at(1.0, 4), jax.random.key(0))
        return drawn, reward.log_reward(base, reward.prepare(base), query, drawn)

    drawn, log_reward = sample(world.base)
    states = np.asarray(drawn.state_mask)
    assert states.any(1).all(), "every completion ends in a state that counts"
    assert np.isfinite(np.asarray(log_reward)[states]).all()
    assert all(isinstance(task.decode(np.asarray(ids).tolist()), str) for ids in drawn.completion)


QUICK = "random_numbers"  # the others compile for long; each has tests of its own that are not slow


@pytest.mark.parametrize(
    "name", [QUICK, *(pytest.param(name, marks=pytest.mark.slow) for name in (*TASKS, OWN) if name != QUICK)]
)
def test_a_run_from_its_first_step_to_its_last_word(name, tmp_path):
    config = small_config(name)
    run = build(config, tmp_path).run
    before = jax.device_get(run.state.trainable)
    trained = train(run)
    moved = jax.tree.map(lambda a, b: np.abs(a - np.asarray(b)).max(), before.lora, trained.state.trainable.lora)
    assert max(jax.tree.leaves(moved)) > 0
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in lines if "loss" in line]
    assert losses
    assert np.isfinite(losses).all()
    page = run.finish(trained)
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["task"] == name
    base = next(value for key, value in results.items() if key.startswith("base"))
    assert set(results["policy"]) & set(base), "the base is measured by the same names"
    assert str(tmp_path / "results.json") in page
    assert (tmp_path / "adapter" / "adapter_config.json").is_file()
    assert (tmp_path / "adapter" / "README.md").is_file()


@pytest.mark.parametrize("name", TASKS)
def test_the_papers_preset_is_planned(name, monkeypatch):
    monkeypatch.setenv("HF_HUB_CACHE", "/nowhere")
    monkeypatch.setattr(dry_run, "activations", lambda *args: 0)  # traces the whole loss; tested with the command
    text = dry_run.dry_run(config_of(name, preset="paper"))
    assert "parameters" in text
    assert "TFLOP" in text


def test_first_tokens_that_nothing_would_train_are_refused():
    """SubTB alone, where Z may not stop at once: what it chose before cancels out of every pair."""
    config = config_of("continuation", "--config.objective.terms.vargrad=0.0")
    folder = model_folder(config.model.path)
    model, tokenizer, mesh = read_config(folder)[1], load_tokenizer(folder), meshes.abstract_mesh(ONE)
    with pytest.raises(ValueError, match="min_length 1"):
        policy_parts(read_policy_run(config), model, tokenizer, mesh)
    config.continuation.min_length = 0
    policy_parts(read_policy_run(config), model, tokenizer, mesh)


@pytest.mark.parametrize("name", ["continuation", "infilling"])
def test_a_tokenizer_of_another_world_is_refused(name):
    folder = model_folder("tiny-arithmetic")
    model, tokenizer = read_config(folder)[1], load_tokenizer(folder)
    with pytest.raises(ValueError, match=r"prompts hold words that the model's tokenizer does not know \(<unk>\)"):
        policy_parts(read_policy_run(config_of(name)), model, tokenizer, meshes.abstract_mesh(ONE))


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("nonsense", "there are arithmetic"),
        ("configs.own_task:NOTHING", "cannot be imported"),
        ("json:dumps", "must be a gfn_jax.tasks.task.TaskEntry"),
    ],
)
def test_a_task_that_is_none(name, problem):
    with pytest.raises(ValueError, match=problem):
        task_entry(name)
