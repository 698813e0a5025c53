"""Leases in an event loop: waiting for one, and cancelling that."""

import asyncio
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from conftest import PRELUDE, Script

import shmq
from shmq import aio

Make = Callable[..., shmq.Queue]


@pytest.fixture
def ring_kind() -> str:
    return "mpmc"


@pytest.fixture
def q(make: Make) -> Iterator[aio.Queue]:
    queue = aio.Queue.of(make(delivery="at_least_once", max_unacked=8, max_deliveries=0))
    yield queue
    queue.close()


def run(coroutine: Any) -> Any:
    return asyncio.run(asyncio.wait_for(coroutine, 60))


def test_a_lease_that_waits(q: aio.Queue) -> None:
    async def main() -> None:
        waiting = asyncio.create_task(q.lease())
        await asyncio.sleep(0)
        await q.put(np.arange(5000))
        with await waiting as message:
            assert message.value[4999] == 4999
        with pytest.raises(shmq.Empty):
            await q.lease(timeout=0.01)

    run(main())
    assert q.stats().unacked == 0


def test_whoever_waits_for_room_is_woken_by_an_ack(q: aio.Queue) -> None:
    async def main() -> None:
        await q.put_many(range(9))
        held = [await q.lease() for _ in range(8)]
        with pytest.raises(shmq.UnackedFull):
            await q.lease(timeout=0.01)
        waiting = asyncio.create_task(q.lease())
        await asyncio.sleep(0)
        held[0].ack()
        assert (await waiting).value == 8

    run(main())


def test_a_delay(q: aio.Queue) -> None:
    async def main() -> None:
        await q.put("x")
        before = time.monotonic()
        (await q.lease()).nack(delay=0.05)
        with await q.lease() as message:
            assert message.deliveries == 2
        assert time.monotonic() - before >= 0.05

    run(main())


def test_cancelling_loses_none(q: aio.Queue) -> None:
    """Tasks that wait are cancelled while messages come; whatever was leased is acknowledged, once."""
    done = Counter[int]()

    async def worker() -> None:
        while True:
            with await q.lease() as message:
                done[message.value] += 1

    async def main() -> None:
        workers = [asyncio.create_task(worker()) for _ in range(4)]
        for i in range(500):
            await q.put(i)
            workers.pop(0).cancel()
            workers.append(asyncio.create_task(worker()))
            await asyncio.sleep(0)
        while q.qsize() or q.stats().unacked or q.stats().waiting_again:
            await asyncio.sleep(0.001)
        for task in workers:
            task.cancel()

    run(main())
    assert done == Counter(range(500))


def test_what_a_dead_process_had(q: aio.Queue, name: str, script: Callable[..., Script]) -> None:
    async def main() -> None:
        await q.put(np.full(5000, 7))
        holder = script(
            PRELUDE + "m = shmq.Queue(sys.argv[1]).lease(); print(1, flush=True); time.sleep(60)", name
        )
        await asyncio.to_thread(holder.line)
        waiting = asyncio.create_task(q.lease())
        await asyncio.sleep(0)
        holder.process.send_signal(signal.SIGKILL)
        with await waiting as message:
            assert (message.value[0], message.deliveries) == (7, 2)

    run(main())
