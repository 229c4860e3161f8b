"""Expectation maximisation: what an M-step learns from, what an E-step is rewarded by, and a whole round."""

import json
import os
import signal
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from tiny_worlds import random_params, tiny

from gfn_jax.algorithms.language_model import epoch_order
from gfn_jax.commands.train import parse
from gfn_jax.errors import TrainingStopped
from gfn_jax.launch import main
from gfn_jax.models.language_model import LanguageModel
from gfn_jax.runs import em
from gfn_jax.runs.build import build
from gfn_jax.runs.config import read_policy_run
from gfn_jax.runs.em import adapter_run, e_step_config, joined_rows, m_step_optimizer, shown
from gfn_jax.text.batching import pad_left, pad_right
from gfn_jax.training.loop import Trained
from gfn_jax.types import Query, Tokens


def config_of(*overrides):
    return parse(["launch", "--config=configs/subj.py:em", *overrides]).config


def run_of(*overrides):
    return read_policy_run(config_of(*overrides))


def test_rows_join_what_is_given_what_is_sampled_and_the_answer():
    prompt = pad_left([[5, 6], [7]], pad_id=0)
    query = Query(np.arange(2), prompt, prompt, pad_right([[8, 9], [3]], pad_id=0))
    documents, learnt = joined_rows(query, [[[1], [1, 2]], [[4, 4], []]])
    rows = [ids[mask].tolist() for ids, mask in zip(np.asarray(documents.ids), np.asarray(documents.mask), strict=True)]
    assert rows == [[5, 6, 1, 8, 9], [5, 6, 1, 2, 8, 9], [7, 4, 4, 3], [7, 3]]
    assert [np.asarray(documents.ids)[i][learnt[i]].tolist() for i in range(4)] == [
        [1, 8, 9],
        [1, 2, 8, 9],
        [4, 4, 3],
        [3],
    ]


def test_an_e_step_is_a_plain_run_with_the_rounds_reward_model(tmp_path):
    config = run_of()
    own = e_step_config(config, tmp_path)
    assert own.em is None
    assert own.task.reward_adapter == own.reward_adapter == str(tmp_path)
    plain = run_of("--config.em.rounds=0", f"--config.subjectivity.reward_adapter={tmp_path}")
    assert own.described == plain.described, "its workdir belongs to the config that it would have alone"
    assert config.described == run_of().described
    assert (config.em.rounds, config.reward_adapter) == (1, None)


def test_what_cannot_be_is_refused_before_anything_is_computed(tmp_path):
    with pytest.raises(ValueError, match=r"em\.steps is 0"):
        build(config_of("--config.em.steps=0"), tmp_path)
    arithmetic = parse(["launch", "--config=configs/arith.py"]).config.unlock()
    arithmetic.em = config_of().em
    with pytest.raises(ValueError, match="'arithmetic' has no reward_adapter"):
        build(arithmetic, tmp_path)


def test_an_m_steps_order_is_not_drawn_with_the_keys_of_dropout(tmp_path):
    config = run_of()
    documents, learnt = Tokens(np.ones((40, 3), np.int32), np.ones((40, 3), bool)), np.ones((40, 3), bool)
    base = LanguageModel(tiny(), random_params(tiny()))
    run = adapter_run(config, config.em, tmp_path, base, documents, learnt)
    corpus = run.constants
    assert (epoch_order(corpus.root, 40, config.em.batch, config.em.steps) != corpus.order).any()
    assert (run.num_steps, run.samples_per_step) == (config.em.steps, config.em.batch)


def test_an_m_step_is_checked_with_its_own_settings_before_the_e_step(tmp_path, monkeypatch):
    """Of an optimizer that is the E-step's in all else: its 200 steps of warm-up are not the M-step's."""
    words = ["launch", "--config=configs/subj.py:paper", "--config.em.rounds=1"]
    config = read_policy_run(parse(words).config)
    own = m_step_optimizer(config.optimizer, config.em)
    assert (own.total_steps, own.warmup_steps, own.learning_rate, own.decay) == (100, 10, 1e-4, "constant")
    monkeypatch.setattr(em, "build_policy", lambda *args: pytest.fail("the E-step was built"))
    for setting, message in {
        "warmup_steps=100": r"^em\.warmup_steps is 100; it must be less than em\.steps, 100",
        "learning_rate=-1.0": r"^em\.learning_rate is -1\.0; it must",
    }.items():
        with pytest.raises(ValueError, match=message):
            build(parse([*words, f"--config.em.{setting}"]).config, tmp_path)
    monkeypatch.setattr(em.meshes, "make_mesh", lambda _: SimpleNamespace(shape={"data": 6, "fsdp": 1, "tensor": 1}))
    with pytest.raises(ValueError, match=r"em\.batch of 32 does not divide over 6 devices"):
        build(parse(words).config, tmp_path)


