"""Deaths of other processes, heard of by an event loop as soon as they happen.

The kernel makes a pidfd readable when its process ends.  That is a hint to look, no verdict: who is dead is
decided by the byte locks (``csrc/peers.c``), which the kernel has given back by then.  A peer that cannot be
watched (a kernel before 5.3, another PID namespace, no descriptor left) is looked at every 100 ms instead.
"""

import asyncio
import os
import resource
import sys
from collections.abc import Callable, Iterable
from contextlib import suppress

Process = tuple[int, int]
"""pid and start time in clock ticks: another process that gets the same pid has another one."""


class Deaths:
    """The processes that a loop hears of.  The loop's thread."""

    __slots__ = ("_dead", "_fds", "_loop", "_most", "_ourselves", "_refused", "_tell")

    def __init__(self, loop: asyncio.AbstractEventLoop, tell: Callable[[], None]) -> None:
        self._loop = loop
        self._tell = tell
        pid = os.getpid()
        self._ourselves = pid, _start_ticks(pid)  # in another container somebody has our pid
        self._fds: dict[Process, int] = {}
        limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        self._most = sys.maxsize if limit == resource.RLIM_INFINITY else limit // 4
        self._refused: set[Process] = set()
        """Cannot be watched; asked again at the end of a slice."""
        self._dead: set[Process] = set()
        """Told of already; their entries may still be there."""

    def watch(self, process: Process) -> bool:
        """True if its death is going to be told."""
        if process in self._fds or process == self._ourselves:  # whose end nobody here hears
            return True
        if process in self._dead or process in self._refused:
            return False
        fd = _open(process) if len(self._fds) < self._most else None
        if fd is None:
            self._refused.add(process)
            return False
        self._fds[process] = fd
        self._loop.add_reader(fd, self._ended, process)
        return True

    def ask_again(self) -> None:
        """Who could not be watched before may be the next time."""
        self._refused.clear()

    def forget_all_but(self, processes: Iterable[Process]) -> None:
        """The others have left our queues."""
        if os.getpid() != self._ourselves[0]:
            return  # a forked child, whose loop is its parent's: it polls with the same descriptor
        keep = set(processes)
        self._dead &= keep
        self._refused &= keep
        for process in self._fds.keys() - keep:
            self._close(process)

    def _ended(self, process: Process) -> None:
        self._close(process)
        self._dead.add(process)
        self._tell()

    def _close(self, process: Process) -> None:
        fd = self._fds.pop(process)
        if not self._loop.is_closed():
            self._loop.remove_reader(fd)
        # After a closerange() it is closed, or another file's by now.
        with suppress(OSError):
            if os.readlink(f"/proc/self/fd/{fd}") == "anon_inode:[pidfd]":
                os.close(fd)

    def close(self) -> None:
        """Hears of none any more."""
        self.forget_all_but(())


def _open(process: Process) -> int | None:
    pid, started = process
    try:
        fd = os.pidfd_open(pid)
    except (OSError, AttributeError, OverflowError):  # gone, not of our PID namespace, an old kernel
        return None
    # Behind the opening: whoever has this pid had it then, since it is older.
    if _start_ticks(pid) == started:
        return fd
    os.close(fd)
    return None


def _start_ticks(pid: int) -> int | None:
    """Field 22 of /proc/PID/stat; the second is the name, in parentheses, and may hold anything."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return int(file.read().rpartition(b")")[2].split()[19])
    except (OSError, IndexError, ValueError):
        return None
