"""Times the parts of a step beside what they cannot do without: what `gfn_jax.benchmark` does.

A roofline (doi:10.1145/1498765.1498785) whose two rates are this machine's own, measured in the same run: of a large
matrix product, and of a copy. A part's limit is the longer of its operations over the one and its bytes over the other;
the whole step's is the sum of its parts', which follow each other.
"""

import platform
import resource
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from gfn_jax.commands.benchmark_parts import Parts, step_on, step_parts
from gfn_jax.evaluation.report import table
from gfn_jax.models.chips import chip_of
from gfn_jax.training.mesh import MeshConfig, make_mesh

FACTORS = (1, 2, 4)
# What grows -> the config's keys, the parts that are timed, and the factors, 1 first.
GROWTH: dict[str, tuple[tuple[str, ...], tuple[str, ...], tuple[int, ...]]] = {
    "samples": (("samples",), ("rollout", "reward", "update", "buffer"), FACTORS),
    "queries": (("queries",), ("rollout", "reward", "update", "buffer"), FACTORS),
    "prompt": (("prompt", "context"), ("rollout", "reward", "update"), FACTORS),
    "horizon": (("length",), ("rollout", "reward", "update", "buffer"), FACTORS),
    "capacity": (("capacity",), ("buffer",), (1, 10, 100)),
}


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


def copy_rate(repeats: int = 5) -> float:
    """Bytes a second that one device reads and writes when it copies a large array."""
    x = jnp.zeros(2**26 if jax.default_backend() == "cpu" else 2**29, jnp.float32)
    copy = jax.jit(lambda a: a + 1)
    return 2 * x.nbytes / measure(lambda: copy(x), repeats)["median"]


def peak_memory() -> dict[str, float]:
    """MiB: of this process, and of the first device where it counts."""
    stats = jax.local_devices()[0].memory_stats() or {}
    scale = 1024 if sys.platform == "darwin" else 1
    found = {"process": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024 / scale}
    if "peak_bytes_in_use" in stats:
        found["device"] = stats["peak_bytes_in_use"] / 2**20
    return found


OF_STEP = ("rollout", "reward", "buffer", "update")


def benchmark(config: ml_collections.ConfigDict, parts: Parts) -> dict[str, Any]:
    """Times every part of the step that `config` describes, on one device."""
    matrix, copy = matrix_rate(jnp.dtype(config.dtype)), copy_rate()
    timed: dict[str, Any] = {}
    for name, call in parts.calls.items():
        seconds, flops, nbytes = measure(call, config.repeats), parts.flops[name], parts.nbytes[name]
        median = seconds["median"]
        if name == "step":
            limit = sum(timed[part]["limit_seconds"] for part in OF_STEP)
        else:
            limit = max(flops / matrix, nbytes / copy)
        timed[name] = {
            "seconds": seconds,
            "gflop": flops / 1e9,
            "megabytes": nbytes / 1e6,
            "limit_seconds": limit,
            "times_limit": median / limit,
            "matrix_share": flops / median / matrix,
            "copy_share": nbytes / median / copy,
        }
    rows, tokens = parts.shape.rows, parts.shape.rows * (parts.shape.horizon - 1)
    step = timed["step"]["seconds"]["median"]
    device = jax.devices()[0]
    chip = chip_of(device.device_kind)
    found = {
        "config": config.to_dict(),
        "device": f"{device.platform} {device.device_kind}",
        "devices": jax.device_count(),
        "machine": platform.machine(),
        "jax": jax.__version__,
        "date": time.strftime("%Y-%m-%d"),
        "matrix_gflops": matrix / 1e9,
        "copy_gigabytes": copy / 1e9,
        "parts": timed,
        "samples_per_second": rows / step,
        "tokens_per_second": tokens / step,
        # Of the maker's peak, where the chip is known; else of the measured rate, which is a kinder measure.
        "mfu": parts.flops["step"] / step / (chip.rate(config.dtype) if chip else matrix),
        "mfu_of": f"peak of {chip.name}" if chip else "measured matrix rate",
        "peak_memory_mib": peak_memory(),
    }
    if "reward_sequential" in timed:
        sequential, packed = (timed[name]["seconds"]["median"] for name in ("reward_sequential", "reward"))
        found["sequential_over_packed"] = sequential / packed
    return found


def scaling(config: ml_collections.ConfigDict, counts: Sequence[int]) -> list[dict[str, float]]:
    """The whole step on 1, 2, ... devices, rows over all of them, with as many times the queries (weak scaling)."""
    found: list[dict[str, float]] = []
    for devices in counts:
        mesh = make_mesh(MeshConfig(devices, 1, 1), jax.devices()[:devices])
        larger = changed(config, queries=devices * config.queries)
        with jax.set_mesh(mesh):
            seconds = measure(step_on(mesh, larger), config.repeats)["median"]
        tokens = larger.queries * config.samples * config.length / seconds
        one = found[0]["seconds"] * found[0]["devices"] if found else seconds * devices
        found.append(
            {
                "devices": devices,
                "queries": larger.queries,
                "seconds": seconds,
                "tokens_per_second_per_device": tokens / devices,
                "efficiency": one / counts[0] / seconds,
            }
        )
    return found


