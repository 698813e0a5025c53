"""A bare pipe that an event loop polls: its reader wakes the task that waits, nothing else. aio's floor."""

from __future__ import annotations

import asyncio
import os
from collections import deque
from typing import Any

from . import loops
from .endpoint import Endpoint, Side, Spec, Unsuited

NAME = "pipe, add_reader"
LAUNCH = "fork"
POLLS = False

_ATOMIC_BYTES = 4096


def missing() -> str | None:
    return None


def wire(spec: Spec) -> Any:
    if spec.max_bytes > _ATOMIC_BYTES:
        raise Unsuited(f"a pipe keeps messages of up to {_ATOMIC_BYTES} bytes together")
    return os.pipe() + os.pipe()


def unwire(wiring: Any) -> None:
    for fd in wiring:
        os.close(fd)


def open_side(spec: Spec, wiring: Any, side: Side) -> Endpoint:
    there_r, there_w, back_r, back_w = wiring
    r, w = (back_r, there_w) if side == "a" else (there_r, back_w)
    runner = asyncio.Runner()
    loop = runner.get_loop()
    waiter: asyncio.Future[bytes] | None = None
    early: deque[bytes] = deque()

    def arrived() -> None:
        data = os.read(r, spec.max_bytes)
        if waiter is None or waiter.done():
            early.append(data)
        else:
            waiter.set_result(data)

    async def put(data: bytes) -> None:
        os.write(w, data)

    async def get() -> bytes:
        nonlocal waiter
        if early:
            return early.popleft()
        waiter = loop.create_future()
        return await waiter

    loop.add_reader(r, arrived)
    return loops.endpoint(loops.Loop(runner.run, put, get), runner.close)
