"""Runs ``step.c`` and reads its figures.

A job is one operation, on one kind of ring, from one cursor, in one mode; each is a process of its own, so
that a hang or a crash is one job's.  A topic's operations are its own, and so are those with leases, of an
mpmc queue whose messages are acknowledged, those of one with two lanes, and those of one that remembers
keys.  Two jobs run at a time, each on a processor of its own: victim and tracer take turns.
"""

import os
import queue
import re
import shutil
import subprocess
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

PROGRAM = "crash/step"
QUEUES = ("spsc", "mpmc")
KINDS = (*QUEUES, "topic", "lease", "lanes", "keys")
NO_PTRACE = 77
TIMEOUT_S = 1800
"""Each round has a watchdog of its own; this one is for a watchdog that is broken."""


class PtraceForbidden(Exception):
    """The kernel, or a sandbox, does not let one process trace another: nothing was tried."""


@dataclass(frozen=True)
class Job:
    operation: str
    kind: str
    arguments: tuple[str, ...] = ()

    def command(self, program: Path) -> list[str]:
        return [str(program), "--kind", self.kind, *self.arguments, self.operation]


@dataclass
class Figures:
    """What was tried, level by level.  ``instructions``: of the operation, or of all repairs; ``kills``:
    before how many of them; ``images``: different memories that the deaths left."""

    instructions: list[int]
    kills: list[int]
    images: list[int]
    stops: int
    strays: int
    failures: int
    seconds: float

    def __add__(self, other: "Figures") -> "Figures":
        def both(a: list[int], b: list[int]) -> list[int]:
            return [x + y for x, y in zip(a, b, strict=True)]

        return Figures(
            both(self.instructions, other.instructions),
            both(self.kills, other.kills),
            both(self.images, other.images),
            self.stops + other.stops,
            self.strays + other.strays,
            self.failures + other.failures,
            self.seconds + other.seconds,
        )


@dataclass(frozen=True)
class Done:
    job: Job
    figures: Figures | None
    """None where it came to no end."""
    complaints: str

    @property
    def failed(self) -> bool:
        return self.figures is None or self.figures.failures > 0 or self.complaints != ""


Operations = Mapping[str, list[str]]
"""Names, by kind."""


def operations(program: Path) -> Operations:
    def listed(kind: str) -> list[str]:
        command = [program, "--kind", kind, "--list"]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()

    return {kind: listed(kind) for kind in KINDS}


def parse(line: str) -> Figures:
    _name, _kind, _start, *numbers = line.split("\t")
    *counts, seconds = numbers
    levels, (stops, strays, failures) = [int(n) for n in counts[:-3]], map(int, counts[-3:])
    return Figures(levels[0::3], levels[1::3], levels[2::3], stops, strays, failures, float(seconds))


def located(program: Path, complaints: str) -> str:
    """With function and line where it says only an address, if there is an addr2line."""
    tool = shutil.which("addr2line")
    if tool is None:
        return complaints

    def name(found: re.Match[str]) -> str:
        asked = subprocess.run(
            [tool, "-f", "-s", "-e", program, found[1]], capture_output=True, text=True, check=False
        )
        return f"({', '.join(asked.stdout.split())})" if asked.returncode == 0 else found[0]

    return re.sub(r"\(code (0x[0-9a-f]+)\)", name, complaints)


def run(program: Path, job: Job) -> Done:
    done = subprocess.run(
        job.command(program), capture_output=True, text=True, check=False, timeout=TIMEOUT_S
    )
    if done.returncode == NO_PTRACE:
        raise PtraceForbidden(done.stdout.strip())
    lines = [line for line in done.stdout.splitlines() if "\t" in line]
    complaints = done.stderr
    if done.returncode not in (0, 1) or len(lines) != 1:
        complaints += f"{' '.join(job.command(program))}: exit status {done.returncode}\n"
    return Done(job, parse(lines[0]) if len(lines) == 1 else None, located(program, complaints))


def run_all(program: Path, jobs: Iterable[Job]) -> Iterator[Done]:
    """In the order of the jobs."""
    cpus = sorted(os.sched_getaffinity(0))[:2]
    free: queue.SimpleQueue[int] = queue.SimpleQueue()
    for cpu in cpus:
        free.put(cpu)
    # Of this thread only; its children inherit it.
    with ThreadPoolExecutor(len(cpus), initializer=lambda: os.sched_setaffinity(0, {free.get()})) as pool:
        yield from pool.map(lambda job: run(program, job), jobs)


# ---- what to run ----

WAITS = (
    *("put, ring full", "put, arena full", "publish, ring full", "publish, arena full", "get, empty"),
    *("lease, empty", "join, late", "put urgent, lane full", "get, both empty"),
    *("put with a key, ring full", "put with a key, busy"),
)
ATTACHES = (
    *("attach", "attach, repair", "attach, repair reader", "attach, repair publisher"),
    *("attach, repair lessee", "attach, repair both", "attach, repair a turn"),
)
REAPS = (
    *("reap", "reap reader", "reap last reader", "reap publisher"),
    *("reap lessee", "reap lessee again", "reap both", "reap lessee of both"),
    *("reap a turn", "reap a turn before it", "reap a turn in its midst"),
)
LONG = (*WAITS, *ATTACHES, *REAPS)
"""Thousands of instructions, most of them in the C library or in a loop that only reads."""


