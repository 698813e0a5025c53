"""What a put does that finds no room: ``on_full``."""

import asyncio
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from conftest import fill

import shmq
from shmq import aio

Make = Callable[..., shmq.Queue]


@pytest.fixture
def ring_kind() -> str:
    return "mpmc"


def _drain(q: shmq.Queue) -> list[Any]:
    return q.get_many(10_000)


@pytest.mark.parametrize("put", ["put", "put_nowait", "put_many"])
def test_drop_oldest(make: Make, put: str) -> None:
    q = make(on_full="drop_oldest")
    fill(make())
    before = q.qsize()
    for i in range(5):
        getattr(q, put)(i if put != "put_many" else [i])
    assert (q.stats().dropped_oldest, q.stats().dropped_newest) == (5, 0)
    got = _drain(q)
    assert got[-5:] == [0, 1, 2, 3, 4]
    assert len(got) == before


@pytest.mark.parametrize("put", ["put", "put_nowait", "put_many"])
def test_drop_newest(make: Make, put: str) -> None:
    q = make(on_full="drop_newest")
    fill(make())
    before = q.qsize()
    for i in range(5):
        getattr(q, put)(i if put != "put_many" else [i, i])
    dropped = 5 if put != "put_many" else 10
    assert (q.stats().dropped_oldest, q.stats().dropped_newest) == (0, dropped)
    assert _drain(q) == [b"x" * 100] * before


@pytest.mark.parametrize("kind", ["spsc", "mpmc"])
def test_error(make: Make, kind: str) -> None:
    q = make(kind=kind, on_full="error")
    with pytest.raises(shmq.Full, match="the ring of"):
        q.put_many([b"x" * 100] * 10_000)
    with pytest.raises(shmq.Full, match="the ring of"):
        q.put(b"x" * 100, timeout=None)
    assert (q.stats().dropped_oldest, q.stats().dropped_newest) == (0, 0)


def test_arrays_make_room_in_the_arena(make: Make) -> None:
    q = make(on_full="drop_oldest")
    for i in range(200):  # 64 small pages, and each takes one
        q.put(np.full(2000, i))
    got = _drain(q)
    assert [array[0] for array in got] == list(range(200 - len(got), 200))
    assert q.stats().dropped_oldest == 200 - len(got)


def test_where_nothing_can_be_dropped_it_waits(make: Make) -> None:
    """The arena is full of what somebody looks at: to drop a message would not help."""
    q = make(on_full="drop_oldest")
    held = []
    while q.stats().arena_free_bytes:
        q.put(np.zeros(2000))
        held.append(q.get())
    with pytest.raises(shmq.ArenaFull, match="holds"):
        q.put(np.zeros(2000), timeout=0.05)
    assert q.stats().dropped_oldest == 0


def test_a_loan_waits(make: Make) -> None:
    q = make(on_full="drop_newest")
    fill(make())
    loan = q.loan(10, "u1")
    with pytest.raises(shmq.Full):
        loan.publish(timeout=0.01)
    loan.discard()


def test_in_an_event_loop(make: Make) -> None:
    async def puts() -> None:
        for on_full in ("drop_oldest", "drop_newest"):
            async with aio.Queue.of(make(on_full=on_full)) as q:
                await q.put(on_full)
                await q.put_many([on_full, on_full])
        async with aio.Queue.of(make(on_full="error")) as q:
            with pytest.raises(shmq.Full):
                await q.put("error")

    fill(make())
    asyncio.run(puts())
    q = make()
    assert (q.stats().dropped_oldest, q.stats().dropped_newest) == (3, 3)
    assert _drain(q)[-3:] == ["drop_oldest"] * 3


def test_a_pickled_handle_does_the_same(make: Make) -> None:
    q = make(on_full="drop_newest")
    fill(make())
    with pickle.loads(pickle.dumps(q)) as other:
        other.put(1)
    assert q.stats().dropped_newest == 1


def test_arguments(make: Make) -> None:
    for wrong in ({"on_full": "explode"}, {"on_full": "drop_oldest", "delivery": "at_least_once"}):
        with pytest.raises(ValueError, match="on_full"):
            make(**wrong)


def test_spsc_cannot_drop_the_oldest(make: Make) -> None:
    with pytest.raises(ValueError, match="needs kind='mpmc'"):
        make(kind="spsc", on_full="drop_oldest")
