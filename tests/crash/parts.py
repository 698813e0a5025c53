"""The parts of the crash harness beside the single steps, and the one summary of all parts.

Each part is a C program that prints the lines of its summary itself: what was done, what was counted, and
failures, separated by tabs.  What it complains about it prints to standard error.
"""

import os
import re
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from crash.harness import QUEUES

WATCHDOG_S = 60
"""Of each program, renewed as it goes on."""


@dataclass(frozen=True)
class Row:
    """A line of the summary."""

    part: str
    done: str
    counts: str
    failures: int


@dataclass(frozen=True)
class Amounts:
    """How much of each part.  The limits are what a machine that is busy with other things still keeps."""

    kills: int = 2000
    pause_ms: int = 60
    """Between two kills, on average."""
    deaths: int = 1000
    """Of wakers, in each scene of each kind."""
    operations: int = 10_000_000
    crossings: int = 200
    ask_ms: int = 2000
    idle_ms: int = 5000
    seed: int = 1
    repair_limit_ms: int = 250
    wake_limit_ms: int = 150
    idle_limit: int = 50
    """Hundredths of a per cent of a core."""


QUICK = Amounts(kills=100, deaths=24, operations=200_000, crossings=8, ask_ms=1100, idle_ms=1000)


def amounts(quick: bool, **given: int) -> Amounts:
    return replace(QUICK if quick else Amounts(), **given)


def both(*arguments: int) -> list[list[str]]:
    return [["--kind", kind, *map(str, arguments)] for kind in QUEUES]


def soak(a: Amounts) -> list[list[str]]:
    """Random SIGKILLs among nine workers of an mpmc queue."""
    return [[str(n) for n in (a.kills, a.pause_ms, a.seed, a.repair_limit_ms)]]


def lessees(a: Amounts) -> list[list[str]]:
    """Random SIGKILLs among eight workers of a queue whose messages are acknowledged, half as many."""
    return [[str(n) for n in (a.kills // 2, a.pause_ms, a.seed, a.repair_limit_ms)]]


def audience(a: Amounts) -> list[list[str]]:
    """SIGKILLs among publishers and subscribers of a topic, half as many; and of one that holds it up."""
    gates = max(6, a.deaths // 5)
    return [[str(n) for n in (a.kills // 2, a.pause_ms, a.seed, a.repair_limit_ms, gates)]]


def wakes(a: Amounts) -> list[list[str]]:
    """Wakers that die between the store and the wake-up."""
    return both(a.deaths, a.seed, a.wake_limit_ms)


def laps(a: Amounts) -> list[list[str]]:
    """Across the wrap of laps and cursors."""
    return both(a.operations, a.crossings, a.seed)


def alive(a: Amounts) -> list[list[str]]:
    """Nobody who lives is declared dead."""
    return both(a.ask_ms)


def idle(a: Amounts) -> list[list[str]]:
    """Waiting takes no processor time."""
    return [[str(a.idle_ms), str(a.idle_limit)]]


PARTS = {
    "soak": soak,
    "lessees": lessees,
    "audience": audience,
    "wakes": wakes,
    "laps": laps,
    "alive": alive,
    "idle": idle,
}
"""Its name, which is that of the C program, too -> the arguments of its runs."""


def rows_of(part: str, output: str) -> list[Row]:
    def grouped(number: re.Match[str]) -> str:
        return f"{int(number[0]):,}"

    cells = [line.split("\t") for line in output.splitlines()]
    return [
        Row(part, done, re.sub(r"\d{4,}", grouped, counts), int(failures)) for done, counts, failures in cells
    ]


def run(part: str, program: Path, amounts: Amounts) -> tuple[list[Row], str]:
    """Its rows, and its complaints."""
    rows, complaints = [], ""
    for arguments in PARTS[part](amounts):
        done = subprocess.run(
            [program, *arguments],
            capture_output=True,
            text=True,
            check=False,
            env={**os.environ, "WATCHDOG_S": str(WATCHDOG_S)},
        )
        rows += rows_of(part, done.stdout)
        complaints += done.stderr
        if done.returncode != 0 and not any(row.failures for row in rows_of(part, done.stdout)):
            ended = f"came to no end: exit status {done.returncode}"
            rows.append(Row(part, f"{part} {' '.join(arguments)}", ended, 1))
    return rows, complaints


def summary(rows: Iterable[Row]) -> str:
    """A table in Markdown."""
    lines = ["| part | what was done | counts | failures |", "|---|---|---|---|"]
    lines += [f"| {row.part} | {row.done} | {row.counts} | {row.failures} |" for row in rows]
    return "\n".join(lines)
