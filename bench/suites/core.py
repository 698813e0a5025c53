"""The C core without Python: two pinned processes, a handle each, through csrc/shmq.h.

`core.c` and `floors.c` answer the same verbs in the same form, so a row runs one of each.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from ..harness import Harness, Runner, Sample, Settings, tails
from ..model import Budget, Role, Row

_GAP_US = 2000
_BATCH = 64
_CHECK_MESSAGES = 10_000


_Contestant = tuple[str, Role, str]
"""Name, role, kind of the queue."""
_BOTH: tuple[_Contestant, ...] = (("shmq", "shmq", "spsc"), ("shmq mpmc", "reference", "mpmc"))
_MPMC: tuple[_Contestant, ...] = (("shmq", "shmq", "mpmc"),)


@dataclass(frozen=True)
class _Work:
    other: str
    other_verb: str
    verb: str
    read: Callable[[dict[str, float], int], Sample]
    ours: tuple[_Contestant, ...] = _BOTH
    role: Role = "floor"
    """Of the other."""
    more: tuple[int, ...] = ()
    """Arguments of both verbs behind the count."""


def _rate(said: dict[str, float], count: int) -> Sample:
    rate = said["rate_m_per_s"]
    return Sample(rate, count / rate / 1e6)


def _mean(said: dict[str, float], count: int) -> Sample:
    return Sample(said["ns"], said["ns"] * count / 1e9)


def _quantiles(said: dict[str, float], count: int) -> Sample:
    return Sample(said["p50"] / 1e3, count * 2 * _GAP_US / 1e6, tails(said, count, 1e3))


_WORK = {
    "core/rate": _Work("bare ring", "ring", "rate", _rate),
    "core/batch": _Work("bare ring", "ring", "batch", _rate),
    "core/pingpong": _Work("cache line", "cacheline", "pingpong", _mean),
    "core/parked": _Work("raw futex", "parked", "parked", _quantiles, more=(_GAP_US,)),
    "core/mpmc": _Work("bare ring", "ring", "rate", _rate, _MPMC),
    "core/crowd": _Work("mutex ring", "mutex", "crowd", _rate, _MPMC, "rival", (2, 2)),
}


def rows(settings: Settings) -> list[Row]:
    return [
        Row(
            id="core/rate",
            suite="core",
            title="C one way, 64 B records, one call each",
            unit="M/s",
            better="higher",
            budget=Budget(">= 50 M/s", 50.0, "value"),
        ),
        Row(
            id="core/batch",
            suite="core",
            title="C one way, 64 B records, put in batches of 64",
            unit="M/s",
            better="higher",
        ),
        Row(
            id="core/pingpong",
            suite="core",
            title="C round trip, 64 B, spinning (mean)",
            unit="ns",
            better="lower",
            budget=Budget("<= 1.5 x cache line", 1.5, "floor"),
        ),
        Row(
            id="core/parked",
            suite="core",
            title="C round trip, 64 B, both asleep after 2 ms (p50)",
            unit="us",
            better="lower",
            budget=Budget("<= 1.2 x raw futex", 1.2, "floor"),
        ),
        Row(
            id="core/mpmc",
            suite="core",
            title="C mpmc 1P1C, 64 B, one call each",
            unit="M/s",
            better="higher",
            budget=Budget(">= 20 M/s", 20.0, "value"),
        ),
        Row(
            id="core/crowd",
            suite="core",
            title="C mpmc 2P2C, 64 B, one call each; four processes share the two cores",
            unit="M/s",
            better="higher",
            budget=Budget(">= 1 x mutex ring", 1.0, "mutex ring"),
        ),
    ]


def _runner(harness: Harness, row: Row, name: str, role: Role, kind: str = "") -> Runner | None:
    """Of ours where ``kind`` is given, else of the other."""
    ours = kind != ""
    program = harness.program("core" if ours else "floors")
    if program is None:
        return None
    work, cores = _WORK[row.id], harness.settings.cores
    verb = work.verb if ours else work.other_verb
    which = [kind] if ours else []
    count = harness.settings.parked_trips() if verb == "parked" else None

    def run(count: int) -> Sample:
        return work.read(program.run(*which, verb, count, *work.more, *cores), count)

    def verify() -> None:
        program.run(*which, "verify", _CHECK_MESSAGES, *cores)

    return Runner(
        name=name,
        role=role,
        run=run,
        verify=verify if ours else None,  # a crowd also checks each run by its sums
        count=count,
        first=10_000,
        step=1 if count else _BATCH,
    )


def run(harness: Harness, rows: list[Row]) -> None:
    for row in rows:
        work = _WORK[row.id]
        contestants = [_runner(harness, row, work.other, work.role)]
        contestants += [_runner(harness, row, *ours) for ours in work.ours]
        harness.measure(row, [runner for runner in contestants if runner is not None])
