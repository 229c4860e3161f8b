"""Jobs in order, their identities, and whose their folders are."""

import dataclasses
import itertools
import pathlib
import random

import pytest
from fake_studies import fake_job, study

from gfn_jax.commands.reproduce import meaning
from gfn_jax.studies import plan
from gfn_jax.studies.study import Job, Row

ARITH = f"--config={pathlib.Path(__file__).parents[2]}/configs/arith.py:tiny"


def arguments_of(job):
    return job.arguments


def planned(folder, *jobs):
    return plan.make_plan(plan.ordered(jobs), folder, arguments_of)


def names(jobs):
    return [job.name for job in jobs]


def finish(one, exit_code=0, seconds=5.0, results="{}"):
    plan.write_record(one.folder, dataclasses.replace(plan.new_record(one), exit_code=exit_code, seconds=seconds))
    if results is not None:
        (one.folder / "results.json").write_text(results)


def test_a_job_comes_behind_what_it_needs_and_the_longest_first():
    jobs = [
        fake_job("short", seconds=1),
        fake_job("long", seconds=10),
        fake_job("last", needs=("middle",), seconds=5),
        fake_job("middle", needs=("first",), seconds=4),
        fake_job("first", seconds=2),
    ]
    assert names(plan.ordered(jobs)) == ["first", "long", "middle", "last", "short"]  # 11, 10, 9, 5, 1 seconds


def test_random_graphs_are_ordered():
    draw = random.Random(0)
    for size in range(1, 30):
        jobs = [
            fake_job(
                f"j{i}", needs=tuple(f"j{k}" for k in range(i) if draw.random() < 0.2), seconds=draw.choice([0, 1, 7])
            )
            for i in range(size)
        ]
        draw.shuffle(jobs)
        order = names(plan.ordered(jobs))
        assert sorted(order) == sorted(names(jobs))
        assert all(order.index(need) < order.index(job.name) for job in jobs for need in job.needs)


def test_what_a_chosen_study_needs_is_chosen_once_from_wherever_it_is():
    base = fake_job("base", seconds=9)
    rows = [Row("a", (fake_job("a", needs=("base",), seconds=5), fake_job("b"))), Row("again", (fake_job("b"),))]
    studies = {"table": study("table", *rows), "other": study("other", Row("base", (base, fake_job("c"))))}
    assert names(plan.chosen_jobs(studies, ["table"])) == ["base", "a", "b"]
    assert names(plan.chosen_jobs(studies, ["other", "table"])) == ["base", "a", "b", "c"]


@pytest.mark.parametrize(
    ("jobs", "line"),
    [
        ((fake_job("a", needs=("b",)), fake_job("b", needs=("a",))), "in a circle: (a -> b -> a|b -> a -> b)"),
        ((fake_job("a", needs=("a",)),), "in a circle: a -> a"),
        ((fake_job("a", needs=("b",)),), "a needs 'b', which is no job"),
        ((fake_job("a"), fake_job("a", "--steps=1")), "two jobs are called 'a', and differ"),
        ((fake_job("a/b"), fake_job("a/b/c")), "the folder of a/b/c would lie in that of a/b"),
        ((fake_job("a/../../b"),), "cannot be a job's name"),
        ((fake_job(".aside"),), "cannot be a job's name"),
        ((fake_job("/a"),), "cannot be a job's name"),
    ],
)
def test_jobs_that_cannot_be_run_are_refused(jobs, line):
    with pytest.raises(ValueError, match=line):
        plan.chosen_jobs({"table": study("table", Row("row", jobs))}, ["table"])


def test_a_folder_in_an_argument_must_be_of_a_job_that_is_needed(tmp_path):
    _, b = planned(tmp_path, fake_job("x/a"), fake_job("b", "--c={'k': 1}", needs=("x/a",)))
    assert b.arguments == ("job", "--c={'k': 1}", f"--reads={tmp_path}/x/a", f"--workdir={tmp_path}/b")
    with pytest.raises(ValueError, match=r"b has '--reads=\{a\}', and does not need a job 'a'"):
        planned(tmp_path, fake_job("a"), fake_job("b", "--reads={a}"))


def test_an_identity_is_of_what_results_depend_on(tmp_path):
    def identity(**changes):
        first = dataclasses.replace(fake_job("a", "--steps=1"), **changes.pop("first", {}))
        job = dataclasses.replace(fake_job("b", "--value=1", needs=("a",)), **changes)
        return planned(tmp_path, first, job)[1].identity

    same = identity()
    assert same == identity() == identity(seconds=0.5, gigabytes=9.0) == identity(first={"seconds": 77.0})
    different = [
        identity(module="other"),
        identity(arguments=("job", "--value=2", "--reads={a}")),
        identity(first={"arguments": ("--steps=2",)}),
        identity(first={"module": "other"}),
    ]
    assert len({same, *different}) == 5
    elsewhere = plan.make_plan([fake_job("a", "--steps=1")], tmp_path / "elsewhere", arguments_of)
    assert elsewhere[0].identity == planned(tmp_path, fake_job("a", "--steps=1"))[0].identity


