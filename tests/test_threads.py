"""Threads that share one handle, signal handlers that use it: nothing is lost, doubled, out of order."""

import contextlib
import itertools
import threading
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from conftest import fill, fill_arena

import shmq

Make = Callable[..., shmq.Queue]
PATIENCE = 60


class Team:
    """Threads that must all end; the first exception of one of them fails the test."""

    def __init__(self) -> None:
        self.threads: list[threading.Thread] = []
        self.errors: list[BaseException] = []

    def start(self, work: Callable[..., Any], *arguments: Any) -> None:
        def run() -> None:
            try:
                work(*arguments)
            except BaseException as e:
                self.errors.append(e)

        thread = threading.Thread(target=run, daemon=True)
        self.threads.append(thread)
        thread.start()

    def join(self) -> None:
        deadline = time.monotonic() + PATIENCE
        for thread in self.threads:
            thread.join(max(deadline - time.monotonic(), 0))
        if self.errors:
            raise self.errors[0]
        assert not any(thread.is_alive() for thread in self.threads), "a thread hangs"


@pytest.fixture
def team() -> Team:
    return Team()


def message_of(kind: str, producer: int, i: int) -> Any:
    """A message that says whose it is, and which."""
    return {
        "bytes": lambda: b"%d %d" % (producer, i),
        "long": lambda: b"%d %d " % (producer, i) + b"x" * 9000,
        "huge": lambda: b"%d %d " % (producer, i) + b"x" * 70_000,
        "object": lambda: [producer, i, "text"],
        "array": lambda: np.array([producer, i]),
        "block": lambda: np.array([producer, i] + [i] * 300),
        "strided": lambda: np.array([producer, i] + [i] * 300).repeat(2)[::2],
        "envelope": lambda: {"who": [producer, i], "array": np.full(400, i)},
    }[kind]()


KINDS = ["bytes", "bytes", "object", "array", "long", "block", "envelope", "huge", "strided"]


def identity(message: Any) -> tuple[int, int]:
    """(producer, number) of a message, whose content must be whole."""
    if isinstance(message, bytes):
        producer, i, *rest = message.split()
        assert not rest or set(rest[0]) == {ord("x")}
        return int(producer), int(i)
    if isinstance(message, dict):
        assert (message["array"] == message["who"][1]).all()
        return message["who"][0], message["who"][1]
    if isinstance(message, np.ndarray):
        assert (message[2:] == message[1]).all()
        return int(message[0]), int(message[1])
    assert message[2] == "text"
    return message[0], message[1]


@pytest.mark.parametrize("kinds", [["bytes"], ["block"], KINDS], ids=["bytes", "blocks", "mixed"])
@pytest.mark.parametrize("how", ["one", "many", "both"])
def test_many_producers_and_many_consumers(make: Make, team: Team, kinds: list[str], how: str) -> None:
    producers, consumers, each = 4, 4, 400
    q = make(ring_bytes=8192, arena_bytes=2 << 20, inline_bytes=1024)
    received: list[list[tuple[int, int]]] = [[] for _ in range(consumers)]
    left = itertools.count(1)

    def produce(producer: int) -> None:
        pick = itertools.cycle(kinds)
        batch: list[Any] = []
        for i in range(each):
            batch.append(message_of(next(pick), producer, i))
            if how == "one" or (how == "both" and i % 3):
                q.put(batch.pop(0), timeout=PATIENCE)
            if len(batch) == 5 or i == each - 1:
                q.put_many(batch, timeout=PATIENCE)
                batch.clear()

    def consume(mine: list[tuple[int, int]], number: int) -> None:
        with contextlib.suppress(shmq.ShutDown):
            while True:
                if how == "one" or (how == "both" and number % 2):
                    mine.append(identity(q.get(timeout=PATIENCE)))
                else:
                    got = q.get_many(7, timeout=PATIENCE)
                    assert 1 <= len(got) <= 7
                    mine.extend(map(identity, got))

    def produce_and_end(producer: int) -> None:
        produce(producer)
        if next(left) == producers:
            q.shutdown()

    for number in range(consumers):
        team.start(consume, received[number], number)
    for producer in range(producers):
        team.start(produce_and_end, producer)
    team.join()
    counts = Counter(itertools.chain.from_iterable(received))
    assert counts == Counter({(p, i): 1 for p in range(producers) for i in range(each)})
    if how == "one" and set(kinds) == {"bytes"}:  # then a put is one step, so each producer's order holds
        for mine in received:
            for producer in range(producers):
                order = [i for p, i in mine if p == producer]
                assert order == sorted(order)
    s = q.stats()
    assert (s.messages_put, s.messages_got) == (producers * each, producers * each)
    assert s.pages["free"] == sum(s.pages.values())


