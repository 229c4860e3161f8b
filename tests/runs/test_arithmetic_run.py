"""The main job through its own config: a run of a few steps, as `python -m gfn_jax.launch` makes it."""

import dataclasses
import json
import logging
import logging.handlers
import pathlib
import queue
import re

import jax
import numpy as np
import pytest
from tiny_files import write_questions
from tiny_worlds import check_questions

from gfn_jax import certify
from gfn_jax.commands.config_flag import load_config
from gfn_jax.evaluation import arithmetic, remembered, sampling
from gfn_jax.runs.build import build
from gfn_jax.training.loop import train

ROOT = pathlib.Path(__file__).parents[2]


def small_config():
    config = load_config(f"{ROOT}/configs/arith.py:tiny")
    config.steps = 4
    config.save_every = 2
    config.optimizer.warmup_steps = 1
    config.objective.imitation_steps = 0
    config.arithmetic.max_length = 17
    config.arithmetic.eval_max_length = 24
    config.sampling.update({"queries": 4, "samples": 4, "micro_batches": 2})
    config.replay.update({"samples": 2, "capacity": 4})
    config.evaluation.update({"every": 4, "questions": 4, "samples": 2, "test_questions": 4, "batch": 4})
    config.evaluation.update({"diverse_questions": 2, "diverse_samples": 3})
    config.certificate.update({"queries": 1, "samples": 4, "proposals": 4})
    return config


@pytest.fixture(scope="module")
def lines():
    """What is logged while this file's tests run, oldest first."""
    said = queue.SimpleQueue()
    handler, logger = logging.handlers.QueueHandler(said), logging.getLogger("gfn_jax")
    before = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    yield said
    logger.removeHandler(handler)
    logger.setLevel(before)


