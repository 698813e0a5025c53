"""Several producers and several consumers of one queue: each message goes to one consumer.

Nobody knows beforehand how many messages a consumer will get. So each counts what it got in a file that all
map; when all have arrived, the first producer sends one last message to each consumer, which no message can
follow. A last message at the end of each producer's would not do: where every producer has a feeder thread,
it may overtake those of the others.
"""

from __future__ import annotations

import time
from itertools import repeat

from .endpoint import Endpoint
from .jobs import clock, message, need, progress_of

_LOOK_S = 0.0002
_WRITER_SHIFT = 40


def number_of(writer: int, sequence: int) -> int:
    return writer << _WRITER_SHIFT | sequence


def _last(size: int) -> bytes:
    """No message's number is -1."""
    return b"\xff" * size


def _finish(end: Endpoint, size: int, progress: str, total: int, readers: int) -> int:
    """Returns when all had arrived, at most `_LOOK_S` late."""
    put, taken = need(end.put), progress_of(progress)
    while sum(taken) < total:
        time.sleep(_LOOK_S)
    finished = clock()
    for _ in range(readers):
        put(_last(size))
    return finished


def send_shared(
    end: Endpoint, count: int, size: int, writer: int, progress: str, total: int, readers: int
) -> tuple[int, int]:
    """When this one began; and, of writer 0, when all messages of all had arrived."""
    put, data = need(end.put), message(size, number_of(writer, 0))
    start = clock()
    for _ in repeat(None, count):
        put(data)
    return start, _finish(end, size, progress, total, readers) if writer == 0 else 0


def receive_shared(end: Endpoint, size: int, reader: int, progress: str) -> int:
    """How many this one got."""
    get, payload, taken, last = need(end.get), end.payload, progress_of(progress), _last(size)
    got = 0
    if payload is bytes:
        while get() != last:
            got += 1
            taken[reader] = got
    else:
        while payload(get()) != last:
            got += 1
            taken[reader] = got
    return got


def check_send_shared(
    end: Endpoint, count: int, size: int, writer: int, progress: str, total: int, readers: int
) -> None:
    put = need(end.put)
    for i in range(count):
        put(message(size, number_of(writer, i)))
    if writer == 0:
        _finish(end, size, progress, total, readers)


def check_receive_shared(end: Endpoint, size: int, reader: int, progress: str) -> list[int]:
    """The numbers of the messages that this one got; -1 for an altered one."""
    get, payload, taken, last = need(end.get), end.payload, progress_of(progress), _last(size)
    seen: list[int] = []
    while (data := payload(get())) != last:
        number = int.from_bytes(data[:8], "little")
        seen.append(number if data == message(size, number) else -1)
        taken[reader] = len(seen)
    return seen
