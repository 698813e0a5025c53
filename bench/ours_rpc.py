"""shmq.Server and Client, for the suite rpc: an event loop in front, one between, threads at the end."""

from __future__ import annotations

import asyncio
import importlib
import secrets
from contextlib import ExitStack
from itertools import islice
from typing import Any

from . import services
from .endpoint import Endpoint, Side, Spec
from .ours import LAUNCH, POLLS, missing

__all__ = ["LAUNCH", "NAME", "POLLS", "missing", "open_side", "unwire", "wire"]

NAME = "shmq"
_SERVICES = ("call", "front", "pool")
_PATIENT_S = 60.0


def wire(spec: Spec) -> str:
    return f"bench-{secrets.token_hex(6)}"


def unwire(wiring: str) -> None:
    shmq: Any = importlib.import_module("shmq")
    for service in _SERVICES:
        with shmq.Client(f"{wiring}.{service}") as client:
            client.unlink()


def open_side(spec: Spec, wiring: str, side: Side) -> Endpoint:
    service = _Service(wiring)
    return Endpoint(service=service, close=service.close)


class _Service:
    """Each part opens what it needs once, and keeps it."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._open: dict[tuple[str, str], Any] = {}
        self._stack = ExitStack()
        self._runner = self._stack.enter_context(asyncio.Runner())

    def _opened(self, kind: str, service: str) -> Any:
        """A `Client` or `Server` of that service; `aio.` in front: for the event loop."""
        if (kind, service) not in self._open:
            module = importlib.import_module("shmq.aio" if kind.startswith("aio.") else "shmq")
            made = getattr(module, kind.removeprefix("aio."))(f"{self._name}.{service}")
            self._open[kind, service] = made
            self._stack.callback(made.close)
        return self._open[kind, service]

    def close(self) -> None:
        self._stack.close()

    def ask(self, count: int, rate: float) -> services.Times:
        client = self._opened("Client", "call")
        client.wait_for_server(_PATIENT_S)
        return services.call_on_schedule(client.call, count, rate)

    def answer(self, count: int) -> None:
        for request in islice(self._opened("Server", "call"), count):
            request.reply(request.value)

    def front(self, count: int, rate: float) -> services.Times:
        async def ask() -> services.Times:
            client = self._opened("aio.Client", "front")
            await client.wait_for_server(_PATIENT_S)
            return await services.stream_on_schedule(client.stream, count, rate)

        return list(self._runner.run(ask()))

    def schedule(self, count: int) -> None:
        async def forward() -> None:
            workers = self._opened("aio.Client", "pool")
            await workers.wait_for_server(_PATIENT_S)
            server = self._opened("aio.Server", "front")
            for _ in range(count):
                request = await server.next()
                async for token in workers.stream(request.value):
                    await request.send(token)
                await request.end()

        self._runner.run(forward())

    def work(self, count: int) -> None:
        for request in islice(self._opened("Server", "pool"), count):
            for token in services.tokens(request.value):
                request.send(token)
            request.end()
