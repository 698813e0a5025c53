"""Topics: who gets what, one payload for all, slow and dead readers, deaths of publishers, processes."""

import gc
import multiprocessing
import os
import pickle
import signal
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

import shmq

SIZES: dict[str, Any] = {"ring_bytes": 16 * 512, "arena_bytes": 1 << 20}
SLOTS = 16
LARGE = 40_000  # bytes of an array that lies in three small pages

MakeTopic = Callable[..., shmq.Topic]


@pytest.fixture
def topic(name: str) -> Iterator[MakeTopic]:
    opened: list[shmq.Topic] = []

    def make(**options: Any) -> shmq.Topic:
        opened.append(shmq.Topic(name, **{**SIZES, **options}))
        return opened[-1]

    yield make
    for t in opened:
        t.close()
    if opened:  # not where the test was skipped
        shmq.unlink(name)


def drain(sub: shmq.Subscription) -> list[Any]:
    found = []
    while True:
        try:
            found.append(sub.get_nowait())
        except shmq.Empty:
            return found


# ---- who gets what ----


def test_every_subscriber_gets_every_message_in_order(topic: MakeTopic) -> None:
    t = topic()
    first, second = t.subscribe(), t.subscribe()
    sent: list[Any] = [b"raw", "text", {"step": 7, "ids": [1, 2]}, 3.5, None, b"x" * 5000]
    t.publish_many(sent)
    t.publish(np.arange(LARGE, dtype="u1"))
    for sub in (first, second):
        assert sub.qsize() == 7
        assert [sub.get() for _ in sent] == sent
        assert np.array_equal(sub.get(), np.arange(LARGE, dtype="u1"))
        assert sub.empty()
        with pytest.raises(shmq.Empty):
            sub.get(timeout=0.01)


def test_a_late_subscriber_gets_what_comes_after(topic: MakeTopic) -> None:
    t = topic()
    t.publish(1)
    sub = t.subscribe()
    t.publish(2)
    assert drain(sub) == [2]
    assert sub.missed == 0


def test_history(topic: MakeTopic) -> None:
    t = topic(history=3)
    assert t.stats().history == 3
    assert drain(t.subscribe()) == []
    for i in range(20):
        t.publish(i)
    assert drain(t.subscribe()) == [17, 18, 19]
    assert drain(t.subscribe(history=1)) == [19]
    assert drain(t.subscribe(history=0)) == []
    with pytest.raises(ValueError, match="keeps 3 messages"):
        t.subscribe(history=4)
    with pytest.raises(ValueError, match="keeps 3 messages"):
        t.subscribe(history=-1)


def test_history_of_arrays_gives_way_to_new_ones(topic: MakeTopic) -> None:
    t = topic(history=8)
    sub = t.subscribe()
    for i in range(40):  # 8 of these are more than half of the arena
        t.publish(np.full(90_000, i, "u1"), timeout=5)
        assert sub.get()[0] == i
    kept = [int(a[0]) for a in drain(t.subscribe())]
    assert kept == list(range(40 - len(kept), 40))
    assert len(kept) >= 5


def test_get_many_and_iteration(topic: MakeTopic) -> None:
    t = topic()
    sub, other = t.subscribe(), t.subscribe()
    t.publish_many([b"a", b"b", {"c": 1}])
    assert sub.get_many(2) == [b"a", b"b"]
    assert sub.get_many(10) == [{"c": 1}]
    t.shutdown()
    assert list(other) == [b"a", b"b", {"c": 1}]
    with pytest.raises(shmq.ShutDown):
        sub.get()
    with pytest.raises(shmq.ShutDown):
        t.publish(1)


def test_loans_reach_everyone(topic: MakeTopic) -> None:
    t = topic()
    subs = [t.subscribe() for _ in range(3)]
    with t.loan((100, 100), "float32") as loan:
        loan.array[:] = 2.5
    for sub in subs:
        got = sub.get()
        assert got.shape == (100, 100)
        assert (got == 2.5).all()


# ---- shared memory ----


@pytest.mark.parametrize("size", [10, LARGE])
def test_what_is_shared_is_read_only(topic: MakeTopic, size: int) -> None:
    t = topic()
    sub = t.subscribe()
    t.publish(np.zeros(size))
    t.publish({"nested": np.zeros(size)})
    t.publish(np.zeros(size))
    with pytest.raises(ValueError, match="read-only"):
        sub.get()[0] = 1
    with pytest.raises(ValueError, match="read-only"):
        sub.get()["nested"][0] = 1
    mine = sub.get(copy=True)
    mine[0] = 1


