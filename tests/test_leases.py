"""Delivery at least once: what a lease promises, and what is left of it when its holder is gone."""

import gc
import os
import pickle
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import numpy as np
import pytest
from conftest import PRELUDE, Script, fill, poll

import shmq
from shmq.delivery import backoff

Make = Callable[..., shmq.Queue]
Start = Callable[..., Script]

SAMPLES: list[Any] = [
    b"short",
    b"long" * 5000,
    {"a": [1, None, "x"]},
    {"long": "y" * 9000},
    np.arange(9, dtype="i2"),
    np.arange(9000.0).reshape(90, 100, order="F"),
    {"part": np.ones(5), "other": [np.zeros(4000)]},
]


@pytest.fixture
def ring_kind() -> str:
    return "mpmc"


@pytest.fixture
def q(make: Make, name: str) -> Any:
    yield make(delivery="at_least_once", max_unacked=8, max_deliveries=3)
    if shmq.list_segments() and any(found.name == name + ".dead" for found in shmq.list_segments()):
        shmq.unlink(name + ".dead")


def _pages_in_use(q: shmq.Queue) -> int:
    pages = dict(q.stats().pages)
    del pages["free"]
    return sum(pages.values())


def _waits(q: shmq.Queue) -> bool:
    """Does the only handle wait for a message?"""
    (peer,) = q.peers()
    return peer.last is not None and peer.last.op == "wait_get"


# ---- lease, ack, nack ----


@pytest.mark.parametrize("sent", SAMPLES, ids=lambda sent: type(sent).__name__)
def test_what_is_acknowledged_is_gone(q: shmq.Queue, sent: Any) -> None:
    q.put(sent)
    with q.lease() as message:
        np.testing.assert_equal(message.value, sent)
        assert message.deliveries == 1
        assert (q.qsize(), q.stats().unacked) == (0, 1)
    assert q.stats().unacked == 0
    with pytest.raises(shmq.Empty):
        q.lease(block=False)
    del message
    assert _pages_in_use(q) == 0


@pytest.mark.parametrize("sent", SAMPLES, ids=lambda sent: type(sent).__name__)
def test_what_is_given_back_comes_again(q: shmq.Queue, sent: Any) -> None:
    q.put(sent)
    for deliveries in (1, 2, 3):
        message = q.lease(block=False)
        np.testing.assert_equal(message.value, sent)
        assert message.deliveries == deliveries
        if deliveries < 3:
            message.nack()
    message.ack()
    del message
    assert _pages_in_use(q) == 0


def test_an_error_gives_it_back(q: shmq.Queue) -> None:
    q.put("x")
    with pytest.raises(ZeroDivisionError), q.lease():
        _ = 1 / 0
    assert q.lease(block=False).deliveries == 2


def test_one_that_is_dropped_comes_again(q: shmq.Queue) -> None:
    q.put("x")
    q.lease()
    gc.collect()
    assert q.lease(block=False).deliveries == 2


def test_it_can_be_settled_once(q: shmq.Queue) -> None:
    q.put("x")
    with q.lease() as message:
        message.ack()
        for again in (message.ack, message.nack):
            with pytest.raises(shmq.StaleLease, match="settled before"):
                again()


def test_leases_let_others_pass(q: shmq.Queue) -> None:
    """Unacknowledged messages hold no place in the ring, and are acknowledged in any order."""
    for i in range(100):
        q.put(i)
        q.put(-i)
        kept, done = q.lease(), q.lease()
        assert (kept.value, done.value) == (i, -i)
        done.ack()
        kept.ack()
    assert q.qsize() == 0


def test_as_many_as_max_unacked(q: shmq.Queue) -> None:
    for i in range(9):
        q.put(i)
    held = [q.lease() for _ in range(8)]
    for block in (False, True):
        with pytest.raises(shmq.UnackedFull, match="max_unacked"):
            q.lease(block=block, timeout=0.01)
    assert q.qsize() == 1
    held[3].ack()
    assert q.lease(block=False).value == 8


def test_whoever_waits_for_room_is_woken_by_an_ack(q: shmq.Queue) -> None:
    for i in range(9):
        q.put(i)
    held = [q.lease() for _ in range(8)]
    got: list[Any] = []
    waiting = threading.Thread(target=lambda: got.append(q.lease(timeout=30)))
    waiting.start()
    poll(lambda: _waits(q))
    held[0].ack()
    waiting.join()
    assert got[0].value == 8


