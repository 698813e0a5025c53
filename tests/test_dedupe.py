"""``put(obj, key=...)`` with ``dedupe=N``: a repeat of one of the last N keys is dropped, and said so."""

import asyncio
import hashlib
import json
import multiprocessing
import pickle
import random
import threading
from collections import Counter, deque
from collections.abc import Callable
from typing import Any

import command
import numpy as np
import pytest
from conftest import PRELUDE, fill, fill_arena
from shmq._core import lib

import shmq
from shmq import aio

Make = Callable[..., shmq.Queue]

OBJECTS = [
    b"short",
    b"long" * 5000,
    bytearray(b"short"),
    {"a": 1},
    {"a": "long" * 5000},
    np.arange(10),
    np.arange(10_000.0),
    np.arange(10_000.0)[::2],
    np.arange(10_000.0).reshape(100, 100).T[::2],
    {"a": np.arange(3)},
    {"a": np.arange(10_000)},
    {"a": np.arange(10_000)[::3], "b": [np.zeros(2)]},
    np.zeros(20, [("a", "i4"), ("b", "f8", (2,))]),
]
"""At least one for each way into the queue: ``codec.encode``."""


@pytest.fixture
def ring_kind() -> str:
    return "mpmc"


@pytest.fixture
def q(make: Make) -> shmq.Queue:
    return make(dedupe=3)


def hashed(key: bytes) -> int:
    return int.from_bytes(hashlib.blake2b(key, digest_size=8).digest(), "little")


# ---- what it says ----


@pytest.mark.parametrize("obj", OBJECTS, ids=lambda obj: type(obj).__name__)
def test_a_repeat_is_dropped_and_said_so(q: shmq.Queue, obj: Any) -> None:
    assert q.put(obj, key="job 1") is True
    assert q.put(obj, key="job 1") is False
    assert q.put_nowait(obj, key="job 1") is False
    assert (q.qsize(), q.stats().repeats, q.stats().dedupe) == (1, 2, 3)
    q.get(copy=True)
    assert q.put(obj, key="job 1") is False  # also when it was taken
    assert q.put(obj, key="job 2") is True
    assert q.qsize() == 1
    q.get(copy=True)
    assert q.stats().pages["free"] == sum(q.stats().pages.values())


@pytest.mark.parametrize("obj", OBJECTS, ids=lambda obj: type(obj).__name__)
def test_without_a_key_nothing_is_dropped(q: shmq.Queue, obj: Any) -> None:
    assert [q.put(obj) for _ in range(3)] == [True] * 3
    assert (q.qsize(), q.stats().repeats) == (3, 0)


def test_a_str_is_its_utf_8_bytes(q: shmq.Queue) -> None:
    assert q.put(b"", key="é")
    assert not q.put(b"", key="é".encode())
    assert q.put(b"", key="")
    assert not q.put(b"", key=b"")


@pytest.mark.parametrize("key", [1, 1.5, True, ("a",), bytearray(b"a"), object()])
def test_a_key_is_a_str_or_bytes(q: shmq.Queue, key: Any) -> None:
    with pytest.raises(TypeError, match="must be str or bytes"):
        q.put(b"", key=key)
    assert q.qsize() == 0


@pytest.mark.parametrize("arguments", [{"kind": "mpmc"}, {"kind": "spsc"}])
def test_a_queue_without_a_window_says_so(make: Make, arguments: dict[str, Any]) -> None:
    q = make(**arguments)
    with pytest.raises(shmq.WrongKind, match="remembers no keys; create it with kind='mpmc' and dedupe=N"):
        q.put(b"", key="a")
    assert q.put(b"") is True
    assert (q.stats().dedupe, q.stats().repeats) == (0, 0)


def test_a_topic_has_no_keys(name: str) -> None:
    with shmq.Topic(name) as topic:
        assert topic.put(b"") is True
        with pytest.raises(shmq.WrongKind, match="remembers no keys"):
            topic.put(b"", key="a")
        topic.unlink()


