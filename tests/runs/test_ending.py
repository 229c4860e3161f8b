"""How a run ends: which split is read, what is written before the certificate, and what was spent."""

import dataclasses
import json

import jax
import numpy as np
import pytest
from tiny_worlds import TARGETS, calculator_world, guard_test_splits, random_lora, random_params, right_padded, tiny

from gfn_jax.algorithms.sft import SFTConfig, SupervisedFinetuning
from gfn_jax.commands.train import parse
from gfn_jax.evaluation import arithmetic
from gfn_jax.launch import main
from gfn_jax.models.checkpoint import read_config
from gfn_jax.models.flops import Flops, StepShape, rollout_flops, score_flops, text_flops
from gfn_jax.models.language_model import LanguageModel
from gfn_jax.models.lora import LoraConfig
from gfn_jax.policy.constraint import Rules
from gfn_jax.policy.rollout import Behavior, rollout
from gfn_jax.runs import budget, policy, rounds
from gfn_jax.runs.build import build
from gfn_jax.runs.config import read_policy_run
from gfn_jax.runs.ending import own_metrics
from gfn_jax.runs.policy import make_certifier
from gfn_jax.runs.tasks import make_evaluator, make_task
from gfn_jax.tasks.arithmetic import Arithmetic
from gfn_jax.tasks.infilling import Infilling
from gfn_jax.tasks.subjectivity import Subjectivity
from gfn_jax.text.loading import load_tokenizer, model_folder
from gfn_jax.training.checkpoint import claim_workdir, config_digest

SMALL = ("steps=2", "save_every=2", "optimizer.warmup_steps=0", "sampling.queries=2", "sampling.samples=4")
CONFIGS = {
    "arith": (
        *("evaluation.questions=2", "evaluation.samples=2", "evaluation.batch=2", "arithmetic.max_length=17"),
        "objective.imitation_steps=0",
    ),
    "subj": ("subjectivity.labels=4", "evaluation.reviews=4", "evaluation.samples=2", "evaluation.batch=4"),
    "infill": (
        *("infilling.train_stories=4", "infilling.seed_stories=2", "infilling.test_stories=4"),
        *("evaluation.stories=2", "evaluation.batch=2", "objective.imitation_steps=0"),
    ),
}
NO_CERTIFICATE = "certificate.queries=0"


def config_of(name, *overrides):
    words = [f"--config.{value}" for value in (*SMALL, "replay.samples=2", *CONFIGS[name], *overrides)]
    return parse(["launch", f"--config=configs/{name}.py", *words]).config


@pytest.fixture
def guarded(monkeypatch):
    """The tasks' test questions cannot be read, not even in encoding them all."""
    guard_test_splits(monkeypatch, Arithmetic, Infilling, Subjectivity)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["arith", "subj", "infill"])
def test_a_run_that_reports_on_validation_reads_no_test_question(name, guarded, tmp_path):
    page = build(config_of(name, "report=validation", NO_CERTIFICATE), tmp_path).complete()
    results = json.loads((tmp_path / "results.json").read_text())
    assert "policy" not in results
    assert results["validation"].keys() == results["base_validation"].keys()
    assert own_metrics(results) == results["validation"]
    assert "the test split was not read" in page
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    trained, (evaluated,) = lines[:2], lines[2:]
    assert {key: evaluated[key] for key in results["validation"]} == results["validation"]
    tokens = [line["generated_tokens"] for line in trained]
    assert results["budget"]["generated_tokens"] == sum(tokens) > 0
    questions = json.loads((tmp_path / "questions.json").read_text())
    assert questions.keys() == ({"validation", "base_validation"} if name == "arith" else set())
    for method, metrics in questions.items():
        assert {metric: np.mean(each) for metric, each in metrics.items()} == pytest.approx(
            {metric: value for metric, value in results[method].items() if metric != "accuracy"}
        )
    if name == "infill":  # all of its completions finish, and no tool writes in them
        np.testing.assert_allclose(tokens, [4 * (line["length"] + 1) for line in trained], rtol=1e-5)


