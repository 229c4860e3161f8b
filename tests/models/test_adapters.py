"""Adapters against the real peft, in both directions, for every family; merged models in transformers."""

import copy
import dataclasses
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from gfn_jax.models.adapters import export_merged, load_adapter, save_adapter
from gfn_jax.models.checkpoint import load_model, save_model
from gfn_jax.models.config import ModelConfig
from gfn_jax.models.decoder import init_params
from gfn_jax.models.families import MODELS
from gfn_jax.models.lora import Lora, LoraConfig, init_lora

TOLERANCE = 1e-4
RANK, ALPHA = 3, 7.0
ADAPTED = ["gpt2", "gptj", "neox", "llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3"]


@pytest.fixture(scope="module", params=ADAPTED)
def base(request, written_variant):
    """(model_type, torch model, its folder, config, params) of every family."""
    pytest.importorskip("peft", reason="peft (a test dependency) is not installed")
    model_type, model, folder = written_variant(request.param)
    return model_type, model, folder, *load_model(folder)


def lora_config(config, model_type):
    targets = (*config.projections, "head")
    return LoraConfig(RANK, ALPHA, targets, rank_stabilized=model_type in ("gpt2", "qwen3"))


def random_lora(config, settings):
    """An adapter with no zero in it."""
    lora = init_lora(jax.random.key(1), config, settings)
    leaves, tree = jax.tree.flatten(lora)
    keys = jax.random.split(jax.random.key(2), len(leaves))
    return jax.tree.unflatten(tree, [jax.random.normal(k, x.shape) * 0.3 for k, x in zip(keys, leaves)])


def random_peft(model, made):
    """peft's own model beside a torch model, with no zero in its adapter."""
    import peft
    import torch

    theirs = peft.get_peft_model(copy.deepcopy(model), made).eval()
    with torch.no_grad():
        for name, parameter in theirs.named_parameters():
            if "lora_" in name:
                parameter.copy_(torch.randn(parameter.shape) * 0.3)
    return theirs


def test_an_adapter_of_peft_is_read(base, tmp_path, ours, torch_logits):
    import peft

    model_type, model, folder, config, params = base
    settings = lora_config(config, model_type)
    names = {MODELS[model_type].modules[module].rsplit(".", 1)[-1] for module in settings.targets}
    made = peft.LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=sorted(names), use_rslora=settings.rank_stabilized)
    theirs = random_peft(model, made)
    theirs.save_pretrained(tmp_path)

    read, lora = load_adapter(tmp_path, config, model_type, base=folder)
    assert read == settings
    expected = torch_logits(theirs)
    assert np.abs(expected - torch_logits(model)).max() > 0.5
    np.testing.assert_allclose(ours.logits(config, params, lora), expected, atol=TOLERANCE)
    real = ours.mask
    padded = torch_logits(theirs, real)[real]
    np.testing.assert_allclose(ours.logits(config, params, lora, real)[real], padded, atol=TOLERANCE)
    np.testing.assert_allclose(ours.step_logits(config, params, lora)[real], padded, atol=TOLERANCE)


def test_an_adapter_for_peft_is_written_and_merged(base, tmp_path, ours, torch_logits):
    import peft
    from transformers import AutoModelForCausalLM

    model_type, model, _, config, params = base
    settings = lora_config(config, model_type)
    lora = random_lora(config, settings)
    save_adapter(tmp_path / "adapter", config, settings, lora, model_type)
    theirs = peft.PeftModel.from_pretrained(copy.deepcopy(model), tmp_path / "adapter").eval()
    mine = ours.logits(config, params, lora)
    np.testing.assert_allclose(torch_logits(theirs), mine, atol=TOLERANCE)

    read, again = load_adapter(tmp_path / "adapter", config, model_type)
    assert read == settings
    jax.tree.map(np.testing.assert_array_equal, again, lora)

    export_merged(tmp_path / "merged", config, params, lora, model_type)
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", attn_implementation="eager").eval()
    np.testing.assert_allclose(torch_logits(merged), mine, atol=TOLERANCE)
    text = greedy(merged)
    np.testing.assert_array_equal(text, greedy(theirs))
    best = ours.logits(config, params, lora, ids=text).argmax(-1)
    np.testing.assert_array_equal(text[:, 4:], best[:, 3:-1])


