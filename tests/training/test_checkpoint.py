import json
import logging
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest

from gfn_jax.runs.defaults import policy_config
from gfn_jax.sections import described
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


def bits_of_the_largest_chunk(folder):
    """The state's arrays lie in one file, noise nearly uncompressed: a bit of a number is turned over."""
    path = max((folder / "state").rglob("d/*"), key=lambda path: path.stat().st_size)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def the_seconds(folder):
    path = folder / "facts" / "metadata"
    path.write_text(path.read_text().replace("40.0", "41.0"))


@pytest.mark.parametrize(
    ("damage", "named"),
    [(bits_of_the_largest_chunk, "w: not the numbers that were saved"), (the_seconds, "its facts are not those")],
)
def test_other_numbers_than_were_saved_are_never_restored(tmp_path, caplog, damage, named):
    """Nothing else would notice: the files can be read, and hold numbers."""
    noise = jnp.asarray(np.random.default_rng(0).standard_normal(4000), jnp.float32)
    checkpointer = Checkpointer(tmp_path, "digest")
    for step in (2, 4):
        checkpointer.save(step, {"w": noise * step, "mask": noise > 0}, seconds=10.0 * step)
    checkpointer.close()
    damage(tmp_path / "checkpoints" / "4")
    with caplog.at_level(logging.WARNING, logger="gfn_jax"):
        restored = Checkpointer(tmp_path, "digest").restore({"w": noise, "mask": noise > 0})
    assert restored.step == 2
    assert f"step 4 cannot be read ({named}" in caplog.text
    np.testing.assert_array_equal(restored.state["w"], noise * 2)


def wrapped(error: Exception) -> Exception:
    outer = Exception("Encountered error while reading array index")
    outer.__cause__ = error
    return outer


@pytest.mark.parametrize(
    ("fault", "named"),
    [
        (MemoryError(), "out of memory"),
        (OSError(5, "Input/output error"), "Input/output error"),
        (jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes."), "Out of memory"),
        (wrapped(ValueError("Error reading x [os_error_code='24']")), "Too many open files"),
    ],
)
def test_a_fault_of_the_machine_is_no_damage(tmp_path, monkeypatch, fault, named):
    saved(tmp_path, [2, 4]).close()

    def restore(*args, **settings):
        raise fault

    checkpointer = Checkpointer(tmp_path, "digest")
    with monkeypatch.context() as patch:
        patch.setattr(ocp.StandardCheckpointHandler, "restore", restore)
        with pytest.raises(OSError, match=f"step 4 in .* cannot be read now: .*{named}"):
            checkpointer.restore(state(0))
    assert not (tmp_path / "unreadable").exists()
    assert checkpointer.restore(state(0)).step == 4


def test_a_machine_that_cannot_write_is_said_in_a_line(tmp_path, monkeypatch):
    checkpointer = Checkpointer(tmp_path, "digest")

    def full(*args, **settings):
        raise ValueError("RESOURCE_EXHAUSTED: Error opening zarr:\nFailed to write [os_error_code='28']")

    monkeypatch.setattr(checkpointer._manager, "wait_until_finished", full)
    with pytest.raises(OSError, match=r"^no checkpoint can be written to .*checkpoints: No space left on device$"):
        checkpointer.wait()


def test_a_folder_that_was_deleted_is_not_made_again(tmp_path):
    checkpointer = saved(tmp_path / "run", [1])
    shutil.rmtree(tmp_path / "run")
    for _ in range(2):
        with pytest.raises(FileNotFoundError, match="run/checkpoints was deleted while the run went on"):
            checkpointer.save(2, state(2), seconds=0.0)
        (tmp_path / "run" / "checkpoints").mkdir(parents=True, exist_ok=True)  # by another run


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


def test_how_a_run_is_evaluated_is_no_part_of_what_its_workdir_belongs_to(tmp_path):
    """But it is written down: benchmarks measure with it what else was trained."""
    config = policy_config("arithmetic")
    config.evaluation = {"every": 10, "encoder": "absent"}
    digest = claim_workdir(tmp_path, described(config))
    saved(tmp_path, [1]).close()
    assert json.loads((tmp_path / "config.json").read_text())["evaluation"]["every"] == 10
    config.evaluation = {"every": 20}
    assert claim_workdir(tmp_path, described(config)) == digest


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
