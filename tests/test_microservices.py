"""The microservices example: every request returns once, the figures are right, a death is named."""

from __future__ import annotations

import functools
import json
import os
import re
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # examples is a package of the checkout, and not installed as such

from examples import microservices, queueing  # noqa: E402

HOPS = ["gateway -> service 1", "service 1 -> service 2", "service 2 -> service 3", "service 3 -> collector"]
MS = 1_000_000

Start = Callable[..., Any]


@pytest.fixture
def start(start_example: Start) -> Start:
    return functools.partial(start_example, "microservices")


# ---- for real ----


def test_quick_run_returns_every_request_and_keeps_littles_law(start: Start) -> None:
    example = start("--quick", "--json")
    status, output, errors = example.finish()
    assert status == 0, errors
    result = json.loads(output)
    assert result["faults"] == []  # each came once, with its stamps in order: see the controls below
    assert [row["offered_per_s"] for row in result["loads"]] == [200, 600, 1000]
    assert [row["requests"] for row in result["loads"]] == [100, 300, 500]
    for row in result["loads"]:
        law = row["little"]
        assert abs(law["difference_percent"]) <= law["cut_percent"] + 0.01
        latency = row["latency_ms"]
        assert microservices.SERVICES <= latency["p50"] <= latency["p99"] <= latency["max"]
        assert row["service_ms"] >= 1
        assert row["power_per_s2"] == pytest.approx(row["done_per_s"] / latency["mean"] * 1e3)
    best = max(result["loads"], key=lambda row: row["power_per_s2"])
    assert result["best_load_per_s"] == best["offered_per_s"]
    assert best["power_of_highest"] == 1
    assert result["little_holds"] is True
    assert list(result["transport_us"]) == HOPS
    for hop in result["transport_us"].values():
        assert 0 < hop["p50"] <= hop["p99"]
    assert not example.names_left()


def test_several_workers_share_a_service_and_a_pipe_gets_plain_text(start: Start) -> None:
    example = start("--workers-per-stage=2", "--loads=100", "--seconds=0.2", "--arrivals=even", "--work=cpu")
    status, output, errors = example.finish()
    assert status == 0, errors
    for text in ("Power = throughput / latency", "1/s²", "Little's law", "lambda W", "Transport", *HOPS):
        assert text in output
    assert "Rule of thumb: one for each worker, 6." in output
    assert "\x1b" not in output
    assert "\n\n\n" not in output
    assert len(re.findall(r"^service \d\.\d: pid \d+$", errors, flags=re.MULTILINE)) == 6
    assert not example.names_left()


def pids_at_work(example: Any) -> dict[str, int]:
    """Of its processes, by name, when all have started and the segments have no names any more."""
    pids: dict[str, int] = {}
    for line in example.process.stderr:
        name, pid = re.fullmatch(r"([\w ]+): pid (\d+)\n", line).groups()
        pids[name] = int(pid)
        if name == "collector":
            return pids
    pytest.fail(f"the example ended by itself with status {example.process.wait()}")


def test_killed_service_is_named_and_nothing_hangs(start: Start, poll: Callable[..., Any]) -> None:
    example = start("--seconds", "600")
    pids = pids_at_work(example)
    poll(lambda: not example.names_left())  # so all are attached, and work
    os.kill(pids["service 2"], signal.SIGKILL)
    status, output, errors = example.finish()
    assert status == 1, errors
    assert errors == f"microservices: service 2 (pid {pids['service 2']}) died: SIGKILL; stopped the others\n"
    assert output == ""
    assert not any(Path(f"/proc/{pid}").exists() for pid in pids.values())


def test_interrupt_ends_it_at_once_and_leaves_nothing(start: Start) -> None:
    example = start("--seconds", "600")
    pids = pids_at_work(example)
    os.killpg(example.process.pid, signal.SIGINT)  # as a terminal's Ctrl-C: to all of them
    status, output, errors = example.finish()
    assert (status, output) == (130, "")
    # The line that the signal came into may be there again.
    assert re.fullmatch(r"(collector: pid \d+\n)?microservices: interrupted\n", errors)
    assert not any(Path(f"/proc/{pid}").exists() for pid in pids.values())
    assert not example.names_left()


