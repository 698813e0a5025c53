"""Where arrays lie, and that views own the memory that they show: it is free when the last one dies."""

import contextlib
import gc
import threading
import time
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sample_arrays import PAGE, free, leased, sample

import shmq


@pytest.fixture
def ring_kind() -> str:
    return "spsc"  # what is tested here lies above the ring


Make = Callable[..., shmq.Queue]


# ---- where messages lie ----


def test_small_arrays_lie_in_the_ring(make: Make, name: str) -> None:
    """Messages up to inline_bytes lie in the ring; larger ones, and arrays above 1 KiB, in a block."""
    q = make()
    small = np.zeros(64, "f8")
    for message in (
        small,
        small[::2],
        small.reshape(8, 8)[:, 1:3],
        [small[:4]],
        [small[::16]],
        small.astype(">f8")[:8],
    ):
        q.put(message)
        assert [m.where for m in shmq.peek(name)] == ["inline"], message
        q.get()
    for message in (np.zeros(2000, "u1"), [np.zeros(2000, "u1")], np.zeros(4000, "u1")[::2]):
        q.put(message)
        assert [m.where for m in shmq.peek(name)] == ["block"]
        q.get()


def test_small_arrays_need_no_arena(make: Make) -> None:
    q = make(arena_bytes=0)
    for message in (np.arange(5), np.arange(10)[::2], [np.arange(5)], {"a": np.arange(9)[::3]}):
        q.put(message)
        np.testing.assert_equal(q.get(), message)


def test_arrays_start_at_a_page(q: shmq.Queue) -> None:
    q.put(sample("f4", (1000,)))
    assert q.get().ctypes.data % 4096 == 0


# ---- views own their lease ----


def test_memory_returns_exactly_when_the_last_view_dies(q: shmq.Queue) -> None:
    q.put(sample("f8", (100, 100)))
    view = q.get()
    assert leased(q) == 1
    row = view[3]
    corner = view[:2, :2]
    transposed = view.T
    item = view[5, 5]  # a scalar: a copy
    del view
    assert leased(q) == 1
    del row, corner
    assert leased(q) == 1
    buffer = memoryview(transposed)
    del transposed
    assert leased(q) == 1
    buffer.release()
    assert free(q)
    assert isinstance(item, np.float64)


def test_slices_of_slices_keep_it_too(q: shmq.Queue) -> None:
    want = sample("f8", (100, 100))
    q.put(want)
    view = q.get()[10:90][::2, 3:].T[:5].reshape(5, -1)[1:2]
    gc.collect()
    assert leased(q) in (0, 1)  # reshape may have copied
    view = None
    q.put(want)
    view = q.get()[10:90][::2, 3:].T[:5]
    assert leased(q) == 1
    np.testing.assert_array_equal(view, want[10:90][::2, 3:].T[:5])
    del view
    assert free(q)


def test_views_of_one_message_share_a_block(q: shmq.Queue) -> None:
    q.put({"a": sample("f8", (100,)), "b": [sample("f8", (200,)), "text"], "c": np.float64(1)})
    got = q.get()
    assert leased(q) == 1
    b = got["b"][0][5:]
    del got
    gc.collect()
    assert leased(q) == 1
    np.testing.assert_array_equal(b, sample("f8", (200,))[5:])
    del b
    assert free(q)


def test_views_without_a_message_hold_nothing(q: shmq.Queue) -> None:
    for message in (b"x" * 100_000, "x" * 100_000, {"a": b"x" * 50_000}, [1] * 10_000):
        q.put(message)
        got = q.get()
        assert free(q)
        assert got == message


def test_weak_references_and_cycles(q: shmq.Queue) -> None:
    q.put(sample("f8", (500,)))
    view = q.get()
    weak = weakref.ref(view)
    cycle: list[Any] = [view]
    cycle.append(cycle)
    del view, cycle
    gc.collect()
    assert weak() is None
    assert free(q)


def test_scalars_do_not_hold_the_block(q: shmq.Queue) -> None:
    q.put([np.float64(1), np.zeros(5000)])
    scalar = q.get()[0]
    assert free(q)
    assert scalar == 1


def test_copy_detaches(q: shmq.Queue) -> None:
    array = sample("f8", (100, 100))
    for message in (array, [array, array[::2]], {"a": array.T}):
        q.put(message)
        got = q.get(copy=True)
        assert free(q)
        q.put(message)
        (many,) = q.get_many(1, copy=True)
        assert free(q)
        q.put(np.zeros((100, 100)))  # over the same pages
        q.get()
        np.testing.assert_equal(got, message)
        np.testing.assert_equal(many, message)


