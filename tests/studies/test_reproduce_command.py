"""The command, from its flags to its report; and what is wrong with them, in one line."""

import io
import json
import os
import pathlib
import sys
import tarfile

import fake_studies
import pytest
from fake_studies import fake_job, study

from gfn_jax import reproduce
from gfn_jax.commands import reproduce as command
from gfn_jax.studies import packed, plan, pool
from gfn_jax.studies.study import Job, Row

ROOT = pathlib.Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def _fakes(monkeypatch, tmp_path):
    monkeypatch.setenv("PYTHONPATH", f"{ROOT}{os.pathsep}{pathlib.Path(__file__).parent}")
    monkeypatch.chdir(tmp_path)
    use(monkeypatch, fake_studies.studies)


def use(monkeypatch, studies):
    for name, module in fake_studies.modules(studies).items():
        monkeypatch.setitem(sys.modules, name, module)


def main(*arguments: str) -> int:
    return reproduce.main(["reproduce", *arguments])


def table(text: str) -> dict[str, list[str]]:
    return {line.split()[0]: line.split()[1:] for line in text.splitlines()[2:] if line.count("  ") > 2}


def test_from_nothing_to_a_report_and_again(capsys, tmp_path, monkeypatch):
    written = []
    monkeypatch.setattr(
        sys.modules["gfn_jax.studies.report"],
        "write",
        lambda *given: written.append(given) or fake_studies.write(*given),
    )
    flags = ["--what=fine,also,fine", "--seeds=0,1", "--workdir=work", "--workers=2"]
    assert main(*flags) == 0
    printed = capsys.readouterr()
    assert printed.out == "base 4\nrun/seed-0 8\nrun/seed-1 9\n"
    assert "finished base" in printed.err
    assert (tmp_path / "work/report/report.md").read_text() == printed.out.strip()
    assert main(*flags, "--out=elsewhere") == 0
    printed = capsys.readouterr()
    assert printed.out == "base 4\nrun/seed-0 8\nrun/seed-1 9\n"
    assert "started" not in printed.err
    assert (tmp_path / "elsewhere/report.md").exists()
    (studies, found, out, facts), second = written
    assert [study.name for study in studies] == ["fine", "also"]
    assert list(found) == ["base", "run/seed-0", "run/seed-1"]
    assert found["base"].job["arguments"][-1] == f"--workdir={tmp_path}/work/base"
    assert out == tmp_path / "work/report"
    assert second[2] == tmp_path / "elsewhere"
    assert facts.command == f"python -m gfn_jax.reproduce {' '.join(flags)}"
    assert (facts.preset, facts.seeds) == ("tiny", (0, 1))
    assert facts.versions["jax"] == plan.version("jax") != "not installed"
    assert facts.versions["python"].startswith("3.")


def test_what_was_packed_is_done_in_another_workdir(capsys, tmp_path, monkeypatch):
    written = []
    monkeypatch.setattr(
        sys.modules["gfn_jax.studies.report"],
        "write",
        lambda *given: written.append(given[1]) or fake_studies.write(*given),
    )
    flags = ["--what=fine", "--seeds=0,1"]
    assert main(*flags, "--workdir=work") == 0
    printed = capsys.readouterr().out
    archive = packed.packed(written[0])
    with tarfile.open(fileobj=io.BytesIO(archive)) as files:
        files.extractall("other", filter="data")
    left = {str(path.relative_to("other")) for path in pathlib.Path("other").rglob("*") if path.is_file()}
    assert left == {f"{job}/{name}" for job in ("base", "run/seed-0", "run/seed-1") for name in packed.KEPT[:2]}
    assert str(tmp_path) not in pathlib.Path("other/base/job.json").read_text()
    assert main(*flags, "--workdir=other") == 0
    again = capsys.readouterr()
    assert again.out == printed
    assert "started" not in again.err
    assert packed.packed(written[1]) == archive


