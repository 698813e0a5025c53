"""A server's side of request/reply, without waiting: what to work on, and for whom the answers are.

A request stays leased until its last reply was put, so it comes again if this process dies.

A client that does not read must not hold up the others.  A reply waits for room at most ``patience``
seconds; then the request is given up, and the client told when there is room (``callers.py``).  Until then
further replies to it do not wait at all.
"""

import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

from . import errors, faults
from ._core import lib
from .callers import Caller, Callers
from .delivery import Message
from .protocol import (
    CHUNK,
    DIED,
    END,
    ERROR,
    LEASE,
    LOOK_NS,
    PUT,
    RESULT,
    Asked,
    End,
    Sizes,
    Steps,
    open_cancelled,
    open_requests,
    read_cancellation,
    read_request,
    seconds_until,
    unlink_cancelled,
)
from .tensor import Arrays

CANCELLED = 4_096
"""Cancellations that are remembered, of requests that have not come yet."""
MOST_DELIVERIES = 5
"""A request that is tried again is tried so often: it may be what kills its workers."""


@dataclass(slots=True)
class ServerStats:
    """What this server did so far.  Each request is counted once, at its end, ``redelivered`` apart.

    ``served``: answered, or streamed to its end.  ``failed``: its handler raised.  ``expired`` and
    ``cancelled``: nobody waits any more.  ``refused``: its worker before had died.  ``given_up``: its client
    did not read.  ``malformed``: no request at all.  ``redelivered``: came from a worker that had died."""

    served: int = 0
    failed: int = 0
    expired: int = 0
    cancelled: int = 0
    refused: int = 0
    given_up: int = 0
    malformed: int = 0
    redelivered: int = 0
    chunks: int = 0
    clients: int = 0


class Job:
    """A request at work.  ``rpc.Request`` and ``aio_rpc.Request`` add the verbs."""

    __slots__ = ("_asked", "_caller", "_chunks", "_is_open", "_jobs", "_message", "value")

    def __init__(self, jobs: "Jobs", message: Message, asked: Asked, caller: Caller) -> None:
        self._jobs = jobs
        self._message = message
        self._asked = asked
        self._caller = caller
        self._chunks = 0
        self._is_open = True
        self.value = asked.payload

    @property
    def deliveries(self) -> int:
        """How often it was delivered, this time included.  Above 1: a worker died while it had it."""
        return self._message.deliveries

    @property
    def deadline(self) -> float | None:
        """When its caller stops waiting, as ``time.monotonic()`` counts; None: never."""
        return self._asked.deadline / 1e9 if self._asked.deadline else None

    @property
    def key(self) -> tuple[str, int]:
        """Names it among all requests of the service."""
        return self._asked.suffix, self._asked.id

    @property
    def streams(self) -> bool:
        """True if the caller takes any number of answers (``send``), not one (``reply``)."""
        return self._asked.streams

    @property
    def answered(self) -> bool:
        """True after the last reply, or once nobody waits for one."""
        return not self._is_open

    @property
    def cancelled(self) -> bool:
        """True once nobody waits for the answer: cancelled, expired, or the client is gone."""
        return self._jobs.is_cancelled(self)

    def __del__(self) -> None:
        if self._is_open:  # dropped: it is given back, and delivered again
            self._jobs._callers.end(self._caller)

    def __repr__(self) -> str:
        return f"<shmq.Request {self._asked.id} of {self._caller.queue.name!r}>"