def thorough(names: Operations, every: bool) -> list[Job]:
    """See coverage()."""
    repair = "1" if every else "64"
    jobs = []
    for kind in KINDS:
        for name in names[kind]:
            for start in ((), ("--wrap",)):
                jobs += [
                    Job(name, kind, (*start, "--depth", "2", "--every-repair", repair)),
                    Job(name, kind, (*start, "--parked")),
                ]
            stopped = ("--wrap", "--parked", "--depth", "2", "--every", "0", "--every-repair")
            jobs.append(Job(name, kind, (*stopped, "4" if every else "64")))
    return jobs


DEEP = {
    "spsc": "get block",
    "mpmc": "get block",
    "topic": "release, last reader",
    "lease": "lease again copy",
    "lanes": "get urgent block",
    "keys": "put with a key",
}
DEAR = ("put, arena full", "publish, arena full")
"""Waits like those at a full ring, twice as long."""
PARKED = {
    "spsc": ("put block", "get block"),  # its reap waits for the stopped each time
    "mpmc": ("put block", "get block", "reap"),
    "topic": ("publish over a block", "get block", "reap publisher"),
    "lease": ("lease block", "lease overdue copy", "drop, acked", "reap lessee"),
    "lanes": ("put urgent block", "get urgent block", "lease urgent block", "reap both"),
    "keys": ("put with a key", "put block with a key", "reap a turn"),
}


def quick(names: Operations) -> list[Job]:
    """A sample: seconds."""
    jobs = []
    for kind in KINDS:
        for name in names[kind]:
            waits = name in (*WAITS, *ATTACHES) and kind not in ("mpmc", "lease", "lanes", "keys")
            if name in DEAR or waits:
                continue  # nearly the same instructions as over that kind
            every = "0" if name in LONG else "16"
            jobs.append(Job(name, kind, ("--wrap", "--every", every)))
        if kind != "spsc":  # the repair is mostly the arena's, as over mpmc
            deep = ("--wrap", "--every", "0", "--depth", "2", "--every-repair", "0")
            jobs.append(Job(DEEP[kind], kind, deep))
        for name in PARKED[kind]:
            jobs.append(Job(name, kind, ("--parked", "--every", "32")))
    return jobs


def coverage(is_quick: bool, every: bool) -> str:
    around = "those around each change of the memory and each call of the kernel"
    if is_quick:
        return f"A sample of the instructions: {around}, and every 16th of short operations."
    if every:
        return "Every instruction of every operation, and of every repair."
    return f"Every instruction of every operation; of the repairs {around}, and every 64th."


# ---- the table, and its line of the summary ----

HEADER = (
    *("operation", "kind", "instructions", "kill points", "images", "repairs: instr.", "kill points"),
    *("images", "stops", "strays", "failures", "seconds"),
)


def cells(figures: Figures) -> list[str]:
    f = figures
    counts = [f.instructions[0], f.kills[0], f.images[0], f.instructions[1], f.kills[1], f.images[1]]
    return [str(n) for n in (*counts, f.stops, f.strays, f.failures)] + [f"{f.seconds:.1f}"]


NOTHING = Figures([0] * 3, [0] * 3, [0] * 3, 0, 0, 0, 0.0)
UNFINISHED = Figures([0] * 3, [0] * 3, [0] * 3, 0, 0, 1, 0.0)


def summary(finished: list[Done], how: str) -> tuple[str, str, int]:
    """What was done, counts, failures.  ``how``: as coverage() says it."""
    names = {done.job.operation for done in finished if done.job.kind in QUEUES}
    of_topics = {done.job.operation for done in finished if done.job.kind == "topic"}
    of_leases = {done.job.operation for done in finished if done.job.kind == "lease"}
    of_lanes = {done.job.operation for done in finished if done.job.kind == "lanes"}
    of_keys = {done.job.operation for done in finished if done.job.kind == "keys"}
    f = sum((done.figures or UNFINISHED for done in finished), NOTHING)
    counts = (
        f"{f.kills[0]:,} killed, at {f.instructions[0]:,} instructions, which left {f.images[0]:,} different"
        f" memories; {f.kills[1]:,} repairers of these killed; {f.stops:,} stopped, others went on, then it"
    )
    return (
        f"operations of a queue, of both kinds: {len(names)}, of a topic: {len(of_topics)}, with leases:"
        f" {len(of_leases)}, with two lanes: {len(of_lanes)}, with keys: {len(of_keys)}. {how}",
        counts,
        sum(done.failed for done in finished),
    )


def table(finished: list[Done]) -> str:
    rows: dict[tuple[str, str], Figures] = {}
    unfinished = {(d.job.operation, d.job.kind) for d in finished if d.figures is None}
    for done in finished:
        key = (done.job.operation, done.job.kind)
        figures = done.figures or UNFINISHED
        rows[key] = rows[key] + figures if key in rows else figures
    lines = [list(HEADER)]
    lines += [[n, k + " (no end)" if (n, k) in unfinished else k, *cells(f)] for (n, k), f in rows.items()]
    if rows:
        first, *others = rows.values()
        lines.append(["all", "", *cells(sum(others, first))])
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(
            c.ljust(w) if i < 2 else c.rjust(w) for i, (c, w) in enumerate(zip(line, widths, strict=True))
        )
        for line in lines
    )