@pytest.mark.parametrize(
    "arguments",
    [["--workers-per-stage=0"], ["--workers-per-stage=17"], ["--loads=5"], ["--loads=x"], ["--seconds=-1"]],
)
def test_impossible_arguments_are_refused(arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as refusal:
        microservices.main(arguments)
    assert refusal.value.code == 2


# ---- what is computed ----


def pipeline(load_per_s: float, arrivals: str = "poisson", seconds: float = 20.0) -> queueing.Trace:
    """What three services of 1 ms would report, if a hop took 0.01 ms."""
    plan_ns = queueing.arrivals_ns(load_per_s, seconds, arrivals, seed=1) + 10**15
    hop_ns, numbers, stamps_ns = MS // 100, np.arange(len(plan_ns)), []
    put_ns = plan_ns
    for _ in microservices.STAGES[1:]:
        # A stage gets a request a hop after it was put, or after it has done the one before.
        turns_ns = (MS + hop_ns) * numbers
        got_ns = np.maximum.accumulate(put_ns - turns_ns) + turns_ns + hop_ns
        asked_ns = np.append(0, got_ns[:-1] + MS)
        stamps_ns.append(np.stack([put_ns, asked_ns, got_ns], axis=1))
        put_ns = got_ns + MS
    return queueing.Trace(plan_ns, numbers, plan_ns.copy(), np.stack(stamps_ns, axis=1))


def test_highest_power_is_where_theory_has_it() -> None:
    loads = [100.0 * n for n in range(1, 10)]
    rows = [queueing.figures(pipeline(load), 1) for load in loads]
    best = max(range(9), key=lambda i: rows[i]["power_per_s2"])
    assert loads[best] == 700
    assert queueing.best_busy(3, "poisson") == pytest.approx(0.71, abs=0.005)
    assert rows[best]["busy"] == pytest.approx(0.7, abs=0.03)
    assert rows[best]["little"]["inside"] == pytest.approx(3, rel=0.1)  # one for each service
    for row in rows:
        assert row["done_per_s"] == pytest.approx(row["arrived_per_s"], rel=0.02)
        assert row["service_ms"] == pytest.approx(1)
    assert rows[0]["latency_ms"]["p50"] == pytest.approx(3.04)


def test_even_arrivals_never_wait_so_that_the_highest_load_is_best() -> None:
    rows = [queueing.figures(pipeline(load, "even", 2), 1) for load in (500.0, 900.0)]
    assert [row["latency_ms"]["max"] for row in rows] == pytest.approx([3.04, 3.04])
    assert rows[1]["power_per_s2"] > rows[0]["power_per_s2"]
    assert queueing.best_busy(3, "even") == 1


def test_formula_of_the_best_load_is_a_maximum() -> None:
    for services in (1, 3, 10):
        busy = np.linspace(0.01, 0.99, 9801)
        power = busy / (services + busy / (2 - 2 * busy))
        assert queueing.best_busy(services, "poisson") == pytest.approx(busy[power.argmax()], abs=1e-3)


def test_time_average_of_two_stays() -> None:
    arrived, left = np.array([0, 20]), np.array([40, 30])  # one from 0 to 40, one from 20 to 30
    assert queueing.mean_inside(arrived, left, 0, 40) == pytest.approx((40 + 10) / 40)
    assert queueing.mean_inside(arrived, left, 10, 25) == pytest.approx((15 + 5) / 15)


def law_of(trace: queueing.Trace) -> dict[str, float]:
    return queueing.little(trace, int(trace.plan_ns[0]) + 200 * MS, int(trace.plan_ns[-1]))


def test_littles_law_holds_in_a_full_pipeline_too() -> None:
    steady, growing = law_of(pipeline(700, seconds=2)), law_of(pipeline(1500, seconds=2))
    assert queueing.holds(steady)
    assert steady["difference_percent"] == pytest.approx(0, abs=1)
    assert queueing.holds(growing)  # the queue grows all the time, and the cut stays say why it differs
    assert growing["difference_percent"] > 20


@pytest.mark.parametrize("change", ["a request is missing", "a stay is wrong", "another clock"])
def test_littles_law_sees_what_is_wrong(change: str) -> None:
    trace = pipeline(700, seconds=2)
    if change == "a request is missing":
        keep = trace.numbers != 700
        trace = queueing.Trace(trace.plan_ns, *(part[keep] for part in trace[1:]))
    elif change == "a stay is wrong":
        trace.due_ns[700] -= 100 * MS
    else:
        trace = trace._replace(due_ns=trace.due_ns + MS)
    assert not queueing.holds(law_of(trace))


def test_faults_are_seen() -> None:
    good = pipeline(500, seconds=0.1)
    assert queueing.faults(good) == []
    assert queueing.faults(good._replace(numbers=good.numbers[::-1])) == []  # any order will do
    assert queueing.faults(good._replace(numbers=good.numbers // 2))
    assert queueing.faults(good._replace(numbers=good.numbers + 1))
    for hop, stamp in [(0, queueing.PUT), (2, queueing.PUT), (1, queueing.GOT)]:
        stamps_ns = good.stamps_ns.copy()
        stamps_ns[7, hop, stamp] -= 5 * MS
        assert queueing.faults(good._replace(stamps_ns=stamps_ns)) == ["stamps are out of order"]


def test_transport_counts_from_when_both_are_there() -> None:
    stamps_ns = np.array([[[1000, 0, 5000]], [[3000, 7000, 8000]]])
    trace = queueing.Trace(np.zeros(2), np.arange(2), np.zeros(2), stamps_ns)
    took = queueing.transport_us([trace], 0)
    assert took["p50"] == pytest.approx((4 + 1) / 2)
    assert took["receiver_waits"]["p50"] == pytest.approx(4)


def test_a_fault_gives_exit_status_1(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Only the processes are replaced, by what their collector would report of a lost request."""
    good = pipeline(500, seconds=0.5)
    lost = queueing.Trace(good.plan_ns, *(part[1:] for part in good[1:]))

    def reports(trace: queueing.Trace) -> Any:
        yield trace

    monkeypatch.setattr(microservices, "run_job", lambda job, say: reports(good))
    assert microservices.main(["--loads=500"]) == 0
    monkeypatch.setattr(microservices, "run_job", lambda job, say: reports(lost))
    assert microservices.main(["--loads=500"]) == 1
    assert "1 requests were lost, 0 came twice" in capsys.readouterr().err
