"""Times the parts of a step, beside what their matrix products alone would take: what `gfn_jax.benchmark` does."""

import platform
import resource
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections

from gfn_jax.commands.benchmark_parts import Parts
from gfn_jax.evaluation.report import table
from gfn_jax.models.flops import packed_reward_flops, rollout_flops, score_flops, sequential_reward_flops


def measure(call: Callable[[], Any], repeats: int) -> dict[str, float]:
    """Seconds of `call`: the first (compilation included), then median, minimum and maximum of `repeats`."""

    def once() -> float:
        start = time.perf_counter()
        jax.block_until_ready(call())
        return time.perf_counter() - start

    first = once()
    times = [once() for _ in range(repeats)]
    return {"first": first, "median": statistics.median(times), "min": min(times), "max": max(times)}


def matrix_rate(dtype: Any, repeats: int = 5) -> float:
    """Operations a second of a large matrix product on one device."""
    size = 2048 if jax.default_backend() == "cpu" else 8192
    x = jax.random.normal(jax.random.key(0), (size, size), jnp.float32).astype(dtype)
    product = jax.jit(lambda a: a @ a)
    return 2 * size**3 / measure(lambda: product(x), repeats)["median"]


def peak_memory() -> dict[str, float]:
    """MiB: of this process, and of the first device where it counts."""
    stats = jax.local_devices()[0].memory_stats() or {}
    scale = 1024 if sys.platform == "darwin" else 1
    found = {"process": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024 / scale}
    if "peak_bytes_in_use" in stats:
        found["device"] = stats["peak_bytes_in_use"] / 2**20
    return found


def benchmark(config: ml_collections.ConfigDict, parts: Parts) -> dict[str, Any]:
    """Times every part of the step that `config` describes."""
    rate = matrix_rate(jnp.dtype(config.dtype))
    policy, base = parts.policy_flops, parts.base_flops
    counts = {
        "rollout": rollout_flops(policy, parts.shape),
        "reward": packed_reward_flops(base, parts.shape),
        "reward_sequential": sequential_reward_flops(base, parts.shape),
        "score_update": score_flops(policy, parts.shape),
    }
    counts["step"] = counts["rollout"] + counts["reward"] + counts["score_update"]
    timed: dict[str, Any] = {}
    for name, call in parts.calls.items():
        seconds = measure(call, config.repeats)
        limit = counts[name] / rate
        timed[name] = {
            "seconds": seconds,
            "gflop": counts[name] / 1e9,
            "limit_seconds": limit,
            "times_limit": seconds["median"] / limit,
        }
    rows, tokens = parts.shape.rows, parts.shape.rows * (parts.shape.horizon - 1)
    step = timed["step"]["seconds"]["median"]
    device = jax.devices()[0]
    found = {
        "config": config.to_dict(),
        "device": f"{device.platform} {device.device_kind}",
        "devices": jax.device_count(),
        "machine": platform.machine(),
        "jax": jax.__version__,
        "date": time.strftime("%Y-%m-%d"),
        "matrix_gflops": rate / 1e9,
        "parts": timed,
        "samples_per_second": rows / step,
        "tokens_per_second": tokens / step,
        "peak_memory_mib": peak_memory(),
    }
    if "reward_sequential" in timed:
        sequential, packed = (timed[name]["seconds"]["median"] for name in ("reward_sequential", "reward"))
        found["sequential_over_packed"] = sequential / packed
    return found


def page(result: dict[str, Any]) -> str:
    """The result for a person."""
    rows = [
        (
            name,
            *(f"{1e3 * part['seconds'][key]:.0f}" for key in ("median", "min", "max")),
            f"{part['gflop']:.1f}",
            f"{1e3 * part['limit_seconds']:.0f}",
            f"{part['times_limit']:.2f}",
            f"{part['seconds']['first']:.1f}",
        )
        for name, part in result["parts"].items()
    ]
    header = ("part", "median ms", "min", "max", "GFLOP", "limit ms", "x limit", "first call s")
    memory = ", ".join(f"{name} {mib:.0f} MiB" for name, mib in result["peak_memory_mib"].items())
    ratio = result.get("sequential_over_packed")
    compared = [f"one packed reward is {ratio:.1f} times as fast as a pass per prefix"] if ratio else []
    return "\n".join(
        [
            f"{result['device']} x {result['devices']}, jax {result['jax']}, "
            f"matrix products at {result['matrix_gflops']:.0f} GFLOP/s",
            "",
            table(header, rows),
            "",
            *compared,
            f"whole step: {result['samples_per_second']:.1f} samples/s, {result['tokens_per_second']:.0f} tokens/s; "
            f"peak memory: {memory}",
        ]
    )
