import json
import logging

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gfn_jax.training.checkpoint import Checkpointer, claim_workdir, config_digest

CONFIG = {"task": {"name": "arithmetic", "operands": (3, 4)}, "optimizer": {"learning_rate": 1e-3}, "seed": 0}


def state(value: float) -> dict:
    return {"step": jnp.asarray(int(value)), "w": jnp.full((300,), value), "best": jnp.full((3,), -jnp.inf)}


def saved(workdir, steps, scores=None, digest="digest") -> Checkpointer:
    checkpointer = Checkpointer(workdir, digest)
    for number, step in enumerate(steps):
        checkpointer.save(step, state(step), seconds=10.0 * step, score=scores[number] if scores else None)
    checkpointer.wait()
    return checkpointer


def test_restores_the_newest_with_its_facts(tmp_path):
    saved(tmp_path, [1, 2]).close()
    restored = Checkpointer(tmp_path, "digest").restore(state(0))
    assert (restored.step, restored.seconds) == (2, 20.0)
    assert jax.tree.all(jax.tree.map(lambda a, b: np.array_equal(a, b), restored.state, state(2)))
    assert jax.tree.map(lambda x: (x.shape, x.dtype), restored.state) == jax.tree.map(
        lambda x: (x.shape, x.dtype), state(0)
    )


def test_nothing_saved_is_nothing_restored(tmp_path):
    checkpointer = Checkpointer(tmp_path, "digest")
    assert checkpointer.restore(state(0)) is None
    assert checkpointer.latest_step is None


def test_keeps_the_latest_two_and_the_best_over_a_restart(tmp_path):
    saved(tmp_path, [1, 2, 3, 4], scores=[float("nan"), 0.9, 0.1, None]).close()
    again = saved(tmp_path, [5, 6, 7], scores=[0.3, 0.4, None])
    assert again.steps == [2, 6, 7]


@pytest.mark.parametrize("damage", ["array", "everything", "facts"])
def test_a_damaged_newest_checkpoint_is_skipped_said_and_put_aside(tmp_path, caplog, damage):
    saved(tmp_path, [2, 4]).close()
    folder = tmp_path / "checkpoints" / "4"
    damaged = {
        "array": [max((folder / "state").rglob("d/*"), key=lambda path: path.stat().st_size)],
        "everything": [path for path in folder.rglob("*") if path.is_file()],
        "facts": [folder / "facts" / "metadata"],
    }[damage]
    for path in damaged:
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 3])
    checkpointer = Checkpointer(tmp_path, "digest")
    with caplog.at_level(logging.WARNING, logger="gfn_jax"):
        restored = checkpointer.restore(state(0))
    assert restored.step == 2
    assert "step 4 cannot be read" in caplog.text
    assert [path.name.split("-")[0] for path in (tmp_path / "unreadable").iterdir()] == ["4"]
    checkpointer.save(4, state(4), seconds=0.0)
    checkpointer.wait()
    assert Checkpointer(tmp_path, "digest").restore(state(0)).step == 4


def test_when_none_can_be_read_the_run_does_not_start_over(tmp_path):
    saved(tmp_path, [2, 4]).close()
    for path in (tmp_path / "checkpoints").rglob("d/*"):
        path.write_bytes(b"")
    with pytest.raises(ValueError, match=r"no checkpoint .*: step 4 .*; step 2 .*; move the folder away"):
        Checkpointer(tmp_path, "digest").restore(state(0))
    assert Checkpointer(tmp_path, "digest").steps == [2, 4]


def test_a_checkpoint_of_another_config_is_refused(tmp_path):
    saved(tmp_path, [2], digest="theirs").close()
    with pytest.raises(ValueError, match="it belongs to config theirs, not ours"):
        Checkpointer(tmp_path, "ours").restore(state(0))


def test_a_half_written_checkpoint_is_ignored(tmp_path):
    saved(tmp_path, [2]).close()
    (tmp_path / "checkpoints" / "4.orbax-checkpoint-tmp").mkdir()
    assert Checkpointer(tmp_path, "digest").restore(state(0)).step == 2


def test_a_workdir_takes_one_config(tmp_path):
    assert claim_workdir(tmp_path / "run", CONFIG) == config_digest(CONFIG)
    saved(tmp_path / "run", [1]).close()
    assert claim_workdir(tmp_path / "run", CONFIG) == config_digest(CONFIG)
    other = {**CONFIG, "optimizer": {"learning_rate": 2e-3}, "extra": 1}
    with pytest.raises(ValueError, match="belongs to another config") as error:
        claim_workdir(tmp_path / "run", other)
    expected = "extra is only here; optimizer.learning_rate is 0.001 there and 0.002 here; use"
    assert expected in str(error.value)
    assert json.loads((tmp_path / "run" / "config.json").read_text())["seed"] == 0


def test_a_workdir_without_a_checkpoint_is_nobodys(tmp_path):
    claim_workdir(tmp_path, {"learning_rate": -1.0})
    Checkpointer(tmp_path, "digest").close()
    claim_workdir(tmp_path, CONFIG)
    assert json.loads((tmp_path / "config.json").read_text())["seed"] == 0


def test_many_differences_are_counted(tmp_path):
    claim_workdir(tmp_path, dict.fromkeys("abcde", 0))
    saved(tmp_path, [1]).close()
    with pytest.raises(ValueError, match=r"c is 0 there and 1 here \(and 2 more\)"):
        claim_workdir(tmp_path, dict.fromkeys("abcde", 1))


def test_a_damaged_config_is_one_line(tmp_path):
    (tmp_path / "config.json").write_text('{"a": ')
    saved(tmp_path, [1]).close()
    with pytest.raises(ValueError, match=r"config.json cannot be read \(.*\); use another --workdir"):
        claim_workdir(tmp_path, CONFIG)


def test_the_digest_reads_values_not_their_order():
    assert config_digest({"a": 1, "b": {"c": 2, "d": 3}}) == config_digest({"b": {"d": 3, "c": 2}, "a": 1})
    assert config_digest({"a": 1}) != config_digest({"a": 2})
