"""Open loop: message i is due at start + i / rate, whatever became of the messages before it.

Its latency counts from when it was due, not from when it could at last be sent: a stall then shows in every
message that was due meanwhile, as it would in a service whose requests come from elsewhere. A closed loop,
which waits for one message before it sends the next, leaves just these out ("coordinated omission", Gil Tene;
the method is that of his wrk2). The due time travels in the payload. Clock: see jobs.py.
"""

from __future__ import annotations

import os
from itertools import repeat

from .endpoint import Endpoint
from .jobs import clock, need

_STAMP_BYTES = 8
_LEAD_NS = 1_000_000


def plan(start_ns: int, count: int, rate: float) -> list[int]:
    return [start_ns + round(i * 1e9 / rate) for i in range(count)]


def stamped(due_ns: int, size: int) -> bytes:
    return due_ns.to_bytes(_STAMP_BYTES, "little") + bytes(size - _STAMP_BYTES)


def stamp(payload: bytes) -> int:
    return int.from_bytes(payload[:_STAMP_BYTES], "little")


def _prepared(count: int, size: int, rate: float) -> tuple[list[int], list[bytes]]:
    """The plan and the payloads, made before the first is due: making them is no part of a latency."""
    lead_ns = _LEAD_NS
    while True:
        due = plan(clock() + lead_ns, count, rate)
        payloads = [stamped(when, size) for when in due]
        if clock() < due[0]:
            return due, payloads
        lead_ns *= 4


def send_on_schedule(end: Endpoint, count: int, size: int, rate: float) -> None:
    """Who is late sends at once, and never skips."""
    put = need(end.put)
    for when, data in zip(*_prepared(count, size, rate), strict=True):
        while clock() < when:
            os.sched_yield()  # not a sleep, which ends late; a library's threads get the core and the GIL
        put(data)


def receive_on_schedule(end: Endpoint, count: int, spin: bool) -> tuple[list[int], int]:
    """Latencies, and the time from when the first message was due to when the last came. In nanoseconds."""
    get, payload = need(end.get_polling if spin else end.get), end.payload
    got, payloads = [0] * count, [b""] * count
    for i in range(count):
        received = get()
        got[i] = clock()
        payloads[i] = payload(received)
    return [at - stamp(data) for at, data in zip(got, payloads, strict=True)], got[-1] - stamp(payloads[0])


def ask_on_schedule(end: Endpoint, count: int, size: int, rate: float, spin: bool) -> tuple[list[int], int]:
    """The same there and back. One question at a time: who still waits for an answer sends the next one late,
    and that counts, too."""
    put, get, payload = need(end.put), need(end.get_polling if spin else end.get), end.payload
    got, answers = [0] * count, [b""] * count
    due, questions = _prepared(count, size, rate)
    for i, (when, data) in enumerate(zip(due, questions, strict=True)):
        while clock() < when:
            os.sched_yield()
        put(data)
        answer = get()
        got[i] = clock()
        answers[i] = payload(answer)
    if answers != questions:
        raise ValueError("an answer is not the question's")
    return [at - stamp(data) for at, data in zip(got, answers, strict=True)], got[-1] - due[0]


def answer(end: Endpoint, count: int, spin: bool) -> None:
    put, get, payload = need(end.put), need(end.get_polling if spin else end.get), end.payload
    for _ in repeat(None, count):
        put(payload(get()))
