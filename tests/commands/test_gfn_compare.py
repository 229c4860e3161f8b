"""Runs beside each other, on folders that no run has made: numbers as numpy has them, and what is refused."""

import json
import pathlib
import re

import numpy as np
import pytest

from gfn_jax import gfn
from gfn_jax.commands import gfn_runs
from gfn_jax.evaluation import bootstrap
from gfn_jax.studies import figures, plan
from gfn_jax.studies.study import Job

CONFIG = {"task": "arithmetic", "evaluation": {"samples": 10, "every": 5}}


def make_run(folder: pathlib.Path, values, task="arithmetic", question="1 + 1", method="policy", **evaluation) -> None:
    """What a run leaves, its `accuracy_3` being the mean of the values."""
    folder.mkdir(parents=True)
    config = {"task": task, "evaluation": CONFIG["evaluation"] | evaluation}
    (folder / "config.json").write_text(json.dumps(config))
    found = {"accuracy_3": float(np.mean(values)), "agreement_3": 0.5, "page": "a text"}
    results = {"task": task, method: found, "base": {"accuracy_3": 1.0}, "budget": {"accuracy_3": 7}}
    (folder / "results.json").write_text(json.dumps(results))
    (folder / "questions.json").write_text(json.dumps({method: {"accuracy_3": list(values)}}))
    sample = {"method": method, "split": "test_3", "question": question, "completion": " 2"}
    (folder / "samples.jsonl").write_text(json.dumps(sample) + "\n")


@pytest.fixture
def draw():
    generator = np.random.default_rng(0)
    return lambda: generator.integers(0, 2, 40) * 100.0


