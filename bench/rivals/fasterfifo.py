"""faster-fifo: a byte ring in shared memory behind a mutex and condition variables, with put_many.

Bytes go through without pickle (its own `dumps`/`loads` hooks); arrays are pickled, as it does by
default. Its put and get time out after 10 s unless told otherwise: a longer time is given here.
"""

from __future__ import annotations

import importlib
import importlib.util
from functools import partial
from typing import Any

from ..endpoint import Endpoint, Side, Spec

NAME = "faster-fifo"
LAUNCH = "spawn"
POLLS = False

_TIMEOUT_S = 600.0
_SLACK_BYTES = 4096
_RECEIVE_BYTES = 1 << 20


def missing() -> str | None:
    found = importlib.util.find_spec("faster_fifo")
    return None if found else "not installed (pip install faster-fifo)"


def _as_is(data: bytes) -> bytes:
    return data


def wire(spec: Spec) -> Any:
    """For each way: a queue for bytes as they are and one that pickles."""
    queue = importlib.import_module("faster_fifo").Queue
    room = max(1 << 20, spec.in_flight * (spec.max_bytes + _SLACK_BYTES))
    ways = range(2 if spec.both_ways else 1)
    return tuple((queue(room, loads=bytes, dumps=_as_is), queue(room)) for _ in ways)


def unwire(wiring: Any) -> None:
    for queues in wiring:
        for queue in queues:
            queue.close()


def open_side(spec: Spec, wiring: Any, side: Side) -> Endpoint:
    out, back = (wiring[0], wiring[-1]) if side == "a" else (wiring[-1], wiring[0])
    end = Endpoint(as_array=lambda received: received)
    if side == "a" or spec.both_ways:
        raw, pickled = out
        end.put = partial(raw.put, timeout=_TIMEOUT_S)
        end.put_many = partial(raw.put_many, timeout=_TIMEOUT_S)
        end.put_array = partial(pickled.put, timeout=_TIMEOUT_S)
    if side == "b" or spec.both_ways:
        raw, pickled = back
        raw.reallocate_msg_buffer(_RECEIVE_BYTES)  # else a batch of 4 KiB messages comes one by one
        end.get = partial(raw.get, timeout=_TIMEOUT_S)
        end.get_many = partial(raw.get_many, True, _TIMEOUT_S)
        end.get_array = partial(pickled.get, timeout=_TIMEOUT_S)
    return end
