"""A POSIX message queue (mq_send, mq_receive; posix_ipc): the kernel copies in and out.

An unprivileged program gets at most `msgsize_max` bytes a message and `msg_max` messages, 8 KiB and 10
unless the administrator says otherwise: rows with larger payloads are without it.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import os
import secrets
from pathlib import Path
from typing import Any

import numpy as np

from ..endpoint import Endpoint, Side, Spec, Unsuited

NAME = "POSIX mq"
LAUNCH = "spawn"
POLLS = False

_LIMITS = Path("/proc/sys/fs/mqueue")


def missing() -> str | None:
    if importlib.util.find_spec("posix_ipc") is None:
        return "not installed (pip install posix-ipc)"
    return None if _LIMITS.exists() else f"this kernel has no message queues: no {_LIMITS}"


def _limit(name: str) -> int:
    return int((_LIMITS / name).read_text())


def wire(spec: Spec) -> Any:
    """Two names; workers open them."""
    largest = _limit("msgsize_max")
    if spec.max_bytes > largest:
        raise Unsuited(f"at most {largest} B a message ({_LIMITS / 'msgsize_max'})")
    names = tuple(f"/bench-{os.getpid()}-{secrets.token_hex(4)}-{way}" for way in ("ab", "ba"))
    posix_ipc = importlib.import_module("posix_ipc")
    try:
        for name in names:
            posix_ipc.MessageQueue(
                name,
                posix_ipc.O_CREX,
                max_messages=min(spec.in_flight, _limit("msg_max")),
                max_message_size=spec.max_bytes,
            ).close()
    except BaseException:
        unwire(names)
        raise
    return names


def unwire(wiring: Any) -> None:
    posix_ipc = importlib.import_module("posix_ipc")
    for name in wiring:
        with contextlib.suppress(posix_ipc.ExistentialError):
            posix_ipc.unlink_message_queue(name)


def open_side(spec: Spec, wiring: Any, side: Side) -> Endpoint:
    posix_ipc = importlib.import_module("posix_ipc")
    out_name, back_name = wiring if side == "a" else reversed(wiring)
    out = posix_ipc.MessageQueue(out_name, read=False)
    back = posix_ipc.MessageQueue(back_name, write=False)

    def close() -> None:
        out.close()
        back.close()

    return Endpoint(
        put=out.send,
        get=back.receive,
        payload=lambda received: bytes(received[0]),  # the other is its priority
        put_array=out.send,
        get_array=back.receive,
        as_array=lambda received: np.frombuffer(received[0], np.float32),
        close=close,
    )
