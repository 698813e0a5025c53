"""Several producers and several consumers of one queue, a process each: messages a second, of all together.

On two cores the processes take turns, and who waits must let another have the core. On more, each has a core
for itself as far as they go.
"""

from __future__ import annotations

import os

from .. import machine, ours_crowd, rivals
from ..harness import Harness, Runner, Sample, Settings
from ..model import Point, Row
from ..pair import Pair
from ..work import cpu_ns, has, role, run_shared, verify_shared

_SIZE = 64
_SWEEP = ((1, 1), (1, 2), (1, 4), (2, 1), (2, 2), (4, 4))
_EACH = (1, 2, 4)
_IN_FLIGHT = 1024
_CHECKED = 500
_SHARED = ("mp.Queue", "faster-fifo")
"""Those that are, and do not say so themselves."""


def sweep(settings: Settings) -> list[tuple[int, int]]:
    """(producers, consumers)"""
    if settings.producers is None and settings.consumers is None:
        return list(_SWEEP)
    return [(p, c) for p in settings.producers or _EACH for c in settings.consumers or _EACH]


def rows(settings: Settings) -> list[Row]:
    return [
        Row(
            id=f"mpmc/{producers}x{consumers}",
            suite="mpmc",
            title=_title(settings, producers, consumers),
            unit="M/s",
            better="higher",
            point=Point(f"scaling with consumers, {_counted(producers, 'producer')}", "consumers", consumers),
        )
        for producers, consumers in sweep(settings)
    ]


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun}{'s' * (count > 1)}"


def _title(settings: Settings, producers: int, consumers: int) -> str:
    cores = len(set(cores_of(settings.cores, producers, consumers)))
    share = "not pinned" if settings.cores[0] < 0 else f"on {_counted(cores, 'core')}"
    who = f"{_counted(producers, 'producer')}, {_counted(consumers, 'consumer')}"
    return f"Python, 64 B, one call per message, {who}, {share}"


def cores_of(cores: tuple[int, int], producers: int, consumers: int) -> tuple[int, ...]:
    """Of the producers, then of the consumers: both in turn, from opposite ends."""
    if cores[0] < 0:
        return (-1,) * (producers + consumers)
    pool = list(dict.fromkeys(machine.cores_for(cores, len(os.sched_getaffinity(0)))))
    found = [pool[i % len(pool)] for i in range(producers)]
    return (*found, *(pool[-1 - i % len(pool)] for i in range(consumers)))


def _runner(harness: Harness, pair: Pair) -> Runner:
    timeout, progress = harness.settings.timeout_s, harness.directory / "progress"

    def run(count: int) -> Sample:
        each = max(1, count // pair.writers)
        sent, _ = run_shared(pair, "time", each, _SIZE, progress, timeout)
        seconds = (sent[0][1] - min(start for start, _ in sent)) / 1e9
        total = each * pair.writers
        cost = {"processor time of all [ns]": cpu_ns(pair, timeout) / total}
        return Sample(total / seconds / 1e6, seconds, cost)

    return Runner(
        name=pair.name,
        role=role(pair),
        run=run,
        verify=lambda: verify_shared(pair, _SIZE, _CHECKED, progress, timeout),
        step=pair.writers,
    )


def run(harness: Harness, rows: list[Row]) -> None:
    able = [rival for rival in rivals.ALL if getattr(rival, "SHARED", rival.NAME in _SHARED)]
    for row in rows:
        producers, consumers = map(int, row.id.split("/")[1].split("x"))
        with harness.pairs(
            _SIZE,
            in_flight=_IN_FLIGHT,
            writers=producers,
            readers=consumers,
            cores=cores_of(harness.settings.cores, producers, consumers),
            among=(ours_crowd, *able),
        ) as pairs:
            harness.measure(row, [_runner(harness, pair) for pair in pairs if has(pair, "one")])
