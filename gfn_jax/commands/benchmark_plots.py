"""What `gfn_jax.benchmark` found, as pictures: the roofline, growth, scaling over devices."""

import pathlib
from typing import Any

import numpy as np
from matplotlib.figure import Figure


def draw(result: dict[str, Any], folder: pathlib.Path) -> None:
    """Writes roofline.png, and growth.png and scaling.png where that was measured."""
    pictures = {"roofline": _roofline}
    pictures |= {name: function for name, function in (("growth", _growth), ("scaling", _scaling)) if name in result}
    for name, function in pictures.items():
        function(result).savefig(folder / f"{name}.png", dpi=120)


def _roofline(result: dict[str, Any]) -> Figure:
    """Operations a second against operations a byte, under the two measured rates."""
    matrix, copy = result["matrix_gflops"], result["copy_gigabytes"]
    figure = Figure(figsize=(5, 4), layout="constrained")
    axes = figure.subplots()
    counted = {name: part for name, part in result["parts"].items() if part["gflop"]}
    intensity = {name: 1e3 * part["gflop"] / part["megabytes"] for name, part in counted.items()}
    x = np.geomspace(min(*intensity.values(), matrix / copy) / 3, max(*intensity.values(), matrix / copy) * 3, 100)
    axes.loglog(x, np.minimum(matrix, copy * x), color="black", linewidth=1)
    for name, part in counted.items():
        axes.loglog(intensity[name], part["gflop"] / part["seconds"]["median"], "o")
        axes.annotate(f" {name}", (intensity[name], part["gflop"] / part["seconds"]["median"]))
    axes.set(xlabel="operations a byte", ylabel="GFLOP/s", title=result["device"])
    return figure


def _growth(result: dict[str, Any]) -> Figure:
    """Seconds against each size."""
    figure = Figure(figsize=(3.2 * len(result["growth"]), 3), layout="constrained")
    panels = figure.subplots(1, len(result["growth"]), squeeze=False)[0]
    for axes, (name, one) in zip(panels, result["growth"].items(), strict=True):
        for part, seconds in one["seconds"].items():
            axes.loglog(one["sizes"], seconds, "o-", label=f"{part}, power {one['exponents'][part]:.2f}")
        axes.set(xlabel=name, ylabel="seconds")
        axes.legend(fontsize=7)
    return figure


def _scaling(result: dict[str, Any]) -> Figure:
    """Tokens a second on all devices together, beside what they would be if each did as one alone."""
    devices = [one["devices"] for one in result["scaling"]]
    rates = [one["devices"] * one["tokens_per_second_per_device"] for one in result["scaling"]]
    figure = Figure(figsize=(4, 3), layout="constrained")
    axes = figure.subplots()
    axes.plot(devices, rates, "o-", label="measured")
    axes.plot(devices, [rates[0] * n / devices[0] for n in devices], "--", color="grey", label="in proportion")
    axes.set(xlabel="devices", ylabel="tokens/s", ylim=(0, None))
    axes.legend()
    return figure
