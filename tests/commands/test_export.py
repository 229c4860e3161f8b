"""The exporting command: what it writes samples like the run that it comes from, and its card says so."""

import json
import os
import re
import shutil

import jax.numpy as jnp
import pytest
from fake_hub import FakeHub
from tiny_worlds import random_lora, random_params, tiny

from gfn_jax import export, sample
from gfn_jax.models.checkpoint import read_config, save_model
from gfn_jax.runs.saved import read_run, restore_adapter
from gfn_jax.text.wordlevel import build_tokenizer
from gfn_jax.training.checkpoint import Checkpointer, config_digest

LORA = {"rank": 3, "alpha": 6, "targets": ("q", "down", "head"), "dropout": 0.0, "rank_stabilized": False}


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """`base`, its head tied, and `run`, of whose steps 2 to 4 the third validated best and the last was measured."""
    folder, tokenizer = tmp_path_factory.mktemp("world"), build_tokenizer()
    config = tiny(vocab_size=len(tokenizer), rotary_dim=8, tied_head=True)
    save_model(folder / "base", config, random_params(config), "llama", {"eos_token_id": 1})
    tokenizer.save_pretrained(folder / "base")
    model = {"path": str(folder / "base"), "dtype": "float32", "quantize": "nf4"}
    settings = {"task": "arithmetic", "arithmetic": {}, "model": model, "lora": LORA}
    run = folder / "run"
    run.mkdir()
    (run / "config.json").write_text(json.dumps(settings))
    (run / "results.json").write_text(json.dumps({"steps": 4, "policy": {"accuracy_3": 12.5, "page": "a text"}}))
    saver = Checkpointer(run, config_digest(settings), keep_latest=3)
    for step, score in ((2, 0.3), (3, 0.9), (4, 0.1)):
        lora = random_lora(config, seed=step, targets=LORA["targets"])
        saver.save(step, {"trainable": {"lora": lora, "log_z": None}, "replay": jnp.zeros(3)}, 0.0, score)
    saver.close()
    return folder


def command(capsys, program, *arguments: str):
    """Standard output and standard error of a command that must succeed."""
    assert program.main(["command", *arguments]) == 0
    return capsys.readouterr()


def drawn(capsys, *arguments: str) -> list[dict]:
    lines = command(capsys, sample, *arguments, "--prompt=1 + 2", "--samples=4", "--max_length=6", "--jsonl").out
    return [json.loads(line) for line in lines.splitlines()]


def test_an_adapter_of_other_numbers_than_were_saved_is_refused(world, tmp_path):
    shutil.copytree(world / "run", tmp_path / "run")
    path = tmp_path / "run/checkpoints/4/facts/metadata"
    facts = json.loads(path.read_text())
    del facts["digest"]
    facts["digests"]["trainable/lora/head/a"] ^= 1
    path.write_text(json.dumps(facts | {"digest": config_digest(facts)}))
    _, shape = read_config(world / "base")
    run = read_run(tmp_path / "run")
    restore_adapter(run, 3, shape)
    with pytest.raises(ValueError, match=r"checkpoints/4 cannot be read: trainable/lora/head/a: not the numbers"):
        restore_adapter(run, 4, shape)


def test_the_exported_adapter_and_the_merged_model_sample_like_the_run(capsys, world, tmp_path):
    base = f"--model={world / 'base'}"
    of_run = drawn(capsys, base, f"--adapter={world / 'run'}")
    assert len({row["completion"] for row in of_run}) > 1
    command(capsys, export, f"--workdir={world / 'run'}", f"--out={tmp_path / 'adapter'}")
    assert drawn(capsys, base, f"--adapter={tmp_path / 'adapter'}") == of_run

    said = command(capsys, export, f"--workdir={world / 'run'}", f"--out={tmp_path / 'merged'}", "--merged").err
    assert said == "the adapter was trained on a base in nf4; merged is the base as floats\n"
    settings = json.loads((tmp_path / "merged" / "config.json").read_text())
    assert (settings["eos_token_id"], settings["tie_word_embeddings"]) == (1, False)
    for merged, own in zip(drawn(capsys, f"--model={tmp_path / 'merged'}"), of_run, strict=True):
        assert merged == {**own, "log_q": pytest.approx(own["log_q"], abs=1e-4), "log_r": merged["log_r"]}


