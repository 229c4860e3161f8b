"""Trials: the same for everybody, as many for every method, on validation, written down; what they choose."""

import json
import math
import os
import pathlib

import numpy as np
import pytest

from gfn_jax.commands import tune
from gfn_jax.commands.train import parse
from gfn_jax.runs.config import read
from gfn_jax.studies import tuning
from gfn_jax.studies.tuning import METHODS, SCORES, TUNED, Choice, Factor, Trial, best, draw, record_of, score, tuned

ROOT = pathlib.Path(__file__).parents[2]
FILES = {"subjectivity": "configs/subj.py:em", "arithmetic": "configs/arith.py"}
TARGET = ("reward", "sampling.reward_temperature", "model", "lora", "evaluation", "seed", "report", "certificate")


def config_of(task, *words):
    return parse(["launch", f"--config={ROOT / FILES[task]}", *words]).config


@pytest.fixture(autouse=True)
def _importable(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", f"{ROOT}{os.pathsep}{pathlib.Path(__file__).parent}")


def test_no_space_has_the_target_the_base_or_the_evaluation_in_it():
    for name, method in METHODS.items():
        assert method.space, name
        assert not [key for key in method.space if key.startswith(TARGET)], name
        assert 2 <= len(method.space) <= 4


@pytest.mark.parametrize("name", METHODS)
def test_every_trial_is_a_config_that_a_run_accepts(name):
    task = "subjectivity" if name in ("em", "direct") else "arithmetic"
    plain = config_of(task).to_dict()
    for number in range(8):
        (job,) = tuning.trial_jobs(task, name, FILES[task], draw(task, name, number, plain), number, [], [10])
        words = [word for word in job.arguments if word.startswith("--config.")]
        config = config_of(task, *words)
        run = read(config, [word[9:].partition("=")[0] for word in words])
        assert (run.values.seed, run.values.report, run.certificate.queries) == (10, "validation", 0)
    assert getattr(run.task, "data_seed", 10) == 10


def test_draws_are_anybodys_and_of_the_space():
    config = {"steps": 100, "optimizer": {"learning_rate": 0.01}, "sft": {"learn": "text"}}
    drawn = [draw("arithmetic", "sft", number, config) for number in range(200)]
    assert drawn == [draw("arithmetic", "sft", number, config) for number in range(200)]
    assert drawn[0] == {}
    assert drawn[1] != draw("infilling", "sft", 1, config)
    steps, rates, learnt = zip(
        *((each["steps"], each["optimizer.learning_rate"], each["sft.learn"]) for each in drawn[1:])
    )
    assert all(isinstance(number, int) and 50 <= number <= 200 for number in steps)
    assert 0.0025 <= min(rates) < 0.003 < 0.03 < max(rates) <= 0.04
    assert abs(np.mean(np.log(np.array(rates) / 0.01))) < 0.2, "log-uniform around the config's"
    assert set(learnt) == {"completion", "joint", "text"}
    with pytest.raises(ValueError, match=r"no optimizer\.learning_rate"):
        draw("arithmetic", "sft", 1, {"steps": 1})


def test_the_better_score_is_the_larger_one():
    assert score("arithmetic", {"validation": {"accuracy": 50.0}}) == 50.0
    assert score("infilling", {"validation": {"kl": 0.2}}) == -0.2
    with pytest.raises(ValueError, match=r"no validation\.accuracy"):
        score("subjectivity", {"policy": {"accuracy": 1.0}})
    trials = [Trial({}, 1.0, {}, 0.0), Trial({"a": 1}, 2.0, {}, 0.0), Trial({"b": 1}, 2.0, {}, 0.0)]
    assert best(trials).overrides == {"a": 1}
    assert best(trials[:1] * 2) is trials[0]
    with pytest.raises(ValueError, match="no trial"):
        best([])


@pytest.fixture
def searched(monkeypatch, tmp_path, capsys):
    """Searches with trials that take no time; the exit code, what is said, and what is written down."""
    space = {"optimizer.learning_rate": Factor(0.25, 4.0), "steps": Choice((20, 30))}
    monkeypatch.setitem(METHODS, "fake", tuning.Method(space, module="fake_trial"))

    def search(*words):
        out = tmp_path / "out" / "fake.json"
        place = (f"--workdir={tmp_path / 'trials'}", f"--out={out}")
        code = tune.main(["tune", f"--config={ROOT / FILES['arithmetic']}", "--algorithm=fake", *place, *words], "doc")
        said = capsys.readouterr()
        return code, said.out.splitlines(), said.err, json.loads(out.read_text()) if out.exists() else None

    return search


def test_a_search_writes_down_every_trial_and_goes_on(searched, tmp_path):
    words = ("--trials=3", "--seeds=10,11", "--config.save_every=7")
    code, said, _, found = searched(*words)
    assert code == 0
    assert found["trials"][0]["overrides"] == {}
    plain = config_of("arithmetic").to_dict()
    assert [trial["overrides"] for trial in found["trials"]] == [draw("arithmetic", "fake", n, plain) for n in range(3)]
    for trial in found["trials"]:
        rate = trial["overrides"].get("optimizer.learning_rate", 0.004)
        wanted = 100 - 1e6 * (rate - 0.002) ** 2
        assert trial["scores"] == pytest.approx({"10": wanted + 10, "11": wanted + 11})
        assert trial["score"] == pytest.approx(wanted + 10.5)
    assert found["chosen"] == max(found["trials"], key=lambda trial: trial["score"])["overrides"]
    assert (found["task"], found["method"], found["seeds"]) == ("arithmetic", "fake", [10, 11])
    assert found["given"] == ["--config.save_every=7"]
    assert found["start"] == {
        "optimizer.learning_rate": plain["optimizer"]["learning_rate"],
        "steps": plain["steps"],
    }
    assert found["space"]["steps"] == "one of 20, 30"
    assert str(tmp_path) not in found["command"].replace(str(ROOT), "")
    assert said[-1].startswith("chosen: ")
    first = found["trials"]
    code, _, _, found = searched("--trials=4", *words[1:])
    assert (code, found["trials"][:3], len(found["trials"])) == (0, first, 4)
    calls = sorted((tmp_path / "trials").glob("trial-*/seed-*/calls"))
    assert [file.read_text() for file in calls] == ["x"] * 8, "what is done is not done again"


def test_a_trial_that_fails_ends_the_search_and_what_is_done_is_kept(searched, monkeypatch):
    monkeypatch.setattr(METHODS["fake"].space["steps"].__class__, "draw", lambda self, generator, value: 13)
    code, _, error, found = searched("--trials=3", "--seeds=10")
    assert code == 1
    assert "the search is not complete, trial-" in error
    assert "this is wrong" in error
    assert found is None or len(found["trials"]) < 3


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (("--algorithm=nobody",), "there are gflownet"),
        (("--trials=0",), "--trials is 0"),
        (("--seeds=a",), "--seeds is 'a'"),
        (("--config.nothing=1",), "unknown key"),
    ],
)
def test_what_is_wrong_is_said_before_anything_runs(searched, words, problem, tmp_path):
    code, _, error, _ = searched(*words)
    assert (code, error.count("\n")) == (2, 1)
    assert problem in error
    assert not (tmp_path / "trials").exists()