@pytest.fixture(scope="module")
def llama(written_variant):
    """(torch model, its folder, config, params) of one family."""
    pytest.importorskip("peft", reason="peft (a test dependency) is not installed")
    _, model, folder = written_variant("llama")
    return model, folder, *load_model(folder)


@pytest.mark.parametrize(
    "patterns",
    [
        {"alpha_pattern": {"^model.layers.1.self_attn.q_proj": 40, "v_proj": 3}},
        {"alpha_pattern": {r"layers\.[02]\..*": 21, r".*\.(q|v)_proj$": 3}},
        {"rank_pattern": {"^model.layers.[0-2].self_attn.q_proj": 5}},
        {"rank_pattern": {"^model.layers.1.self_attn.q_proj": 5, "down_proj": 1}, "use_rslora": True},
        {"layers_to_transform": [2, 0, 1], "layers_pattern": "layers"},
    ],
    ids=["alpha-from-the-start", "alpha-first-match", "rank-from-the-start", "rank-of-one-layer", "all-layers"],
)
def test_patterns_mean_what_they_mean_to_peft(llama, tmp_path, ours, torch_logits, patterns):
    import peft

    model, _, config, params = llama
    targets = ["q_proj", "v_proj", "down_proj"]
    made = peft.LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=targets, **patterns)
    random_peft(model, made).save_pretrained(tmp_path)
    # Read back: peft writes patterns in alphabetical order, so that another may be the first that matches.
    theirs = peft.PeftModel.from_pretrained(copy.deepcopy(model), tmp_path).eval()
    lora = load_adapter(tmp_path, config, "llama")[1]
    np.testing.assert_allclose(ours.logits(config, params, lora), torch_logits(theirs), atol=TOLERANCE)


def test_an_embedding_of_peft_is_taken_for_a_copy_only_where_it_is_one(llama, tmp_path, ours, torch_logits):
    import peft
    import torch

    model, folder, config, params = llama
    theirs = random_peft(model, peft.LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=["q_proj"]))
    theirs.save_pretrained(tmp_path, save_embedding_layers=True)
    assert any("embed_tokens" in name for name in load_file(tmp_path / "adapter_model.safetensors"))
    lora = load_adapter(tmp_path, config, "llama", base=folder)[1]
    np.testing.assert_allclose(ours.logits(config, params, lora), torch_logits(theirs), atol=TOLERANCE)

    with torch.no_grad():
        theirs.get_input_embeddings().weight.add_(1.0)
    theirs.save_pretrained(tmp_path, save_embedding_layers=True)
    with pytest.raises(ValueError, match=r"trained model\.embed_tokens\.weight"):
        load_adapter(tmp_path, config, "llama", base=folder)


def greedy(model):
    """Two prompts of four tokens and the seven likeliest after them."""
    import torch

    prompt = torch.tensor([[5, 17, 3, 40], [8, 2, 60, 33]])
    # 61 is no token: greedy search then never stops early.
    out = model.generate(
        input_ids=prompt, attention_mask=torch.ones_like(prompt), do_sample=False, max_new_tokens=7,
        eos_token_id=61, pad_token_id=0,
    )  # fmt: skip
    return out.numpy()


SMALL = ModelConfig(
    vocab_size=11,
    width=8,
    num_layers=2,
    num_heads=2,
    num_kv_heads=2,
    head_dim=4,
    mlp_width=12,
    max_positions=16,
    norm="layer",
    positions="learned",
    gated_mlp=False,
    qkv_bias=True,
    out_bias=True,
    mlp_bias=True,
    tied_head=True,
)


def small_adapter(folder, targets=("q", "k", "v", "o"), model_type="gpt2"):
    settings = LoraConfig(2, 4.0, targets)
    lora = random_lora(SMALL, settings)
    save_adapter(folder, SMALL, settings, lora, model_type)
    return settings, lora


def edit(folder, **settings):
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))


@pytest.mark.parametrize("targets", [("q", "k", "v"), ("v",), ("q", "v", "down"), ("o",), ("down", "head")])
@pytest.mark.parametrize("model_type", ["gpt2", "gpt_neox"])
def test_part_of_a_fused_projection_keeps_its_parameters(tmp_path, targets, model_type):
    settings, lora = small_adapter(tmp_path, targets, model_type)
    read, again = load_adapter(tmp_path, SMALL, model_type)
    assert read == settings
    jax.tree.map(np.testing.assert_array_equal, again, lora)


