"""A bare TCP socket over loopback, what a program on two hosts would have: sendall, and a loop of recv_into.

No frames: every message is `Spec.max_bytes` long, which both sides know; that is to its advantage. Everything
is received into one buffer that the next message overwrites.
"""

from __future__ import annotations

import socket
from typing import Any

import numpy as np

from .endpoint import Endpoint, Side, Spec

NAME = "raw TCP"
LAUNCH = "forkserver"
POLLS = False

_CONNECT_TIMEOUT_S = 30.0


def missing() -> str | None:
    return None


def wire(spec: Spec) -> Any:
    """A listening socket: its port is nobody else's from now on."""
    return socket.create_server(("127.0.0.1", 0))


def unwire(wiring: Any) -> None:
    wiring.close()


def _connected(wiring: Any, side: Side) -> socket.socket:
    if side == "a":
        wiring.settimeout(_CONNECT_TIMEOUT_S)
        accepted: tuple[socket.socket, Any] = wiring.accept()
        connection = accepted[0]
        connection.setblocking(True)
    else:
        connection = socket.create_connection(wiring.getsockname(), _CONNECT_TIMEOUT_S)
        connection.settimeout(None)
    wiring.close()
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return connection


def open_side(spec: Spec, wiring: Any, side: Side) -> Endpoint:
    connection = _connected(wiring, side)
    buffer: Any = np.empty(spec.max_bytes, np.uint8)
    view, length = memoryview(buffer), len(buffer)
    recv_into, sendall = connection.recv_into, connection.sendall

    def get() -> Any:
        got = recv_into(view)
        while 0 < got < length:
            more = recv_into(view[got:])
            got = got + more if more else 0
        if got == 0:
            raise EOFError("the other side has gone")
        return view

    return Endpoint(
        put=sendall,
        get=get,
        put_array=lambda array: sendall(array.data.cast("B")),
        get_array=get,
        as_array=lambda received: buffer.view(np.float32),
        close=connection.close,
    )
