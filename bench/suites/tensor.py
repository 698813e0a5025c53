"""Arrays with one copy in: the producer puts a private one, the consumer gets and drops it.

The floor is memcpy from a private buffer into as many warm shared buffers, in turn, as nine of ten
of shmq's messages were seen to come in. "memcpy, hot" always copies into the same one, which is
faster while that one stays in the cache.
"""

from __future__ import annotations

from ..harness import Harness, Runner, Sample, Settings
from ..model import Budget, Role, Row
from ..pair import Pair, PairFailed
from ..work import has, one_way_seconds, role, verify

_SIZES = {"4KiB": 4 << 10, "1MiB": 1 << 20, "64MiB": 64 << 20}
_BUDGETS = {
    "1MiB": Budget(">= 0.8 x memcpy", 0.8, "floor"),
    "64MiB": Budget(">= 0.9 x memcpy", 0.9, "floor"),
}
_IN_FLIGHT_BYTES = 256 << 20
_IN_FLIGHT_MOST = 64


def rows(settings: Settings) -> list[Row]:
    return [
        Row(
            id=f"tensor/{label}",
            suite="tensor",
            title=f"array of {label}, one copy in, view out",
            unit="GB/s",
            better="higher",
            budget=_BUDGETS.get(label),
        )
        for label in _SIZES
    ]


def _first(size: int) -> int:
    return 64 if size <= 1 << 20 else 2


def _runner(harness: Harness, pair: Pair, size: int) -> Runner:
    timeout = harness.settings.timeout_s

    def run(count: int) -> Sample:
        seconds = one_way_seconds(pair, "array", size, count, timeout)
        return Sample(count * size / seconds / 1e9, seconds)

    return Runner(
        name=pair.name,
        role=role(pair),
        run=run,
        verify=lambda: verify(pair, "array", size, 3, timeout),
        first=_first(size),
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


def run(harness: Harness, rows: list[Row]) -> None:
    for row in rows:
        size = _SIZES[row.id.split("/")[1]]
        if size > harness.settings.max_bytes:
            harness.skip(row, "larger than --max-mib")
            continue
        in_flight = max(2, min(_IN_FLIGHT_MOST, _IN_FLIGHT_BYTES // size))
        with harness.pairs(size, in_flight=in_flight) as pairs:
            floor = _memcpy(harness, size, _rotation(harness, pairs, size))
            runners = [_runner(harness, pair, size) for pair in pairs if has(pair, "array")]
            harness.measure(row, floor + runners)
