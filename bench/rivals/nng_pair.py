"""pynng: a Pair0 socket over ipc:// (Unix sockets), threads of its own on each side.

Arrays are sent from where they lie; each message is received into bytes. There is no one-to-many of it in
the fanout suite: its Pub0 drops what a slow subscriber does not take, and nothing makes it wait.
"""

from __future__ import annotations

import importlib
import importlib.util
import secrets
from typing import Any

import numpy as np

from ..endpoint import Endpoint, Side, Spec

NAME = "pynng"
LAUNCH = "spawn"
POLLS = False

_MOST_BUFFERED = 8192
_RETRY_MS = 10


def missing() -> str | None:
    return None if importlib.util.find_spec("pynng") else "not installed (pip install pynng)"


def wire(spec: Spec) -> Any:
    return f"ipc://{spec.directory}/nng-{secrets.token_hex(4)}"


def unwire(wiring: Any) -> None:
    """The socket lies in the harness's directory and goes with it."""


def open_side(spec: Spec, wiring: Any, side: Side) -> Endpoint:
    pynng = importlib.import_module("pynng")
    buffered = min(spec.in_flight, _MOST_BUFFERED)
    pair = pynng.Pair0(
        send_buffer_size=buffered,
        recv_buffer_size=buffered,
        recv_max_size=0,  # no limit; else messages of more than 1 MiB are dropped
        reconnect_time_min=_RETRY_MS,
    )
    if side == "a":
        pair.listen(wiring)
    else:
        pair.dial(wiring, block=False)  # tries again until side a listens
    send, from_buffer = pair.send, pynng.ffi.from_buffer
    return Endpoint(
        put=send,
        get=pair.recv,
        put_array=lambda array: send(from_buffer(array)),
        get_array=pair.recv,
        as_array=lambda received: np.frombuffer(received, np.float32),
        close=pair.close,
    )
