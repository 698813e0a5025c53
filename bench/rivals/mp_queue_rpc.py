"""multiprocessing.Queue, for the suite rpc: threads feed the event loop in front, and forward in between."""

from __future__ import annotations

import asyncio
import multiprocessing
import threading
from collections.abc import AsyncIterator
from typing import Any

from .. import services
from ..endpoint import Endpoint, Side, Spec

NAME = "mp.Queue + threads"
LAUNCH = "spawn"
POLLS = False
_QUEUES = ("asked", "answered", "to_scheduler", "to_worker", "from_worker", "to_front")


def missing() -> str | None:
    return None


def wire(spec: Spec) -> Any:
    context = multiprocessing.get_context("spawn")
    return {name: context.Queue() for name in _QUEUES}


def unwire(wiring: Any) -> None:
    for queue in wiring.values():
        queue.close()


def open_side(spec: Spec, wiring: Any, side: Side) -> Endpoint:
    return Endpoint(service=_Service(wiring))


class _Service:
    """A message is (number of its request, what it says); None ends a stream."""

    def __init__(self, queues: dict[str, Any]) -> None:
        self._queues = queues

    def ask(self, count: int, rate: float) -> services.Times:
        put, get = self._queues["asked"].put, self._queues["answered"].get

        def call(prompt: bytes) -> Any:
            put((1, prompt))
            return get()[1]

        return services.call_on_schedule(call, count, rate)

    def answer(self, count: int) -> None:
        put, get = self._queues["answered"].put, self._queues["asked"].get
        for _ in range(count):
            put(get())

    def front(self, count: int, rate: float) -> services.Times:
        return asyncio.run(self._front(count, rate))

    async def _front(self, count: int, rate: float) -> services.Times:
        loop, arrived = asyncio.get_running_loop(), asyncio.Queue[Any]()
        put, get = self._queues["to_scheduler"].put, self._queues["to_front"].get

        def read() -> None:
            for _ in range(count * (services.TOKENS + 1)):
                loop.call_soon_threadsafe(arrived.put_nowait, get())

        async def stream(prompt: bytes) -> AsyncIterator[Any]:
            put((1, prompt))
            while (token := (await arrived.get())[1]) is not None:
                yield token

        reader = threading.Thread(target=read)
        reader.start()
        times = await services.stream_on_schedule(stream, count, rate)
        reader.join()
        return times

    def schedule(self, count: int) -> None:
        def forward(source: str, target: str, messages: int) -> None:
            get, put = self._queues[source].get, self._queues[target].put
            for _ in range(messages):
                put(get())

        there = threading.Thread(target=forward, args=("to_scheduler", "to_worker", count))
        there.start()
        forward("from_worker", "to_front", count * (services.TOKENS + 1))
        there.join()

    def work(self, count: int) -> None:
        get, put = self._queues["to_worker"].get, self._queues["from_worker"].put
        for _ in range(count):
            number, prompt = get()
            for token in (*services.tokens(prompt), None):
                put((number, token))
