"""``shmq.aio``: queues and topics for asyncio.

from shmq import aio
async with aio.Queue("prefill") as q:
    await q.put({"step": 7, "tokens": tokens})
    async for message in q:  # until the queue is shut down
        ...

Each class wraps a handle of the same name (``of`` wraps one that is open) and speaks its language:
parameters, messages and errors are those of ``shmq.Queue``, ``shmq.Topic`` and ``shmq.Subscription``.
Where the others block a thread, these suspend a task: no thread, no polling, and an idle wait takes no
processor time but for a look at the peers each second.  What need not wait makes no system call and does
not suspend, so a loop of such calls keeps the other tasks waiting, as with ``asyncio.Queue``; ``async for``
suspends about once a millisecond.

Cancellation, timeouts included, strikes only where a task waits, and there nothing was taken or put: the
message is still in the queue, or was not put.  ``put_many`` has then put as many as the exception says in
``.done``.

Any number of tasks may wait on a handle; they are served in the order in which they came.  A handle belongs
to the event loop in which it first waited (RuntimeError in another, until that one is closed).  Any asyncio
loop will do that has ``add_reader``: uvloop, and anyio on asyncio.  Opening, closing and ``subscribe`` are
ordinary calls, which may block for as long as it takes to map the segment.
"""

import asyncio
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from functools import partial
from importlib import import_module
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Self

from . import errors, loan, queue, topic
from ._core import lib
from .clock import deadline_ns
from .codec import Size
from .consumer import NOTHING_NOW, Consumer
from .delivery import Message, raise_nothing
from .doorbell import Waits
from .handle import Handle
from .producer import LACKS, PLAIN, Producer
from .stats import Peer, QueueStats, raise_peer_dead
from .tensor import Arrays

TURN_NS = 1_000_000
"""``async for`` lets other tasks run about this often ..."""
TURN_MESSAGES = 32
"""... and looks at the clock after so many messages."""
SETTLE_TRIES = 200
"""A millisecond each, where another process repairs what a dead holder of a role left."""


Take = Callable[[], Any] | None

if TYPE_CHECKING:
    from .aio_rpc import Client as Client
    from .aio_rpc import Request as Request
    from .aio_rpc import Server as Server
    from .aio_rpc import Stream as Stream
else:

    def __getattr__(name: str) -> Any:
        """Request and reply, which are built on what is here."""
        if name in ("Client", "Request", "Server", "Stream"):
            return getattr(import_module(".aio_rpc", __package__), name)
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def _is_over(handle: Handle, deadline: int) -> bool:
    return time.monotonic_ns() >= deadline and not lib.py_look_around(handle._c)


def _deadline(timeout: float | None) -> int:
    return sys.maxsize if timeout is None else deadline_ns(timeout)


async def _settle(handle: Handle, tries: int) -> int:
    """A dead process has the role, and another process is about to repair that.  Returns the tries so far."""
    if tries == SETTLE_TRIES:
        handle._recover_or_raise(lib.SHMQ_ROLE_TAKEN, 0)
    lib.py_look_now(handle._c)
    await asyncio.sleep(0.001)
    return tries + 1


