"""asyncio: one way through `async for`, and there and back with both loops parked."""

from __future__ import annotations

from .. import ours_aio, pipe_aio
from ..harness import Harness, Runner, Sample, Settings, tails
from ..jobs import quantiles
from ..model import Budget, Role, Row
from ..pair import Pair
from ..rivals import pyzmq_aio
from ..work import verify

AMONG = (ours_aio, pipe_aio, pyzmq_aio)
_SIZE = 64
_GAP_S = 0.002
_IN_FLIGHT = 1024


def rows(settings: Settings) -> list[Row]:
    return [
        Row(
            id="aio/rate",
            suite="aio",
            title="64 B, one way, from a task to a task (shmq: async for)",
            unit="M/s",
            better="higher",
            budget=Budget(">= 1 M/s", 1.0, "value"),
        ),
        Row(
            id="aio/parked",
            suite="aio",
            title="64 B there and back between two event loops, both parked for 2 ms (p50)",
            unit="us",
            better="lower",
            budget=Budget("<= 1.3 x a bare pipe", 1.3, "floor"),
        ),
    ]


def _role(pair: Pair) -> Role:
    return "shmq" if pair.name == ours_aio.NAME else "floor" if pair.name == pipe_aio.NAME else "rival"


def _rate(harness: Harness, pair: Pair) -> Runner:
    def run(count: int) -> Sample:
        job = {"count": count, "size": _SIZE}
        start, end = pair.run(
            ("loop_send", job), ("loop_receive", {"count": count}), harness.settings.timeout_s
        )
        seconds = (end - start) / 1e9
        return Sample(count / seconds / 1e6, seconds)

    return Runner(pair.name, _role(pair), run, lambda: _check(harness, pair))


def _parked(harness: Harness, pair: Pair) -> Runner:
    def run(count: int) -> Sample:
        job = {"count": count, "size": _SIZE, "gap": _GAP_S}
        asker, answerer = pair.run(
            ("loop_ping_parked", job), ("loop_pong_parked", job), harness.settings.timeout_s
        )
        there = [got - sent for sent, got in zip(asker[::2], answerer[::2], strict=True)]
        back = [got - sent for sent, got in zip(answerer[1::2], asker[1::2], strict=True)]
        trips = quantiles([a + b for a, b in zip(there, back, strict=True)])
        return Sample(trips["p50"] / 1e3, (asker[-1] - asker[0]) / 1e9, tails(trips, count, 1e3))

    count = harness.settings.parked_trips()
    return Runner(pair.name, _role(pair), run, lambda: _check(harness, pair), count=count)


def _check(harness: Harness, pair: Pair) -> None:
    verify(pair, "one", _SIZE, 100, harness.settings.timeout_s)


def run(harness: Harness, rows: list[Row]) -> None:
    with harness.pairs(_SIZE, in_flight=_IN_FLIGHT, both_ways=True, among=AMONG) as pairs:
        for row in rows:
            if row.id == "aio/rate":
                harness.measure(row, [_rate(harness, p) for p in pairs if _role(p) != "floor"])
            else:
                harness.measure(row, [_parked(harness, pair) for pair in pairs])
