"""A client's side of request/reply, without waiting: what is asked, what came back, and for whom.

Any number of threads or tasks share a client.  One of those that wait reads the replies for all (the
leader); it files those of the others (followers), and when it has its own, a follower leads.  So there is
no thread of our own, and a single caller's reply takes no detour.
"""

import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from os import getpid
from typing import Any

from . import errors, faults
from ._core import lib
from .protocol import (
    CHUNK,
    DAY_NS,
    DIED,
    END,
    ERROR,
    FOLLOW,
    GET,
    LOOK_NS,
    PUT,
    RESULT,
    STREAM,
    End,
    Settings,
    Steps,
    cancellation,
    new_suffix,
    open_cancelled,
    open_requests,
    seconds_until,
    unlink_cancelled,
)
from .queue import Queue

BUFFERED = 4_096
"""Chunks of a stream that were read for a caller that does not take them; more end the stream."""
AT_ONCE = 15
"""Replies that are read together, where they are there already."""
_SETTLED = frozenset({RESULT, END, ERROR, DIED})


@dataclass(slots=True)
class ClientStats:
    """What a client did so far.  ``late``: replies that nobody waited for any more."""

    calls: int = 0
    answered: int = 0
    failed: int = 0
    expired: int = 0
    cancelled: int = 0
    server_deaths: int = 0
    late: int = 0


@dataclass(slots=True, eq=False)
class Call:
    """One request, and what came back and was not taken yet."""

    id: int
    streams: bool
    deadline: int
    events: deque[tuple[int, Any]] = field(default_factory=deque)
    chunks: int = 0
    """Filed so far.  A server that begins again sends them again."""
    sent: bool = False


@dataclass(slots=True)
class Streamed:
    """A stream on its caller's side.  ``obj`` is kept to be sent again, after a server's death."""

    call: Call
    obj: Any
    retries: int


