"""The command, from its flags to its files; and what is wrong with them, in one line."""

import json
import re

import jax
import numpy as np
import pytest

from gfn_jax import posterior_bench
from gfn_jax.bench import methods, run
from gfn_jax.bench.exact import exact_log_policy, make_target
from gfn_jax.bench.methods import EXPLORING, METHODS, Method, Training, make_trainer
from gfn_jax.bench.targets import TARGETS
from gfn_jax.commands import posterior_bench as command
from gfn_jax.evaluation.enumeration import divergences, random_world

ROW = re.compile(r"\| (\S+) \| 16 \| .* \| \d+ \| [\d.]+ \|")


def world_target():
    """15 completions of a random decoder, flat enough to be learnt in a few steps."""
    world = random_world(jax.random.key(0), 2, 3, 1.0, width=8, layers=1)
    given = world.constants
    return make_target("world", given.base, world.reward, given.rules, given.queries, world.completions)


@pytest.mark.slow
def test_two_methods_on_two_targets_end_to_end(tmp_path, capsys, monkeypatch):
    def refusing(reward, trainable):
        raise ValueError("not here")

    monkeypatch.setitem(METHODS, "picky", Method(refusing))
    monkeypatch.setitem(TARGETS, "world", lambda size: world_target())
    chosen = ["--methods=ancestral,importance,picky", "--targets=world,countdown,stories260k-power"]
    flags = [*chosen, "--budget=tiny", "--seeds=2", f"--out={tmp_path}"]
    assert posterior_bench.main(["posterior_bench", *flags]) == 0
    printed = capsys.readouterr().out
    assert "stories260k-power: left out, its model is not there (--stories260k=FOLDER)" in printed
    assert "| picky | - | refuses it: not here |" in printed
    assert [match[1] for match in ROW.finditer(printed)] == ["ancestral", "importance"] * 2
    found = json.loads((tmp_path / "results.json").read_text())
    assert list(found["targets"]) == ["world", "countdown"]
    for name, target in found["targets"].items():
        assert f"## {name}" in (tmp_path / "results.md").read_text()
        runs = [one for one in target["runs"] if "refused" not in one]
        assert [(one["method"], one["seed"]) for one in runs] == [
            (m, s) for m in ("ancestral", "importance") for s in (0, 1)
        ]
        for one in runs:
            assert 0 <= one["total_variation"] <= 1
            assert one["tokens"] == one["generated"] + one["scored"] > 16
            assert (one["exact"] is None) is (one["method"] == "importance")
        first, second = runs[:2]
        assert first["kl_to_target"] != second["kl_to_target"]  # seeds differ in what is drawn
        assert first["exact"] == second["exact"]
    assert (tmp_path / "kl_against_tokens.png").is_file() is ("kl_against_tokens.png" in printed)


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ([], "no out; name a folder, for instance --out=runs/bench"),
        (["--out=O", "--methods=absent"], "method 'absent' is unknown; there are ancestral, .*"),
        (["--out=O", "--targets=numbers,absent"], "target 'absent' is unknown; there are numbers, stories-infill, .*"),
        (["--out=O", "--budget=huge"], "flag --budget=huge: .*"),
        (["--out=O", "--seeds=0"], "--seeds is 0; it must be at least 1"),
        (["--out=O", "numbers"], "'numbers' is no flag; write --methods=importance"),
    ],
)
def test_what_is_wrong_is_one_line(capsys, arguments, line, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert posterior_bench.main(["posterior_bench", *arguments]) == 2
    assert re.fullmatch(f"error: {line}\n", capsys.readouterr().err)
    assert list(tmp_path.iterdir()) == []


def test_the_flags_budgets_are_those_there_are():
    assert set(command.BUDGETS) == set(run.BUDGETS)


@pytest.mark.slow
def test_a_trained_policy_is_nearer_than_the_base(monkeypatch):
    monkeypatch.setattr(methods, "RANK", 4)
    target = world_target()
    training = Training("gflownet", {"subtb": 1.0}, EXPLORING, 0.25, learning_rate=2e-2)
    trained = make_trainer(training, target, rows=16, steps=40)(jax.random.key(1))

    def distance(model):
        return float(divergences(exact_log_policy(target, model)[0], target.log_target[0])["total_variation"])

    assert distance(trained.model) < 0.5 * distance(target.base)
    # 12 fresh rows of a step, each of at most three tokens and its stop; the reward's Y here is one token.
    assert 40 * 12 < trained.generated <= 40 * 12 * 4
    assert trained.scored == trained.generated


@pytest.mark.slow
def test_every_method_ends_on_every_target(tmp_path):
    assert posterior_bench.main(["posterior_bench", "--budget=tiny", f"--out={tmp_path}"]) == 0
    found = json.loads((tmp_path / "results.json").read_text())["targets"]
    assert len(found) == 8
    for target in found.values():
        assert [one["method"] for one in target["runs"]] == list(METHODS)
        assert all(np.isfinite(one["total_variation"]) for one in target["runs"])