class _Wrapper:
    """A handle, and the tasks that wait on it."""

    __slots__ = ("_handle", "_waits")

    def _adopt(self, handle: Handle) -> None:
        self._handle = handle
        self._waits = Waits.of(handle)

    @property
    def name(self) -> str:
        """Of the segment."""
        return self._handle.name

    @property
    def closed(self) -> bool:
        """True after ``close()``."""
        return self._handle.closed

    def stats(self) -> QueueStats:
        """A snapshot of counters, ring and arena."""
        return self._handle.stats()

    def peers(self) -> list[Peer]:
        """Every handle that is attached, this one included, with what it holds."""
        return self._handle.peers()

    def shutdown(self, immediate: bool = False) -> None:
        """Refuses puts from now on, for every process; gets go on until the queue is empty, or stop now."""
        self._handle.shutdown(immediate)

    def close(self) -> None:
        """Ends the use of the handle; tasks that wait on it wake up with ``Closed``.  Any thread."""
        self._handle.close()
        self._waits.close()

    def unlink(self) -> None:
        """Removes the name, if it is still this segment's.  Whoever is attached goes on."""
        self._handle.unlink()

    def __repr__(self) -> str:
        return f"<shmq.aio.{type(self).__name__} {self.name!r}{' closed' if self.closed else ''}>"

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class _Getting(_Wrapper):
    """What ``Queue`` and ``Subscription`` share."""

    __slots__ = ()
    _handle: Consumer

    async def get(self, timeout: float | None = None, copy: bool = False) -> Any:
        """Takes the next message; waits for one up to ``timeout`` seconds (None: for ever).

        Cancelled, it has taken none.  Otherwise as ``shmq.Queue.get``."""
        deadline = sys.maxsize if timeout is None else deadline_ns(timeout)
        item = self._handle._try_take()
        if type(item) is bytes:
            return item
        if type(item) is int:
            item = await self._await_message(item, 0, deadline)
            if type(item) is bytes:
                return item
        return self._handle._decode(item, copy)

    def get_nowait(self, copy: bool = False) -> Any:
        """The next message, or ``Empty``."""
        return self._handle.get_nowait(copy)

    async def get_many(self, max_items: int, timeout: float | None = None, copy: bool = False) -> list[Any]:
        """Takes 1 to ``max_items`` messages; waits up to ``timeout`` seconds for the first only.

        Cancelled, it has taken none.  Otherwise as ``shmq.Queue.get_many``."""
        if max_items < 1:
            raise ValueError(f"'max_items' must be at least 1, not {max_items}")
        deadline = _deadline(timeout)
        items = self._handle._take_many(max_items)
        if type(items) is int:
            items = await self._await_message(items, max_items, deadline)
        return items if type(items) is list else self._handle._decode_many(items[0], copy)

    async def _await_message(self, status: int, max_items: int, deadline: int, take: Take = None) -> Any:
        """As ``Consumer._await_message``.  Behind the try that succeeds, nothing is awaited any more."""
        q, gate = self._handle, self._waits.getters
        item: Any = status
        settling, waited = 0, False
        try:
            while type(item) is int:
                if item in NOTHING_NOW:
                    if waited and lib.py_wait_get(q._c, 0) == lib.SHMQ_PEER_DEAD:  # a look, no wait
                        raise_peer_dead(q._c, q.name)
                    if deadline != sys.maxsize and _is_over(q, deadline):
                        raise_nothing(item, q.name)
                    place = gate.enter((), deadline, waited)
                    try:
                        await place.future
                    finally:
                        gate.quit(place)
                    waited = True
                elif item == lib.SHMQ_NOT_READY:
                    settling = await _settle(q, settling)
                elif item != lib.SHMQ_OK:
                    q._recover_or_raise(item, 0)
                # Looked up anew each time: reattach() binds other functions.
                item = take() if take else q._take_many(max_items) if max_items else q._try_take()
            return item
        finally:
            gate.leave()

    def __aiter__(self) -> AsyncIterator[Any]:
        """Every message from now on, until the queue is shut down and drained."""
        return self._messages()

    async def _messages(self) -> AsyncIterator[Any]:
        # A message is taken when it is asked for, and handed out at once: leaving the loop loses none.
        q = self._handle
        take, clock = q._try_take, time.monotonic_ns
        left, turn_ends = TURN_MESSAGES, clock() + TURN_NS
        while True:
            item = take()
            if type(item) is not bytes:
                if type(item) is int:
                    try:
                        item = await self._await_message(item, 0, sys.maxsize)
                    except errors.ShutDown:
                        return
                    take, turn_ends = q._try_take, clock() + TURN_NS
                item = q._decode(item, False)
            yield item
            left -= 1
            if left == 0:
                left = TURN_MESSAGES
                if clock() >= turn_ends:
                    await asyncio.sleep(0)
                    turn_ends = clock() + TURN_NS


