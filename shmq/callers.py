"""The clients of a server, as it sees them: their reply queues, who is alive, and what they are still owed.

A client is alive as long as a consumer of its reply queue is; once it is not, its queue is closed and removed
here, and with it goes the memory of replies that it never read.

A client that does not read is *stuck*: what it is told last (its farewells) waits here until it has room.
"""

import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from . import errors
from .protocol import End, remove_orphans
from .queue import Queue
from .tensor import Arrays

CLIENTS = 256
"""Reply queues that are kept open; the one that was used longest ago goes first."""
LOOK_NS = 250_000_000
"""How often a client is looked at."""


@dataclass(slots=True, eq=False)
class Caller:
    """One client."""

    suffix: str
    queue: Queue
    next_look: int = 0
    gone: bool = False
    stuck: bool = False
    jobs: int = 0
    farewells: list[tuple[Any, Callable[[], None]]] = field(default_factory=list)
    """Replies, and what to do once they are put, or nobody is there to read them."""


class Callers:
    """All clients of a service.  Any thread."""

    def __init__(self, name: str, arrays: Arrays, end: End) -> None:
        self.name = name
        self._arrays = arrays
        self._end = end
        self._lock = threading.RLock()
        self._found: OrderedDict[str, Caller] = OrderedDict()
        self._next_sweep = 0
        remove_orphans(name)

    def __len__(self) -> int:
        return len(self._found)

    def begin(self, suffix: str) -> Caller | None:
        """The client, for a job more; None where it is gone."""
        now = time.monotonic_ns()
        with self._lock:
            caller = self._found.get(suffix)
            if caller is None:
                try:
                    queue = Queue.attach(f"{self.name}.{suffix}", arrays=self._arrays)
                except (errors.SegmentNotFound, errors.NotReady, errors.NotASegment, errors.WrongOwner):
                    return None
                caller = self._found[suffix] = Caller(suffix, queue)
            else:
                self._found.move_to_end(suffix)
            if not self.is_there(caller, now):
                return None
            caller.jobs += 1
            self._forget_oldest()
            return caller

    def end(self, caller: Caller) -> None:
        """A job less."""
        with self._lock:
            caller.jobs -= 1

    def _forget_oldest(self) -> None:
        if len(self._found) > CLIENTS:
            idle = next((found for found in self._found.values() if found.jobs == 0), None)
            if idle is not None:
                del self._found[idle.suffix]
                self._end(idle.queue)

    def is_there(self, caller: Caller, now: int) -> bool:
        """Looks, but at most every 250 ms."""
        if now < caller.next_look or caller.gone:
            return not caller.gone
        with self._lock:
            caller.next_look = now + LOOK_NS
            with suppress(errors.Closed):
                if any("consumer" in p.roles and p.alive is not False for p in caller.queue.peers()):
                    return True
            caller.gone = True
            self._found.pop(caller.suffix, None)
            caller.queue.unlink()
            self._end(caller.queue)
            farewells, caller.farewells = caller.farewells, []
            for _, done in farewells:
                done()
        return False

    def sweep_if_due(self, now: int) -> None:
        """A look at all of them."""
        if now < self._next_sweep:
            return
        self._next_sweep = now + LOOK_NS
        with self._lock:
            for caller in list(self._found.values()):
                if self.is_there(caller, now):
                    self._say_farewells(caller)

    def part(self, caller: Caller, reply: Any, done: Callable[[], None]) -> None:
        """A last reply, now or when there is room for it; never waits."""
        with self._lock:
            caller.farewells.append((reply, done))
            self._say_farewells(caller)

    def _say_farewells(self, caller: Caller) -> None:
        while caller.farewells:
            reply, done = caller.farewells[0]
            try:
                caller.queue.put_nowait(reply)
            except errors.Full:
                return
            except errors.ShmqError:  # it shut its queue down, or spoiled it
                pass
            del caller.farewells[0]
            done()
        caller.stuck = False

    def close(self) -> None:
        """Their queues stay: they are theirs."""
        with self._lock:
            for caller in self._found.values():
                self._end(caller.queue)
            self._found.clear()
