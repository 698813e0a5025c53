"""Two priorities per queue: urgent messages overtake, the others do not starve, neither stops the other."""

import asyncio
import contextlib
import pickle
import threading
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from conftest import PRELUDE, Script, fill_arena, poll

import shmq
from shmq import aio, cli

Make = Callable[..., shmq.Queue]
Start = Callable[..., Script]

RUN = 16
"""Urgent messages that a consumer takes in a row while others wait."""
SAMPLES: list[Any] = [
    b"short",
    b"long" * 50_000,
    bytearray(b"buffer"),
    {"a": [1, None, "x"]},
    {"long": "y" * 9000},
    np.arange(9, dtype="i2"),
    np.arange(90_000.0).reshape(900, 100, order="F"),
    np.arange(90_000.0).reshape(300, 300)[::2, ::2],
    np.zeros(20, [("a", "i4"), ("b", "f8", (2,))]),
    {"part": np.ones(5), "other": [np.zeros(40_000)]},
    {"strided": np.arange(4000.0)[::2]},
]


@pytest.fixture
def ring_kind() -> str:
    return "mpmc"


@pytest.fixture
def q(make: Make) -> shmq.Queue:
    """128 slots, of which the urgent lane has 16 of its own."""
    return make(priority=True, arena_bytes=4 << 20)


def fill_lane(q: shmq.Queue, priority: bool) -> int:
    waiting = q.qsize()
    with contextlib.suppress(shmq.Full):
        while True:
            q.put_nowait(b"x", priority=priority)
    return q.qsize() - waiting


# ---- order ----


@pytest.mark.parametrize("sent", SAMPLES, ids=lambda sent: type(sent).__name__)
def test_whatever_is_urgent_overtakes(q: shmq.Queue, sent: Any) -> None:
    q.put(b"bulk")
    q.put(sent, priority=True)
    q.put_nowait(sent, priority=True)
    assert (q.qsize(), q.stats().urgent) == (3, 2)
    sent = bytes(sent) if type(sent) is bytearray else sent
    np.testing.assert_equal(q.get(), sent)
    np.testing.assert_equal(q.get(), sent)
    assert q.get() == b"bulk"
    assert (q.qsize(), q.stats().urgent) == (0, 0)


def test_a_loan_overtakes(q: shmq.Queue) -> None:
    with q.loan(10, "i4") as bulk, q.loan(10, "i4", priority=True) as urgent:
        bulk.array[:], urgent.array[:] = 1, 2
    assert [int(q.get()[0]), int(q.get()[0])] == [2, 1]
    fill_lane(q, priority=True)
    loan = q.loan(10, "i4", priority=True)
    with pytest.raises(shmq.Full, match="urgent lane of 16"):
        loan.publish(timeout=0.01)
    q.get()
    loan.publish()


def test_neither_starves(q: shmq.Queue) -> None:
    """With an urgent lane that never runs dry: exactly one of the others after 16 urgent ones."""
    for i in range(10):
        q.put(b"bulk %d" % i)
    for _ in range(5):
        q.put(b"urgent", priority=True)
    got = []
    while b"bulk 9" not in got:
        q.put(b"urgent", priority=True)
        got.append(q.get())
        assert len(got) < 1000
    for i in range(10):
        turn, got = got[: RUN + 1], got[RUN + 1 :]
        assert turn == [b"urgent"] * RUN + [b"bulk %d" % i]
    assert not got


def test_batches_take_turns_too(q: shmq.Queue) -> None:
    for i in range(3):
        q.put(i)
    for i in range(RUN):
        q.put(100 + i, priority=True)
    first = q.get_many(10)
    q.put(200, priority=True)
    assert first + q.get_many(100) == [*range(100, 100 + RUN), 0, 200, 1, 2]