def test_a_view_is_the_shared_memory_itself(make: Make, name: str) -> None:
    """One copy in, none out: the view's bytes are the segment's."""
    q = make()
    needle = np.random.default_rng(5).integers(0, 2**63, 1000)
    q.put(needle)
    view = q.get()
    segment = np.memmap(f"/dev/shm/shmq.{name}", "i8", "r+")
    starts = np.flatnonzero(segment == needle[0])
    (at,) = [i for i in starts if (segment[i : i + 1000] == needle).all()]
    segment[at] = -1
    assert view[0] == -1
    view[1] = -2
    assert segment[at + 1] == -2


@pytest.mark.parametrize("strided", [False, True])
def test_putting_copies_once(make: Make, strided: bool) -> None:
    """No second copy of a large array is ever made: the process's memory does not grow by one."""
    q = make(arena_bytes=64 << 20)
    big = np.ones((2, 32 << 20), "u1")
    array = big.T if strided else big[0]
    assert array.flags.c_contiguous is not strided
    if strided:
        array = big[:, : 16 << 20][::-1]
    baseline = peak_bytes()
    q.put(array)
    view = q.get()
    grown = peak_bytes() - baseline
    assert grown < 8 << 20, f"{grown:,} bytes more than before"
    assert view.shape == array.shape


def peak_bytes() -> int:
    """High-water mark of this process's private memory."""
    Path("/proc/self/clear_refs").write_text("5")  # resets the mark
    status = Path("/proc/self/status").read_text()
    fields = dict(line.split(":", 1) for line in status.splitlines() if ":" in line)
    return int(fields["RssAnon"].split()[0]) * 1024


def test_views_outlive_the_handle(make: Make) -> None:
    q, other = make(), make()
    q.put(sample("f8", (1000,)))
    view = q.get()
    q.close()
    del q
    assert other.stats().pages["leased"] == 1
    np.testing.assert_array_equal(view, sample("f8", (1000,)))
    view[:] = 0
    del view
    assert free(other)


def test_views_are_not_disturbed_by_later_messages(q: shmq.Queue) -> None:
    kept = []
    for i in range(40):
        q.put(np.full(1500, i))
        kept.append(q.get())
        q.put(np.full(1500, -1))
        q.get()
    for i, view in enumerate(kept):
        assert (view == i).all()
    del kept, view
    assert free(q)


