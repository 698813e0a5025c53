"""Shared fixtures: unique names, small queues, children with a watchdog, and nothing left in /dev/shm."""

import contextlib
import os
import secrets
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import hypothesis
import numpy as np
import pytest
from c_build import Workshop

import shmq

# A shell that starts us in the background has SIGINT ignored, and our children would inherit that.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# Of children: numpy's library would start threads in each, for longer than all else that it does.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

hypothesis.settings.register_profile("dev", deadline=None)
hypothesis.settings.register_profile("ci", deadline=None, derandomize=True, database=None)
hypothesis.settings.register_profile("soak", deadline=None, max_examples=2000, stateful_step_count=100)
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))

SHM = Path("/dev/shm")
RUN = f"t{os.getpid()}-{secrets.token_hex(3)}"
"""Marks the segments of this test process: several may run beside each other."""

SMALL = {"ring_bytes": 1 << 16, "arena_bytes": 1 << 20}
"""A queue that is made in a millisecond.  64 small pages and no large ones."""

WATCHDOG_S = 60.0

PRELUDE = """
import os, signal, sys, threading, time
import numpy as np
import shmq
SMALL = {"ring_bytes": 1 << 16, "arena_bytes": 1 << 20}
"""
"""Of programs that run in a process of their own."""


def file_of(name: str) -> Path:
    return SHM / f"shmq.{name}"


def segments_of_this_run() -> list[str]:
    return [path.name for path in SHM.glob(f"shmq.*{RUN}*")]


def remove(names: list[str]) -> None:
    for name in names:
        (SHM / name).unlink(missing_ok=True)


def own_anonymous() -> set[str]:
    return {path.name for path in SHM.glob(f"shmq.anonymous-{os.getpid()}-*")}


@pytest.fixture(autouse=True)
def no_anonymous_leftovers() -> Iterator[None]:
    """Anonymous queues that the test made in this process must be gone, too."""
    before = own_anonymous()
    yield
    left = sorted(own_anonymous() - before)
    remove(left)
    assert not left, f"left in /dev/shm: {left}"


@pytest.fixture(autouse=True)
def no_doorbells_left() -> Iterator[None]:
    """The event loops of the test have ended theirs, with the last handle that they had."""
    yield
    module = sys.modules.get("shmq.doorbell")
    assert module is None or not module._doorbells, "a doorbell outlived its last handle"


@pytest.fixture
def name() -> Iterator[str]:
    """A segment name that no other test uses; it must be gone when the test ends."""
    unique = f"{RUN}-{secrets.token_hex(4)}"
    yield unique
    left = segments_of_this_run()
    remove(left)
    assert not left, f"left in /dev/shm: {left}"


@pytest.fixture(params=["mpmc", "spsc"])
def ring_kind(request: pytest.FixtureRequest) -> str:
    """Of the queues that ``make`` makes.  A module that is about something else takes one only."""
    return str(request.param)


@pytest.fixture
def make(name: str, ring_kind: str) -> Iterator[Callable[..., shmq.Queue]]:
    """Opens or creates the queue ``name`` with small sizes; closes every handle and removes the name."""
    opened: list[shmq.Queue] = []

    def make(**arguments: Any) -> shmq.Queue:
        queue = shmq.Queue(name, **{**SMALL, "kind": ring_kind, **arguments})
        opened.append(queue)
        return queue

    yield make
    for queue in opened:
        queue.close()
    with contextlib.suppress(shmq.SegmentNotFound):
        shmq.unlink(name)


@pytest.fixture
def q(make: Callable[..., shmq.Queue]) -> shmq.Queue:
    """A small queue, open for this test."""
    return make()


def poll(condition: Callable[[], Any], timeout: float = WATCHDOG_S) -> Any:
    """The first true answer of ``condition``; fails where none comes in time."""
    deadline = time.monotonic() + timeout
    while not (answer := condition()):
        assert time.monotonic() < deadline, "the watchdog's time is over"
        time.sleep(0.002)
    return answer


@pytest.fixture(name="poll")
def poll_fixture() -> Callable[..., Any]:
    return poll


def fill(q: shmq.Queue) -> None:
    with contextlib.suppress(shmq.Full):
        while True:
            q.put_nowait(b"x" * 100)


