"""``shmq.aio`` between processes: no message lost or repeated, deaths, forks."""

import asyncio
import os
import pickle
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from conftest import PRELUDE, SMALL, Script

import shmq
from shmq import aio

BELLS = Path(f"/dev/shm/shmq-doorbells-{os.geteuid()}")
AIO = PRELUDE + "import asyncio\nfrom contextlib import suppress\nfrom shmq import aio\n"
Start = Callable[..., Script]

WAIT = (
    AIO
    + """
async def main():
    q = aio.Queue.attach(sys.argv[1])
    task = asyncio.ensure_future(q.get())
    while not q._waits.getters._waiting:
        await asyncio.sleep(0.001)
    print(f"{q._waits.bound.number:016x}", flush=True)
    print(repr(await task), flush=True)
asyncio.run(main())
"""
)
"""Waits for a message; says the name of its doorbell before, and the message after."""

SEND = (
    AIO
    + """
name, first, step, total = sys.argv[1], *map(int, sys.argv[2:])
async def main():
    q = aio.Queue.attach(name)
    for number in range(first, total, step):
        while True:
            try:
                async with asyncio.timeout(0.0005 * (number % 4)):
                    await q.put({"n": number} if number % 5 else b"%d" % number)
                break
            except TimeoutError:
                pass
        if number % 50 == 0:
            await asyncio.sleep(0.002)
    q.close()
asyncio.run(main())
"""
)
"""Puts its numbers; each put is cancelled until it gets through."""


def number_of(message: Any) -> int:
    return int(message) if isinstance(message, bytes) else message["n"]


def run(coroutine: Any) -> Any:
    return asyncio.run(asyncio.wait_for(coroutine, 60))


def test_the_ledger_is_exact_under_cancellation(
    make: Callable[..., shmq.Queue], script: Start, ring_kind: str
) -> None:
    """Producers in other processes, and several tasks here, all of them cancelled all the time."""
    q = aio.Queue.of(make(ring_bytes=4096))
    total, producers = 4000, 1 if ring_kind == "spsc" else 2
    got: list[int] = []

    async def get_all() -> None:
        while len(got) < total:
            with suppress(TimeoutError):
                async with asyncio.timeout(0.0003 * (len(got) % 4)):
                    if len(got) % 3:
                        got.append(number_of(await q.get()))
                    else:
                        got.extend(number_of(m) for m in await q.get_many(5))

    async def talk() -> None:
        async with asyncio.TaskGroup() as group:
            for _ in range(3):
                group.create_task(get_all())

    children = [script(SEND, q.name, str(i), str(producers), str(total)) for i in range(producers)]
    run(talk())
    for child in children:
        status, _, errors = child.finish()
        assert (status, errors) == (0, "")
    assert sorted(got) == list(range(total))
    assert q.empty()
    q.close()


def test_a_topic_under_cancellation(name: str, script: Start) -> None:
    with shmq.Topic.create(name, **{**SMALL, "ring_bytes": 8192}) as topic:
        subscriptions = [aio.Subscription.of(topic.subscribe()) for _ in range(2)]
        source = SEND.replace("aio.Queue.attach", "aio.Topic.attach")
        child = script(source, name, "0", "1", "1000")

        async def read(sub: aio.Subscription) -> list[int]:
            got: list[int] = []
            while len(got) < 1000:
                with suppress(TimeoutError):
                    async with asyncio.timeout(0.0003 * (len(got) % 4)):
                        got.append(number_of(await sub.get()))
            return got

        async def talk() -> list[list[int]]:
            return await asyncio.gather(*map(read, subscriptions))

        assert run(talk()) == [list(range(1000))] * 2
        assert child.finish()[0] == 0
        for sub in subscriptions:
            sub.close()
        topic.unlink()


def test_the_dead_do_not_hold_up_who_puts_and_leave_no_bell(
    make: Callable[..., shmq.Queue], script: Start
) -> None:
    q = make()
    child = script(WAIT, q.name)
    bell = BELLS / child.line()
    assert bell.exists()
    child.process.kill()
    child.process.wait()
    q.put(b"x")  # its bell is armed
    q.put(b"y")
    assert q.reap() == 1
    assert not bell.exists()
    assert q.qsize() == 2