def test_a_round_is_described_by_what_the_task_measures():
    """By the metric that its best checkpoint is kept by; all of them where there is none."""
    found = {"exact": 0.25, "nats": 1.5, "texts": ["a"]}
    assert shown(found, SimpleNamespace(best_metric="exact")) == "exact 0.25"
    for best in (None, "accuracy"):
        assert shown(found, SimpleNamespace(best_metric=best)) == "exact 0.25, nats 1.5"


@pytest.fixture
def rounds(tmp_path, monkeypatch):
    """Two rounds whose steps only say that they were completed, and leave a number each."""
    order = []

    def step(name):
        constants = SimpleNamespace(base=LanguageModel(None, None))
        return SimpleNamespace(workdir=tmp_path / name, best_metric=None, constants=constants)

    def completed(run):
        order.append(run.workdir.name)
        run.workdir.mkdir(exist_ok=True)
        found = {"task": "any", "seconds": 1.0, "policy": {"accuracy": float(len(order))}, "base": {"accuracy": 0.0}}
        (run.workdir / "results.json").write_text(json.dumps(found))
        state = SimpleNamespace(trainable=SimpleNamespace(lora=None))
        return Trained(state, 1, 1.5, 0.0), f"page of {run.workdir.name}"

    monkeypatch.setattr(em, "completed", completed)
    monkeypatch.setattr(em, "build_e_step", lambda config, workdir, number, command: step(f"e_step_{number}"))
    monkeypatch.setattr(em, "build_m_step", lambda config, em, workdir, number, *rest: step(f"m_step_{number}"))
    config = run_of("--config.em.rounds=2", "--config.seed=5")
    return em.EM(config, config.em, tmp_path, "the command", step("e_step_1")), order


def test_steps_are_completed_in_turn_and_tabled(rounds):
    program, order = rounds
    page = program.complete()
    assert order == ["e_step_1", "m_step_1", "e_step_2", "m_step_2"]
    assert page.startswith("page of m_step_2\n\nRound by round:\n  E-step 1: accuracy 1\n  M-step 1: accuracy 2\n")
    assert json.loads((program.workdir / "results.json").read_text()) == {
        "task": "subjectivity",
        "method": "gflownet_em",
        "seed": 5,
        "command": "the command",
        "seconds": 3.0,
        "budget": None,  # these steps do not say what they have spent
        "policy": {"accuracy": 4.0},
        "base": {"accuracy": 0.0},
        **{name: {"accuracy": n + 1.0} for n, name in enumerate(order)},
    }


def test_a_signal_between_two_steps_is_said(rounds, monkeypatch):
    program, order = rounds
    monkeypatch.setattr(em, "build_m_step", lambda *args: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(TrainingStopped, match="stopped; what the steps of EM have saved") as caught:
        program.complete()
    assert (caught.value.exit_code, order) == (128 + signal.SIGTERM, ["e_step_1"])


@pytest.mark.slow
def test_two_rounds_end_with_a_table_and_go_on_where_they_were_stopped(tmp_path, capsys):
    small = [
        "--config.steps=2",
        "--config.certificate.queries=0",
        "--config.em.rounds=2",
        "--config.em.steps=2",
        "--config.em.warmup_steps=0",
        "--config.optimizer.warmup_steps=1",
        "--config.subjectivity.labels=10",
        "--config.subjectivity.test=20",
        "--config.subjectivity.validation=10",
        "--config.evaluation.reviews=10",
        "--config.evaluation.batch=10",
    ]
    command = ["launch", "--config=configs/subj.py:em", *small, f"--workdir={tmp_path}"]
    assert main(command) == 0
    assert "M-step 2" in capsys.readouterr().out
    found = json.loads((tmp_path / "results.json").read_text())
    assert found["policy"] == found["m_step_2"]
    assert {"base", "zero_shot", "few_shot", "e_step_1", "m_step_1", "e_step_2", "rationales"} <= set(found)
    second = json.loads((tmp_path / "e_step_2" / "config.json").read_text())
    assert second["subjectivity"]["reward_adapter"] == str(tmp_path / "m_step_1" / "adapter")
    assert main(command) == 0  # all of it is done: the same again
    again = json.loads((tmp_path / "results.json").read_text())
    assert {name: again[name] for name in ("policy", "e_step_2")} == {
        name: found[name] for name in ("policy", "e_step_2")
    }
    jax.clear_caches()
