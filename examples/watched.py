"""Processes that are started, watched and stopped: what the examples have in common.

The parent starts one process for each role, and from then on only watches: when one dies it says
which, stops the rest, and fails.  No process outlives its parent, however that one ends.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from typing import Any

STALL_S = 60.0  # the parent gives up when nothing was reported for so long

Roles = dict[str, tuple[Any, ...]]  # the process's name: its function and the arguments of that


class JobError(Exception):
    """A process of the job died, or none of them moved any more."""


def run(roles: Roles, reporter: str, say: Callable[[str], None]) -> Generator[Any]:
    """Starts the roles; what ``reporter`` sends through the Connection that is its last argument.

    JobError as soon as a process dies; all have ended afterwards.
    """
    context = multiprocessing.get_context("spawn")
    reports, report = context.Pipe(duplex=False)
    running: dict[Any, BaseProcess | None] = {reports: None}
    try:
        for name, call in roles.items():
            arguments = (*call, report) if name == reporter else call
            started = context.Process(target=child, args=arguments, name=name, daemon=True)
            with interrupts_blocked():
                started.start()
                running[started.sentinel] = started
            say(f"{name}: pid {started.pid}")
        report.close()
        while running:
            ready = wait(list(running), STALL_S)
            if not ready:
                raise JobError(f"no progress for {STALL_S:.0f} s")
            for key in ready:
                if ended := running[key]:
                    check(ended)
                    del running[key]
                    continue
                try:
                    yield reports.recv()
                except (EOFError, OSError):  # the reporter has ended; so its exit status follows
                    del running[key]
    finally:
        for process in filter(None, running.values()):
            process.kill()
            process.join()


def check(ended: BaseProcess) -> None:
    ended.join()
    if code := ended.exitcode:
        how = f"exit status {code}" if code > 0 else signal.Signals(-code).name
        raise JobError(f"{ended.name} (pid {ended.pid}) died: {how}; stopped the others")


@contextmanager
def interrupts_blocked() -> Iterator[None]:
    """A process that is started here never sees Ctrl-C: that is for the parent, which gets it afterwards."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def child(role: Callable[..., None], *arguments: Any) -> None:
    threading.Thread(target=end_with_parent, daemon=True).start()
    role(*arguments)


def end_with_parent() -> None:
    if parent := multiprocessing.parent_process():
        parent.join()
        os._exit(1)
