"""``shmq.aio`` in one process: waits, cancellation at every await, several tasks, what is left behind."""

import asyncio
import os
import shutil
import stat
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import SMALL, fill, fill_arena

import shmq
from shmq import aio
from shmq.doorbell import SLICE_S

BELLS = Path(f"/dev/shm/shmq-doorbells-{os.geteuid()}")
Main = Callable[[Coroutine[Any, Any, Any]], Any]


def bells() -> set[str]:
    """Names of the FIFOs that live."""
    return {p.name for p in BELLS.glob("*")} if BELLS.exists() else set()


@pytest.fixture(params=["asyncio", "uvloop"])
def main(request: pytest.FixtureRequest) -> Main:
    """Runs a coroutine in a loop of this kind."""
    if request.param == "uvloop":
        uvloop = pytest.importorskip("uvloop", reason="uvloop is not installed: pip install 'shmq[test]'")

        def run(coroutine: Coroutine[Any, Any, Any]) -> Any:
            with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
                return runner.run(asyncio.wait_for(coroutine, 60))

        return run
    return lambda coroutine: asyncio.run(asyncio.wait_for(coroutine, 60))


@pytest.fixture
def aq(q: shmq.Queue) -> aio.Queue:
    return aio.Queue.of(q)


def fill_up(q: aio.Queue) -> None:
    """Until not even an empty message fits."""
    fill(q._handle)
    with suppress(shmq.Full):
        while True:
            q.put_nowait(b"")


async def until(condition: Callable[[], Any]) -> None:
    while not condition():
        await asyncio.sleep(0.001)


def waiting(q: aio.Queue) -> int:
    """Tasks that are parked."""
    return len(q._waits.getters._waiting) + len(q._waits.putters._waiting)


@asynccontextmanager
async def parked(q: aio.Queue, *calls: Awaitable[Any]) -> AsyncIterator[list["asyncio.Task[Any]"]]:
    """Tasks that wait, one behind the other."""
    tasks = []
    for call in calls:
        before = waiting(q)
        tasks.append(asyncio.ensure_future(call))
        await until(lambda before=before: waiting(q) > before)
    try:
        yield tasks  # type: ignore[misc]
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


# ---- the surface ----


def test_importing_shmq_does_not_import_asyncio(run: Callable[..., str]) -> None:
    run(
        "import sys, shmq\nassert 'asyncio' not in sys.modules\n"
        "assert shmq.aio.Queue\nassert 'asyncio' in sys.modules\n"
        "try:\n    shmq.nothing\nexcept AttributeError:\n    pass\n"
    )


def test_a_queue_by_its_verbs(name: str, main: Main, ring_kind: str) -> None:
    async def talk() -> None:
        async with aio.Queue.create(name, kind=ring_kind, **SMALL) as q, aio.Queue.attach(name) as p:
            assert (q.empty(), q.full(), q.qsize(), q.name) == (True, False, 0, name)
            await p.put({"step": 7})
            p.put_nowait(b"x")
            assert await p.put_many([b"1", 2, b"3"]) == 3
            assert await q.get() == {"step": 7}
            assert q.get_nowait() == b"x"
            assert await q.get_many(10) == [b"1", 2, b"3"]
            with pytest.raises(shmq.Empty):
                q.get_nowait()
            async with p.loan((4,), "float32") as loan:
                loan.array[:] = range(4)
            assert (await q.get()).tolist() == [0, 1, 2, 3]
            with suppress(KeyError):
                async with p.loan((4,), "float32") as loan:
                    raise KeyError
            assert q.stats().qsize == 0
            assert len(q.peers()) == 2
            assert "aio.Queue" in repr(q)
            q.unlink()
        assert q.closed

    main(talk())


