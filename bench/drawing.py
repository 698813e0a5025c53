"""Draws plots with matplotlib, each an SVG that is part of a page.

An SVG names CSS variables in place of colours, so the page decides what they are in the dark. A contestant
looks the same in all plots of a report, shmq always as the bold blue line. The colours go back to Okabe and
Ito's set for the colour-blind, made darker for white paper and lighter for black; nobody has to tell them
apart, since the markers differ too. A band is the span from the smallest to the largest repetition.
"""

from __future__ import annotations

import importlib
import importlib.util
import io
import math
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from .model import OURS, Ratio, Report, Role, Row
from .plots import Line, Plot, described, size_text
from .report import standing

# Name of the CSS variable -> in the light, in the dark.
COLOURS = {
    "ink": ("#1b1f24", "#e8eaed"),
    "rule": ("#d4d8dd", "#40464e"),
    "shmq": ("#0a58ca", "#6fb1ff"),
    "floor": ("#6a7178", "#a3abb3"),
    "k1": ("#c24a00", "#ff9d5c"),
    "k2": ("#00775a", "#3ccfa3"),
    "k3": ("#a83d86", "#f296cd"),
    "k4": ("#866500", "#e5c04b"),
    "k5": ("#5b4bb5", "#b9abff"),
    "k6": ("#7c2d2d", "#ee9a9a"),
}
_RIVALS = ("k1", "k2", "k3", "k4", "k5", "k6")
_MARKERS = "s^Dv*PXhd<>pH"
_WIDTH_IN, _HEIGHT_IN, _LEGEND_ROW_IN = 5.2, 3.5, 0.21
_LOG_SPAN = 8.0
"""Largest by smallest value, from which on an axis is logarithmic."""
_LABEL_ROOM = 0.13
"""Of the width of the x axis."""
_PERCENTILES = (50.0, 90.0, 99.0, 99.9, 99.99, 99.999)


def missing() -> str | None:
    names = [name for name in ("matplotlib", "jinja2") if importlib.util.find_spec(name) is None]
    return f"--html needs {' and '.join(names)}: pip install 'shmq[bench]'" if names else None


@dataclass(frozen=True)
class Look:
    colour: str
    marker: str = ""
    dashes: str = "-"
    width: float = 1.5
    above: int = 3


def looks(report: Report) -> dict[str, Look]:
    """Of every contestant of the run: in order of appearance, so the same in all its plots."""
    roles: dict[str, Role] = {}
    for row in report.rows:
        for result in row.results:
            roles.setdefault(result.name, result.role)
    made: dict[str, Look] = {}
    rivals = floors = kin = 0
    for name, role in roles.items():
        if role == "shmq":
            made[name] = Look("shmq", "o", width=3.2, above=9)
        elif name.startswith(OURS):
            made[name] = Look("shmq", "sD^v"[kin % 4], "--", 1.6, 8)
            kin += 1
        elif role == "floor":
            made[name] = Look("floor", "_x+|"[floors % 4], ":", 1.4, 2)
            floors += 1
        else:
            made[name] = Look(_RIVALS[rivals % len(_RIVALS)], _MARKERS[rivals % len(_MARKERS)])
            rivals += 1
    return made


def _colour(name: str) -> str:
    return COLOURS[name][0]


def _figure(height_in: float) -> Any:
    """Without pyplot, which would keep every figure and look for a display."""
    from matplotlib.figure import Figure

    return Figure(figsize=(_WIDTH_IN, height_in), layout="constrained")


def _style(name: str) -> Any:
    """A context in which matplotlib draws as these pages want it; `name` salts the ids that it makes up."""
    ink = _colour("ink")
    names = ("text.color", "axes.labelcolor", "xtick.labelcolor", "ytick.labelcolor")
    settings = {
        "svg.fonttype": "none",
        "svg.hashsalt": name,  # the same report, the same bytes; no id twice in a page
        "text.parse_math": False,  # a contestant may be called $x$
        "font.size": 10.5,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.edgecolor": _colour("rule"),
        "xtick.color": _colour("rule"),
        "ytick.color": _colour("rule"),
        "grid.color": _colour("rule"),
        "grid.linewidth": 0.7,
        "axes.axisbelow": True,
        **dict.fromkeys(names, ink),
    }
    matplotlib: Any = importlib.import_module("matplotlib")
    return matplotlib.rc_context(settings)


