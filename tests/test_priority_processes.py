"""Two lanes between processes that are killed at random: a ledger of every message, whichever its lane."""

import mmap
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import PRELUDE, Script, poll

import shmq

Make = Callable[..., shmq.Queue]
Start = Callable[..., Script]

EACH = 100_000
"""More than a producer comes to put until it is stopped."""
PRODUCERS = 2
KILLS = 14
NOT_BEGUN, BEGUN, WAS_PUT = 0, 1, 2

LEDGER = f"""
import mmap
EACH = {EACH}
with open(sys.argv[2], "r+b") as file:
    ledger = mmap.mmap(file.fileno(), 0)
PUT, GOT, STOP = 0, {PRODUCERS} * EACH, -1  # of each message: how far its put was, how often it was got
"""

PRODUCER = (
    PRELUDE
    + LEDGER
    + """
me = int(sys.argv[3])
q = shmq.Queue.attach(sys.argv[1])
print("at work", flush=True)
for i in range(me * EACH, (me + 1) * EACH):
    if ledger[STOP]:
        break
    if ledger[PUT + i]:
        continue  # in an earlier life; where that died in the middle it may be there or not
    if i % 64 == 0:
        time.sleep(0.01)  # or there were millions
    ledger[PUT + i] = 1
    q.put([i, np.full(2000, i)] if i % 5 == 0 else i, priority=i % 3 == 0)
    ledger[PUT + i] = 2
"""
)

CONSUMER = (
    PRELUDE
    + LEDGER
    + """
leases = sys.argv[3] == "at_least_once"
last = {}
q = shmq.Queue.attach(sys.argv[1])
print("at work", flush=True)

def note(message):
    i = message
    if type(message) is list:
        i, array = message
        assert (array == i).all(), "torn"
    ledger[GOT + i] += 1
    return i

try:
    while True:
        if leases:
            with q.lease() as message:
                i = note(message.value)
                assert ledger[GOT + i] == 1 or message.deliveries > 1, "it came twice"
                if i % 3 == 0:
                    time.sleep(0.001)  # it dies over an urgent one more often than not
                del message.value
        else:
            i = note(q.get())
            lane = i // EACH, i % 3 == 0
            assert i > last.get(lane, -1), "out of order in its lane"
            last[lane] = i
except shmq.ShutDown:
    pass
"""
)


@pytest.fixture
def ring_kind() -> str:
    return "mpmc"


@pytest.mark.parametrize(("delivery", "seed"), [("at_most_once", 1), ("at_least_once", 2)])
def test_random_kills(make: Make, name: str, script: Start, tmp_path: Path, delivery: Any, seed: int) -> None:
    rng = random.Random(seed)
    leases = delivery == "at_least_once"
    limits: dict[str, Any] = {"max_unacked": 16, "max_deliveries": 0} if leases else {}
    q = make(priority=True, ring_bytes=1 << 14, delivery=delivery, **limits)
    path = tmp_path / "ledger"
    path.write_bytes(bytes(2 * PRODUCERS * EACH + 1))
    jobs = [(PRODUCER, str(i)) for i in range(PRODUCERS)] + [(CONSUMER, delivery)] * (2 if leases else 1)
    with path.open("r+b") as file, mmap.mmap(file.fileno(), 0) as ledger:
        workers = [script(source, name, str(path), argument) for source, argument in jobs]
        killed = [0] * len(jobs)
        for _ in range(KILLS):
            victim = rng.randrange(len(jobs))
            workers[victim].line()
            time.sleep(rng.random() * 0.1)
            workers[victim].process.kill()
            status, _, errors = workers[victim].finish()
            assert status in (0, -signal.SIGKILL), errors
            killed[victim] += status != 0
            source, argument = jobs[victim]
            workers[victim] = script(source, name, str(path), argument)
        ledger[-1] = True
        for worker in workers[:PRODUCERS]:
            status, _, errors = worker.finish()
            assert status == 0, errors
        q.shutdown()
        for worker in workers[PRODUCERS:]:
            status, _, errors = worker.finish()
            assert status == 0, errors
        put, got = ledger[: PRODUCERS * EACH], ledger[PRODUCERS * EACH : -1]
    check(put, got, sum(killed[:PRODUCERS]), sum(killed[PRODUCERS:]), leases)
    assert sum(killed) > KILLS // 2
    assert sum(p == WAS_PUT for p in put) > 1000
    poll(lambda: q.reap() == 0 and len(q.peers()) == 1)
    assert q.qsize() == q.stats().urgent == q.stats().unacked == 0
    assert q.stats().arena_free_bytes == q.stats().arena_bytes


def check(put: bytes, got: bytes, producers_killed: int, consumers_killed: int, leases: bool) -> None:
    """Never lost, never twice; but what a dying consumer had just taken, or noted."""
    unsure = sum(state == BEGUN for state in put)
    assert unsure <= producers_killed
    assert not any(g for p, g in zip(put, got, strict=True) if p == NOT_BEGUN)
    lost = sum(p == WAS_PUT and g == 0 for p, g in zip(put, got, strict=True))
    twice = sum(g - 1 for g in got if g > 1)
    assert lost <= (0 if leases else consumers_killed), f"{lost} lost"
    assert twice <= (consumers_killed if leases else 0), f"{twice} came twice"


@pytest.mark.parametrize(
    ("put", "got", "leases", "says"),
    [
        ([2, 2], [1, 0], True, "1 lost"),
        ([2, 2], [2, 1], False, "1 came twice"),
        ([2, 1, 1], [1, 0, 0], True, "assert 2 <="),
        ([2, 0], [1, 1], True, "not True"),
    ],
)
def test_the_ledger_is_read(put: list[int], got: list[int], leases: bool, says: str) -> None:
    check(bytes([2, 1, 2]), bytes([1, 0, 1]), 1, 0, leases)
    with pytest.raises(AssertionError, match=says):
        check(bytes(put), bytes(got), 1, 0, leases)
