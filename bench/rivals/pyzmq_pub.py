"""pyzmq PUB/SUB over ipc:// (Unix sockets), an I/O thread on each side.

XPUB is PUB that also sees who subscribes: side a begins when all have. XPUB_NODROP makes a send wait where
PUB would drop. A send only hands over to the I/O thread, which writes to one socket after the other.
"""

from __future__ import annotations

import importlib
import secrets
from functools import partial
from typing import Any

import numpy as np

from ..endpoint import Endpoint, Side, Spec
from ..rivals.pyzmq import POLLS, missing, unwire

__all__ = ["LAUNCH", "NAME", "POLLS", "missing", "open_side", "unwire", "wire"]

NAME = "pyzmq pub/sub"
LAUNCH = "forkserver"


def wire(spec: Spec) -> Any:
    return f"ipc://{spec.directory}/zmq-{secrets.token_hex(4)}-pub"


def open_side(spec: Spec, wiring: Any, side: Side) -> Endpoint:
    zmq = importlib.import_module("zmq")
    context = zmq.Context()
    socket = context.socket(zmq.XPUB if side == "a" else zmq.SUB)
    socket.setsockopt(zmq.LINGER, 0)
    socket.set_hwm(spec.in_flight)

    def close() -> None:
        socket.close()
        context.term()

    if side == "b":
        socket.setsockopt(zmq.SUBSCRIBE, b"")
        socket.connect(wiring)
        return Endpoint(
            get=socket.recv,
            get_array=partial(socket.recv, copy=False),
            as_array=lambda frame: np.frombuffer(frame.buffer, np.float32),
            close=close,
        )
    socket.setsockopt(zmq.XPUB_NODROP, 1)
    socket.setsockopt(zmq.XPUB_VERBOSE, 1)  # each that subscribes, not only the first
    socket.bind(wiring)
    for _ in range(spec.readers):
        socket.recv()
    return Endpoint(put=socket.send, put_array=partial(socket.send, copy=False), close=close)
