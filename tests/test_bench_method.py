"""The arithmetic behind the benchmark's figures, without a process and without a clock of its own."""

from __future__ import annotations

import argparse
import json
from collections import deque
from collections.abc import Callable
from typing import Any

import pytest

from bench import jobs, latencies, options, schedule, shared, suites, work
from bench.endpoint import Endpoint
from bench.harness import Harness, Runner, Sample, Settings
from bench.latencies import Latencies
from bench.model import Point, Report, Row
from bench.pair import PairFailed
from bench.suites import mpmc, open_loop, wait

GAP_NS = 100_000
RATE = 1e9 / GAP_NS
CALL_NS = 1_000
STALL_AT_NS, STALL_NS = 30 * GAP_NS, 50 * GAP_NS
COUNT = 200

needs_histogram = pytest.mark.skipif(
    latencies.missing() is not None, reason="hdrhistogram is not installed (pip install hdrhistogram)"
)


class Clock:
    """Time passes only when somebody works, waits or looks."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1_000_000_000
        monkeypatch.setattr(schedule, "clock", self.read)
        monkeypatch.setattr(schedule.os, "sched_yield", lambda: self.work(CALL_NS // 2))

    def read(self) -> int:
        self.now += 10
        return self.now

    def work(self, ns: int) -> None:
        self.now += ns


class Stalling:
    """A peer that stands still once, for `STALL_NS`, from `STALL_AT_NS` after the first message on."""

    def __init__(self, clock: Clock, room: int) -> None:
        self.clock, self.room = clock, room
        self.waiting: deque[bytes] = deque()
        self.sent: list[int] = []
        self.arrived: list[tuple[int, bytes]] = []

    def at_work(self, when: int) -> int:
        stands = self.sent[0] + STALL_AT_NS
        return stands + STALL_NS if stands <= when < stands + STALL_NS else when

    def put(self, data: bytes) -> None:
        """Waits where the peer stands still and `room` messages lie there."""
        self.sent.append(self.clock.now)
        if len(self.waiting) == self.room:
            self.clock.now = self.at_work(self.clock.now)
        self.clock.work(CALL_NS)
        self.waiting.append(data)
        if self.at_work(self.clock.now) == self.clock.now:
            self.drain(self.clock.now)

    def drain(self, when: int) -> None:
        while self.waiting:
            when += CALL_NS
            self.arrived.append((when, self.waiting.popleft()))

    def answer(self) -> bytes:
        self.clock.now = self.at_work(self.clock.now)
        self.clock.work(CALL_NS)
        return self.waiting.popleft() if self.waiting else self.arrived.pop()[1]


def late(ns: list[int]) -> int:
    """How many messages took longer than two gaps."""
    return sum(one > 2 * GAP_NS for one in ns)


def test_a_stall_shows_in_every_message_that_was_due_meanwhile(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    peer = Stalling(clock, room=4)
    schedule.send_on_schedule(Endpoint(put=peer.put), COUNT, 64, RATE)
    peer.drain(clock.now)
    came = iter(peer.arrived)

    def get() -> bytes:
        clock.now, data = next(came)
        return data

    ns, took_ns = schedule.receive_on_schedule(Endpoint(get=get), COUNT, spin=False)
    due_in_the_stall = STALL_NS // GAP_NS
    assert late(ns) >= due_in_the_stall - 2
    assert max(ns) >= STALL_NS - GAP_NS
    assert took_ns >= (COUNT - 1) * GAP_NS
    # From when each was sent, the same run hides the stall from all but those that lay in the queue.
    from_sent = [at - sent for (at, _), sent in zip(peer.arrived, peer.sent, strict=True)]
    assert late(from_sent) <= peer.room + 1


def test_a_stall_of_who_answers_shows_in_every_question(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    peer = Stalling(clock, room=4)
    asked: list[int] = []

    def put(data: bytes) -> None:
        asked.append(clock.now)
        peer.put(data)

    answered: list[int] = []

    def get() -> bytes:
        data = peer.answer()
        answered.append(clock.now)
        return data

    ns, _ = schedule.ask_on_schedule(Endpoint(put=put, get=get), COUNT, 64, RATE, spin=False)
    assert late(ns) >= STALL_NS // GAP_NS - 2
    # A closed loop would count from when it asked: one slow answer among all of them.
    assert late([b - a for a, b in zip(asked, answered, strict=True)]) == 1


def test_who_is_late_sends_the_next_at_once_and_catches_up(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    peer = Stalling(clock, room=4)
    schedule.send_on_schedule(Endpoint(put=peer.put), COUNT, 64, RATE)
    start = peer.sent[0]
    assert len(peer.sent) == COUNT
    assert peer.sent[-1] - start == pytest.approx((COUNT - 1) * GAP_NS, abs=GAP_NS)
    gaps = [b - a for a, b in zip(peer.sent, peer.sent[1:], strict=False)]
    assert min(gaps) < GAP_NS / 10, "after the stall"


def test_an_answer_to_another_question_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    end = Endpoint(put=lambda data: clock.work(CALL_NS), get=lambda: schedule.stamped(7, 64))
    with pytest.raises(ValueError, match="not the question's"):
        schedule.ask_on_schedule(end, 3, 64, RATE, spin=False)


def test_the_due_time_travels_in_the_payload() -> None:
    for size in (8, 64, 4096):
        data = schedule.stamped(123_456_789_012_345, size)
        assert len(data) == size
        assert schedule.stamp(data) == 123_456_789_012_345
    assert schedule.plan(1000, 4, 1e9 / 3) == [1000, 1003, 1006, 1009]


def test_power_is_throughput_by_latency() -> None:
    assert latencies.power(10_000, 5_000) == pytest.approx(2e9)  # 10,000/s by 5 us
    assert latencies.power(10_000, 10_000) == pytest.approx(1e9)


@needs_histogram
def test_latencies_of_several_runs_add_up() -> None:
    both = Latencies(range(1000, 2000))
    both.add(Latencies(range(2000, 3001)))
    assert len(both) == 2001
    assert both.mean == pytest.approx(2000)
    assert both.at(50) == pytest.approx(2000, rel=2e-3)
    assert both.max == pytest.approx(3000, rel=2e-3)
    extras = both.extras(1e3)
    assert list(extras) == ["p90", "p99", "p99.9", "max", "mean"]
    assert extras["p90"] == pytest.approx(2.8, rel=2e-3)
    found = both.distribution(1e3)
    assert [p for p, _ in found] == sorted(p for p, _ in found)
    assert [v for _, v in found] == sorted(v for _, v in found)
    assert found[-1] == (100.0, pytest.approx(3.0, rel=2e-3))


@needs_histogram
def test_a_quantile_that_no_message_lies_beyond_is_not_given() -> None:
    few = Latencies(range(1, 51))
    assert list(few.extras(1.0)) == ["p90", "max", "mean"]
    assert max(p for p, _ in few.distribution(1.0) if p < 100) < 99
    assert "p99.9" in Latencies(range(1000)).extras(1.0)
    assert "p99.9" not in Latencies(range(999)).extras(1.0)


@needs_histogram
@pytest.mark.parametrize(
    ("ns", "took_gaps", "says"),
    [
        ([5_000] * COUNT, COUNT - 1, False),
        ([5_000 + i * GAP_NS for i in range(COUNT)], 2 * COUNT, True),
        ([5_000] * (COUNT - 1) + [COUNT * GAP_NS], 2 * COUNT, False),  # one hiccup, at the end
    ],
)
def test_who_cannot_keep_up_is_told(ns: list[int], took_gaps: int, says: bool) -> None:
    sample = open_loop.summary(int(RATE), ns, took_gaps * GAP_NS)
    carried = sample.extras["carried [1/s]"]
    assert carried == pytest.approx(RATE * (COUNT - 1) / took_gaps)
    assert sample.extras["power [M/s^2]"] == pytest.approx(carried / (sum(ns) / COUNT / 1e9) / 1e6)
    assert ("cannot keep up" in sample.note) is says


def harness(tmp_path: Any, **settings: Any) -> Harness:
    made = Settings(2, 0.001, 1 << 20, frozenset(), (-1, -1), **settings)
    return Harness(made, Report({}, {}), tmp_path, lambda text: None)


@needs_histogram
def test_the_distribution_of_all_repetitions_is_in_the_json(tmp_path: Any) -> None:
    runs = iter([[10_000], [1_000] * 100, [3_000] * 100])  # the first warms up and is thrown away
    notes = iter(["slow", "slow", "slow"])

    def run(count: int) -> Sample:
        ns = next(runs)
        return Sample(ns[0] / 1e3, 0.001, latencies=Latencies(ns), note=next(notes))

    made = harness(tmp_path)
    row = Row("s/r", "s", "a row", "us", "lower", point=Point("a plot", "bytes", 64))
    made.measure(row, [Runner("shmq", "shmq", run, count=1, note="polls")])
    written = json.loads(json.dumps(made.report.as_json()))["rows"][0]
    assert written["point"] == {"plot": "a plot", "axis": "bytes", "at": 64}
    result = written["results"][0]
    assert result["note"] == "polls, slow"
    points = dict(map(tuple, result["distribution"]))
    assert points[0.0] == pytest.approx(1.0, rel=2e-3)
    assert points[100.0] == pytest.approx(3.0, rel=2e-3)


def test_without_the_histogram_the_rows_say_what_to_install(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(latencies.importlib.util, "find_spec", lambda name: None)
    made = harness(tmp_path, loads=(1000,))
    open_loop.run(made, [], open_loop.rows(made.settings))
    assert [row.id for row in made.report.rows] == ["latency/oneway/1k", "latency/roundtrip/1k"]
    assert all("pip install hdrhistogram" in (row.skipped or "") for row in made.report.rows)


def test_rows_of_one_plot_have_one_unit_and_one_axis(tmp_path: Any) -> None:
    plots: dict[str, set[tuple[str, str]]] = {}
    places: set[tuple[str, float]] = set()
    for suite in suites.ALL.values():
        for row in suite.rows(harness(tmp_path).settings):
            if row.point is not None:
                plots.setdefault(row.point.plot, set()).add((row.unit, row.point.axis))
                where = (row.point.plot, row.point.at)
                assert where not in places or row.suite == "floors", where  # memcpy and TCP share theirs
                places.add(where)
    assert {plot: kinds for plot, kinds in plots.items() if len(kinds) > 1} == {}
    for wanted in ("rate against size", "GB/s against size", "cost against message size", "scaling with"):
        assert any(plot.startswith(wanted) for plot in plots), wanted


def test_a_count_that_was_asked_for_is_the_count(tmp_path: Any) -> None:
    counts = []

    def run(count: int) -> Sample:
        counts.append(count)
        return Sample(1.0, 0.001)

    row = Row("s/r", "s", "a row", "us", "lower")
    harness(tmp_path, count=1000).measure(row, [Runner("shmq", "shmq", run, step=64)])
    assert counts == [960] * 3


def test_what_a_message_cost_at_a_low_rate() -> None:
    sample = wait._cost(50_000_000, 1000)  # 50 ms of processor time for the 1,000 messages of one second
    assert sample.value == pytest.approx(50)
    assert sample.extras["share of a core [%]"] == pytest.approx(5)


class Crowd:
    """Two producers of three messages, two consumers, and what these say they got."""

    name, writers, readers = "crowd", 2, 2

    def __init__(self, *found: list[int]) -> None:
        self.found = list(found)

    def run_sides(self, jobs_a: list[Any], jobs_b: list[Any], timeout: float) -> Any:
        assert [arguments["writer"] for _, arguments in jobs_a] == [0, 1]
        assert [arguments["reader"] for _, arguments in jobs_b] == [0, 1]
        assert all(arguments["total"] == 6 for _, arguments in jobs_a)
        return [None, None], self.found


FIRST, SECOND = ([shared.number_of(writer, i) for i in range(3)] for writer in range(2))


@pytest.mark.parametrize(
    ("found", "says"),
    [
        ((FIRST, SECOND), None),
        ((FIRST + SECOND, []), None),
        ((SECOND[:1] + FIRST[:2], FIRST[2:] + SECOND[1:]), None),
        ((FIRST[1:], SECOND), "1 did not come"),
        ((FIRST, SECOND + FIRST[:1]), "1 came more than once"),
        ((FIRST, [*SECOND[1:], -1]), "1 did not come as sent, 0 came more than once, 1 came that nobody"),
        ((FIRST, [*SECOND, shared.number_of(0, 3)]), "1 came that nobody sent"),
    ],
)
def test_the_ledger_of_a_crowd(tmp_path: Any, found: Any, says: str | None) -> None:
    pair: Any = Crowd(*found)
    if says is None:
        work.verify_shared(pair, 64, 3, tmp_path / "progress", 1.0)
    else:
        with pytest.raises(PairFailed, match=says):
            work.verify_shared(pair, 64, 3, tmp_path / "progress", 1.0)


def test_each_consumer_gets_its_last_message_when_all_have_arrived(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The consumers are behind: they take what lies there only while the producer waits."""
    progress = tmp_path / "progress"
    progress.write_bytes(bytes(2 * jobs.PROGRESS_BYTES))
    queue: deque[bytes] = deque()
    counts = jobs.progress_of(str(progress))
    kept = []

    def others_run(seconds: float) -> None:
        kept.append(queue.popleft())
        counts[len(kept) % 2] += 1

    monkeypatch.setattr(shared.time, "sleep", others_run)
    end = Endpoint(put=queue.append, get=queue.popleft)
    shared.check_send_shared(end, 4, 64, 0, str(progress), total=4, readers=2)
    assert len(queue) == 2, "nothing but the two last ones is left"
    assert [int.from_bytes(data[:8], "little") for data in kept] == list(range(4))
    for reader in range(2):
        assert shared.check_receive_shared(end, 64, reader, str(progress)) == []
    assert not queue


