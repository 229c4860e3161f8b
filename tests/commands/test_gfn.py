"""The short command line: what a word means, what is refused in one line, and that it says so without jax."""

import os
import pathlib
import re
import subprocess
import sys

import pytest
import setuptools

from gfn_jax import gfn
from gfn_jax.commands import gfn as dispatch
from gfn_jax.commands import gfn_configs, gfn_train, shipped
from gfn_jax.commands.config_flag import load_config
from gfn_jax.commands.gfn_help import HELP
from gfn_jax.runs.explained import classes_of, explained
from gfn_jax.sections import meanings

ROOT = pathlib.Path(__file__).parents[2]
TRAINED = [name for name in shipped.shipped() if name != "benchmark"]


def main(*words: str) -> int:
    return gfn.main(["gfn", *words])


def test_every_command_has_its_line_and_its_help(capsys):
    assert HELP.keys() == dispatch.COMMANDS.keys()
    assert main() == main("--help") == 0
    out = capsys.readouterr().out
    assert out.startswith(gfn.__doc__)
    assert all(f"    {name} " in out for name in dispatch.COMMANDS)


@pytest.mark.parametrize("name", dispatch.COMMANDS)
def test_help_of_a_command(name, capsys):
    assert main(name, "--help") == 0
    out = capsys.readouterr().out
    assert out.startswith(HELP[name])
    assert f"gfn {name}" in out


def test_version(capsys):
    assert main("--version") == 0
    assert re.fullmatch(r"gfn_jax (\d+\.\d+.*|not installed)\n", capsys.readouterr().out)


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["trian"], "there is no command 'trian'; did you mean 'train'?"),
        (["absent"], "there is no command 'absent'; there are train, .*"),
        (["train"], "no config; name one, for instance `gfn train arith`.*"),
        (["train", "arihm"], "there is no config 'arihm'; did you mean 'arith'?"),
        (["train", "arith:tny"], "arith has no preset 'tny'; did you mean 'tiny'?"),
        (["train", "arith:x"], "arith has no preset 'x'; it has tiny, .*"),
        (["train", "absent.py"], "there is no config file absent.py"),
        (["train", "arith", "rng"], "'rng' is no flag; .*"),
        (["train", "arith", "--stpes=4"], "there is no --stpes; did you mean --steps?"),
        (["train", "arith", "--wokdir=x"], "there is no --wokdir; did you mean --workdir?"),
        (
            ["train", "arith", "--learning_rate=1"],
            "there is no --learning_rate; did you mean --optimizer.learning_rate?",
        ),
        (["train", "arith", "--config.stpes=4"], "there is no --config.stpes; did you mean --config.steps?"),
        (["train", "arith", "--sweep.stpes=4,5"], "there is no --sweep.stpes; did you mean --sweep.steps?"),
        (["train", "arith", "--sweep.steps=4"], "--sweep.steps is '4'; it must be two or more different values.*"),
        (["train", "arith", "--sweep.steps=4,4"], "--sweep.steps is '4,4'; .*"),
        (
            ["train", "arith", "--sweep.steps=4,5", "--steps=4"],
            "--steps and --sweep.steps are both given: leave one out",
        ),
        (["train", "arith", "--sweep.seed=0,1"], "seeds are no sweep, .* write --seed=0,1"),
        (["train", "arith", "--seed=0,x"], "--seed is '0,x'; it must be whole numbers, .*"),
        (["train", "arith", "--steps=x"], "flag --config.steps=x: invalid literal .*"),
        (["train", "arith", "--sweep.steps=4,x"], "flag --config.steps=x: invalid literal .*"),
        (["train", "arith", "--seed=0,1", "--workers=0"], "--workers is 0; it must be 1 or more"),
        (["train", "arith", "--seed=0,1", "--distributed"], "several runs are one machine's, .*"),
        (["train", "arith", "--seed=0,1", "--sampler=0"], "--sampler is one run's, and these are several: .*"),
        (["train", "arith", "--sampler=-1"], "flag --sampler=-1: -1 is not a non-negative integer"),
        (["configs", "arihm"], "there is no config 'arihm'; did you mean 'arith'?"),
        (["tune", "arihm"], "there is no config 'arihm'; did you mean 'arith'?"),
        (["benchmark", "z"], "benchmark has no preset 'z'; it has a, b, tiny.*"),
        (["evaluate"], "no workdir; write gfn evaluate WORKDIR"),
        (["evaluate", "absent"], "absent is no run's workdir, it has no config.json"),
        (["sample"], "no model; name a folder.*"),
        (["export", "absent"], "no out; write .*"),
        (["compare", "one"], "1 runs; name two or more, .*"),
        (["doctor", "now"], "'now' is no flag; .*"),
    ],
)
def test_what_is_wrong_is_one_line(capsys, monkeypatch, tmp_path, words, line):
    monkeypatch.chdir(tmp_path)
    assert main(*words) == 2
    err = capsys.readouterr().err
    assert re.fullmatch(f"error: {re.sub('[?]', '[?]', line)}\n", err), err


