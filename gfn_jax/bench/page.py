"""The tables of PosteriorBench, in Markdown, and its figure."""

import math
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

HEAD = (
    "method", "rows", "KL to target", "KL from target", "TV", "outside", "coverage", "exact KL to", "exact KL from",
    "exact TV", "log Z error", "tokens", "seconds",
)  # fmt: skip
MEASURES = ("kl_to_target", "kl_from_target", "total_variation", "outside", "coverage")
EXACT = ("kl_to_target", "kl_from_target", "total_variation")


def page(name: str, found: Mapping[str, Any]) -> str:
    """A target's table: means over its seeds, and first what as many exact samples show."""
    lines = [
        f"## {name}",
        "",
        f"{_each(found['completions'])} completions, {_each(found['modes'])} modes, log Z {_each(found['log_z'])}, "
        f"entropy {_each(found['entropy'])} nats. KL in nats; the first rows are exact samples.",
        "",
        _row(HEAD),
        _row(["---"] * len(HEAD)),
    ]
    lines += [
        _row(["(exact samples)", rows, *(_number(floor[key]) for key in MEASURES), *["-"] * 6])
        for rows, floor in found["floor"].items()
    ]
    for method in dict.fromkeys(run["method"] for run in found["runs"]):
        own = [run for run in found["runs"] if run["method"] == method]
        if "refused" in own[0]:
            lines.append(_row([method, "-", f"refuses it: {own[0]['refused']}", *["-"] * (len(HEAD) - 3)]))
            continue
        for rows in dict.fromkeys(run["rows"] for run in own):
            lines.append(_row(_cells(method, rows, [run for run in own if run["rows"] == rows])))
    return "\n".join([*lines, ""])


def plot(targets: Mapping[str, Any], path: pathlib.Path) -> bool:
    """KL to the target against tokens spent, a panel a target; dotted: as many exact samples as the most rows.

    Returns:
        Whether it was drawn: matplotlib may not be installed.
    """
    try:
        import matplotlib
    except ImportError:
        return False
    if not targets:
        return False
    matplotlib.use("Agg")
    from matplotlib import pyplot

    columns = min(len(targets), 3)
    lines = -(-len(targets) // columns)
    figure, axes = pyplot.subplots(lines, columns, figsize=(4.6 * columns, 3.4 * lines), squeeze=False)
    methods = list(dict.fromkeys(run["method"] for found in targets.values() for run in found["runs"]))
    for axis, (name, found) in zip(axes.flat, targets.items()):
        for number, method in enumerate(methods):
            own = [run for run in found["runs"] if run["method"] == method and "refused" not in run]
            points = []
            for rows in dict.fromkeys(run["rows"] for run in own):
                kl = _mean([run["kl_to_target"] for run in own if run["rows"] == rows])
                if math.isfinite(kl):
                    points.append((_mean([run["tokens"] for run in own if run["rows"] == rows]), max(kl, 1e-4)))
            axis.plot(*zip(*points) if points else ([], []), "o-", label=method, markersize=4, color=f"C{number % 10}")
        axis.axhline(max(list(found["floor"].values())[-1]["kl_to_target"], 1e-4), color="black", ls=":", lw=0.8)
        axis.set_title(name, fontsize=10)
        axis.set_xscale("log")
        axis.set_yscale("log")
        axis.set_xlabel("tokens")
        axis.set_ylabel("KL of listed rows, nats")
        axis.grid(alpha=0.2)
    for axis in axes.flat[len(targets) :]:
        axis.set_axis_off()
    axes.flat[0].legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
    return True


def _cells(method: str, rows: int, runs: Sequence[Mapping[str, Any]]) -> list[str]:
    exact = [run["exact"] for run in runs if run["exact"] is not None]
    errors = [run["log_z_error"] for run in runs if run["log_z_error"] is not None]
    return [
        method,
        str(rows),
        *(_number(_mean([run[key] for run in runs])) for key in MEASURES),
        *(_number(_mean([one[key] for one in exact])) if exact else "-" for key in EXACT),
        _number(_mean(errors)) if errors else "-",
        f"{_mean([run['tokens'] for run in runs]):.0f}",
        f"{_mean([run['seconds'] for run in runs]):.1f}",
    ]


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values))


def _number(value: float) -> str:
    return "inf" if math.isinf(value) else "-" if math.isnan(value) else f"{value:.3g}"


def _each(values: Sequence[float]) -> str:
    """One value, or the least and the greatest of several."""
    low, high = (f"{value:.4g}" if isinstance(value, float) else str(value) for value in (min(values), max(values)))
    return low if low == high else f"{low} to {high}"


def _row(cells: Sequence[Any]) -> str:
    return f"| {' | '.join(map(str, cells))} |"