def test_threads_with_handles_of_their_own(make: Make, team: Team) -> None:
    """The other way to use threads: one handle a side."""
    sender, receiver = make(ring_bytes=4096), make()
    got: list[Any] = []
    team.start(lambda: [sender.put([i], timeout=PATIENCE) for i in range(3000)])
    team.start(lambda: [got.append(receiver.get(timeout=PATIENCE)) for _ in range(3000)])
    team.join()
    assert got == [[i] for i in range(3000)]


def test_only_one_of_many_getters_gets_it(q: shmq.Queue, team: Team) -> None:
    got: list[Any] = []
    outcomes: list[str] = []

    def attempt() -> None:
        try:
            got.append(q.get(timeout=0.3))
            outcomes.append("got")
        except shmq.Empty:
            outcomes.append("empty")

    for _ in range(8):
        team.start(attempt)
    q.put(b"one")
    q.put([2])
    team.join()
    assert sorted(outcomes) == ["empty"] * 6 + ["got"] * 2
    assert b"one" in got
    assert [2] in got


def test_get_many_never_comes_back_empty_handed(q: shmq.Queue, team: Team) -> None:
    """Waits for the first item, also where another thread snatches what woke it."""
    sizes: list[int] = []

    def drain(n: int) -> None:
        with contextlib.suppress(shmq.ShutDown):
            while True:
                sizes.append(len(q.get_many(n, timeout=PATIENCE)))

    for n in (1, 3, 50):
        team.start(drain, n)
    for i in range(3000):
        q.put(b"x" if i % 2 else [i], timeout=PATIENCE)
    q.shutdown()
    team.join()
    assert min(sizes) >= 1
    assert sum(sizes) == 3000


def test_a_put_that_waits_sees_room_also_when_another_thread_has_put_meanwhile(make: Make) -> None:
    """The cursor that it waits with is old by then; a wake-up that came must not be slept through."""
    q = make(ring_bytes=4096)
    armed = np.memmap(f"/dev/shm/shmq.{q.name}", "u4", "r+", 4096 + 3 * 128 + 4, (1,))
    late = 0
    for _ in range(60):
        fill(q)
        armed[0] = 0  # nobody sleeps now
        waiter = threading.Thread(target=q.put, args=(b"x" * 100,), kwargs={"timeout": PATIENCE})
        waiter.start()
        while not armed[0] and waiter.is_alive():
            time.sleep(0.0005)
        start = time.monotonic()
        while q.qsize():
            q.get()
        for _ in range(200):
            q.put(b"y")
            q.get()
        waiter.join(PATIENCE)
        assert not waiter.is_alive()
        late += time.monotonic() - start > 0.08  # its slice of 100 ms is over, or nearly
        while q.qsize():
            q.get()
    assert late < 4, f"{late} of 60 waits slept on beside an empty ring"


def test_the_programs_warning_filters_are_left_alone(run: Callable[..., str]) -> None:
    """warnings.catch_warnings() is not safe among threads: what one restores, another had changed."""
    output = run(
        """
import sys, threading, warnings
import numpy as np
import shmq
sys.setswitchinterval(1e-5)
before = list(warnings.filters)
q = shmq.Queue(ring_bytes=1 << 16, arena_bytes=1 << 20)
def work():
    for i in range(1500):
        for dtype in ("M8[s]", ">i4", [("a", "i4"), ("b", "M8[s]")]):
            q.put(np.zeros(3, dtype)); q.get()
threads = [threading.Thread(target=work) for _ in range(6)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
q.close()
print(list(warnings.filters) == before)
"""
    )
    assert output == "True\n"


