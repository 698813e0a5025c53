"""Latency under offered load, one way and there and back: `schedule.py` says how it is counted.

Rows of the suite latency. The sender keeps to its plan by looking at the clock and yielding its core, it
never sleeps; the consumer is in its blocking get ("shmq spin": polls). There and back, one question is under
way at a time.
"""

from __future__ import annotations

from statistics import median
from typing import Any

from .. import latencies
from ..harness import Harness, Runner, Sample, Settings
from ..latencies import Latencies
from ..model import Point, Role, Row
from ..options import load_label
from ..pair import Pair
from ..work import consumers, verify

_SIZE = 64
_LEAST_MESSAGES = 1000
_LONGER = 4
"""At a low load a run may be this many times as long, for the sake of the tail."""
_KEEPS_UP = 0.95
_FORMS = {"oneway": "one way", "roundtrip": "there and back"}


def rows(settings: Settings) -> list[Row]:
    return [
        Row(
            id=f"latency/{form}/{load_label(load)}",
            suite="latency",
            title=f"Python {how}, 64 B, {load:,} messages/s offered, from when each was due (p50)",
            unit="us",
            better="lower",
            point=Point(f"latency {how} against offered load (p50)", "messages/s offered", load),
        )
        for form, how in _FORMS.items()
        for load in settings.loads
    ]


def _messages(load: int, target_s: float) -> int:
    return max(2, int(min(max(load * target_s, _LEAST_MESSAGES), load * target_s * _LONGER)))


def summary(load: int, ns: list[int], took_ns: int) -> Sample:
    """Of one run. What is carried a second is counted from when the first was due, so it is never above the
    load."""
    found = Latencies(ns)
    carried = (len(ns) - 1) * 1e9 / max(1, took_ns)
    extras = {
        **found.extras(1e3),
        "carried [1/s]": carried,
        "power [M/s^2]": latencies.power(carried, found.mean) / 1e6,
    }
    slow = carried < _KEEPS_UP * load and _grows(ns)
    note = "cannot keep up with the load: its latency grows as long as the run lasts" if slow else ""
    return Sample(found.at(50) / 1e3, took_ns / 1e9, extras, found, note)


def _grows(ns: list[int]) -> bool:
    """From the first quarter of the messages to the last; a single hiccup does not count."""
    quarter = len(ns) // 4 + 1
    return median(ns[-quarter:]) > 2 * median(ns[:quarter])


def _runner(harness: Harness, pair: Pair, form: str, load: int, consumer: tuple[str, Role, bool]) -> Runner:
    name, role, spin = consumer
    timeout = harness.settings.timeout_s

    def run(count: int) -> Sample:
        asks: dict[str, Any] = {"count": count, "size": _SIZE, "rate": load}
        gets: dict[str, Any] = {"count": count, "spin": spin}
        if form == "oneway":
            said = pair.run(("send_on_schedule", asks), ("receive_on_schedule", gets), timeout)[1]
        else:
            said = pair.run(("ask_on_schedule", {**asks, "spin": spin}), ("answer", gets), timeout)[0]
        return summary(load, *said)

    return Runner(
        name=name,
        role=role,
        run=run,
        verify=lambda: verify(pair, "one", _SIZE, 100, timeout),
        count=_messages(load, harness.settings.target_s),
        note="polls" if pair.polls else "",
    )


def run(harness: Harness, pairs: list[Pair], rows: list[Row]) -> None:
    if (reason := latencies.missing()) is not None:
        for row in rows:
            harness.skip(row, reason)
        return
    for row in rows:
        form = row.id.split("/")[1]
        assert row.point is not None
        runners = [
            _runner(harness, pair, form, int(row.point.at), consumer)
            for pair in pairs
            for consumer in consumers(harness.settings, pair)
        ]
        harness.measure(row, runners)