class _Putting(_Wrapper):
    """What ``Queue`` and ``Topic`` share."""

    __slots__ = ()
    _handle: Producer

    async def put(
        self,
        obj: Any,
        timeout: float | None = None,
        *,
        key: str | bytes | None = None,
        priority: bool = False,
    ) -> bool:
        """Puts ``obj``; waits for room up to ``timeout`` seconds (None: for ever).  Leave it alone meanwhile.

        Cancelled, it was not put.  Otherwise as ``shmq.Queue.put``."""
        deadline = sys.maxsize if timeout is None else deadline_ns(timeout)
        plain = key is None and not priority
        status = self._handle._put(obj) if plain else lib.PY_ENCODE
        if status is None:
            return True
        dropped: list[int] = []
        tries = self._handle._tries(obj, status, self._handle._how(key, priority), dropped)
        await self._await_room(tries, deadline)
        return not dropped

    def put_nowait(self, obj: Any, *, key: str | bytes | None = None, priority: bool = False) -> bool:
        """Puts ``obj`` at once, or raises ``Full``.  As ``shmq.Queue.put_nowait``."""
        return self._handle.put_nowait(obj, key=key, priority=priority)

    async def put_many(self, objs: Any, timeout: float | None = None) -> int:
        """Puts every object of an iterable, in order; runs of bytes are published together.

        Returns how many.  Every error, and CancelledError, says in ``.done`` how many are in the queue."""
        items = objs if type(objs) is list else list(objs)
        deadline = _deadline(timeout)
        done = 0
        try:
            while done < len(items):
                sent = lib.py_put_many(self._handle._c, id(items), done)
                if sent > 0:
                    done += sent
                    continue
                item = items[done]
                status = lib.SHMQ_FULL if sent == -lib.SHMQ_FULL else lib.PY_ENCODE
                await self._await_room(self._handle._tries(item, status, PLAIN, []), deadline)
                done += 1
        except (errors.ShmqError, asyncio.CancelledError) as e:
            e.done = done  # type: ignore[union-attr]
            raise
        return done

    def loan(
        self, shape: int | tuple[int, ...], dtype: Any, *, order: Literal["C", "F"] = "C",
        timeout: float | None = None, priority: bool = False,
    ) -> "Loan":  # fmt: skip
        """Lends an array of shared memory: ``async with q.loan(shape, dtype) as loan: loan.array[:] = ...``.

        Entering waits up to ``timeout`` seconds for memory; see ``shmq.Queue.loan``."""
        return Loan(self, loan.Loan(self._handle, shape, dtype, order, None, priority), timeout)

    async def _await_room(self, tries: Iterator[tuple[int, Size]], deadline: int) -> None:
        """Drives what tries until it is done, as ``Producer._tries``."""
        q, gate = self._handle, self._waits.putters
        settling, waited = 0, False
        try:
            for lacking, size in tries:
                if lacking == lib.SHMQ_NOT_READY:
                    settling = await _settle(q, settling)
                    continue
                if time.monotonic_ns() >= deadline:
                    if not lib.py_look_around(q._c):
                        q._raise_full(lacking, size, waited=True)
                    continue
                pages = lacking == lib.SHMQ_ARENA_FULL
                nbytes = size.block_bytes if pages else size.record_bytes(q._inline_bytes)
                need = size.urgent, LACKS[lacking], nbytes
                place = gate.enter(need, deadline, waited)
                try:
                    await place.future
                finally:
                    gate.quit(place)
                waited = True
        finally:
            gate.leave()


class Loan:
    """Made by ``Queue.loan`` and ``Topic.loan``; published on a clean exit, discarded on an exception."""

    __slots__ = ("_loan", "_owner", "_timeout")

    def __init__(self, owner: _Putting, lent: loan.Loan, timeout: float | None) -> None:
        self._owner, self._loan, self._timeout = owner, lent, timeout

    @property
    def array(self) -> Any:
        """The memory: writable until published."""
        return self._loan.array

    def torch(self) -> Any:
        """The memory as a torch tensor; see ``shmq.Loan.torch``."""
        return self._loan.torch()

    async def publish(self, timeout: float | None = None) -> None:
        """Sends it: no copy.  Waits up to ``timeout`` seconds for room in the ring.

        On ``Full``, and cancelled, the loan is still open: publish again, or discard."""
        status = self._loan._send()
        if status is not None:
            await self._owner._await_room(self._loan._send_again(status), _deadline(timeout))
        self._loan._sent()

    def discard(self) -> None:
        """Gives the memory back unpublished; again, or after publish: nothing."""
        self._loan.discard()

    async def __aenter__(self) -> Self:
        await self._owner._await_room(self._loan._borrow(), _deadline(self._timeout))
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None and self._loan._lease is not None:
                await self.publish()
        finally:
            self._loan.discard()


