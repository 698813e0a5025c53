"""A pair of connected Unix-domain sockets: the kernel copies in and out.

SOCK_SEQPACKET, which keeps messages apart, where the largest is at most 64 KiB; else, since a packet must fit
the socket's buffer, SOCK_STREAM with the length ahead of each. Arrays are received into one buffer that the
next message overwrites.
"""

from __future__ import annotations

import socket
from functools import partial
from typing import Any

import numpy as np

from ..endpoint import Endpoint, Side, Spec

NAME = "Unix socket"
LAUNCH = "spawn"
POLLS = False

_PACKET_BYTES = 64 << 10
_LENGTH_BYTES = 8


def missing() -> str | None:
    return None


def wire(spec: Spec) -> Any:
    kind = socket.SOCK_SEQPACKET if spec.max_bytes <= _PACKET_BYTES else socket.SOCK_STREAM
    return socket.socketpair(socket.AF_UNIX, kind)


def unwire(wiring: Any) -> None:
    for end in wiring:
        end.close()


def open_side(spec: Spec, wiring: Any, side: Side) -> Endpoint:
    mine, other = wiring if side == "a" else reversed(wiring)
    other.close()  # else nobody would see this side go
    open_kind = _packets if mine.type == socket.SOCK_SEQPACKET else _stream
    end: Endpoint = open_kind(spec, mine)
    end.close = mine.close
    return end


def _packets(spec: Spec, mine: Any) -> Endpoint:
    buffer: Any = np.empty(spec.max_bytes, np.uint8)
    return Endpoint(
        put=mine.send,
        get=partial(mine.recv, spec.max_bytes),
        put_array=mine.send,
        get_array=partial(mine.recv_into, buffer),
        as_array=lambda nbytes: buffer[:nbytes].view(np.float32),
    )


def _stream(spec: Spec, mine: Any) -> Endpoint:
    buffer: Any = np.empty(spec.max_bytes, np.uint8)
    memory = memoryview(buffer)
    sendall, recv, recv_into, wait_all = mine.sendall, mine.recv, mine.recv_into, socket.MSG_WAITALL

    def put(data: bytes) -> None:
        sendall(len(data).to_bytes(_LENGTH_BYTES, "little"))
        sendall(data)

    def put_array(array: Any) -> None:
        sendall(array.nbytes.to_bytes(_LENGTH_BYTES, "little"))
        sendall(array)

    def length() -> int:
        return int.from_bytes(recv(_LENGTH_BYTES, wait_all), "little")

    def get() -> Any:
        return recv(length(), wait_all)

    def get_array() -> int:
        nbytes = length()
        recv_into(memory[:nbytes], nbytes, wait_all)
        return nbytes

    return Endpoint(
        put=put,
        get=get,
        put_array=put_array,
        get_array=get_array,
        as_array=lambda nbytes: buffer[:nbytes].view(np.float32),
    )
