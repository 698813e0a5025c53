"""`shmq bench compare OLD.json NEW.json`: what of shmq changed between two runs, beyond their noise.

The samples of a row are few (3 to 9 repetitions), so the test is one that needs no model of their noise. A
figure has changed only if both hold:

- no repetition of one run lies among the other's: from the smallest to the largest, the two are apart;
- the medians differ by more than 5 % and by more than the noise: 3 / n of both runs' spreads together, where
  a run's spread is (largest - smallest) / median, and n is the smaller number of repetitions. (The spread
  grows with n, the error of a median shrinks.) Changes are factors: half and twice are equally far.

With fewer than 3 repetitions in either run nothing is said of the row. Between equal runs with normally
distributed samples this calls so many rows changed (by simulation): with a deviation of 10 %, 1.8 % at 3
repetitions and 0.2 % at 5; with one of 2 %, 0.2 % and none. At that one it sees a change by 10 % in 84 of 100
rows at 3 repetitions, 96 at 5. What no repetition shows is how the machine changes from one hour to the next;
that is what the control is for.

The control of a row is what ran beside shmq in both runs: its floor, or else the rivals. *relative* is shmq
divided by the control, repetition by repetition (of rivals: the median of what each did, over its median in
the old run), under the same test.

- *regression*: shmq got worse; unless the control did, too, and shmq not beside it ("the machine is slower").
  Or the floor got better and shmq did not follow. Or shmq failed, and only in the new run.
- *improvement*: the mirror image.

Exit status: 0 no regression, 1 a regression, 2 a file that cannot be used.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import TextIO

from .document import Unusable, load
from .model import OURS, Report, Result, Row
from .report import number, pinning

LEAST = 0.05
REPETITIONS = 3
_HEADER = ("row", "contestant", "old", "new", "change", "noise", "relative", "to", "verdict")
_STYLES = {"regression": "bold red", "improvement": "green"}
_VARIES = frozenset({"versions", "load_average", "dev_shm_free_bytes"})
_MAY_DIFFER = frozenset({"cores", "repetitions", "started", "took_s", "only"})
"""Settings that change no figure, or have a line of their own."""


@dataclass(frozen=True)
class Change:
    """Of one figure. `factor` above 1: better."""

    factor: float
    percent: float
    noise_percent: float
    """What it has to exceed."""
    real: bool
    """It does, and the runs are apart."""

    @property
    def worse(self) -> bool:
        return self.real and self.factor < 1

    @property
    def better(self) -> bool:
        return self.real and self.factor > 1

    def __str__(self) -> str:
        return f"{self.percent:+.1f} %" if abs(self.percent) < 1000 else f"x {number(1 + self.percent / 100)}"


@dataclass(frozen=True)
class Line:
    """One contestant of ours in one row of both runs."""

    row: Row
    name: str
    old: float | None
    new: float | None
    raw: Change | None
    relative: Change | None
    control: str
    verdict: str

    def cells(self) -> tuple[str, ...]:
        figures = ["" if value is None else number(value) for value in (self.old, self.new)]
        raw = ("", "") if self.raw is None else (str(self.raw), f"{self.raw.noise_percent:.0f} %")
        relative = "" if self.relative is None else str(self.relative)
        what = (f"{self.row.id} [{self.row.unit}]", self.name)
        return (*what, *figures, *raw, relative, self.control, self.verdict)


# The statistics.


def _spread(samples: list[float]) -> float:
    return (max(samples) - min(samples)) / median(samples)


def change(old: list[float], new: list[float], better: str) -> Change | None:
    """None: a median of zero has no multiples."""
    before, after = median(old), median(new)
    if before <= 0 or after <= 0:
        return None
    factor = after / before if better == "higher" else before / after
    repetitions = min(len(old), len(new))
    apart = min(new) > max(old) or max(new) < min(old)
    size = max(factor, 1 / factor) - 1
    least = max(LEAST, REPETITIONS / repetitions * (_spread(old) + _spread(new)))
    real = apart and size > least
    return Change(factor, 100 * (after / before - 1), 100 * least, real)


def _in_both(old: Row, new: Row, role: str) -> list[tuple[Result, Result]]:
    pairs = ((result, new.result(result.name)) for result in old.results if result.role == role)
    return [
        (before, after)
        for before, after in pairs
        if after and before.samples and min(before.samples) > 0 and min(after.samples) > 0
    ]


def control(old: Row, new: Row) -> tuple[str, list[float], list[float]] | None:
    """What the machine did in the row: name, samples of both runs."""
    if floor := _in_both(old, new, "floor")[:1]:
        return floor[0][0].name, floor[0][0].samples, floor[0][1].samples
    rivals = _in_both(old, new, "rival")
    if not rivals:
        return None
    old_index, new_index = (_index(rivals, run) for run in (0, 1))
    return f"{len(rivals)} rival{'s' * (len(rivals) > 1)}", old_index, new_index


def _index(pairs: list[tuple[Result, Result]], run: int) -> list[float]:
    """Of every repetition of a run: the median of what each did, over its median in the old run."""
    each = ([sample / pair[0].median for sample in pair[run].samples] for pair in pairs)
    return [median(repetition) for repetition in zip(*each, strict=False)]


def _over(ours: list[float], theirs: list[float]) -> list[float]:
    return [a / b for a, b in zip(ours, theirs, strict=False)]


def _judge(raw: Change, relative: Change | None, machine: Change | None, floor: bool) -> str:
    """The rule of the head of this file."""
    if relative is None or machine is None:
        return "regression" if raw.worse else "improvement" if raw.better else ""
    if raw.worse:
        excused = machine.worse and not relative.worse
        return "the machine is slower" if excused else "regression"
    if raw.better:
        excused = machine.better and not relative.better
        return "the machine is faster" if excused else "improvement"
    if floor and relative.worse and machine.better:
        return "regression"
    return "improvement" if floor and relative.better and machine.worse else ""


# Row by row.


def _ours(row: Row) -> list[Result]:
    """shmq and its kin ("shmq mpmc"), not the references that stand beside it."""
    return [result for result in row.results if result.role == OURS or result.name.startswith(f"{OURS} ")]


def _compared(row: Row, before: Result, after: Result | None, old: Row) -> Line:
    def line(verdict: str) -> Line:
        was, now = (r.median if r and r.samples else None for r in (before, after))
        return Line(row, before.name, was, now, None, None, "", verdict)

    if after is None:
        return line("missing in the new run")
    if before.failed is not None or after.failed is not None:
        if before.failed is not None:
            return line("failed before" if after.failed is None else "failed in both")
        return line(f"regression: failed: {after.failed}")
    if not before.samples or not after.samples:
        return line("not comparable: no samples")
    if old.unit != row.unit or old.better != row.better:
        return line(f"not comparable: was {old.unit}, {old.better} is better")
    raw = change(before.samples, after.samples, row.better)
    if raw is None:
        return line("not comparable: a median of zero")
    beside = control(old, row)
    relative = machine = None
    name = ""
    if beside is not None:
        name, theirs_old, theirs_new = beside
        machine = change(theirs_old, theirs_new, row.better)
        relative = change(_over(before.samples, theirs_old), _over(after.samples, theirs_new), row.better)
    verdict = _judge(raw, relative, machine, floor=old.floor is not None and name == old.floor.name)
    if min(len(before.samples), len(after.samples)) < REPETITIONS:
        verdict = "too few repetitions"
    return Line(row, before.name, before.median, after.median, raw, relative, name, verdict)


def lines(old: Report, new: Report) -> Iterator[Line]:
    """Of the rows that both runs have."""
    before = {row.id: row for row in old.rows}
    for row in new.rows:
        was = before.get(row.id)
        if was is None or was.skipped is not None or row.skipped is not None:
            continue
        after = {result.name: result for result in _ours(row)}
        for result in _ours(was):
            yield _compared(row, result, after.get(result.name), was)


def differences(old: Report, new: Report) -> Iterator[str]:
    """What makes the two runs less than comparable."""
    for name in sorted(old.machine.keys() | new.machine.keys()):
        before, after = old.machine.get(name), new.machine.get(name)
        if name not in _VARIES and before != after:
            yield f"another machine: {name}: {before}, then {after}"
    for package in sorted(old.machine["versions"].keys() | new.machine["versions"].keys()):
        versions = [run.machine["versions"].get(package, "none") for run in (old, new)]
        if package != OURS and versions[0] != versions[1]:
            yield f"another version: {package} {versions[0]}, then {versions[1]}"
    if old.settings["cores"] != new.settings["cores"]:
        yield f"another pinning: {pinning(old)}, then {pinning(new)}"
    for name in sorted(old.settings.keys() | new.settings.keys()):
        before, after = old.settings.get(name), new.settings.get(name)
        if name not in _MAY_DIFFER and before != after:
            yield f"another setting: {name}: {before}, then {after}"
    for which, run in (("old", old), ("new", new)):
        yield from (f"the {which} run: {text}" for text in run.warnings)


def absences(old: Report, new: Report) -> Iterator[str]:
    """Rows that only one of the runs measured."""
    runs = [{row.id: row for row in run.rows} for run in (old, new)]
    for name in [*runs[0], *(name for name in runs[1] if name not in runs[0])]:
        before, after = (run.get(name) for run in runs)
        if before is not None and before.skipped is None and (after is None or after.skipped is not None):
            yield f"missing row: {name}" + (f" (skipped: {after.skipped})" if after else "")
        elif after is not None and after.skipped is None and (before is None or before.skipped is not None):
            yield f"new row: {name}"


def regressions(found: Iterable[Line]) -> list[Line]:
    return [line for line in found if line.verdict.startswith("regression")]


def counts(found: list[Line]) -> str:
    worse = len(regressions(found))
    better = sum(line.verdict == "improvement" for line in found)
    return (
        f"{worse} regression{'s' * (worse != 1)}, {better} improvement{'s' * (better != 1)}, "
        f"{sum(line.verdict == '' for line in found)} within the noise, of {len(found)}"
    )


# Showing it.


def _heads(old: Report, new: Report) -> Iterator[str]:
    for which, run in (("old", old), ("new", new)):
        m, s = run.machine, run.settings
        versions = f"shmq {m['versions'].get(OURS, '?')}, {s['repetitions']} repetitions"
        yield f"{which}: {s['started']}, {m['cpu']}, Linux {m['kernel']}, {versions}"
    yield from (f"warning: {text}" for text in differences(old, new))


def _plain(found: list[Line], out: TextIO) -> None:
    table = [_HEADER, *(line.cells() for line in found)]
    widths = [max(len(cells[i]) for cells in table) for i in range(len(_HEADER))]
    for cells in table:
        left = [cells[i].ljust(widths[i]) for i in (0, 1)]
        middle = [cells[i].rjust(widths[i]) for i in range(2, 7)]
        print("  ".join([*left, *middle, cells[7].ljust(widths[7]), cells[8]]).rstrip(), file=out)


def _rich(found: list[Line]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table()
    for i, name in enumerate(_HEADER):
        table.add_column(name, justify="right" if 2 <= i < 7 else "left")
    for line in found:
        style = _STYLES.get(line.verdict.split(":")[0], "" if line.verdict else "dim")
        table.add_row(*(Text(cell) for cell in line.cells()), style=style)
    Console(highlight=False).print(table)


def show(old: Report, new: Report, found: list[Line]) -> None:
    for text in _heads(old, new):
        print(text)
    print()
    if sys.stdout.isatty():
        _rich(found)
    else:
        _plain(found, sys.stdout)
    print()
    for text in absences(old, new):
        print(text)
    print(counts(found))


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="shmq bench compare",
        description="What of shmq changed between two runs, beyond their noise.",
        epilog="Exit status: 0 no regression, 1 a regression, 2 a file that cannot be used.",
    )
    parser.add_argument("old", type=Path, metavar="OLD.json", help="what shmq bench --json wrote")
    parser.add_argument("new", type=Path, metavar="NEW.json")
    options = parser.parse_args(argv)
    try:
        old, new = load(options.old), load(options.new)
    except Unusable as error:
        print(f"shmq bench compare: {error}", file=sys.stderr)
        return 2
    found = list(lines(old, new))
    show(old, new, found)
    return 1 if regressions(found) else 0