def test_torch_tensors_come_without_a_warning(topic: MakeTopic, recwarn: pytest.WarningsRecorder) -> None:
    torch = pytest.importorskip("torch", reason="torch is not installed: make test TORCH=torch")
    t = topic()
    sub, other = t.subscribe(), t.subscribe(arrays="torch")
    sent = torch.arange(LARGE, dtype=torch.bfloat16)
    t.publish(sent)
    assert torch.equal(sub.get(), sent)
    assert torch.equal(other.get(), sent)
    assert not list(recwarn)


def test_one_payload_for_all_and_back_to_the_baseline(topic: MakeTopic) -> None:
    t = topic()
    subs = [t.subscribe() for _ in range(4)]
    before = t.stats().arena_free_bytes
    t.publish(np.zeros(LARGE, "u1"))
    views = [sub.get() for sub in subs]
    assert len({view.ctypes.data % 4096 for view in views}) == 1
    assert before - t.stats().arena_free_bytes == 3 * 16384
    held = {p.index: p.held_bytes for p in t.peers() if "subscriber" in p.roles}
    assert list(held.values()) == [3 * 16384] * 4
    while views:
        assert t.stats().arena_free_bytes < before
        views.pop()
    assert t.stats().arena_free_bytes == before


def test_a_view_outlives_subscription_and_topic(name: str) -> None:
    t = shmq.Topic(name, **SIZES)
    sub = t.subscribe()
    t.publish(np.arange(LARGE))
    view = sub.get()
    sub.close()
    t.close()
    shmq.unlink(name)
    assert np.array_equal(view, np.arange(LARGE))


# ---- policies ----


def test_block_waits_and_names_the_slowest(topic: MakeTopic) -> None:
    t = topic()
    fast, slow = t.subscribe(), t.subscribe()
    for i in range(SLOTS):
        t.publish(i)
        fast.get()
    assert t.full()
    with pytest.raises(shmq.Full, match=rf"pid {os.getpid()}.*is {SLOTS} messages behind"):
        t.publish(SLOTS, timeout=0.01)
    with pytest.raises(shmq.Full):
        t.publish(SLOTS, block=False)
    lagging = max(t.peers(), key=lambda p: p.lag)
    assert (lagging.lag, lagging.roles) == (SLOTS, {"subscriber"})
    waiting = threading.Thread(target=t.publish, args=(SLOTS,), kwargs={"timeout": 30})
    waiting.start()
    assert slow.get() == 0
    waiting.join(30)
    assert drain(slow) == list(range(1, SLOTS + 1))


def test_drop_oldest_counts_what_was_missed(topic: MakeTopic) -> None:
    t = topic(policy="drop_oldest")
    sub = t.subscribe()
    got = []
    for i in range(200):
        t.publish(i if i % 3 else np.full(LARGE, i, "u1"), timeout=0)  # never full
        if i % 50 == 49:
            for value in drain(sub):
                got.append(int(np.atleast_1d(value)[0]))
                assert got[-1] == len(got) + sub.missed - 1
    assert got[-1] == 199
    assert sub.missed == 200 - len(got) > 0
    assert next(p.missed for p in t.peers() if "subscriber" in p.roles) == sub.missed


def test_evict_tells_the_slow(topic: MakeTopic) -> None:
    t = topic(policy="evict")
    slow, fast = t.subscribe(), t.subscribe()
    for i in range(SLOTS + 1):
        t.publish(i, timeout=0)
        assert fast.get() == i
    assert slow.evicted
    assert not fast.evicted
    with pytest.raises(shmq.Evicted, match="subscribe again"):
        slow.get(timeout=5)
    slow.close()
    again = t.subscribe()
    t.publish("new")
    assert again.get() == "new"


def test_a_full_arena_waits_for_who_holds_it(topic: MakeTopic) -> None:
    t = topic()
    sub = t.subscribe()
    views = []
    for _ in range(9):  # 7 pages each, of 64
        t.publish(np.zeros(100_000, "u1"))
        views.append(sub.get())
    with pytest.raises(shmq.ArenaFull, match=r"holds [\d,]+"):
        t.publish(np.zeros(100_000, "u1"), timeout=0.05)
    views.clear()
    t.publish(np.zeros(100_000, "u1"), timeout=5)


# ---- misuse ----


def test_a_topic_is_not_a_queue(topic: MakeTopic, name: str) -> None:
    topic()
    with pytest.raises(shmq.WrongKind, match=r"shmq\.Topic"):
        shmq.Queue(name)
    with pytest.raises(shmq.WrongKind, match=r"shmq\.Topic"):
        shmq.Queue.attach(name)
    with pytest.raises(shmq.WrongKind, match="policy='block'"):
        shmq.Topic(name, policy="evict")
    with pytest.raises(shmq.WrongKind, match="history=0"):
        shmq.Topic(name, history=1)
    assert len(shmq.inspect(name).peers) == 1


