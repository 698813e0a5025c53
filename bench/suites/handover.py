"""A loaned tensor changes hands: from before `publish` to after `get` in the other process.

The loan is made and filled before the clock starts; the consumer polls, so no wake-up is in it.
"""

from __future__ import annotations

import os
import shutil
from typing import Any

from .. import ours
from ..harness import Harness, Runner, Sample, Settings, tails
from ..jobs import quantiles
from ..model import Budget, Point, Row
from ..options import label
from ..pair import Pair
from ..rivals import iceoryx
from ..work import has, role, verify

_SIZES = (1 << 20, 16 << 20, 256 << 20, 1 << 30)
_BUDGET = Budget("<= 10 us, whatever the size", 10.0, "value")
_CHECK_AT_MOST = 16 << 20


def rows(settings: Settings) -> list[Row]:
    return [
        Row(
            id=f"handover/{label(size)}",
            suite="handover",
            title=f"hand-over of a loaned tensor of {label(size)} (p50)",
            unit="us",
            better="lower",
            budget=_BUDGET,
            point=Point("hand-over of a loaned tensor against size (p50)", "bytes", size),
        )
        for size in settings.payloads(_SIZES)
    ]


def _trips(size: int, target_s: float) -> int:
    """Filling takes nearly all the time: about 4 GB a second."""
    return max(3, min(200, int(4 * target_s * 4e9 / size)))


def _runner(harness: Harness, pair: Pair, size: int) -> Runner:
    timeout = harness.settings.timeout_s

    def run(count: int) -> Sample:
        job: dict[str, Any] = {"count": count, "size": size}
        sent, got = pair.run(("publish_loans", job), ("receive_loans", job), timeout)
        trips = quantiles([b - a for a, b in zip(sent, got, strict=True)])
        seconds = (got[-1] - sent[0]) / 1e9
        return Sample(trips["p50"] / 1e3, seconds, tails(trips, count, 1e3))

    return Runner(
        name=pair.name,
        role=role(pair),
        run=run,
        verify=lambda: verify(pair, "loan", size, 1 if size > _CHECK_AT_MOST else 3, timeout),
        count=_trips(size, harness.settings.target_s),
    )


def _room_bytes() -> int:
    """A third of the memory that is free, since a rival may reserve three of the largest."""
    free = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES")
    return min(free, shutil.disk_usage("/dev/shm").free) // 3


def run(harness: Harness, rows: list[Row]) -> None:
    """A pair of its own for each size: what is reserved for 1 GiB is slow to set up."""
    for row in rows:
        assert row.point is not None
        size = int(row.point.at)
        if size > harness.settings.max_bytes:
            harness.skip(row, "larger than --max-mib")
        elif size > _room_bytes():
            harness.skip(row, "not enough free memory or room in /dev/shm")
        else:
            with harness.pairs(size, in_flight=1, among=(ours, iceoryx)) as pairs:
                runners = [_runner(harness, pair, size) for pair in pairs if has(pair, "loan")]
                harness.measure(row, runners)
