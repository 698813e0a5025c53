"""Request and reply as work: a call between two processes, and a stream of tokens through three.

A transport's `Endpoint.service` plays every part; each job is a part, for so many requests. The asking parts
keep to a plan, as in schedule.py: request i is due at start + i / rate, and its times count from then. One is
under way at a time, so who still waits for an answer asks late, and that counts, too. Between two requests
everybody sleeps, the one who asks included.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import time
from collections.abc import AsyncIterator, Callable
from typing import Any, Protocol

from .endpoint import Endpoint
from .jobs import clock, message, need
from .schedule import plan

TOKENS = 16
"""What a request is answered with; each a message of its own."""
PROMPT_BYTES = 200
_LEAD_NS = 20_000_000
_CLOCK_MONOTONIC, _ABSOLUTE = 1, 1

Times = list[list[int]]
"""Of each request, in ns from when it was due: to the first answer, to the last."""


class Service(Protocol):
    """Front and ask return the times."""

    def ask(self, count: int, rate: float) -> Times: ...
    def answer(self, count: int) -> None: ...
    def front(self, count: int, rate: float) -> Times: ...
    def schedule(self, count: int) -> None: ...
    def work(self, count: int) -> None: ...


def service_ask(end: Endpoint, count: int, rate: float) -> Times:
    return list(need(end.service).ask(count, rate))


def service_answer(end: Endpoint, count: int) -> None:
    need(end.service).answer(count)


def service_front(end: Endpoint, count: int, rate: float) -> Times:
    return list(need(end.service).front(count, rate))


def service_schedule(end: Endpoint, count: int) -> None:
    need(end.service).schedule(count)


def service_work(end: Endpoint, count: int) -> None:
    need(end.service).work(count)


# What the parts of all transports have in common.


def tokens(prompt: bytes) -> list[list[int]]:
    """The answer to a prompt: each token tells its place, and whose it is."""
    number = int.from_bytes(prompt[:8], "little")
    return [[place, number] for place in range(TOKENS)]


def call_on_schedule(call: Callable[[bytes], Any], count: int, rate: float) -> Times:
    prompts = [message(PROMPT_BYTES, number) for number in range(count)]
    answers, times = [], []
    for due, prompt in zip(plan(clock() + _LEAD_NS, count, rate), prompts, strict=True):
        time.sleep(max(0, due - clock()) / 1e9)
        answers.append(call(prompt))
        times.append([clock() - due] * 2)
    check(answers, prompts)
    return times


async def stream_on_schedule(stream: Callable[[bytes], AsyncIterator[Any]], count: int, rate: float) -> Times:
    prompts = [message(PROMPT_BYTES, number) for number in range(count)]
    answers, times = [], []
    with Ticks(clock() + _LEAD_NS, rate) as ticks:
        for number, prompt in enumerate(prompts):
            due, first, got = await ticks.reach(number), 0, []
            async for token in stream(prompt):
                first = first or clock()
                got.append(token)
            times.append([first - due, clock() - due])
            answers.append(got)
    check(answers, [tokens(prompt) for prompt in prompts])
    return times


def check(answers: Any, expected: Any) -> None:
    """Behind the last answer: no time of a request has it in it."""
    for answer, right in zip(answers, expected, strict=True):
        if answer != right:
            raise ValueError(f"the answer was {answer!r:.100}, not {right!r:.100}")


class _Times(ctypes.Structure):
    """`struct itimerspec`, on 64 bits."""

    _fields_ = (("every_s", ctypes.c_long), ("every_ns", ctypes.c_long),
                ("first_s", ctypes.c_long), ("first_ns", ctypes.c_long))  # fmt: skip


class Ticks:
    """The plan, as a timer of the kernel that the event loop polls: its own ones are up to 1 ms late."""

    def __init__(self, start_ns: int, rate: float) -> None:
        self._start_ns, self._every_ns = start_ns, round(1e9 / rate)
        self._ticks = 0
        self._ticked = asyncio.Event()

    def __enter__(self) -> Ticks:
        libc = ctypes.CDLL(None, use_errno=True)
        times = _Times(*divmod(self._every_ns, 10**9), *divmod(self._start_ns, 10**9))
        self._fd = libc.timerfd_create(_CLOCK_MONOTONIC, os.O_NONBLOCK | os.O_CLOEXEC)
        if self._fd < 0 or libc.timerfd_settime(self._fd, _ABSOLUTE, ctypes.byref(times), None) != 0:
            raise OSError(ctypes.get_errno(), "no timer")
        asyncio.get_running_loop().add_reader(self._fd, self._tick)
        return self

    def __exit__(self, *_: object) -> None:
        asyncio.get_running_loop().remove_reader(self._fd)
        os.close(self._fd)

    def _tick(self) -> None:
        self._ticks += int.from_bytes(os.read(self._fd, 8), "little")
        self._ticked.set()

    async def reach(self, number: int) -> int:
        """Waits for the tick of that number, from 0; returns when it was due."""
        while self._ticks <= number:
            self._ticked.clear()
            await self._ticked.wait()
        return self._start_ns + number * self._every_ns