def test_a_new_adapter_keeps_its_parameters(tmp_path):
    settings = LoraConfig(2, 4.0, ("q", "v"))
    lora = init_lora(jax.random.key(0), SMALL, settings)
    save_adapter(tmp_path, SMALL, settings, lora, "gpt2")
    jax.tree.map(np.testing.assert_array_equal, load_adapter(tmp_path, SMALL, "gpt2")[1], lora)


def test_one_shared_a_takes_no_more_than_its_rank(tmp_path):
    settings, lora = LoraConfig(2, 4.0, ("q", "k", "v")), None
    lora = random_lora(SMALL, settings)
    layers = {name: {"a": lora.layers["q"]["a"], "b": pair["b"]} for name, pair in lora.layers.items()}
    save_adapter(tmp_path, SMALL, settings, Lora(layers, None, settings.scale), "gpt2")
    shapes = {tensor.shape for tensor in load_file(tmp_path / "adapter_model.safetensors").values()}
    assert shapes == {(2, 8), (24, 2)}


def test_targets_name_no_module_that_is_not_adapted(tmp_path):
    small_adapter(tmp_path, ("o",))
    assert json.loads((tmp_path / "adapter_config.json").read_text())["target_modules"] == ["attn.c_proj"]


def test_a_pattern_of_alpha_scales_its_module(tmp_path):
    _, lora = small_adapter(tmp_path, ("o", "up"))
    edit(tmp_path, alpha_pattern={"mlp.c_fc": 12.0})
    again = load_adapter(tmp_path, SMALL, "gpt2")[1]
    np.testing.assert_array_equal(again.layers["o"]["b"], lora.layers["o"]["b"])
    np.testing.assert_allclose(again.layers["up"]["b"], 3 * lora.layers["up"]["b"], rtol=1e-6)


def test_a_pattern_from_the_start_of_a_name_scales_one_layer(tmp_path):
    """As in PEFT, where names begin behind `base_model.model.`; the first pattern that matches counts."""
    _, lora = small_adapter(tmp_path, ("o", "up"))
    edit(tmp_path, alpha_pattern={"^transformer.h.1.attn.c_proj": 12.0, r".*\.c_(proj|fc)$": 6.0})
    again = load_adapter(tmp_path, SMALL, "gpt2")[1]
    factors = np.array([1.5, 3.0])[:, None, None]
    np.testing.assert_allclose(again.layers["o"]["b"], factors * lora.layers["o"]["b"], rtol=1e-6)
    np.testing.assert_allclose(again.layers["up"]["b"], 1.5 * lora.layers["up"]["b"], rtol=1e-6)


def test_layers_may_differ_in_rank(tmp_path):
    _, lora = small_adapter(tmp_path, ("o",))
    a, b = lora.layers["o"]["a"][1, :, :1], lora.layers["o"]["b"][1, :1]  # of the last layer half as much is kept
    change(tmp_path, lambda name, x: x[:1] if "h.1" in name and "lora_A" in name else x)
    change(tmp_path, lambda name, x: x[:, :1] if "h.1" in name and "lora_B" in name else x)
    edit(tmp_path, rank_pattern={"^transformer.h.1.attn.c_proj": 1})
    again = load_adapter(tmp_path, SMALL, "gpt2")[1]
    pair = again.layers["o"]
    np.testing.assert_allclose(
        again.scale * pair["a"] @ pair["b"],
        [2 * lora.layers["o"]["a"][0] @ lora.layers["o"]["b"][0], 4 * a @ b],
        rtol=1e-5,
    )


def change(folder, how):
    """Rewrites the tensors of an adapter, each by its name."""
    file = folder / "adapter_model.safetensors"
    tensors = {name: np.ascontiguousarray(how(name, tensor)) for name, tensor in load_file(file).items()}
    save_file(tensors, file)


@pytest.fixture(params=[True, False], ids=["tied", "untied"])
def gpt2_folder(request, tmp_path):
    """(folder, config) of a random base."""
    config = dataclasses.replace(SMALL, tied_head=request.param)
    params = jax.tree.map(
        lambda leaf: jax.random.normal(jax.random.key(leaf.size), leaf.shape), init_params(jax.random.key(0), config)
    )
    save_model(tmp_path / "base", config, params, "gpt2")
    return tmp_path / "base", config


def add(folder, tensors):
    file = folder / "adapter_model.safetensors"
    save_file(load_file(file) | tensors, file)