def test_arithmetic_is_validated_without_a_look_at_the_lengths_of_test_questions(guarded, monkeypatch):
    run = read_policy_run(config_of("arith"))
    folder = model_folder(run.model.path)
    _, shape = read_config(folder)
    evaluator = make_evaluator(run, make_task(run, load_tokenizer(folder), shape), shape)
    asked = []
    monkeypatch.setattr(
        arithmetic, "remembered", lambda sample, model, prompt, *rest: asked.append(prompt) or [[[]]] * 2
    )
    assert evaluator.validate(LanguageModel(shape, None))["accuracy"] == 0.0
    assert len({prompt.ids.shape for prompt in asked}) == 1, "one compilation"
    with pytest.raises(AssertionError, match="the split test_3 was read"):
        evaluator.report(LanguageModel(shape, None))


@pytest.mark.slow
def test_rounds_that_report_on_validation_read_no_test_question(guarded, tmp_path):
    em = build(
        config_of("subj", "report=validation", NO_CERTIFICATE, "em.rounds=1", "em.steps=2", "em.warmup_steps=0"),
        tmp_path / "em",
    )
    em.complete()
    found = json.loads((tmp_path / "em" / "results.json").read_text())
    assert found["validation"] == found["m_step_1"]
    spent = [rounds.results_of(tmp_path / "em" / f"{step}_step_1")["budget"] for step in "em"]
    assert found["budget"]["generated_tokens"] == sum(each["generated_tokens"] for each in spent)
    assert min(each["generated_tokens"] for each in spent) > 0


def test_what_is_read_at_the_end_owns_no_workdir(tmp_path):
    test, validation = (
        read_policy_run(config_of("arith", f"report={split}")).described for split in ("test", "validation")
    )
    assert test != validation
    assert claim_workdir(tmp_path, test) == claim_workdir(tmp_path, validation) == config_digest(test)


def test_a_certificate_of_test_questions_is_refused_in_validation():
    run = read_policy_run(config_of("arith", "report=validation"))
    parts = dataclasses.make_dataclass("Parts", ["task", "reward", "host_reward"])(None, None, None)
    assert make_certifier(run, parts).split == "validation_4"
    of_test = dataclasses.replace(run, entry=dataclasses.replace(run.entry, certified="test_3"))
    with pytest.raises(ValueError, match=r"about the split 'test_3', which report='validation' does not read"):
        make_certifier(of_test, parts)


@pytest.mark.slow
def test_a_certificate_that_fails_costs_itself_alone(tmp_path, monkeypatch, capsys):
    """All else is written and says so; the same command makes what is missing."""
    words = [f"--config.{value}" for value in (*SMALL, "replay.samples=2", *CONFIGS["infill"], "certificate.queries=1")]
    command = ["launch", "--config=configs/infill.py", *words, "--config.report=validation", f"--workdir={tmp_path}"]
    left = []

    def fails(self, policy):
        left.append({path.name for path in tmp_path.iterdir()})
        raise RuntimeError("no such thing\nat all")

    monkeypatch.setattr(policy.Certifier, "__call__", fails)
    assert main(command) == 1
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error")]
    assert line.startswith("error: the certificate failed (RuntimeError: no such thing)")
    assert {"results.json", "questions.json", "samples.jsonl", "adapter"} <= left[0]
    before = json.loads((tmp_path / "results.json").read_text())
    assert before["pending"] == ["certificate"]
    made = dataclasses.make_dataclass("Made", ["as_dict"])(lambda: {"exact": []})
    monkeypatch.setattr(policy.Certifier, "__call__", lambda self, policy: made)
    monkeypatch.setattr(policy, "summary", lambda certificate: "certified")
    assert main(command) == 0
    after = json.loads((tmp_path / "results.json").read_text())
    assert after.pop("certificate") == {"exact": []}
    assert after == {name: value for name, value in before.items() if name != "pending"}