def test_threads_of_a_handle_put_into_their_own_lanes(make: Make) -> None:
    """Large copies release the GIL in the middle of a put."""
    q = make(priority=True, ring_bytes=1 << 20, arena_bytes=64 << 20)
    large, each = np.zeros(10_000), 50

    def put(priority: bool) -> None:
        for i in range(each):
            q.put(large if i % 2 else {"head": i, "body": large}, timeout=30, priority=priority)
            q.put(i, timeout=30, priority=priority)

    threads = [threading.Thread(target=put, args=(priority,)) for priority in (False, True)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (q.qsize(), q.stats().urgent) == (4 * each, 2 * each)


# ---- room ----


def test_a_full_lane_does_not_stop_the_other(q: shmq.Queue) -> None:
    assert (fill_lane(q, True), q.full()) == (16, False)
    assert (fill_lane(q, False), q.full()) == (128, True)
    with pytest.raises(shmq.Full, match=r"the ring of 65,536 bytes is full with 128 messages"):
        q.put(b"x", timeout=0.01)
    with pytest.raises(shmq.Full, match=r"the urgent lane of 16 messages is full with 16"):
        q.put(b"x", timeout=0.01, priority=True)
    with pytest.raises(shmq.Full, match=r"the urgent lane of 16 messages is full; consume faster"):
        q.put_nowait({"a": 1}, priority=True)
    assert q.stats().ring_used_bytes == q.stats().ring_bytes
    q.get()
    q.put(b"y", priority=True)
    with pytest.raises(shmq.Full):
        q.put_nowait(b"y")


@pytest.mark.parametrize("priority", [False, True])
def test_a_put_that_waits_for_room_in_its_lane(q: shmq.Queue, make: Make, priority: bool) -> None:
    full = fill_lane(q, priority)
    other = make()
    thread = threading.Thread(target=other.put, args=(b"late",), kwargs={"priority": priority})
    thread.start()
    poll(lambda: q.peers()[1].parks > 0)  # it sleeps, though there is room in the other lane
    for _ in range(3):
        q.put(b"other", priority=not priority)
    for _ in range(1 if priority else 3):
        assert thread.is_alive()
        assert q.get() == (b"x" if priority else b"other")
    if not priority:
        assert q.get() == b"x"
    thread.join(60)
    assert not thread.is_alive()
    left = [m for m in q.get_many(200) if m != b"other"]
    assert left == [b"x"] * (full - 1) + [b"late"]


@pytest.mark.parametrize("priority", [False, True])
def test_on_full(make: Make, name: str, priority: bool) -> None:
    q = make(priority=True)
    with shmq.Queue.attach(name, on_full="drop_oldest") as old, shmq.Queue.attach(name, on_full="error") as e:
        for lane in (False, True):
            for i in range(16 if lane else 128):
                q.put([lane, i], priority=lane)
        with pytest.raises(shmq.Full, match="urgent lane" if priority else "ring of"):
            e.put(b"no", priority=priority)
        old.put([priority, "new"], priority=priority)
        assert (q.stats().dropped_oldest, q.stats().urgent, q.qsize()) == (1, 16, 144)
        with shmq.Queue.attach(name, on_full="drop_newest") as new:
            new.put(b"dropped", priority=priority)
        assert (q.stats().dropped_newest, q.qsize()) == (1, 144)
        got = q.get_many(200)
        for lane in (False, True):
            first = [[lane, i] for i in range(16 if lane else 128)]
            assert [m for m in got if m[0] == lane] == first[lane == priority :] + (
                [[lane, "new"]] if lane == priority else []
            )


def test_urgent_ones_are_dropped_last_for_room_in_the_arena(make: Make, name: str) -> None:
    q = make(priority=True)
    big = np.zeros(30_000)  # a quarter of the arena
    with shmq.Queue.attach(name, on_full="drop_oldest") as old:
        q.put(big)
        for _ in range(3):
            q.put(big + 1, priority=True)
        old.put(big + 2, priority=True)
        assert (q.stats().urgent, q.qsize()) == (4, 4)
        with pytest.raises(shmq.ArenaFull):
            old.put(big + 3, timeout=0)
        old.put(big + 4, priority=True)
        assert [int(q.get(copy=True)[0]) for _ in range(4)] == [1, 1, 2, 4]


def test_the_arena_is_one(q: shmq.Queue) -> None:
    held = fill_arena(q)
    with pytest.raises(shmq.ArenaFull):
        q.put(np.zeros(3000), timeout=0.01, priority=True)
    q.put(b"in-line", priority=True)
    assert q.get() == b"in-line"
    del held


# ---- arguments, and what is told ----


def test_arguments(make: Make, name: str) -> None:
    with pytest.raises(ValueError, match="needs kind='mpmc'"):
        shmq.Queue(name, kind="spsc", priority=True)
    with pytest.raises(TypeError, match="must be True or False"):
        shmq.Queue(name, priority=1)  # type: ignore[arg-type]
    q = make()
    for put in (q.put, q.put_nowait):
        with pytest.raises(shmq.WrongKind, match=r"create it with shmq.Queue\(name, priority=True\)"):
            put(b"x", priority=True)
    with pytest.raises(shmq.WrongKind, match="no urgent lane"):
        q.loan(3, "i4", priority=True)
    with pytest.raises(shmq.WrongKind, match="is of priority False, not True"):
        shmq.Queue(name, priority=True)
    assert (q.stats().priority, q.stats().urgent, q.stats().urgent_slots, q.qsize()) == (False, 0, 0, 0)


def test_a_topic_has_none(name: str) -> None:
    with shmq.Topic(name) as t:
        with pytest.raises(shmq.WrongKind, match="no urgent lane"):
            t.put(b"x", priority=True)
        t.unlink()


def test_other_handles_find_it(q: shmq.Queue, make: Make, name: str) -> None:
    handles = [make(), make(priority=True), shmq.Queue.attach(name), pickle.loads(pickle.dumps(q))]
    for handle in handles:
        assert handle.stats().priority
        q.put(b"bulk")
        handle.put(b"urgent", priority=True)
        assert [handle.get(), q.get()] == [b"urgent", b"bulk"]
    for handle in handles[2:]:
        handle.close()


def test_onlookers(q: shmq.Queue, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    q.put({"n": 1})
    q.put({"n": 2}, priority=True)
    q.put({"n": 3}, priority=True)
    peeked = shmq.peek(name)
    assert [m.preview for m in peeked] == ["{'n': 2}", "{'n': 3}", "{'n': 1}"]
    assert [m.position for m in peeked] == [4, 12, 0]
    assert shmq.inspect(name).stats.urgent == 2
    with pytest.raises(SystemExit):
        cli.main(["stat", name])
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert any(line[-2:] == ["urgent", "2"] or line[:2] == ["urgent", "2"] for line in lines)


# ---- leases ----


def test_an_urgent_message_that_comes_again(make: Make) -> None:
    q = make(priority=True, delivery="at_least_once", max_unacked=8)
    q.put("bulk")
    q.put(np.arange(3000), priority=True)
    first = q.lease()
    with q.lease() as message:
        assert message.value == "bulk"
    q.put("more", priority=True)
    first.nack()
    for deliveries in (2, 1):
        with q.lease() as message:
            assert message.deliveries == deliveries
            assert (message.value == "more") if deliveries == 1 else len(message.value) == 3000
    q.join(timeout=10)
    q.put("last", priority=True)
    with pytest.raises(TimeoutError, match="1 messages wait"):
        q.join(timeout=0.01)
    assert q.get() == "last"
    q.task_done()
    q.join(timeout=10)


def test_what_the_dead_had_of_each_lane(make: Make, name: str, script: Start) -> None:
    q = make(priority=True, delivery="at_least_once", max_unacked=8)
    q.put("bulk")
    q.put("urgent", priority=True)
    dies = script(
        PRELUDE + "q = shmq.Queue(sys.argv[1]); held = [q.lease(), q.lease()]\n"
        "print([m.value for m in held], flush=True); os.kill(os.getpid(), signal.SIGKILL)",
        name,
    )
    assert dies.line() == "['urgent', 'bulk']"
    dies.finish()
    for expected in ("urgent", "bulk"):
        with q.lease(timeout=10) as message:
            assert (message.value, message.deliveries) == (expected, 2)


# ---- event loops ----


@pytest.fixture
def loop_queue(make: Make) -> Iterator[aio.Queue]:
    queue = aio.Queue.of(make(priority=True, ring_bytes=1 << 20))
    yield queue
    queue.close()


def run(coroutine: Any) -> Any:
    return asyncio.run(asyncio.wait_for(coroutine, 60))


def test_an_urgent_one_overtakes_a_thousand(loop_queue: aio.Queue) -> None:
    q = loop_queue

    async def main() -> None:
        await q.put_many([b"bulk"] * 1000)
        await q.put({"stop": True}, priority=True)
        q.put_nowait(b"now", priority=True)
        async with q.loan(3, "i4", priority=True) as loan:
            loan.array[:] = 7
        assert await q.get() == {"stop": True}
        messages = aiter(q)
        assert await anext(messages) == b"now"
        assert list(await anext(messages)) == [7, 7, 7]
        assert [await anext(messages) for _ in range(1000)] == [b"bulk"] * 1000

    run(main())


def test_tasks_that_wait_for_room_in_either_lane(loop_queue: aio.Queue) -> None:
    q = loop_queue
    slots = fill_lane(q._handle, True), fill_lane(q._handle, False)

    async def main() -> None:
        bulk = asyncio.create_task(q.put(b"bulk"))
        urgent = [asyncio.create_task(q.put(b"urgent %d" % i, priority=True)) for i in range(3)]
        await asyncio.sleep(0)
        urgent[1].cancel()
        assert [await q.get(), await q.get()] == [b"x", b"x"]
        await urgent[0]
        await urgent[2]
        assert not bulk.done()  # behind a full lane of its own
        rest = await q.get_many(sum(slots))
        await bulk
        rest += [await q.get() for _ in range(q.qsize())]
        assert [m for m in rest if m != b"x"] == [b"urgent 0", b"urgent 2", b"bulk"]

    run(main())


def test_a_get_that_waits_ends_with_either(loop_queue: aio.Queue) -> None:
    async def main() -> None:
        for priority in (True, False, True):
            waiting = asyncio.create_task(loop_queue.get())
            await asyncio.sleep(0)
            await loop_queue.put(b"here", priority=priority)
            assert await waiting == b"here"

    run(main())
