"""pyzmq PUSH/PULL over tcp:// on the loopback interface: for programs that may be spread over hosts."""

from __future__ import annotations

import socket
from typing import Any

from ..endpoint import Endpoint, Side, Spec
from .pyzmq import LAUNCH, POLLS, missing, open_sockets

__all__ = ["LAUNCH", "NAME", "POLLS", "missing", "open_side", "unwire", "wire"]

NAME = "pyzmq tcp"


def wire(spec: Spec) -> Any:
    """A listening socket for each way, so that nobody else can take its port before pyzmq has it."""
    return tuple(socket.create_server(("127.0.0.1", 0)) for _ in range(2))


def unwire(wiring: Any) -> None:
    for listener in wiring:
        listener.close()


def open_side(spec: Spec, wiring: Any, side: Side) -> Endpoint:
    out, back = wiring if side == "a" else reversed(wiring)
    out_url, back_url = (f"tcp://127.0.0.1:{listener.getsockname()[1]}" for listener in (out, back))
    back.close()
    return open_sockets(spec, out_url, back_url, out.detach())
