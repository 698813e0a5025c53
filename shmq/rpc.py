"""``Server`` and ``Client``: request and reply, with threads that wait.  Logic: ``calls.py``, ``jobs.py``.

with shmq.Server("embed") as server:        # in any number of worker processes
    server.serve(handler)                   # handler(value) returns the answer; a generator: a stream
with shmq.Client("embed") as client:        # in any number of others
    vectors = client.call({"texts": texts}, timeout=1.0)
    for token in client.stream(prompt, timeout=30.0):
        ...
"""

import threading
import time
from collections.abc import Callable, Iterator
from inspect import isgenerator
from types import TracebackType
from typing import Any, NoReturn, Self

from . import errors
from .calls import Call, Calls, ClientStats, Streamed
from .clock import deadline_ns
from .handle import Handle
from .jobs import Job, Jobs, ServerStats
from .protocol import FOLLOW, GET, PUT, Settings, Sizes, Steps
from .tensor import Arrays

RING_BYTES = 1 << 19
ARENA_BYTES = 32 << 20
MAX_PEERS = 256
REPLY_RING_BYTES = 1 << 18
REPLY_ARENA_BYTES = 8 << 20
PATIENCE_S = 5.0


def block(steps: Steps) -> Any:
    """Takes each step by waiting for it."""
    try:
        step = next(steps)
        while True:
            try:
                result = _take(*step)
            except BaseException as e:
                step = steps.throw(e)
            else:
                step = steps.send(result)
    except StopIteration as stop:
        return stop.value


def _take(kind: str, on: Any, *arguments: Any) -> Any:
    if kind == PUT:
        return on.put(arguments[0], timeout=arguments[1])
    if kind == GET:
        return on.get(timeout=arguments[0])
    if kind == FOLLOW:
        return on.wait(arguments[0])
    return on._lease(deadline_ns(arguments[0]))


class Client:
    """Calls the servers of a service, opened or created.

    ``name`` is the service's; its requests wait in the queue of this name, whose sizes (``ring_bytes``,
    ``arena_bytes``, ``max_peers``: how many clients and servers) count only where this call creates it.
    ``reply_ring_bytes`` and ``reply_arena_bytes`` are the sizes of this client's own reply queue, which is
    made at the first call and removed by ``close()``.  ``arrays``: as for ``Queue``.

    Threads may share a client: each gets its own replies.  A pickled one, and one in a forked child, becomes
    a client of its own on first use."""

    __slots__ = ("__weakref__", "_calls")

    def __init__(
        self,
        name: str,
        *,
        ring_bytes: int = RING_BYTES,
        arena_bytes: int = ARENA_BYTES,
        max_peers: int = MAX_PEERS,
        reply_ring_bytes: int = REPLY_RING_BYTES,
        reply_arena_bytes: int = REPLY_ARENA_BYTES,
        arrays: Arrays = "auto",
    ) -> None:
        sizes = Sizes(ring_bytes, arena_bytes, max_peers)
        settings = Settings(name, sizes, reply_ring_bytes, reply_arena_bytes, arrays)
        self._calls = Calls(settings, threading.Event, Handle.close)

    @property
    def name(self) -> str:
        """Of the service."""
        return self._calls.name

    def call(self, obj: Any, timeout: float | None = None, *, retries: int = 0) -> Any:
        """Sends ``obj`` to one of the servers and returns its answer, within ``timeout`` seconds, if given.

        Arrays in the answer are views of this client's reply memory; drop them soon, or the servers find no
        room.

        Raises ``DeadlineExceeded``; ``RemoteError`` (also a ValueError, KeyError, ... if the handler raised
        one); ``ServerDied`` within 250 ms of the death of the server that had it, if no other may try again,
        or of the last server; ``retries`` calls again that often first.  ``Unencodable``,
        ``MessageTooLarge``, ``ShutDown``, ``Closed``."""
        return block(self._calls.call(obj, deadline_ns(timeout), retries))

    def stream(self, obj: Any, timeout: float | None = None, *, retries: int = 0) -> "Stream":
        """Sends ``obj`` with the first ``next``, and yields the answers one by one, all within ``timeout``.

        Raises like ``call``.  A stream that is closed or dropped before its end is cancelled.  Where another
        server begins it again (``Server(idempotent=True)``, or ``retries``), what was had is skipped: it must
        produce the same again."""
        return Stream(self._calls, Streamed(Call(0, True, deadline_ns(timeout)), obj, retries))

    def wait_for_server(self, timeout: float | None = None) -> None:
        """Returns once a server is attached; ``TimeoutError`` after ``timeout`` seconds."""
        deadline = deadline_ns(timeout)
        while not self._calls.has_server():
            if time.monotonic_ns() >= deadline:
                raise TimeoutError(f"service {self.name!r}: no server is attached")
            time.sleep(0.01)

    def stats(self) -> ClientStats:
        """What this client did so far."""
        return self._calls.stats

    def close(self) -> None:
        """Cancels what is pending, and gives back the reply memory once the last view of it dies."""
        self._calls.close()

    def unlink(self) -> None:
        """Removes the service's names; whoever is attached goes on."""
        self._calls.unlink()

    def __reduce__(self) -> tuple[Any, ...]:
        if self._calls.closed:
            raise errors.Closed(f"service {self.name!r}: a closed client cannot be pickled")
        return _unpickle, (type(self), self._calls.settings)

    def __repr__(self) -> str:
        return f"<shmq.Client of {self.name!r}{' closed' if self._calls.closed else ''}>"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _unpickle(cls: type[Client], settings: Settings) -> Client:
    self = cls.__new__(cls)
    self._calls = Calls(settings, threading.Event, Handle.close)
    return self


