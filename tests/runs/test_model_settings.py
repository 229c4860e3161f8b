"""Settings of `model` that came after runs had been described: who leaves them alone has the run that he had."""

import pathlib

import pytest

from gfn_jax.commands.config_flag import load_config
from gfn_jax.runs.config import LATER, read

CONFIGS = pathlib.Path(__file__).parents[2] / "configs"
KNOWN = {"path", "dtype", "remat", "quantize"}


@pytest.mark.parametrize("preset", ["arith.py:tiny", "arith.py:paper", "finetune.py:paper"])
def test_a_run_is_described_and_read_as_before_there_were_more_keys(preset):
    config = load_config(f"{CONFIGS}/{preset}")
    run, model = read(config), config.model.to_dict()
    assert KNOWN >= model.keys() - LATER.keys() == run.described["model"].keys()
    with config.unlocked():
        for key in LATER.keys() & model.keys():
            del config.model[key]
    assert read(config).model == run.model
    assert read(config).described == run.described


def test_what_is_set_is_described():
    config = load_config(f"{CONFIGS}/arith.py:tiny")
    for key, value in {"remat_policy": "dots", "cache_dtype": "int8", "attention": "cudnn"}.items():
        config.model[key] = value
        assert read(config).described["model"][key] == value


@pytest.mark.parametrize(
    ("remat", "policy", "name"),
    [
        (False, None, "none"),
        (True, None, "full"),
        (True, "dots", "dots"),
        (False, "full", "full"),
        (True, "none", "none"),
    ],
)
def test_a_policys_name_counts_before_the_switch(remat, policy, name):
    config = load_config(f"{CONFIGS}/arith.py:tiny")
    config.model.update({"remat": remat, "remat_policy": policy})
    assert read(config).model.recomputed == name