def test_delays(q: shmq.Queue) -> None:
    q.put("later")
    q.put("now")
    before = time.monotonic()
    q.lease().nack(delay=0.15)
    with q.lease(block=False) as message:
        assert message.value == "now"
    with pytest.raises(shmq.Empty):
        q.lease(block=False)
    message = q.lease(timeout=30)
    assert message.value == "later"
    assert time.monotonic() - before >= 0.15
    for delay in (-1.0, float("nan"), 1e10):
        with pytest.raises(ValueError, match="between 0 and 1e9"):
            message.nack(delay)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, [0.1, 0.2, 0.4, 0.8]),
        ({"first": 1, "factor": 3, "longest": 5}, [1, 3, 5, 5]),
        ({"first": 2, "factor": 1}, [2, 2, 2, 2]),
        ({"first": 1e-9, "factor": 1e9, "longest": 0.5}, [1e-9, 0.5, 0.5, 0.5]),
        ({"first": 0, "factor": 1e9}, [0, 0, 0, 0]),
    ],
)
def test_backoff(given: dict[str, float], expected: list[float]) -> None:
    """At random between half of the delay and all of it; also where the power overflows."""
    how = {"first": 0.1, "factor": 2, "longest": 60} | given
    for deliveries, most in enumerate(expected, 1):
        delays = {backoff(deliveries, **how) for _ in range(50)}
        assert all(most / 2 <= delay <= most for delay in delays)
        assert len(delays) > 1 or most == 0
    assert backoff(1 << 31, **how) <= how["longest"]


def test_a_retry_waits(q: shmq.Queue) -> None:
    q.put("x")
    began = time.monotonic()
    delays = [q.lease(timeout=10).retry(first=0.05) for _ in range(2)]
    with q.lease(timeout=10) as message:
        assert message.deliveries == 3
    assert time.monotonic() - began >= sum(delays)
    q.put("y")
    for wrong in ({"first": -1}, {"factor": 0.5}, {"longest": float("nan")}, {"first": 1e10}):
        with q.lease() as message, pytest.raises(ValueError, match="between 0 and"):
            message.retry(**wrong)
        q.put("y")


def test_a_shorter_delay_overtakes_a_sleeper(q: shmq.Queue) -> None:
    """Whoever sleeps until a message is due learns that another is due earlier."""
    q.put("much later")
    q.put("soon")
    q.lease().nack(delay=1000)
    soon = q.lease()
    got: list[Any] = []
    waiting = threading.Thread(target=lambda: got.append(q.lease(timeout=30).value))
    waiting.start()
    poll(lambda: _waits(q))
    soon.nack(delay=0.02)
    waiting.join()
    assert got == ["soon"]


# ---- views ----


def test_views_are_read_only(q: shmq.Queue) -> None:
    for sent in (np.ones(5), np.ones(5000), [np.ones(5)], [np.ones(5000)]):
        q.put(sent)
        with q.lease() as message:
            array = message.value[0] if isinstance(sent, list) else message.value
            assert not array.flags.writeable
    q.put(np.ones(5000))
    with q.lease(copy=True) as message:
        message.value[0] = 5


def test_a_view_outlives_its_ack(q: shmq.Queue) -> None:
    q.put(np.arange(5000))
    with q.lease() as message:
        view = message.value[10:]
    del message
    for _ in range(70):  # more than the arena has room for at once
        q.put(np.zeros(5000))
        q.get()
    assert view[0] == 10
    assert q.stats().pages["leased"] == 1
    del view
    assert _pages_in_use(q) == 0


@pytest.mark.parametrize("old_first", [False, True])
def test_memory_that_somebody_looks_at_is_not_reused(q: shmq.Queue, old_first: bool) -> None:
    q.put(np.arange(5000))
    first = q.lease()
    view = first.value
    first.nack()
    second = q.lease(block=False)
    again = second.value
    assert again.ctypes.data != view.ctypes.data
    np.testing.assert_array_equal(again, view)
    assert q.stats().pages["leased"] == 2
    first.value = None
    if old_first:
        del view
        assert _pages_in_use(q) >= 1
        second.ack()
    else:
        second.ack()
        np.testing.assert_array_equal(again, view)
        del view
    second.value = None
    assert again[4999] == 4999
    del again
    assert _pages_in_use(q) == 0


def test_no_room_for_a_copy(q: shmq.Queue) -> None:
    """The one that needs it waits; the next one passes."""
    q.put(np.arange(100_000))  # of an arena of 1 MiB
    first = q.lease()
    q.put(b"next")
    first.nack()
    with q.lease(block=False) as message:
        assert message.value == b"next"
    with pytest.raises(shmq.ArenaFull, match="as a copy"):
        q.lease(timeout=0.05)
    first.value = None
    with q.lease(timeout=30) as message:
        assert message.value[99_999] == 99_999


