"""The tensor-parallel example: ends well, sees a wrong result, notices the death of a worker."""

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

from examples import tensor_parallel, transformer  # noqa: E402

WATCHDOG_S = 120.0
TRANSPORTS = ("shmq", "multiprocessing")

Start = Callable[..., Any]


@pytest.fixture
def start(start_example: Start) -> Start:
    return functools.partial(start_example, "tensor_parallel")


def test_quick_run_gives_equal_results_over_both_transports(start: Start) -> None:
    example = start("--quick", "--json")
    status, output, errors = example.finish(WATCHDOG_S)
    assert status == 0, errors
    report: dict[str, Any] = json.loads(output)
    assert report["equal"] is True
    assert 0 <= report["max_abs_diff"] < tensor_parallel.TOLERANCE * 100
    assert report["runs"] == list(TRANSPORTS)
    assert tuple(report["transports"]) == TRANSPORTS
    for row in report["transports"].values():
        assert 0 < row["transport_s"] < row["wall_s"]
        assert row["messages_per_s"] > 0
        assert row["gigabytes_per_s"] > 0
        for hop in ("partial", "hidden"):
            assert 0 < row[f"{hop}_us_p50"] <= row[f"{hop}_us_p99"]
    assert report["transports"]["shmq"]["partial_copies"] == 0
    assert report["transports"]["shmq"]["hidden_copies"] == 1
    assert report["transports"]["multiprocessing"]["partial_copies"] >= 5
    assert not example.names_left()


def test_table_is_for_people(start: Start) -> None:
    """Also that it runs as a module."""
    example = start("--quick", "--batches", "1", "--workers", "1", as_module=True)
    status, output, errors = example.finish(WATCHDOG_S)
    assert status == 0, errors
    for line in ("wall_s", "messages_per_s", "partial_us_p99", "copies of partial, shmq: none"):
        assert line in output
    assert "equal to the result of one process" in output


def run_until(example: Any, runs_done: int) -> dict[str, int]:
    """Reads its lines until so many runs are done; the pids of its processes by name."""
    pids: dict[str, int] = {}
    done = 0
    for line in example.process.stderr:
        if match := re.fullmatch(r"(\w+ ?\d*): pid (\d+)\n", line):
            pids[match[1]] = int(match[2])
        elif re.fullmatch(r"(shmq|multiprocessing): [\d.]+ s\n", line):
            done += 1
        if len(pids) == 4 and done == runs_done:
            return pids
    pytest.fail(f"the example ended by itself with status {example.process.wait()}")


@pytest.mark.parametrize(
    ("victim", "runs_done"),
    [("worker 1", 0), ("worker 1", 1), ("worker 0", 2), ("collector", 2)],
    ids=["at-start", "over-pipes", "over-shmq", "collector"],
)
def test_killed_process_is_named_and_nothing_hangs(start: Start, victim: str, runs_done: int) -> None:
    example = start("--batches", "8")
    pids = run_until(example, runs_done)
    os.kill(pids[victim], signal.SIGKILL)
    status, output, errors = example.finish(WATCHDOG_S)
    assert status == 1, errors
    assert f"{victim} (pid {pids[victim]}) died: SIGKILL; stopped the others\n" in errors
    assert output == ""
    for pid in pids.values():
        assert not Path(f"/proc/{pid}").exists()
    assert not example.names_left()


def test_killed_parent_leaves_no_processes_and_no_names(start: Start) -> None:
    example = start("--batches", "8")
    run_until(example, runs_done=2)
    example.process.kill()
    example.finish(WATCHDOG_S)  # returns when nobody holds the other end of its stderr: all have ended
    assert not example.names_left()


@pytest.mark.parametrize("arguments", [("--workers", "3"), ("--workers", "0"), ("--batches", "0")])
def test_impossible_arguments_are_refused(arguments: tuple[str, str]) -> None:
    with pytest.raises(SystemExit) as refusal:
        tensor_parallel.main(list(arguments))
    assert refusal.value.code == 2


def outputs_alone(count: int) -> list[transformer.Array]:
    model = transformer.Model(0, 1)
    batches = transformer.token_batches(count)
    return [transformer.compute_alone(model, tokens) for tokens in batches]


def test_comparison_accepts_the_sum_of_shards_and_sees_a_wrong_one() -> None:
    """The control of the example's own verdict: what it compares, once right and thrice wrong."""
    expected = outputs_alone(1)
    shards = [transformer.Model(rank, 4) for rank in range(4)]
    x = shards[0].embed(next(transformer.token_batches(1)))
    for layer in range(transformer.LAYERS):
        parts = [np.empty_like(x) for _ in shards]
        for shard, part in zip(shards, parts, strict=True):
            shard.partial(layer, x, part)
        x = sum(parts[1:], parts[0])
    assert tensor_parallel.compare([x], expected)["equal"]

    one_element = x.copy()
    one_element[-1, -1] += 0.01
    verdict = tensor_parallel.compare([one_element], expected)
    assert not verdict["equal"]
    assert verdict["max_abs_diff"] == pytest.approx(0.01, abs=1e-3)

    assert not tensor_parallel.compare([x - parts[2]], expected)["equal"]  # a partial is missing
    assert not tensor_parallel.compare([np.full_like(x, np.nan)], expected)["equal"]
    with pytest.raises(ValueError, match="zip"):
        tensor_parallel.compare([], expected)  # a batch is missing


def test_wrong_result_gives_exit_status_1(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Only the processes are replaced, by what their collector would report of a wrong sum."""
    run = {"wall_s": 1.0, "transport_s": 0.5, "partial_us": [1.0], "hidden_us": [1.0]}
    run |= tensor_parallel.compare([np.ones((2, 2))], [np.zeros((2, 2))])
    reports = [run | {"transport": transport} for transport in TRANSPORTS]
    monkeypatch.setattr(tensor_parallel, "run_job", lambda job, say: iter(reports))
    monkeypatch.setattr(tensor_parallel, "ShmqLink", tensor_parallel.PipeLink)
    assert tensor_parallel.main(["--quick"]) == 1
    assert "DIFFERS from the result of one process; largest difference 1" in capsys.readouterr().out


def test_text_is_the_standard_library_and_differs_from_batch_to_batch() -> None:
    first, second = transformer.token_batches(2)
    assert first.shape == (transformer.BATCH, transformer.SEQ)
    assert first.dtype == np.int32
    assert not np.array_equal(first, second)
    text = bytes(first.astype(np.uint8).ravel())
    assert text in b"".join(path.read_bytes() for path in sorted(Path(os.__file__).parent.glob("*.py"))[:4])


def test_transport_times_of_a_known_schedule() -> None:
    """Two workers, one step: the last partial takes 7 µs, the last copy of the sum 9 µs."""
    gather = np.array([[[1000, 0, 5000], [3000, 5000, 10000]]])
    scatter = np.array([[[20000, 11000, 24000], [22000, 12000, 29000]]])
    times = tensor_parallel.transport_times(gather, scatter)
    assert times["transport_s"] == pytest.approx(16e-6)
    assert times["partial_us"].tolist() == [4.0, 5.0]
    assert times["hidden_us"].tolist() == [4.0, 7.0]
