"""What `make benchmark` times: each part, compilation in its first call, and what others would really do beside it."""

import dataclasses
import functools
import gzip
import json
import pathlib
import re

import jax
import pytest

from gfn_jax import benchmark
from gfn_jax.commands import benchmarking
from gfn_jax.commands.benchmark_parts import step_parts
from gfn_jax.commands.config_flag import load_config

ROOT = pathlib.Path(__file__).parents[2]


def config_of(answer):
    """A step on a model that compiles in no time."""
    config = load_config(f"{ROOT}/configs/benchmark.py:a").unlock()
    small = {"vocab_size": 11, "width": 8, "num_layers": 1, "num_heads": 1, "num_kv_heads": 1, "head_dim": 8}
    config.model.update({**small, "mlp_width": 8})
    config.lora.update({"rank": 2, "targets": ("q",)})
    config.update({"samples": 2, "prompt": 2, "context": 2, "length": 3, "repeats": 1, "answer": answer})
    return config


@functools.cache
def parts_of(answer):
    return step_parts(config_of(answer))


def test_a_first_call_compiles_its_part_and_a_second_one_does_not():
    compiled = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda event, seconds, **_: compiled.append(event) if event.endswith("backend_compile_duration") else None
    )
    calls = parts_of(answer=2).calls
    programs = []
    names = ("rollout", "reward", "buffer", "reward_sequential")  # what the other parts are fed from
    for name in names:
        for _ in range(2):
            compiled.clear()
            jax.block_until_ready(calls[name]())
            programs.append((name, len(compiled) > 0))
    assert programs == [(name, first) for name in names for first in (True, False)]


@pytest.mark.parametrize(("answer", "compared"), [(1, False), (2, True)])
def test_a_pass_per_prefix_is_timed_only_where_more_than_the_stop_follows(monkeypatch, answer, compared):
    parts = parts_of(answer)
    idle = dataclasses.replace(parts, calls=dict.fromkeys(parts.calls, lambda: 0))
    monkeypatch.setattr(benchmarking, "matrix_rate", lambda _: 1e9)
    monkeypatch.setattr(benchmarking, "copy_rate", lambda: 1e9)
    result = benchmarking.benchmark(config_of(answer), idle)
    assert ("reward_sequential" in result["parts"]) is compared
    assert ("sequential_over_packed" in result) is compared
    assert ("a pass per prefix" in benchmarking.page(result)) is compared


def test_a_limit_is_the_longer_of_operations_and_bytes(monkeypatch):
    parts = parts_of(1)
    idle = dataclasses.replace(parts, calls=dict.fromkeys(parts.calls, lambda: 0))
    monkeypatch.setattr(benchmarking, "measure", lambda call, repeats: {"first": 9.0, **dict.fromkeys(SPREAD, 2.0)})
    monkeypatch.setattr(benchmarking, "matrix_rate", lambda _: 1e9)
    for copy in (1.0, 1e15):
        monkeypatch.setattr(benchmarking, "copy_rate", functools.partial(float, copy))
        found = benchmarking.benchmark(config_of(1), idle)["parts"]
        for name, part in found.items():
            by_operations, by_bytes = parts.flops[name] / 1e9, parts.nbytes[name] / copy
            if name != "step":
                assert part["limit_seconds"] == pytest.approx(max(by_operations, by_bytes))
            assert part["matrix_share"] == pytest.approx(by_operations / 2)
            assert part["copy_share"] == pytest.approx(by_bytes / 2)
        of_step = sum(found[name]["limit_seconds"] for name in benchmarking.OF_STEP)
        assert found["step"]["limit_seconds"] == pytest.approx(of_step)
    assert found["step"]["gflop"] == pytest.approx(
        sum(found[name]["gflop"] for name in ("rollout", "reward", "update"))
    )
    assert found["buffer"]["gflop"] == 0 < found["buffer"]["megabytes"]


SPREAD = ("median", "min", "max")


