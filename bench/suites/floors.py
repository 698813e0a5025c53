"""The floors by themselves: what a cffi call, a cache line, a futex, a fresh page and a memcpy cost here.

And a bare TCP connection, which is what shmq is there to avoid.
"""

from __future__ import annotations

from typing import Literal

from .. import tcp_raw
from ..harness import Harness, Runner, Sample, Settings, tails
from ..model import Point, Row
from ..options import label
from ..solo import Solo
from ..work import one_way_seconds, verify

_COPIES = (4 << 10, 64 << 10, 1 << 20, 4 << 20, 16 << 20, 64 << 20)
_TRIP_BYTES = 64
_TOUCHED_PAGES = 4096


def rows(settings: Settings) -> list[Row]:
    def row(name: str, title: str, unit: str, size: int | None = None) -> Row:
        better: Literal["higher", "lower"] = "higher" if unit == "GB/s" else "lower"
        point = None if size is None else Point("floors: GB/s against size", "bytes", size)
        return Row(f"floors/{name}", "floors", title, unit, better, point=point)

    copies = settings.payloads(_COPIES)
    return [
        row("cffi", "one cffi call from Python (API mode, loop included)", "ns"),
        row("cacheline", "a cache line there and back between the two cores", "ns"),
        row("futex", "raw futex round trip, both asleep each time (p50)", "us"),
        row("first-touch", "first write to a page of fresh shared memory, per page", "ns"),
        *(row(f"memcpy-{label(n)}", f"memcpy of {label(n)}, one warm buffer", "GB/s", n) for n in copies),
        row("tcp-roundtrip", "raw TCP over loopback from Python, 64 B there and back (p50)", "us"),
        *(
            row(f"tcp-{label(n)}", f"raw TCP, {label(n)}, recv_into loop in Python", "GB/s", n)
            for n in copies
        ),
    ]


def _cffi(harness: Harness, row: Row) -> None:
    with Solo(harness.directory, harness.settings.cores[0]) as solo:

        def runner(name: str, job: str) -> Runner:
            def run(count: int) -> Sample:
                ns = solo.time(job, count, harness.settings.timeout_s)
                return Sample(ns, ns * count / 1e9)

            return Runner(name, "floor", run, first=10_000)

        harness.measure(
            row,
            [
                runner("no argument", "cffi_nothing"),
                runner("pointer", "cffi_pointer"),
                runner("empty loop", "loop"),
            ],
        )


def _native(harness: Harness, row: Row) -> None:
    floors, cores = harness.program("floors"), harness.settings.cores
    if floors is None:
        harness.skip(row, "floors.c could not be built")
        return

    def cacheline(count: int) -> Sample:
        ns = floors.run("cacheline", count, *cores)["ns"]
        return Sample(ns, ns * count / 1e9)

    def futex(count: int) -> Sample:
        said = floors.run("futex", count, *cores)
        return Sample(said["p50"] / 1e3, said["p50"] * count / 1e9, tails(said, count, 1e3))

    def touch(count: int) -> Sample:
        ns = floors.run("touch", count, _TOUCHED_PAGES, cores[0])["ns"]
        return Sample(ns, ns * count * _TOUCHED_PAGES / 1e9)

    if row.id == "floors/cacheline":
        harness.measure(row, [Runner("cache line", "floor", cacheline, first=10_000)])
    elif row.id == "floors/futex":
        harness.measure(row, [Runner("raw futex", "floor", futex, first=100)])
    elif row.id == "floors/first-touch":
        harness.measure(row, [Runner("page fault", "floor", touch, first=1)])
    else:
        assert row.point is not None
        size = int(row.point.at)

        def memcpy(count: int) -> Sample:
            rate = floors.run("memcpy", count, size, 1, cores[0])["gb_per_s"]
            return Sample(rate, count * size / rate / 1e9)

        harness.measure(row, [Runner("memcpy", "floor", memcpy, first=4)])


def _tcp(harness: Harness, row: Row) -> None:
    size = _TRIP_BYTES if row.point is None else int(row.point.at)
    timeout = harness.settings.timeout_s
    with harness.pairs(size, in_flight=1, both_ways=True, among=(tcp_raw,)) as pairs:

        def runner(form: str) -> Runner:
            pair = pairs[0]

            def rate(count: int) -> Sample:
                seconds = one_way_seconds(pair, form, size, count, timeout)
                return Sample(count * size / seconds / 1e9, seconds)

            def trip(count: int) -> Sample:
                job = {"count": count, "size": size}
                trips, _ = pair.run(("ping", job), ("pong", job), timeout)
                return Sample(trips["p50"] / 1e3, trips["mean"] * count / 1e9, tails(trips, count, 1e3))

            return Runner(
                name=pair.name,
                role="floor",
                run=trip if row.point is None else rate,
                verify=lambda: verify(pair, form, size, 3, timeout),
                first=4,
            )

        harness.measure(row, [runner("one" if row.point is None else "array")] if pairs else [])


def run(harness: Harness, rows: list[Row]) -> None:
    for row in rows:
        if row.id == "floors/cffi":
            _cffi(harness, row)
        elif row.point is not None and row.point.at > harness.settings.max_bytes:
            harness.skip(row, "larger than --max-mib")
        elif row.id.startswith("floors/tcp"):
            _tcp(harness, row)
        else:
            _native(harness, row)