@pytest.mark.parametrize(
    ("arguments", "error", "says"),
    [
        ({"dedupe": 0}, ValueError, "dedupe=0: must be between 1 and 65,536"),
        ({"dedupe": 65_537}, ValueError, "dedupe=65,537: must be between 1 and 65,536"),
        ({"dedupe": -1}, ValueError, "between 1"),
        ({"dedupe": True}, TypeError, "must be an int"),
        ({"dedupe": 1.5}, TypeError, "must be an int"),
        ({"dedupe": 5, "kind": "spsc"}, ValueError, "dedupe needs kind='mpmc'"),
    ],
)
def test_sizes_of_the_window(name: str, arguments: dict[str, Any], error: Any, says: str) -> None:
    for make in (shmq.Queue, shmq.Queue.create):
        with pytest.raises(error, match=says):
            make(name, **arguments)


def test_who_attaches_finds_it_by_itself(make: Make) -> None:
    first = make(dedupe=5)
    others = [make(), make(dedupe=9), shmq.Queue.attach(first.name), pickle.loads(pickle.dumps(first))]
    assert first.put(b"", key="a")
    for other in others:
        assert other.stats().dedupe == 5
        assert not other.put(b"", key="a")
        other.close()
    assert shmq.inspect(first.name).stats.repeats == 4


def test_the_largest_window(make: Make) -> None:
    q = make(dedupe=65_536, ring_bytes=1 << 16)
    for i in range(65_540):
        assert q.put(b"", key=str(i))
        q.get()
    assert [q.put(b"", key=str(i)) for i in (65_539, 65_000, 30_000, 4)] == [False] * 4
    assert [q.put(b"", key=str(i)) for i in (0, 1, 2, 3)] == [True] * 4
    assert q.put(b"", key="4")  # those four have pushed it out


def test_stat_counts_repeats(q: shmq.Queue) -> None:
    q.put(b"", key="a")
    q.put(b"", key="a")
    assert "1, of the last 3 keys" in command.run("stat", q.name).stdout
    assert json.loads(command.run("stat", q.name, "--json").stdout)["stats"]["repeats"] == 1


# ---- what is in the window ----


@pytest.mark.parametrize("n", [1, 2, 3, 10, 100])
def test_the_last_n_keys_and_no_others(make: Make, n: int) -> None:
    q = make(dedupe=n)
    rng = random.Random(n)
    last: deque[int] = deque(maxlen=n)
    for _ in range(40 * n):
        key = rng.randrange(2 * n + 2)
        assert q.put(b"", key=str(key)) is (key not in last)
        if key not in last:
            last.append(key)
            q.get()


def test_what_was_not_put_is_not_remembered(make: Make) -> None:
    q = make(dedupe=100)
    fill(q)
    for obj in (b"", np.zeros(10_000)):
        with pytest.raises(shmq.Full, match="the ring of"):
            q.put_nowait(obj, key="a")
        with pytest.raises(shmq.Full, match="its consumer is"):
            q.put(obj, timeout=0.001, key="a")
    q.get_many(10_000)
    held = fill_arena(q)
    with pytest.raises(shmq.ArenaFull):
        q.put_nowait(np.zeros(10_000), key="a")
    held.clear()
    with pytest.raises(shmq.MessageTooLarge):
        q.put(b"x" * (2 << 20), key="a")
    with pytest.raises(shmq.Unencodable):
        q.put(object(), key="a")
    assert q.put(b"", key="a")
    assert q.stats().repeats == 0


def test_what_is_known_finds_no_want_of_room(make: Make) -> None:
    q = make(dedupe=100)
    q.put(b"", key="a")
    fill(q)
    for obj in (b"", np.zeros(10_000), {"a": np.zeros(10_000)}, np.zeros(20_000)[::2]):
        assert q.put_nowait(obj, key="a") is False
        assert q.put(obj, key="a") is False


@pytest.mark.parametrize("delivery", ["at_most_once", "at_least_once"])
def test_a_drop_for_want_of_room_is_no_put(make: Make, delivery: Any) -> None:
    q = make(dedupe=100, on_full="drop_newest", delivery=delivery)
    while q.put(b"x" * 100):
        pass
    assert q.put(b"", key="a") is False
    assert q.put(b"", key="a") is False
    stats = q.stats()
    assert (stats.repeats, stats.dropped_newest) == (0, 3)
    q.get_many(10_000)
    assert q.put(b"", key="a") is True
    assert q.put(b"", key="a") is False
    assert q.stats().repeats == 1


