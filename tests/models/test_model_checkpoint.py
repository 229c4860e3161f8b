"""Reading and writing folders of weights: nothing lost, nothing ignored, and errors of one line."""

import dataclasses
import json
import math
import os
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from gfn_jax.models import checkpoint
from gfn_jax.models.checkpoint import load_model, read_config, save_model
from gfn_jax.models.config import ModelConfig
from gfn_jax.models.decoder import init_params
from gfn_jax.models.quantize import quantize_params, quantize_stack
from gfn_jax.models.stacking import read_shard
from gfn_jax.models.tensor_files import resolve
from gfn_jax.text.loading import load_tokenizer

LLAMA = ModelConfig(
    vocab_size=13,
    width=8,
    num_layers=3,
    num_heads=4,
    num_kv_heads=2,
    head_dim=2,
    mlp_width=12,
    max_positions=16,
    rotary_dim=2,
)
GPT2 = dataclasses.replace(
    LLAMA,
    num_kv_heads=4,
    norm="layer",
    positions="learned",
    rotary_dim=0,
    activation="gelu_tanh",
    gated_mlp=False,
    qkv_bias=True,
    out_bias=True,
    mlp_bias=True,
    tied_head=True,
)
NEOX = dataclasses.replace(GPT2, positions="rotary", rotary_dim=2, norm_placement="parallel_two", tied_head=False)
MODELS = {"llama": LLAMA, "gpt2": GPT2, "gpt_neox": NEOX}


def random_params(config, dtype="float32"):
    """Parameters that are all different, norms and biases too."""
    shapes = jax.eval_shape(lambda key: init_params(key, config, dtype), jax.random.key(0))
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda leaf: jnp.asarray(rng.normal(size=leaf.shape), leaf.dtype), shapes)


@pytest.fixture
def folder(tmp_path):
    """A small Llama as a folder."""
    save_model(tmp_path, LLAMA, random_params(LLAMA), "llama")
    return tmp_path


def assert_same(tree, other):
    assert jax.tree.structure(tree) == jax.tree.structure(other)
    jax.tree.map(np.testing.assert_array_equal, tree, other)


@pytest.mark.parametrize("shard_bytes", [2**30, 600])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("model_type", MODELS)
def test_what_is_saved_is_loaded_bit_for_bit(tmp_path, model_type, dtype, shard_bytes):
    config, params = MODELS[model_type], random_params(MODELS[model_type], dtype)
    save_model(tmp_path, config, params, model_type, shard_bytes=shard_bytes)
    files = list(tmp_path.glob("*.safetensors"))
    assert (len(files) > 1) == (shard_bytes == 600)
    assert read_config(tmp_path) == (model_type, config)
    loaded_config, loaded = load_model(tmp_path, dtype)
    assert loaded_config == config
    assert_same(loaded, params)


def test_floats_become_the_dtype_asked_for(folder):
    _, params = load_model(folder, jnp.bfloat16)
    assert_same(params, jax.tree.map(lambda x: x.astype(jnp.bfloat16), random_params(LLAMA)))


@pytest.mark.parametrize("kind", ["int8", "nf4"])
def test_a_kernel_is_quantised_a_layer_at_a_time(folder, kind, monkeypatch):
    def floats():
        return [x for x in jax.live_arrays() if x.dtype == jnp.float32 and x.ndim == 3 and x.shape[1] > 1]

    expected = quantize_params(load_model(folder)[1], kind)
    held, others = [], len(floats())

    def quantize(kernel, kind):
        held.append((kernel.shape[0], len(floats()) - others))
        return quantize_stack(kernel, kind)

    monkeypatch.setattr(checkpoint, "quantize_stack", quantize)
    _, loaded = load_model(folder, quantize=kind)
    assert held == [(1, 1)] * LLAMA.num_layers * len(LLAMA.projections)
    assert_same(loaded, expected)
    with pytest.raises(ValueError, match="int3"):
        load_model(folder, quantize="int3")


def test_a_large_stack_is_sent_a_layer_at_a_time(folder, monkeypatch):
    """The same weights, of which the host never holds two layers."""
    whole = load_model(folder)[1]
    held = []

    def read(files, source, outputs, index, dtype):
        held.append(math.prod(part.stop - part.start for part in index[:-2]))
        return read_shard(files, source, outputs, index, dtype)

    monkeypatch.setattr(checkpoint, "ONE_GO", 0)
    monkeypatch.setattr(checkpoint, "read_shard", read)
    layered = load_model(folder)[1]
    assert set(held) == {1}
    assert_same(layered, whole)


