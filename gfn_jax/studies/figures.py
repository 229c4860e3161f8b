"""Studies as figures, as PNG and SVG: bars, curves and scatters with the intervals of the table's cells; distributions.

Colours are those of Okabe and Ito (2008), which people of any colour vision can tell apart; lines differ by their marks
too. An SVG's texts stay texts, and its bytes depend on what is drawn alone.
"""

import dataclasses
import importlib.util
import io
import math
import re
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from gfn_jax.studies.study import Cells, Column, Interval, Results, Row, Study

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
MARKS = "osD^vPX"
INK = "#1f2328"  # of texts and axes; `inline` gives it the page's colour
WIDTH = 5.6  # inches: readable on a telephone without being enlarged
STYLE: dict[Any, Any] = {
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.labelsize": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.linewidth": 0.6,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "legend.frameon": False,
    "lines.linewidth": 1.4,
    "lines.markersize": 4.5,
    "svg.fonttype": "none",
    "svg.hashsalt": "gfn_jax",
}


@dataclasses.dataclass(frozen=True)
class Drawn:
    """A figure.

    Attributes:
        png, svg: files, on white.
        inline: an <svg> element without a ground, whose ids begin with the study's name.
    """

    png: bytes
    svg: bytes
    inline: str


def available() -> bool:
    """Whether figures can be drawn: matplotlib may not be installed."""
    return importlib.util.find_spec("matplotlib") is not None


def draw(study: Study, cells: Cells, results: Results) -> Drawn | None:
    """A study's figure; None where it has none, or no cell to draw.

    Raises:
        ValueError: a figure column that the table lacks, or a scatter without two.
    """
    columns = {column.metric: column for column in study.columns}
    unknown = set(study.figure_columns) - set(columns)
    if unknown:
        raise ValueError(f"{study.name} draws {', '.join(sorted(unknown))}, which its table lacks")
    drawn = [columns[name] for name in study.figure_columns or columns]
    finite = {key: cell for key, cell in cells.items() if math.isfinite(cell.mean)}
    if study.figure is None or not any((row.title, column.metric) in finite for row in study.rows for column in drawn):
        return None
    shown = study.distributions(results) if study.distributions else {}
    if study.figure == "distributions" and not shown:
        return None
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 3), layout="constrained")
        if study.figure == "distributions":
            distributions(figure, study, shown)
        else:
            {"bars": bars, "curves": curves, "scatter": scatter}[study.figure](figure, study, drawn, finite)
        return rendered(figure, study.name)


def rendered(figure: Any, name: str) -> Drawn:
    """A matplotlib figure as files; the ids of its inline one begin with `name`."""
    files = {
        (kind, transparent): _saved(figure, kind, transparent)
        for kind, transparent in (("png", False), ("svg", False), ("svg", True))
    }
    return Drawn(files["png", False], files["svg", False], _inlined(files["svg", True].decode(), name))


