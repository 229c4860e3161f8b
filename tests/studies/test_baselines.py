"""Rivals that are no run of a policy: what is in their prompts, how they vote, what a job leaves."""

import dataclasses
import json
import pathlib

import jax.numpy as jnp
import numpy as np
import pytest
from tiny_worlds import random_params, tiny

from gfn_jax.commands import baselines as command
from gfn_jax.commands.train import parse
from gfn_jax.evaluation.accuracy import measure_accuracy
from gfn_jax.models.language_model import LanguageModel
from gfn_jax.policy.teacher import teacher_force
from gfn_jax.runs.config import read_policy_run
from gfn_jax.samplers.sampler import Weighed
from gfn_jax.studies import baselines
from gfn_jax.studies.baselines import drawn_by, opened, plain_query, posterior, prompting
from gfn_jax.text.batching import rows_as_seeds
from gfn_jax.text.tokens import encode_after

ROOT = pathlib.Path(__file__).parents[2]
SMALL = (
    "--config.arithmetic.eval_max_length=12",
    "--config.arithmetic.max_length=12",
    "--config.arithmetic.reward_shots=1",
    "--config.arithmetic.seed_demonstrations=0",
    "--config.evaluation.diverse_questions=0",
    "--config.evaluation.test_questions=2",
    "--config.evaluation.questions=2",
    "--config.evaluation.samples=3",
    "--config.evaluation.batch=2",
    "--config.evaluation.shots=1",
)


def world_of(tmp_path, *words, model=None):
    """The task with one split of two questions; a random base, unless another is named."""
    config = read_policy_run(parse(["launch", f"--config={ROOT / 'configs' / 'arith.py'}", *SMALL, *words]).config)
    world = opened(config, tmp_path)
    metric, split = next(iter(world.evaluator.test.items()))
    world = dataclasses.replace(world, evaluator=dataclasses.replace(world.evaluator, test={metric: split}))
    if model is None:
        model = tiny(vocab_size=world.base.shape.vocab_size, max_positions=160)
        return dataclasses.replace(world, base=LanguageModel(model, random_params(model)))
    return world


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return world_of(tmp_path_factory.mktemp("world"))


def test_prompts_have_so_many_demonstrations_and_what_does_not_fit_is_left_out(world, monkeypatch):
    asked = {}

    def graded(self, model, split, prompt):
        texts = [world.task.decode(ids[mask].tolist()) for ids, mask in zip(prompt.ids, prompt.mask, strict=True)]
        asked[len(asked)] = texts
        samples = [[[]] for _ in texts]
        return measure_accuracy(world.task, split, samples), samples

    monkeypatch.setattr(type(world.evaluator), "graded", graded)
    monkeypatch.setattr(baselines, "SHOTS", (0, 2, 20))
    found = prompting(world)
    assert list(found.findings.methods) == ["shots_0", "shots_2"]
    examples = world.task.splits["demonstrations"]
    for shots, texts in zip((0, 2), asked.values(), strict=True):
        shown = "".join(example.demonstration for example in examples[:shots])
        assert texts == [shown + world.task.question("test_3", i) for i in range(2)]
    assert set(found.left_out) == {"shots_20", "step_by_step", "step_by_step_1"}
    assert "the model has 160" in found.left_out["shots_20"]
    assert "does not know 5 of the 11 tokens" in found.left_out["step_by_step"]


def test_a_cue_of_words_that_the_tokenizer_knows_stands_behind_the_question(world, monkeypatch):
    monkeypatch.setattr(baselines, "SHOTS", ())
    monkeypatch.setattr(baselines, "CUE", " The answer is")
    monkeypatch.setattr(type(world.evaluator), "diversity", lambda *args: pytest.fail("that is of shots_0"))
    prompts = []
    graded = type(world.evaluator).graded

    def kept(self, model, split, prompt):
        prompts.append([world.task.decode(ids[mask].tolist()) for ids, mask in zip(prompt.ids, prompt.mask)])
        return graded(self, model, split, prompt)

    monkeypatch.setattr(type(world.evaluator), "graded", kept)
    found = prompting(world)
    assert list(found.findings.methods) == ["step_by_step", "step_by_step_1"]
    assert all(text.endswith("? Answer: The answer is") for texts in prompts for text in texts)
    assert {"accuracy_3", "single_3", "chains_3", "vote_entropy_3"} <= found.findings.methods["step_by_step"].keys()
    for method, metrics in found.findings.questions.items():
        for metric, values in metrics.items():
            assert np.mean(values) == pytest.approx(found.findings.methods[method][metric], abs=0.01)


@dataclasses.dataclass(frozen=True)
class Written:
    """A sampler that says the same to every question: two wrong chains, and one that counts more."""

    ids: np.ndarray
    length: np.ndarray
    log_weight: tuple[float, ...]

    def sample(self, model, problem, budget, key):
        queries = len(problem.query.example_id)
        assert budget == len(self.length)
        rows = jnp.tile(jnp.asarray(self.ids), (queries, 1)), jnp.tile(jnp.asarray(self.length), queries)
        nothing = jnp.zeros(queries, jnp.int32)
        weight = jnp.tile(jnp.asarray(self.log_weight), queries)
        return Weighed(teacher_force(*rows, problem.rules), weight, None, None, nothing, nothing)


