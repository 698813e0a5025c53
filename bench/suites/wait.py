"""To spin or to park: what a waiting consumer costs, and how soon it is there when a message comes.

"shmq" is its blocking get, which spins for some microseconds and then sleeps; "shmq spin" polls for as long
as it takes. Of the rivals some sleep, and some poll, which their notes say. Processor time is that of both
processes, threads of the library included.
"""

from __future__ import annotations

from typing import Any

from ..harness import Harness, Runner, Sample, Settings, tails
from ..jobs import quantiles
from ..model import Budget, Role, Row
from ..pair import Pair
from ..work import consumers, cpu_ns, has, verify

_SIZE = 64
_LOW = 1000
_GAP_S = 0.002
_IN_FLIGHT = 1024
_Consumer = tuple[str, Role, bool]


def rows(settings: Settings) -> list[Row]:
    return [
        Row(
            id="wait/idle",
            suite="wait",
            title=f"consumer in get for {_wait_s(settings):.1f} s: share of a core",
            unit="%",
            better="lower",
            budget=Budget("<= 0.5 % of a core", 0.5, "value"),
        ),
        Row(
            id="wait/wakeup",
            suite="wait",
            title="64 B to a consumer that has waited for 2 ms: from before put to after get (p50)",
            unit="us",
            better="lower",
        ),
        Row(
            id="wait/cost/1k",
            suite="wait",
            title=f"processor time of both sides per message of 64 B, {_LOW:,} messages/s",
            unit="us",
            better="lower",
        ),
        Row(
            id="wait/cost/full",
            suite="wait",
            title="processor time of both sides per message of 64 B, as fast as it goes",
            unit="us",
            better="lower",
        ),
    ]


def _wait_s(settings: Settings) -> float:
    return min(2.0, 20 * settings.target_s)


def _idle(harness: Harness, pair: Pair, consumer: _Consumer) -> Runner:
    seconds, spin = _wait_s(harness.settings), consumer[2]

    def run(count: int) -> Sample:
        used = pair.run(
            ("put_after", {"seconds": seconds, "size": _SIZE}),
            ("wait_idle", {"spin": spin}),
            harness.settings.timeout_s,
        )[1]
        return Sample(100 * used, seconds)

    return _made(harness, pair, consumer, run, 1)


def _wakeup(harness: Harness, pair: Pair, consumer: _Consumer) -> Runner:
    def run(count: int) -> Sample:
        ns, took_ns = pair.run(
            ("send_after_gaps", {"count": count, "size": _SIZE, "gap": _GAP_S}),
            ("receive_on_schedule", {"count": count, "spin": consumer[2]}),
            harness.settings.timeout_s,
        )[1]
        found = quantiles(ns)
        return Sample(found["p50"] / 1e3, took_ns / 1e9, tails(found, count, 1e3))

    return _made(harness, pair, consumer, run, harness.settings.parked_trips())


def _low(harness: Harness, pair: Pair, consumer: _Consumer) -> Runner:
    timeout = harness.settings.timeout_s

    def run(count: int) -> Sample:
        job: dict[str, Any] = {"count": count, "size": _SIZE, "rate": _LOW}
        pair.run(("send_paced", job), ("receive", {"count": count, "spin": consumer[2]}), timeout)
        return _cost(cpu_ns(pair, timeout), count)

    return _made(harness, pair, consumer, run, _low_messages(harness.settings))


def _low_messages(settings: Settings) -> int:
    """Of runs longer than others: what is measured is small."""
    return max(5, int(4 * settings.target_s * _LOW))


def _cost(used_ns: int, count: int) -> Sample:
    share = 100 * used_ns / 1e9 * _LOW / count
    return Sample(used_ns / count / 1e3, count / _LOW, {"share of a core [%]": share})


def _full(harness: Harness, pair: Pair, consumer: _Consumer) -> Runner:
    timeout = harness.settings.timeout_s

    def run(count: int) -> Sample:
        job = {"count": count, "size": _SIZE}
        pair.run(("send_one", job), ("receive", {"count": count, "spin": consumer[2]}), timeout)
        used_ns = cpu_ns(pair, timeout)
        return Sample(used_ns / count / 1e3, used_ns / 2e9)  # both are at work nearly all the time

    return _made(harness, pair, consumer, run, None)


def _made(harness: Harness, pair: Pair, consumer: _Consumer, run: Any, count: int | None) -> Runner:
    name, role, spin = consumer
    return Runner(
        name=name,
        role=role,
        run=run,
        verify=lambda: verify(pair, "one", _SIZE, 100, harness.settings.timeout_s),
        count=count,
        note="polls, never asleep" if spin or pair.polls else "",
    )


def _raw_futex(harness: Harness) -> list[Runner]:
    floors = harness.program("floors")
    if floors is None:
        return []

    def run(count: int) -> Sample:
        said = floors.run("wake", count, int(_GAP_S * 1e6), *harness.settings.cores)
        return Sample(said["p50"] / 1e3, count * _GAP_S, tails(said, count, 1e3))

    return [Runner("raw futex", "floor", run, count=harness.settings.parked_trips())]


def _pacing(harness: Harness, pairs: list[Pair]) -> list[Runner]:
    """Needs a process, and any pair's will do."""
    timeout = harness.settings.timeout_s

    def run(count: int) -> Sample:
        pairs[0].run(("pace", {"count": count, "rate": _LOW}), ("rest", {}), timeout)
        return _cost(cpu_ns(pairs[0], timeout), count)

    note = "the sender's sleep, no message"
    return [Runner("pacing alone", "floor", run, count=_low_messages(harness.settings), note=note)]


def run(harness: Harness, rows: list[Row]) -> None:
    make = {"wait/idle": _idle, "wait/wakeup": _wakeup, "wait/cost/1k": _low, "wait/cost/full": _full}
    with harness.pairs(_SIZE, in_flight=_IN_FLIGHT) as started:
        pairs = [pair for pair in started if has(pair, "one")]
        for row in rows:
            floor: list[Runner] = []
            if row.id == "wait/wakeup":
                floor = _raw_futex(harness)
            elif row.id == "wait/cost/1k" and pairs:
                floor = _pacing(harness, pairs)
            runners = [
                make[row.id](harness, pair, consumer)
                for pair in pairs
                for consumer in consumers(harness.settings, pair)
            ]
            harness.measure(row, floor + runners)