def bars(figure: Any, study: Study, columns: Sequence[Column], cells: Cells) -> None:
    """A panel a column, a bar a row, from above as in the table; points where a logarithmic axis has no 0."""
    rows = [row for row in study.rows if any((row.title, column.metric) in cells for column in columns)]
    across = min(len(columns), 3)
    down = -(-len(columns) // across)
    names = [_folded(row.title, 26) for row in rows]
    lines = sum(name.count("\n") + 1.8 for name in names)
    figure.set_size_inches(WIDTH, down * (0.65 + 0.135 * lines))
    # Measures of one kind, accuracy_3 and accuracy_4, have one scale.
    alike = len({column.metric.rpartition("_")[0] or column.metric for column in columns}) == 1
    panels = figure.subplots(down, across, squeeze=False, sharey=True, sharex=alike).flat
    for column, panel in zip(columns, panels):  # in this order: zip() takes one panel too many otherwise
        for place, row in enumerate(rows):
            cell = cells.get((row.title, column.metric))
            if cell is None:
                panel.text(0.02, place, "not run", transform=panel.get_yaxis_transform(), va="center", alpha=0.6)
                continue
            if not column.scientific:
                panel.barh(place, cell.mean, 0.62, color=COLOURS[0], alpha=0.75, lw=0)
            mark = "o" if column.scientific else "none"
            panel.errorbar(cell.mean, place, xerr=_error(cell), fmt=mark, color=COLOURS[0], ecolor=INK, elinewidth=1)
        panel.set_yticks(range(len(rows)), names)
        panel.tick_params(axis="y", length=0)
        panel.set_ylim(len(rows) - 0.4, -0.6)
        panel.set_title(_titled(column), loc="left")
        panel.grid(axis="x", alpha=0.2, lw=0.6)
        panel.set_axisbelow(True)
        _scale(panel, "x", column, cells)
    for panel in panels:
        panel.set_axis_off()


def curves(figure: Any, study: Study, columns: Sequence[Column], cells: Cells) -> None:
    """A panel a column, a line a series with a band; rows without an x are level lines."""
    series = _series(study.rows)
    across = min(len(columns), 2)
    down = -(-len(columns) // across)
    figure.set_size_inches(WIDTH, 0.3 + 2.5 * down + 0.2 * len(series) / across)
    panels = figure.subplots(down, across, squeeze=False).flat
    for column, panel in zip(columns, panels):  # in this order: zip() takes one panel too many otherwise
        for look, (name, rows) in zip(looks(len(series)), series.items()):
            own = [(row, cells[row.title, column.metric]) for row in rows if (row.title, column.metric) in cells]
            points = sorted(((row.x, cell) for row, cell in own if row.x is not None), key=lambda point: point[0])
            level = [cell for row, cell in own if row.x is None]
            if points:
                x = [at for at, _ in points]
                panel.plot(x, [cell.mean for _, cell in points], marker=look["marker"], color=look["color"], label=name)
                low, high = zip(*(_limits(cell) for _, cell in points))
                panel.fill_between(x, low, high, color=look["color"], alpha=0.18, lw=0)
            for cell in level:
                panel.axhline(cell.mean, color=look["color"], ls="--", lw=1, label=name)
                panel.axhspan(*_limits(cell), color=look["color"], alpha=0.1, lw=0)
        if study.log_x:
            panel.set_xscale("log")
        panel.set_xlabel(_folded(study.x_title, 44))
        panel.set_title(_titled(column), loc="left")
        panel.grid(alpha=0.2, lw=0.6)
        _scale(panel, "y", column, cells)
        _plain_ticks(panel, sorted({row.x for row in study.rows if row.x is not None}))
    for panel in panels:
        panel.set_axis_off()
    legend(figure)


def scatter(figure: Any, study: Study, columns: Sequence[Column], cells: Cells) -> None:
    """The second column against the first, error bars both ways; points of a series are joined."""
    if len(columns) != 2:
        raise ValueError(f"{study.name} is a scatter of two columns, not of {len(columns)}")
    series = _series(study.rows)
    figure.set_size_inches(WIDTH, 3.4 + 0.2 * len(series) / 2)
    panel = figure.subplots()
    for look, (name, rows) in zip(looks(len(series)), series.items()):
        points = [[cells.get((row.title, column.metric)) for column in columns] for row in rows]
        known = [(x, y) for x, y in points if x is not None and y is not None]
        if known:
            drawn = panel.errorbar(
                [x.mean for x, _ in known],
                [y.mean for _, y in known],
                xerr=[*zip(*(_sides(x) for x, _ in known))],
                yerr=[*zip(*(_sides(y) for _, y in known))],
                ls="-" if len(known) > 1 else "none",
                elinewidth=0.8,
                label=name,
                **look,
            )
            for line in drawn.lines[2]:
                line.set_alpha(0.5)
    for axis, column in zip("xy", columns):
        getattr(panel, f"set_{axis}label")(_titled(column))
        _scale(panel, axis, column, cells)
    panel.grid(alpha=0.2, lw=0.6)
    legend(figure)


def distributions(figure: Any, study: Study, shown: Mapping[str, Sequence[float]]) -> None:
    """A panel each, from above, the target a line in all of them; every panel has a scale of its own."""
    target = shown.get("target")
    own = {title: values for title, values in shown.items() if title != "target"}
    figure.set_size_inches(WIDTH, 0.5 + 0.95 * len(own))
    panels = figure.subplots(len(own), 1, squeeze=False, sharex=True).ravel()
    for panel, look, (title, values) in zip(panels, looks(len(own)), own.items()):
        panel.bar(range(len(values)), values, 1.0, color=look["color"], lw=0)
        if target is not None:
            panel.step(range(len(target)), target, where="mid", color=INK, lw=0.9, label="target")
        panel.set_title(f"{title}: the likeliest has {100 * max(values):.1f} %", loc="left")
        panel.set_ylim(0, 1.25 * max(max(values), max(target or [0.0])))
        panel.margins(x=0.01)
        panel.grid(axis="y", alpha=0.2, lw=0.6)
    panels[-1].set_xlabel(_folded(study.x_title, 60))
    if target is not None:
        panels[0].legend(loc="upper right")


def _series(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """Rows by their series; one without a series is one by itself."""
    found: dict[str, list[Row]] = {}
    for row in rows:
        if row.jobs:
            found.setdefault(row.series or row.title, []).append(row)
    return found


def looks(count: int) -> list[Mapping[str, str]]:
    """Colours and marks, no two alike among the first 42."""
    return [{"color": COLOURS[i % len(COLOURS)], "marker": MARKS[i % len(MARKS)]} for i in range(count)]


def legend(figure: Any) -> None:
    """Every series once, under the panels."""
    found: dict[str, Any] = {}
    for panel in figure.axes:
        for handle, label in zip(*panel.get_legend_handles_labels()):
            found.setdefault(_folded(label, 40), handle)
    if len(found) > 1:
        figure.legend(found.values(), found.keys(), loc="outside lower center", ncols=2, fontsize=8)


def _folded(text: str, width: int) -> str:
    """In lines, a dollar being no formula."""
    return textwrap.fill(text, width).replace("$", r"\$")


def _titled(column: Column) -> str:
    """An arrow says which way is better."""
    return _folded(column.title + {"more": " ↑", "less": " ↓", None: ""}[column.better], 30)


def _limits(cell: Interval) -> tuple[float, float]:
    """An interval, of no width where there is none."""
    return (cell.mean, cell.mean) if cell.low is None or cell.high is None else (cell.low, cell.high)


def _sides(cell: Interval) -> tuple[float, float]:
    low, high = _limits(cell)
    return max(cell.mean - low, 0.0), max(high - cell.mean, 0.0)


def _error(cell: Interval) -> list[list[float]] | None:
    return None if cell.low is None else [[side] for side in _sides(cell)]


def _scale(panel: Any, axis: str, column: Column, cells: Cells) -> None:
    """A logarithmic axis for numbers of any magnitude, where none is 0."""
    drawn = [cell.mean for (_, metric), cell in cells.items() if metric == column.metric]
    if column.scientific and min(drawn, default=0.0) > 0:
        getattr(panel, f"set_{axis}scale")("log")


def _plain_ticks(panel: Any, places: Sequence[float]) -> None:
    """Of few places, ticks where these are."""
    if 0 < len(places) <= 6:
        panel.set_xticks(places, [f"{place:g}" for place in places])
        panel.set_xticks([], minor=True)


def _saved(figure: Any, kind: str, transparent: bool) -> bytes:
    file = io.BytesIO()
    metadata = {"Date": None, "Creator": None} if kind == "svg" else {"Software": None}
    figure.savefig(file, format=kind, transparent=transparent, dpi=160, metadata=metadata)
    return file.getvalue()


def _inlined(svg: str, name: str) -> str:
    """An <svg> element for a page of many: ids of its own, the page's ink, no style that reaches beyond it."""
    svg = svg[svg.index("<svg") :].strip()
    svg = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>|<!--.*?-->", "", svg, flags=re.DOTALL)
    svg = re.sub(r'\bid="', f'id="{name}-', svg)
    svg = re.sub(r'((?:xlink:)?href="|url\()#', rf"\g<1>#{name}-", svg)
    svg = re.sub(r'<svg[^>]*viewBox="([^"]*)"[^>]*>', _opening, svg, count=1)
    return svg.replace("xlink:href", "href").replace(INK, "currentColor")


def _opening(found: re.Match) -> str:
    """Without a size: the page has one for all."""
    return f'<svg viewBox="{found[1]}" role="img">'
