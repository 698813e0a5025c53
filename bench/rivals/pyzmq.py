"""pyzmq PUSH/PULL over ipc:// (Unix sockets), an I/O thread on each side.

Arrays are sent and received without a copy in Python; the kernel's socket copies twice.
"""

from __future__ import annotations

import importlib
import importlib.util
import secrets
from functools import partial
from typing import Any

import numpy as np

from ..endpoint import Endpoint, Side, Spec

NAME = "pyzmq ipc"
LAUNCH = "spawn"
POLLS = False


def missing() -> str | None:
    return None if importlib.util.find_spec("zmq") else "not installed (pip install pyzmq)"


def wire(spec: Spec) -> Any:
    name = secrets.token_hex(4)
    return tuple(f"ipc://{spec.directory}/zmq-{name}-{way}" for way in ("ab", "ba"))


def unwire(wiring: Any) -> None:
    """The sockets lie in the harness's directory and go with it."""


def open_side(spec: Spec, wiring: Any, side: Side) -> Endpoint:
    out_url, back_url = wiring if side == "a" else reversed(wiring)
    return open_sockets(spec, out_url, back_url)


def open_sockets(spec: Spec, out_url: str, back_url: str, out_listener: int | None = None) -> Endpoint:
    """`out_listener`: the descriptor of a socket that already listens where `out_url` says."""
    zmq = importlib.import_module("zmq")
    context = zmq.Context()
    out, back = context.socket(zmq.PUSH), context.socket(zmq.PULL)
    for socket in (out, back):
        socket.setsockopt(zmq.LINGER, 0)
        socket.set_hwm(spec.in_flight)
    if out_listener is not None:
        out.setsockopt(zmq.USE_FD, out_listener)
    out.bind(out_url)
    back.connect(back_url)

    def close() -> None:
        out.close()
        back.close()
        context.term()

    return Endpoint(
        put=out.send,
        get=back.recv,
        put_array=partial(out.send, copy=False),
        get_array=partial(back.recv, copy=False),
        as_array=lambda frame: np.frombuffer(frame.buffer, np.float32),
        close=close,
    )