def test_list_says_what_would_run_and_starts_nothing(capsys, tmp_path):
    flags = ["--seeds=0,1", "--workdir=work", "--workers=1"]
    assert main(*flags, "--list") == 0
    printed = capsys.readouterr()
    assert printed.err == ""
    assert list(tmp_path.iterdir()) == []
    assert table(printed.out) == {
        name: ["missing", "1", "0.1"] for name in ("base", "bad", "run/seed-0", "run/seed-1", "after")
    }
    assert "5 jobs: 5 missing\nleft: 5 s of one core, about 5 s by the clock with --workers=1\n" in printed.out
    assert main(*flags) == 1
    printed = capsys.readouterr()
    assert printed.out == "base 4\nrun/seed-0 8\nrun/seed-1 9\n"  # the report is of what is there
    assert printed.err.endswith("error: 1 of 5 jobs failed: bad; 1 that need them were skipped (see output.txt)\n")
    assert main(*flags, "--list", "--seeds=0,1,2") == 0
    rows = table(capsys.readouterr().out)
    states = {name: row[0] for name, row in rows.items()}
    assert states == {
        "base": "done",
        "bad": "failed",
        "run/seed-0": "done",
        "run/seed-1": "done",
        "run/seed-2": "missing",
        "after": "missing",
    }
    took = sorted(float(rows[f"run/seed-{n}"][1]) for n in (0, 1))
    assert took[0] <= float(rows["run/seed-2"][1]) <= took[1]
    assert main(*flags, "--list", "--preset=paper") == 0
    assert "--preset=paper has not been run here" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["--what=fine,table9"], "there is no study 'table9'; there are fine, also, broken"),
        (["--preset=large"], "flag --preset=large: value should be one of <tiny|paper>"),
        (["--seeds=0,x"], "--seeds is '0,x'; it must be whole numbers, for instance 0,1,2"),
        (["--seeds="], "--seeds is ''; it must be whole numbers, for instance 0,1,2"),
        (["--workers=0"], "--workers is 0; it must be 1 or more"),
        (["fine"], "'fine' is no flag; write --what=table4"),
    ],
)
def test_what_is_wrong_is_said_in_one_line_and_nothing_runs(capsys, tmp_path, arguments, line):
    assert main(*arguments, "--workdir=work") == 2
    assert capsys.readouterr() == ("", f"error: {line}\n")
    assert list(tmp_path.iterdir()) == []


def test_a_launch_that_would_be_refused_is_refused_before_anything_runs(capsys, tmp_path, monkeypatch):
    bad = Job("run/seed-0", "gfn_jax.launch", ("--config=configs/arith.py:tiny", "--config.lora.rank=0"))
    use(monkeypatch, lambda preset, seeds: {"one": study("one", Row("row", (fake_job("base"), bad)))})
    assert main("--workdir=work") == 2
    assert capsys.readouterr().err == (
        "error: job run/seed-0: lora.rank is 0; it must be a whole number from 1 to 16384\n"
    )
    assert list(tmp_path.iterdir()) == []


def test_jobs_run_where_the_configs_are(monkeypatch, tmp_path, capsys):
    assert command.checkout() == ROOT
    monkeypatch.setattr(command, "__file__", str(tmp_path / "a/b/c.py"))
    assert main() == 2
    err = capsys.readouterr().err
    assert err == f"error: there is no configs/ in {tmp_path}, nor in the current folder: run this in a checkout\n"
    (tmp_path / "configs").mkdir()
    assert command.checkout() == tmp_path


def test_by_default_as_many_run_as_there_are_cores_and_one_on_accelerators(capsys, monkeypatch):
    monkeypatch.setattr(pool, "cores", lambda: 5)
    for preset, workers in (("tiny", 5), ("paper", 1)):
        assert main("--list", f"--preset={preset}") == 0
        assert f"with --workers={workers}\n" in capsys.readouterr().out


@pytest.mark.slow
def test_a_launch_is_run_and_used_again(capsys, tmp_path, monkeypatch):
    """The launcher's own files come out; another way to measure makes it run anew."""
    small = ("steps=2", "optimizer.warmup_steps=1", "objective.imitation_steps=0")
    small += ("evaluation.questions=10", "evaluation.test_questions=10")

    def studies(preset, seeds, more=()):
        flags = tuple(f"--config.{flag}" for flag in (*small, *more))
        run = Job("arith/seed-0", "gfn_jax.launch", ("--config=configs/arith.py:tiny", *flags))
        return {"one": study("one", Row("row", (run,)))}

    def write(studies, results, out, facts):
        return json.dumps({name: sorted(found.results["policy"]) for name, found in results.items()})

    def lines():
        return [line.split()[0] for line in capsys.readouterr().err.splitlines()[1:]]

    def run():
        monkeypatch.setattr(sys.modules["gfn_jax.studies.report"], "write", write)
        return main("--workdir=work")

    use(monkeypatch, studies)
    assert run() == 0
    printed = capsys.readouterr()
    assert "accuracy" in printed.out
    record = plan.read_record(tmp_path / "work/arith/seed-0")
    assert record.exit_code == 0
    assert record.gigabytes > 0.1
    assert (tmp_path / "work/arith/seed-0/checkpoints/2").exists()
    assert run() == 0
    assert lines() == []
    use(monkeypatch, lambda preset, seeds: studies(preset, seeds, ("evaluation.questions=12",)))
    assert run() == 0
    assert lines() == ["started", "finished"]
    assert (tmp_path / "work/.aside/arith/seed-0" / record.identity / "results.json").exists()
