"""What `make benchmark` times: each part, compilation in its first call, and what others would really do beside it."""

import dataclasses
import functools
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
    for name in ("rollout", "reward", "reward_sequential"):  # what the other parts are fed from
        for _ in range(2):
            compiled.clear()
            jax.block_until_ready(calls[name]())
            programs.append((name, len(compiled) > 0))
    assert programs == [(name, first) for name in ("rollout", "reward", "reward_sequential") for first in (True, False)]


@pytest.mark.parametrize(("answer", "compared"), [(1, False), (2, True)])
def test_a_pass_per_prefix_is_timed_only_where_more_than_the_stop_follows(monkeypatch, answer, compared):
    parts = parts_of(answer)
    idle = dataclasses.replace(parts, calls=dict.fromkeys(parts.calls, lambda: 0))
    monkeypatch.setattr(benchmarking, "matrix_rate", lambda _: 1e9)
    result = benchmarking.benchmark(config_of(answer), idle)
    assert ("reward_sequential" in result["parts"]) is compared
    assert ("sequential_over_packed" in result) is compared
    assert ("a pass per prefix" in benchmarking.page(result)) is compared


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ([], "no config; name one, for instance --config=configs/benchmark.py"),
        (["--config=CONFIG:c"], "preset 'c' is unknown; configs/benchmark.py has a, b, tiny"),
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


def test_make_benchmark_sets_the_flags_of_the_documented_command():
    (shown,) = re.findall(
        r'XLA_FLAGS="([^"]+)" \\\n +python -m gfn_jax.benchmark', (ROOT / "docs" / "measured.md").read_text()
    )
    assert f"\nbenchmark: export XLA_FLAGS = {shown}\n" in (ROOT / "Makefile").read_text()