def test_who_makes_room_by_dropping_the_oldest(make: Make) -> None:
    q = make(dedupe=10_000, on_full="drop_oldest")
    put = 0
    while q.stats().dropped_oldest == 0:
        assert q.put(b"x" * 100, key=str(put))
        put += 1
    assert q.put(b"", key="0") is False  # it was put; that it was dropped since is another matter
    assert q.put(b"", key=str(put)) is True


def test_messages_that_are_acknowledged(make: Make) -> None:
    q = make(dedupe=10, delivery="at_least_once")
    assert q.put(b"one", key="a")
    message = q.lease()
    assert not q.put(b"one", key="a")
    message.nack()
    assert not q.put(b"one", key="a")
    again = q.lease()
    assert (again.value, again.deliveries) == (b"one", 2)
    again.ack()
    assert not q.put(b"one", key="a")
    assert (q.qsize(), q.stats().repeats) == (0, 3)


def test_a_queue_that_is_closed_or_shut_down(q: shmq.Queue) -> None:
    q.put(b"", key="a")
    q.shutdown()
    for obj in OBJECTS:
        with pytest.raises(shmq.ShutDown):
            q.put(obj, key="a")
    q.close()
    for obj in OBJECTS:
        with pytest.raises(shmq.Closed):
            q.put(obj, key="a")


# ---- others ----


def hold_the_turn(q: shmq.Queue) -> None:
    """As a process does that is stopped in the middle of a put with a key."""
    assert lib.shmq_key_begin(q._c, 1) == lib.SHMQ_OK


def test_the_turn_of_a_process_that_does_not_go_on(make: Make) -> None:
    q, other = make(dedupe=3, on_full="drop_newest"), make()
    hold_the_turn(other)
    for obj in (b"", np.zeros(10_000)):
        with pytest.raises(shmq.Full, match=r"one at a time, and peer 1 \(pid \d+, .*, alive\) was in"):
            q.put_nowait(obj, key="a")
        with pytest.raises(shmq.Full, match="peer 1"):
            q.put(obj, timeout=0.001, key="a")
    assert q.put(b"") is True  # without a key nothing waits for it
    assert q.stats().dropped_newest == 0  # that is no want of room

    waiting = threading.Thread(target=lambda: q.put(b"waited", key="a"))
    waiting.start()
    lib.shmq_key_end(other._c)
    waiting.join()
    assert q.get_many(10) == [b"", b"waited"]


def test_tasks_of_an_event_loop(make: Make) -> None:
    handle, other = make(dedupe=3), make()

    async def main() -> None:
        q = aio.Queue.of(handle)
        assert await q.put(b"1", key="a") is True
        assert await q.put(b"2", key="a") is False
        assert await q.put(b"3") is True
        assert q.put_nowait(b"4", key="a") is False
        assert q.put_nowait(np.zeros(10_000), key="b") is True
        hold_the_turn(other)
        with pytest.raises(shmq.Full, match="one at a time"):
            await q.put(b"5", timeout=0.01, key="c")
        first, second = (asyncio.create_task(q.put(obj, key="c")) for obj in (b"6", b"7"))
        await asyncio.sleep(0)
        assert not first.done()
        lib.shmq_key_end(other._c)
        assert sorted([await first, await second]) == [False, True]
        assert [await q.get(), await q.get()] == [b"1", b"3"]
        assert (await q.get()).nbytes == 80_000
        assert await q.get() in (b"6", b"7")
        fill(handle)
        waits = asyncio.create_task(q.put(b"8", key="d"))
        await asyncio.sleep(0)
        assert await q.put(b"", key="c") is False  # room is not what it needs
        await q.get_many(10_000)
        assert await waits is True
        with pytest.raises(TypeError, match="must be str or bytes"):
            await q.put(b"", key=5)  # type: ignore[arg-type]
        q.close()

    asyncio.run(main())


