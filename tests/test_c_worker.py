"""examples/c_worker.c, built as C11 and as C++17 against shmq.get_include(), beside Python."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

import shmq

WORKER_C = Path(__file__).resolve().parent.parent / "examples" / "c_worker.c"
WARNINGS = ["-Wall", "-Wextra", "-Werror"]
WATCHDOG_S = 30.0
SCALE = 0.5

Matrix = npt.NDArray[np.float32]
Start = Callable[..., "subprocess.Popen[str]"]


def run(*command: str | Path) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(map(str, command))}\n{done.stderr}"


@pytest.fixture(scope="module", params=["c11", "c++17"])
def program(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built worker. The core is always C; only the worker is compiled as C++."""
    compiler = "cc" if request.param == "c11" else "c++"
    if shutil.which("cc") is None or shutil.which(compiler) is None:
        pytest.skip(f"no {compiler} here")
    directory = tmp_path_factory.mktemp("c_worker")
    include = Path(shmq.get_include())
    built, worker_o = directory / "c_worker", directory / "c_worker.o"
    core = sorted(include.glob("*.c"))
    if request.param == "c11":
        run("cc", "-std=c11", *WARNINGS, "-c", WORKER_C, f"-I{include}", "-o", worker_o)
        run("cc", WORKER_C, *core, f"-I{include}", "-pthread", "-o", built)  # as shmq.h says
        return built
    objects = [directory / f"{source.stem}_core.o" for source in core]
    for source, target in zip(core, objects, strict=True):
        run("cc", "-c", source, f"-I{include}", "-o", target)
    language = ["-x", "c++", "-std=c++17"]
    run("c++", *language, *WARNINGS, "-c", WORKER_C, f"-I{include}", "-o", worker_o)
    run("c++", worker_o, *objects, "-pthread", "-o", built)
    return built


@pytest.fixture
def queues() -> Iterator[tuple[shmq.Queue, shmq.Queue]]:
    """IN and OUT of the worker, with names that nothing else has."""
    base = f"test-c-worker-{os.getpid()}-{uuid.uuid4().hex[:8]}"
    with ExitStack() as cleanup:
        made = []
        for end in ("in", "out"):
            queue = cleanup.enter_context(shmq.Queue.create(f"{base}.{end}", arena_bytes=8 << 20))
            cleanup.callback(queue.unlink)
            made.append(queue)
        yield made[0], made[1]


@pytest.fixture
def start(program: Path, queues: tuple[shmq.Queue, shmq.Queue]) -> Iterator[Start]:
    with ExitStack() as cleanup:

        def start_worker() -> subprocess.Popen[str]:
            names = [queue.name for queue in queues]
            worker = subprocess.Popen([program, *names, str(SCALE)], stderr=subprocess.PIPE, text=True)
            cleanup.enter_context(worker)
            cleanup.callback(worker.kill)
            return worker

        yield start_worker


def matrix(rows: int, columns: int, seed: int = 0) -> Matrix:
    return np.random.default_rng(seed).standard_normal((rows, columns), np.float32)


def assert_scaled_sums(got: object, sent: Matrix) -> None:
    assert isinstance(got, np.ndarray)
    assert got.dtype == np.float32
    assert got.shape == (sent.shape[0],)
    np.testing.assert_allclose(got, SCALE * sent.sum(axis=1, dtype=np.float64), atol=1e-4)


def end(worker: subprocess.Popen[str]) -> tuple[int, str]:
    _, errors = worker.communicate(timeout=WATCHDOG_S)
    return worker.returncode, errors


def test_row_sums_of_small_and_large_matrices(queues: tuple[shmq.Queue, shmq.Queue], start: Start) -> None:
    """In the record (48 B), in small pages, in large ones (4 MiB); in order; and then the end."""
    into, out = queues
    worker = start()
    sent = [matrix(rows, columns) for rows, columns in ((3, 4), (64, 33), (1000, 300), (1, 1 << 20))]
    for x in sent:
        into.put(x)
        assert_scaled_sums(out.get(timeout=WATCHDOG_S), x)
    for x in sent[:3]:
        into.put(x)
    for x in sent[:3]:
        assert_scaled_sums(out.get(timeout=WATCHDOG_S), x)

    into.shutdown()
    with pytest.raises(shmq.ShutDown):
        out.get(timeout=WATCHDOG_S)
    assert end(worker) == (0, "")
    assert into.stats().pages["leased"] == 0
    assert out.stats().pages["loaned"] == 0


def test_loaned_matrix_arrives_without_a_copy_on_the_way(
    queues: tuple[shmq.Queue, shmq.Queue], start: Start
) -> None:
    into, out = queues
    start()
    x = matrix(200, 100)
    with into.loan(x.shape, np.float32) as loan:
        loan.array[:] = x
    assert_scaled_sums(out.get(timeout=WATCHDOG_S), x)


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        (np.zeros((4, 4), np.float64), "its dtype is not float32"),
        (np.zeros((4, 4, 4), np.float32), "it does not have 2 axes"),
        (np.asfortranarray(np.zeros((40, 50), np.float32)), "its order is not 'C'"),
        (np.zeros((0, 4), np.float32), "it has no rows"),
        (b"no tensor", "it is not a tensor"),
        ({"x": np.zeros((4, 4), np.float32)}, "it is not a tensor"),
    ],
    ids=["dtype", "axes", "order", "empty", "bytes", "dict"],
)
def test_other_messages_end_it_with_the_reason(
    queues: tuple[shmq.Queue, shmq.Queue], start: Start, message: object, reason: str
) -> None:
    worker = start()
    queues[0].put(message)
    status, errors = end(worker)
    assert status == 1
    assert errors.startswith("c_worker: cannot use a message of ")
    assert errors.endswith(f"bytes: {reason}\n")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signal_ends_it(queues: tuple[shmq.Queue, shmq.Queue], start: Start, number: signal.Signals) -> None:
    into, out = queues
    worker = start()
    into.put(matrix(2, 2))
    out.get(timeout=WATCHDOG_S)
    worker.send_signal(number)
    assert end(worker) == (0, "")


def test_next_worker_takes_over_from_a_killed_one(
    queues: tuple[shmq.Queue, shmq.Queue], start: Start
) -> None:
    into, out = queues
    for seed in range(3):
        worker = start()
        x = matrix(500, 200, seed)
        into.put(x)
        assert_scaled_sums(out.get(timeout=WATCHDOG_S), x)
        worker.kill()
        assert end(worker)[0] == -signal.SIGKILL


def test_absent_queue_and_bad_arguments(program: Path) -> None:
    for arguments, status, text in [
        (["test-c-worker-absent", "out", "1"], 1, "c_worker: test-c-worker-absent: "),
        (["only-one"], 2, "usage: "),
        (["in", "out", "much"], 2, "c_worker: SCALE must be a number, not 'much'"),
    ]:
        done = subprocess.run(
            [program, *arguments], capture_output=True, text=True, timeout=WATCHDOG_S, check=False
        )
        assert done.returncode == status
        assert done.stderr.startswith(text)