def fill_arena(q: shmq.Queue) -> list[Any]:
    """With views that somebody holds."""
    held = []
    with contextlib.suppress(shmq.ArenaFull):
        while True:
            q.put_nowait(np.zeros(2048))
            held.append(q.get())
    return held


class Child:
    """A program that runs in a process of its own, with pipes on all three standard streams."""

    def __init__(self, *command: str, **popen: Any) -> None:
        # In a session of its own: what it forks goes with it when the watchdog barks.
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
            **popen,
        )

    def line(self) -> str:
        """Its next line of output."""
        assert self.process.stdout is not None
        return self.process.stdout.readline().rstrip("\n")

    def say(self, text: str = "go") -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(text + "\n")
        self.process.stdin.flush()

    def finish(self, timeout: float = WATCHDOG_S) -> tuple[int, str, str]:
        """(exit status, rest of the output, errors)."""
        try:
            output, errors = self.process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            self.stop()
            pytest.fail(f"the child still ran after {timeout} s")
        return self.process.returncode, output, errors

    def names_left(self) -> list[str]:
        """Of its anonymous queues, in /dev/shm: they carry its pid."""
        return [path.name for path in SHM.glob(f"shmq.anonymous-{self.process.pid}-*")]

    def stop(self) -> None:
        if self.process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, 9)
        self.process.communicate()


class Script(Child):
    """A Python program, given as its text."""

    def __init__(
        self,
        source: str,
        *arguments: str,
        options: tuple[str, ...] = (),
        wrapper: tuple[str, ...] = (),
        **popen: Any,
    ) -> None:
        super().__init__(*wrapper, sys.executable, *options, "-c", source, *arguments, **popen)


@pytest.fixture
def start_example() -> Iterator[Callable[..., Child]]:
    """Starts one of examples/*.py with these arguments; whatever the test does, it has ended afterwards."""
    started: list[Child] = []

    def start_example(example: str, *arguments: str, as_module: bool = False) -> Child:
        how = ["-m", f"examples.{example}"] if as_module else [f"examples/{example}.py"]
        started.append(Child(sys.executable, *how, *arguments, cwd=Path(__file__).resolve().parent.parent))
        return started[-1]

    yield start_example
    for child in started:
        child.stop()


@pytest.fixture
def script() -> Iterator[Callable[..., Script]]:
    """Starts Python programs; none survives the test."""
    started: list[Script] = []

    def script(source: str, *arguments: str, **popen: Any) -> Script:
        started.append(Script(source, *arguments, **popen))
        return started[-1]

    yield script
    for child in started:
        child.stop()


@pytest.fixture
def run(script: Callable[..., Script]) -> Callable[..., str]:
    """Runs a program to its end: it must exit with 0 and say nothing on stderr.  Returns its output."""

    def run(source: str, *arguments: str, **popen: Any) -> str:
        status, output, errors = script(source, *arguments, **popen).finish()
        assert (status, errors) == (0, ""), f"exit status {status}\n{output}{errors}"
        return output

    return run


@pytest.fixture(scope="session")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Workshop:
    """Builds the C tests; the processes of one run share what they have compiled."""
    base = tmp_path_factory.getbasetemp()
    store = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "objects"
    return Workshop(tmp_path_factory.mktemp("c"), store=store)


@pytest.fixture
def in_small_shm(run: Callable[..., str]) -> Callable[[str, str], str]:
    """Runs a program where /dev/shm is a tmpfs of its own, of a few MiB."""
    works = shutil.which("unshare") and subprocess.run(
        ["unshare", "-m", "mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", "/dev/shm"],
        capture_output=True,
    )
    if not works or works.returncode != 0:
        pytest.skip("may not mount in a private namespace here")

    def in_small_shm(size: str, source: str) -> str:
        return run(
            "import os, subprocess, sys\n"
            "mount = ['mount', '-t', 'tmpfs', '-o', 'size=' + sys.argv[1], 'tmpfs', '/dev/shm']\n"
            "subprocess.run(mount, check=True)\n" + source,
            size,
            wrapper=("unshare", "-m", "--propagation", "private"),
        )

    return in_small_shm