# ---- closing under a blocked call ----


def asleep(q: shmq.Queue, side: str) -> bool:
    """True once someone sleeps on that side's eventcount (see layout.h)."""
    at = 4096 + {"get": 2, "put": 3}[side] * 128 + 4
    return bool(np.memmap(f"/dev/shm/shmq.{q.name}", "u4", "r", at, (1,))[0])


BLOCKED: dict[str, tuple[str, Callable[[shmq.Queue], Any]]] = {
    "get": ("get", lambda q: q.get()),
    "get with timeout": ("get", lambda q: q.get(timeout=PATIENCE)),
    "get_many": ("get", lambda q: q.get_many(5)),
    "put": ("put", lambda q: q.put(b"x" * 100)),
    "put_many": ("put", lambda q: q.put_many([b"x" * 100] * 3)),
    "put object": ("put", lambda q: q.put(["x"] * 40, timeout=PATIENCE)),
    "put array": ("arena", lambda q: q.put(np.zeros(2048))),
    "loan": ("arena", lambda q: q.loan(2048, "f8")),
}


@pytest.mark.parametrize("how", ["close", "shutdown", "immediate"])
@pytest.mark.parametrize("call", BLOCKED)
def test_closing_or_shutting_down_under_a_blocked_call(
    make: Make, team: Team, poll: Callable[..., Any], call: str, how: str
) -> None:
    q = make(ring_bytes=4096)
    side, blocked = BLOCKED[call]
    held = fill_arena(q) if side == "arena" else []
    if side == "put":
        fill(q)
    outcome: list[BaseException] = []

    def attempt() -> None:
        try:
            blocked(q)
        except shmq.ShmqError as e:
            outcome.append(e)

    watcher = make()
    for _ in range(3):
        team.start(attempt)
    poll(lambda: asleep(watcher, "get" if side == "get" else "put"))
    {"close": q.close, "shutdown": q.shutdown, "immediate": lambda: q.shutdown(immediate=True)}[how]()
    team.join()
    assert [type(e) for e in outcome] == [shmq.Closed if how == "close" else shmq.ShutDown] * 3
    del held
    watcher.shutdown()
    if how == "close":
        assert watcher.stats().producer is None
        assert watcher.stats().consumer is None
        assert len(watcher.peers()) == 1
        assert watcher.stats().pages["leased"] == 0


def test_close_while_others_work(make: Make, team: Team) -> None:
    """Sixteen threads work on a handle that is closed in their midst, again and again."""
    for _ in range(10):
        q = make(ring_bytes=8192, arena_bytes=2 << 20, inline_bytes=1024)
        started = threading.Barrier(9)
        crew = Team()

        def work(queue: shmq.Queue, number: int, started: threading.Barrier) -> None:
            started.wait(PATIENCE)
            with contextlib.suppress(shmq.Closed):
                for i in itertools.count():
                    if number % 2:
                        queue.put(message_of(KINDS[i % len(KINDS)], number, i), timeout=PATIENCE)
                    elif i % 3:
                        identity(queue.get(timeout=PATIENCE))
                    else:
                        queue.get_many(4, timeout=PATIENCE)

        for number in range(8):
            crew.start(work, q, number, started)
        started.wait(PATIENCE)
        for _ in range(50):
            q.stats()
        q.close()
        crew.join()
        left = make()
        assert left.stats().pages["leased"] == left.stats().pages["loaned"] == 0
        while left.qsize():
            identity(left.get())
        left.close()


