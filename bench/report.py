"""Shows a report: rich tables on a terminal, plain aligned lines elsewhere."""

from __future__ import annotations

import json
import math
import re
import sys
from collections.abc import Iterable
from pathlib import Path
from statistics import median
from typing import Any, TextIO

from .model import Ratio, Report, Result, Row

_HEADER = ("contestant", "median", "min-max", "shmq is", "also")


def number(value: float) -> str:
    """About three significant digits, never in exponent form."""
    if value >= 100:
        return f"{value:,.0f}"
    if 0 < value < 0.1:
        return f"{value:.{2 - math.floor(math.log10(value))}f}"
    return f"{value:.2f}" if value < 10 else f"{value:.1f}"


def spread(result: Result) -> str:
    return f"{number(min(result.samples))}-{number(max(result.samples))}"


def times(ratio: Ratio | None) -> str:
    if ratio is None:
        return ""
    return f"{number(ratio.median)} x ({number(ratio.low)}-{number(ratio.high)})"


def extra(name: str, values: list[float]) -> str:
    """A further figure. It is in the row's unit, unless its name says another: "power [M/s per us]"."""
    value = number(median(values))
    other = re.fullmatch(r"(.+?) *\[(.+)\]", name)
    return f"{other[1]} {value} {other[2]}" if other else f"{name} {value}"


def also(row: Row, result: Result) -> str:
    parts = [extra(name, values) for name, values in result.extras.items() if values]
    if result.note:
        parts.append(result.note)
    if result.samples and result is row.best_rival:
        parts.append("best rival")
    elif result.samples and result is row.floor and row.suite != "floors":
        parts.append("floor")
    if result.samples and not result.verified:
        parts.append("NOT VERIFIED")
    return ", ".join(parts)


def _lines(row: Row) -> Iterable[tuple[str, ...]]:
    for result in row.results:
        if result.failed is not None:
            yield result.name, "failed", "", "", result.failed
        elif result.samples:
            yield (
                result.name,
                number(result.median),
                spread(result),
                times(row.ratio(result)),
                also(row, result),
            )


def verdict_text(row: Row) -> str:
    verdict = row.verdict()
    if row.budget is None or verdict is None:
        return "no budget"
    text = f"budget {row.budget.text}: "
    if verdict.measured is None or verdict.reached is None:
        return text + "not measured in this run"
    word = "reached" if verdict.reached else "MISSED"
    doubt = "" if verdict.certain else ", not in every repetition"
    return f"{text}{number(verdict.measured)}, {word}{doubt}"


def standing(row: Row) -> str | None:
    """Where shmq stands against the best rival: "ahead" or "LOST", by the median; None: nobody to lose to."""
    ratio = row.ratio(row.best_rival)
    if ratio is None:
        return None
    sign = 1 if row.better == "higher" else -1
    says = [sign * value >= sign for value in (ratio.median, ratio.low, ratio.high)]
    return ("ahead" if says[0] else "LOST") + ("" if len(set(says)) == 1 else ", not in every repetition")


def pinning(report: Report) -> str:
    cores = report.settings["cores"]
    return "not pinned" if cores[0] < 0 else f"pinned to cores {cores[0]} and {cores[1]}"


def _several(count: int, name: str) -> str:
    return f"{count} {name}{'' if count == 1 else 's'}"


def cores(report: Report) -> str:
    m = report.machine
    where = f"{_several(m['sockets'], 'socket')}, {_several(m['numa_nodes'], 'NUMA node')}, SMT {m['smt']}"
    return f"{_several(m['cpu_cores'], 'core')} ({where})"


def noise_lines(report: Report) -> Iterable[str]:
    for when, noise in report.noise.items():
        yield (
            f"noise {when}: a fixed loop of {noise['loop_median_ms']:.2f} ms strays by "
            f"{noise['spread_percent']:.0f} % (9 of 10 within {noise['p90_percent']:.0f} %)"
        )