def test_a_queue_is_not_a_topic(name: str) -> None:
    with shmq.Queue(name, arena_bytes=1 << 20), pytest.raises(shmq.WrongKind, match="a queue"):
        shmq.Topic(name)
    shmq.unlink(name)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"policy": "drop"}, "policy 'drop'"),
        ({"history": 9}, "history=9: must be at most 8, half of the 16 slots"),
        ({"history": -1}, "history=-1"),
        ({"max_peers": 52}, "between 1 and 51"),
        ({"inline_bytes": 1 << 20}, "inline_bytes"),
    ],
)
def test_sizes_that_cannot_be(name: str, options: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        shmq.Topic(name, **{**SIZES, **options})


def test_there_are_at_most_so_many_handles(topic: MakeTopic) -> None:
    t = topic(max_peers=3)
    subs = [t.subscribe(), t.subscribe()]
    with pytest.raises(shmq.PeersFull):
        t.subscribe()
    subs.pop().close()
    t.subscribe()


def test_a_subscription_stays_where_it_is(topic: MakeTopic) -> None:
    t = topic()
    sub = t.subscribe()
    with pytest.raises(TypeError, match="pickle its topic"):
        pickle.dumps(sub)
    t.close()
    with pytest.raises(shmq.Closed):
        t.subscribe()
    sub.close()
    with pytest.raises(shmq.Closed):
        sub.get()
    with pytest.raises(shmq.Closed):
        _ = sub.missed


def test_an_anonymous_topic(name: str) -> None:
    with shmq.Topic(**SIZES) as t:
        copied = pickle.loads(pickle.dumps(t))
        sub = copied.subscribe()
        t.publish("hello")
        assert sub.get() == "hello"
        sub.close()
        copied.close()


# ---- processes ----


def _read(t: shmq.Topic, ready: Any, results: Any) -> None:
    sub = t.subscribe()
    ready.put(os.getpid())
    total, count = 0, 0
    for message in sub:
        total += int(message.sum()) if isinstance(message, np.ndarray) else message["n"]
        count += 1
    results.put((count, total))


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_many_processes_read_the_same(topic: MakeTopic, method: str) -> None:
    context = multiprocessing.get_context(method)
    t = topic()
    ready, results = shmq.Queue(arena_bytes=1 << 20), shmq.Queue(arena_bytes=1 << 20)
    readers = [context.Process(target=_read, args=(t, ready, results)) for _ in range(4)]
    for reader in readers:
        reader.start()
    for _ in readers:
        ready.get(timeout=60)
    expected = 0
    for i in range(500):
        message = np.full(5000 + i, i % 7, "u1") if i % 2 else {"n": i}
        expected += int(message.sum()) if isinstance(message, np.ndarray) else message["n"]
        t.publish(message, timeout=60)
    t.shutdown()
    for reader in readers:
        assert results.get(timeout=60) == [500, expected]
        reader.join(60)
    for queue in (ready, results):
        queue.close()
    t.reap()
    assert t.stats().arena_free_bytes == t.stats().arena_bytes


def test_a_subscription_does_not_go_through_a_fork(topic: MakeTopic, run: Callable[..., str]) -> None:
    t = topic()
    source = """
import os, sys, shmq
t = shmq.Topic(sys.argv[1])
sub = t.subscribe()
if (pid := os.fork()) == 0:
    try:
        sub.get(timeout=1)
    except shmq.ForkedHandle as e:
        print(e, flush=True)
    t.publish("from the child")  # the topic attaches anew
    os._exit(0)
os.waitpid(pid, 0)
print(sub.get(timeout=10))
"""
    output = run(source, t.name)
    assert "call subscribe() in this process" in output
    assert output.endswith("from the child\n")


READER = """
import sys, time, shmq
t = shmq.Topic(sys.argv[1])
sub = t.subscribe()
print("ready", flush=True)
kept = [sub.get() for _ in range(int(sys.argv[2]))]
print("holds", flush=True)
time.sleep(1000)
"""


@pytest.mark.parametrize("takes", [0, 3])
def test_a_killed_subscriber_is_in_nobodys_way(topic: MakeTopic, script: Any, takes: int) -> None:
    t = topic()
    before = t.stats().arena_free_bytes
    reader = script(READER, t.name, str(takes))
    assert reader.line() == "ready"
    for i in range(takes):
        t.publish(np.full(LARGE, i, "u1"))
    assert reader.line() == "holds"
    for _ in range(SLOTS):  # a whole ring that it does not read
        t.publish(b"x", timeout=30)
    with pytest.raises(shmq.Full):
        t.publish(b"x", timeout=0)
    reader.process.send_signal(signal.SIGKILL)
    killed = time.monotonic()
    t.publish(b"x", timeout=30)
    assert time.monotonic() - killed < 5  # 250 ms where the machine is quiet: tests/crash measures it
    t.reap()
    assert t.stats().arena_free_bytes == before
    assert t.stats().subscribers == 0


def test_the_last_publisher_is_missed(topic: MakeTopic, script: Any) -> None:
    t = topic()
    sub = t.subscribe()
    source = """
import sys, time, shmq
t = shmq.Topic(sys.argv[1])
t.publish_many([1, 2, 3])
print("done", flush=True)
time.sleep(1000)
"""
    writer = script(source, t.name)
    assert writer.line() == "done"
    writer.process.send_signal(signal.SIGKILL)
    assert [sub.get(timeout=30) for _ in range(3)] == [1, 2, 3]
    with pytest.raises(shmq.PeerDead, match=rf"last publisher \(pid {writer.process.pid}\).*message 3") as e:
        sub.get(timeout=60)
    assert (e.value.pid, e.value.messages) == (writer.process.pid, 3)
    with pytest.raises(shmq.Empty):
        sub.get(timeout=0.01)
    t.publish("a successor")
    assert sub.get(timeout=30) == "a successor"


def test_threads_share_a_topic_and_a_subscription(topic: MakeTopic) -> None:
    t = topic()
    sub, alone = t.subscribe(), t.subscribe()
    got: list[int] = []
    seen: list[int] = []

    def read() -> None:
        for message in sub:
            got.append(message["n"])

    readers = [threading.Thread(target=read, daemon=True) for _ in range(3)]
    readers.append(threading.Thread(target=lambda: seen.extend(m["n"] for m in alone), daemon=True))
    writers = [
        threading.Thread(
            target=lambda k=k: [t.publish({"n": k * 1000 + i}, timeout=60) for i in range(300)], daemon=True
        )
        for k in range(2)
    ]
    for thread in readers + writers:
        thread.start()
    for thread in writers:
        thread.join(60)
    t.shutdown()
    for thread in readers:
        thread.join(60)
    everything = sorted(k * 1000 + i for k in range(2) for i in range(300))
    assert sorted(got) == everything  # each to one of the threads
    assert sorted(seen) == everything
    for k in range(2):
        mine = [n for n in seen if n // 1000 == k]
        assert mine == sorted(mine)


def test_looking_at_a_topic(topic: MakeTopic, name: str) -> None:
    t = topic(policy="drop_oldest", history=2)
    sub = t.subscribe()
    t.publish_many([b"one", b"two", b"three"])
    sub.get()
    s = shmq.inspect(name).stats
    assert (s.kind, s.policy, s.history, s.subscribers) == ("topic", "drop_oldest", 2, 1)
    assert (s.messages_put, s.messages_got, s.qsize) == (3, 1, 2)
    assert [m.preview for m in shmq.peek(name)] == ["b'two'", "b'three'"]
    roles = [set(p.roles) for p in shmq.inspect(name).peers]
    assert roles == [{"publisher"}, {"subscriber"}]


# ---- finalisers ----


@pytest.fixture
def collecting() -> Iterator[None]:
    """Nearly every new container collects garbage, where it is switched on; switched off to begin with."""
    before = gc.get_threshold()
    gc.collect()
    gc.disable()
    gc.set_threshold(1)
    yield
    gc.set_threshold(*before)
    gc.enable()


@pytest.mark.usefixtures("collecting")
def test_a_finaliser_may_get_while_a_message_is_taken(topic: MakeTopic) -> None:
    t = topic(ring_bytes=256 * 512)
    sub = t.subscribe()
    t.publish_many([[i] for i in range(200)])
    take = sub._take  # nothing else runs between switching collection on and the call
    got: list[Any] = []

    class Garbage:
        def __init__(self) -> None:
            self.me = self

        def __del__(self) -> None:
            if not isinstance(found := take(False), int):
                got.append(found)

    found: Any = ()
    while not isinstance(found, int):
        Garbage()
        gc.enable()
        found = take(False)
        gc.disable()
        if not isinstance(found, int):
            got.append(found)  # kept, or CPython uses the tuple again and makes no new one
    assert len({bytes(payload) for _, payload in got}) == len(got) == 200