def test_threads_that_share_a_handle(make: Make) -> None:
    q = make(dedupe=10_000)
    keys, workers = 300, 4
    accepted: Counter[int] = Counter()
    objects = [b"x", b"y" * 3000, {"a": 1}, np.zeros(20_000), {"b": np.zeros(3000)}, np.zeros(6000)[::2]]

    def put(seed: int) -> None:
        order = list(range(keys))
        random.Random(seed).shuffle(order)
        for key in order:
            if q.put(objects[(key + seed) % len(objects)], key=str(key)):
                accepted[key] += 1

    threads = [threading.Thread(target=put, args=(seed,)) for seed in range(workers)]
    for thread in threads:
        thread.start()
    for _ in range(keys):
        q.get(timeout=60)
    for thread in threads:
        thread.join()
    assert accepted == Counter(dict.fromkeys(range(keys), 1))
    assert (q.qsize(), q.stats().repeats) == (0, keys * (workers - 1))


def _put_in_child(q: shmq.Queue, results: Any) -> None:
    results.put([q.put(b"", key="a"), q.put(np.zeros(10_000), key="a"), q.put(b"", key="b")])


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_handles_that_go_to_other_processes(q: shmq.Queue, method: str) -> None:
    context = multiprocessing.get_context(method)
    results = context.SimpleQueue()
    assert q.put(b"", key="a")
    child = context.Process(target=_put_in_child, args=(q, results))
    child.start()
    assert results.get() == [False, False, True]
    child.join()
    assert q.put(b"", key="b") is False


# ---- deaths ----

DEATHS = """
import collections, contextlib, random
name, delivery, seed = sys.argv[1], sys.argv[2], int(sys.argv[3])
KEYS, PRODUCERS = 2000, 4
q = shmq.Queue.create(name, **SMALL, kind="mpmc", delivery=delivery, dedupe=KEYS)
rng = random.Random(seed)

def message(key):
    return (b"%d" % key, b"%08d" % key * 400, {"key": key, "a": np.full(3, key)}, np.full(900, key))[key % 4]

def key_of(found):
    if isinstance(found, bytes):
        return int(found[:8])
    return found["key"] if isinstance(found, dict) else int(found[0])

def start():
    order = list(range(KEYS))
    rng.shuffle(order)
    pid = os.fork()
    if pid:
        return pid
    try:
        for key in order:
            q.put(message(key), key=str(key))
    except BaseException:
        os._exit(1)
    os._exit(0)

def is_over(pid):
    done, status = os.waitpid(pid, os.WNOHANG)
    assert status == 0, status
    return done == pid

at_work = {start() for _ in range(PRODUCERS)}
got, kills = collections.Counter(), 0
while at_work:
    at_work -= {pid for pid in at_work if is_over(pid)}
    with contextlib.suppress(shmq.Empty):
        for _ in range(rng.randrange(1, 60)):
            got[key_of(q.get(timeout=0.02))] += 1
    if at_work and rng.random() < 0.6 and kills < 60:
        victim = rng.choice(sorted(at_work))
        os.kill(victim, signal.SIGKILL)
        os.waitpid(victim, 0)
        at_work.remove(victim)
        at_work.add(start())
        kills += 1
while True:
    try:
        got[key_of(q.get(timeout=0))] += 1
    except shmq.Empty:
        break
q.reap()
stats = q.stats()
q.unlink()
all_free = stats.pages["free"] == sum(stats.pages.values())
print(kills, len(got), sum(got.values()), stats.qsize, stats.repeats, all_free)
"""


@pytest.mark.parametrize("delivery", ["at_most_once", "at_least_once"])
@pytest.mark.parametrize("seed", [1, 2])
def test_each_key_comes_once_whoever_is_killed(
    name: str, run: Callable[..., str], delivery: str, seed: int
) -> None:
    """Four producers put the same keys, each in an order of its own; who is killed is started again."""
    kills, keys, messages, left, repeats, all_free = run(PRELUDE + DEATHS, name, delivery, str(seed)).split()
    assert (int(keys), int(messages), int(left)) == (2000, 2000, 0)
    assert int(kills) >= 20
    assert int(repeats) >= 3 * 2000
    assert all_free == "True"
