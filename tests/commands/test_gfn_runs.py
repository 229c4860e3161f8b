"""`gfn` on real runs of `:smoke` presets: trained, several at once, measured again, sampled, exported."""

import json
import pathlib

import pytest

from gfn_jax import gfn
from gfn_jax.commands import gfn_evaluate, gfn_evaluating, gfn_selftest, sampling, sampling_runs, shipped
from gfn_jax.commands.config_flag import load_config
from gfn_jax.commands.plan import describe_model
from gfn_jax.environments import Calculator, NoTool
from gfn_jax.models.checkpoint import read_config
from gfn_jax.models.lora import check_targets
from gfn_jax.policy.constraint import Rules
from gfn_jax.policy.teacher import teacher_force
from gfn_jax.runs.config import read
from gfn_jax.runs.policy import policy_parts
from gfn_jax.runs.saved import SavedRun
from gfn_jax.runs.tasks import make_evaluator, make_task
from gfn_jax.text.loading import load_tokenizer, model_folder
from gfn_jax.training.mesh import MeshConfig, abstract_mesh

ROOT = pathlib.Path(__file__).parents[2]
TRAINED = [name for name in shipped.shipped() if name != "benchmark"]


def main(*words: str) -> int:
    return gfn.main(["gfn", *words])


def test_a_run_from_a_short_line(tmp_path, monkeypatch, capsys):
    """The cheapest there is: an adapter on the stories' model, of two steps."""
    monkeypatch.chdir(tmp_path)
    words = ["--steps=2", "--data.seq_length=8", "--batch=2", "--evaluation.batch=64", "--workdir=run"]
    assert main("train", "finetune:smoke", *words) == 0
    assert "Held-out text" in capsys.readouterr().out
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert results["steps"] == 2
    assert results["policy"].keys() == {"nll", "perplexity"}
    assert results["policy"]["nll"] != results["base"]["nll"]
    assert main("train", "finetune:smoke", *words, "--optimizer.b1=0.5") == 2
    assert "belongs to another config: optimizer.b1 is 0.9 there and 0.5 here" in capsys.readouterr().err


def test_the_self_test_agrees_with_the_stored_losses(monkeypatch):
    (device, *_) = gfn_selftest.devices()
    found = gfn_selftest.check(device)
    assert found.fault is None, found.fault
    first, second = gfn_selftest.EXPECTED
    assert second < first - 100 * gfn_selftest.TOLERANCE  # what a wrong gradient would show in
    for wrong, line in (((first, second + 2e-4), "and should be"), ((float("nan"), first), "not finite")):
        monkeypatch.setattr(gfn_selftest, "losses", lambda device, wrong=wrong: wrong)
        assert line in gfn_selftest.check(device).fault


@pytest.fixture
def arithmetic(monkeypatch):
    """The task of configs/arith.py:smoke, its tokenizer and its model's shape."""
    monkeypatch.chdir(ROOT)
    run = read(load_config("configs/arith.py:smoke"))
    folder = model_folder(run.model.path)
    tokenizer, (_, shape) = load_tokenizer(folder), read_config(folder)
    return make_task(run, tokenizer, shape), tokenizer, shape


def test_the_rules_of_a_run_and_what_overrides_them(arithmetic):
    task, tokenizer, shape = arithmetic

    def rules(**given):
        return sampling_runs.run_rules(task, tokenizer, shape.vocab_size, sampling.Settings("", (), **given), given)

    own, plain = task.constraint(training=False), rules()
    for field in ("token_ids", "column_of", "is_stop", "opens_call"):
        assert (getattr(plain.constraint, field) == getattr(own, field)).all()
    assert (plain.constraint.min_length, plain.constraint.max_length) == (5, 36)
    assert plain.constraint.call_room == own.call_room > 0
    assert isinstance(plain.environment, Calculator)
    assert rules(max_length=9, min_length=2).constraint.max_length == 9
    without = rules(calculator=False)
    assert isinstance(without.environment, NoTool)
    assert not without.constraint.opens_call.any()
    digits = rules(characters="0123456789").constraint
    assert 0 < len(digits.token_ids) < len(own.token_ids)
    comma = rules(stop=",").constraint
    assert tokenizer.decode([comma.stop_id]) == ","
    assert sampling_runs.begins(task, tokenizer) == "no"


def test_the_questions_of_a_run(arithmetic):
    task, tokenizer, _ = arithmetic
    query = sampling_runs.questions(task, "arithmetic", "validation_4", 2)
    assert query.prompt.ids.shape[0] == 2
    texts = sampling_runs.texts(task, "validation_4", query, tokenizer)
    assert texts == tuple(task.question("validation_4", number) for number in range(2))
    with pytest.raises(ValueError, match="task arithmetic has no split 'absent'"):
        sampling_runs.questions(task, "arithmetic", "absent", 2)


@pytest.fixture
def workdir(tmp_path):
    """A folder whose config.json is that of a run of configs/arith.py:smoke."""
    config = load_config(str(ROOT / "configs" / "arith.py") + ":smoke").to_dict()
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.json").write_text(json.dumps(config))
    return tmp_path / "run"


