"""There and back: a 64-byte message and its answer over two queues.

spinning: the answer is awaited at once, so neither side is idle for long. parked: each side idles 2
ms before it sends, so the other is asleep; the figure is the sum of the two hops, from before the
put to after the get, with the idling left out. The raw futex does exactly the same in C.
"""

from __future__ import annotations

from ..harness import Harness, Runner, Sample, Settings, tails
from ..jobs import quantiles
from ..model import Budget, Row
from ..pair import Pair
from ..work import role, verify

_SIZE = 64
_GAP_S = 0.002


def rows(settings: Settings) -> list[Row]:
    return [
        Row(
            id="latency/spinning",
            suite="latency",
            title="Python round trip, 64 B, peers ready (p50)",
            unit="us",
            better="lower",
            budget=Budget("<= 0.8 x mpi4py", 0.8, "mpi4py"),
        ),
        Row(
            id="latency/parked",
            suite="latency",
            title="Python round trip, 64 B, both asleep after 2 ms (p50)",
            unit="us",
            better="lower",
            budget=Budget("<= 1.2 x raw futex", 1.2, "floor"),
        ),
    ]


def _spinning(harness: Harness, pair: Pair) -> Runner:
    def run(count: int) -> Sample:
        job = {"count": count, "size": _SIZE}
        trips, _ = pair.run(("ping", job), ("pong", job), harness.settings.timeout_s)
        seconds = trips["mean"] * count / 1e9
        extras = {**tails(trips, count, 1e3), "mean": trips["mean"] / 1e3}
        return Sample(trips["p50"] / 1e3, seconds, extras)

    return Runner(pair.name, role(pair), run, lambda: _check(harness, pair))


def _parked(harness: Harness, pair: Pair) -> Runner:
    def run(count: int) -> Sample:
        job = {"count": count, "size": _SIZE, "gap": _GAP_S}
        asker, answerer = pair.run(("ping_parked", job), ("pong_parked", job), harness.settings.timeout_s)
        there = [got - sent for sent, got in zip(asker[::2], answerer[::2], strict=True)]
        back = [got - sent for sent, got in zip(answerer[1::2], asker[1::2], strict=True)]
        trips = quantiles([a + b for a, b in zip(there, back, strict=True)])
        seconds = (asker[-1] - asker[0]) / 1e9
        return Sample(trips["p50"] / 1e3, seconds, tails(trips, count, 1e3))

    return Runner(
        name=pair.name,
        role=role(pair),
        run=run,
        verify=lambda: _check(harness, pair),
        count=harness.settings.parked_trips(),
        note="polls, never asleep" if pair.polls else "",
    )


def _check(harness: Harness, pair: Pair) -> None:
    verify(pair, "one", _SIZE, 100, harness.settings.timeout_s)


def _floors(harness: Harness, row: Row) -> list[Runner]:
    floors, cores = harness.program("floors"), harness.settings.cores
    if floors is None:
        return []

    def cacheline(count: int) -> Sample:
        ns = floors.run("cacheline", count, *cores)["ns"]
        return Sample(ns / 1e3, ns * count / 1e9)

    def futex(count: int) -> Sample:
        said = floors.run("parked", count, int(_GAP_S * 1e6), *cores)
        return Sample(said["p50"] / 1e3, count * 2 * _GAP_S, tails(said, count, 1e3))

    if row.id == "latency/spinning":
        return [Runner("cache line", "floor", cacheline, first=10_000)]
    return [Runner("raw futex", "floor", futex, count=harness.settings.parked_trips())]


def run(harness: Harness, rows: list[Row]) -> None:
    with harness.pairs(_SIZE, in_flight=64, both_ways=True) as pairs:
        for row in rows:
            make = _spinning if row.id == "latency/spinning" else _parked
            runners = [make(harness, pair) for pair in pairs]
            harness.measure(row, _floors(harness, row) + runners)