def test_dropped_views_do_not_lose_the_message(q: shmq.Queue) -> None:
    q.put(np.arange(5000))
    message = q.lease()
    message.value = None
    assert q.stats().pages["returned"] == 1
    message.nack()
    with q.lease(block=False) as message:
        assert message.value[4999] == 4999
    message.value = None
    assert _pages_in_use(q) == 0


# ---- who is too slow, closes, or dies ----


def test_what_is_overdue_is_delivered_again(make: Make, name: str) -> None:
    q = make(delivery="at_least_once", visibility=0.05)
    q.put(np.arange(5000))
    slow = q.lease()
    message = q.lease(timeout=30)
    assert message.deliveries == 2
    np.testing.assert_array_equal(message.value, slow.value)
    with pytest.raises(shmq.StaleLease, match="visibility"):
        slow.ack()
    message.ack()
    slow.value = message.value = None
    assert _pages_in_use(q) == 0


def test_close_gives_back(q: shmq.Queue, make: Make) -> None:
    q.put(np.arange(5000))
    q.put(b"x")
    other = make()
    kept = other.lease(), other.lease()
    other.close()
    again = q.lease(block=False), q.lease(block=False)
    assert [message.deliveries for message in again] == [2, 2]
    for message in kept:
        with pytest.raises(shmq.Closed):
            message.ack()


HOLDER = """
q = shmq.Queue(sys.argv[1])
held = [q.lease(timeout=30) for _ in range(int(sys.argv[2]))]
print("held", flush=True)
time.sleep(60)
"""


def test_what_the_dead_had_is_delivered_again(q: shmq.Queue, name: str, script: Start) -> None:
    for i in range(3):
        q.put([i, np.full(5000, i)])
    holder = script(PRELUDE + HOLDER, name, "3")
    assert holder.line() == "held"
    holder.process.kill()
    holder.process.wait()
    messages = [q.lease(timeout=30) for _ in range(3)]
    assert [m.value[0] for m in messages] == [0, 1, 2]
    assert [m.deliveries for m in messages] == [2, 2, 2]
    for message in messages:
        message.ack()
    messages.clear()
    del message
    assert _pages_in_use(q) == 0


WORKER = """
import random
q = shmq.Queue(sys.argv[1])
random.seed(int(sys.argv[2]))
try:
    while True:
        with q.lease(timeout=60) as message:
            number = message.value[0] if isinstance(message.value, list) else int(message.value)
            if random.random() < 0.05:
                os.kill(os.getpid(), signal.SIGKILL)
        os.write(1, b"%d\\n" % number)
except shmq.ShutDown:
    pass
"""


def test_workers_that_die_lose_nothing(make: Make, name: str, script: Start) -> None:
    """Each message is acknowledged once: the workers die while they hold one, before they acknowledge it."""
    q = make(delivery="at_least_once", max_unacked=64, max_deliveries=0)
    count, done, lives = 200, Counter[int](), 3
    workers = [script(PRELUDE + WORKER, name, str(life)) for life in range(lives)]

    def feed() -> None:
        for i in range(count):
            q.put(i if i % 3 else [i, np.full(3000, i)], timeout=60)
        q.shutdown()

    feeding = threading.Thread(target=feed)
    feeding.start()
    while workers:
        worker = workers.pop()
        status, output, errors = worker.finish()
        done.update(map(int, output.split()))
        if status == -signal.SIGKILL:
            workers.append(script(PRELUDE + WORKER, name, str(lives)))
            lives += 1
        else:
            assert status == 0, errors
    feeding.join()
    assert done == Counter(range(count))
    assert lives > 4
    q.join(timeout=30)
    assert _pages_in_use(q) == 0


# ---- dead letters ----


@pytest.mark.parametrize("sent", SAMPLES, ids=lambda sent: type(sent).__name__)
def test_what_fails_too_often_is_put_aside(q: shmq.Queue, sent: Any) -> None:
    q.put(sent)
    q.put(b"next")
    for _ in range(3):
        q.lease().nack()
    assert q.get() == b"next"
    assert q.stats().waiting_again == 0
    np.testing.assert_equal(q.dead_letters().get(block=False), sent)
    q.task_done()
    q.join(timeout=1)


