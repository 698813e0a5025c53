"""One way, as fast as it goes: millions of messages a second, and the processor time that each takes.

The rows "cost" are no runs of their own: they show the processor time of both processes, threads of the
library included, in the runs with one call per message. An object is a dict without arrays; who carries only
bytes gets it through msgpack.
"""

from __future__ import annotations

from ..harness import Harness, Runner, Sample, Settings
from ..jobs import BATCH_MESSAGES
from ..model import Budget, Point, Result, Row
from ..options import label
from ..pair import Pair
from ..work import cpu_ns, has, one_way_seconds, role, verify

_SIZES = (64, 256, 1 << 10, 4 << 10, 16 << 10, 64 << 10)
_FORMS = {"one": "one call per message", "many": f"batches of {BATCH_MESSAGES}"}
_BUDGETS = {
    (64, "one"): Budget(">= 2 x best peer", 2.0, "best rival"),
    (64, "many"): Budget(">= 4 x best peer (with such a call)", 4.0, "best rival"),
}
_ARRAY_BYTES = 1 << 10
_OBJECT_BYTES = 1 << 10
"""At most."""
_SMALL_BYTES = 4 << 10
_COST = "processor time [ns]"


def rows(settings: Settings) -> list[Row]:
    found = []
    if "array" in settings.codecs:
        found.append(_other("array", f"array of {label(_ARRAY_BYTES)}"))
    if "object" in settings.codecs:
        found.append(_other("object", "dict of seven keys"))
    if "bytes" in settings.codecs:
        for size in settings.payloads(_SIZES):
            found += [*(_rate(size, form) for form in _FORMS), _cost(size)]
    return found


def _rate(size: int, form: str) -> Row:
    return Row(
        id=f"throughput/{label(size)}/{form}",
        suite="throughput",
        title=f"Python one way, {label(size)} bytes, {_FORMS[form]}",
        unit="M/s",
        better="higher",
        budget=_BUDGETS.get((size, form)),
        point=Point(f"rate against size, {_FORMS[form]}", "bytes", size),
    )


def _cost(size: int) -> Row:
    return Row(
        id=f"throughput/{label(size)}/cost",
        suite="throughput",
        title=f"processor time of both sides, {label(size)} bytes, one call per message",
        unit="ns",
        better="lower",
        point=Point("cost against message size: processor time of both sides", "bytes", size),
    )


def _other(codec: str, what: str) -> Row:
    title = f"Python one way, {what}, one call per message"
    return Row(f"throughput/{codec}/one", "throughput", title, "M/s", "higher")


def _runner(harness: Harness, pair: Pair, form: str, size: int) -> Runner:
    timeout = harness.settings.timeout_s

    def run(count: int) -> Sample:
        seconds = one_way_seconds(pair, form, size, count, timeout)
        return Sample(count / seconds / 1e6, seconds, {_COST: cpu_ns(pair, timeout) / count})

    by_msgpack = form == "object" and "put_object" not in pair.calls[0]
    return Runner(
        name=pair.name,
        role=role(pair),
        run=run,
        verify=lambda: verify(pair, form, size, 10 * BATCH_MESSAGES, timeout),
        first=2 * BATCH_MESSAGES,
        step=BATCH_MESSAGES if form == "many" else 1,
        note="msgpack by msgspec around its bytes" if by_msgpack else "",
    )


def _as_cost(result: Result) -> Result:
    """What the same runs cost."""
    return Result(
        name=result.name,
        role=result.role,
        samples=list(result.extras.get(_COST, [])),
        verified=result.verified,
        failed=result.failed,
        note=result.note,
    )


def _measure(harness: Harness, rows: list[Row], pairs: list[Pair]) -> None:
    for row in rows:
        _, what, form = row.id.split("/")
        if form == "cost":
            measured = next(one for one in harness.report.rows if one.id == f"throughput/{what}/one")
            row.results = [_as_cost(result) for result in measured.results]
            harness.report.rows.append(row)
            continue
        form = what if what in ("array", "object") else form
        size = _size(row)
        harness.measure(row, [_runner(harness, pair, form, size) for pair in pairs if has(pair, form)])


def _size(row: Row) -> int:
    return _ARRAY_BYTES if row.point is None else int(row.point.at)


def run(harness: Harness, rows: list[Row]) -> None:
    """Two groups: a transport that reserves room for long messages should not drag short ones through it."""
    small = [row for row in rows if _size(row) <= _SMALL_BYTES]
    groups = [(small, 1024), ([row for row in rows if row not in small], 256)]
    for group, in_flight in groups:
        within = [row for row in group if _size(row) <= harness.settings.max_bytes]
        if within:
            largest = max(_OBJECT_BYTES, *map(_size, within))
            with harness.pairs(largest, in_flight=in_flight) as pairs:
                _measure(harness, within, pairs)
        for row in group:
            if row not in within:
                harness.skip(row, "larger than --max-mib")
