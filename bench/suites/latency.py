"""There and back: a message and its answer over two queues; and latency under load (`open_loop.py`).

spinning: the answer is awaited at once, so neither side is idle for long. parked: each side idles 2
ms before it sends, so the other is asleep; the figure is the sum of the two hops, from before the
put to after the get, with the idling left out. The raw futex does exactly the same in C.
"""

from __future__ import annotations

from .. import tcp_raw
from ..harness import Harness, Runner, Sample, Settings, tails
from ..jobs import quantiles
from ..model import Budget, Point, Row
from ..options import label
from ..pair import Pair
from ..work import has, role, verify
from . import open_loop

_SIZE = 64
_SIZES = (_SIZE, 4 << 10, 64 << 10, 1 << 20)
_IN_FLIGHT = 1024
"""A sender that is ahead of its consumer may be as far ahead as this."""
_GAP_S = 0.002
_FORMS = {"spinning": "spin", "parked": "park"}


def rows(settings: Settings) -> list[Row]:
    waits = [row for row in _waits() if _FORMS[row.id.split("/")[1]] in settings.wait]
    return [*waits, *open_loop.rows(settings), *_by_size(settings)]


def _against_size(size: int) -> Point:
    return Point("round trip against size (p50)", "bytes", size)


def _by_size(settings: Settings) -> list[Row]:
    """But for 64 B: that is latency/spinning."""
    return [
        Row(
            id=f"latency/size/{label(size)}",
            suite="latency",
            title=f"Python round trip, {label(size)} bytes, peers ready (p50)",
            unit="us",
            better="lower",
            point=_against_size(size),
        )
        for size in settings.payloads(_SIZES)
        if size != _SIZE
    ]


def _waits() -> list[Row]:
    return [
        Row(
            id="latency/spinning",
            suite="latency",
            title="Python round trip, 64 B, peers ready (p50)",
            unit="us",
            better="lower",
            budget=Budget("<= 0.8 x mpi4py", 0.8, "mpi4py"),
            point=_against_size(_SIZE),
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


def _spinning(harness: Harness, pair: Pair, size: int = _SIZE) -> Runner:
    def run(count: int) -> Sample:
        job = {"count": count, "size": size}
        trips, _ = pair.run(("ping", job), ("pong", job), harness.settings.timeout_s)
        seconds = trips["mean"] * count / 1e9
        extras = {**tails(trips, count, 1e3), "mean": trips["mean"] / 1e3}
        return Sample(trips["p50"] / 1e3, seconds, extras)

    return Runner(pair.name, role(pair), run, lambda: _check(harness, pair, size), first=8)


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


def _check(harness: Harness, pair: Pair, size: int = _SIZE) -> None:
    verify(pair, "one", size, 100 if size <= _SIZE else 10, harness.settings.timeout_s)


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
    kinds: dict[str, list[Row]] = {}
    for row in rows:
        kinds.setdefault(row.id.split("/")[1], []).append(row)
    with harness.pairs(_SIZE, in_flight=_IN_FLIGHT, both_ways=True) as started:
        pairs = [pair for pair in started if has(pair, "one")]
        for row in (row for form in _FORMS for row in kinds.get(form, [])):
            make = _spinning if row.id == "latency/spinning" else _parked
            harness.measure(row, _floors(harness, row) + [make(harness, pair) for pair in pairs])
        open_loop.run(harness, pairs, [*kinds.get("oneway", []), *kinds.get("roundtrip", [])])
    _run_sizes(harness, kinds.get("size", []))


def _run_sizes(harness: Harness, rows: list[Row]) -> None:
    sizes = {row.id: int(row.point.at) for row in rows if row.point is not None}
    within = [size for size in sizes.values() if size <= harness.settings.max_bytes]
    if not within:
        for row in rows:
            harness.skip(row, "larger than --max-mib")
        return
    with harness.pairs(max(within), in_flight=4, both_ways=True) as pairs:
        for row in rows:
            size = sizes[row.id]
            if size not in within:
                harness.skip(row, "larger than --max-mib")
                continue
            with harness.pairs(size, in_flight=1, both_ways=True, among=(tcp_raw,)) as tcp:
                able = [pair for pair in [*pairs, *tcp] if has(pair, "one")]
                harness.measure(row, [_spinning(harness, pair, size) for pair in able])
