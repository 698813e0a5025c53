"""Worker processes, each on its core, that share one transport, and the jobs they are given."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from multiprocessing.connection import Connection, Listener, wait
from pathlib import Path
from types import ModuleType
from typing import Any

from . import worker
from .endpoint import Side, Spec

START_TIMEOUT_S = 60.0
Job = tuple[str, dict[str, Any]]


class PairFailed(Exception):
    """A worker raised, died or did not answer in time; the pair is of no further use."""


class Pair:
    """Sides a on the first of `cores` (one, but for `Spec.writers`), each side b on one of the others.

    A context manager; leaves no process behind."""

    def __init__(self, transport: ModuleType, spec: Spec, cores: Sequence[int]) -> None:
        self.name: str = transport.NAME
        self.polls: bool = transport.POLLS
        self.writers: int = spec.writers
        self.readers: int = len(cores) - spec.writers
        self.failed: str | None = None
        self._transport = transport
        self._wiring: Any = None
        self._processes: list[Any] = []
        self._links: list[Connection[Any, Any]] = []
        try:
            if transport.LAUNCH == "mpirun":
                self._start_mpi(spec, cores)
            else:
                self._start(spec, cores)
            calls = [set(self._answer(link, START_TIMEOUT_S)) for link in self._links]
        except BaseException:
            self.close()
            raise
        self.calls: tuple[set[str], set[str]] = (calls[0], calls[-1])
        """Names of the Endpoint calls that each side a and each side b have."""

    def __enter__(self) -> Pair:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _start(self, spec: Spec, cores: Sequence[int]) -> None:
        context: Any = multiprocessing.get_context(self._transport.LAUNCH)
        context.set_forkserver_preload([worker.__name__, "shmq"])  # for many: imports once, opens nothing
        self._wiring = self._transport.wire(spec)
        for number, core in enumerate(cores):
            side: Side = "a" if number < spec.writers else "b"
            ours, theirs = context.Pipe()
            process = context.Process(
                target=worker.serve,
                args=(theirs, self._transport.__name__, spec, self._wiring, side, core),
                daemon=True,
            )
            with worker.pinned(core):  # inherited: the transport is opened while unpickling, pinned already
                process.start()
            theirs.close()
            self._links.append(ours)
            self._processes.append(process)

    def _start_mpi(self, spec: Spec, cores: Sequence[int]) -> None:
        address = tempfile.mktemp(prefix="mpi", dir=spec.directory)
        command = [*self._transport.command(spec), sys.executable, "-m", worker.__name__, address]
        environment = {**os.environ, **self._transport.environment(spec)}
        root = Path(__file__).resolve().parent.parent
        with Listener(address, family="AF_UNIX") as listener:
            process = subprocess.Popen(
                command, env=environment, cwd=root, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE
            )
            self._processes.append(process)
            ranks: dict[int, Connection[Any, Any]] = {}
            for _ in cores:
                link = self._accept(listener, process)
                ranks[link.recv()] = link
        self._links = [ranks[rank] for rank in range(len(cores))]
        for link in self._links:
            link.send((self._transport.__name__, spec, cores))

    @staticmethod
    def _accept(listener: Listener, process: subprocess.Popen[bytes]) -> Connection[Any, Any]:
        # Listener.accept has no time-out of its own: wait on its socket, and watch mpirun too.
        socket = listener._listener._socket  # type: ignore[attr-defined]
        deadline = time.monotonic() + START_TIMEOUT_S
        while time.monotonic() < deadline:
            if wait([socket], timeout=0.1):
                return listener.accept()
            if process.poll() is not None:
                said = process.stderr.read().decode(errors="replace") if process.stderr else ""
                raise PairFailed(f"mpirun ended with status {process.returncode}: {said[-500:]}")
        raise PairFailed(f"mpirun's processes did not report within {START_TIMEOUT_S:.0f} s")

    def _answer(self, link: Connection[Any, Any], timeout: float) -> Any:
        if not link.poll(timeout):
            raise PairFailed(f"{self.name}: no answer within {timeout:.0f} s")
        try:
            kind, value = link.recv()
        except (EOFError, ConnectionError):
            raise PairFailed(f"{self.name}: a worker died") from None
        if kind == "error":
            raise PairFailed(f"{self.name}: {value}")
        return value

    def run(self, job_a: Job, job_b: Job, timeout: float) -> tuple[Any, Any]:
        """Side b starts first and is inside its job when side a begins. Returns both results."""
        result_a, (result_b,) = self.run_all(job_a, [job_b], timeout)
        return result_a, result_b

    def run_all(self, job_a: Job, jobs_b: Sequence[Job], timeout: float) -> tuple[Any, list[Any]]:
        """The same with a job for each side b. Returns side a's result, and theirs in order."""
        (result_a,), results_b = self.run_sides([job_a], jobs_b, timeout)
        return result_a, results_b

    def run_sides(
        self, jobs_a: Sequence[Job], jobs_b: Sequence[Job], timeout: float
    ) -> tuple[list[Any], list[Any]]:
        """The same with a job for each side a, too."""
        if self.failed is not None:
            raise PairFailed(self.failed)
        try:
            links_a, links_b = self._links[: self.writers], self._links[self.writers :]
            for side_links, side_jobs in ((links_b, jobs_b), (links_a, jobs_a)):
                for link, job in zip(side_links, side_jobs, strict=True):
                    link.send(job)
                for link in side_links:
                    self._answer(link, timeout)
            results: dict[int, Any] = {}
            links = dict(enumerate(self._links))
            deadline = time.monotonic() + timeout
            while links:
                # Whichever answers first: a side that raised leaves the other waiting for ever.
                ready = wait(list(links.values()), max(0.0, deadline - time.monotonic()))
                if not ready:
                    raise PairFailed(f"{self.name}: no answer within {timeout:.0f} s")
                for key in [key for key, link in links.items() if link in ready]:
                    results[key] = self._answer(links.pop(key), timeout)
        except PairFailed as error:
            self.failed = str(error)
            raise
        except OSError as error:
            self.failed = f"{self.name}: a worker died"
            raise PairFailed(self.failed) from error
        ordered = [results[i] for i in range(len(results))]
        return ordered[: self.writers], ordered[self.writers :]

    def close(self) -> None:
        """Asks the workers to leave, then makes them."""
        for link in self._links:
            with contextlib.suppress(OSError):
                link.send(None)
        grace = 0.1 if self.failed is not None else 10.0
        for process in self._processes:
            if isinstance(process, subprocess.Popen):
                try:
                    process.wait(grace)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()
                if process.stderr is not None:
                    process.stderr.close()
            else:
                process.join(grace)
                if process.is_alive():
                    process.kill()
                    process.join()
                process.close()
        for link in self._links:
            link.close()
        self._links, self._processes = [], []
        if self._wiring is not None:
            self._transport.unwire(self._wiring)
            self._wiring = None
