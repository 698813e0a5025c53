"""The benchmark runs from end to end at tiny sizes and judges as it says. No speed is asserted."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import types
from pathlib import Path
from typing import Any

import pytest

from bench import __main__ as program
from bench import machine, suites, work
from bench.model import Budget, Report, Result, Row
from bench.pair import PairFailed

ROOT = Path(__file__).resolve().parent.parent
TINY = (
    *("--repetitions", "2", "--seconds", "0.002", "--max-mib", "1", "--rivals", "mp.Queue"),
    *("--loads", "2000", "--sizes", "4KiB"),
    *("--producers", "2", "--consumers", "2", "--readers", "2"),
)


def bench(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "bench", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )


def row(better: Any, budget: Budget, ours: list[float], floor: list[float]) -> Row:
    made = Row("suite/row", "suite", "a row", "us", better, budget)
    made.results = [
        Result("floor", "floor", floor, verified=True),
        Result("shmq", "shmq", ours, verified=True),
        Result("slow", "rival", [10 * value for value in ours], verified=True),
        Result("gone", "rival", failed="it went away"),
    ]
    return made


@pytest.mark.timeout(300)
def test_every_row_is_produced_and_the_json_parses(tmp_path: Path) -> None:
    planned = bench(*TINY, "--list").stdout.split()
    done = bench(*TINY, "--json", str(tmp_path / "result.json"))
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "result.json").read_text())
    rows = {one["id"]: one for one in result["rows"]}
    assert list(rows) == planned
    assert result["schema"] == 2
    assert "shmq" not in result["absent"]
    for name, one in rows.items():
        assert name in done.stdout
        if one["skipped"] is not None:
            assert any(word in one["skipped"] for word in ("--max-mib", "hdrhistogram", "--seconds"))
            continue
        for contestant in one["results"]:
            assert contestant["failed"] is None, (name, contestant)
            assert contestant["verified"]
            assert len(contestant["samples"]) == 2
        if name.startswith("fanout/1MiB/") and not name.endswith("/1"):
            assert "shmq, one subscriber" in [contestant["name"] for contestant in one["results"]], name
        if not name.startswith("floors/"):
            assert "shmq" in [contestant["name"] for contestant in one["results"]], name


@pytest.mark.timeout(120)
def test_a_run_that_is_ended_leaves_nothing(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "bench", "--suite", "latency", "--rivals", ""]
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    with subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True) as running:
        ours = f"shmq.*-{running.pid}-*"
        while running.poll() is None and not list(tmp_path.glob("bench-*/floors")):
            time.sleep(0.01)  # until then: the queues are being made
        assert list(Path("/dev/shm").glob(ours))
        running.terminate()
        said = running.communicate(timeout=60)[1]
    assert running.returncode == 130, said
    assert "interrupted" in said
    assert list(Path("/dev/shm").glob(ours)) == []
    assert list(tmp_path.glob("bench-*")) == []


def test_what_was_measured_before_an_interruption_is_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def ended(harness: Any, rows: list[Row]) -> None:
        rows[0].results = [Result("shmq", "shmq", [1.0])]  # one repetition of two
        harness.report.rows.append(rows[0])
        raise KeyboardInterrupt

    real = suites.ALL["local"]
    second = types.SimpleNamespace(rows=real.rows, run=ended)
    monkeypatch.setattr(suites, "ALL", {"local": real, "second": second})
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    file = tmp_path / "result.json"
    assert program.main(["--repetitions", "2", "--seconds", "0.002", "--json", str(file)]) == 130
    said = capsys.readouterr()
    assert "interrupted: 3 rows are missing" in said.out
    assert said.err.endswith("interrupted\n")
    written = json.loads(file.read_text())
    assert [row["id"] for row in written["rows"]] == ["local/bytes64", "local/array4k", "local/step"]
    assert all(row["results"] for row in written["rows"])


def test_the_publisher_has_a_core_for_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    place = {0: ("0", "0"), 1: ("0", "1"), 2: ("0", "2"), 3: ("0", "0")}  # 3: the other thread of core 0
    monkeypatch.setattr(machine, "_core_place", place.__getitem__)
    monkeypatch.setattr(machine.os, "sched_getaffinity", lambda _: {0, 1, 2, 3})
    assert machine.cores_for((0, 2), 1) == (0, 2)
    assert machine.cores_for((0, 2), 4) == (0, 2, 1, 2, 1)
    assert machine.cores_for((-1, -1), 2) == (-1, -1, -1)


@pytest.mark.parametrize(("found", "lost"), [([5, 5, 5], 0), ([5, 4, 5], 1), ([5, 5, 0], 5)])
def test_what_one_of_many_got_wrong_is_found(found: list[int], lost: int) -> None:
    class Crowd:
        name, readers = "crowd", 3

        def run_all(self, job_a: Any, jobs_b: list[Any], timeout: float) -> Any:
            assert len(jobs_b) == self.readers
            return None, found

    pair: Any = Crowd()
    if lost == 0:
        work.verify(pair, "one", 64, 5, 1.0)
    else:
        with pytest.raises(PairFailed, match=f"{lost} of 5"):
            work.verify(pair, "one", 64, 5, 1.0)


def test_ratios_are_taken_repetition_by_repetition() -> None:
    budget = Budget("<= 1.5 x floor", 1.5, "floor")
    made = row("lower", budget, ours=[2.0, 40.0, 2.2], floor=[2.0, 30.0, 2.0])
    ratio = made.ratio(made.floor)
    assert ratio is not None
    assert ratio.low == 1.0
    assert ratio.high == pytest.approx(4 / 3)
    assert ratio.median == pytest.approx(1.1)
    verdict = made.verdict()
    assert verdict is not None
    assert verdict.reached
    assert verdict.certain


def test_a_budget_that_some_repetitions_miss_is_not_certain() -> None:
    made = row("higher", Budget(">= 50", 50.0, "value"), ours=[40.0, 60.0, 61.0], floor=[1.0] * 3)
    verdict = made.verdict()
    assert verdict is not None
    assert verdict.reached
    assert not verdict.certain


def test_the_best_rival_is_the_best_of_those_that_ran() -> None:
    lower = row("lower", Budget("", 1.0, "best rival"), ours=[1.0], floor=[1.0])
    assert lower.best_rival is not None
    assert lower.best_rival.name == "slow"


def test_a_budget_against_an_absent_rival_is_left_open() -> None:
    made = row("lower", Budget("<= 0.8 x other", 0.8, "other"), ours=[1.0], floor=[1.0])
    verdict = made.verdict()
    assert verdict is not None
    assert verdict.reached is None
    assert made.verdict() is not None
    assert json.dumps(Report({}, {}, rows=[made]).as_json())