class Queue(_Putting, _Getting):
    """A FIFO queue for tasks of an event loop, opened or created.  Parameters as for ``shmq.Queue``."""

    __slots__ = ()
    _handle: queue.Queue

    def __init__(self, name: str | None = None, **parameters: Any) -> None:
        self._adopt(queue.Queue(name, **parameters))

    @classmethod
    def of(cls, handle: queue.Queue) -> Self:
        """For a handle that is open; both may be used, and closing either closes both."""
        self = cls.__new__(cls)
        self._adopt(handle)
        return self

    @classmethod
    def create(cls, name: str, **parameters: Any) -> Self:
        """Makes the segment; ``NameTaken`` if there is one already.  Parameters as for ``shmq.Queue``."""
        return cls.of(queue.Queue.create(name, **parameters))

    @classmethod
    def attach(cls, name: str, **parameters: Any) -> Self:
        """Opens what exists, or raises ``SegmentNotFound``.  Parameters as for ``shmq.Queue.attach``."""
        return cls.of(queue.Queue.attach(name, **parameters))

    async def lease(self, timeout: float | None = None, copy: bool = False) -> Message:
        """Takes the next message of an at_least_once queue: ``with await q.lease() as message: ...``.

        Cancelled, it has taken none.  Otherwise as ``shmq.Queue.lease``."""
        deadline = _deadline(timeout)
        item = self._handle._try_lease(copy)
        if type(item) is int:
            item = await self._await_message(item, 0, deadline, partial(self._handle._try_lease, copy))
        return item  # type: ignore[no-any-return]

    async def _lease_undecoded(self, timeout: float) -> Any:
        """(item, its ``shmq_delivery``)."""
        take = self._handle._try_lease_undecoded
        return await self._await_message(lib.SHMQ_OK, 0, deadline_ns(timeout), take)

    def task_done(self) -> None:
        """As ``shmq.Queue.task_done``."""
        self._handle.task_done()

    def qsize(self) -> int:
        """Messages that wait.  Others may put and get at any moment."""
        return self._handle.qsize()

    def empty(self) -> bool:
        """True if no message waits now."""
        return self._handle.empty()

    def full(self) -> bool:
        """True if a message of ``inline_bytes`` would find no room in the ring now."""
        return self._handle.full()

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self).of, (self._handle,)


class Topic(_Putting):
    """A broadcast topic for tasks of an event loop.  Parameters as for ``shmq.Topic``."""

    __slots__ = ()
    _handle: topic.Topic

    def __init__(self, name: str | None = None, **parameters: Any) -> None:
        self._adopt(topic.Topic(name, **parameters))

    @classmethod
    def of(cls, handle: topic.Topic) -> Self:
        """For a handle that is open; both may be used, and closing either closes both."""
        self = cls.__new__(cls)
        self._adopt(handle)
        return self

    @classmethod
    def create(cls, name: str, **parameters: Any) -> Self:
        """Makes the segment; ``NameTaken`` if there is one already.  Parameters as for ``shmq.Topic``."""
        return cls.of(topic.Topic.create(name, **parameters))

    @classmethod
    def attach(cls, name: str, **parameters: Any) -> Self:
        """Opens what exists, or raises ``SegmentNotFound``.  Parameters as for ``shmq.Topic.attach``."""
        return cls.of(topic.Topic.attach(name, **parameters))

    async def publish(self, obj: Any, timeout: float | None = None) -> None:
        """Sends ``obj`` to every subscriber: the same as ``put``."""
        await self.put(obj, timeout)

    async def publish_many(self, objs: Any, timeout: float | None = None) -> int:
        """Sends every object of an iterable, in order: the same as ``put_many``."""
        return await self.put_many(objs, timeout)

    def subscribe(
        self,
        history: int | None = None,
        *,
        allow_pickle: bool = False,
        arrays: Arrays = "auto",
        type: Any = None,
    ) -> "Subscription":
        """A new subscription; parameters as for ``shmq.Topic.subscribe``."""
        options: dict[str, Any] = {"allow_pickle": allow_pickle, "arrays": arrays, "type": type}
        return Subscription.of(self._handle.subscribe(history, **options))

    def full(self) -> bool:
        """True if a publisher would have to wait for a subscriber now (policy "block")."""
        return self._handle.full()

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self).of, (self._handle,)


class Subscription(_Getting):
    """One subscriber's side of a topic; made by ``Topic.subscribe``.  See ``shmq.Subscription``."""

    __slots__ = ()
    _handle: topic.Subscription

    @classmethod
    def of(cls, handle: topic.Subscription) -> Self:
        """For a subscription that is open; both may be used, and closing either closes both."""
        self = cls.__new__(cls)
        self._adopt(handle)
        return self

    def qsize(self) -> int:
        """Messages before this subscriber.  Others may publish at any moment."""
        return self._handle.qsize()

    def empty(self) -> bool:
        """True if no message waits for this subscriber now."""
        return self._handle.empty()

    @property
    def missed(self) -> int:
        """Messages that were written over before it got them (policy "drop_oldest")."""
        return self._handle.missed

    @property
    def evicted(self) -> bool:
        """True if a publisher has ended this subscription (policy "evict")."""
        return self._handle.evicted