def growth(config: ml_collections.ConfigDict) -> dict[str, Any]:
    """Seconds of the parts as one size grows, and the exponents of the powers that fit them best."""
    found: dict[str, Any] = {}
    every = dict.fromkeys(part for _, parts, _ in GROWTH.values() for part in parts)
    base = step_parts(config).calls
    first = {part: measure(base[part], config.repeats)["median"] for part in every}
    for name, (keys, parts, factors) in GROWTH.items():
        seconds = {part: [first[part]] for part in parts}
        for factor in factors[1:]:
            calls = step_parts(changed(config, **{key: factor * config[key] for key in keys})).calls
            for part in parts:
                seconds[part].append(measure(calls[part], config.repeats)["median"])
        exponents = {part: exponent(factors, times) for part, times in seconds.items()}
        sizes = [factor * config[keys[0]] for factor in factors]
        found[name] = {"sizes": sizes, "seconds": seconds, "exponents": exponents}
    return found


def exponent(sizes: Sequence[float], values: Sequence[float]) -> float:
    """The slope of log values against log sizes, by least squares: 1 where they grow alike."""
    return float(np.polyfit(np.log(sizes), np.log(values), 1)[0])


def changed(config: ml_collections.ConfigDict, **values: Any) -> ml_collections.ConfigDict:
    """A copy with other values."""
    other = config.copy_and_resolve_references()
    with other.unlocked():
        other.update(values)
    return other


def trace(parts: Parts, folder: str, steps: int = 3) -> None:
    """Writes a trace of some steps, compiled before: XProf opens the folder, Perfetto perfetto_trace.json.gz in it."""
    jax.block_until_ready(parts.calls["step"]())
    with jax.profiler.trace(folder, create_perfetto_trace=True):
        for _ in range(steps):
            jax.block_until_ready(parts.calls["step"]())


def page(result: dict[str, Any]) -> str:
    """The result for a person."""
    rows = [
        (
            name,
            *(f"{1e3 * part['seconds'][key]:.0f}" for key in ("median", "min", "max")),
            f"{part['gflop']:.1f}",
            f"{part['megabytes']:.0f}",
            f"{1e3 * part['limit_seconds']:.0f}",
            f"{part['times_limit']:.2f}",
            f"{part['matrix_share']:.0%}",
            f"{part['copy_share']:.0%}",
            f"{part['seconds']['first']:.1f}",
        )
        for name, part in result["parts"].items()
    ]
    header = ("part", "median ms", "min", "max", "GFLOP", "MB", "limit ms", "x limit", "matrix", "copy", "first call s")
    memory = ", ".join(f"{name} {mib:.0f} MiB" for name, mib in result["peak_memory_mib"].items())
    ratio = result.get("sequential_over_packed")
    compared = [f"one packed reward is {ratio:.1f} times as fast as a pass per prefix"] if ratio else []
    lines = [
        f"{result['device']}, jax {result['jax']}, matrix products at {result['matrix_gflops']:.0f} GFLOP/s, copies at "
        f"{result['copy_gigabytes']:.1f} GB/s, both measured here",
        "",
        table(header, rows),
        "",
        *compared,
        f"whole step: {result['samples_per_second']:.1f} samples/s, {result['tokens_per_second']:.0f} tokens/s/chip; "
        f"MFU {result['mfu']:.1%} ({result['mfu_of']}); peak memory: {memory}",
    ]
    if "scaling" in result:
        lines += ["", *scaling_lines(result)]
    if "growth" in result:
        lines += ["", *growth_lines(result)]
    return "\n".join(lines)


def scaling_lines(result: dict[str, Any]) -> list[str]:
    """A line a number of devices."""
    rows = [
        (
            str(one["devices"]),
            str(one["queries"]),
            f"{1e3 * one['seconds']:.0f}",
            f"{one['tokens_per_second_per_device']:.0f}",
            f"{one['efficiency']:.0%}",
        )
        for one in result["scaling"]
    ]
    lines = ["devices with as many times the queries:", ""]
    lines += [table(("devices", "queries", "step ms", "tokens/s/chip", "efficiency"), rows)]
    if result["device"].startswith("cpu"):
        lines += ["virtual devices of one CPU share its cores: no speed-up is to be expected of them"]
    return lines


def growth_lines(result: dict[str, Any]) -> list[str]:
    """A line a size and part: how its seconds grow."""
    rows = [
        (name, part, ", ".join(map(str, one["sizes"])), ", ".join(f"{1e3 * x:.0f}" for x in times), f"{power:.2f}")
        for name, one in result["growth"].items()
        for (part, times), power in zip(one["seconds"].items(), one["exponents"].values(), strict=True)
    ]
    return ["growth: seconds as a power of a size", "", table(("size", "part", "sizes", "ms", "power"), rows)]