def test_views_and_loans_in_other_threads_survive_close(make: Make, team: Team) -> None:
    q = make()
    for i in range(8):
        q.put(np.full(3000, i))
    views = [q.get() for _ in range(8)]
    loans = [q.loan(10, "i8") for _ in range(2)]
    q.close()

    def look(i: int) -> None:
        for _ in range(100):
            assert (views[i] == i).all()
        views[i] = None

    for i in range(8):
        team.start(look, i)
    team.join()
    for loan in loans:
        with pytest.raises(shmq.Closed):
            loan.publish()
        loan.discard()
    other = make()
    assert other.stats().pages["free"] == sum(other.stats().pages.values())
    assert len(other.peers()) == 2  # the loans' arrays are there still
    del loans, loan
    assert len(other.peers()) == 1


def test_stats_and_peers_beside_work(make: Make, team: Team) -> None:
    q, other = make(), make()
    done = threading.Event()

    def look() -> None:
        while not done.is_set():
            s = q.stats()
            assert s.messages_put >= s.messages_got
            assert 0 <= s.ring_used_bytes <= s.ring_bytes
            assert sum(s.pages.values()) == 64
            assert len(other.peers()) == 2
            shmq.peek(q.name)

    for _ in range(2):
        team.start(look)
    for i in range(1500):
        q.put(message_of(KINDS[i % len(KINDS)], 0, i), timeout=PATIENCE)
        assert identity(q.get(timeout=PATIENCE)) == (0, i)
    done.set()
    team.join()


def test_opening_and_closing_in_many_threads(make: Make, name: str, team: Team) -> None:
    make(max_peers=64)

    def churn() -> None:
        for _ in range(25):
            with shmq.Queue(name) as q:
                assert any(p.pid for p in q.peers())

    for _ in range(6):
        team.start(churn)
    team.join()
    assert len(make().peers()) == 2


def test_creating_in_many_threads_makes_one(name: str, team: Team) -> None:
    opened: list[shmq.Queue] = []
    ready = threading.Barrier(8)

    def create() -> None:
        ready.wait(PATIENCE)
        opened.append(shmq.Queue(name, ring_bytes=1 << 16, arena_bytes=1 << 20))

    for _ in range(8):
        team.start(create)
    team.join()
    assert len({q.stats().uuid for q in opened}) == 1
    assert len(opened[0].peers()) == 8
    for q in opened:
        q.unlink()
        q.close()


# ---- signals: in processes of their own, because pytest-timeout has the alarm here ----

PRELUDE = """
import itertools, os, signal, sys, threading, time
import numpy as np
import shmq
q = shmq.Queue(ring_bytes=1 << 16, arena_bytes=1 << 20)
def armed(side, disarm=False):
    at = 4096 + {"get": 2, "put": 3}[side] * 128 + 4
    with open("/dev/shm/shmq." + q.name, "r+b") as f:
        f.seek(at)
        return f.write(bytes(4)) if disarm else f.read(4) != bytes(4)
def when_asleep(side, act):
    armed(side, disarm=True)  # an interrupted wait leaves it armed
    def run():
        while not armed(side):
            time.sleep(0.001)
        act()
    thread = threading.Thread(target=run)
    thread.start()
    return thread
"""


def test_keyboard_interrupt_in_a_blocked_get_leaves_the_message(run: Callable[..., str]) -> None:
    output = run(
        PRELUDE
        + """
for get in (lambda: q.get(), lambda: q.get(timeout=60), lambda: q.get_many(5)):
    thread = when_asleep("get", lambda: os.kill(os.getpid(), signal.SIGINT))
    try:
        get()
    except KeyboardInterrupt:
        print("interrupted")
    thread.join()
    q.put(b"message")
    print(q.get(timeout=60))
    # And where the message comes together with the signal: it is got or it is there, whatever comes first.
    for _ in range(200):
        def both():
            q.put([1])
            os.kill(os.getpid(), signal.SIGINT)
        with open("/dev/shm/shmq." + q.name, "r+b") as f:
            f.seek(4096 + 2 * 128 + 4)
            f.write(bytes(4))  # nobody sleeps yet
        got = 0
        try:
            thread = when_asleep("get", both)
            got = q.get()
            thread.join()
            while True:
                time.sleep(0.01)
        except KeyboardInterrupt:
            pass
        thread.join()
        assert got or q.qsize() == 1
        if not got:
            q.get(timeout=60)
    print("done")
q.close()
"""
    )
    assert output.split("\n")[:-1] == ["interrupted", "b'message'", "done"] * 3


