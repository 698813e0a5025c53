"""The floors by themselves: what one cffi call, a cache line, a futex and a memcpy cost here."""

from __future__ import annotations

from ..harness import Harness, Runner, Sample, Settings, tails
from ..model import Row
from ..solo import Solo

_COPIES = {"4KiB": 4 << 10, "1MiB": 1 << 20, "64MiB": 64 << 20}


def rows(settings: Settings) -> list[Row]:
    def row(name: str, title: str, unit: str) -> Row:
        better = "higher" if unit == "GB/s" else "lower"
        return Row(f"floors/{name}", "floors", title, unit, better)  # type: ignore[arg-type]

    return [
        row("cffi", "one cffi call from Python (API mode, loop included)", "ns"),
        row("cacheline", "a cache line there and back between the two cores", "ns"),
        row("futex", "raw futex round trip, both asleep each time (p50)", "us"),
        *(row(f"memcpy-{name}", f"memcpy of {name}, one warm buffer", "GB/s") for name in _COPIES),
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

    if row.id == "floors/cacheline":
        harness.measure(row, [Runner("cache line", "floor", cacheline, first=10_000)])
    elif row.id == "floors/futex":
        harness.measure(row, [Runner("raw futex", "floor", futex, first=100)])
    else:
        size = _COPIES[row.id.removeprefix("floors/memcpy-")]

        def memcpy(count: int) -> Sample:
            rate = floors.run("memcpy", count, size, 1, cores[0])["gb_per_s"]
            return Sample(rate, count * size / rate / 1e9)

        harness.measure(row, [Runner("memcpy", "floor", memcpy, first=4)])


def run(harness: Harness, rows: list[Row]) -> None:
    for row in rows:
        if row.id == "floors/cffi":
            _cffi(harness, row)
        elif row.id.endswith("-64MiB") and harness.settings.max_bytes < 64 << 20:
            harness.skip(row, "larger than --max-mib")
        else:
            _native(harness, row)