def test_a_topic_by_its_verbs(name: str, main: Main) -> None:
    async def talk() -> None:
        async with aio.Topic(name, history=1, **SMALL) as t, t.subscribe() as one, t.subscribe() as two:
            await t.publish(np.arange(3))
            assert await t.publish_many([b"1", b"2"]) == 2
            for sub in (one, two):
                assert sub.qsize() == 3
                assert (await sub.get()).tolist() == [0, 1, 2]
            async with parked_sub(one) as task:
                await t.publish("late")
                assert await task == "late"
            t.shutdown()
            assert [m async for m in two] == [b"1", b"2", "late"]
            assert (two.missed, two.evicted, t.full()) == (0, False, False)
            t.unlink()

    @asynccontextmanager
    async def parked_sub(sub: aio.Subscription) -> AsyncIterator["asyncio.Task[Any]"]:
        assert await sub.get_many(2) == [b"1", b"2"]
        task = asyncio.ensure_future(sub.get())
        await until(lambda: sub._waits.getters._waiting)
        yield task

    main(talk())


# ---- waits ----


def test_a_get_waits_for_a_put(aq: aio.Queue, main: Main) -> None:
    async def talk() -> None:
        async with parked(aq, aq.get()) as (get,):
            aq.put_nowait(b"x")
            assert await get == b"x"

    main(talk())
    aq.close()


@pytest.mark.parametrize("full_of", ["messages", "views"])
def test_a_put_waits_for_room(aq: aio.Queue, main: Main, full_of: str) -> None:
    array = np.arange(2048.0)

    async def talk() -> None:
        held: list[Any] = []
        if full_of == "messages":
            fill_up(aq)
        else:
            held = fill_arena(aq._handle)
            while aq.qsize():
                aq.get_nowait()
        with pytest.raises(shmq.Full):
            await aq.put(array, timeout=0)
        async with parked(aq, aq.put(array)) as (put,):
            if held:
                held.pop()
            else:
                while aq.full() or not put.done():
                    aq.get_nowait(copy=True)
                    await asyncio.sleep(0)
            await put

    main(talk())
    aq.close()


def test_a_loan_waits_for_memory_and_its_publishing_for_room(aq: aio.Queue, main: Main) -> None:
    async def talk() -> None:
        held = fill_arena(aq._handle)

        async def lend() -> None:
            async with aq.loan((2048,), "float64") as loan:
                fill_up(aq)
                loan.array[:] = 7

        async with parked(aq, lend()) as (task,):
            held.clear()
            await until(lambda: waiting(aq) and aq.full())
            while not task.done():
                with suppress(shmq.Empty):
                    last = aq.get_nowait(copy=True)
                await asyncio.sleep(0)
            await task
            while aq.qsize():
                last = aq.get_nowait(copy=True)
            assert last.tolist() == [7] * 2048

    main(talk())
    aq.close()


def test_timeouts(aq: aio.Queue, main: Main) -> None:
    async def talk() -> None:
        for timeout in (0, 0.03):
            began = time.monotonic()
            with pytest.raises(shmq.Empty):
                await aq.get(timeout=timeout)
            with pytest.raises(shmq.Empty):
                await aq.get_many(3, timeout=timeout)
            assert time.monotonic() - began >= 2 * timeout
        fill(aq._handle)
        for timeout in (0, 0.03):
            with pytest.raises(shmq.Full):
                await aq.put(b"x" * 100, timeout=timeout)
            with pytest.raises(shmq.Full) as caught:
                await aq.put_many([b"x" * 100] * 3, timeout=timeout)
            assert caught.value.done == 0
        with pytest.raises(ValueError, match="non-negative"):
            await aq.get(timeout=-1)

    main(talk())
    aq.close()


def test_async_for_ends_at_shutdown(aq: aio.Queue, main: Main) -> None:
    async def talk() -> None:
        async def read() -> list[Any]:
            return [m async for m in aq]

        async with parked(aq, read(), read()) as readers:
            for i in range(100):
                await aq.put(i)
            await until(aq.empty)
            aq.shutdown()
            lists = await asyncio.gather(*readers)
        assert sorted(lists[0] + lists[1]) == list(range(100))
        with pytest.raises(shmq.ShutDown):
            await aq.get()
        with pytest.raises(shmq.ShutDown):
            await aq.put(1)

    main(talk())
    aq.close()