def test_a_misspelt_key_is_said_before_anything_heavy_is_imported(tmp_path):
    command = [sys.executable, "-X", "importtime", "-m", "gfn_jax.gfn", "train", "rng:smoke", "--sed=1"]
    environ = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, env=environ, cwd=tmp_path)
    assert done.returncode == 2
    lines = [line for line in done.stderr.splitlines() if not line.startswith("import time:")]
    assert lines == ["error: there is no --sed; did you mean --seed?"]
    imported = {line.rsplit("|", 1)[-1].strip() for line in done.stderr.splitlines() if "import time:" in line}
    assert not imported & {"jax", "orbax.checkpoint", "transformers", "numpy"}


def test_the_launchers_command_line(monkeypatch):
    monkeypatch.chdir(ROOT)
    words = ["arith:supervised", "--steps", "40", "--config.lora.rank=4", "--model.remat", "--workdir=w", "--dry_run"]
    line = gfn_train.read_line(words)
    assert line.launch(seed=3) == [
        "launch",
        "--config=configs/arith.py:supervised",
        "--workdir=w",
        "--dry_run",
        "--config.steps=40",
        "--config.lora.rank=4",
        "--config.model.remat",
        "--config.seed=3",
    ]
    assert not line.several
    assert line.points == ({},)


def test_seeds_and_sweeps(monkeypatch):
    monkeypatch.chdir(ROOT)
    targets = "--sweep.lora.targets=('q','v'),('q',)"
    line = gfn_train.read_line(["rng:smoke", "--seed=2,0,2", "--sweep.steps=4,8", targets, "--workers=2"])
    assert line.seeds == (2, 0)
    assert line.workers == 2
    assert line.sweep == {"steps": ("4", "8"), "lora.targets": ("('q','v')", "('q',)")}
    assert len(line.points) == 4
    jobs = gfn_train.jobs(line, "random_numbers")
    assert [job.name for job in jobs[:3]] == [
        "steps-4+lora.targets-q-v/seed-2",
        "steps-4+lora.targets-q-v/seed-0",
        "steps-4+lora.targets-q/seed-2",
    ]
    assert jobs[0].arguments == (
        "--config=configs/rng.py:smoke",
        "--config.report=validation",
        "--config.steps=4",
        "--config.lora.targets=('q','v')",
        "--config.seed=2",
    )
    # Where somebody says what is reported, that counts; seeds alone are reported as any run is.
    reported = gfn_train.read_line(["rng:smoke", "--sweep.steps=4,8", "--report=test"])
    assert "--config.report=validation" not in gfn_train.jobs(reported, "random_numbers")[0].arguments
    first, _ = gfn_train.jobs(gfn_train.read_line(["rng:smoke", "--seed=5,6"]), "random_numbers")
    assert first.name == "seed-5"
    assert first.arguments == ("--config=configs/rng.py:smoke", "--config.seed=5")


