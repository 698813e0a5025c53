"""Arrays with one copy in: the producer puts a private one, the consumer gets and drops it.

The floor is memcpy from a private buffer into as many warm shared buffers, in turn, as nine of ten of shmq's
messages were seen to come in. "memcpy, hot" always copies into the same one, which is faster while that one
stays in the cache. The rows "copy": the consumer copies each array into memory of its own, unless it was
received there.
"""

from __future__ import annotations

from contextlib import ExitStack

from .. import tcp_raw
from ..harness import Harness, Runner, Sample, Settings
from ..model import Budget, Point, Role, Row
from ..options import label
from ..pair import Pair, PairFailed
from ..work import has, one_way_seconds, role, verify

_SIZES = (4 << 10, 64 << 10, 1 << 20, 4 << 20, 16 << 20, 64 << 20)
_BUDGETS = {
    1 << 20: Budget(">= 0.8 x memcpy", 0.8, "floor"),
    64 << 20: Budget(">= 0.9 x memcpy", 0.9, "floor"),
}
_IN_FLIGHT_BYTES = 256 << 20
_IN_FLIGHT_MOST = 64
_TOGETHER_BYTES = 64 << 10
"""Sizes up to this share their pairs."""


def rows(settings: Settings) -> list[Row]:
    return [_row(size, mode) for size in settings.payloads(_SIZES) for mode in settings.receive]


def _row(size: int, mode: str) -> Row:
    out = "view out" if mode == "view" else "copied out by who receives it"
    seen = "received as a view" if mode == "view" else "copied out"
    return Row(
        id=f"tensor/{label(size)}" + ("/copy" if mode == "copy" else ""),
        suite="tensor",
        title=f"array of {label(size)}, one copy in, {out}",
        unit="GB/s",
        better="higher",
        budget=_BUDGETS.get(size) if mode == "view" else None,
        point=Point(f"GB/s against size, {seen}", "bytes", size),
    )


def _first(size: int) -> int:
    return 64 if size <= 1 << 20 else 2


def _runner(harness: Harness, pair: Pair, size: int, keeps: bool) -> Runner:
    timeout = harness.settings.timeout_s

    def run(count: int) -> Sample:
        seconds = one_way_seconds(pair, "array", size, count, timeout, keeps=keeps)
        return Sample(count * size / seconds / 1e9, seconds)

    views = "view" in pair.calls[1]
    return Runner(
        name=pair.name,
        role=role(pair),
        run=run,
        verify=lambda: verify(pair, "array", size, 3, timeout),
        first=_first(size),
        note="receives into memory of its own" if keeps and not views else "",
    )


def _rotation(harness: Harness, pairs: list[Pair], size: int) -> int:
    """In how many buffers shmq's messages mostly come, in traffic like the timed one."""
    ours = next((pair for pair in pairs if pair.name == "shmq"), None)
    if ours is None:
        return 1
    count = 8 * _first(size)
    try:
        seen: int = ours.run(
            ("send_addresses", {"count": count, "size": size}),
            ("receive_addresses", {"count": count}),
            harness.settings.timeout_s,
        )[1]
    except PairFailed:
        return 1  # the row's own verification says what is wrong
    return seen


def _memcpy(harness: Harness, size: int, buffers: int) -> list[Runner]:
    floors = harness.program("floors")
    if floors is None:
        return []

    def runner(name: str, role: Role, buffers: int) -> Runner:
        def run(count: int) -> Sample:
            said = floors.run("memcpy", count, size, buffers, harness.settings.cores[0])
            rate = said["gb_per_s"]
            return Sample(rate, count * size / rate / 1e9)

        note = "always the same buffer" if buffers == 1 else f"{buffers} buffers in turn"
        return Runner(name, role, run, first=_first(size), note=note)

    like_ours = runner("memcpy", "floor", buffers)
    return [like_ours] if buffers == 1 else [like_ours, runner("memcpy, hot", "reference", 1)]


def _measure(harness: Harness, row: Row, size: int, pairs: list[Pair]) -> None:
    floor = _memcpy(harness, size, _rotation(harness, pairs, size))
    with harness.pairs(size, in_flight=1, among=(tcp_raw,)) as tcp:
        runners = [
            _runner(harness, pair, size, keeps=row.id.endswith("/copy"))
            for pair in [*pairs, *tcp]
            if has(pair, "array")
        ]
        harness.measure(row, floor + runners)


def run(harness: Harness, rows: list[Row]) -> None:
    """A pair of its own for each larger size: a transport may reserve memory for the largest."""
    started: dict[int, list[Pair]] = {}
    sizes = {row.id: int(row.point.at) for row in rows if row.point is not None}
    with ExitStack() as stack:
        for row in rows:
            size = sizes[row.id]
            if size > harness.settings.max_bytes:
                harness.skip(row, "larger than --max-mib")
                continue
            largest = max(size, min(_TOGETHER_BYTES, max(sizes.values())))
            if largest not in started:
                stack.close()
                in_flight = max(2, min(_IN_FLIGHT_MOST, _IN_FLIGHT_BYTES // largest))
                started = {largest: stack.enter_context(harness.pairs(largest, in_flight=in_flight))}
            _measure(harness, row, size, started[largest])
