"""What waiting costs: processor time while nothing comes, at a low rate, at full rate; and how long a wake-up
takes."""

from __future__ import annotations

import time
from collections.abc import Callable
from itertools import repeat

from .endpoint import Endpoint
from .jobs import clock, message, need
from .schedule import plan, stamped


def _get(end: Endpoint, spin: bool) -> Callable[[], object]:
    return need(end.get_polling if spin else end.get)


def wait_idle(end: Endpoint, spin: bool) -> float:
    """Processor time per wall time while a get waits for the one message that will come."""
    get = _get(end, spin)
    begin_cpu, begin = time.process_time_ns(), clock()
    get()
    return (time.process_time_ns() - begin_cpu) / (clock() - begin)


def put_after(end: Endpoint, seconds: float, size: int) -> None:
    put = need(end.put)
    time.sleep(seconds)
    put(message(size, 1))


def send_after_gaps(end: Endpoint, count: int, size: int, gap: float) -> None:
    """Idles before each message, which says when its put began."""
    put = need(end.put)
    for _ in repeat(None, count):
        time.sleep(gap)
        put(stamped(clock(), size))


def _until(when_ns: int) -> None:
    if (left_ns := when_ns - clock()) > 0:
        time.sleep(left_ns / 1e9)


def send_paced(end: Endpoint, count: int, size: int, rate: float) -> None:
    """Asleep between the messages."""
    put, data = need(end.put), message(size, 1)
    for when in plan(clock(), count, rate):
        _until(when)
        put(data)


def pace(end: Endpoint, count: int, rate: float) -> None:
    """`send_paced` without a message: what the sleeping alone costs."""
    for when in plan(clock(), count, rate):
        _until(when)


def receive(end: Endpoint, count: int, spin: bool) -> None:
    get = _get(end, spin)
    for _ in repeat(None, count):
        get()


def rest(end: Endpoint) -> None:
    pass
