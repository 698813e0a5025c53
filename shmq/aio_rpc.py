"""``aio.Server`` and ``aio.Client``: request and reply, with tasks that wait; see ``rpc.py`` for threads.

async with aio.Server("embed") as server:
    await server.serve(handler)             # handler(value): a coroutine, an async generator, or a function
async with aio.Client("embed") as client:
    vectors = await client.call({"texts": texts}, timeout=1.0)
    async for token in client.stream(prompt, timeout=30.0):
        ...

Cancelling a task that waits for an answer cancels its request; the server's handler is then cancelled, too.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from functools import partial
from inspect import isasyncgen, isawaitable, isgenerator
from types import TracebackType
from typing import Any, NoReturn, Self

from . import errors
from .aio import Queue, Subscription
from .calls import Call, Calls, ClientStats, Streamed
from .clock import deadline_ns
from .doorbell import Waits
from .handle import Handle
from .jobs import Job, Jobs, ServerStats
from .protocol import DAY_NS, FOLLOW, GET, PUT, Settings, Sizes, Steps
from .rpc import (
    ARENA_BYTES,
    MAX_PEERS,
    PATIENCE_S,
    REPLY_ARENA_BYTES,
    REPLY_RING_BYTES,
    RING_BYTES,
)
from .tensor import Arrays

LOOK_S = 0.25
"""How often a server that is busy looks whether its clients are alive."""


class _Event:
    """What a follower awaits; a future where ``asyncio.Event`` would make one, too."""

    __slots__ = ("_future",)

    def __init__(self) -> None:
        self._future: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def set(self) -> None:
        if not self._future.done():
            self._future.set_result(None)

    async def wait(self, timeout: float) -> None:
        if timeout * 1e9 >= DAY_NS:
            return await self._future
        timer = self._future.get_loop().call_later(timeout, self.set)
        try:
            await self._future
        finally:
            timer.cancel()


async def drive(steps: Steps) -> Any:
    """Takes each step by awaiting it.  A cancellation is thrown into the step where it struck."""
    try:
        step = next(steps)
        while True:
            try:
                result = await _take(*step)
            except BaseException as e:
                step = steps.throw(e)
            else:
                step = steps.send(result)
    except StopIteration as stop:
        return stop.value


async def _take(kind: str, on: Any, *arguments: Any) -> Any:
    if kind == PUT:
        return await Queue.of(on).put(arguments[0], timeout=arguments[1])
    if kind == GET:
        return await Queue.of(on).get(timeout=arguments[0])
    if kind == FOLLOW:
        return await on.wait(arguments[0])
    return await Queue.of(on)._lease_undecoded(arguments[0])


def _end(handle: Handle) -> None:
    """Closes it, for the tasks that wait there, too."""
    handle.close()
    Waits.of(handle).close()


class Client:
    """Calls the servers of a service, opened or created.  Parameters as for ``shmq.Client``.

    Any number of tasks of one event loop may share it."""

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
        self._calls = Calls(settings, _Event, _end)

    @property
    def name(self) -> str:
        """Of the service."""
        return self._calls.name

    async def call(self, obj: Any, timeout: float | None = None, *, retries: int = 0) -> Any:
        """Sends ``obj`` to one of the servers and returns its answer, within ``timeout`` seconds, if given.

        Cancelled, the request is cancelled, too.  Otherwise as ``shmq.Client.call``."""
        return await drive(self._calls.call(obj, deadline_ns(timeout), retries))

    def stream(self, obj: Any, timeout: float | None = None, *, retries: int = 0) -> "Stream":
        """``async for answer in client.stream(obj)``.  Otherwise as ``shmq.Client.stream``."""
        return Stream(self._calls, Streamed(Call(0, True, deadline_ns(timeout)), obj, retries))

    async def wait_for_server(self, timeout: float | None = None) -> None:
        """Returns once a server is attached; ``TimeoutError`` after ``timeout`` seconds."""
        deadline = deadline_ns(timeout)
        while not self._calls.has_server():
            if time.monotonic_ns() >= deadline:
                raise TimeoutError(f"service {self.name!r}: no server is attached")
            await asyncio.sleep(0.01)

    def stats(self) -> ClientStats:
        """What this client did so far."""
        return self._calls.stats

    def close(self) -> None:
        """Cancels what is pending; tasks that wait wake up with ``Closed``."""
        self._calls.close()

    def unlink(self) -> None:
        """Removes the service's names; whoever is attached goes on."""
        self._calls.unlink()

    def __reduce__(self) -> tuple[Any, ...]:
        if self._calls.closed:
            raise errors.Closed(f"service {self.name!r}: a closed client cannot be pickled")
        return _unpickle, (type(self), self._calls.settings)

    def __repr__(self) -> str:
        return f"<shmq.aio.Client of {self.name!r}{' closed' if self._calls.closed else ''}>"

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _unpickle(cls: type[Client], settings: Settings) -> Client:
    self = cls.__new__(cls)
    self._calls = Calls(settings, _Event, _end)
    return self