@pytest.mark.parametrize("source", ["arith:smoke", "rng:smoke", "subj:em", "finetune:smoke"])
def test_a_printed_config_is_flags(source, capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    assert main("train", source, "--steps=7", "--print_config") == 0
    lines = capsys.readouterr().out.splitlines()
    assert "steps=7" in lines
    assert main("train", source, *(f"--{line}" for line in lines), "--print_config") == 0
    assert capsys.readouterr().out.splitlines() == lines


def test_a_file_of_ones_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own.py").write_text((ROOT / "configs" / "rng.py").read_text())
    assert gfn_train.read_line(["own.py:tiny"]).source == "own.py:tiny"
    assert shipped.resolve("rng:smoke") == f"{ROOT / 'configs' / 'rng.py'}:smoke"


@pytest.mark.parametrize("name", shipped.shipped())
def test_the_presets_that_a_config_lists_are_those_that_it_has(name):
    path = shipped.shipped()[name]
    known = shipped.presets(path)
    with pytest.raises(ValueError, match="is unknown") as refused:
        load_config(f"{path}:absent")
    assert sorted(str(refused.value).rpartition(" has ")[2].split(", ")) == sorted(known)
    assert all(known.values())
    assert shipped.summary(path)
    assert "smoke" in known or name == "benchmark"


def test_presets_are_read_off_any_docstring(tmp_path):
    path = tmp_path / "c.py"
    path.write_text(
        '"""One.\n\nPresets:\n\n    :a, :b (large)\n        two\n        lines\n    :c  one\n\nEnd: :d\n"""\n'
    )
    assert shipped.presets(path) == {"a": "two lines", "b": "(large) two lines", "c": "one"}
    path.write_text("1 +")
    assert shipped.presets(path) == {}


def test_all_configs_are_listed(capsys):
    assert main("configs") == 0
    out = " ".join(capsys.readouterr().out.split())
    for name, path in shipped.shipped().items():
        assert f"{name}: {shipped.summary(path)}" in out


def test_the_keys_of_a_config(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    assert main("configs", "rng:smoke") == 0
    out = capsys.readouterr().out
    assert "  optimizer.learning_rate = 0.002\n      the peak; a finite number of at least 0\n" in out
    assert "Keys of :smoke" in out
    assert max(len(line) for line in out.splitlines() if " = " not in line) <= 100


@pytest.mark.parametrize("name", shipped.shipped())
def test_every_key_has_a_meaning(name, monkeypatch):
    monkeypatch.chdir(ROOT)
    shipped.make_importable()
    config = load_config(str(shipped.shipped()[name])).to_dict()
    keys = explained(config, classes_of(config) if "task" in config else gfn_configs.timed())
    assert keys
    assert [key.name for key in keys if not key.meaning or not key.kind] == []


def test_meanings_of_fields():
    class Parent:
        """Of a parent.

        Attributes:
            one: the first.
        """

    class Child(Parent):
        """Of a child.

        Attributes:
            two, three: more
                than a line.
            one: as there.

        Raises:
            nothing: at all.
        """

    assert meanings(Child) == {"one": "the first.", "two": "more than a line.", "three": "more than a line."}


def test_configs_are_importable_anywhere(tmp_path):
    """A shipped config's task is `configs.own_task:TASK`, also beside a user's own folder of that name."""
    for name in ("site", "configs"):
        (tmp_path / name).mkdir()
    (tmp_path / "site" / "gfn_jax").symlink_to(ROOT / "gfn_jax")
    (tmp_path / "configs" / "mine.py").write_text("")
    program = (
        "import importlib.util\n"
        "from gfn_jax.commands import shipped\n"
        "assert importlib.util.find_spec('configs.own_task') is None\n"
        "shipped.make_importable()\n"
        "assert importlib.util.find_spec('configs.own_task') is not None\n"
        "import configs.mine\n"
    )
    environ = os.environ | {"PYTHONPATH": str(tmp_path / "site")}
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, cwd=tmp_path, env=environ, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_wheel_has_the_configs_and_every_room(monkeypatch):
    """As pip runs setup.py; `pip wheel .` itself takes a network."""
    found = {}
    monkeypatch.setattr(setuptools, "setup", lambda **words: found.update(words))
    monkeypatch.chdir(ROOT)
    exec(compile((ROOT / "setup.py").read_text(), "setup.py", "exec"), {})
    assert found["package_dir"] == {"gfn_jax.configs": "configs"}
    rooms = {f"gfn_jax.{path.parent.name}" for path in (ROOT / "gfn_jax").glob("*/__init__.py")}
    assert rooms | {"gfn_jax", "gfn_jax.configs", "gfn_jax.models.families"} <= {*found["packages"]}