def _log(values: Iterable[float]) -> bool:
    seen = list(values)
    return bool(seen) and min(seen) > 0 and max(seen) / min(seen) >= _LOG_SPAN


def _value_axis(axis: Any, values: Sequence[float]) -> None:
    """Of y, or of x where the values lie there: plain numbers at round places, from 0 where linear."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    if _log(values):
        axis._set_axes_scale("log")
        decades = math.log10(max(values) / min(values))
        axis.set_major_locator(LogLocator(subs=(1.0,) if decades > 2.5 else (1.0, 2.0, 5.0), numticks=7))
        axis.set_minor_formatter(NullFormatter())
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.10g}"))


def _apart(at: Sequence[float], log: bool) -> set[float]:
    """Those that have room for a label: the last, and before it each that is not too near the next."""
    scale: Callable[[float], float] = math.log if log else float
    least = _LABEL_ROOM * (scale(at[-1]) - scale(at[0]))
    kept = [at[-1]]
    for x in reversed(at[:-1]):
        if scale(kept[-1]) - scale(x) >= least:
            kept.append(x)
    return set(kept)


def _size_axis(axes: Any, plot: Plot) -> None:
    """Ticks at the x that were measured."""
    at = plot.at()
    if _log(at):
        axes.set_xscale("log")
    shown = _apart(at, _log(at))
    axes.set_xticks(at, [size_text(plot.axis, x) if x in shown else "" for x in at])
    axes.minorticks_off()


def _percentile_axis(axes: Any, plot: Plot) -> None:
    axes.set_xscale("log")
    largest = max((x for x in plot.at() if x < 100), default=99.0)
    shown = [p for p in _PERCENTILES if p <= largest] or [50.0]
    axes.set_xticks([_inverse(p) for p in shown], [f"{p:g} %" for p in shown])
    axes.minorticks_off()


def _inverse(percentile: float) -> float:
    return 1 / (1 - percentile / 100)


def _draw_line(axes: Any, plot: Plot, line: Line, look: Look) -> Any:
    kept = [i for i, x in enumerate(line.x) if not (plot.percentiles and x >= 100)]
    x, y, low, high = ([values[i] for i in kept] for values in (line.x, line.y, line.low, line.high))
    marked: Any = None
    if plot.percentiles:  # it has many points: marked only where the axis is labelled
        marked = sorted({next((i for i, p in enumerate(x) if p >= tick), 0) for tick in _PERCENTILES})
        x = [_inverse(p) for p in x]
    else:
        axes.fill_between(x, low, high, color=_colour(look.colour), alpha=0.16, linewidth=0)
    style = {"marker": look.marker, "markersize": 5.5 + look.width / 2, "markevery": marked}
    colour = _colour(look.colour)
    (drawn,) = axes.plot(x, y, look.dashes, color=colour, linewidth=look.width, zorder=look.above, **style)
    return drawn


def svg(plot: Plot, look: dict[str, Look], name: str) -> str:
    """`name` sets its ids apart from those of other plots of the page."""
    with _style(name):
        plot.lines.sort(key=lambda line: -look[line.name].above)
        columns = 3 if max(len(line.name) for line in plot.lines) < 16 else 2
        legend_in = _LEGEND_ROW_IN * math.ceil(len(plot.lines) / columns)
        figure = _figure(_HEIGHT_IN + legend_in)
        axes = figure.add_subplot()
        drawn = [_draw_line(axes, plot, line, look[line.name]) for line in plot.lines]
        (_percentile_axis if plot.percentiles else _size_axis)(axes, plot)
        _value_axis(axes.yaxis, [y for line in plot.lines for y in (*line.low, *line.high)])
        if axes.get_yscale() == "linear":
            axes.set_ylim(bottom=0)
        axes.grid(axis="both")
        axes.tick_params(length=0)
        axes.set_xlabel(plot.axis)
        axes.set_title(f"{plot.unit}, {plot.better} is better", loc="left", fontsize=10.5)
        names = [line.name for line in plot.lines]
        figure.legend(drawn, names, loc="outside lower left", ncols=columns, frameon=False, fontsize=9.5)
        return _page_svg(figure, plot.title, described(plot), name)


def _drawable(ratio: Ratio | None) -> bool:
    """Nothing is so many times as good as zero."""
    return ratio is not None and ratio.low > 0


def _factor(row: Row, ratio: Ratio) -> tuple[float, float, float]:
    """How many times better shmq is: median, least, most."""
    values = (ratio.median, ratio.low, ratio.high)
    return values if row.better == "higher" else (1 / values[0], 1 / values[2], 1 / values[1])


def overview(report: Report, name: str) -> str | None:
    """Every row's ratio to its best rival and to its floor, on one axis."""
    rows = [
        row for row in report.rows if any(map(_drawable, (row.ratio(row.best_rival), row.ratio(row.floor))))
    ]
    if not rows:
        return None
    with _style(name):
        figure = _figure(1.2 + 0.22 * len(rows))
        axes = figure.add_subplot(xscale="log")
        drawn: dict[str, Any] = {}
        seen = [0.5, 2.0]
        for y, row in enumerate(rows):
            for other, kind in ((row.floor, "floor"), (row.best_rival, "rival")):
                seen += _draw_ratio(axes, y, row, row.ratio(other), kind, drawn)
        axes.axvline(1.0, color=_colour("ink"), linewidth=1.2, zorder=1)
        _value_axis(axes.xaxis, seen)
        axes.set_xlim(min(seen) / 1.3, max(seen) * 1.3)
        axes.set_ylim(len(rows) - 0.4, -0.6)
        axes.set_yticks(range(len(rows)), [row.id for row in rows], fontsize=9.5)
        axes.grid(axis="both")
        axes.tick_params(length=0, labeltop=True, axis="x", labelsize=9)
        axes.tick_params(length=0, axis="y")
        handles = {label: drawn[key] for key, (label, _, _) in _BESIDE.items() if key in drawn}
        figure.legend(
            handles.values(), handles, loc="outside lower left", ncols=3, frameon=False, fontsize=9.5
        )
        behind = [row.id for row in rows if (standing(row) or "").startswith("LOST")]
        text = f"{len(rows)} rows; behind the best rival in: {', '.join(behind) or 'none'}."
        return _page_svg(figure, "shmq beside the best rival and the floor, row by row", text, name)


