"""Tokenizers of a folder that nobody vouches for."""

import json

import pytest

from gfn_jax.text.loading import load_tokenizer
from gfn_jax.text.wordlevel import build_tokenizer

CODE = """
import pathlib
pathlib.Path(MARK).touch()
from transformers import PreTrainedConfig, PreTrainedTokenizerFast
class OwnConfig(PreTrainedConfig):
    model_type = "own"
class OwnTokenizer(PreTrainedTokenizerFast):
    pass
"""
OWN = {"AutoConfig": "own.OwnConfig", "AutoTokenizer": [None, "own.OwnTokenizer"]}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A tokenizer, and code beside it that leaves a file where it is run; whoever asks is told to go on."""
    monkeypatch.setattr("builtins.input", lambda *_: "y")
    build_tokenizer().save_pretrained(tmp_path / "model")
    (tmp_path / "model" / "own.py").write_text(f"MARK = {str(tmp_path / 'ran')!r}\n{CODE}")
    return tmp_path / "model"


def edit(file, **settings):
    known = json.loads(file.read_text()) if file.is_file() else {}
    file.write_text(json.dumps(known | settings))


@pytest.mark.parametrize("tokenizer_class", ["OwnTokenizer", "PreTrainedTokenizerFast"])
def test_the_code_of_a_folder_is_refused_not_run(folder, tokenizer_class):
    edit(folder / "tokenizer_config.json", auto_map=OWN, tokenizer_class=tokenizer_class)
    with pytest.raises(ValueError, match="auto_map") as error:
        load_tokenizer(folder)
    assert "\n" not in str(error.value)
    assert not (folder.parent / "ran").exists()


def test_the_code_of_a_models_settings_is_not_run(folder):
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    del settings["tokenizer_class"]  # then transformers asks the model's settings
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    edit(folder / "config.json", model_type="own", auto_map=OWN)
    assert load_tokenizer(folder)("1 + 2")["input_ids"]
    assert not (folder.parent / "ran").exists()


def test_an_ordinary_tokenizer_is_read(folder):
    assert load_tokenizer(folder)("1 + 2")["input_ids"] == build_tokenizer()("1 + 2")["input_ids"]
