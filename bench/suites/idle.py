"""What a waiting consumer costs: processor time while its get waits for one late message."""

from __future__ import annotations

from ..harness import Harness, Runner, Sample, Settings
from ..model import Budget, Row
from ..pair import Pair
from ..work import has, role

_SIZE = 64


def rows(settings: Settings) -> list[Row]:
    return [
        Row(
            id="idle/blocked",
            suite="idle",
            title=f"consumer in get for {_wait_s(settings):.1f} s: share of a core",
            unit="%",
            better="lower",
            budget=Budget("<= 0.5 % of a core", 0.5, "value"),
        )
    ]


def _wait_s(settings: Settings) -> float:
    return min(2.0, 20 * settings.target_s)


def _runner(harness: Harness, pair: Pair) -> Runner:
    seconds = _wait_s(harness.settings)

    def run(count: int) -> Sample:
        used = pair.run(
            ("put_after", {"seconds": seconds, "size": _SIZE}),
            ("wait_idle", {}),
            harness.settings.timeout_s,
        )[1]
        return Sample(100 * used, seconds)

    note = "polls, never asleep" if pair.polls else ""
    return Runner(pair.name, role(pair), run, count=1, note=note)


def run(harness: Harness, rows: list[Row]) -> None:
    with harness.pairs(_SIZE, in_flight=64) as pairs:
        for row in rows:
            harness.measure(row, [_runner(harness, pair) for pair in pairs if has(pair, "one")])