def test_answers_vote_with_the_samplers_weights(world, monkeypatch):
    monkeypatch.setattr(baselines, "PATHS", 3)
    answers = [world.task.splits["test_3"][i].answer for i in range(2)]
    right, wrong = answers[0], next(n for n in range(10) if n not in answers)
    texts = [f" {wrong} + 0 = {wrong}", f" {wrong} + 0 = {wrong}", f" {right} + 0 = {right}"]
    encoded = [encode_after(world.task.tokenizer, "Answer:", text) for text in texts]
    seeds = rows_as_seeds([0] * 3, encoded, world.task.stop_id, 12)
    found = {}
    for weights in ((0.0, 0.0, 0.0), (0.0, 0.0, 1.0), (-np.inf, -np.inf, -np.inf)):
        sampler = Written(np.asarray(seeds.completion), np.asarray(seeds.length), weights)
        write = drawn_by(world, sampler, lambda split: plain_query(world, 0, split), kept=3)
        found[weights[2]], samples = write("test_3")
    assert samples == [[row[:-1] if row[-1] == world.task.stop_id else row for row in encoded]] * 2
    assert found[0.0].questions["voted"] == [0.0, 0.0]
    assert found[1.0].questions["voted"][0] == 100.0, "e votes against two"
    assert found[1.0].agreement == pytest.approx(100 * np.e / (2 + np.e))
    assert found[-np.inf].voted == found[-np.inf].agreement == 0.0
    assert found[0.0].single == found[1.0].single, "a share of the samples, whatever they count"


@pytest.mark.slow
def test_the_posterior_is_sampled_as_often_as_was_asked_and_says_how_much_it_covers(tmp_path):
    """The shipped base, one demonstration: rows of it that lead to the answer. What is not covered counts as wrong."""
    world = world_of(tmp_path, "--config.certificate.proposals=64", "--config.evaluation.samples=2", model="shipped")
    found = posterior(world).findings
    assert list(found.methods) == ["posterior_mode", "best_of_n"]
    covered = found.questions["posterior_mode"]["covered_3"]
    assert len(covered) == 2
    for i, share in enumerate(covered):
        if not share:
            continue
        texts = [
            s for s in found.samples if s.method == "posterior_mode" and s.question == world.task.question("test_3", i)
        ]
        assert len(texts) == 2
    assert max(covered) == 100.0
    assert found.methods["posterior_mode"]["single_3"] > 0
    none = dataclasses.replace(world.config.certificate, proposals=0)
    with pytest.raises(ValueError, match=r"certificate\.proposals is 0"):
        posterior(dataclasses.replace(world, config=dataclasses.replace(world.config, certificate=none)))


def job(what, config, workdir, *words):
    flags = [f"--what={what}", f"--config={ROOT / 'configs' / config}", f"--workdir={workdir}", *words]
    return command.main(["baselines", *flags], "doc")


REVIEWS = (
    "--config.subjectivity.labels=10",
    "--config.subjectivity.test=6",
    "--config.subjectivity.validation=5",
    "--config.em.steps=2",
    "--config.em.batch=4",
    "--config.em.warmup_steps=1",
    "--config.lora.rank=2",
    "--config.evaluation.samples=2",
    "--config.evaluation.batch=6",
    "--config.evaluation.shots=0",
)


@pytest.mark.slow
def test_a_job_leaves_what_a_run_leaves_and_validation_reads_no_test_review(tmp_path, capsys, monkeypatch):
    from gfn_jax.tasks.subjectivity import Subjectivity

    truth = Subjectivity.truth
    monkeypatch.setattr(Subjectivity, "truth", lambda self, split: truth(self, split) if split != "test" else 1 / 0)
    assert job("direct", "subj.py:em", tmp_path, *REVIEWS, "--config.report=validation") == 0
    results = json.loads((tmp_path / "results.json").read_text())
    assert (results["task"], results["method"], results["report"]) == ("subjectivity", "direct", "validation")
    assert results["steps"] == 2
    assert results["budget"]["generated_tokens"] == 0
    assert {"validation", "zero_shot", "base", "bayes"} <= results.keys()
    questions = json.loads((tmp_path / "questions.json").read_text())
    for method in ("validation", "zero_shot", "base", "bayes"):
        assert len(questions[method]["accuracy"]) == 5
        assert np.mean(questions[method]["accuracy"]) == pytest.approx(results[method]["accuracy"], abs=1e-3)
    samples = [json.loads(line) for line in (tmp_path / "samples.jsonl").read_text().splitlines()]
    assert {sample["split"] for sample in samples} == {"validation"}
    first = next(sample for sample in samples if sample["method"] == "validation")
    assert first["right"] == (questions["validation"]["accuracy"][0] == 100.0)
    assert "bayes" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (("nothing", "arith.py"), "error: --what is 'nothing'; there are prompting, decoding, posterior, direct"),
        (("direct", "arith.py"), "error: --what=direct is of the task subjectivity; the config's is arithmetic"),
    ],
)
def test_what_is_wrong_is_one_line(words, line, tmp_path, capsys):
    assert job(*words, tmp_path) == 2
    assert capsys.readouterr().err.strip() == line


def test_a_training_question_is_shown_no_demonstration_but_the_rewards(world):
    assert world.task.queries("validation_3", 3).prompt.ids.shape[0] > 0
    with pytest.raises(ValueError, match=r"2 demonstrations are asked for in a prompt; arithmetic\.reward_shots is 1"):
        world.task.queries("train", 2)
    with pytest.raises(ValueError, match="51 demonstrations are asked for in a prompt; there are 50"):
        world.task.queries("test_3", 51)