def test_views_die_in_any_thread(q: shmq.Queue) -> None:
    views = []
    for i in range(30):
        q.put(np.full(1500, i))
        views.append(q.get())
    threads = [threading.Thread(target=views.__delitem__, args=(slice(0, 5),)) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert views == []
    assert free(q)


# ---- full arenas ----


def test_a_full_arena_names_who_holds_the_most(make: Make) -> None:
    q = make()
    views = []
    for _ in range(63):
        q.put(np.zeros(PAGE, "u1"))
        views.append(q.get())
    loan = q.loan(PAGE, "u1")
    for timeout in (0, 0.05):
        for attempt in (
            lambda timeout=timeout: q.put(np.zeros(PAGE, "u1"), timeout=timeout),
            lambda timeout=timeout: q.put([np.zeros(2000, "u1")], timeout=timeout),
            lambda timeout=timeout: q.put(np.zeros((PAGE, 2), "u1")[:, 0], timeout=timeout),
            lambda timeout=timeout: q.put(b"x" * PAGE, timeout=timeout),
            lambda timeout=timeout: q.loan(PAGE, "u1", timeout=timeout),
        ):
            with pytest.raises(shmq.ArenaFull, match=r"peer 0 .*1,048,576") as caught:
                attempt()
            assert "arena_bytes" in str(caught.value)
    with pytest.raises(shmq.ArenaFull):
        q.put_nowait(np.zeros(PAGE, "u1"))
    assert q.empty()
    loan.discard()
    q.put(np.zeros(PAGE, "u1"), timeout=0)
    with pytest.raises(shmq.ArenaFull):
        q.put(np.zeros(PAGE, "u1"), timeout=0.01)
    q.get()
    del views
    assert free(q)


@pytest.mark.parametrize("kind", ["array", "envelope", "strided", "bytes", "loan"])
def test_a_put_waits_for_pages_and_goes_on_when_a_view_dies(make: Make, kind: str) -> None:
    q = make()
    views = []
    for _ in range(64):
        q.put(np.zeros(PAGE, "u1"))
        views.append(q.get())
    put: dict[str, Callable[[], Any]] = {
        "array": lambda: q.put(np.ones(PAGE, "u1"), timeout=30),
        "envelope": lambda: q.put([np.ones(PAGE - 1000, "u1")], timeout=30),
        "strided": lambda: q.put(np.ones((PAGE, 2), "u1")[:, 0], timeout=30),
        "bytes": lambda: q.put(b"\x01" * PAGE, timeout=30),
        "loan": lambda: q.loan(PAGE, "u1", timeout=30).publish(),
    }
    timer = threading.Timer(0.05, views.pop)
    timer.start()
    put[kind]()
    timer.join()
    q.get()
    views.clear()
    assert free(q)


class NotFull:
    """The eventcount that producers sleep on, see layout.h."""

    def __init__(self, name: str) -> None:
        self.armed = np.memmap(f"/dev/shm/shmq.{name}", "u4", "r+", 4096 + 3 * 128 + 4, (1,))

    def late_wake_ups(
        self, put: Callable[..., Any], make_room: Callable[[], Any], after: Callable[[], Any]
    ) -> int:
        """Of 10 puts that had to wait, how many slept on until the end of their slice of 100 ms."""
        late = 0
        for _ in range(10):
            self.armed[0] = 0  # nobody sleeps now
            thread = threading.Thread(target=put, kwargs={"timeout": 30})
            thread.start()
            while not self.armed[0] and thread.is_alive():
                time.sleep(0.001)
            start = time.monotonic()
            make_room()
            thread.join(30)
            assert not thread.is_alive()
            late += time.monotonic() - start > 0.05
            after()
        return late


@pytest.mark.parametrize("kind", ["array", "strided", "bytes", "loan", "envelope"])
def test_one_page_that_is_enough_wakes_a_put(make: Make, name: str, kind: str) -> None:
    q, consumer = make(), make()
    held: list[Any] = []
    for _ in range(64):
        q.put(np.zeros(PAGE, "u1"))
        held.append(consumer.get())
    put: dict[str, Callable[..., Any]] = {
        "array": lambda timeout: q.put(np.ones(PAGE, "u1"), timeout=timeout),
        "strided": lambda timeout: q.put(np.ones((PAGE, 2), "u1")[:, 0], timeout=timeout),
        "bytes": lambda timeout: q.put(b"\x01" * PAGE, timeout=timeout),
        "loan": lambda timeout: q.loan(PAGE, "u1", timeout=timeout).publish(),
        "envelope": lambda timeout: q.put([np.ones(PAGE - 128, "u1")], timeout=timeout),
    }

    def refill() -> None:
        got = consumer.get(timeout=30)
        if kind == "bytes":  # which hold no page
            q.put(np.zeros(PAGE, "u1"))
            got = consumer.get()
        held.append(got)

    late = NotFull(name).late_wake_ups(put[kind], held.pop, refill)
    assert late < 5, f"{late} of 10 wake-ups were slept through"
    held.clear()
    assert free(q)


@pytest.mark.parametrize("kind", ["array", "bytes", "envelope", "inline"])
def test_room_for_one_record_wakes_a_put(make: Make, name: str, kind: str) -> None:
    """A message in a block takes 16 bytes of the ring: when one such goes, there is room for the next."""
    q, consumer = make(ring_bytes=4096, arena_bytes=20 << 20), make()
    put: dict[str, Callable[..., Any]] = {
        "array": lambda **how: q.put(np.ones(1500, "u1"), **how),
        "bytes": lambda **how: q.put(b"\x01" * 1500, **how),
        "envelope": lambda **how: q.put([np.ones(1500, "u1")], **how),
        "inline": lambda **how: q.put(b"12345678", **how),
    }
    with contextlib.suppress(shmq.Full):
        while True:
            put[kind](block=False)
    assert q.stats().ring_used_bytes == 4096
    late = NotFull(name).late_wake_ups(put[kind], consumer.get, lambda: None)
    assert late < 5, f"{late} of 10 wake-ups were slept through"


@pytest.mark.parametrize(
    "make_huge",
    [
        lambda: np.broadcast_to(np.float64(1), (1 << 29, 1 << 29)),
        lambda: np.broadcast_to(np.uint8(1), ((8 << 20) + 1,)),
        lambda: [np.broadcast_to(np.uint8(1), (1 << 40,))],
        lambda: np.zeros((2 << 20) + 1, "u1"),
    ],
)
def test_an_array_that_can_never_fit(q: shmq.Queue, make_huge: Callable[[], Any]) -> None:
    huge = make_huge()
    with pytest.raises(shmq.MessageTooLarge, match=r"1,048,576.*arena_bytes"):
        q.put(huge)
    assert q.empty()
    assert free(q)
