"""Runs the rows: starts the pairs, calibrates, interleaves the repetitions, keeps the results.

A row is measured by `Runner`s. For each: one verification pass, runs that grow until one takes a
good part of the target time (these are the warm-up), then `repetitions` rounds in which every
runner has one timed run in turn.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Protocol

from . import (
    machine,
    native,
    ours,
    ours_aio,
    ours_crowd,
    ours_mpmc,
    ours_rpc,
    ours_topic,
    pipe_aio,
    rivals,
    tcp_raw,
)
from .endpoint import Spec, Unsuited
from .latencies import Latencies
from .model import Report, Result, Role, Row
from .pair import Pair, PairFailed

_LONGEST_RUN = 1 << 31
_ALWAYS = (ours, ours_aio, ours_mpmc, ours_crowd, ours_rpc, ours_topic, pipe_aio, tcp_raw)
_UNIT_NS = {"ns": 1.0, "us": 1e3, "ms": 1e6}


@dataclass(frozen=True)
class Settings:
    repetitions: int
    target_s: float
    """Aim for the length of one timed run."""
    max_bytes: int
    """Rows with larger payloads are skipped."""
    only: frozenset[str]
    cores: tuple[int, int]
    rivals: frozenset[str] | None = None
    """Names of those to measure; None: all."""
    timeout_s: float = 120.0
    count: int | None = None
    """Operations of a timed run, instead of as many as take `target_s`."""
    sizes: tuple[int, ...] | None = None
    """Instead of each suite's own sizes."""
    loads: tuple[int, ...] = (1_000, 10_000, 100_000)
    """Offered to an open loop, in messages a second."""
    producers: tuple[int, ...] | None = None
    consumers: tuple[int, ...] | None = None
    """Of the suite mpmc, each with each; None: a few of both."""
    readers: tuple[int, ...] | None = None
    """Of the suite fanout."""
    codecs: tuple[str, ...] = ("bytes", "array", "object")
    """Of the suite throughput."""
    receive: tuple[str, ...] = ("view", "copy")
    """Whether the consumer of the suite tensor looks at what it gets where it lies, or copies it out."""
    wait: tuple[str, ...] = ("spin", "park")
    """How shmq's consumers wait."""

    def payloads(self, own: Iterable[int]) -> tuple[int, ...]:
        """The sizes of a suite: its own unless others were asked for."""
        return tuple(own) if self.sizes is None else self.sizes

    def parked_trips(self) -> int:
        """Round trips of a run with gaps: its length is mostly the gaps'."""
        return max(5, int(self.target_s * 1200))


@dataclass
class Sample:
    """One timed run."""

    value: float
    seconds: float
    extras: dict[str, float] = field(default_factory=dict)
    latencies: Latencies | None = None
    """Of each message, for the distribution over all repetitions."""
    note: str = ""
    """What is said of the contestant where most repetitions say it."""


@dataclass
class Runner:
    """One contestant in one row: how to check it and how to time `count` operations of it."""

    name: str
    role: Role
    run: Callable[[int], Sample]
    verify: Callable[[], None] | None = None
    """None: there is no payload (floors)."""
    count: int | None = None
    """Fixed number of operations; None: calibrated to the target time."""
    first: int = 64
    """Operations in the first calibration run."""
    step: int = 1
    """The count is a multiple of it."""
    note: str = ""


def tails(quantiles: dict[str, float], trips: int, scale: float) -> dict[str, float]:
    """The extras p99 and p99.9 in the row's unit, where there are trips enough for them."""
    enough = {"p99": 100, "p99.9": 1000}
    return {name: quantiles[name] / scale for name, least in enough.items() if trips >= least}


@dataclass
class _Turn:
    """What one contestant of a row has said so far."""

    runner: Runner
    result: Result
    count: int
    latencies: Latencies | None = None
    notes: Counter[str] = field(default_factory=Counter)

    def keep(self, sample: Sample) -> None:
        self.result.samples.append(sample.value)
        for name, value in sample.extras.items():
            self.result.extras.setdefault(name, []).append(value)
        if sample.note:
            self.notes[sample.note] += 1
        if sample.latencies is not None:
            if self.latencies is None:
                self.latencies = Latencies()
            self.latencies.add(sample.latencies)

    def summarise(self, unit: str) -> None:
        if self.latencies is not None:
            self.result.distribution = self.latencies.distribution(_UNIT_NS[unit])
        said = [note for note, times in self.notes.items() if 2 * times > len(self.result.samples)]
        self.result.note = ", ".join(filter(None, [self.result.note, *said]))