_BESIDE = {
    "rival": ("the best rival", "shmq", "o"),
    "lost": ("the best rival: lost", "k1", "X"),
    "floor": ("the floor", "floor", "d"),
}
"""What shmq is held against: label, colour, marker."""


def _draw_ratio(
    axes: Any, y: int, row: Row, ratio: Ratio | None, kind: str, drawn: dict[str, Any]
) -> tuple[float, ...]:
    """The values that it drew."""
    if ratio is None or not _drawable(ratio):
        return ()
    middle, low, high = _factor(row, ratio)
    kind = "lost" if kind == "rival" and middle < 1 else kind
    _, colour, marker = _BESIDE[kind]
    span = [[middle - low], [high - middle]]
    style = {"color": _colour(colour), "markersize": 7, "elinewidth": 2, "zorder": 3 + (kind != "floor")}
    drawn[kind] = axes.errorbar([middle], [y], xerr=span, fmt=marker, **style)
    return middle, low, high


# From matplotlib's file to a part of the page.


def _page_svg(figure: Any, title: str, text: str, name: str) -> str:
    with io.StringIO() as file:
        nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(file, format="svg", transparent=True, metadata=nothing)
        made = file.getvalue()
    made = made[made.index("<svg") :]
    made = re.sub(r'<g id="[^"]*"', "<g", made)  # figure_1, axes_1: the same in all of them
    made = re.sub(r"font-family: [^;\"]*; ", "", made)  # the page's
    made = re.sub(
        r"<defs>\s*<style.*?</style>\s*</defs>", "", made, count=1, flags=re.DOTALL
    )  # of the whole page
    for variable, (light, _) in COLOURS.items():
        made = made.replace(light, f"var(--{variable})")
    box = re.search(r'viewBox="[^"]*"', made)
    assert box is not None, "matplotlib writes one"
    opening = f'<svg {box[0]} role="img" aria-labelledby="{name}-title {name}-text">'
    words = f'<title id="{name}-title">{escape(title)}</title><desc id="{name}-text">{escape(text)}</desc>'
    return opening + words + made[made.index(">") + 1 :]