class Stream:
    """The answers to one request, made by ``Client.stream``.  One thread at a time."""

    __slots__ = ("_calls", "_streamed")

    def __init__(self, calls: Calls, streamed: Streamed) -> None:
        self._calls = calls
        self._streamed: Streamed | None = streamed

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        if self._streamed is not None:
            try:
                for item in self._calls.item_now(self._streamed) or block(self._calls.item(self._streamed)):
                    return item
                self._streamed = None
            except BaseException:
                self._streamed = None
                raise
        raise StopIteration

    def close(self) -> None:
        """Its server learns that nobody waits for the rest; again, or after the end: nothing."""
        streamed, self._streamed = self._streamed, None
        if streamed is not None:
            self._calls.abandon(streamed.call)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        if getattr(self, "_streamed", None) is not None:
            self.close()


class Request(Job):
    """A request that a server took, until it is answered.  Any thread.

    ``value`` is what the client sent; arrays in it are read-only views of the service's memory.  One that is
    dropped without an answer counts as if its server had died."""

    __slots__ = ()

    def reply(self, value: Any) -> None:
        """The answer; of a stream the only one.  Nothing, where nobody waits for it any more.

        ``Unencodable``, ``MessageTooLarge``: the request is still open, and can be failed."""
        block(self._jobs.reply(self, value))

    def send(self, value: Any) -> None:
        """The next of a stream's answers; ``end`` is the last word.  Waits for room in the client's memory.

        ``Cancelled`` where nobody waits for it any more, or the client has not read for longer than the
        server's patience; the request is then over."""
        if not self._jobs.try_send(self, value):
            block(self._jobs.send(self, value))

    def end(self) -> None:
        """The stream is complete."""
        block(self._jobs.end(self))

    def fail(self, error: BaseException) -> None:
        """The caller gets ``error``, as a ``RemoteError``."""
        block(self._jobs.fail(self, error))