def test_producers_and_consumers_are_spread_from_opposite_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    cores = {(0, 1): [0, 1], (0, 2): [0, 2, 1, 3]}
    monkeypatch.setattr(mpmc.machine, "cores_for", lambda pair, _: cores[pair])
    assert mpmc.cores_of((0, 1), 2, 2) == (0, 1, 1, 0)
    assert mpmc.cores_of((0, 1), 1, 4) == (0, 1, 0, 1, 0)
    assert mpmc.cores_of((0, 2), 2, 2) == (0, 2, 3, 1)
    assert mpmc.cores_of((-1, -1), 2, 1) == (-1, -1, -1)


def test_the_sweep_of_producers_and_consumers(tmp_path: Any) -> None:
    settings = harness(tmp_path, producers=(2,), consumers=(1, 3)).settings
    assert mpmc.sweep(settings) == [(2, 1), (2, 3)]
    assert (4, 4) in mpmc.sweep(harness(tmp_path).settings)


@pytest.mark.parametrize(
    ("parse", "text", "value"),
    [
        (options.sizes, "1MiB, 64,4KiB", (64, 4096, 1 << 20)),
        (options.sizes, "8B", (8,)),
        (options.wholes(1, 16), "4,1,4", (1, 4)),
        (options.whole(1, 16), "16", 16),
        (options.seconds, "0.5", 0.5),
        (options.some_of("spin", "park"), "park,spin", ("spin", "park")),
        (options.names(frozenset({"a b", "c"})), "a b", frozenset({"a b"})),
        (options.names(frozenset({"c"})), "", frozenset()),
    ],
)
def test_what_the_command_line_accepts(parse: Callable[[str], Any], text: str, value: Any) -> None:
    assert parse(text) == value


@pytest.mark.parametrize(
    ("parse", "text", "says"),
    [
        (options.sizes, "0", "not empty"),
        (options.sizes, "12", "multiple of 8"),
        (options.sizes, "4KB", "no size"),
        (options.sizes, "-8", "no size"),
        (options.sizes, ",", "no size is given"),
        (options.whole(1, 16), "0", "not between 1 and 16"),
        (options.whole(1, 16), "x", "no whole number"),
        (options.wholes(1, 16), "1,17", "not between 1 and 16"),
        (options.seconds, "nan", "0.001 to 60"),
        (options.seconds, "-1", "0.001 to 60"),
        (options.seconds, "soon", "no number"),
        (options.some_of("spin", "park"), "sleep", "none of spin, park"),
        (options.names(frozenset({"mp.Pipe"})), "mp.pipe", "mp.Pipe"),
    ],
)
def test_what_makes_no_sense_is_refused_with_a_reason(
    parse: Callable[[str], Any], text: str, says: str
) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match=says):
        parse(text)


@pytest.mark.parametrize("size", [8, 64, 4096, 1536, 1 << 20, 3 << 20, 1 << 30])
def test_a_size_is_read_as_it_is_written(size: int) -> None:
    assert options.sizes(options.label(size)) == (size,)