def test_tokens_are_counted_as_they_are_chosen():
    """Beside the rollout's own masks: the tool writes some of the tokens, and a stop is chosen too."""
    tokenizer, environment, constraint = calculator_world()
    shape = tiny(vocab_size=len(tokenizer))
    writer, rules = LanguageModel(shape, random_params(shape), random_lora(shape)), Rules(constraint, environment)
    prompt = right_padded([[1, 2], [3, 4], [5, 6]])
    drawn = jax.device_get(jax.jit(rollout)(writer, prompt, rules, Behavior.at(1.0, 192), jax.random.key(0)))
    rows = [row[:length].tolist() for row, length in zip(drawn.completion, drawn.token_mask.sum(1), strict=True)]
    lora = LoraConfig(rank=3, alpha=3.0, targets=TARGETS)
    spent = budget.sampling_budget(writer, lora, prompt, rules, [rows[i : i + 64] for i in (0, 64, 128)], 1.5)
    assert spent.generated_tokens == drawn.action_mask.sum() < drawn.token_mask.sum() + len(rows)
    step = StepShape(3, 64, 2, 0, 0, 0, constraint.horizon, len(constraint.token_ids))
    assert (spent.training_flops, spent.seconds) == (rollout_flops(Flops(shape, lora), step), 1.5)


@pytest.mark.slow
def test_rows_that_several_steps_learn_from_are_counted_once(tmp_path):
    words = [
        *SMALL,
        "steps=4",
        "infilling.train_stories=4",
        "infilling.seed_stories=4",
        NO_CERTIFICATE,
        "algorithm=ppo",
        "ppo.epochs=2",
    ]
    command = ["launch", "--config=configs/infill.py", *(f"--config.{word}" for word in words)]
    run = build(parse(command).config, tmp_path).run
    state, seen = run.state, []
    for _ in range(4):
        state, metrics = run.step_fn(state, run.constants)
        seen.append(jax.device_get(metrics))
    sampled = [8 * float(metrics["length"] + 1) for metrics in seen]  # of Q x N rows, a stop each
    tokens = [float(metrics["generated_tokens"]) for metrics in seen]
    np.testing.assert_allclose(tokens, [sampled[0], 0, sampled[2], 0], rtol=1e-5)


@pytest.mark.parametrize("lines", [[], [{"step": 1}], [{"step": 1, "generated_tokens": 3.0}, {"step": 2}]])
def test_tokens_that_nobody_has_counted_are_not_guessed(lines, tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(json.dumps({"kind": "train", **line}) + "\n" for line in lines))
    assert budget.recorded_tokens(path, 2) is None
    path.write_text("".join(json.dumps({"kind": "train", "step": step}) + "\n" for step in (1, 2)))
    assert budget.recorded_tokens(path, 2) == 0  # of an algorithm that samples nothing


def test_budgets_add_up_or_are_not_known():
    one, other = budget.Budget(3, 2.0, 0.51).as_dict(), budget.Budget(4, None, 1.0).as_dict()
    assert budget.total([one, one]) == {"generated_tokens": 6, "training_flops": 4.0, "seconds": 1.0}
    assert budget.total([one, other]) == {"generated_tokens": 7, "training_flops": None, "seconds": 1.5}
    assert budget.total([one, None]) is None


def test_supervised_rows_have_a_prompt_each():
    given = dataclasses.make_dataclass("Given", ["lora", "remat"])(
        LoraConfig(rank=2, alpha=2.0, targets=TARGETS), "none"
    )
    shape, counted = StepShape(2, 4, 5, 6, 3, 0, 7, 9), Flops(tiny(), given.lora)
    for learn, want in {
        "completion": score_flops(counted, dataclasses.replace(shape, queries=8, samples=1)),
        "text": text_flops(counted, 8, 5 + 7 + 3, backward=True),
    }.items():
        algorithm = SupervisedFinetuning(given, SFTConfig(learn))
        assert budget.step_flops(algorithm, tiny(), shape) == {"score, update": want}