def test_the_card_has_the_numbers_of_its_own_step(capsys, world, tmp_path):
    digest = config_digest(json.loads((world / "run" / "config.json").read_text()))
    for step, number in (("newest", 4), ("best", 3), ("2", 2)):
        out = tmp_path / step
        said = command(
            capsys, export, f"--workdir={world / 'run'}", f"--out={out}", f"--step={step}", "--command=make x"
        )
        assert f"The adapter of step {number} is in {out}" in said.out
        assert ("the card of step" in said.err) == (number != 4)
        card = (out / "README.md").read_text()
        assert ("| accuracy_3 | 12.5 |" in card) == (number == 4)
        assert all(text in card for text in (str(world / "base"), "arithmetic", digest, "make x"))
    tensors = [(tmp_path / step / "adapter_model.safetensors").read_bytes() for step in ("newest", "best", "2")]
    assert len(set(tensors)) == 3
    settings = json.loads((tmp_path / "best" / "adapter_config.json").read_text())
    assert settings["base_model_name_or_path"] == str(world / "base")


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["--out=OUT"], "no workdir; write .*"),
        (["--workdir=RUN"], "no out; write .*"),
        (["--workdir=RUN", "--out=OUT", "--marged"], "Unknown command line flag 'marged'.*"),
        (["--workdir=RUN", "--out=OUT", "merged"], "'merged' is no flag; .*"),
        (["--workdir=ABSENT", "--out=OUT"], "there is no folder ABSENT"),
        (["--workdir=BASE", "--out=OUT"], "BASE is no run that trains an adapter: .*"),
        (["--workdir=FRESH", "--out=OUT"], "the run in FRESH has saved no adapter yet"),
        (["--workdir=DAMAGED", "--out=OUT"], "the checkpoint DAMAGED/checkpoints/7 cannot be read: .*"),
        (["--workdir=RUN", "--out=OUT", "--step=5"], "the run in RUN holds step 2, 3, 4; '5' is none, .*"),
        (["--workdir=RUN", "--out=BASE"], "BASE is there already, and is no empty folder; name another --out"),
        (["--workdir=RUN", "--out=OUT", "--model=tiny-arithmetic"], "the run in RUN has another base: .*"),
        (["--workdir=RUN", "--out=OUT", "--model=/absent/x"], "there is no folder /absent/x"),
    ],
)
def test_what_is_wrong_is_one_line(capsys, world, tmp_path, arguments, line):
    places = {name: tmp_path / name for name in ("OUT", "ABSENT", "FRESH", "DAMAGED")}
    places |= {"RUN": world / "run", "BASE": world / "base"}
    for name in ("FRESH", "DAMAGED"):
        places[name].mkdir()
        (places[name] / "config.json").write_text((world / "run" / "config.json").read_text())
    (places["DAMAGED"] / "checkpoints" / "7").mkdir(parents=True)
    arguments = [re.sub("|".join(places), lambda match: str(places[match[0]]), word) for word in arguments]
    assert export.main(["export", *arguments]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    said = captured.err
    for name, place in places.items():
        said = said.replace(str(place), name)
    assert re.fullmatch(f"error: {line}\n", said)
    assert not places["OUT"].exists()


@pytest.fixture
def hub(monkeypatch):
    """A hub on this machine, and somebody who is known there."""
    server = FakeHub()
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", server.address)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_TOKEN", "hf_somebody")
    yield server
    server.shutdown()
    server.server_close()


def test_what_is_exported_can_be_pushed(capsys, world, tmp_path, hub):
    said = command(
        capsys, export, f"--workdir={world / 'run'}", f"--out={tmp_path / 'out'}", "--push_to_hub=someone/an-adapter"
    )
    assert said.out.endswith(f"\nOn the hub: {hub.address}/someone/an-adapter\n")
    written = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    assert hub.files == {"someone/an-adapter": written}
    assert {"README.md", "adapter_config.json", "adapter_model.safetensors"} <= written.keys()
    assert hub.tokens == {"Bearer hf_somebody"}


@pytest.mark.parametrize(
    ("name", "line", "there"),
    [
        (
            "others/an-adapter",
            r"the hub did not take it \(HfHubHTTPError: .*403 Forbidden.*\); it is in .*out: hf upload .*",
            True,
        ),
        ("an-adapter", "'an-adapter' is no OWNER/NAME of the hub", False),
        ("a/b/c", "'a/b/c' is no OWNER/NAME of the hub: .*", False),
    ],
)
def test_what_the_hub_refuses_is_one_line(capsys, world, tmp_path, hub, name, line, there):
    """A name that is none is refused before anything is written; what was written stays."""
    words = [f"--workdir={world / 'run'}", f"--out={tmp_path / 'out'}", f"--push_to_hub={name}"]
    assert export.main(["export", *words]) == 2
    assert re.fullmatch(f"error: {line}\n", capsys.readouterr().err)
    assert (tmp_path / "out").exists() == there


@pytest.mark.parametrize("flags", [(), ("--merged",)])
def test_every_exported_file_may_be_read_by_whom_the_umask_lets(capsys, world, tmp_path, flags):
    before = os.umask(0o027)
    try:
        command(capsys, export, f"--workdir={world / 'run'}", f"--out={tmp_path / 'out'}", *flags)
    finally:
        os.umask(before)
    modes = {path.name: path.stat().st_mode & 0o777 for path in (tmp_path / "out").iterdir()}
    assert set(modes.values()) == {0o640}, modes
    assert (tmp_path / "out").stat().st_mode & 0o777 == 0o750


@pytest.mark.parametrize(
    ("step", "flags"), [("models.export._write_card", ()), ("commands.exporting.export_run_model", ("--merged",))]
)
def test_an_export_that_fails_leaves_nothing(world, tmp_path, monkeypatch, step, flags):
    def half(folder, *_):
        folder.mkdir(exist_ok=True)
        (folder / "config.json").write_text("{}")
        raise OSError("disk full")

    monkeypatch.setattr(f"gfn_jax.{step}", half)
    assert export.main(["command", f"--workdir={world / 'run'}", f"--out={tmp_path / 'out'}", *flags]) == 2
    assert list(tmp_path.iterdir()) == []