def test_leaving_async_for_loses_nothing(aq: aio.Queue, main: Main) -> None:
    async def talk() -> None:
        await aq.put_many(list(range(10)))
        seen = []
        for _ in range(5):
            async for m in aq:
                seen.append(m)
                if m % 2:
                    break
        assert seen == list(range(10))

    main(talk())
    aq.close()


def test_async_for_lets_others_run(aq: aio.Queue, main: Main) -> None:
    async def talk() -> None:
        turns = 0

        async def other() -> None:
            nonlocal turns
            while True:
                turns += 1
                await asyncio.sleep(0)

        task = asyncio.ensure_future(other())
        got = 0
        await aq.put_many([b"x"] * 50)
        async for _ in aq:  # there is always one more
            got += 1
            aq.put_nowait(b"x")
            if turns > 3:
                break
        task.cancel()
        assert got > 0

    main(talk())
    aq.close()


def test_closing_wakes_who_waits(make: Callable[..., shmq.Queue], main: Main) -> None:
    q = aio.Queue.of(make())

    async def talk(close: Callable[[], None]) -> None:
        async with parked(q, q.get(), q.get(), q.get()) as tasks:
            close()
            for task in tasks:
                with pytest.raises(shmq.Closed):
                    await task

    def by_a_thread() -> None:
        thread = threading.Thread(target=q.close)
        thread.start()
        thread.join()

    closing = [lambda: q.close(), by_a_thread, lambda: q._handle.close()]  # of the q of its turn
    while closing:
        main(talk(closing.pop()))
        assert q.closed
        q.close()
        q = aio.Queue.of(make())
    q.close()


def test_shutdown_by_another_handle_wakes_who_waits(make: Callable[..., shmq.Queue], main: Main) -> None:
    q, other = aio.Queue.of(make()), make()

    async def talk() -> None:
        async with parked(q, q.get(), q.get()) as tasks:
            other.shutdown()
            for task in tasks:
                with pytest.raises(shmq.ShutDown):
                    await task

    main(talk())
    q.close()


# ---- several tasks, cancellation ----


def test_tasks_are_served_in_their_order(aq: aio.Queue, main: Main) -> None:
    async def talk() -> None:
        async with parked(aq, *(aq.get() for _ in range(5))) as tasks:
            for i in range(5):
                aq.put_nowait(i)
            assert await asyncio.gather(*tasks) == list(range(5))

    main(talk())
    aq.close()


def test_a_task_whose_message_went_to_another_keeps_its_place(aq: aio.Queue, main: Main) -> None:
    async def talk() -> None:
        async with parked(aq, aq.get(), aq.get()) as (first, second):
            for _ in range(3):
                aq.put_nowait(b"stolen")
                aq._waits.getters.look()  # as the ring would
                assert aq.get_nowait() == b"stolen"
                await until(lambda: waiting(aq) == 2)
            await aq.put_many([1, 2])
            assert (await first, await second) == (1, 2)

    main(talk())
    aq.close()


def test_a_task_that_was_woken_and_is_cancelled_passes_it_on(aq: aio.Queue, main: Main) -> None:
    async def talk() -> None:
        async with parked(aq, aq.get(), aq.get()) as (first, second):
            aq.put_nowait(b"x")
            aq._waits.getters.look()  # as the ring would
            assert aq._waits.getters._woken
            first.cancel()
            assert await second == b"x"
            with pytest.raises(asyncio.CancelledError):
                await first

    main(talk())
    aq.close()


class StoppedAt:
    """Awaits ``coroutine``, but at its nth await calls ``first`` and throws CancelledError in instead."""

    def __init__(self, coroutine: Coroutine[Any, Any, Any], n: int, first: Callable[[], None]) -> None:
        self.coroutine, self.n, self.first = coroutine, n, first
        self.came = False

    def __await__(self) -> Any:
        thrown: BaseException | None = None
        for step in range(1000):
            try:
                thing = self.coroutine.throw(thrown) if thrown else self.coroutine.send(None)
            except StopIteration as done:
                return done.value
            thrown = asyncio.CancelledError() if step == self.n else None
            if thrown:
                self.came = True
                self.first()
            else:
                yield thing


