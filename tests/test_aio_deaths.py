"""An event loop hears of the deaths of its peers: no timer of 100 ms while it can."""

import asyncio
import os
import resource
import signal
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import numpy as np
import pytest
from conftest import PRELUDE, Script

import shmq
from shmq import aio, deaths, doorbell

Make = Callable[..., shmq.Queue]
Start = Callable[..., Script]
NEVER_S = 3600.0

HOLD = PRELUDE + "m = shmq.Queue(sys.argv[1]).lease(); print(1, flush=True); time.sleep(60)"
"""Leases the next message, says so, and keeps it."""


@pytest.fixture
def ring_kind() -> str:
    return "mpmc"


@pytest.fixture
def q(make: Make) -> Iterator[aio.Queue]:
    queue = aio.Queue.of(make(delivery="at_least_once", max_unacked=8, max_deliveries=0))
    yield queue
    queue.close()


@pytest.fixture
def no_slices(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is not told is not found."""
    monkeypatch.setattr(doorbell, "SLICE_S", NEVER_S)
    monkeypatch.setattr(doorbell, "CALM_SLICE_S", NEVER_S)


def run(coroutine: Any) -> Any:
    return asyncio.run(asyncio.wait_for(coroutine, 60))


def kill(child: Script) -> None:
    child.process.send_signal(signal.SIGKILL)


async def parked(q: aio.Queue) -> "asyncio.Task[shmq.Message]":
    task = asyncio.create_task(q.lease())
    while not q._waits.getters._waiting:
        await asyncio.sleep(0)
    return task


@pytest.mark.usefixtures("no_slices")
def test_a_death_is_told(q: aio.Queue, script: Start) -> None:
    async def main() -> None:
        await q.put(np.full(5000, 7))
        holder = script(HOLD, q.name)
        await asyncio.to_thread(holder.line)
        waiting = await parked(q)
        assert q._waits.watched
        kill(holder)
        with await waiting as message:
            assert (message.value[0], message.deliveries) == (7, 2)

    run(main())


STEAL = (
    PRELUDE
    + """
q = shmq.Queue(sys.argv[1])
print(1, flush=True)
input()
armed = np.memmap(f"/dev/shm/shmq.{q.name}", "u4", "r+", 4096 + 2 * 128 + 4, (1,))
assert armed[0] == 2
armed[0] = 0
q.put(b"x")
os.kill(os.getpid(), signal.SIGKILL)
"""
)
"""Takes it upon itself to ring for a message, and dies."""


@pytest.mark.usefixtures("no_slices")
def test_the_death_of_a_newcomer_is_told(q: aio.Queue, script: Start) -> None:
    """It came when everybody waited already."""

    async def main() -> None:
        waiting = await parked(q)
        newcomer = script(STEAL, q.name)
        await asyncio.to_thread(newcomer.line)
        while not q._waits.bound._deaths._fds or q._waits.getters.unsure_since is not None:  # type: ignore[union-attr]
            await asyncio.sleep(0.001)
        newcomer.say()
        with await waiting as message:
            assert message.value == b"x"

    run(main())


@pytest.mark.usefixtures("no_slices")
def test_who_waits_for_room_hears_of_a_death(make: Make, script: Start) -> None:
    q = aio.Queue.of(make(arena_bytes=1 << 16))

    async def main() -> None:
        holder = script(
            PRELUDE + "h = shmq.Queue(sys.argv[1]).loan(40000, 'u1'); print(1, flush=True); time.sleep(60)",
            q.name,
        )
        await asyncio.to_thread(holder.line)
        putting = asyncio.create_task(q.put(np.zeros(40000, "u1")))
        while not q._waits.putters._waiting:
            await asyncio.sleep(0)
        kill(holder)
        await putting

    run(main())
    q.close()


@pytest.mark.parametrize("why", ["old kernel", "no descriptor", "another of that pid"])
def test_peers_that_cannot_be_watched(
    q: aio.Queue, script: Start, why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their deaths are found at the end of a slice."""
    monkeypatch.setattr(doorbell, "CALM_SLICE_S", NEVER_S)
    if why == "old kernel":
        monkeypatch.delattr(os, "pidfd_open")
    elif why == "no descriptor":

        def fails(_: int) -> int:
            raise OSError(24, "too many open files")

        monkeypatch.setattr(os, "pidfd_open", fails)
    else:
        monkeypatch.setattr(deaths, "_start_ticks", lambda _: 1)

    async def main() -> None:
        await q.put(b"x")
        holder = script(HOLD, q.name)
        await asyncio.to_thread(holder.line)
        waiting = await parked(q)
        assert not q._waits.watched
        kill(holder)
        (await waiting).ack()

    run(main())


def test_until_it_is_repaired_a_death_is_looked_after(
    q: aio.Queue, script: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another process has begun to repair it, and may die too: the death itself is told only once."""
    monkeypatch.setattr(doorbell, "CALM_SLICE_S", NEVER_S)
    looks: list[int] = []

    async def main() -> None:
        await q.put(b"x")
        holder = script(HOLD, q.name)
        await asyncio.to_thread(holder.line)
        waiting = await parked(q)
        monkeypatch.setattr(doorbell, "lib", Lib(lambda: len(looks) < 3, looks))
        kill(holder)
        (await waiting).ack()

    run(main())
    assert len(looks) >= 3


class Lib:
    """The library, but that its looks find nothing at first."""

    def __init__(self, blind: Callable[[], bool], looks: list[int]) -> None:
        self._blind, self._looks = blind, looks

    def __getattr__(self, name: str) -> Any:
        found = getattr(doorbell_lib, name)
        return self._look if name == "py_look_now" else found

    def _look(self, handle: Any) -> None:
        blind = self._blind()
        self._looks.append(1)
        if not blind:
            doorbell_lib.py_look_now(handle)


doorbell_lib = doorbell.lib


def pidfds() -> int:
    found = 0
    for fd in os.listdir("/proc/self/fd"):
        with suppress(FileNotFoundError):  # the directory's own
            found += "pidfd" in os.readlink(f"/proc/self/fd/{fd}")
    return found


def test_descriptors_are_given_back(make: Make, script: Start) -> None:
    q = aio.Queue.of(make(delivery="at_least_once"))
    watched: list[int] = []

    async def main() -> None:
        for _ in range(3):
            waiting = await parked(q)
            await q.put(b"x")
            (await waiting).ack()
            child = script(PRELUDE + "q = shmq.Queue(sys.argv[1]); q.put(b'y'); time.sleep(60)", q.name)
            (await q.lease()).ack()
            waiting = await parked(q)
            assert q._waits.bound is not None
            watched.append(pidfds())
            kill(child)
            while q._waits.bound._deaths._fds:
                await asyncio.sleep(0.001)
            waiting.cancel()

    run(main())
    assert watched == [1, 1, 1]
    q.close()
    assert pidfds() == 0


@pytest.mark.usefixtures("no_slices")
@pytest.mark.parametrize("how", ["nack", "overdue"])
def test_what_comes_again_later_comes_in_time(make: Make, how: str) -> None:
    """Nobody rings for it."""
    q = aio.Queue.of(make(delivery="at_least_once", visibility=0.2 if how == "overdue" else None))

    async def main() -> None:
        await q.put(b"x")
        first = await q.lease()
        if how == "nack":
            first.nack(0.2)
        waiting = await parked(q)
        with await waiting as message:
            assert message.deliveries == 2
        if how == "overdue":
            with pytest.raises(shmq.StaleLease):
                first.ack()

    run(main())
    q.close()


@pytest.mark.usefixtures("no_slices")
def test_a_shorter_delay_is_heard_of(q: aio.Queue, script: Start) -> None:
    """Of a message that another process gives back, while we wait for one that is due later."""

    async def main() -> None:
        await q.put_many([b"late", b"early"])
        (await q.lease()).nack(30)
        giver = script(
            PRELUDE
            + """
m = shmq.Queue(sys.argv[1]).lease()
print(1, flush=True)
input()
m.nack(0.1)
""",
            q.name,
        )
        await asyncio.to_thread(giver.line)
        waiting = await parked(q)
        giver.say()
        with await waiting as message:
            assert message.value == b"early"

    run(main())


def test_a_death_that_was_told_while_nobody_waited(q: aio.Queue, script: Start) -> None:
    """Whoever waits next looks soon."""

    async def main() -> None:
        waiting = await parked(q)
        holder = script(HOLD, q.name)
        while len(q.peers()) < 2 or not q._waits.watched:
            await asyncio.sleep(0.001)
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
        await q.put(b"x")
        await asyncio.to_thread(holder.line)
        kill(holder)
        while q._waits.watched:
            await asyncio.sleep(0.001)
        waiting = await parked(q)
        assert q._waits.getters.slice_s() == doorbell.SLICE_S
        (await waiting).ack()

    run(main())


@pytest.mark.usefixtures("no_slices")
def test_a_second_loop_has_timers_of_its_own(q: aio.Queue) -> None:
    async def first() -> None:
        await q.put(b"x")
        (await q.lease()).nack(0.1)
        (await parked(q)).cancel()

    async def second() -> None:
        while type(message := q._handle._try_lease(False)) is int:  # the timer's time is over
            await asyncio.sleep(0.001)
        message.nack(0.05)
        (await q.lease()).ack()

    run(first())
    run(second())


def test_a_file_that_got_a_pidfds_number_is_left_alone(tmp_path: Any, script: Start) -> None:
    async def main() -> None:
        them = deaths.Deaths(asyncio.get_running_loop(), lambda: None)
        child = script("import time; time.sleep(60)")
        pid = child.process.pid
        assert them.watch((pid, deaths._start_ticks(pid) or 0))
        [fd] = them._fds.values()
        asyncio.get_running_loop().remove_reader(fd)
        other = os.open(tmp_path / "file", os.O_CREAT | os.O_RDWR)
        os.dup2(other, fd)
        them.close()
        os.write(fd, b"still open")
        os.close(fd)
        os.close(other)

    run(main())


def test_whom_we_cannot_watch_is_asked_for_once_a_slice(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[deaths.Process] = []
    monkeypatch.setattr(deaths, "_open", asked.append)

    async def main() -> None:
        them = deaths.Deaths(asyncio.get_running_loop(), lambda: None)
        for _ in range(3):
            assert not them.watch((1, 2))
        them.ask_again()
        assert not them.watch((1, 2))
        monkeypatch.setattr(resource, "getrlimit", lambda _: (resource.RLIM_INFINITY,) * 2)
        assert deaths.Deaths(asyncio.get_running_loop(), lambda: None)._most > 1 << 20
        them._most = 0
        assert not them.watch((3, 4))
        assert asked == [(1, 2), (1, 2)]

    run(main())


def test_somebody_else_with_our_pid() -> None:
    """In another container, which shares /dev/shm with ours."""

    async def main() -> None:
        told: list[int] = []
        them = deaths.Deaths(asyncio.get_running_loop(), lambda: told.append(1))
        pid = os.getpid()
        assert them.watch((pid, deaths._start_ticks(pid) or 0))
        assert not them.watch((pid, 1))
        assert not them.watch((0, 1))
        assert not them.watch((1 << 40, 1))
        assert not them._fds
        them.close()

    run(main())
