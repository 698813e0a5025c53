"""What a queue refuses: messages that are too large, a full ring or arena, a second role; and its closing."""

import contextlib
import multiprocessing.util
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import fill, fill_arena

import shmq

Make = Callable[..., shmq.Queue]
ONE_OF_EACH = pytest.mark.parametrize("ring_kind", ["spsc"])
"""Of queues with one producer and one consumer at a time."""


# ---- too large, full ----


@pytest.mark.parametrize("arena_bytes", [0, 1 << 20, 8 << 20])
def test_a_message_larger_than_the_segment_can_ever_hold(make: Make, arena_bytes: int) -> None:
    q = make(arena_bytes=arena_bytes)
    limit = q.stats().largest_message_bytes
    assert limit == max(arena_bytes, q.stats().inline_bytes)
    attempts: list[Callable[[], Any]] = [
        lambda: q.put(b"x" * (limit + 1)),
        lambda: q.put(bytearray(limit + 1), timeout=0),
        lambda: q.put("x" * (limit + 1), block=False),
        lambda: q.put([b"x" * (limit + 1)], timeout=5),
        lambda: q.put(np.zeros(limit + 1, "u1")),
        lambda: q.put(np.zeros((limit + 1) * 2, "u1")[::2]),
        lambda: q.put({"a": np.zeros(limit + 1, "u1")}),
        lambda: q.put_many([b"x" * (limit + 1)]),
        lambda: q.loan(limit + 1, "u1"),
    ]
    for attempt in attempts:
        with pytest.raises(shmq.MessageTooLarge) as caught:
            attempt()
        text = str(caught.value)
        assert f"{limit:,}" in text  # the limit
        assert "arena_bytes" in text  # the parameter to raise
        assert q.name in text
    q.put(b"x" * limit)
    assert len(q.get()) == limit


def test_full_without_waiting(make: Make) -> None:
    q = make(ring_bytes=4096, arena_bytes=1 << 20)
    held = fill_arena(q)
    with pytest.raises(shmq.ArenaFull, match=r"1,048,576.*views.*arena_bytes"):
        q.put_nowait(np.zeros(2048))
    fill(q)
    with pytest.raises(shmq.Full, match=r"4,096.*ring_bytes"):
        q.put_nowait(b"x" * 100)
    del held


@pytest.mark.parametrize("timeout", [0, 0.1, None])
def test_a_full_ring(make: Make, timeout: float | None) -> None:
    q = make(ring_bytes=4096)
    fill(q)
    if timeout is None:
        timer = threading.Timer(0.05, q.get)
        timer.start()
        q.put(b"x" * 100, timeout=None)
        timer.join()
        return
    start = time.monotonic()
    with pytest.raises(shmq.Full, match=r"4,096.*nobody.*ring_bytes") as caught:
        q.put(b"x" * 100, timeout=timeout)
    assert timeout <= time.monotonic() - start < 30
    assert not isinstance(caught.value, shmq.ArenaFull)
    consumer = make()
    consumer.get()
    fill(q)
    with pytest.raises(shmq.Full, match=rf"consumer is peer 1 \(pid {os.getpid()}"):
        q.put(b"x" * 100, timeout=timeout)


@pytest.mark.parametrize("timeout", [0, 0.1, None])
def test_a_full_arena(make: Make, timeout: float | None) -> None:
    q = make()
    held = fill_arena(q)
    if timeout is None:
        timer = threading.Timer(0.05, held.pop)
        timer.start()
        q.put(np.zeros(2048), timeout=None)
        timer.join()
        return
    start = time.monotonic()
    with pytest.raises(shmq.ArenaFull, match=rf"pid {os.getpid()}.*holds 1,048,576.*arena_bytes"):
        q.put(np.zeros(2048), timeout=timeout)
    assert timeout <= time.monotonic() - start < 30
    q.put(b"small ones still fit")
    assert q.get() == b"small ones still fit"
    assert len(held) == 64


# ---- roles, closing ----


@ONE_OF_EACH
def test_a_second_producer_or_consumer(make: Make) -> None:
    a, b = make(), make()
    a.put(b"1")
    assert a.get() == b"1"
    for use in (
        lambda: b.put(b"2"),
        lambda: b.put([2], timeout=5),
        lambda: b.put_nowait(np.zeros(3)),
        lambda: b.put_many([b"2"]),
        lambda: b.loan(3, "u1"),
        lambda: b.get(),
        lambda: b.get(timeout=5),
        lambda: b.get_nowait(),
        lambda: b.get_many(3),
    ):
        with pytest.raises(shmq.RoleTaken, match=rf"peer 0 \(pid {os.getpid()}.*close"):
            use()
    assert a.empty()


def mapped(name: str) -> int:
    """Mappings of the segment in this process, its lock's pin not counted."""
    lines = Path("/proc/self/maps").read_text().splitlines()
    return sum(f"shmq.{name}" in line and "---s" not in line for line in lines)


def pinned(name: str) -> int:
    return Path("/proc/self/maps").read_text().count(f"shmq.{name}") - mapped(name)


def test_closing_with_live_views(make: Make, name: str) -> None:
    q = make()
    assert mapped(name) >= 1
    assert pinned(name) == 1
    q.put(np.arange(5000))
    q.put({"a": np.arange(3000)})
    view, inside = q.get(), q.get()["a"]
    loan = q.loan(100, "u1")
    q.close()
    q.close()
    part = view[10:20]
    del view
    assert part.sum() == 145  # valid
    assert inside[-1] == 2999
    inside[0] = 7  # and writable
    assert mapped(name) >= 1
    assert pinned(name) == 1  # alive: nobody reaps what is in use
    del part
    assert mapped(name) >= 1
    del inside
    assert mapped(name) >= 1
    del loan
    assert mapped(name) == 0
    assert pinned(name) == 0
    assert not any(f"shmq.{name}" in os.readlink(f"/proc/self/fd/{fd}") for fd in open_descriptors())


def open_descriptors() -> list[str]:
    found = []
    for fd in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            os.readlink(f"/proc/self/fd/{fd}")
            found.append(fd)
    return found


def test_closing_leaves_nothing_behind(name: str) -> None:
    def footprint() -> tuple[int, int, int]:
        maps = len(Path("/proc/self/maps").read_text().splitlines())
        return len(open_descriptors()), maps, len(multiprocessing.util._finalizer_registry)

    def cycle() -> None:
        with shmq.Queue(name, ring_bytes=4096, arena_bytes=1 << 16) as q, shmq.Queue(name) as other:
            q.put(np.zeros(1000))
            other.get()
            q.unlink()
        shmq.Queue(ring_bytes=4096, arena_bytes=0).close()  # anonymous

    cycle()
    before = footprint()
    for _ in range(50):
        cycle()
    descriptors, maps, finalizers = footprint()
    assert finalizers == before[2]
    assert descriptors == before[0]
    assert maps <= before[1] + 5  # malloc may have grown