class Stream:
    """The answers to one request, made by ``Client.stream``.  One task at a time."""

    __slots__ = ("_calls", "_streamed")

    def __init__(self, calls: Calls, streamed: Streamed) -> None:
        self._calls = calls
        self._streamed: Streamed | None = streamed

    def __aiter__(self) -> AsyncIterator[Any]:
        return self

    async def __anext__(self) -> Any:
        if self._streamed is not None:
            try:
                for item in self._calls.item_now(self._streamed) or await drive(
                    self._calls.item(self._streamed)
                ):
                    return item
                self._streamed = None
            except BaseException:
                self._streamed = None
                raise
        raise StopAsyncIteration

    def close(self) -> None:
        """Its server learns that nobody waits for the rest; again, or after the end: nothing."""
        streamed, self._streamed = self._streamed, None
        if streamed is not None:
            self._calls.abandon(streamed.call)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        if getattr(self, "_streamed", None) is not None:
            self.close()


class Request(Job):
    """A request that a server took, until it is answered; see ``shmq.Request``."""

    __slots__ = ()

    async def reply(self, value: Any) -> None:
        """The answer; of a stream the only one.  Nothing, where nobody waits for it any more."""
        await drive(self._jobs.reply(self, value))

    async def send(self, value: Any) -> None:
        """The next of a stream's answers; ``end`` is the last word.  ``Cancelled`` as in ``shmq.Request``.

        A task that is cancelled here has not sent it."""
        if not self._jobs.try_send(self, value):
            await drive(self._jobs.send(self, value))

    async def end(self) -> None:
        """The stream is complete."""
        await drive(self._jobs.end(self))

    async def fail(self, error: BaseException) -> None:
        """The caller gets ``error``, as a ``RemoteError``."""
        await drive(self._jobs.fail(self, error))


