"""Expectation maximisation: what an M-step learns from, what an E-step is rewarded by, and a whole round."""

import json
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from tiny_worlds import random_params, tiny

from gfn_jax.algorithms.language_model import epoch_order
from gfn_jax.launch import main, parse
from gfn_jax.runs import em as em
from gfn_jax.runs.em import EMConfig, build_em, e_step_config, fit, joined_rows, m_step_optimizer, shown
from gfn_jax.sections import section
from gfn_jax.text.batching import pad_left, pad_right
from gfn_jax.training.loop import Trained
from gfn_jax.types import Query, Tokens


def config_of(*overrides):
    return parse(["launch", "--config=configs/subj.py:em", *overrides]).config


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
    config = config_of()
    own = e_step_config(config, tmp_path)
    assert own.em.rounds == 0
    assert own.subjectivity.reward_adapter == str(tmp_path)
    assert config.em.rounds == 1
    assert config.subjectivity.reward_adapter is None


def test_what_cannot_be_is_refused_before_anything_is_computed(tmp_path):
    with pytest.raises(ValueError, match=r"em\.steps is 0"):
        build_em(config_of("--config.em.steps=0"), tmp_path)
    arithmetic = parse(["launch", "--config=configs/arith.py"]).config.unlock()
    arithmetic.em = config_of().em
    with pytest.raises(ValueError, match="'arithmetic' has no reward_adapter"):
        build_em(arithmetic, tmp_path)


def test_an_m_steps_order_is_not_drawn_with_the_keys_of_dropout(tmp_path, monkeypatch):
    fitted = []
    monkeypatch.setattr(em, "train", lambda run: fitted.append(run) or Trained(run.state, 0, 0.0, 0.0))
    config = config_of()
    settings = section(EMConfig, config, "em")
    documents, learnt = Tokens(np.ones((40, 3), np.int32), np.ones((40, 3), bool)), np.ones((40, 3), bool)
    model = tiny()
    fit(config, settings, tmp_path, model, random_params(model), documents, learnt)
    corpus = fitted[0].constants
    assert (epoch_order(corpus.root, 40, settings.batch, settings.steps) != corpus.order).any()


def test_an_m_step_is_checked_with_its_own_settings_before_the_e_step(tmp_path, monkeypatch):
    """Of an optimizer that is the E-step's in all else: its 200 steps of warm-up are not the M-step's."""
    words = ["launch", "--config=configs/subj.py:paper", "--config.em.rounds=1"]
    config = parse(words).config
    own = m_step_optimizer(config, section(EMConfig, config, "em"))
    assert (own.total_steps, own.warmup_steps, own.learning_rate, own.decay) == (100, 10, 1e-4, "constant")
    monkeypatch.setattr(em, "build_gflownet", lambda *args: pytest.fail("the E-step was built"))
    for setting, message in {
        "warmup_steps=100": r"^em\.warmup_steps is 100; it must be less than em\.steps, 100",
        "learning_rate=-1.0": r"^em\.learning_rate is -1\.0; it must",
    }.items():
        with pytest.raises(ValueError, match=message):
            build_em(parse([*words, f"--config.em.{setting}"]).config, tmp_path)
    monkeypatch.setattr(em.meshes, "make_mesh", lambda _: SimpleNamespace(shape={"data": 6, "fsdp": 1, "tensor": 1}))
    with pytest.raises(ValueError, match=r"em\.batch of 32 does not divide over 6 devices"):
        build_em(config, tmp_path)


def test_a_round_is_described_by_what_the_task_measures():
    """By the metric that its best checkpoint is kept by; all of them where there is none."""
    found = {"exact": 0.25, "nats": 1.5, "texts": ["a"]}
    assert shown(found, SimpleNamespace(best_metric="exact")) == "exact 0.25"
    for best in (None, "accuracy"):
        assert shown(found, SimpleNamespace(best_metric=best)) == "exact 0.25, nats 1.5"


@pytest.mark.slow
def test_two_rounds_end_with_a_table_and_go_on_where_they_were_stopped(tmp_path, capsys):
    small = [
        "--config.steps=2",
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
    assert found["metrics"] == found["m_step_2"]
    assert {"base", "zero_shot", "few_shot", "e_step_1", "m_step_1", "e_step_2", "rationales"} <= set(found)
    second = json.loads((tmp_path / "e_step_2" / "config.json").read_text())
    assert second["subjectivity"]["reward_adapter"] == str(tmp_path / "m_step_1" / "adapter")
    assert main(command) == 0  # all of it is done: the same again
    again = json.loads((tmp_path / "results.json").read_text())
    assert {name: again[name] for name in ("metrics", "e_step_2")} == {
        name: found[name] for name in ("metrics", "e_step_2")
    }
    jax.clear_caches()