def test_the_exponent_of_a_power_is_found():
    assert benchmarking.exponent((1, 2, 4), (5.0, 20.0, 80.0)) == pytest.approx(2)


@pytest.mark.slow
def test_growth_scaling_trace_and_pictures_are_written(monkeypatch, tmp_path, capsys):
    """The whole command, each thing once; growth of one size alone."""
    monkeypatch.setattr(benchmarking, "GROWTH", {"capacity": (("capacity",), ("buffer",), (1, 2))})
    monkeypatch.setattr(benchmarking, "matrix_rate", lambda _: 1e9)
    monkeypatch.setattr(benchmarking, "copy_rate", lambda: 1e9)
    overrides = config_of(1).to_dict()
    flat = {**{f"model.{k}": overrides["model"][k] for k in ("vocab_size", "width", "num_layers", "num_heads")}}
    flat |= {f"model.{k}": overrides["model"][k] for k in ("num_kv_heads", "head_dim", "mlp_width")}
    flat |= {k: overrides[k] for k in ("samples", "prompt", "context", "length", "repeats")}
    words = [f"--config.{key}={value}" for key, value in flat.items()]
    flags = ["--growth", "--scaling", f"--output={tmp_path / 'out'}", f"--trace={tmp_path / 'profile'}"]
    assert benchmark.main(["benchmark", f"--config={ROOT}/configs/benchmark.py:a", *words, *flags]) == 0
    said = capsys.readouterr().out
    assert "tokens/s/chip" in said
    assert "no speed-up is to be expected" in said
    result = json.loads((tmp_path / "out" / "benchmark.json").read_text())
    assert set(result["parts"]) == {"rollout", "reward", "buffer", "update", "step"}
    assert result["growth"]["capacity"]["sizes"] == [50, 100]
    assert result["scaling"][0]["devices"] == 1
    pictures = {file.name for file in (tmp_path / "out").glob("*.png")}
    assert pictures == {"roofline.png", "growth.png", "scaling.png"}
    (file,) = (tmp_path / "profile").rglob("perfetto_trace.json.gz")
    assert json.loads(gzip.decompress(file.read_bytes()))["traceEvents"]
    assert list((tmp_path / "profile").rglob("*.xplane.pb"))


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ([], "no config; name one, for instance --config=configs/benchmark.py"),
        (["--config=CONFIG:c"], "preset 'c' is unknown; configs/benchmark.py has a, b, tiny, gpt2xl, gptj"),
        (["--config=CONFIG", "--config.repeats=1.5"], "flag --config.repeats=1.5: invalid .*"),
        (["--config=CONFIG", "--config.answer=0"], "answer is 0; it must be a whole number of at least 1"),
        (["--config=CONFIG", "--config.dtype=int8"], "dtype is 'int8'; it must be one of .*"),
        (["--config=CONFIG", "--config.seed=None"], "seed is None; it must be a whole number .*"),
        (["--config=CONFIG", "--config.lora.rank=0"], "lora.rank is 0; it must be .*"),
        (["--config=ARITH"], "the config lacks answer, calculator, .*"),
    ],
)
def test_what_is_wrong_is_one_line(capsys, arguments, line):
    places = {"CONFIG": "configs/benchmark.py", "ARITH": "configs/arith.py"}
    arguments = [re.sub("CONFIG|ARITH", lambda match: str(ROOT / places[match[0]]), word) for word in arguments]
    assert benchmark.main(["benchmark", *arguments]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert re.fullmatch(f"error: {line}\n", captured.err)


def test_make_benchmark_is_the_documented_command():
    shown = "taskset -c 0 python -m gfn_jax.benchmark --config=configs/benchmark.py:a"
    assert f"\n    {shown} " in (ROOT / "docs/BENCHMARKS.md").read_text()
    makefile = (ROOT / "Makefile").read_text()
    assert "ONE_CORE := $(if $(shell command -v taskset),taskset -c 0)" in makefile
    assert "$(ONE_CORE) $(BIN)/python -m gfn_jax.benchmark --config=configs/benchmark.py:a" in makefile