class Server:
    """Serves the requests of a service, one of any number of workers; opened or created.

    ``idempotent``: what becomes of a request whose worker died.  False: its caller gets ``ServerDied``, and
    may call again; True: another worker does it again, up to four times, and a stream from its start.
    ``patience``: how many seconds a reply waits for room at a client that does not read.  Then the request is
    given up, and so is at once every further one of this client, until it reads.  So in the worst case each
    client can hold up each thread of this server once for so long.  The sizes are those of the request queue,
    as for ``Client``.  Up to 48 servers can serve a service.

    Threads may share a server; processes may not, each opens its own."""

    __slots__ = ("_jobs", "_serving", "_turn")

    def __init__(
        self,
        name: str,
        *,
        idempotent: bool = False,
        patience: float = PATIENCE_S,
        ring_bytes: int = RING_BYTES,
        arena_bytes: int = ARENA_BYTES,
        max_peers: int = MAX_PEERS,
        arrays: Arrays = "auto",
    ) -> None:
        sizes = Sizes(ring_bytes, arena_bytes, max_peers)
        self._jobs = Jobs(name, sizes, arrays, idempotent, patience, Request, Handle.close)
        self._serving: dict[threading.Thread, threading.Event] = {}
        self._turn = threading.Lock()

    @property
    def name(self) -> str:
        """Of the service."""
        return self._jobs.name

    def next(self, timeout: float | None = None) -> Request:
        """The next request; waits up to ``timeout`` seconds (None: for ever).

        Those that have expired, were cancelled or whose client is gone are passed over.  Raises ``Empty``;
        ``ShutDown`` when the service was shut down and is drained, or this server was stopped; ``Closed``."""
        deadline = deadline_ns(timeout)
        # Who arrives wakes every thread that waits in the queue, so only one of ours does.
        mine = self._turn.acquire(timeout=-1 if timeout is None else min(timeout, threading.TIMEOUT_MAX))
        try:
            request: Request | None = block(self._jobs.next(deadline))
        finally:
            if mine:
                self._turn.release()
        if request is None:
            raise errors.ShutDown(f"service {self.name!r}: this server was stopped")
        return request

    def __iter__(self) -> Iterator[Request]:
        """Requests, until the service is shut down and drained, or this server is stopped."""
        while True:
            try:
                request = self.next()
            except errors.ShutDown:
                return
            yield request
            del request

    def serve(self, handler: Callable[[Any], Any], threads: int = 1) -> None:
        """Answers each request with ``handler(value)``, in ``threads`` threads, until stopped or shut down.

        A generator is a stream.  An exception is raised at the caller, and the thread goes on; one that is no
        ``Exception`` also ends ``serve``."""
        if threads < 1:
            raise ValueError(f"threads={threads}: must be at least 1")
        failed: list[BaseException] = []

        def work() -> None:
            me, done = threading.current_thread(), threading.Event()
            self._serving[me] = done
            try:
                for request in self:
                    answer(request, handler)
                    del request
            except BaseException as e:
                self.stop()
                failed.append(e)
            finally:
                self._serving.pop(me, None)
                done.set()

        others = [threading.Thread(target=work, name=f"{self.name}-{i}") for i in range(1, threads)]
        for thread in others:
            thread.start()
        work()
        for thread in others:
            thread.join()
        if failed:
            raise failed[0]

    def stop(self) -> None:
        """This server takes no further request; ``serve`` returns when those at work are answered.

        Any thread may call it, and a signal handler.  The service's other servers go on."""
        self._jobs.stopping = True

    def shutdown(self) -> None:
        """Ends the service: calls raise ``ShutDown`` from now on, all its servers do what waits, and end."""
        self._jobs.requests.shutdown()

    def stats(self) -> ServerStats:
        """What this server did so far."""
        return self._jobs.stats()

    def close(self) -> None:
        """Stops, waits for ``serve``, then gives back what is not answered, for another server."""
        self.stop()
        if (mine := self._serving.pop(threading.current_thread(), None)) is not None:
            mine.set()  # a handler of ours: another one that closes does not wait for it
        for done in list(self._serving.values()):
            done.wait()
        self._jobs.close()

    def unlink(self) -> None:
        """Removes the service's names; whoever is attached goes on."""
        self._jobs.unlink()

    def __reduce__(self) -> NoReturn:
        raise TypeError("a server cannot be pickled; open one of the same name in the other process")

    def __repr__(self) -> str:
        return f"<shmq.Server of {self.name!r}{' closed' if self._jobs.requests.closed else ''}>"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def answer(request: Request, handler: Callable[[Any], Any]) -> None:
    """What ``handler`` returns, yields or raises."""
    result = None
    try:
        result = handler(request.value)
        if isgenerator(result):
            for item in result:
                request.send(item)
            request.end()
        else:
            request.reply(result)
    except BaseException as e:
        if not request.answered:
            request.fail(e)
        if not isinstance(e, Exception):
            raise
    finally:
        if isgenerator(result):
            result.close()