@pytest.mark.parametrize("name", ["transformer.wte.weight", "lm_head.weight", "lm_head.base_layer.weight"])
def test_an_embedding_or_head_inside_an_adapter_must_be_the_bases_own(gpt2_folder, tmp_path, name):
    folder, config = gpt2_folder
    base = load_file(folder / "model.safetensors")
    plain = name.replace(".base_layer", "")
    own = base["transformer.wte.weight" if config.tied_head else plain]
    settings, lora = small_adapter(tmp_path)
    for copied in (own, own.astype(jnp.bfloat16)):
        add(tmp_path, {f"base_model.model.{name}": copied})
        read, again = load_adapter(tmp_path, config, "gpt2", base=folder)
        assert read == settings
        jax.tree.map(np.testing.assert_array_equal, again, lora)
    refused("no base is named", tmp_path, config)
    trained = own.copy()
    trained[-1, -1] += 1e-3
    add(tmp_path, {f"base_model.model.{name}": trained})
    refused(rf"trained {plain}", tmp_path, config, base=folder)


@pytest.mark.parametrize(("bad", "dtype"), [(np.nan, "float32"), (np.inf, "float32"), (1e30, "float16")])
def test_numbers_that_are_not_finite_are_refused_by_tensor(tmp_path, bad, dtype):
    small_adapter(tmp_path, ("o",))
    spoilt = "base_model.model.transformer.h.1.attn.c_proj.lora_B.weight"
    tensor = load_file(tmp_path / "adapter_model.safetensors")[spoilt]
    tensor[3, 1] = bad
    add(tmp_path, {spoilt: tensor})
    with pytest.raises(ValueError, match=rf"{spoilt} holds NaN or infinity"):
        load_adapter(tmp_path, SMALL, "gpt2", dtype)


def test_weights_are_as_readable_as_their_settings(tmp_path):
    small_adapter(tmp_path)
    assert len({path.stat().st_mode for path in tmp_path.iterdir()}) == 1


def test_weights_take_the_dtype_asked_for(tmp_path):
    small_adapter(tmp_path)
    _, lora = load_adapter(tmp_path, SMALL, "gpt2", jnp.bfloat16)
    assert {leaf.dtype for leaf in jax.tree.leaves(lora)} == {jnp.dtype("bfloat16")}


@pytest.mark.parametrize(
    "setting",
    [
        {"use_dora": True},
        {"modules_to_save": ["lm_head"]},
        {"bias": "all"},
        {"init_lora_weights": "pissa"},
        {"layers_to_transform": [0]},
        {"lora_bias": True},
        {"trainable_token_indices": [3]},
        {"made_up": 1},
    ],
)
def test_unsupported_settings_are_refused_by_name(tmp_path, setting):
    small_adapter(tmp_path)
    edit(tmp_path, **setting)
    with pytest.raises(ValueError, match=next(iter(setting))):
        load_adapter(tmp_path, SMALL, "gpt2")


def refused(match, folder, config=SMALL, model_type="gpt2", base=None):
    with pytest.raises(ValueError, match=match) as error:
        load_adapter(folder, config, model_type, base=base)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("kind", ["IA3", "PROMPT_TUNING", "PREFIX_TUNING", "LOHA", "LOKR", "VERA", "OFT"])
def test_another_kind_of_adapter_is_named(tmp_path, kind):
    (tmp_path / "adapter_config.json").write_text(json.dumps({"peft_type": kind, "target_modules": ["c_proj"]}))
    refused(f"peft_type = '{kind}' is not implemented", tmp_path)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("lora_alpha", value) for value in (0, 0.0, math.nan, math.inf, 10**400, "16", True, [4])),
        *(("r", value) for value in (0, -2, 2.5, 10**400, "8", True, {})),
        *(("lora_dropout", value) for value in (math.nan, -0.5, 1.5, "0.1")),
        ("use_rslora", "yes"),
        *(("layers_to_transform", value) for value in ([0], [1, 2], 0, "all")),
        *(("alpha_pattern", value) for value in (["c_proj"], "c_proj", {"c_proj": math.nan}, {"c_proj": "8"})),
        *(("rank_pattern", value) for value in (["c_proj"], {"c_proj": 0}, {"c_proj": 2.5}, {"c_proj": None})),
    ],
)
def test_settings_that_mean_nothing_are_refused_by_name(tmp_path, name, value):
    small_adapter(tmp_path)
    edit(tmp_path, **{name: value})
    refused(rf"adapter_config\.json: {name} = ", tmp_path)