def _machine_lines(report: Report) -> Iterable[str]:
    m, s = report.machine, report.settings
    build = "with" if m["python_optimized_build"] else "without"
    yield f"{m['cpu']}, {cores(report)}, in a VM: {m['virtual']}, Linux {m['kernel']}"
    yield f"governor: {m['governor']}"
    yield f"Python {m['python']} (built {build} --enable-optimizations), {m['compiler']}"
    yield ", ".join(f"{name} {version}" for name, version in m["versions"].items())
    yield (
        f"{pinning(report)}; {s['repetitions']} repetitions of about {s['target_s']:g} s, interleaved; "
        f"load average at the start {m['load_average'][0]:.2f}"
    )
    yield from noise_lines(report)
    yield from (f"warning: {text}" for text in report.warnings)
    yield from (f"not measured: {name}: {why}" for name, why in report.absent.items())


def summary(report: Report) -> Iterable[str]:
    """The run in one or two sentences: budgets, and the rows that were lost."""
    judged = [(row, v) for row in report.rows if (v := row.verdict()) and v.reached is not None]
    if judged:
        reached = sum(bool(v.reached) for _, v in judged)
        yield f"{reached} of {len(judged)} budgets reached"
    stands = {row.id: where for row in report.rows if (where := standing(row))}
    lost = [name for name, where in stands.items() if where.startswith("LOST")]
    if stands:
        which = f"; LOST: {', '.join(lost)}" if lost else ""
        yield f"ahead of the best rival in {len(stands) - len(lost)} of {len(stands)} rows{which}"


def plain(report: Report, out: TextIO) -> None:
    """Aligned columns without colours or frames."""
    for line in _machine_lines(report):
        print(line, file=out)
    for row in report.rows:
        print(f"\n{row.id}: {row.title} [{row.unit}, {row.better} is better]", file=out)
        if row.skipped is not None:
            print(f"  skipped: {row.skipped}", file=out)
            continue
        if not row.results:
            print("  nobody here can do this", file=out)
            continue
        table = [_HEADER, *_lines(row)]
        widths = [max(len(line[i]) for line in table) for i in range(len(_HEADER) - 1)]
        for entry in table:
            cells = [entry[0].ljust(widths[0])]
            cells += [entry[i].rjust(widths[i]) for i in range(1, len(widths))]
            print("  " + "  ".join([*cells, entry[-1]]).rstrip(), file=out)
        if row.budget is not None:
            print(f"  {verdict_text(row)}", file=out)
    print(file=out)
    for line in summary(report):
        print(line, file=out)


def _rich(report: Report) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(highlight=False)
    for line in _machine_lines(report):
        console.print(Text(line, style="bold yellow" if line.startswith("warning") else "dim"))
    for row in report.rows:
        table = Table(title=Text(f"{row.id}: {row.title}"), title_justify="left", expand=False)
        table.add_column(_HEADER[0])
        table.add_column(f"{_HEADER[1]} [{row.unit}]".replace("[", "\\["), justify="right")
        for name in _HEADER[2:4]:
            table.add_column(name, justify="right")
        table.add_column(_HEADER[4])
        for entry in _lines(row):
            result = row.result(entry[0])
            style = {"shmq": "bold", "floor": "dim"}.get(result.role, "") if result else "red"
            table.add_row(*(Text(cell) for cell in entry), style=style)
        console.print()
        if row.skipped is not None:
            console.print(Text(f"{row.id}: skipped: {row.skipped}", style="dim"))
            continue
        if not row.results:
            console.print(Text(f"{row.id}: nobody here can do this", style="dim"))
            continue
        console.print(table)
        verdict = row.verdict()
        colours = {True: "green", False: "red", None: ""}
        colour = colours[verdict.reached] if verdict else "dim"
        console.print(Text(f"{row.better} is better; {verdict_text(row)}", style=colour))
    console.print()
    for line in summary(report):
        console.print(Text(line, style="bold"))


def show(report: Report) -> None:
    if sys.stdout.isatty():
        _rich(report)
    else:
        plain(report, sys.stdout)


def write_json(report: Report, path: Path) -> None:
    data: dict[str, Any] = report.as_json()
    path.write_text(json.dumps(data, indent=1, allow_nan=False) + "\n")