@pytest.fixture(scope="module")
def whole(tmp_path_factory, lines):
    """Four steps in one go, by somebody whose cache remembers nothing of the base."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(remembered, "cache_root", lambda: tmp_path_factory.getbasetemp() / "cache")
        sampling._rollout.clear_cache()
        run = build(small_config(), tmp_path_factory.mktemp("whole")).run
        trained = train(run)
        return run, trained, run.finish(trained)


def test_the_evaluation_compiles_one_rollout_a_method(whole):
    """The base with and without demonstrations in its prompt, the policy; two of them again, to tell samples apart."""
    assert sampling._rollout._cache_size() == 5


def test_what_takes_long_is_said_before_it_begins(whole, lines):
    said = [lines.get_nowait().getMessage() for _ in range(lines.qsize())]
    stages = (
        "preparing the task",
        "reading the base",
        "preparing the rewards",
        "compiling the step",
        "step 4: evaluating",
        "final evaluation: base, 0-shot",
    )
    places = [next(i for i, line in enumerate(said) if line.startswith(stage)) for stage in stages]
    assert places == sorted(places)
    for method in ("base, 0-shot", "base, 3-shot", "this run"):
        assert sum(line.startswith(f"final evaluation: {method} on test_") for line in said) == 3


def test_the_next_run_remembers_the_base_and_prints_the_same(whole, monkeypatch, tmp_path_factory):
    run, trained, page = whole
    monkeypatch.setattr(remembered, "cache_root", lambda: tmp_path_factory.getbasetemp() / "cache")
    sampled = []

    def sample_completions(*arguments):
        sampled.append(arguments[0].adapter)
        return sampling.sample_completions(*arguments)

    sample_completions.__qualname__ = sampling.sample_completions.__qualname__
    monkeypatch.setattr(arithmetic, "sample_completions", sample_completions)
    assert run.finish(trained) == page
    assert sampled == [trained.state.trainable.lora] * 6  # three splits, to vote and to be told apart


def leaves(state):
    return [
        np.asarray(jax.random.key_data(x) if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key) else x)
        for x in jax.tree.leaves(state)
    ]


def test_the_step_compiles_once(whole):
    run, _, _ = whole
    assert run.step_fn._cache_size() == 1


def test_two_steps_a_stop_and_two_more_are_four_steps_bit_for_bit(whole, tmp_path):
    _, trained, _ = whole
    first = build(small_config(), tmp_path).run
    train(dataclasses.replace(first, num_steps=2))
    first.checkpointer.close()
    second = build(small_config(), tmp_path).run
    resumed = train(second)
    for one, other in zip(leaves(trained.state), leaves(resumed.state), strict=True):
        np.testing.assert_array_equal(one, other)
    assert second.step_fn._cache_size() == 1


def test_the_buffer_starts_with_the_demonstrations_and_fills(whole):
    _, trained, _ = whole
    filled = np.asarray(trained.state.memory.buffer.filled.sum(1))
    assert (filled[:47] >= 1).all()  # seeds
    assert (filled <= 4).all()
    assert filled.sum() > 47  # and what the policy found


def test_the_numbers_are_means_over_questions_and_the_samples_are_shown(whole):
    run, _, _ = whole
    results, questions = (json.loads((run.workdir / name).read_text()) for name in ("results.json", "questions.json"))
    check_questions(results, questions)
    for method in ("policy", "base_0shot", "base_kshot"):
        fields = ("accuracy", "single", "chains", "unreadable", "agreement", "vote_entropy")
        assert set(questions[method]) >= {f"{field}_{k}" for field in fields for k in (3, 4, 5)}
        assert {len(questions[method][f"{field}_3"]) for field in fields} == {4}
        diverse = [len(values) for name, values in questions[method].items() if name.startswith("distinct")]
        assert diverse == ([] if method == "base_kshot" else [2, 2, 2])
        assert set(questions[method]["accuracy_3"]) <= {0, 100}
    samples = [json.loads(line) for line in (run.workdir / "samples.jsonl").read_text().splitlines()]
    assert len(samples) == 3 * 3 * 4 * 2  # methods, splits, questions, samples a question
    for method, name in (("policy", "single_4"), ("base_kshot", "single_3")):
        own = [each for each in samples if (each["method"], each["split"][-1]) == (method, name[-1])]
        assert 100 * np.mean([each["right"] for each in own]) == pytest.approx(results[method][name], abs=0.01)
        assert own[0]["question"].startswith("Question: ")


def test_results_hold_the_numbers_of_the_page(whole):
    run, _, page = whole
    results = json.loads((run.workdir / "results.json").read_text())
    assert results["task"] == "arithmetic"
    assert results["method"] == "gflownet"
    assert (results["seed"], results["steps"]) == (0, 4)
    assert len(results["config_digest"]) == 12
    for method in ("policy", "base_0shot", "base_kshot"):
        assert {"accuracy_3", "accuracy_4", "accuracy_5"} <= results[method].keys()
        assert all(0 <= value <= 100 for value in results[method].values())
        shown = [f"{results[method][f'accuracy_{k}']:.1f}" for k in (3, 4, 5)]
        assert any(line.split()[-3:] == shown for line in page.splitlines())
    assert str(run.workdir / "results.json") in page


def test_results_hold_a_certificate(whole):
    """Of one held-out question: bounds of log Z from either side, several measures, a verdict that the page repeats."""
    run, _, page = whole
    certificate = json.loads((run.workdir / "results.json").read_text())["certificate"]
    assert certificate["rows"] == 4
    assert len(certificate["exact_samples"]) == 1
    assert {"log_z", "kl_q_pi", "lower_1", "reverse_ess", "rank_on", "pass_1", "mode_entropy"} <= certificate[
        "means"
    ].keys()
    low, high = (certificate["means"]["log_z"][side] for side in ("low", "high"))
    assert low is not None
    assert high is None or low <= high
    assert f"Certificate, 1 held-out queries: {certificate['verdict']}" in page


@pytest.mark.slow
@pytest.mark.parametrize("files", ["ours", pytest.param("released", marks=pytest.mark.reference)])
def test_released_data_is_reported_as_released_and_decontaminated(files, request, tmp_path):
    config = small_config()
    config.steps = 2
    if files == "ours":
        write_questions(tmp_path)
        config.data.path = str(tmp_path)
    else:
        config.data.path = str(request.getfixturevalue("shared") / "data" / "arithmetic")
    run = build(config, tmp_path / "run").run
    run.finish(train(run))
    metrics = json.loads((tmp_path / "run" / "results.json").read_text())["policy"]
    assert {f"accuracy_{k}{kind}" for k in (3, 4, 5) for kind in ("", "_decontaminated")} <= metrics.keys()


def certified(capsys, workdir, *flags):
    small = ["--queries=1", "--samples=4", "--proposals=8", "--particles=2", "--repeats=2"]
    code = certify.main(["certify", f"--workdir={workdir}", *small, *flags])
    return code, capsys.readouterr()


@pytest.mark.slow
def test_a_run_is_certified_by_a_command(whole, tmp_path, capsys):
    """The policy of its checkpoint, with a twist's estimates of log Z beside."""
    run, _, _ = whole
    code, said = certified(capsys, run.workdir, "--twist=flow", f"--out={tmp_path / 'c.json'}")
    assert code == 0
    assert f"of {run.workdir} against R^(1/" in said.out
    assert "KL(q | pi)" in said.out
    found = json.loads((tmp_path / "c.json").read_text())
    assert found["split"] == "validation_4"
    assert found["means"]["smc"]["estimate"] is not None


@pytest.mark.slow
def test_another_adapter_is_certified_and_the_base(whole, capsys):
    """What the run has exported is its newest checkpoint; the base is something else."""
    run, _, _ = whole
    _, adapter = certified(capsys, run.workdir, f"--adapter={run.workdir / 'adapter'}", "--step=newest")
    _, newest = certified(capsys, run.workdir, "--step=newest")
    assert adapter.out.splitlines()[1:] == newest.out.splitlines()[1:]
    _, base = certified(capsys, run.workdir, "--adapter=none")
    assert base.out.startswith("the base against")
    assert base.out.splitlines()[1:] != newest.out.splitlines()[1:]


@pytest.mark.parametrize(
    ("flag", "line"),
    [
        ("--split=absent", "error: task arithmetic has no split 'absent'"),
        ("--twist=value", "error: --twist=value needs a run of algorithm ctl; the one in .* is of gflownet"),
        ("--queries=0", "error: --queries must be at least 1, not 0"),
        ("--step=7", "error: the run in .* holds step 2, 4; '7' is none, nor newest or best"),
    ],
)
def test_what_cannot_be_certified_is_one_line(whole, capsys, flag, line):
    code, said = certified(capsys, whole[0].workdir, flag)
    assert code == 2
    assert re.fullmatch(line, said.err.strip().splitlines()[-1])
