import contextlib
import importlib.machinery
import json
import sys
import types

import pytest

from gfn_jax.sections import RunConfig
from gfn_jax.training.writers import JsonlWriter, TensorBoardWriter, make_writers


def write(path, steps, resume=0):
    writer = JsonlWriter(path)
    writer.resume(resume)
    for step in steps:
        writer.write(step, "train", {"loss": float(step)})
    writer.close()


def steps(path):
    return [json.loads(line)["step"] for line in path.read_text().splitlines()]


def test_a_record_a_line(tmp_path):
    writer = JsonlWriter(tmp_path / "run" / "metrics.jsonl")
    writer.resume(0)
    writer.write(3, "eval", {"accuracy": 0.5, "loss": float("nan"), "best": float("-inf")})
    # Readable before it is closed: a killed run loses no line.
    assert json.loads(writer.path.read_text()) == {
        "step": 3,
        "kind": "eval",
        "accuracy": 0.5,
        "loss": None,
        "best": None,
    }
    writer.close()


def test_a_full_disk_names_the_file(tmp_path):
    writer = JsonlWriter(tmp_path / "metrics.jsonl")
    writer.resume(0)
    writer._file = open("/dev/full", "w", buffering=1)  # noqa: SIM115
    with pytest.raises(OSError, match=r"No space left on device: .*metrics\.jsonl"):
        writer.write(1, "train", {"loss": 1.0})
    with contextlib.suppress(OSError):  # it tries again
        writer.close()


@pytest.mark.parametrize(("restored", "kept"), [(3, [1, 2, 3]), (0, []), (9, [1, 2, 3, 4, 5])])
def test_a_resumed_run_drops_what_came_after_its_checkpoint(tmp_path, restored, kept):
    path = tmp_path / "metrics.jsonl"
    write(path, [1, 2, 3, 4, 5])
    write(path, [restored + 1], resume=restored)
    assert steps(path) == [*kept, restored + 1]


@pytest.mark.parametrize("end", ['{"step": 4, "lo', '{"step": 3, "loss": 1.0}'])
def test_a_last_line_without_its_end_is_dropped(tmp_path, end):
    path = tmp_path / "metrics.jsonl"
    write(path, [1, 2])
    path.write_text(path.read_text() + end)
    write(path, [6], resume=5)
    assert steps(path) == [1, 2, 6]


def test_a_damaged_line_in_the_middle_is_named(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\noops\n{"step": 2}\n')
    with pytest.raises(ValueError, match=r"metrics\.jsonl, line 2: not a record"):
        JsonlWriter(path).resume(2)
    assert len(path.read_text().splitlines()) == 3


def test_metrics_that_are_no_text_are_named(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 1}\n\xff\n')
    with pytest.raises(ValueError, match=r"metrics\.jsonl, byte 12: not UTF-8"):
        JsonlWriter(path).resume(2)


def test_tensorboard_gets_scalars(tmp_path):
    from tensorboardX.proto.event_pb2 import Event

    writer = TensorBoardWriter(tmp_path)
    writer.resume(4)
    writer.write(5, "train", {"loss": 2.5})
    writer.close()
    data, events = next(tmp_path.iterdir()).read_bytes(), []
    while data:  # a record: length (8 bytes), its checksum (4), the event, its checksum (4)
        length = int.from_bytes(data[:8], "little")
        events.append(Event.FromString(data[12 : 12 + length]))
        data = data[16 + length :]
    values = [(event.step, value) for event in events for value in event.summary.value]
    assert [(step, value.tag, value.simple_value) for step, value in values] == [(5, "train/loss", 2.5)]


def looking(tensorboard: bool = False, wandb: str | None = None) -> RunConfig:
    return RunConfig(task="toy", seed=0, log_every=1, save_every=1, tensorboard=tensorboard, wandb=wandb)


def test_tensorboard_only_where_asked_and_installed(tmp_path, monkeypatch, caplog):
    assert [type(w) for w in make_writers(tmp_path, looking())] == [JsonlWriter]
    assert [type(w) for w in make_writers(tmp_path, looking(True))] == [JsonlWriter, TensorBoardWriter]
    assert not caplog.messages
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert [type(w) for w in make_writers(tmp_path, looking(True))] == [JsonlWriter]
    assert caplog.messages == ["nothing is written for TensorBoard: tensorboardX is not installed"]


@pytest.fixture
def wandb(monkeypatch):
    """A module in the place of W&B's, which keeps what it is told."""
    fake = types.ModuleType("wandb")
    fake.__spec__ = importlib.machinery.ModuleSpec("wandb", None)
    fake.told = []

    def init(**settings):
        fake.told.append(settings)
        return types.SimpleNamespace(
            log=lambda values, step: fake.told.append((step, values)), finish=lambda: fake.told.append("finished")
        )

    fake.init = init
    monkeypatch.setitem(sys.modules, "wandb", fake)
    return fake


def test_weights_and_biases_gets_scalars_and_goes_on_with_its_run(tmp_path, wandb):
    (tmp_path / "config.json").write_text('{"task": "toy"}')
    for start in (0, 1):
        _, writer = make_writers(tmp_path, looking(wandb="flows"))
        writer.resume(start)
        writer.write(start + 1, "train", {"loss": 2.5, "valid": 0.5})
        writer.close()
    first, logged, finished, second, *_ = wandb.told
    assert (logged, finished) == ((1, {"train/loss": 2.5, "train/valid": 0.5}), "finished")
    assert (first["project"], first["dir"], first["resume"]) == ("flows", str(tmp_path), "allow")
    assert (first["name"], first["config"]) == (tmp_path.name, {"task": "toy"})
    assert first["id"] == second["id"]
    make_writers(tmp_path / "other", looking(wandb="flows"))[1].resume(0)
    assert wandb.told[-1]["id"] != first["id"]


def test_weights_and_biases_that_is_not_installed_is_refused(monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ValueError, match="wandb is 'flows', and that package is not installed: pip install wandb"):
        looking(wandb="flows")


def test_the_others_of_several_processes_write_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr("jax.process_index", lambda: 1)
    assert make_writers(tmp_path, looking(True)) == ()


def test_closing_what_was_never_opened(tmp_path, wandb):
    for writer in make_writers(tmp_path, looking(True, "flows")):
        writer.close()
    assert list(tmp_path.iterdir()) == []
