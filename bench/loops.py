"""The same work as coroutines: one way through an event loop, and there and back with both sides parked."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from itertools import repeat
from typing import Any

from .endpoint import Endpoint
from .jobs import clock, message, need


@dataclass(frozen=True)
class Loop:
    """One side of a transport for the tasks of an event loop, which is the same for all jobs."""

    run: Callable[[Any], Any]
    """Runs a coroutine to its end."""
    put: Callable[[bytes], Awaitable[object]]
    get: Callable[[], Awaitable[Any]]
    messages: Callable[[], AsyncIterator[Any]] | None = None
    """For ``async for``; None: it has only ``get``."""


def endpoint(loop: Loop, close: Callable[[], object], payload: Callable[[Any], bytes] = bytes) -> Endpoint:
    """With blocking calls for the pass that verifies."""

    async def put(data: bytes) -> None:
        await loop.put(data)

    async def get() -> Any:
        return await loop.get()

    return Endpoint(
        put=lambda data: loop.run(put(data)),
        get=lambda: loop.run(get()),
        payload=payload,
        loop=loop,
        close=close,
    )


def loop_send(end: Endpoint, count: int, size: int) -> int:
    loop, data = need(end.loop), message(size, 1)

    async def send() -> int:
        put = loop.put
        start = clock()
        for _ in repeat(None, count):
            await put(data)
        return start

    return int(loop.run(send()))


def loop_receive(end: Endpoint, count: int) -> int:
    """By ``async for`` where the transport has it."""
    loop = need(end.loop)

    async def iterate(messages: AsyncIterator[Any]) -> int:
        left = count
        async for _ in messages:
            left -= 1
            if left == 0:
                break
        return clock()

    async def receive() -> int:
        get = loop.get
        for _ in repeat(None, count):
            await get()
        return clock()

    return int(loop.run(receive() if loop.messages is None else iterate(loop.messages())))


def loop_ping_parked(end: Endpoint, count: int, size: int, gap: float) -> list[int]:
    """As ``jobs.ping_parked``: the loop idles before each put."""
    loop, data = need(end.loop), message(size, 1)

    async def ping() -> list[int]:
        stamps = [0] * (2 * count)
        for i in range(0, 2 * count, 2):
            await asyncio.sleep(gap)
            stamps[i] = clock()
            await loop.put(data)
            await loop.get()
            stamps[i + 1] = clock()
        return stamps

    return list(loop.run(ping()))


def loop_pong_parked(end: Endpoint, count: int, size: int, gap: float) -> list[int]:
    loop, data = need(end.loop), message(size, 1)

    async def pong() -> list[int]:
        stamps = [0] * (2 * count)
        for i in range(0, 2 * count, 2):
            await loop.get()
            stamps[i] = clock()
            await asyncio.sleep(gap)
            stamps[i + 1] = clock()
            await loop.put(data)
        return stamps

    return list(loop.run(pong()))