def test_no_room_for_dead_letters(q: shmq.Queue) -> None:
    dead = q.dead_letters()
    fill(dead)
    q.put("poison")
    for _ in range(3):
        q.lease().nack()
    with pytest.raises(shmq.DeadLetterFull, match="dead-letter queue"):
        q.lease(block=False)
    dead.get()
    with pytest.raises(shmq.Empty):
        q.lease(timeout=2)
    assert dead.get_many(10_000)[-1] == "poison" or dead.qsize() > 0


def test_poison_goes_to_the_dead_letters(make: Make, name: str, q: shmq.Queue) -> None:
    """A message that cannot be decoded is given back each time, until it is put aside."""
    make(allow_pickle=True).put(range(3))
    for _ in range(3):
        with pytest.raises(shmq.PickleRefused):
            q.lease(block=False)
    with pytest.raises(shmq.Empty):
        q.lease(block=False)
    assert q.dead_letters().qsize() == 1


@pytest.mark.parametrize("sent", [b"raw", ["text"], np.arange(5000)], ids=["bytes", "msgpack", "array"])
@pytest.mark.parametrize("dies", ["before the put", "before the ack"])
def test_a_death_while_a_message_is_put_aside(
    q: shmq.Queue, name: str, script: Start, sent: Any, dies: str
) -> None:
    """It is put aside once, by whoever comes next."""
    q.put(sent)
    for _ in range(3):
        q.lease().nack()
    dead = script(
        PRELUDE
        + f"""
from shmq import delivery
class Lib:
    def __getattr__(self, name): return getattr(lib, name)
    def shmq_ack(self, *_): os.kill(os.getpid(), signal.SIGKILL)
lib = delivery.lib
if {dies == "before the put"}: delivery.put_undecoded = Lib().shmq_ack
else: delivery.lib = Lib()
shmq.Queue(sys.argv[1]).lease(block=False)
""",
        name,
    )
    assert dead.finish()[0] == -signal.SIGKILL
    assert q.dead_letters().qsize() == (dies == "before the ack")
    poll(lambda: q.reap() or q.stats().waiting_again == 1)
    with pytest.raises(shmq.Empty):
        q.lease(block=False)
    assert (q.stats().unacked, q.stats().waiting_again, q.dead_letters().qsize()) == (0, 0, 1)
    np.testing.assert_equal(q.dead_letters().get(block=False), sent)


def test_no_limit_of_deliveries(make: Make) -> None:
    q = make(delivery="at_least_once", max_deliveries=0)
    q.put(1)
    for i in range(50):
        message = q.lease(block=False)
        assert message.deliveries == i + 1
        message.nack()


# ---- get, join, shutdown ----


def test_get_acknowledges(q: shmq.Queue) -> None:
    for sent in SAMPLES:
        q.put(sent)
        np.testing.assert_equal(q.get(), sent)
        assert q.stats().unacked == 0
    for i in range(20):
        q.put(i)
    assert q.get_many(30) == list(range(20))
    for _ in range(len(SAMPLES) + 20):
        q.task_done()
    q.join(timeout=1)
    with pytest.raises(shmq.Empty):
        q.get(timeout=0.01)
    assert _pages_in_use(q) == 0


def test_join_waits_for_the_last_ack(q: shmq.Queue) -> None:
    q.put(1)
    q.put(2)
    with pytest.raises(TimeoutError, match="2 messages wait, 0 are leased"):
        q.join(timeout=0.01)
    first, second = q.lease(), q.lease()
    with pytest.raises(TimeoutError, match="0 messages wait, 2 are leased"):
        q.join(timeout=0.01)
    first.nack(delay=0.02)
    joined = threading.Event()

    def join() -> None:
        q.join()
        joined.set()

    thread = threading.Thread(target=join)
    thread.start()
    second.ack()
    with q.lease(timeout=30):
        assert not joined.is_set()
    thread.join(timeout=30)
    assert joined.is_set()


@pytest.mark.parametrize("priority", [False, True])
def test_join_sees_what_is_put_before_an_ack(make: Make, priority: bool) -> None:
    """A chain: each message puts its successor, in turns in both lanes, and is acknowledged only then."""
    q = make(delivery="at_least_once", priority=priority, ring_bytes=1 << 13)
    joined: list[int] = []

    def join() -> None:
        q.join(60)
        joined.append(time.monotonic_ns())

    for _ in range(3):
        q.put(0)
        joiner = threading.Thread(target=join)
        joiner.start()
        end = time.monotonic_ns() + 200_000_000
        while time.monotonic_ns() < end:
            with q.lease() as message:
                q.put(message.value + 1, priority=priority and message.value % 2 == 0)
        with q.lease():
            last = time.monotonic_ns()
        joiner.join()
        assert joined.pop() > last


