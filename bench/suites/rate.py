"""One way, as fast as it goes: bytes between two processes, in millions of messages a second."""

from __future__ import annotations

from ..harness import Harness, Runner, Sample, Settings
from ..jobs import BATCH_MESSAGES
from ..model import Budget, Row
from ..pair import Pair
from ..work import has, one_way_seconds, role, verify

_SIZES = {"64B": 64, "4KiB": 4096}
_FORMS = {"one": "one call per message", "many": f"batches of {BATCH_MESSAGES}"}
_BUDGETS = {
    ("64B", "one"): Budget(">= 2 x best peer", 2.0, "best rival"),
    ("64B", "many"): Budget(">= 4 x best peer (with such a call)", 4.0, "best rival"),
}
_IN_FLIGHT = 1024


def rows(settings: Settings) -> list[Row]:
    return [
        Row(
            id=f"rate/{label}/{form}",
            suite="rate",
            title=f"Python one way, {label} bytes, {how}",
            unit="M/s",
            better="higher",
            budget=_BUDGETS.get((label, form)),
        )
        for label in _SIZES
        for form, how in _FORMS.items()
    ]


def _runner(harness: Harness, pair: Pair, form: str, size: int) -> Runner:
    timeout = harness.settings.timeout_s

    def run(count: int) -> Sample:
        seconds = one_way_seconds(pair, form, size, count, timeout)
        return Sample(count / seconds / 1e6, seconds)

    return Runner(
        name=pair.name,
        role=role(pair),
        run=run,
        verify=lambda: verify(pair, form, size, 10 * BATCH_MESSAGES, timeout),
        first=2 * BATCH_MESSAGES,
        step=BATCH_MESSAGES if form == "many" else 1,
    )


def run(harness: Harness, rows: list[Row]) -> None:
    with harness.pairs(max(_SIZES.values()), in_flight=_IN_FLIGHT) as pairs:
        for row in rows:
            _, label, form = row.id.split("/")
            runners = [_runner(harness, pair, form, _SIZES[label]) for pair in pairs if has(pair, form)]
            harness.measure(row, runners)