async def outcome(awaitable: Awaitable[Any]) -> Any:
    """Its result, or what it raised."""
    try:
        return await awaitable
    except (asyncio.CancelledError, shmq.ShmqError) as e:
        return e


@pytest.mark.parametrize("woken", [False, True])
@pytest.mark.parametrize("call", ["get", "get_many", "async for"])
def test_cancellation_at_every_await_of_a_get(aq: aio.Queue, main: Main, call: str, woken: bool) -> None:
    """It is either returned, or still there; also where the wake-up had come already."""

    async def read() -> Any:
        if call == "get":
            return await aq.get()
        if call == "get_many":
            return (await aq.get_many(5))[0]
        async for message in aq:
            return message

    def arrive() -> None:
        aq.put_nowait(b"x")
        if woken:
            aq._waits.getters.look()  # as the ring would
            assert aq._waits.getters._woken

    async def talk() -> None:
        for n in range(10):
            stopped = StoppedAt(read(), n, arrive)
            asyncio.get_running_loop().call_soon(lambda n=n: None if n == 0 else aq.put_nowait(b"x"))
            got = await outcome(stopped)
            if not stopped.came:
                assert got == b"x"
                break
            assert isinstance(got, asyncio.CancelledError)
            while not aq.empty():
                assert aq.get_nowait() == b"x"
            assert not waiting(aq)
            assert not aq._waits.getters._woken
        assert n > 0

    main(talk())
    aq.close()


@pytest.mark.parametrize("woken", [False, True])
@pytest.mark.parametrize("call", ["put", "loan"])
def test_cancellation_at_every_await_of_a_put(aq: aio.Queue, main: Main, call: str, woken: bool) -> None:
    """It is either put, or not; memory that was lent is free again."""

    async def write() -> None:
        if call == "put":
            await aq.put(b"x" * 100)
            return
        async with aq.loan((100,), "uint8") as loan:
            loan.array[:] = 1

    def make_room() -> None:
        if not aq.empty():
            aq.get_nowait()
        if woken:
            aq._waits.putters.look()

    async def talk() -> None:
        for n in range(10):
            while not aq.empty():
                aq.get_nowait(copy=True)
            fill_up(aq)
            before = aq.qsize()
            stopped = StoppedAt(write(), n, make_room)
            asyncio.get_running_loop().call_soon(lambda n=n: None if n == 0 else aq.get_nowait())
            got = await outcome(stopped)
            assert aq.qsize() == before - 1 + (got is None)
            assert not waiting(aq)
            assert not aq._waits.putters._woken
            if not stopped.came:
                break
            assert isinstance(got, asyncio.CancelledError)
            assert aq.stats().pages["loaned"] == 0
        assert n > 0

    main(talk())
    aq.close()


def test_put_many_says_how_many_when_it_is_cancelled(aq: aio.Queue, main: Main) -> None:
    async def talk() -> None:
        objects = [b"%100d" % i for i in range(100_000)]
        async with parked(aq, aq.put_many(objects)) as (task,):
            task.cancel()
            with pytest.raises(asyncio.CancelledError) as caught:
                await task
        done = getattr(caught.value, "done", None)
        if done is None:  # asyncio makes a new one for whoever awaits the task
            cause = caught.value.__context__
            done = getattr(cause, "done", aq.qsize())
        assert 0 < done == aq.qsize() < len(objects)

    main(talk())
    aq.close()