def test_extra_settings_are_written(tmp_path):
    save_model(tmp_path, LLAMA, random_params(LLAMA), "llama", settings={"eos_token_id": 3})
    written = json.loads((tmp_path / "config.json").read_text())
    assert written["eos_token_id"] == 3
    assert written["bos_token_id"] is None
    assert written["dtype"] == "float32"


def rewrite(folder, change):
    """Applies `change` to the dict of tensors in a folder."""
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")


def reconfigure(folder, **settings):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))


def test_buffers_and_the_copy_of_a_tied_head_are_left_out(tmp_path):
    params = random_params(GPT2)
    save_model(tmp_path, GPT2, params, "gpt2")

    def add(tensors):
        tensors["transformer.h.0.attn.bias"] = np.ones((1, 1, 16, 16), np.bool_)
        tensors["lm_head.weight"] = tensors["transformer.wte.weight"].copy()

    rewrite(tmp_path, add)
    assert_same(load_model(tmp_path)[1], params)

    def untie(tensors):
        tensors["lm_head.weight"][-1, -1] += 1

    rewrite(tmp_path, untie)
    with pytest.raises(ValueError, match=r"lm_head\.weight"):
        load_model(tmp_path)


@pytest.mark.parametrize(("model_type", "prefix"), [("gpt2", "transformer."), ("gpt_neox", "gpt_neox.")])
def test_names_of_older_and_bare_checkpoints_are_understood(tmp_path, model_type, prefix):
    params = random_params(MODELS[model_type])
    save_model(tmp_path, MODELS[model_type], params, model_type)

    def rename(tensors):
        for name in list(tensors):
            tensors[name.removeprefix(prefix).replace("lm_head", "embed_out")] = tensors.pop(name)

    rewrite(tmp_path, rename)
    assert_same(load_model(tmp_path)[1], params)


def one_line(error):
    assert "\n" not in str(error.value)


def test_missing_folders_and_files_are_named(folder):
    with pytest.raises(ValueError, match="no folder") as error:
        load_model(folder / "absent")
    one_line(error)
    (folder / "model.safetensors").unlink()
    with pytest.raises(ValueError, match=r"neither model\.safetensors nor") as error:
        load_model(folder)
    one_line(error)
    (folder / "config.json").unlink()
    with pytest.raises(ValueError, match=r"no config\.json"):
        load_model(folder)


def test_pickle_files_are_refused(folder):
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(ValueError, match="pickle.*pytorch_model") as error:  # noqa: RUF043
        load_model(folder)
    one_line(error)


def test_a_missing_shard_is_named(tmp_path):
    save_model(tmp_path, LLAMA, random_params(LLAMA), "llama", shard_bytes=600)
    shard = sorted(tmp_path.glob("*.safetensors"))[1]
    shard.unlink()
    with pytest.raises(ValueError, match=shard.name) as error:
        load_model(tmp_path)
    one_line(error)


def test_a_tensor_in_two_shards_is_refused(tmp_path):
    save_model(tmp_path, LLAMA, random_params(LLAMA), "llama", shard_bytes=600)
    one, other = sorted(tmp_path.glob("*.safetensors"))[:2]
    save_file(load_file(one) | load_file(other), other)
    with pytest.raises(ValueError, match=rf"both in .*{one.name} and in {other.name}") as error:
        load_model(tmp_path)
    one_line(error)


def test_a_folder_without_a_tokenizer_is_refused(folder):
    with pytest.raises(FileNotFoundError, match=rf"{folder} holds no tokenizer") as error:
        load_tokenizer(folder)
    one_line(error)


@pytest.mark.parametrize("name", ["../model.safetensors", "/etc/passwd", "more/model.safetensors", "model.bin"])
def test_an_index_that_names_a_file_elsewhere_is_refused(folder, name):
    inside = folder / "inside"  # beside a file that it must not read
    inside.mkdir()
    (inside / "config.json").write_text((folder / "config.json").read_text())
    index = {"weight_map": {"model.norm.weight": name}}
    (inside / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match=rf"index\.json names '{name}', which is no safetensors file in") as error:
        load_model(inside)
    one_line(error)


@pytest.mark.parametrize(("index", "message"), [("{}", "no weight_map"), ("[]", "no JSON object"), ("", "not JSON")])
def test_a_malformed_index_is_named(folder, index, message):
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(index)
    with pytest.raises(ValueError, match=rf"index\.json .*{message}") as error:
        load_model(folder)
    one_line(error)


@pytest.mark.parametrize("kept", [0.0, 0.02, 0.9])
def test_a_truncated_file_is_named(folder, kept):
    file = folder / "model.safetensors"
    content = file.read_bytes()
    file.write_bytes(content[: int(kept * len(content))])
    with pytest.raises(ValueError, match=r"model\.safetensors is truncated") as error:
        load_model(folder)
    one_line(error)


