"""The benchmark's served requests: every transport answers rightly, and times count from when one was due."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from bench import services
from bench.endpoint import Spec
from bench.harness import Harness, Settings
from bench.model import Report, Result, Row
from bench.pair import Pair
from bench.suites import rpc

REQUESTS = 7
RATE = 200.0
STREAM = ["service_front", "service_schedule", "service_work"]
CALL = ["service_ask", "service_answer"]


def by_name(module: ModuleType) -> str:
    return str(module.NAME)


async def right(prompt: bytes) -> AsyncIterator[Any]:
    for token in services.tokens(prompt):
        yield token


def times_of(stream: Any, count: int = 3) -> services.Times:
    return asyncio.run(services.stream_on_schedule(stream, count, RATE))


@pytest.mark.parametrize("parts", [STREAM, CALL], ids=["stream", "call"])
@pytest.mark.parametrize("transport", rpc.AMONG, ids=by_name)
def test_every_transport_answers(transport: ModuleType, parts: list[str], tmp_path: Path) -> None:
    if reason := transport.missing():
        pytest.skip(f"{transport.NAME}: {reason}")
    spec = Spec(services.PROMPT_BYTES, 64, True, str(tmp_path), writers=len(parts) - 1)
    asks, *others = parts
    with Pair(transport, spec, [-1] * len(parts)) as pair:
        for _ in range(2):  # what was opened is kept
            jobs: list[Any] = [(asks, {"count": REQUESTS, "rate": RATE})]
            jobs += [(part, {"count": REQUESTS}) for part in others]
            (times, *_), _ = pair.run_sides(jobs[:-1], jobs[-1:], 60.0)
            assert len(times) == REQUESTS
            assert all(0 < first <= whole for first, whole in times)


@pytest.mark.parametrize(
    "wrong",
    [lambda tokens: tokens[:-1], lambda tokens: tokens[::-1], lambda tokens: [*tokens, tokens[0]]],
    ids=["lost", "order", "twice"],
)
def test_a_wrong_answer_is_found(wrong: Any) -> None:
    async def stream(prompt: bytes) -> AsyncIterator[Any]:
        for token in wrong(services.tokens(prompt)):
            yield token

    with pytest.raises(ValueError, match="the answer was"):
        times_of(stream)
    with pytest.raises(ValueError, match="the answer was"):
        services.call_on_schedule(lambda prompt: prompt[1:], 2, RATE)
    times_of(right)
    services.call_on_schedule(lambda prompt: prompt, 2, RATE)


def test_the_answers_of_two_requests_differ() -> None:
    async def stream(prompt: bytes) -> AsyncIterator[Any]:
        for token in services.tokens(bytes(services.PROMPT_BYTES)):
            yield token

    with pytest.raises(ValueError, match="the answer was"):
        times_of(stream)


def test_who_asks_late_counts_from_when_it_was_due() -> None:
    """The first request holds the others up; they were due 5 ms apart."""
    stalled_s = 0.1
    began: list[bytes] = []

    async def stream(prompt: bytes) -> AsyncIterator[Any]:
        began.append(prompt)
        if len(began) == 1:
            await asyncio.sleep(stalled_s)
        async for token in right(prompt):
            yield token

    times = times_of(stream)
    for number, (first, whole) in enumerate(times):
        assert (stalled_s - number / RATE) * 1e9 <= first <= whole


def derived(extras: dict[str, list[float]]) -> list[Row]:
    """The rows without runs of their own, of runs that gave these."""
    settings = Settings(1, 0.1, 1 << 20, frozenset(), (-1, -1))
    harness = Harness(settings, Report({}, {}), Path(), lambda text: None)
    run, others = [], []
    for row in rpc.rows(settings):
        (run if row.id in ("rpc/call/p50", "rpc/stream/p50") else others).append(row)
    for row in run:
        row.results = [
            Result("shmq", "shmq", [5.0], extras, verified=True),
            Result("gone", "rival", failed="it went away"),
        ]
    harness.report.rows += run
    rpc.run(harness, others)
    return harness.report.rows[len(run) :]


def test_rows_without_runs_of_their_own() -> None:
    rows = derived({"p99": [7.0], "first p50": [3.0], "first p99": [4.0]})
    assert {row.id: row.results[0].samples for row in rows} == {
        "rpc/call/p99": [7.0],
        "rpc/stream/p99": [7.0],
        "rpc/first/p50": [3.0],
        "rpc/first/p99": [4.0],
    }
    assert all(row.results[1].failed and row.skipped is None for row in rows)


def test_too_few_requests_for_a_p99() -> None:
    skipped = {row.id for row in derived({"first p50": [3.0]}) if row.skipped and "--seconds" in row.skipped}
    assert skipped == {"rpc/call/p99", "rpc/stream/p99", "rpc/first/p99"}