def test_of_a_launch_the_config_is_meant_whatever_the_words():
    def launch(*flags):
        return meaning(Job("run", "gfn_jax.launch", (ARITH, *flags)))

    plain = launch()
    assert plain["evaluation"]
    assert plain["certificate"]
    words = ("--config.seed=3", "--config.model.path=elsewhere")
    assert launch(*words) == launch(*reversed(words))
    assert launch("--config.log_every=3") == launch("--config.seed=0") == plain
    others = ["--config.seed=1", "--config.evaluation.questions=7", "--config.certificate.samples=3", words[1]]
    for one, other in itertools.combinations([plain, *map(launch, others)], 2):
        assert one != other
    assert meaning(Job("run", "module", ("--config.sed=1",))) == ("--config.sed=1",)
    for wrong in ("--config.sed=1", "--config.lora.rank=0", "--config.ppo.epochs=2", "--sed=1", "word"):
        with pytest.raises(ValueError, match=r"^job run: "):
            launch(wrong)


def test_what_became_of_a_job(tmp_path):
    (one,) = planned(tmp_path, fake_job("x/a"))
    assert plan.state(one) == "missing"
    plan.write_record(one.folder, plan.new_record(one))
    assert plan.state(one) == "interrupted"
    for code, results, state in ((1, "{}", "failed"), (0, "{}", "done")):
        finish(one, code, results=results)
        assert plan.state(one) == state
    (one.folder / "results.json").unlink()
    assert plan.state(one) == "failed"
    (changed,) = planned(tmp_path, fake_job("x/a", "--steps=5"))
    assert plan.state(changed) == "changed"


def test_a_folder_of_another_identity_is_moved_aside_and_back(tmp_path):
    one, other, third = (planned(tmp_path, fake_job("x/a", f"--steps={n}"))[0] for n in range(3))
    finish(one, results='{"policy": {"count": 1}}')
    plan.settle(other)
    assert not other.folder.exists()
    assert plan.state(one) == "done"  # though aside
    finish(other, results='{"policy": {"count": 2}}')
    for _ in range(2):
        for now, count, rest in ((one, 1, other), (other, 2, one)):
            plan.settle(now)
            plan.settle(now)
            assert plan.found([now])["x/a"].results == {"policy": {"count": count}}
            assert now.folder.exists()
            assert rest.aside.exists()
            assert not now.aside.exists()
    plan.settle(third)
    assert {path.name for path in third.aside.parent.iterdir()} == {one.identity, other.identity}


def test_what_no_job_has_made_is_let_be(tmp_path):
    (one,) = planned(tmp_path, fake_job("a"))
    one.folder.mkdir()
    plan.settle(one)  # killed before it wrote anything
    assert not one.folder.exists()
    one.folder.mkdir()
    (one.folder / "thesis.tex").write_text("...")
    with pytest.raises(ValueError, match=r"a is no job's, for it has no job.json; move it away"):
        plan.settle(one)
    (one.folder / "job.json").write_text("{}")
    with pytest.raises(ValueError, match=r"job.json cannot be read"):
        plan.state(one)


def test_found_are_the_files_of_what_is_done(tmp_path):
    jobs = [fake_job(name) for name in ("done", "failed", "missing", "questions")]
    done, failed, missing, questions = planned(tmp_path, *jobs)
    for one, code in ((done, 0), (failed, 1), (questions, 0)):
        finish(one, code, results='{"policy": {"count": 1}}')
    (questions.folder / "questions.json").write_text('{"policy": {"right": [0, 1]}}')
    found = plan.found([done, failed, missing, questions])
    assert list(found) == ["done", "questions"]
    assert found["done"].questions is None
    assert found["questions"].questions == {"policy": {"right": [0, 1]}}
    assert found["done"].job["identity"] == done.identity
    assert found["done"].folder == done.folder
    (done.folder / "results.json").write_text("{")
    with pytest.raises(ValueError, match=r"results.json cannot be read .*; remove .*done"):
        plan.found([done])


def test_a_job_is_expected_to_take_what_its_like_took(tmp_path):
    seeds = [fake_job(f"run/seed-{seed}", f"--value={seed}", seconds=100.0) for seed in range(4)]
    jobs = planned(tmp_path, *seeds, fake_job("run/seeded", seconds=50.0, gigabytes=2.0))
    for one, seconds in zip(jobs[:3], (10.0, 20.0, 1000.0)):
        finish(one, exit_code=0 if seconds < 1000 else 1, seconds=seconds)
    seconds = {name: one.seconds for name, one in plan.expected(jobs).items()}
    assert seconds == {"run/seed-0": 10, "run/seed-1": 20, "run/seed-2": 15, "run/seed-3": 15, "run/seeded": 50}
    assert plan.expected(jobs)["run/seeded"].gigabytes == 2


def test_time_by_the_clock(tmp_path):
    jobs = planned(tmp_path, fake_job("a"), fake_job("b", needs=("a",)), fake_job("c"))
    rest = {"a": 10.0, "b": 10.0, "c": 4.0}
    assert [plan.by_the_clock(rest, jobs, workers) for workers in (1, 2, 9)] == [24, 20, 20]
    assert plan.by_the_clock({"b": 3.0, "c": 4.0}, jobs, 1) == 7
    assert plan.by_the_clock({}, jobs, 1) == 0
    assert [plan.readable_time(seconds) for seconds in (0.4, 41, 720, 4800)] == ["0 s", "41 s", "12 min", "1 h 20 min"]