def test_keyboard_interrupt_in_a_blocked_put_puts_nothing(run: Callable[..., str]) -> None:
    output = run(
        PRELUDE
        + """
while True:
    try:
        q.put_nowait(b"x" * 1000)
    except shmq.Full:
        break
n = q.qsize()
x = b"x" * 1000
for put in (lambda: q.put(x), lambda: q.put([x], timeout=60), lambda: q.put_many([x])):
    thread = when_asleep("put", lambda: os.kill(os.getpid(), signal.SIGINT))
    try:
        put()
    except KeyboardInterrupt:
        print("interrupted")
    thread.join()
    assert q.qsize() == n
q.get_many(1000)
q.put(b"goes on")
print(q.get())
q.close()
"""
    )
    assert output.split("\n")[:-1] == ["interrupted"] * 3 + ["b'goes on'"]


def test_a_signal_handler_that_uses_the_queue(run: Callable[..., str]) -> None:
    """It runs in the middle of a blocked get, and in the midst of puts and gets at any instruction."""
    output = run(
        PRELUDE
        + """
answers = []
def handler(*_):
    q.put(b"from the handler")
signal.signal(signal.SIGUSR1, handler)
thread = when_asleep("get", lambda: os.kill(os.getpid(), signal.SIGUSR1))
print(q.get(timeout=60))
thread.join()

put, got, ticks, numbers = [], [], [0], itertools.count()
def tick(*_):
    ticks[0] += 1
    if ticks[0] % 3 == 0:
        try:
            got.append(q.get_nowait())
        except shmq.Empty:
            pass
        return
    number = next(numbers)  # a tick may come in the middle of a tick: one number each
    try:
        q.put_nowait(np.array([number]) if ticks[0] % 2 else [number])
        put.append(number)
    except shmq.Full:
        pass
signal.signal(signal.SIGALRM, tick)
signal.setitimer(signal.ITIMER_REAL, 0.0005, 0.0005)
end = time.monotonic() + 1
while time.monotonic() < end:
    for message in q.get_many(5, timeout=60):
        got.append(message)
    q.stats()
signal.setitimer(signal.ITIMER_REAL, 0)
while q.qsize():
    got.append(q.get())
values = sorted(int(m[0]) for m in got)
assert values == sorted(put), (len(values), len(put))
assert len(put) > 100
print("nothing lost")
q.close()
"""
    )
    assert output.split("\n")[:-1] == ["b'from the handler'", "nothing lost"]


def test_a_wait_that_comes_after_close_touches_nothing(run: Callable[..., str]) -> None:
    """A signal handler may close the handle between a failed try and the wait behind it."""
    output = run(
        PRELUDE
        + """
from shmq._core import lib
c = q._c
q.close()
later = time.monotonic_ns() + 10**9
print(lib.py_wait_get(c, later) == lib.py_wait_put(c, False, False, 8, later) == lib.SHMQ_CLOSED)
print(lib.py_settle_roles(c) == lib.SHMQ_CLOSED, lib.py_look_around(c))
"""
    )
    assert output == "True\nTrue 1\n"


def test_a_handler_that_closes_or_shuts_down(run: Callable[..., str]) -> None:
    """How a worker ends on SIGTERM."""
    output = run(
        PRELUDE
        + """
for end in ("shutdown", "close"):
    signal.signal(signal.SIGTERM, lambda *_: getattr(q, end)())
    thread = when_asleep("get", lambda: os.kill(os.getpid(), signal.SIGTERM))
    try:
        q.get()
    except shmq.ShmqError as e:
        print(type(e).__name__)
    thread.join()
    q.close()
    q = shmq.Queue(ring_bytes=1 << 16, arena_bytes=1 << 20)
q.close()
"""
    )
    assert output.split() == ["ShutDown", "Closed"]
