"""What there is to plot in a report, as lines of numbers; `drawing.py` draws it.

Every `point.plot` is one plot, and every row with latency distributions is another; a line is a contestant.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from .model import Report
from .report import number


@dataclass
class Line:
    """One contestant: x, median, smallest and largest at each."""

    name: str
    x: list[float] = field(default_factory=list)
    y: list[float] = field(default_factory=list)
    low: list[float] = field(default_factory=list)
    high: list[float] = field(default_factory=list)


@dataclass
class Plot:
    title: str
    axis: str
    unit: str
    better: str
    lines: list[Line]
    percentiles: bool = False
    """x is a percentile, drawn as 1 / (1 - p) on a logarithmic axis, as HdrHistogram's plots do."""

    def at(self) -> list[float]:
        """Each x once."""
        return sorted({x for line in self.lines for x in line.x})


def _line(plot: Plot, name: str) -> Line:
    for line in plot.lines:
        if line.name == name:
            return line
    plot.lines.append(Line(name))
    return plot.lines[-1]


def by_point(report: Report) -> list[Plot]:
    """One plot for each `point.plot` (and unit, if its rows disagree)."""
    plots: dict[tuple[str, str], Plot] = {}
    placed = [(row.point, row) for row in report.rows if row.point is not None]
    for point, row in sorted(placed, key=lambda pair: pair[0].at):
        plot = plots.setdefault(
            (point.plot, row.unit), Plot(point.plot, point.axis, row.unit, row.better, [])
        )
        for result in row.results:
            if result.samples:
                line = _line(plot, result.name)
                line.x.append(point.at)
                line.y.append(result.median)
                line.low.append(min(result.samples))
                line.high.append(max(result.samples))
    order = list(dict.fromkeys(row.point.plot for row in report.rows if row.point is not None))
    found = [plot for plot in plots.values() if plot.lines]
    return sorted(found, key=lambda plot: order.index(plot.title))


def distributions(report: Report) -> list[Plot]:
    plots = []
    for row in report.rows:
        plot = Plot(row.title, "percentile", row.unit, row.better, [], percentiles=True)
        for result in row.results:
            if result.distribution:
                line = _line(plot, result.name)
                for percentile, value in result.distribution:
                    line.x.append(percentile)
                    for values in (line.y, line.low, line.high):
                        values.append(value)
        if plot.lines:
            plots.append(plot)
    return plots


def value_at(line: Line, x: float, percentiles: bool) -> float | None:
    """What the line has at x; of a distribution: the value of the first percentile that is no smaller."""
    found = [y for at, y in zip(line.x, line.y, strict=True) if (at >= x if percentiles else at == x)]
    return found[0] if found else None


def size_text(axis: str, at: float) -> str:
    """4096 bytes are 4 KiB; other things are counted."""
    if not axis.startswith("bytes"):
        return f"{at:,.10g}"
    unit = 0
    while at >= 1024 and unit < 3:
        at, unit = at / 1024, unit + 1
    return f"{at:.3g} {('B', 'KiB', 'MiB', 'GiB')[unit]}"


def described(plot: Plot) -> str:
    """The plot in words, for who cannot see it."""
    said = []
    for line in plot.lines:
        if plot.percentiles:
            found = ((p, value_at(line, p, True)) for p in (50.0, 99.0, 99.9))
            text = ", ".join(f"p{p:g} {number(y)}" for p, y in found if y is not None)
        else:
            ends = sorted({0, len(line.x) - 1})
            text = ", ".join(f"{number(line.y[i])} at {size_text(plot.axis, line.x[i])}" for i in ends)
        said.append(f"{line.name}: {text}")
    return f"{plot.unit} against {plot.axis}, {plot.better} is better. " + "; ".join(said) + "."
