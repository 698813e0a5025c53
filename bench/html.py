"""One HTML file of a run: opens without a network, has no scripts, and prints.

`page.html` is the page (Jinja2, which escapes all that is put in), `drawing.py` draws (matplotlib). Both
libraries come with `pip install 'shmq[bench]'` and are imported only when a page is made.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from . import document, drawing, plots, report
from .drawing import missing
from .model import Report, Result, Row
from .plots import Plot

__all__ = ["main", "missing", "write"]

_GIB = 1 << 30
_SHOWN_PERCENTILES = (50.0, 90.0, 99.0, 99.9, 99.99, 100.0)


@dataclass
class Entry:
    """A contestant's line in the table of a row."""

    name: str
    role: str
    median: str
    spread: str
    ratio: str
    also: str
    failed: bool
    share: float
    """Of the row's largest median, for the bar."""


@dataclass
class Section:
    """One row of the report, in words."""

    row: Row
    entries: list[Entry]
    standing: str
    verdict: str
    reached: bool | None
    lost: bool


@dataclass
class Figure:
    title: str
    svg: str
    heads: list[str]
    lines: list[tuple[str, list[str]]]


def _entries(row: Row) -> Iterable[Entry]:
    largest = max((result.median for result in row.results if result.samples), default=0.0)
    for result in row.results:
        if result.failed is not None:
            yield Entry(result.name, result.role, "failed", "", "", result.failed, True, 0.0)
        elif result.samples:
            yield Entry(
                name=result.name,
                role=result.role,
                median=report.number(result.median),
                spread=report.spread(result),
                ratio=report.times(row.ratio(result)),
                also=report.also(row, result),
                failed=False,
                share=max(0.0, result.median) / largest if largest > 0 else 0.0,
            )


def _section(row: Row) -> Section:
    verdict, standing = row.verdict(), report.standing(row) or ""
    return Section(
        row=row,
        entries=list(_entries(row)),
        standing=standing,
        verdict=report.verdict_text(row),
        reached=verdict.reached if verdict else None,
        lost=standing.startswith("LOST"),
    )


def _figure(plot: Plot, svg: str) -> Figure:
    """With its figures as a table, for who cannot see it or wants them exactly."""
    if plot.percentiles:
        at = list(_SHOWN_PERCENTILES)
        heads = [f"p{p:g}" for p in at[:-1]] + ["max"]
    else:
        at = plot.at()
        heads = [plots.size_text(plot.axis, x) for x in at]

    def cells(line: plots.Line) -> list[str]:
        found = (plots.value_at(line, x, plot.percentiles) for x in at)
        return ["" if y is None else report.number(y) for y in found]

    return Figure(
        f"{plot.title} [{plot.unit}]", svg, heads, [(line.name, cells(line)) for line in plot.lines]
    )


def _figures(made: Report) -> tuple[list[Figure], list[Figure]]:
    """Those of several rows, and the distributions."""
    look, drawn = drawing.looks(made), iter(range(1, 1_000_000))
    groups = (plots.by_point(made), plots.distributions(made))
    first, second = (
        [_figure(plot, drawing.svg(plot, look, f"plot-{next(drawn)}")) for plot in group] for group in groups
    )
    return first, second


def _machine(made: Report) -> dict[str, str]:
    m, s = made.machine, made.settings
    build = "with" if m["python_optimized_build"] else "without"
    return {
        "Processor": f"{m['cpu']}, {report.cores(made)}",
        "Governor": m["governor"],
        "In a VM": m["virtual"],
        "Memory": f"{m['memory_bytes'] / _GIB:.1f} GiB; huge pages of shared memory: {m['huge_pages_shmem']}",
        "Kernel": f"Linux {m['kernel']}, clock {m['clocksource']}",
        "Python": f"{m['python']}, built {build} --enable-optimizations",
        "Compiler": m["compiler"],
        "Versions": ", ".join(f"{name} {version}" for name, version in m["versions"].items()),
        "Pinning": report.pinning(made),
        "Repetitions": f"{s['repetitions']} of about {s['target_s']:g} s each, interleaved",
        "Duration": f"{s['took_s']:g} s",
        "Load average": " ".join(f"{value:.2f}" for value in m["load_average"]) + " at the start",
        "Noise": "; ".join(line.removeprefix("noise ") for line in report.noise_lines(made)),
    }


def _suites(sections: list[Section]) -> dict[str, list[Section]]:
    found: dict[str, list[Section]] = {}
    for section in sections:
        found.setdefault(section.row.suite, []).append(section)
    return found


def _value(result: Result | None) -> str:
    return "" if result is None else report.number(result.median)


def page(made: Report) -> str:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    templates = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    sections = [_section(row) for row in made.rows]
    lines, distributions = _figures(made)
    values: dict[str, Any] = {
        "report": made,
        "machine": _machine(made),
        "started": str(made.settings["started"]).replace("T", " ").replace("+00:00", " UTC"),
        "summary": list(report.summary(made)),
        "sections": sections,
        "judged": [section for section in sections if section.row.ours is not None],
        "suites": _suites(sections),
        "overview": drawing.overview(made, "overview"),
        "lines": lines,
        "distributions": distributions,
        "colours": drawing.COLOURS,
        "times": report.times,
        "value": _value,
        "anchor": lambda row: f"row-{made.rows.index(row) + 1}",
    }
    return templates.get_template("page.html").render(values)


def write(made: Report, path: Path) -> None:
    path.write_text(page(made), encoding="utf-8")


def main(argv: list[str]) -> int:
    """`shmq bench html`: the page of an earlier run."""
    parser = argparse.ArgumentParser(prog="shmq bench html", description="An HTML report of an earlier run.")
    parser.add_argument("result", type=Path, metavar="RESULT.json")
    parser.add_argument("page", type=Path, metavar="REPORT.html")
    options = parser.parse_args(argv)
    try:
        if lacking := missing():
            raise document.Unusable(lacking)
        write(document.load(options.result), options.page)
    except document.Unusable as error:
        print(f"shmq bench html: {error}", file=sys.stderr)
        return 2
    return 0