def test_what_is_measured_may_be_changed(workdir):
    words = [
        "--samples=3",
        "--evaluation.temperature=0.5",
        "--data.path",
        "folder",
        "--config.arithmetic.max_length=30",
    ]
    values = gfn_evaluate.parse(["gfn evaluate", f"--workdir={workdir}", "--split=validation", *words, "--seeds=1,2"])
    assert json.loads(values.given) == {
        "evaluation.samples": 3,
        "evaluation.temperature": 0.5,
        "data.path": "folder",
        "arithmetic.max_length": 30,
    }
    saved = SavedRun(workdir, json.loads((workdir / "config.json").read_text()), (4,))
    changed = gfn_evaluating.changed(saved, json.loads(values.given))
    assert changed.config["data"]["path"] == "folder"
    assert saved.config["data"]["path"] is None
    settings = gfn_evaluating.Settings(str(workdir))
    assert gfn_evaluating.place(settings, "test") == workdir / "evaluation-test.json"
    other = gfn_evaluating.Settings(str(workdir), json.loads(values.given))
    assert gfn_evaluating.place(other, "test").name not in ("evaluation-test.json", "evaluation-validation.json")


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["--evaluation.sample=3"], "there is no --evaluation.sample; did you mean --evaluation.samples?"),
        (["--optimizer.learning_rate=3"], "there is no --optimizer.learning_rate"),
        (["--stp=best"], "there is no --stp; did you mean --step?"),
        (["--samples=0"], "--samples is 0; it must be 1 or more"),
        (["--seeds=a"], "--seeds is 'a'; it must be whole numbers"),
        (["--split=train"], "value should be one of <test|validation>"),
        ([], "has saved no adapter yet"),
    ],
)
def test_what_is_wrong_with_an_evaluation(workdir, capsys, words, line):
    assert main("evaluate", str(workdir), *words) == 2
    err = capsys.readouterr().err
    assert line in err
    assert err.count("\n") == 1


def test_several_runs_in_turn_are_named(tmp_path, capsys):
    for name in ("e_step_1", "m_step_1"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text("{}")
    assert main("evaluate", str(tmp_path)) == 2
    assert "below it are e_step_1, m_step_1: name one" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("name", TRAINED)
def test_every_smoke_preset_runs(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main("train", f"{name}:smoke", "--workdir=run") == 0
    assert (tmp_path / "run" / ("model" if name == "pretrain" else "results.json")).exists()


@pytest.mark.reference
@pytest.mark.parametrize("model", ["gpt2", "EleutherAI/pythia-160m"])
@pytest.mark.parametrize("name", [name for name in TRAINED if name not in ("pretrain", "finetune")])
def test_every_smoke_preset_fits_a_real_vocabulary(name, model, monkeypatch, shared):
    """Whatever a run asks before it computes, of real tokenizers and shapes: lengths, seeds, targets, positions."""
    monkeypatch.chdir(ROOT)
    config = load_config(f"configs/{name}.py:smoke")
    config.model.path = model
    run, (shape, _) = read(config), describe_model(model)
    tokenizer = load_tokenizer(shared / "tokenizers" / ("gpt2" if model == "gpt2" else "gpt-neox"))
    parts = policy_parts(run, shape, tokenizer, abstract_mesh(MeshConfig(8, 1, 1)))
    check_targets(shape, run.lora.targets)
    make_evaluator(run, parts.task, shape)
    seeds = parts.task.seeds()
    assert len(seeds.length) == {"arith": 8, "infill": 8}.get(name, 0)
    if len(seeds.length):
        forced = teacher_force(seeds.completion, seeds.length, Rules(parts.task.constraint(), parts.task.environment))
        assert forced.action_mask.any(1).all()


@pytest.mark.slow
def test_a_run_measured_again_sampled_exported_and_compared(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main("train", "rng:smoke", "--seed=0,1", "--workdir=runs", "--certificate.queries=0") == 0
    assert "policy" in capsys.readouterr().out
    summary = json.loads((tmp_path / "runs" / "summary.json").read_text())
    assert summary["runs"] == {"seed-0": "done", "seed-1": "done"}

    assert main("evaluate", "runs/seed-0") == 0
    own = json.loads((tmp_path / "runs" / "seed-0" / "results.json").read_text())
    again = json.loads((tmp_path / "runs" / "seed-0" / "evaluation-test.json").read_text())
    for method in ("policy", "base"):
        assert again[method] == pytest.approx(own[method], rel=1e-4)
    capsys.readouterr()
    assert main("evaluate", "runs/seed-0", "--seeds=3,4", "--evaluation.samples=64") == 0
    assert "spread" in capsys.readouterr().out
    assert main("evaluate", "runs/seed-0", "--adapter=none", "--split=validation") == 0

    capsys.readouterr()
    assert main("sample", "runs/seed-0", "--samples=3", "--jsonl") == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert len(rows) == 3
    assert main("export", "runs/seed-0", "out") == 0
    capsys.readouterr()
    prompt, both = rows[0]["prompt"], []
    for words in (["runs/seed-0"], ["runs/seed-0", "--adapter=out"], ["--model=tiny-numbers", "--adapter=out"]):
        lengths = ["--max_length=5", "--min_length=0"] * (words[0].startswith("--"))
        assert main("sample", *words, *lengths, f"--prompt={prompt}", "--samples=3", "--jsonl") == 0
        both.append([json.loads(line) for line in capsys.readouterr().out.splitlines()])
    assert both[0] == both[1] == both[2]
    assert main("compare", "runs/seed-0", "runs/seed-1", "--out=compared") == 0
    assert (tmp_path / "compared" / "compare.json").exists()
