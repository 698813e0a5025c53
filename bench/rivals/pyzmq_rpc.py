"""pyzmq, for the suite rpc: DEALER to ROUTER over ipc://; zmq.asyncio but for the workers.

Requests and tokens are msgpack, as shmq's are."""

from __future__ import annotations

import asyncio
import importlib
import secrets
from collections.abc import AsyncIterator
from typing import Any

import msgspec

from .. import services
from ..endpoint import Endpoint, Side, Spec
from .pyzmq import LAUNCH, POLLS, missing

__all__ = ["LAUNCH", "NAME", "POLLS", "missing", "open_side", "unwire", "wire"]

NAME = "pyzmq asyncio, ROUTER"
_encode, _decode = msgspec.msgpack.encode, msgspec.msgpack.decode


def wire(spec: Spec) -> Any:
    name = secrets.token_hex(4)
    return {service: f"ipc://{spec.directory}/zmq-{name}-{service}" for service in ("call", "front", "pool")}


def unwire(wiring: Any) -> None:
    """The sockets lie in the harness's directory and go with it."""


def open_side(spec: Spec, wiring: Any, side: Side) -> Endpoint:
    service = _Service(wiring)
    return Endpoint(service=service, close=service.close)


class _Service:
    """Each part opens what it needs once, and keeps it. A message is [number of its request, what it says];
    None ends a stream."""

    def __init__(self, urls: dict[str, str]) -> None:
        self._urls = urls
        self._zmq = importlib.import_module("zmq")
        self._context = self._zmq.Context()
        self._loop_context = importlib.import_module("zmq.asyncio").Context()
        self._open: dict[tuple[str, str], Any] = {}
        self._runner = asyncio.Runner()

    def _opened(self, context: Any, kind: str, service: str) -> Any:
        if (kind, service) not in self._open:
            socket = self._open[kind, service] = context.socket(getattr(self._zmq, kind))
            socket.setsockopt(self._zmq.LINGER, 0)
            (socket.bind if kind == "ROUTER" else socket.connect)(self._urls[service])
        return self._open[kind, service]

    def close(self) -> None:
        async def destroy() -> None:
            self._loop_context.destroy(linger=0)

        self._runner.run(destroy())
        self._runner.close()
        self._context.destroy(linger=0)

    def ask(self, count: int, rate: float) -> services.Times:
        socket = self._opened(self._context, "DEALER", "call")

        def call(prompt: bytes) -> Any:
            socket.send(_encode([1, prompt]))
            return _decode(socket.recv())[1]

        return services.call_on_schedule(call, count, rate)

    def answer(self, count: int) -> None:
        socket = self._opened(self._context, "ROUTER", "call")
        for _ in range(count):
            caller, message = socket.recv_multipart()
            socket.send_multipart([caller, _encode(_decode(message))])

    def front(self, count: int, rate: float) -> services.Times:
        async def ask() -> services.Times:
            socket = self._opened(self._loop_context, "DEALER", "front")

            async def stream(prompt: bytes) -> AsyncIterator[Any]:
                await socket.send(_encode([1, prompt]))
                while (token := _decode(await socket.recv())[1]) is not None:
                    yield token

            return await services.stream_on_schedule(stream, count, rate)

        return list(self._runner.run(ask()))

    def schedule(self, count: int) -> None:
        async def forward() -> None:
            callers = self._opened(self._loop_context, "ROUTER", "front")
            workers = self._opened(self._loop_context, "DEALER", "pool")
            for _ in range(count):
                caller, message = await callers.recv_multipart()
                await workers.send(_encode(_decode(message)))
                token: Any = ()
                while token is not None:
                    number, token = _decode(await workers.recv())
                    await callers.send_multipart([caller, _encode([number, token])])

        self._runner.run(forward())

    def work(self, count: int) -> None:
        socket = self._opened(self._context, "ROUTER", "pool")
        for _ in range(count):
            caller, message = socket.recv_multipart()
            number, prompt = _decode(message)
            for token in (*services.tokens(prompt), None):
                socket.send_multipart([caller, _encode([number, token])])