@pytest.mark.parametrize("value", [[], [0, 1], [3, 1, 0]])
def test_layers_to_transform_may_name_all_layers(tmp_path, value):
    small_adapter(tmp_path)
    edit(tmp_path, layers_to_transform=value, layers_pattern=["h"])
    load_adapter(tmp_path, SMALL, "gpt2")


@pytest.mark.parametrize(
    "pattern",
    [
        "([a-z0-9_.]+)+X", "(.*)*X", "(a|a)+X", ".*.*.*.*.*X", "(a|b)(a|b)(a|b)(a|b)(a|b)", "a" * 201, "(", ")", "[",
        "*a", "a**", "a++", "a{9}", "(?i)q", "(?=q)", "(?P<x>q)", r"(q)\1", "[^q]", "q\nX", "é",
    ],
)  # fmt: skip
@pytest.mark.parametrize("name", ["alpha_pattern", "rank_pattern"])
def test_a_pattern_that_could_hang_or_is_none_is_refused_at_once(tmp_path, name, pattern):
    small_adapter(tmp_path, ("o",))
    edit(tmp_path, **{name: {pattern: 2}})
    refused(rf"{name} has the pattern ", tmp_path)


def test_an_adapter_for_another_base_is_refused(tmp_path):
    small_adapter(tmp_path)
    refused(r"another base.*c_attn", tmp_path, dataclasses.replace(SMALL, width=16, head_dim=8))
    refused("every layer", tmp_path, dataclasses.replace(SMALL, num_layers=3))
    refused("adapts nothing", tmp_path, dataclasses.replace(SMALL, num_layers=1))
    refused("adapts nothing", tmp_path, SMALL, "gptj")


def test_another_name_of_the_base_is_no_error(tmp_path):
    """As in PEFT: shapes decide, not names, which are paths on another machine more often than not."""
    settings, lora = small_adapter(tmp_path)
    edit(tmp_path, base_model_name_or_path="someone/another-base")
    read, again = load_adapter(tmp_path, SMALL, "gpt2")
    assert read == settings
    jax.tree.map(np.testing.assert_array_equal, again, lora)


def test_unknown_targets_are_refused(tmp_path):
    small_adapter(tmp_path)
    file = tmp_path / "adapter_model.safetensors"
    tensors = load_file(file)
    tensors["base_model.model.transformer.h.0.attn.rotor.lora_A.weight"] = np.zeros((2, 8), np.float32)
    save_file(tensors, file)
    refused("rotor", tmp_path)


def test_a_rank_that_the_settings_do_not_name_is_refused(tmp_path):
    small_adapter(tmp_path, ("o",))
    edit(tmp_path, r=5)
    with pytest.raises(ValueError, match="rank 2 where"):
        load_adapter(tmp_path, SMALL, "gpt2")
    edit(tmp_path, r=2**30)  # more than there is memory for
    with pytest.raises(ValueError, match="rank 2 where"):
        load_adapter(tmp_path, SMALL, "gpt2")
    edit(tmp_path, r=2, rank_pattern={"^transformer.h.1.attn.c_proj": 2**30})
    with pytest.raises(ValueError, match="rank 2 where"):
        load_adapter(tmp_path, SMALL, "gpt2")
    edit(tmp_path, rank_pattern={}, lora_alpha=1e-30, alpha_pattern={"c_proj": 1e30})
    with pytest.raises(ValueError, match="too far apart"):
        load_adapter(tmp_path, SMALL, "gpt2")


def test_missing_files_are_named(tmp_path):
    with pytest.raises(ValueError, match=r"adapter_config\.json"):
        load_adapter(tmp_path, SMALL, "gpt2")
    small_adapter(tmp_path)
    (tmp_path / "adapter_model.safetensors").unlink()
    with pytest.raises(ValueError, match=r"adapter_model\.safetensors"):
        load_adapter(tmp_path, SMALL, "gpt2")


def test_a_scale_that_its_configuration_denies_is_not_written(tmp_path):
    settings = LoraConfig(2, 4.0, ("q",))
    lora = random_lora(SMALL, settings).replace(scale=1.0)
    with pytest.raises(ValueError, match="scale"):
        save_adapter(tmp_path, SMALL, settings, lora, "gpt2")
