"""What the workers of a pair do: the timed loops, and the untimed ones that check the payloads.

Times are `time.perf_counter_ns()`, which is CLOCK_MONOTONIC on Linux: one clock for both processes.
Each loop does nothing but the call it measures, and the stamps where single trips are wanted.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import time
from collections import Counter
from collections.abc import Sequence
from itertools import repeat
from typing import Any, TypeVar

import numpy as np

from .endpoint import Endpoint

BATCH_MESSAGES = 64
PROGRESS_BYTES = 128
"""Of each number in a file that several processes map: a pair of cache lines."""
_REST_NS = 200_000

_Call = TypeVar("_Call")

clock = time.perf_counter_ns


def need(call: _Call | None) -> _Call:
    """The call, which the harness made sure is there."""
    assert call is not None
    return call


def message(size: int, number: int) -> bytes:
    """A payload that tells its number and that no other number shares."""
    head = number.to_bytes(8, "little")
    return (head * (size // 8 + 1))[:size]


def array(nbytes: int, number: int) -> Any:
    filled = np.arange(nbytes // 4, dtype=np.float32)
    filled += number
    return filled


def quantiles(samples_ns: Sequence[int]) -> dict[str, float]:
    """Nearest-rank p50, p99, p99.9, in nanoseconds."""
    ordered = sorted(samples_ns)
    last = len(ordered) - 1
    return {
        name: float(ordered[round(q * last)]) for name, q in (("p50", 0.5), ("p99", 0.99), ("p99.9", 0.999))
    }


def supports(end: Endpoint) -> list[str]:
    """Names of the calls that this endpoint has."""
    return [name for name, value in vars(end).items() if value is not None]


# One way. The sender returns when it began, the receiver when it had everything.


def send_one(end: Endpoint, count: int, size: int) -> int:
    put, data = need(end.put), message(size, 1)
    start = clock()
    for _ in repeat(None, count):
        put(data)
    return start


def receive_one(end: Endpoint, count: int) -> int:
    get = need(end.get)
    for _ in repeat(None, count):
        get()
    return clock()


def send_many(end: Endpoint, count: int, size: int) -> int:
    put_many, batch = need(end.put_many), [message(size, i) for i in range(BATCH_MESSAGES)]
    start = clock()
    for _ in repeat(None, count // BATCH_MESSAGES):
        put_many(batch)
    return start


def receive_many(end: Endpoint, count: int) -> int:
    get_many, left = need(end.get_many), count // BATCH_MESSAGES * BATCH_MESSAGES
    while left:
        left -= len(get_many(BATCH_MESSAGES))
    return clock()


def send_array(end: Endpoint, count: int, size: int) -> int:
    put, data = need(end.put_array), array(size, 1)
    start = clock()
    for _ in repeat(None, count):
        put(data)
    return start


def receive_array(end: Endpoint, count: int) -> int:
    get = need(end.get_array)
    for _ in repeat(None, count):
        get()
    return clock()


def receive_copy(end: Endpoint, count: int, size: int) -> int:
    """`receive_array` by a consumer that keeps what it gets: in its own memory, which it had before.

    Who receives into memory of his own anyway need not copy it."""
    get, view = need(end.get_array), end.view
    if view is None:
        return receive_array(end, count)
    into = array(size, 0)
    for _ in repeat(None, count):
        np.copyto(into, view(get()))
    return clock()


def _address(array: Any) -> int:
    address: int = array.__array_interface__["data"][0]
    return address


def send_addresses(end: Endpoint, count: int, size: int) -> None:
    """`send_array`, untimed, with as much work beside each put as `receive_addresses` has."""
    put, data, seen = need(end.put_array), array(size, 1), []
    for _ in repeat(None, count):
        put(data)
        seen.append(_address(data))


def receive_addresses(end: Endpoint, count: int) -> int:
    """`receive_array`, untimed: the least number of buffers in which 9 of 10 messages came.

    Not all of them: one pause of the consumer by the kernel, and a long queue fills the memory."""
    get, as_array, seen = need(end.get_array), need(end.as_array), []
    for _ in repeat(None, count):
        seen.append(_address(as_array(get())))
    left, buffers = 0.9 * count, 0
    for _, messages in Counter(seen).most_common():
        if left <= 0:
            break
        left, buffers = left - messages, buffers + 1
    return buffers


# There and back.


def ping(end: Endpoint, count: int, size: int) -> dict[str, float]:
    put, get, data = need(end.put), need(end.get), message(size, 1)
    trips = [0] * count
    begin = clock()
    for i in range(count):
        start = clock()
        put(data)
        get()
        trips[i] = clock() - start
    total = clock() - begin
    return {**quantiles(trips), "mean": total / count}


def pong(end: Endpoint, count: int, size: int) -> None:
    put, get, data = need(end.put), need(end.get), message(size, 1)
    for _ in repeat(None, count):
        get()
        put(data)


def ping_parked(end: Endpoint, count: int, size: int, gap: float) -> list[int]:
    """Idles `gap` seconds before each put. Returns stamps: sent, got, sent, got, ..."""
    put, get, data = need(end.put), need(end.get), message(size, 1)
    stamps = [0] * (2 * count)
    for i in range(0, 2 * count, 2):
        time.sleep(gap)
        stamps[i] = clock()
        put(data)
        get()
        stamps[i + 1] = clock()
    return stamps


def pong_parked(end: Endpoint, count: int, size: int, gap: float) -> list[int]:
    """Idles `gap` seconds before each answer, so the asker is asleep too. Stamps: got, sent, ..."""
    put, get, data = need(end.put), need(end.get), message(size, 1)
    stamps = [0] * (2 * count)
    for i in range(0, 2 * count, 2):
        get()
        stamps[i] = clock()
        time.sleep(gap)
        stamps[i + 1] = clock()
        put(data)
    return stamps


# A loaned tensor changes hands.


def publish_loans(end: Endpoint, count: int, size: int) -> list[int]:
    """Stamps taken just before each publish; the loan was made and filled before."""
    loan = need(end.loan)
    stamps = [0] * count
    for i in range(count):
        view, publish = loan(size)
        view.fill(i)
        del view
        stamps[i] = clock()
        publish()
        del publish
    return stamps


def receive_loans(end: Endpoint, count: int, size: int) -> list[int]:
    """Stamps taken just after each get returned; the receiver polls, it does not sleep."""
    get = need(end.get_polling)
    stamps = [0] * count
    for i in range(count):
        received = get()
        stamps[i] = clock()
        del received
    return stamps


# One to many, one message at a time. A file that all map says how far each is: side a, then each side b.


def progress_of(path: str) -> memoryview:
    with open(path, "r+b") as file:
        return memoryview(mmap.mmap(file.fileno(), 0)).cast("q")[:: PROGRESS_BYTES // 8]


def send_apart(end: Endpoint, count: int, size: int, progress: str, asleep: bool) -> dict[str, float]:
    """Processor time of each put alone, when all have got the message before and, if `asleep`, wait in get.

    Not wall time: threads that the library runs beside ours may have the core meanwhile. What they use per
    put is "helpers"; "seconds" is the whole run's."""
    put, data, trips = need(end.put_array), array(size, 1), [0] * count
    done = progress_of(progress)
    theirs = done[1:]
    begin, helpers = clock(), time.process_time_ns() - time.thread_time_ns()
    for i in range(count):
        start = time.thread_time_ns()
        put(data)
        trips[i] = time.thread_time_ns() - start
        done[0] = i + 1
        while min(theirs) <= i:
            os.sched_yield()  # to helpers
        rested = clock() + _REST_NS if asleep else 0
        while clock() < rested:  # at work, so that the core stays fast
            os.sched_yield()
    helpers = time.process_time_ns() - time.thread_time_ns() - helpers
    return {**quantiles(trips), "helpers": max(0, helpers) / count, "seconds": (clock() - begin) / 1e9}


def receive_apart(end: Endpoint, count: int, progress: str, asleep: bool, reader: int) -> None:
    get, done = need(end.get_array), progress_of(progress)
    for i in range(count):
        while not asleep and done[0] <= i:
            os.sched_yield()  # to the others on this core
        get()
        done[1 + reader] = i + 1


def float32_at(address: int, nbytes: int) -> Any:
    """A float32 array over foreign memory (for libraries that hand out bare addresses)."""
    memory: Any = (ctypes.c_char * nbytes).from_address(address)
    return np.frombuffer(memory, dtype=np.float32)
