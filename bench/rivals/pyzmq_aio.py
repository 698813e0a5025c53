"""pyzmq's sockets for asyncio, PUSH/PULL over ipc://."""

from __future__ import annotations

import asyncio
import importlib
from typing import Any

from .. import loops
from ..endpoint import Endpoint, Side, Spec
from .pyzmq import LAUNCH, POLLS, missing, unwire, wire

__all__ = ["LAUNCH", "NAME", "POLLS", "missing", "open_side", "unwire", "wire"]

NAME = "pyzmq asyncio"


def open_side(spec: Spec, wiring: Any, side: Side) -> Endpoint:
    zmq, zmq_asyncio = importlib.import_module("zmq"), importlib.import_module("zmq.asyncio")
    out_url, back_url = wiring if side == "a" else reversed(wiring)
    runner = asyncio.Runner()
    context = zmq_asyncio.Context()

    async def open_sockets() -> tuple[Any, Any]:
        out, back = context.socket(zmq.PUSH), context.socket(zmq.PULL)
        for socket in (out, back):
            socket.setsockopt(zmq.LINGER, 0)
            socket.set_hwm(spec.in_flight)
        out.bind(out_url)
        back.connect(back_url)
        return out, back

    out, back = runner.run(open_sockets())

    async def close_sockets() -> None:
        context.destroy(linger=0)

    def close() -> None:
        runner.run(close_sockets())
        runner.close()

    return loops.endpoint(loops.Loop(runner.run, out.send, back.recv), close)
