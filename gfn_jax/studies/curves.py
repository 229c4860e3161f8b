"""A run's metrics.jsonl as curves: a panel a metric, a line a run."""

import json
import math
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from gfn_jax.studies.figures import STYLE, WIDTH, Drawn, legend, looks, rendered
from gfn_jax.training.writers import METRICS

# What is drawn first; other metrics follow in the order of their records.
FIRST = (
    "loss",
    "log_reward",
    "valid",
    "distinct",
    "first_token_entropy",
    "length_bias",
    "elbo",
    "log_z",
    "ess",
    "length",
    "gradient_norm",
    "buffer_coverage",
)
PANELS, POINTS = 12, 400  # of a figure, and of a line
Series = Mapping[str, Sequence[tuple[int, float]]]


def read_metrics(workdir: pathlib.Path) -> dict[str, list[dict[str, Any]]]:
    """Run -> its records: the folder's own or, of a program of several runs, each one's under its folder's name."""
    own = workdir / METRICS
    paths = [own] if own.exists() else sorted(workdir.glob(f"*/{METRICS}"))
    return {path.parent.name: [json.loads(line) for line in path.read_text().splitlines()] for path in paths}


def curves_of(records: Mapping[str, Sequence[Mapping[str, Any]]], kind: str) -> dict[str, dict[str, list]]:
    """Metric -> run -> its (step, value) points; what is no finite number, and the clock, is left out.

    Args:
        records: as `read_metrics` has them.
        kind: of the records, `train` or `eval`.
    """
    found: dict[str, dict[str, list]] = {}
    for run, lines in records.items():
        for line in lines:
            if line["kind"] == kind:
                for name, value in line.items():
                    if name not in ("step", "kind", "seconds") and isinstance(value, int | float):
                        found.setdefault(name, {}).setdefault(run, []).append((line["step"], float(value)))
    order = {name: place for place, name in enumerate(FIRST)}
    names = sorted(found, key=lambda name: order.get(name, len(order)))  # sorted() keeps the order of the rest
    return {name: found[name] for name in names}


def draw_curves(curves: Mapping[str, Series], name: str) -> Drawn | None:
    """The first metrics as a figure; None where there is none.

    Args:
        curves: metric -> run -> points.
        name: of the figure, for the ids in it.
    """
    shown = list(curves.items())[:PANELS]
    if not shown:
        return None
    import matplotlib
    from matplotlib.figure import Figure

    across = min(len(shown), 2)
    down = -(-len(shown) // across)
    with matplotlib.rc_context(STYLE):
        drawing = Figure(figsize=(WIDTH, 1.6 * down + 0.4), layout="constrained")
        panels = drawing.subplots(down, across, squeeze=False).flat
        for (metric, runs), panel in zip(shown, panels):
            for look, (run, points) in zip(looks(len(runs)), runs.items()):
                few = thinned(points)
                mark = look["marker"] if len(few) < 3 else None
                panel.plot(*zip(*few), color=look["color"], marker=mark, label=run)
            panel.set_title(metric, loc="left")
            panel.xaxis.get_major_locator().set_params(integer=True)
            panel.grid(alpha=0.2, lw=0.6)
        for panel in panels:
            panel.set_axis_off()
        legend(drawing)
        return rendered(drawing, name)


def thinned(points: Sequence[tuple[int, float]], most: int = POINTS) -> list[tuple[float, float]]:
    """So many points at most: means of neighbours."""
    size = math.ceil(len(points) / most)
    parts = [points[begin : begin + size] for begin in range(0, len(points), size)]
    return [(sum(step for step, _ in part) / len(part), sum(value for _, value in part) / len(part)) for part in parts]
