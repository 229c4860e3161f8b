"""What the base was sampled once is not sampled again, unless anything about it is different."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest

from gfn_jax.evaluation import remembered as module
from gfn_jax.evaluation.remembered import remembered
from gfn_jax.models.config import ModelConfig
from gfn_jax.types import Tokens

CONFIG = ModelConfig(5, 4, 1, 1, 1, 4, mlp_width=4, max_positions=8, positions="learned")
ARGUMENTS = {
    "config": CONFIG,
    "params": {"kernel": jnp.arange(6.0).reshape(2, 3)},
    "lora": None,
    "prompt": Tokens(jnp.array([[1, 2]]), jnp.array([[True, True]])),
    "key": jax.random.key(0),
    "temperature": 0.1,
}
DIFFERENT = {
    "config": dataclasses.replace(CONFIG, norm_eps=0.5),
    "params": {"kernel": jnp.arange(6.0).reshape(2, 3).at[1, 2].add(1e-6)},
    "lora": {"a": jnp.ones(1)},
    "prompt": Tokens(jnp.array([[1, 2]]), jnp.array([[False, True]])),
    "key": jax.random.key(1),
    "temperature": 0.2,
}


@pytest.fixture
def asked(tmp_path, monkeypatch):
    """How often the function below was called, with an empty cache of its own."""
    monkeypatch.setattr(module, "cache_root", lambda: tmp_path)
    calls = []

    def sample(*arguments):
        calls.append(arguments)
        return [[[len(calls)], []]]

    return sample, calls, tmp_path


def test_the_same_is_sampled_once(asked):
    sample, calls, _ = asked
    first = remembered(sample, *ARGUMENTS.values())
    assert remembered(sample, *ARGUMENTS.values()) == first == [[[1], []]]
    assert len(calls) == 1


@pytest.mark.parametrize("name", DIFFERENT)
def test_anything_different_is_sampled_anew(asked, name):
    sample, calls, _ = asked
    remembered(sample, *ARGUMENTS.values())
    remembered(sample, *(ARGUMENTS | {name: DIFFERENT[name]}).values())
    assert len(calls) == 2


def test_other_sources_are_sampled_anew(asked, monkeypatch):
    sample, calls, folder = asked
    remembered(sample, *ARGUMENTS.values())
    (folder / "gfn_jax.py").write_text("")
    monkeypatch.setattr(module.gfn_jax, "__file__", str(folder / "gfn_jax.py"))
    remembered(sample, *ARGUMENTS.values())
    assert len(calls) == 2


def test_a_damaged_file_or_folder_costs_a_repetition(asked, caplog):
    sample, _, folder = asked
    remembered(sample, *ARGUMENTS.values())
    (path,) = (folder / "completions").iterdir()
    path.write_text(path.read_text()[:-3])
    assert remembered(sample, *ARGUMENTS.values()) == [[[2], []]]
    path.unlink()
    path.parent.rmdir()
    path.parent.write_text("a file where the folder should be")
    assert remembered(sample, *ARGUMENTS.values()) == [[[3], []]]
    assert "not remembered" in caplog.text