def test_means_spreads_intervals_and_paired_differences(tmp_path, draw, capsys):
    one, other = [draw(), draw()], [draw(), draw()]
    for seed in range(2):
        make_run(tmp_path / "a" / f"seed-{seed}", one[seed])
        make_run(tmp_path / "b" / f"seed-{seed}", other[seed])
    out = tmp_path / "out"
    assert gfn.main(["gfn", "compare", f"{tmp_path / 'a'}", f"B={tmp_path / 'b'}", f"--out={out}"]) == 0
    found = json.loads((out / "compare.json").read_text())
    assert found["reference"] == str(tmp_path / "a")
    cell = found["rows"]["B"]["accuracy_3"]
    expected = bootstrap.interval(np.array(other))
    assert cell["mean"] == pytest.approx(np.mean(other))
    assert cell["spread"] == pytest.approx(np.std(np.mean(other, axis=1), ddof=1))
    assert (cell["low"], cell["high"]) == pytest.approx((expected.low, expected.high))
    apart = bootstrap.difference(np.array(other), np.array(one))
    assert cell["difference"] == pytest.approx(
        {"mean": np.mean(other) - np.mean(one), "low": apart.low, "high": apart.high}
    )
    assert "difference" not in found["rows"][str(tmp_path / "a")]["accuracy_3"]
    page = capsys.readouterr().out
    assert "accuracy_3, more is better" in page
    assert f"{np.mean(other):.1f}" in page
    assert figures.available() == (out / "compare.png").exists() == (out / "compare.svg").exists()


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"task": "infilling"}, "A and B differ in task: 'arithmetic' and 'infilling'"),
        ({"question": "2 + 2"}, "A and B were asked different questions of test_3"),
        ({"method": "validation"}, "A and B differ in .*"),
        ({"samples": 20}, "A and B differ in evaluation.samples: 10 and 20"),
    ],
)
def test_what_is_not_to_be_compared(tmp_path, draw, capsys, changes, line):
    make_run(tmp_path / "a", draw())
    make_run(tmp_path / "b", draw(), **changes)
    assert gfn.main(["gfn", "compare", f"A={tmp_path / 'a'}", f"B={tmp_path / 'b'}"]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert re.fullmatch(f"error: {line}\n", err), err


def test_other_questions_metrics_and_folders_are_refused(tmp_path, draw, capsys):
    values = draw()
    make_run(tmp_path / "a", values)
    make_run(tmp_path / "b", values[:20])
    (tmp_path / "none").mkdir()
    for words, part in (
        (["b"], "differ in questions of accuracy_3: 40 and 20"),
        (["a"], "are called alike"),
        (["none"], "is no run that has ended"),
    ):
        assert gfn.main(["gfn", "compare", *(str(tmp_path / name) for name in ["a", *words])]) == 2
        assert part in capsys.readouterr().err
    make_run(tmp_path / "c", values, every=7)  # how often a run looks changes nothing
    words = [str(tmp_path / name) for name in "ac"]
    assert gfn.main(["gfn", "compare", *words, "--metrics=absent"]) == 2
    assert "has no metric 'absent'; there are accuracy_3, agreement_3" in capsys.readouterr().err


def planned(workdir, names, values, method):
    """Jobs that are done, each with its results."""
    jobs = [Job(name, "gfn_jax.launch", ()) for name in names]
    plans = plan.make_plan(jobs, workdir, lambda job: job.name)
    for one, row in zip(plans, values, strict=True):
        make_run(one.folder, row, method=method)
        results = json.loads((one.folder / "results.json").read_text())
        results[method]["accuracy"] = float(np.mean(row))
        (one.folder / "results.json").write_text(json.dumps(results))
        record = plan.new_record(one)
        plan.write_record(one.folder, plan.Record(**{**vars(record), "exit_code": 0}))
    return plans


def test_seeds_that_are_done_are_not_run_again_and_are_summed_up(tmp_path, draw):
    values = [draw() for _ in range(3)]
    plans = planned(tmp_path, [f"seed-{n}" for n in range(3)], values, "policy")
    runs = gfn_runs.Runs("arithmetic", "gfn train arith --seed=0,1,2", ({},), (0, 1, 2), False)
    (page,) = gfn_runs.complete(runs, plans, 1, tmp_path)
    found = json.loads((tmp_path / "summary.json").read_text())
    assert found["runs"] == {"seed-0": "done", "seed-1": "done", "seed-2": "done"}
    cell = found["rows"]["policy"]["accuracy_3"]
    assert cell["seeds"] == pytest.approx([np.mean(row) for row in values])
    assert cell["mean"] == pytest.approx(np.mean(values))
    assert cell["spread"] == pytest.approx(np.std([np.mean(row) for row in values], ddof=1))
    assert found["rows"]["base"]["accuracy_3"]["mean"] == 1.0
    assert found["rows"].keys() == {"policy", "base"}
    assert "base" in page
    assert "All metrics" in page


def test_a_sweep_is_sorted_by_validation(tmp_path):
    names, shares = ["steps-4", "steps-8", "steps-16"], (0.25, 1.0, 0.5)
    values = [np.repeat([100.0, 0.0], [int(40 * share), 40 - int(40 * share)]) for share in shares]
    plans = planned(tmp_path, names, values, "validation")
    points = tuple({"steps": name[6:]} for name in names)
    runs = gfn_runs.Runs("arithmetic", "gfn train arith --sweep.steps=4,8,16", points, (), True)
    (page,) = gfn_runs.complete(runs, plans, 1, tmp_path)
    found = json.loads((tmp_path / "summary.json").read_text())
    assert list(found["rows"]) == ["steps=8", "steps=16", "steps=4"]
    assert found["points"]["steps=8"] == {"steps": "8"}
    assert "Sorted by accuracy on held-out questions; the first: --steps=8" in page
    assert page.index("steps=8 ") < page.index("steps=16 ") < page.index("steps=4 ")
    own = gfn_runs.Runs("mine:TASK", "", points, (), True)
    (page,) = gfn_runs.complete(own, plans, 1, tmp_path)
    assert "in the order of the sweep" in page