class Jobs:
    """The logic of a server.  ``kind``: the class of its requests."""

    def __init__(
        self,
        name: str,
        sizes: Sizes,
        arrays: Arrays,
        idempotent: bool,
        patience: float,
        kind: type[Job],
        end: End,
    ) -> None:
        if patience < 0:
            raise ValueError(f"patience={patience!r}: must be a non-negative number of seconds")
        self.name = name
        self.idempotent = idempotent
        self.stopping = False
        self.when_cancelled: Callable[[tuple[str, int]], None] = lambda key: None
        self._kind = kind
        self._patience_ns = int(min(patience, 1e9) * 1e9)
        self._lock = threading.RLock()
        self._callers = Callers(name, arrays, end)
        self._end = end
        self._cancelled: OrderedDict[tuple[str, int], None] = OrderedDict()
        self._stats = ServerStats()
        self.requests = open_requests(name, sizes, arrays)
        try:
            with open_cancelled(name) as topic:
                self.cancellations = topic.subscribe()
            lib.shmq_get_begin(self.requests._c)  # from now on clients see a server
        except BaseException:
            self.requests.close()
            raise

    # ---- life ----

    def stats(self) -> ServerStats:
        return replace(self._stats, clients=len(self._callers))

    def close(self) -> None:
        """What is leased and not answered goes to another server."""
        self.stopping = True
        self._end(self.cancellations)
        self._callers.close()
        self._end(self.requests)

    def unlink(self) -> None:
        self.requests.unlink()
        unlink_cancelled(self.name)

    def _count(self, what: str) -> None:
        with self._lock:
            setattr(self._stats, what, getattr(self._stats, what) + 1)

    # ---- what to work on ----

    def next(self, deadline: int) -> Steps:
        """The next ``Job``; None once ``stopping``.  ``Empty`` at the deadline, ``ShutDown``."""
        while not self.stopping:
            self.look_at_clients()
            try:
                item, delivery = yield LEASE, self.requests, seconds_until(deadline, LOOK_NS)
            except errors.Empty:
                if time.monotonic_ns() >= deadline:
                    raise
                continue
            except errors.Closed:
                if self.stopping:
                    return None
                raise
            try:
                message = Message(self.requests, delivery, item, copy=False)
            except errors.DecodeError:
                lib.shmq_ack(self.requests._c, delivery)
                self._count("malformed")
                continue
            if (job := self._admit(message)) is not None:
                return job
        return None

    def _admit(self, message: Message) -> Job | None:
        """None where nothing is to be done for it, or no more than to say so."""
        asked = read_request(message.value)
        if asked is None:
            self._count("malformed")
        elif 0 < asked.deadline <= time.monotonic_ns():
            self._count("expired")
        elif self._was_cancelled(asked) or (caller := self._callers.begin(asked.suffix)) is None:
            self._count("cancelled")
        else:
            job = self._kind(self, message, asked, caller)
            if message.deliveries == 1:
                return job
            self._count("redelivered")
            if self.idempotent and message.deliveries <= MOST_DELIVERIES:
                return job
            self._refuse(job)
            return None
        _ack(message)
        return None

    def _refuse(self, job: Job) -> None:
        many = "the server that had the request died, or dropped it"
        if self.idempotent:
            many = f"{job.deliveries - 1} servers died, each while it had this request"
        self._count("refused")
        self._part(job, [job._asked.id, DIED, 0, many])

    # ---- cancellation ----

    def note_cancellation(self, message: Any) -> None:
        """What came on the topic."""
        found = read_cancellation(message)
        if found is not None:
            with self._lock:
                self._cancelled[found] = None
                if len(self._cancelled) > CANCELLED:
                    self._cancelled.popitem(last=False)
            self.when_cancelled(found)

    def _read_cancellations(self) -> None:
        with self._lock:
            while type(message := self.cancellations._try_take()) is not int:
                self.note_cancellation(message)

    def _was_cancelled(self, asked: Asked) -> bool:
        self._read_cancellations()
        return self._cancelled.pop((asked.suffix, asked.id), 0) is None

    def is_cancelled(self, job: Job) -> bool:
        now, asked, caller = time.monotonic_ns(), job._asked, job._caller
        if 0 < asked.deadline <= now or caller.gone:
            return True
        if type(message := self.cancellations._try_take()) is not int:
            self.note_cancellation(message)
            self._read_cancellations()
        if self._cancelled and (asked.suffix, asked.id) in self._cancelled:
            return True
        return now >= caller.next_look and not self._callers.is_there(caller, now)

    def look_at_clients(self) -> None:
        """What ``next`` does, too."""
        self._callers.sweep_if_due(time.monotonic_ns())

    # ---- answers ----

    def reply(self, job: Job, value: Any) -> Steps:
        """The only answer, or the only one of a stream."""
        _check_open(job)
        with suppress(errors.Cancelled):
            if job._asked.streams:
                yield from self.send(job, value)
                yield from self.end(job)
            else:
                yield from self._put(job, [job._asked.id, RESULT, 0, value])
                self._count("served")
                self._finish(job)

    def try_send(self, job: Job, value: Any) -> bool:
        """``send``, where it need not wait; False: nothing was done."""
        asked = job._asked
        if not job._is_open or not asked.streams or self.is_cancelled(job):
            return False
        if not job._caller.queue._put_plain([asked.id, CHUNK, job._chunks, value]):
            return False
        job._chunks += 1
        with self._lock:
            self._stats.chunks += 1
        return True

    def send(self, job: Job, value: Any) -> Steps:
        """One more of a stream.  ``Cancelled``, and the job is over."""
        _check_open(job)
        if not job._asked.streams:
            raise TypeError(f"service {self.name!r}: its answer is a stream; the caller must use stream()")
        yield from self._put(job, [job._asked.id, CHUNK, job._chunks, value])
        job._chunks += 1
        self._count("chunks")

    def end(self, job: Job) -> Steps:
        """Of a stream."""
        _check_open(job)
        with suppress(errors.Cancelled):
            yield from self._put(job, [job._asked.id, END, job._chunks, None])
            self._count("served")
            self._finish(job)

    def fail(self, job: Job, error: BaseException) -> Steps:
        """The caller gets an exception."""
        _check_open(job)
        fault = faults.describe(error)
        with suppress(errors.Cancelled):
            try:
                yield from self._put(job, [job._asked.id, ERROR, 0, fault])
            except errors.MessageTooLarge:
                yield from self._put(job, [job._asked.id, ERROR, 0, faults.brief(fault)])
            self._count("failed")
            self._finish(job)

    def drop(self, job: Job) -> None:
        """Nobody waits for it."""
        if job._is_open:
            expired = 0 < job._asked.deadline <= time.monotonic_ns()
            self._count("expired" if expired else "cancelled")
            self._finish(job)

    def give_back(self, job: Job) -> None:
        """For another server, as if this one had died."""
        if job._is_open:
            job._is_open = False
            self._callers.end(job._caller)
            with suppress(errors.StaleLease, errors.Closed):
                job._message.nack()

    def _put(self, job: Job, reply: list[Any]) -> Steps:
        """``Cancelled`` where nobody waits, or the client does not read; the job is then over."""
        caller = job._caller
        give_up = 0
        while True:
            if job.cancelled:
                self.drop(job)
                raise errors.Cancelled(f"service {self.name!r}: nobody waits for this answer any more")
            try:
                if give_up == 0:
                    if not caller.queue._put_plain(reply):
                        caller.queue.put_nowait(reply)
                else:
                    yield PUT, caller.queue, reply, seconds_until(give_up, LOOK_NS)
                return
            except errors.Full as e:
                now = time.monotonic_ns()
                give_up = give_up or now + self._patience_ns
                if caller.stuck or now >= give_up:
                    self._give_up(job, e)
                    raise errors.Cancelled(f"service {self.name!r}: this client does not read") from e
            except (errors.Closed, errors.ShutDown):
                caller.next_look = 0  # it is closing, or this server is
                if self.stopping or self._callers.is_there(caller, time.monotonic_ns()):
                    self.drop(job)
                    raise errors.Cancelled(f"service {self.name!r}: the reply queue is closed") from None

    def _give_up(self, job: Job, why: errors.Full) -> None:
        job._caller.stuck = True
        self._count("given_up")
        text = f"the client did not read for {self._patience_ns / 1e9:g} s, so the server gave this answer up"
        fault = faults.describe(errors.Full(text), f"{why}")
        self._part(job, [job._asked.id, ERROR, 0, faults.brief(fault)])

    def _part(self, job: Job, reply: list[Any]) -> None:
        """The last reply, put when there is room and acknowledged then: should we die, another says it."""
        job._is_open = False
        self._callers.part(job._caller, reply, lambda: self._finish(job))

    def _finish(self, job: Job) -> None:
        job._is_open = False
        self._callers.end(job._caller)
        with self._lock:
            self._cancelled.pop((job._asked.suffix, job._asked.id), None)
        _ack(job._message)


def _ack(message: Message) -> None:
    with suppress(errors.StaleLease, errors.Closed):
        message.ack()


def _check_open(job: Job) -> None:
    if not job._is_open:
        raise errors.ShmqError(f"{job!r} was answered before, or its caller has gone")