def test_what_was_chosen_is_read_and_nothing_where_nothing_was_tried(tmp_path):
    facts = {"task": "arithmetic", "method": "sft", "seeds": [10], "start": {"steps": 5, "sft.learn": "text"}}
    first, second = Trial({}, 1.0, {10: 1.0}, 1.0), Trial({"steps": 7}, 2.0, {10: 2.0}, 1.0)
    tuning.write(tmp_path / "arithmetic-sft.json", facts, [first, second])
    assert tuned("arithmetic", "sft", tmp_path) == {"steps": 7, "sft.learn": "text"}
    tuning.write(tmp_path / "arithmetic-sft.json", facts, [first])
    assert tuned("arithmetic", "sft", tmp_path) == facts["start"]  # though a config that says otherwise came later
    assert record_of("arithmetic", "sft", tmp_path)["space"].keys() == METHODS["sft"].space.keys()
    assert tuned("arithmetic", "ppo", tmp_path) == {}
    with pytest.raises(ValueError, match="no trials of ppo on arithmetic"):
        record_of("arithmetic", "ppo", tmp_path)


@pytest.mark.parametrize("path", sorted(TUNED.glob("*.json")), ids=lambda path: path.stem)
def test_trials_that_are_shipped_are_those_that_anybody_draws(path):
    found = json.loads(path.read_text())
    task, name = found["task"], found["method"]
    assert path.stem == f"{task}-{name}"
    assert task in SCORES
    config: dict = {}
    for key, value in found["start"].items():
        place = config
        *sections, last = key.split(".")
        for section in sections:
            place = place.setdefault(section, {})
        place[last] = value
    drawn = [draw(task, name, number, config) for number in range(len(found["trials"]))]
    assert [trial["overrides"] for trial in found["trials"]] == drawn
    for trial in found["trials"]:
        assert math.isclose(trial["score"], np.mean([*trial["scores"].values()]), abs_tol=1e-5)
        assert trial["scores"].keys() == {str(seed) for seed in found["seeds"]}
    assert not {0, 1, 2, 3, 4} & set(found["seeds"]), "seeds that are reported"
    assert found["chosen"] == max(found["trials"], key=lambda trial: trial["score"])["overrides"]
    assert tuned(task, name) == {**found["start"], **found["chosen"]}


def test_methods_of_a_task_have_had_as_many_trials():
    counts: dict[str, set] = {}
    for path in TUNED.glob("*.json"):
        found = json.loads(path.read_text())
        counts.setdefault(found["task"], set()).add((len(found["trials"]), tuple(found["seeds"])))
    assert {task: len(kinds) for task, kinds in counts.items()} == dict.fromkeys(counts, 1)


@pytest.mark.slow
def test_a_search_of_real_runs(tmp_path):
    """Two trials of supervised fine-tuning, two questions a length, as the command makes them."""
    small = [
        "sampling.queries=2",
        "sampling.samples=2",
        "evaluation.questions=2",
        "evaluation.samples=2",
        "log_every=1",
    ]
    small += ["optimizer.warmup_steps=0", "steps=4", "evaluation.batch=2"]
    words = [f"--config.{word}" for word in small]
    out = tmp_path / "arithmetic-sft.json"
    command = ["tune", f"--config={ROOT / FILES['arithmetic']}", "--algorithm=sft", "--trials=2", "--seeds=10", *words]
    assert tune.main([*command, f"--workdir={tmp_path / 'trials'}", f"--out={out}"], "doc") == 0
    found = json.loads(out.read_text())
    assert [0 <= trial["score"] <= 100 for trial in found["trials"]] == [True, True]
    results = json.loads((tmp_path / "trials" / "trial-1" / "seed-10" / "results.json").read_text())
    assert results["steps"] == found["trials"][1]["overrides"]["steps"]
    assert "policy" not in results


def test_the_supervised_preset_is_what_validation_chose():
    """`make arith` shows it as the GFlowNet's rival."""
    config = parse(["launch", f"--config={ROOT / 'configs' / 'arith.py'}:supervised"]).config.to_dict()
    chosen = tuned("arithmetic", "sft")
    assert chosen == {key: tuning.value_of(config, key) for key in chosen}