@pytest.mark.parametrize("vocabulary", [12, 14])
def test_a_wrong_vocabulary_size_is_refused(folder, vocabulary):
    reconfigure(folder, vocab_size=vocabulary)
    with pytest.raises(ValueError, match=rf"embed_tokens.*\(13, 8\).*\({vocabulary}, 8\)") as error:
        load_model(folder)
    one_line(error)


def test_a_tensor_without_a_use_is_refused(folder):
    reconfigure(folder, num_hidden_layers=2)
    with pytest.raises(ValueError, match=r"model\.layers\.2") as error:
        load_model(folder)
    one_line(error)


def test_a_parameter_without_a_tensor_is_refused(folder):
    rewrite(folder, lambda tensors: tensors.pop("model.layers.1.mlp.up_proj.weight"))
    with pytest.raises(ValueError, match=r"layers\.1\.mlp\.up_proj.*layers/up/kernel") as error:
        load_model(folder)
    one_line(error)


def test_weights_that_are_not_floats_are_refused(folder):
    def quantise(tensors):
        tensors["model.norm.weight"] = np.ones(8, np.int8)

    rewrite(folder, quantise)
    with pytest.raises(ValueError, match=r"model\.norm\.weight holds I8"):
        load_model(folder)


@pytest.mark.parametrize("quantize", ["none", "int8"])
@pytest.mark.parametrize(("bad", "dtype"), [(np.nan, "float32"), (-np.inf, "bfloat16"), (1e30, "float16")])
def test_weights_that_are_not_finite_are_refused_by_tensor(folder, bad, dtype, quantize):
    """1e30 is no number of float16: it would become infinite."""

    def spoil(tensors):
        tensors["model.layers.1.mlp.up_proj.weight"][-1, 0] = bad

    rewrite(folder, spoil)
    message = r"safetensors: tensor model\.layers\.1\.mlp\.up_proj\.weight holds NaN or infinity"
    with pytest.raises(ValueError, match=message) as error:
        load_model(folder, dtype, quantize=quantize)
    one_line(error)


def test_weights_are_as_readable_as_their_settings(folder):
    assert len({path.stat().st_mode for path in folder.iterdir()}) == 1


def test_a_malformed_config_is_named(folder):
    (folder / "config.json").write_text("{")
    with pytest.raises(ValueError, match=r"config\.json is not JSON"):
        load_model(folder)


def test_a_local_folder_never_touches_the_network(folder, monkeypatch):
    import huggingface_hub

    calls = []

    def download(name, revision, allow_patterns):
        calls.append((name, revision, allow_patterns))
        return str(folder)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    assert resolve(folder) == folder
    assert calls == []
    with pytest.raises(ValueError, match="no folder"):
        resolve(folder / "absent")
    assert calls == []
    assert resolve("someone/a-model", "v1") == folder
    ((name, revision, patterns),) = calls
    assert (name, revision) == ("someone/a-model", "v1")
    assert "*.safetensors" in patterns
    assert not any("bin" in pattern for pattern in patterns)


def test_a_hub_id_that_cannot_be_had_is_one_line(monkeypatch):
    import huggingface_hub
    from huggingface_hub.errors import LocalEntryNotFoundError

    def download(*_, **__):
        raise LocalEntryNotFoundError("Cannot find an appropriate cached snapshot.\nMore advice.")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    with pytest.raises(ValueError, match="someone/a-model") as error:
        resolve("someone/a-model")
    one_line(error)


def run_on_eight_devices(*command):
    flags = {
        "XLA_FLAGS": f"--xla_force_host_platform_device_count=8 {os.environ.get('XLA_FLAGS', '')}",
        "JAX_PLATFORMS": "cpu",
    }
    done = subprocess.run(
        [sys.executable, *command], env=os.environ | flags, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_shards_on_eight_devices_are_the_whole(tmp_path):
    script = pathlib.Path(__file__).with_name("load_on_eight_devices.py")
    found = json.loads(run_on_eight_devices(script, tmp_path))
    assert found == {"equal": True, "int8": True, "nf4": True, "split": True}


@pytest.mark.slow
def test_a_gigabyte_loads_in_little_extra_memory(tmp_path):
    script = pathlib.Path(__file__).parents[2] / "benchmarks" / "loading.py"
    print(run_on_eight_devices(script, "--out", tmp_path))  # it fails where floats take 300 MB beyond themselves
    measured = json.loads((tmp_path / "loading.json").read_text())
    assert measured["checkpoint_mb"] > 1000
    assert measured["files"] == 8
    assert all(0 < run["extra_mb"] < 300 for run in measured["runs"])
