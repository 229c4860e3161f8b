"""What docs/own.md says of a task of one's own is so: what state t sees, an evaluator that measures nothing."""

import dataclasses
import importlib
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from documents import ROOT
from tiny_files import loaded

from gfn_jax.evaluation.report import Findings
from gfn_jax.policy.constraint import make_constraint
from gfn_jax.rewards import PosteriorReward
from gfn_jax.runs.build import build
from gfn_jax.runs.defaults import policy_config
from gfn_jax.runs.registry import ALGORITHMS, TASKS
from gfn_jax.sections import Count
from gfn_jax.tasks.task import TaskEntry
from gfn_jax.text.batching import make_seeds, pad_left, pad_right
from gfn_jax.text.tokens import encode_after
from gfn_jax.types import Query, Rollout


@dataclasses.dataclass(frozen=True)
class Nothing:
    """An evaluator as the guide has it where nothing is to be measured."""

    every: int
    best_metric = None

    def validate(self, model):
        return {}

    def describe(self, validated):
        return ""

    def report(self, model):
        return Findings({"policy": {}}, "")


@dataclasses.dataclass(frozen=True)
class Config:
    length: Count


@dataclasses.dataclass(frozen=True)
class EvaluationConfig:
    every: Count


@dataclasses.dataclass(frozen=True)
class ToTheEnd:
    """Z goes to the end of the text: that token is the stop, and all of Y."""

    config: Config
    tokenizer: object
    vocab_size: int

    @property
    def environment(self):
        from gfn_jax.environments import NoTool

        return NoTool()

    def queries(self, split):
        prompt = pad_left([encode_after(self.tokenizer, "", "Tom took a")], self.tokenizer.eos_token_id)
        answer = pad_right([[self.tokenizer.eos_token_id]], self.tokenizer.eos_token_id)
        return Query(example_id=jnp.arange(1), prompt=prompt, context=prompt, answer=answer)

    def query_weight(self):
        return np.ones(1)

    def constraint(self, training=True):
        return make_constraint(self.vocab_size, self.tokenizer.eos_token_id, self.config.length)

    def reward(self, model):
        return PosteriorReward()

    def seeds(self):
        return make_seeds([], [], self.tokenizer.eos_token_id, self.config.length)

    def decode(self, ids):
        return self.tokenizer.decode(ids)


TASK = TaskEntry(
    section="ending",
    config=Config,
    evaluation=EvaluationConfig,
    task=lambda config, tokenizer, model: ToTheEnd(config, tokenizer, model.vocab_size),
    evaluator=lambda config, task, model, temperature: Nothing(config.every),
    stand_in="tiny-stories",
)


@pytest.mark.slow
def test_a_task_that_stops_at_the_end_of_text_and_measures_nothing(tmp_path):
    config = policy_config(f"{__name__}:TASK")
    config.update_from_flattened_dict(
        {"steps": 2, "model.path": "tiny-stories", "sampling.queries": 1, "sampling.samples": 4, "replay.samples": 1}
    )
    config.update_from_flattened_dict({"optimizer.warmup_steps": 1, "certificate.queries": 0, "lora.rank": 2})
    config.ending = {"length": 3}
    config.evaluation = {"every": 1}
    build(config, tmp_path).complete()
    assert '"policy": {}' in (tmp_path / "results.json").read_text()
    assert (tmp_path / "adapter" / "adapter_config.json").is_file()


def test_state_t_sees_the_tokens_before_column_t(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT))
    own = importlib.import_module("configs.own_task")
    counted = own.WordCount(np.array([True, True, False]), words=2, penalty=1.0)
    completion = jnp.array([[0, 1, 1, 2]])
    mask = jnp.array([[True, True, True, False]])
    rollout = Rollout(completion, mask, jnp.ones_like(mask), jnp.ones_like(mask), jnp.zeros((1, 4)))
    log_reward = counted.log_reward(None, counted.prepare(None), None, rollout)
    assert jax.device_get(log_reward).tolist() == [[-2.0, -1.0, 0.0, -1.0]]


@pytest.mark.parametrize("name", ALGORITHMS)
def test_every_algorithm_is_in_the_table_of_methods(name):
    assert f"\n| `{name}` |" in (ROOT / "docs" / "methods.md").read_text()


@pytest.mark.parametrize("name", TASKS)
def test_every_task_has_a_page_with_its_sections_keys(name):
    config = TASKS[name].partition(":")[0]
    text = (ROOT / "docs" / "tasks" / f"{name}.md").read_text()
    (directive,) = [line for line in text.splitlines() if line.startswith("::: ")]
    module, _, cls = directive.removeprefix("::: ").rpartition(".")
    assert (module, hasattr(importlib.import_module(module), cls)) == (config, True)


def test_the_faq_knows_every_metric_of_a_line_of_progress():
    from gfn_jax.runs.policy import PROGRESS

    text = (ROOT / "docs" / "faq.md").read_text()
    assert [name for name in PROGRESS if f"`{name}`" not in text] == []


def test_pictures_are_what_their_script_draws():
    pictures = loaded(ROOT / "docs" / "pictures.py")
    drawn = {name: draw() for name, draw in pictures.PICTURES.items()}
    there = {name: pathlib.Path(pictures.FOLDER / f"{name}.svg").read_text(encoding="utf-8") for name in drawn}
    assert drawn == there, "python docs/pictures.py"