class Server:
    """Serves the requests of a service in an event loop.  Parameters as for ``shmq.Server``.

    As an asynchronous context manager it waits, on a clean exit, for what ``serve`` has at work."""

    __slots__ = ("_jobs", "_tasks")

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
        self._jobs = Jobs(name, sizes, arrays, idempotent, patience, Request, _end)
        self._jobs.when_cancelled = self._cancel
        self._tasks: dict[tuple[str, int], tuple[Request, asyncio.Task[None]]] = {}

    @property
    def name(self) -> str:
        """Of the service."""
        return self._jobs.name

    async def next(self, timeout: float | None = None) -> Request:
        """The next request; waits up to ``timeout`` seconds (None: for ever).  As ``shmq.Server.next``.

        Cancelled, it has taken none."""
        request: Request | None = await drive(self._jobs.next(deadline_ns(timeout)))
        if request is None:
            raise errors.ShutDown(f"service {self.name!r}: this server was stopped")
        return request

    async def __aiter__(self) -> AsyncIterator[Request]:
        """Requests, until the service is shut down and drained, or this server is stopped."""
        while True:
            try:
                request = await self.next()
            except errors.ShutDown:
                return
            yield request
            del request

    async def serve(self, handler: Callable[[Any], Any], concurrency: int = 64) -> None:
        """Answers each request with ``handler(value)``, a task for each, up to ``concurrency`` at a time.

        Its coroutine is awaited; an asynchronous generator, or a generator, is a stream; an ordinary function
        holds up the others while it runs.  A handler is cancelled when nobody waits for its answer any more.
        Its exception is raised at the caller.  Returns when the server is stopped or the service shut down,
        and all that were begun are done; cancelled, it cancels them, as if this server had died."""
        if concurrency < 1:
            raise ValueError(f"concurrency={concurrency}: must be at least 1")
        room = asyncio.Semaphore(concurrency)
        watcher = asyncio.create_task(self._watch())
        mine: set[asyncio.Task[None]] = set()
        failed: list[BaseException] = []

        def done(request: Request, task: "asyncio.Task[None]") -> None:
            mine.discard(task)
            if (found := self._tasks.get(request.key)) is not None and found[1] is task:
                del self._tasks[request.key]
            if not request.answered:  # cancelled before its first step
                (self._jobs.drop if request.cancelled else self._jobs.give_back)(request)
            room.release()
            if not task.cancelled() and (error := task.exception()) is not None:
                failed.append(error)
                self.stop()

        try:
            while not failed:
                await room.acquire()
                try:
                    request = await self.next()
                except errors.ShutDown:
                    break
                task = asyncio.create_task(self._answer(request, handler))
                self._tasks[request.key] = request, task
                mine.add(task)
                task.add_done_callback(partial(done, request))
                del request, task
            while mine:
                await asyncio.wait(mine)
        finally:
            for task in (watcher, *mine):
                task.cancel()
            await asyncio.gather(watcher, *mine, return_exceptions=True)
        if failed:
            raise failed[0]

    async def _answer(self, request: Request, handler: Callable[[Any], Any]) -> None:
        left_s = None if request.deadline is None else max(0.0, request.deadline - time.monotonic())
        scope = asyncio.timeout(left_s)
        result = None
        try:
            async with scope:
                result = handler(request.value)
                if isasyncgen(result):
                    async for item in result:
                        await request.send(item)
                    await request.end()
                elif isgenerator(result):
                    for item in result:
                        await request.send(item)
                    await request.end()
                else:
                    await request.reply(await result if isawaitable(result) else result)
        except asyncio.CancelledError:
            if not request.cancelled:  # this server is
                self._jobs.give_back(request)
                raise
            self._jobs.drop(request)
        except BaseException as e:
            if scope.expired():
                self._jobs.drop(request)
            elif not request.answered:
                await request.fail(e)
            if not isinstance(e, Exception):
                raise
        finally:
            if isasyncgen(result):
                await result.aclose()

    def _cancel(self, key: tuple[str, int]) -> None:
        found = self._tasks.get(key)
        if found is not None:
            found[1].cancel()

    async def _watch(self) -> None:
        """Learns of cancellations as they come, and looks after the clients."""
        cancellations = Subscription.of(self._jobs.cancellations)
        while True:
            try:
                self._jobs.note_cancellation(await cancellations.get(timeout=LOOK_S))
            except (errors.Empty, errors.PeerDead, errors.DecodeError):
                pass
            except (errors.ShutDown, errors.Closed):
                return
            self._jobs.look_at_clients()
            for request, task in list(self._tasks.values()):
                if request._caller.gone:
                    task.cancel()

    def stop(self) -> None:
        """This server takes no further request; ``serve`` returns when those at work are answered."""
        self._jobs.stopping = True

    def shutdown(self) -> None:
        """Ends the service: calls raise ``ShutDown`` from now on, all its servers do what waits, and end."""
        self._jobs.requests.shutdown()

    def stats(self) -> ServerStats:
        """What this server did so far."""
        return self._jobs.stats()

    def close(self) -> None:
        """Stops, and gives back what is not answered, for another server."""
        self._jobs.close()

    def unlink(self) -> None:
        """Removes the service's names; whoever is attached goes on."""
        self._jobs.unlink()

    def __reduce__(self) -> NoReturn:
        raise TypeError("a server cannot be pickled; open one of the same name in the other process")

    def __repr__(self) -> str:
        return f"<shmq.aio.Server of {self.name!r}{' closed' if self._jobs.requests.closed else ''}>"

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
        if kind is None and self._tasks:
            await asyncio.wait([task for _, task in self._tasks.values()])
        self.close()
