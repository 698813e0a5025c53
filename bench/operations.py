"""What is timed inside one process: an operation is made and checked once, then called a lot."""

from __future__ import annotations

import importlib
import pickle
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import msgspec
import numpy as np

from .objects import message_object

_ARRAY_BYTES = 4096


def _nothing() -> None:
    pass


@dataclass
class Operation:
    call: Callable[[], object]
    check: Callable[[], None] = _nothing
    """Raises where `call` does not yield what it should."""
    close: Callable[[], None] = _nothing


def step_message() -> dict[str, Any]:
    """About what a scheduler of a model server sends to its workers for each step."""
    arrays = [np.arange(_ARRAY_BYTES // 4, dtype=np.int32) + i for i in range(3)]
    return {
        **message_object(123456),
        "token_ids": arrays[0],
        "positions": arrays[1],
        "block_table": arrays[2],
    }


def _same(got: Any, sent: Any) -> None:
    if isinstance(sent, dict):
        if got.keys() != sent.keys():
            raise ValueError("other keys arrived than were sent")
        for key, value in sent.items():
            _same(got[key], value)
    elif isinstance(sent, np.ndarray):
        if got.dtype != sent.dtype or not np.array_equal(got, sent):
            raise ValueError("an array arrived altered")
    elif got != sent:
        raise ValueError(f"{sent!r} arrived as {got!r}")


def _loop() -> Operation:
    return Operation(lambda: None)


def _cffi(name: str) -> Callable[[], Operation]:
    def make() -> Operation:
        module = importlib.import_module("_bench_cffi")
        if name == "nothing":
            return Operation(module.lib.nothing)
        pointer, call = module.ffi.new("int[4]"), module.lib.pointer
        if name == "pointer":
            return Operation(partial(call, pointer))

        def two() -> None:
            call(pointer)
            call(pointer)

        return Operation(two)

    return make


def _bare_array() -> Operation:
    """The least that yields an array over memory one already has."""
    memory, ndarray, dtype = memoryview(bytearray(_ARRAY_BYTES)), np.ndarray, np.dtype(np.float32)
    shape = (_ARRAY_BYTES // 4,)
    return Operation(lambda: ndarray(shape, dtype, memory))


def _queue(sent: Any) -> Callable[[], Operation]:
    def make() -> Operation:
        shmq: Any = importlib.import_module("shmq")
        queue = shmq.Queue(kind="spsc")
        put, get = queue.put, queue.get

        def call() -> Any:
            put(sent)
            return get()

        return Operation(call, lambda: _same(call(), sent), queue.close)

    return make


def _pickle(sent: Any) -> Callable[[], Operation]:
    def make() -> Operation:
        dumps, loads = pickle.dumps, pickle.loads

        def call() -> Any:
            return loads(dumps(sent, 5))

        return Operation(call, lambda: _same(call(), sent))

    return make


def _msgpack_step() -> Operation:
    """msgpack of what is no array, each array copied once into ready memory and viewed there."""
    sent = step_message()
    encoder, decoder = msgspec.msgpack.Encoder(), msgspec.msgpack.Decoder()
    arrays = {key: value for key, value in sent.items() if isinstance(value, np.ndarray)}
    plain = {key: value for key, value in sent.items() if key not in arrays}
    shared = np.empty((len(arrays), _ARRAY_BYTES // 4), np.int32)

    def call() -> Any:
        payload = encoder.encode(plain)
        for row, value in zip(shared, arrays.values(), strict=True):
            row[:] = value
        got = decoder.decode(payload)
        for key, row in zip(arrays, shared, strict=True):
            got[key] = row
        return got

    return Operation(call, lambda: _same(call(), sent))


_ARRAY = np.arange(_ARRAY_BYTES // 4, dtype=np.float32)

ALL: dict[str, Callable[[], Operation]] = {
    "loop": _loop,
    "cffi_nothing": _cffi("nothing"),
    "cffi_pointer": _cffi("pointer"),
    "cffi_two_pointers": _cffi("two"),
    "bare_array": _bare_array,
    "queue_bytes": _queue(b"x" * 64),
    "queue_array": _queue(_ARRAY),
    "queue_step": _queue(step_message()),
    "pickle_array": _pickle(_ARRAY),
    "pickle_step": _pickle(step_message()),
    "msgpack_step": _msgpack_step,
}
