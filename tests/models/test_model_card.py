"""The card says what it was given, under a header that the hub can read."""

import pytest

from gfn_jax.models.model_card import write_model_card

GIVEN = {
    "base": 'someone/a-model: it\'s "quoted"',
    "task": "infilling",
    "config_digest": "1f2e3d",
    "metrics": {"bleu": 0.123456789, "log_z": -12.5},
    "command": "python -m gfn_jax.launch --config=configs/infill.py",
}


@pytest.mark.parametrize(("file", "library"), [("adapter_config.json", "peft"), ("config.json", "transformers")])
def test_a_card_holds_all_it_is_given(tmp_path, file, library):
    yaml = pytest.importorskip("yaml")
    (tmp_path / file).write_text("{}")
    card = write_model_card(tmp_path, **GIVEN).read_text()
    _, header, body = card.split("---\n", 2)
    assert yaml.safe_load(header) == {
        "base_model": GIVEN["base"],
        "library_name": library,
        "pipeline_tag": "text-generation",
        "tags": ["gflownet", "gfn_jax", "infilling"],
    }
    for said in (GIVEN["base"], "infilling", "1f2e3d", "| bleu | 0.123457 |", "| log_z | -12.5 |", GIVEN["command"]):
        assert said in body


def test_a_card_goes_with_an_export(tmp_path):
    with pytest.raises(ValueError, match="neither an adapter nor a model"):
        write_model_card(tmp_path, **GIVEN)