def test_a_death_in_the_way_of_dead_letters_is_repaired(make: Make, name: str, script: Start) -> None:
    """Nobody waits on the dead-letter queue, and all have it open."""
    q = make(delivery="at_least_once", max_deliveries=1)
    dead = q.dead_letters()
    holder = script(
        PRELUDE
        + """
q = shmq.Queue(sys.argv[1] + ".dead")
[me] = [peer.index for peer in q.peers() if peer.pid == os.getpid()]
turn = np.memmap(f"/dev/shm/shmq.{q.name}", "u8", "r+", 4096 + 8 * 128, (1,))
turn[0] = 1 | me << 3  # it is putting with a key
print(1, flush=True)
time.sleep(60)
""",
        name,
    )
    holder.line()
    q.put(b"x")
    q.lease().nack()
    with pytest.raises(shmq.DeadLetterFull, match="comes again"):
        q.lease(timeout=5)
    holder.process.kill()
    holder.process.wait()

    def is_put_aside() -> bool:
        with suppress(shmq.Empty, shmq.DeadLetterFull):
            q.lease(timeout=0.2)
        return dead.qsize() == 1

    poll(is_put_aside)
    dead.unlink()


def test_join_waits_for_the_last_task(q: shmq.Queue, make: Make, name: str, script: Start) -> None:
    other = make()
    for i in range(3):
        q.put(i)
    other.get_many(2)
    q.get()
    q.task_done()
    for _ in range(2):
        with pytest.raises(TimeoutError, match=r"task_done\(\) is missing"):
            q.join(timeout=0.01)
        other.task_done()
    q.join(timeout=30)
    for handle in (q, other):
        with pytest.raises(ValueError, match="more often than get"):
            handle.task_done()
    q.put(1)
    dies = script(
        PRELUDE + "q = shmq.Queue(sys.argv[1]); q.get(); os.kill(os.getpid(), signal.SIGKILL)", name
    )
    assert dies.finish()[0] == -signal.SIGKILL
    q.join(timeout=30)  # nobody is left to do it


def test_shutdown_ends_when_nothing_can_come_back(q: shmq.Queue, make: Make) -> None:
    q.put(1)
    q.put(2)
    mine = q.lease()
    other = make()
    theirs = other.lease()
    q.shutdown()
    with pytest.raises(shmq.Empty):
        q.lease(timeout=0.01)  # the other one may give it back
    theirs.nack()
    assert q.lease(timeout=30).value == 2
    mine.ack()
    with other.lease(timeout=30) as message:  # the one before was dropped, and so given back
        assert message.value == 2
    for handle in (q, other):
        with pytest.raises(shmq.ShutDown):
            handle.lease(timeout=30)


# ---- opening ----


def test_arguments(make: Make, name: str) -> None:
    for wrong in (
        {"delivery": "twice"},
        {"max_unacked": 5},
        {"delivery": "at_least_once", "max_unacked": 0},
        {"delivery": "at_least_once", "max_unacked": 1 << 21},
        {"delivery": "at_least_once", "visibility": 0},
        {"delivery": "at_least_once", "kind": "spsc"},
    ):
        with pytest.raises(ValueError, match=r"delivery|max_unacked|visibility"):
            make(**wrong)
    q = make(delivery="at_least_once", visibility=2.5)
    found = q.stats()
    assert (found.delivery, found.max_unacked, found.max_deliveries, found.visibility) == (
        "at_least_once",
        1024,
        5,
        2.5,
    )
    assert make().stats().delivery == "at_least_once"
    with pytest.raises(shmq.WrongKind, match="delivery 'at_least_once', not 'at_most_once'"):
        make(delivery="at_most_once")


def test_other_queues_have_no_leases(make: Make) -> None:
    q = make()
    for call in (q.lease, q.join, q.dead_letters):
        with pytest.raises(shmq.WrongKind, match="delivery='at_least_once'"):
            call()


def test_a_forked_child_holds_nothing(q: shmq.Queue) -> None:
    q.put(1)
    message = q.lease()
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            message.ack()
        except shmq.ForkedHandle:
            code = 0
        os._exit(code)
    assert os.waitpid(pid, 0)[1] == 0
    assert q.stats().unacked == 1
    message.ack()


def test_a_pickled_handle_leases_too(q: shmq.Queue) -> None:
    q.put("x")
    with pickle.loads(pickle.dumps(q)) as other, other.lease(timeout=1) as message:
        assert message.value == "x"