def test_no_message_is_lost_or_repeated_under_cancellation(aq: aio.Queue, main: Main) -> None:
    """Getters and putters are cancelled all the time; the ledger is exact."""
    sent: list[int] = []
    got: list[int] = []
    total = 3000

    async def put_all(first: int) -> None:
        for number in range(first, total, 3):
            while True:
                try:
                    async with asyncio.timeout(0.0005 * (number % 3)):
                        await aq.put(number)
                    break
                except TimeoutError:
                    continue
            sent.append(number)

    async def get_all() -> None:
        while len(got) < total:
            with suppress(TimeoutError):
                async with asyncio.timeout(0.0002 * (len(got) % 5)):
                    got.append(await aq.get())
            await asyncio.sleep(0)

    async def talk() -> None:
        async with asyncio.TaskGroup() as group:
            for first in range(3):
                group.create_task(put_all(first))
            for _ in range(4):
                group.create_task(get_all())

    main(talk())
    assert sorted(got) == sorted(sent) == list(range(total))
    aq.close()


# ---- the loop ----


def test_a_message_that_is_there_costs_no_system_call(run: Callable[..., str], name: str) -> None:
    if shutil.which("strace") is None:
        pytest.skip("strace is not installed: apt-get install strace")
    source = (
        "import asyncio, os, shmq\nfrom shmq import aio\n"
        "async def main():\n"
        "    async with aio.Queue(None, kind='spsc') as q:\n"
        "        await q.put_many([b'x' * 64] * 3000); await q.get(); it = aiter(q); await anext(it)\n"
        "        os.stat('/begin-here') if os.path.exists('/begin-here') else None\n"
        "        for _ in range(1000): await q.get(); await q.put(b'y')\n"
        "        os.path.exists('/end-here')\n"
        "asyncio.run(main())\n"
    )
    done = subprocess.run(
        ["strace", "-o", "/dev/stderr", sys.executable, "-c", source],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    if "ptrace" in done.stderr and "Operation not permitted" in done.stderr:
        pytest.skip("this process may not be traced")
    assert done.returncode == 0, done.stderr[-2000:]
    inside = done.stderr.split("/begin-here")[1].split("/end-here")[0].splitlines()
    assert len(inside) <= 20, "\n".join(inside[:30])  # the collector of garbage may ask for memory


def test_an_idle_get_takes_no_processor_time(aq: aio.Queue, main: Main) -> None:
    async def talk() -> float:
        async with parked(aq, aq.get(), aq.get()):
            await asyncio.sleep(0.05 + 0 * waiting(aq))
            before = os.times()
            await asyncio.sleep(0.5 + 0 * waiting(aq))
            after = os.times()
        return (after.user + after.system - before.user - before.system) / (after.elapsed - before.elapsed)

    assert main(talk()) < 0.05
    aq.close()


def test_a_loop_has_one_bell_from_the_first_wait_to_the_last_close(main: Main) -> None:
    async def talk() -> None:
        queues = [aio.Queue(None, **SMALL) for _ in range(3)]
        before = bells()
        for q in queues:
            q.put_nowait(1)
            assert await q.get() == 1
        assert bells() == before  # nothing had to wait
        for q in queues:
            with pytest.raises(shmq.Empty):
                await q.get(timeout=0.001)
        (mine,) = bells() - before
        bell = queues[0]._waits.bound  # a reference does not keep the FIFO
        assert stat.S_ISFIFO((BELLS / mine).stat().st_mode)
        for q in queues:
            assert mine in bells()
            q.close()
        assert mine not in bells()
        del bell

    main(talk())


def test_many_queues_on_one_loop(main: Main) -> None:
    async def talk() -> None:
        queues = [aio.Queue(None, **SMALL) for _ in range(20)]
        tasks = [asyncio.ensure_future(q.get()) for q in queues]
        await until(lambda: all(waiting(q) for q in queues))
        for i in (7, 3, 19):
            queues[i].put_nowait(i)
            assert await tasks[i] == i
            assert sum(waiting(q) for q in queues) + sum(t.done() for t in tasks) == 20
        for q in queues:
            q.close()
        await asyncio.gather(*tasks, return_exceptions=True)

    main(talk())


def test_a_handle_belongs_to_one_loop(aq: aio.Queue) -> None:
    refused = []

    async def wait_a_little() -> None:
        with pytest.raises(shmq.Empty):
            await aq.get(timeout=0.001)

    async def elsewhere() -> None:
        with pytest.raises(RuntimeError, match="belongs to another event loop") as caught:
            await aq.get(timeout=1)
        refused.append(caught.value)

    async def first() -> None:
        await wait_a_little()
        await asyncio.to_thread(lambda: asyncio.run(elsewhere()))

    asyncio.run(first())
    assert refused
    asyncio.run(wait_a_little())  # that loop is closed
    aq.close()


def test_a_directory_that_others_may_write_is_refused(run: Callable[..., str], in_small_shm: Any) -> None:
    in_small_shm(
        "32m",
        "import asyncio, os\nimport shmq\nfrom shmq import aio\n"
        "path = f'/dev/shm/shmq-doorbells-{os.geteuid()}'\n"
        "async def main():\n"
        "    q = aio.Queue('q', ring_bytes=1 << 16, arena_bytes=1 << 20)\n"
        "    wide = lambda: (os.mkdir(path), os.chmod(path, 0o777))\n"
        "    for make in (wide, lambda: os.symlink('/tmp', path)):\n"
        "        make()\n"
        "        try:\n"
        "            await q.get(timeout=1)\n"
        "        except shmq.WrongOwner as e:\n"
        "            assert path in str(e)\n"
        "        else:\n"
        "            raise SystemExit('believed')\n"
        "        (os.unlink if os.path.islink(path) else os.rmdir)(path)\n"
        "    q.close(); q.unlink()\n"
        "asyncio.run(main())\n",
    )


def test_anyio_on_asyncio(aq: aio.Queue) -> None:
    anyio = pytest.importorskip("anyio", reason="anyio is not installed: pip install 'shmq[test]'")

    async def talk() -> None:
        with anyio.move_on_after(0.01):
            await aq.get()
        assert not waiting(aq)
        async with anyio.create_task_group() as group:
            group.start_soon(aq.put, b"x")
            assert await aq.get() == b"x"
            with anyio.CancelScope() as scope:
                scope.cancel()
                aq.put_nowait(b"y")
                with suppress(BaseException):
                    await anyio.sleep(0)
        assert await aq.get() == b"y"

    anyio.run(talk)
    aq.close()


def test_what_nobody_rang_for_is_found_at_the_end_of_a_slice(aq: aio.Queue, main: Main) -> None:
    """A waker that died between the store and the ring: the flag is gone, the message is there."""
    armed = np.memmap(f"/dev/shm/shmq.{aq.name}", "u4", "r+", 4096 + 2 * 128 + 4, (1,))

    async def talk() -> None:
        async with parked(aq, aq.get()) as (task,):
            await until(lambda: aq._waits.getters.unsure_since is None)
            assert armed[0] == 2
            armed[0] = 0
            aq.put_nowait(b"x")  # finds nobody armed
            assert await task == b"x"

    main(talk())
    aq.close()


def test_only_a_deadline_within_a_slice_has_a_timer(aq: aio.Queue, main: Main) -> None:
    """Most waits are over before: one further away gets it at a slice's end."""

    async def talk() -> None:
        begun = time.monotonic()
        async with parked(aq, aq.get(timeout=2.5 * SLICE_S), aq.get(timeout=SLICE_S)) as (far, near):
            assert [place.timer is None for place in aq._waits.getters._waiting] == [True, False]
            for task in (near, far):
                with pytest.raises(shmq.Empty):
                    await task
        assert time.monotonic() - begun >= 2.5 * SLICE_S

    main(talk())
    aq.close()


def test_the_slice_ends_with_the_wait(aq: aio.Queue, main: Main) -> None:
    async def talk() -> None:
        async with parked(aq, aq.get()):
            bell = aq._waits.bound
            assert bell is not None
            assert bell._timer is not None
        await until(lambda: bell._timer is None and bell._settler is None)

    main(talk())
    aq.close()