class Calls:
    """The logic of a client.  ``make_event``: of what has ``set``, and ``wait`` as a step."""

    def __init__(self, settings: Settings, make_event: Callable[[], Any], end: End) -> None:
        self._end = end
        self.settings = settings
        self.name = settings.name
        self._make_event = make_event
        self.closed = False
        self._renew()
        self._attach()

    # ---- life ----

    def _renew(self) -> None:
        self._pid = getpid()
        self._lock = threading.RLock()  # a stream may be dropped, by the collector, while it is held
        self._pending: dict[int, Call] = {}
        self._followers: dict[int, Any] = {}
        self._leading = False
        self._last_id = 0
        self._next_look = 0
        self._saw_server = False
        self._replies: Queue | None = None
        self._suffix = ""
        self.stats = ClientStats()

    def _attach(self) -> None:
        self._requests = open_requests(self.name, self.settings.sizes, self.settings.arrays)
        lib.shmq_put_begin(self._requests._c)  # now, so that nobody takes this handle for a server's

    def _request_queue(self) -> Queue:
        """That of this process, also behind a fork."""
        if self._pid != getpid():
            self._renew()
            self._attach()
        if self.closed:
            raise errors.Closed(f"service {self.name!r}: this client is closed; open a new one")
        return self._requests

    def _reply_queue(self) -> Queue:
        if self._replies is None:
            with self._lock:
                if self._replies is None:
                    self._replies = self._make_replies()
        return self._replies

    def _make_replies(self) -> Queue:
        """Its consumer's role is claimed before anybody knows it: while it is held, this client is alive."""
        self._suffix = new_suffix()
        s = self.settings
        made = Queue.create(
            f"{s.name}.{self._suffix}", kind="mpmc", arrays=s.arrays,
            ring_bytes=s.reply_ring_bytes, arena_bytes=s.reply_arena_bytes,
        )  # fmt: skip
        made._own_name()
        lib.shmq_get_begin(made._c)
        return made

    def close(self) -> None:
        """What is pending is cancelled; who waits for it wakes up with ``Closed``."""
        if self.closed or self._pid != getpid():
            self.closed = True
            return
        with self._lock:
            self.closed = True
            pending = list(self._pending)
            self._pending.clear()
            for event in self._followers.values():
                event.set()
            self.stats.cancelled += len(pending)
        self._publish_cancelled(pending)
        for queue in (self._replies, self._requests):
            if queue is not None:
                self._end(queue)  # the reply queue's name goes with it

    def unlink(self) -> None:
        """Removes the service's names; whoever is attached goes on."""
        self._requests.unlink()
        unlink_cancelled(self.name)

    def _count(self, what: str) -> None:
        with self._lock:
            setattr(self.stats, what, getattr(self.stats, what) + 1)

    # ---- asking ----

    def send(self, call: Call, obj: Any) -> Steps:
        """Puts the request, under a new id: what comes for an earlier one is late."""
        requests, _ = self._request_queue(), self._reply_queue()
        with self._lock:
            self._pending.pop(call.id, None)
            call.events.clear()
            call.id = self._last_id = self._last_id + 1
            self._pending[call.id] = call
            self.stats.calls += 1
        wire_deadline = 0 if call.deadline == sys.maxsize else call.deadline
        message = [call.id, self._suffix, wire_deadline, STREAM if call.streams else 0, obj]
        call.sent = requests._put_plain(message)
        while not call.sent:
            try:
                yield PUT, requests, message, seconds_until(call.deadline, LOOK_NS)
                call.sent = True
            except errors.Full as e:
                self._look_instead_of_leader()
                if call.events:
                    return  # no server is alive
                if time.monotonic_ns() >= call.deadline:
                    raise self._expired(f"the request found no room: {e}") from e

    def answer(self, call: Call) -> Steps:
        """The next event of ``call``: (kind, payload).  ``DeadlineExceeded``."""
        waiting = False
        try:
            while True:
                with self._lock:
                    if call.events:
                        return call.events.popleft()
                    if self.closed:
                        self._request_queue()  # raises
                    leads = not self._leading
                    if leads:
                        self._leading = True
                        self._followers.pop(call.id, None)
                    else:
                        event = self._followers[call.id] = self._make_event()
                        waiting = True
                if leads:
                    yield from self._lead(call)
                else:
                    yield FOLLOW, event, seconds_until(call.deadline, DAY_NS)
                if not call.events and time.monotonic_ns() >= call.deadline:
                    raise self._expired("no answer within the time given")
        finally:
            if waiting:
                with self._lock:
                    self._followers.pop(call.id, None)
            if self._followers:
                self._hand_over()

    def _lead(self, call: Call) -> Steps:
        """Reads for all, until there is something for ``call`` or its time is over."""
        try:
            replies = self._reply_queue()
            # A look is due where nothing has come for a while: what comes shows that somebody is alive.
            now = time.monotonic_ns()
            if self._next_look <= now:
                self._next_look = now + LOOK_NS
            while not call.events:
                now = time.monotonic_ns()
                self._look_if_due(now)
                if call.events or now >= call.deadline:
                    return
                try:
                    self._file((yield GET, replies, seconds_until(call.deadline, LOOK_NS)))
                except errors.Empty:
                    pass
                except errors.DecodeError:
                    self.stats.late += 1  # not a server's
        finally:
            with self._lock:
                self._leading = False

    def _read_now(self) -> None:
        """What is there already, where nobody leads."""
        with self._lock:
            if self._leading or self.closed:
                return
            self._leading = True
        try:
            self._file_more(self._reply_queue())
        finally:
            with self._lock:  # behind whoever has just seen that we lead, and is about to follow
                self._leading = False
            if self._followers:
                self._hand_over()

    def _file_more(self, replies: Queue) -> bool:
        """A few, since what stays in the queue is what holds the servers up.

        False: there is no more, or there was an error, which comes again at the next get."""
        for _ in range(AT_ONCE):
            item = replies._try_take()
            if type(item) is int:
                return False
            try:
                self._file(replies._decode(item, False))
            except errors.DecodeError:
                self.stats.late += 1  # not a server's
        return True

    def _hand_over(self) -> None:
        """Somebody must lead while anybody waits."""
        with self._lock:
            if not self._leading and self._followers:
                next(iter(self._followers.values())).set()

    def _file(self, reply: Any) -> None:
        """To the call that it is for."""
        number, kind, n, payload = reply if type(reply) is list and len(reply) == 4 else [None] * 4
        if type(number) is not int or type(kind) is not int or type(n) is not int:
            self.stats.late += 1
            return
        with self._lock:
            call = self._pending.get(number)
            if call is None:
                self.stats.late += 1
                return
            if kind == CHUNK:
                if n < call.chunks:
                    return  # had before, from a server that died since
                if n > call.chunks or not call.streams:
                    wrong = errors.DecodeError(f"chunk {n} came where {call.chunks} was expected")
                    kind, payload = ERROR, faults.describe(wrong, "client")
                call.chunks += 1
            elif kind == END and n != call.chunks:
                wrong = errors.DecodeError(f"the stream ended after {call.chunks} of {n} chunks")
                kind, payload = ERROR, faults.describe(wrong, "client")
            self._deliver(call, kind, payload)
            overrun = len(call.events) > BUFFERED
            if overrun:
                text = f"{BUFFERED:,} chunks were read for this stream and not taken; take them faster"
                self._deliver(call, ERROR, faults.describe(errors.Full(text), "client"))
        if overrun:
            self._publish_cancelled([number])

    def _deliver(self, call: Call, kind: int, payload: Any) -> None:
        if kind in _SETTLED:
            self._pending.pop(call.id, None)
        call.events.append((kind, payload))
        event = self._followers.get(call.id)
        if event is not None:
            event.set()

    # ---- who is there ----

    def _look_instead_of_leader(self) -> None:
        """By one who waits for room: where nobody reads, nobody else looks."""
        with self._lock:
            if self._leading:
                return
            self._leading = True
        try:
            self._look_if_due(time.monotonic_ns())
        finally:
            self._leading = False
            self._hand_over()

    def _look_if_due(self, now: int) -> None:
        """The leader's.  Where no server is alive any more every call fails, and none that comes later begins
        them; but what the last one has said counts."""
        if now < self._next_look:
            return
        self._next_look = now + LOOK_NS
        if not self._pending or self.has_server() or not self._had_server():
            return
        while self._file_more(self._reply_queue()):
            pass
        with self._lock:
            lost = list(self._pending.values())
            numbers = [call.id for call in lost]
            for call in lost:
                self._deliver(call, DIED, "no server is alive any more")
        self._publish_cancelled(numbers)

    def has_server(self) -> bool:
        """Is one attached, and alive?"""
        requests = self._request_queue()
        if any("consumer" in peer.roles and peer.alive is not False for peer in requests.peers()):
            self._saw_server = True
            return True
        return False

    def _had_server(self) -> bool:
        requests = self._request_queue()
        if not self._saw_server:
            found = requests.stats()
            self._saw_server = found.messages_got + found.unacked + found.waiting_again > 0 or any(
                "consumer" in peer.roles for peer in requests.peers()
            )
        return self._saw_server

    def _expired(self, why: str) -> errors.DeadlineExceeded:
        self._count("expired")
        if not (self.has_server() or self._had_server()):
            why += "; no server has ever been attached: start one, or look at the name"
        return errors.DeadlineExceeded(f"service {self.name!r}: {why}")

    # ---- giving up ----

    def abandon(self, call: Call, expired: bool = False) -> None:
        """Nobody waits for it any more.  What has expired, its server knows from the deadline."""
        if self._pid != getpid():
            return  # the parent's
        with self._lock:
            if self._pending.pop(call.id, None) is None or expired:
                return
            self.stats.cancelled += 1
        if call.sent and not self.closed:
            self._publish_cancelled([call.id])

    def _publish_cancelled(self, numbers: list[int]) -> None:
        """A hint that saves work, so it never waits and never fails.  The topic is opened each time: it has
        room for 51 handles, and clients are many."""
        if not numbers:
            return
        with suppress(errors.ShmqError, OSError), open_cancelled(self.name) as topic:
            for number in numbers:
                topic.put_nowait(cancellation(self._suffix, number))

    # ---- whole calls ----

    def call(self, obj: Any, deadline: int, retries: int) -> Steps:
        """One request, one answer."""
        call = Call(0, False, deadline)
        try:
            yield from self.send(call, obj)
            while True:
                kind, payload = yield from self.answer(call)
                if kind == RESULT:
                    self._count("answered")
                    return payload
                if kind != DIED or retries == 0:
                    raise self.failure(kind, payload)
                retries -= 1
                self._count("server_deaths")
                yield from self.send(call, obj)
        except BaseException as e:
            self.abandon(call, expired=isinstance(e, errors.DeadlineExceeded))
            raise

    def item_now(self, streamed: Streamed) -> list[Any]:
        """As ``item``, of what is there already; the empty list where that is nothing, or another event."""
        events = streamed.call.events
        if not events and streamed.call.id:
            try:
                self._read_now()
            except BaseException:
                self.abandon(streamed.call)
                raise
        return [events.popleft()[1]] if events and events[0][0] == CHUNK else []  # nobody else takes them

    def item(self, streamed: Streamed) -> Steps:
        """The next one of a stream, as a list of one; the empty list at its end."""
        call = streamed.call
        try:
            if call.id == 0:
                yield from self.send(call, streamed.obj)
            while True:
                kind, payload = yield from self.answer(call)
                if kind == CHUNK:
                    return [payload]
                if kind == END:
                    self._count("answered")
                    return []
                if kind != DIED or streamed.retries == 0:
                    raise self.failure(kind, payload)
                streamed.retries -= 1
                self._count("server_deaths")
                yield from self.send(call, streamed.obj)
        except BaseException as e:
            self.abandon(call, expired=isinstance(e, errors.DeadlineExceeded))
            raise

    def failure(self, kind: int, payload: Any) -> Exception:
        """The exception of an event that is no result."""
        if kind == DIED:
            self._count("server_deaths")
            return errors.ServerDied(
                f"service {self.name!r}: {payload}; what was asked may have been done, in part or whole. "
                "Call again if that does no harm (retries=...)"
            )
        self._count("failed")
        if kind == ERROR:
            return faults.revive(payload)
        return errors.DecodeError(f"service {self.name!r}: a reply of kind {kind} is not expected here")
