"""Objects one way: a dict without arrays, about what a scheduler tells a worker."""

from __future__ import annotations

from collections.abc import Callable
from itertools import repeat
from typing import Any

import msgspec

from .endpoint import Endpoint
from .jobs import clock, need


def message_object(number: int) -> dict[str, Any]:
    return {
        "step": number,
        "phase": "decode",
        "request_ids": [f"req-{i:04x}" for i in range(4)],
        "lengths": [17, 512, 33, 4096],
        "temperature": 0.7,
        "last": False,
        "deadline": None,
    }


def putter_of_objects(end: Endpoint) -> Callable[[Any], object]:
    """The transport's own call, else msgpack around the one for bytes."""
    if end.put_object is not None:
        return end.put_object
    put, encode = need(end.put), msgspec.msgpack.Encoder().encode
    return lambda made: put(encode(made))


def getter_of_objects(end: Endpoint) -> Callable[[], Any]:
    if end.get_object is not None:
        return end.get_object
    get, payload, decode = need(end.get), end.payload, msgspec.msgpack.Decoder().decode
    return lambda: decode(payload(get()))


def send_object(end: Endpoint, count: int, size: int) -> int:
    """`size` does not matter: the object is always the same."""
    put, made = putter_of_objects(end), message_object(1)
    start = clock()
    for _ in repeat(None, count):
        put(made)
    return start


def receive_object(end: Endpoint, count: int) -> int:
    get = getter_of_objects(end)
    for _ in repeat(None, count):
        get()
    return clock()