class Progress(Protocol):
    def __call__(self, text: str) -> None: ...


class Harness:
    """What the suites work with."""

    def __init__(self, settings: Settings, report: Report, directory: Path, progress: Progress) -> None:
        self.settings = settings
        self.report = report
        self.directory = directory
        self.progress = progress
        self._programs: dict[str, native.Program | None] = {}

    # Contestants.

    def program(self, name: str) -> native.Program | None:
        """`floors` or `core`, built on first use; None, and a line in the report, if it fails."""
        if name not in self._programs:
            self.progress(f"compiling {name}.c")
            build = native.floors if name == "floors" else native.core
            try:
                self._programs[name] = build(self.directory)
            except native.NativeFailed as error:
                self._programs[name] = None
                self.report.absent[f"{name}.c"] = str(error)
        return self._programs[name]

    @contextmanager
    def pairs(
        self,
        max_bytes: int,
        *,
        in_flight: int,
        both_ways: bool = False,
        readers: int = 1,
        writers: int = 1,
        cores: Sequence[int] | None = None,
        among: tuple[ModuleType, ...] = (ours, ours_mpmc, *rivals.ALL),
    ) -> Iterator[list[Pair]]:
        """A running pair of every transport that is available here; shmq's is the first.

        `cores`: of sides a, then of sides b; else one side a has a core for itself."""
        spec = Spec(max_bytes, in_flight, both_ways, str(self.directory), readers, writers)
        if cores is None:
            cores = machine.cores_for(self.settings.cores, readers)
        with ExitStack() as stack:
            started = []
            for transport in among:
                if not self._chosen(transport):
                    continue
                reason = transport.missing()
                if reason is None:
                    self.progress(f"starting {transport.NAME}")
                    try:
                        started.append(stack.enter_context(Pair(transport, spec, cores)))
                    except Unsuited as error:
                        reason = f"not in every row: {error}"
                    except Exception as error:
                        reason = f"did not start: {_last_line(error)}"
                if reason is not None:
                    self.report.absent[transport.NAME] = reason
            yield started

    def _chosen(self, transport: ModuleType) -> bool:
        names = self.settings.rivals
        return names is None or transport in _ALWAYS or transport.NAME in names

    # Measuring.

    def measure(self, row: Row, runners: list[Runner]) -> None:
        """Fills the row and adds it to the report."""
        self.report.rows.append(row)
        ready: list[_Turn] = []
        for runner in runners:
            result = Result(runner.name, runner.role, note=runner.note)
            row.results.append(result)
            self.progress(f"{row.id}: {runner.name}: checking and warming up")
            with _failures_of(result):
                if runner.verify is not None:
                    runner.verify()
                result.verified = True
                ready.append(_Turn(runner, result, self._calibrate(runner)))
        for repetition in range(self.settings.repetitions):
            for turn in ready:
                if turn.result.failed is not None:
                    continue
                which = f"repetition {repetition + 1} of {self.settings.repetitions}"
                self.progress(f"{row.id}: {which}: {turn.runner.name}")
                with _failures_of(turn.result):
                    turn.keep(turn.runner.run(turn.count))
        for turn in ready:
            turn.summarise(row.unit)

    def skip(self, row: Row, reason: str) -> None:
        row.skipped = reason
        self.report.rows.append(row)

    def _calibrate(self, runner: Runner) -> int:
        if runner.count is not None:
            runner.run(max(1, runner.count // 10))
            return runner.count
        if self.settings.count is not None:
            fixed = max(runner.step, self.settings.count // runner.step * runner.step)
            runner.run(fixed)
            return fixed
        count, target_s = runner.first, self.settings.target_s
        while True:
            count = max(runner.step, count // runner.step * runner.step)
            seconds = max(runner.run(count).seconds, 1e-7)
            if seconds >= target_s / 4 or count >= _LONGEST_RUN:
                scaled = int(count * target_s / seconds) // runner.step * runner.step
                return max(runner.step, min(scaled, _LONGEST_RUN))
            count = int(count * min(32.0, 0.6 * target_s / seconds)) + 1


@contextmanager
def _failures_of(result: Result) -> Iterator[None]:
    """A contestant that fails is out of this row; the others go on."""
    try:
        yield
    except (PairFailed, native.NativeFailed) as error:
        result.failed = _last_line(error)


def _last_line(error: BaseException) -> str:
    lines = [line for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__


def left_in_dev_shm(before: frozenset[str]) -> list[str]:
    """Names that were not in /dev/shm at the start and are shmq's."""
    return sorted(n for n in set(os.listdir("/dev/shm")) - before if n.startswith("shmq."))