def test_a_message_wakes_another_process(make: Callable[..., shmq.Queue], script: Start) -> None:
    q = make()
    child = script(WAIT, q.name)
    bell = BELLS / child.line()
    q.put(b"x")
    assert child.line() == "b'x'"
    assert child.finish()[0] == 0
    assert not bell.exists()  # also at an exit without close()


@pytest.mark.parametrize("kind", ["spsc", "topic"])
def test_the_death_of_the_producer_is_told_once(name: str, script: Start, kind: str) -> None:
    source = (
        AIO
        + """
q = (shmq.Topic if sys.argv[2] == "topic" else shmq.Queue).attach(sys.argv[1])
q.put(b"last words")
print("put", flush=True)
time.sleep(1000)
"""
    )
    is_topic = kind == "topic"
    handle: Any = (
        shmq.Topic.create(name, **SMALL) if is_topic else shmq.Queue.create(name, kind=kind, **SMALL)
    )
    side: Any = handle.subscribe() if is_topic else handle
    reader: Any = (aio.Subscription if is_topic else aio.Queue).of(side)
    child = script(source, name, kind)

    async def talk() -> None:
        assert await reader.get() == b"last words"
        tasks = [asyncio.ensure_future(reader.get()) for _ in range(2)]
        while len(reader._waits.getters._waiting) < 2:
            await asyncio.sleep(0.001)
        child.process.kill()
        child.process.wait()
        done, pending = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        assert isinstance(done.pop().exception(), shmq.PeerDead)
        with pytest.raises(shmq.Empty):  # the other task goes on waiting, for a successor
            await reader.get(timeout=0.15)
        assert pending
        if is_topic:
            with shmq.Topic.attach(name) as successor:
                successor.publish(b"again")
                assert await pending.pop() == b"again"
        else:
            with shmq.Queue.attach(name) as successor:
                successor.put(b"again")
                assert await pending.pop() == b"again"

    run(talk())
    reader.close()
    handle.close()
    shmq.unlink(name)


def test_a_forked_child_attaches_anew_and_has_its_own_bell(name: str, run: Any) -> None:
    q = shmq.Queue.create(name, **SMALL)
    run(
        AIO
        + """
q = aio.Queue.attach(sys.argv[1])
async def vain():
    while q._waits.bound is None or q._waits.bound.pid != os.getpid():
        with suppress(shmq.Empty):
            await q.get(timeout=0.01)
    return q._waits.bound.number
async def both():
    mine = await vain()
    pid = await asyncio.to_thread(fork)
    assert os.waitpid(pid, 0)[1] == 0
    assert os.path.exists(f"/dev/shm/shmq-doorbells-{os.geteuid()}/{mine:016x}")
    assert await vain() == mine
def fork():
    mine = q._waits.bound.number
    if pid := os.fork():
        return pid
    try:
        other = asyncio.run(vain())
        q.close()
        os._exit(other == mine)
    except BaseException as e:
        print(repr(e), flush=True)
        os._exit(3)
asyncio.run(both())
q.close()
""",
        name,
    )
    q.close()
    q.unlink()


def test_a_handle_goes_to_another_process_by_pickle(name: str, script: Start) -> None:
    source = (
        AIO
        + """
import pickle
q = pickle.loads(bytes.fromhex(sys.argv[1]))
asyncio.run(q.put("from the child"))
q.close()
"""
    )
    with shmq.Queue.create(name, **SMALL) as sync:
        q = aio.Queue.of(sync)
        child = script(source, pickle.dumps(q).hex())
        assert run(q.get(timeout=30)) == "from the child"
        assert child.finish()[0] == 0
        q.close()
        sync.unlink()


def test_uvloop_and_asyncio_talk_to_each_other(make: Callable[..., shmq.Queue], script: Start) -> None:
    uvloop = pytest.importorskip("uvloop", reason="uvloop is not installed: pip install 'shmq[test]'")
    there, back = make(), shmq.Queue(None, **SMALL)
    echo = (
        AIO
        + """
async def main():
    a, b = aio.Queue.attach(sys.argv[1]), aio.Queue.attach(sys.argv[2])
    async for message in a:
        await b.put(message)
asyncio.run(main())
"""
    )
    child = script(echo, there.name, back.name)

    async def talk() -> None:
        a, b = aio.Queue.of(there), aio.Queue.of(back)
        for i in range(300):
            await a.put(i)
            assert await b.get() == i
        a.shutdown()
        a.close()
        b.close()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(asyncio.wait_for(talk(), 60))
    assert child.finish()[0] == 0
