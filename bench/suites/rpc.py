"""Request and reply: a call between two processes, and a stream of tokens through three, all asleep before.

Each row but the first of either kind has no run of its own: the same runs give every time. No process is
pinned: three of them share two cores. Each answer is compared with what it must be, when all times are taken.
"""

from __future__ import annotations

from dataclasses import replace

from .. import ours_rpc, services
from ..harness import Harness, Runner, Sample, Settings, tails
from ..jobs import quantiles
from ..model import Budget, Result, Row
from ..pair import Job, Pair
from ..rivals import mp_queue_rpc, pyzmq_rpc
from ..work import cpu_ns

AMONG = (ours_rpc, mp_queue_rpc, pyzmq_rpc)
_RATE = 200.0
_ASLEEP = f"{_RATE:.0f} requests/s, asleep between"
_KINDS = {
    "call": f"call and answer of {services.PROMPT_BYTES} B between two processes",
    "stream": f"front end, scheduler, worker and {services.TOKENS} tokens back",
    "first": "the same, until the first token is there",
}
_QUANTILES = ("p50", "p99")
_LEAST = 100
"""Requests in a run, for its p99."""


def rows(settings: Settings) -> list[Row]:
    return [
        Row(
            id=f"rpc/{kind}/{quantile}",
            suite="rpc",
            title=f"{what}, {_ASLEEP} ({quantile})",
            unit="us",
            better="lower",
            budget=Budget("ahead of the best rival", 1.0, "best rival"),
        )
        for kind, what in _KINDS.items()
        for quantile in _QUANTILES
    ]


def _runner(harness: Harness, pair: Pair, kind: str) -> Runner:
    asks, between, end = "service_front", ["service_schedule"], "service_work"
    if kind == "call":
        asks, between, end = "service_ask", [], "service_answer"
    timeout = harness.settings.timeout_s

    def ask(count: int) -> services.Times:
        sides: list[Job] = [(asks, {"count": count, "rate": _RATE})]
        sides += [(name, {"count": count}) for name in between]
        (times, *_), _ = pair.run_sides(sides, [(end, {"count": count})], timeout)
        return list(times)

    def run(count: int) -> Sample:
        first, whole = (quantiles(each) for each in zip(*ask(count), strict=True))
        extras = tails(whole, count, 1e3)
        if kind == "stream":
            extras["first p50"] = first["p50"] / 1e3
            extras |= {f"first {name}": value for name, value in tails(first, count, 1e3).items()}
        extras["processor time [us]"] = cpu_ns(pair, timeout) / count / 1e3
        return Sample(whole["p50"] / 1e3, count / _RATE, extras)

    return Runner(
        name=pair.name,
        role="shmq" if pair.name == ours_rpc.NAME else "rival",
        run=run,
        verify=lambda: list(ask(5)).clear(),  # each answer is compared, here and in the timed runs
        count=max(5, int(harness.settings.target_s * 12 * _RATE)),
    )


def _from_extra(result: Result, name: str) -> Result:
    """Another time of the same runs."""
    return replace(result, samples=list(result.extras.get(name, [])), extras={}, distribution=[])


def _fill(harness: Harness, row: Row, kind: str, extra: str) -> None:
    measured = next(one for one in harness.report.rows if one.id == f"rpc/{kind}/p50")
    row.results = [_from_extra(result, extra) for result in measured.results]
    if any(result.samples for result in row.results):
        harness.report.rows.append(row)
    else:
        harness.skip(row, f"fewer than {_LEAST} requests in a run: give it more --seconds")


def _measure(harness: Harness, row: Row, kind: str) -> None:
    writers = 2 if kind == "stream" else 1
    with harness.pairs(
        services.PROMPT_BYTES, in_flight=64, both_ways=True, among=AMONG,
        writers=writers, cores=[-1] * (writers + 1),
    ) as pairs:  # fmt: skip
        harness.measure(row, [_runner(harness, pair, kind) for pair in pairs])


def run(harness: Harness, rows: list[Row]) -> None:
    for row in rows:
        _, kind, quantile = row.id.split("/")
        if kind == "first":
            _fill(harness, row, "stream", f"first {quantile}")
        elif quantile == "p99":
            _fill(harness, row, kind, quantile)
        else:
            _measure(harness, row, kind)
