"""``Queue`` keeps ``queue.Queue``'s signatures and meaning; handles open, close and tell about themselves."""

import contextlib
import copy
import inspect
import os
import pickle
import queue
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import shmq
from shmq.queue import _params

Make = Callable[..., shmq.Queue]
ONE_OF_EACH = pytest.mark.parametrize("ring_kind", ["spsc"])
"""Of queues with one producer and one consumer at a time."""


def fill(q: shmq.Queue, message: bytes) -> int:
    """Puts ``message`` until the ring is full; how often it went in."""
    count = 0
    try:
        while True:
            q.put_nowait(message)
            count += 1
    except shmq.Full:
        return count


# ---- what the standard library promises ----


@pytest.mark.parametrize("method", ["put", "get", "put_nowait", "get_nowait", "qsize", "empty", "full"])
def test_signatures_begin_like_the_standard_librarys(method: str) -> None:
    ours = list(inspect.signature(getattr(shmq.Queue, method)).parameters.values())
    theirs = list(inspect.signature(getattr(queue.Queue, method)).parameters.values())
    renamed = {"item": "obj"}
    for a, b in zip(ours, theirs, strict=False):
        assert (a.name, a.default) == (renamed.get(b.name, b.name), b.default)
    assert len(ours) >= len(theirs)


@pytest.mark.parametrize(
    "message", [b"", b"x", b"x" * 5000, b"x" * 100_000, "text", 7, None, [1, {"a": 2.5}]]
)
def test_put_then_get(q: shmq.Queue, message: Any) -> None:
    q.put(message)
    assert q.get() == message


def test_fifo(q: shmq.Queue) -> None:
    for i in range(100):
        q.put(i)
    assert [q.get() for _ in range(100)] == list(range(100))


def test_errors_are_the_standard_librarys() -> None:
    assert issubclass(shmq.Full, queue.Full)
    assert issubclass(shmq.ArenaFull, shmq.Full)
    assert issubclass(shmq.Empty, queue.Empty)
    assert issubclass(shmq.MessageTooLarge, ValueError)
    assert issubclass(shmq.OutOfSpace, OSError)
    assert issubclass(shmq.SegmentNotFound, FileNotFoundError)
    assert issubclass(shmq.NameTaken, FileExistsError)
    assert issubclass(shmq.InvalidName, ValueError)
    assert issubclass(shmq.WrongOwner, PermissionError)
    assert issubclass(shmq.Unencodable, TypeError)
    assert issubclass(shmq.PickleRefused, shmq.DecodeError)
    if hasattr(queue, "ShutDown"):
        assert issubclass(shmq.ShutDown, queue.ShutDown)
    for error in vars(shmq.errors).values():
        if isinstance(error, type) and issubclass(error, Exception) and error.__module__ == "shmq.errors":
            assert issubclass(error, shmq.ShmqError)


def test_everything_in_all_is_there() -> None:
    for exported in shmq.__all__:
        assert hasattr(shmq, exported)


def test_empty_queue(q: shmq.Queue) -> None:
    assert q.empty()
    assert not q.full()
    assert q.qsize() == 0
    for attempt in (
        q.get_nowait,
        lambda: q.get(block=False),
        lambda: q.get(False),
        lambda: q.get(timeout=0),
        lambda: q.get(True, 0.01),
        lambda: q.get_many(5, timeout=0),
        lambda: q.get_many(5, 0.01),
    ):
        with pytest.raises(shmq.Empty):
            attempt()


def test_full_queue(make: Make) -> None:
    q = make(ring_bytes=4096, arena_bytes=0)
    count = fill(q, b"x" * 100)
    assert q.qsize() == count
    for attempt in (
        lambda: q.put_nowait(b"x" * 100),
        lambda: q.put(b"x" * 100, block=False),
        lambda: q.put(b"x" * 100, False),
        lambda: q.put(b"x" * 100, timeout=0),
        lambda: q.put(b"x" * 100, True, 0.01),
        lambda: q.put([1] * 150, timeout=0.01),
        lambda: q.put_many([b"x" * 100], timeout=0.01),
    ):
        with pytest.raises(shmq.Full):
            attempt()
    assert q.full()
    assert q.qsize() == count  # what was refused is not there
    for _ in range(count):
        assert q.get_nowait() == b"x" * 100
    assert not q.full()


def test_block_false_ignores_the_timeout(q: shmq.Queue) -> None:
    q.put(b"1", block=False, timeout=-5)
    assert q.get(block=False, timeout=-5) == b"1"
    with pytest.raises(shmq.Empty):
        q.get(block=False, timeout=-5)


@pytest.mark.parametrize("timeout", [-1, -0.001, float("-inf"), float("nan")])
def test_negative_timeouts_are_refused(q: shmq.Queue, timeout: float) -> None:
    for attempt in (
        lambda: q.get(timeout=timeout),
        lambda: q.get_many(3, timeout=timeout),
        lambda: q.loan(4, "u1", timeout=timeout),
        lambda: q.put_many([b"1"], timeout=timeout),
    ):
        with pytest.raises(ValueError, match=r"timeout|NaN"):
            attempt()
    assert q.empty()


@pytest.mark.parametrize("timeout", [-1, -0.001])
def test_negative_timeouts_are_refused_also_where_nothing_has_to_wait(q: shmq.Queue, timeout: float) -> None:
    """As the standard library does: a bug in the caller should not show only under load."""
    q.put(b"there")
    for attempt in (
        lambda: q.get(timeout=timeout),
        lambda: q.get_many(3, timeout=timeout),
        lambda: q.put(b"x", timeout=timeout),
        lambda: q.put([1], timeout=timeout),
    ):
        with pytest.raises(ValueError, match="timeout"):
            attempt()
    assert q.qsize() == 1


def test_timeouts_wait_that_long(make: Make) -> None:
    q = make(ring_bytes=4096)
    fill(q, b"x" * 100)
    consumer = make()
    for attempt in (lambda: q.put(b"x" * 100, timeout=0.15), lambda: q.put_many([b"x" * 100], timeout=0.15)):
        start = time.monotonic()
        with pytest.raises(shmq.Full):
            attempt()
        assert 0.15 <= time.monotonic() - start < 30
    while consumer.qsize():
        consumer.get()
    for attempt in (lambda: consumer.get(timeout=0.15), lambda: consumer.get_many(3, timeout=0.15)):
        start = time.monotonic()
        with pytest.raises(shmq.Empty):
            attempt()
        assert 0.15 <= time.monotonic() - start < 30


@pytest.mark.parametrize("timeout", [float("inf"), 1e300, 1e18, sys.maxsize])
def test_very_long_timeouts(q: shmq.Queue, timeout: float) -> None:
    threading.Timer(0.05, q.put, (b"late",)).start()
    assert q.get(timeout=timeout) == b"late"


def test_blocked_get_is_woken(q: shmq.Queue) -> None:
    timer = threading.Timer(0.05, q.put, ([1, 2],))
    timer.start()
    assert q.get(timeout=30) == [1, 2]
    timer.join()


def test_blocked_put_is_woken(make: Make) -> None:
    q = make(ring_bytes=4096)
    count = fill(q, b"x" * 500)
    timer = threading.Timer(0.05, q.get)
    timer.start()
    q.put(b"y" * 500, timeout=30)
    timer.join()
    assert q.get_many(count + 5)[-1] == b"y" * 500


# ---- full() and empty() ----


def test_not_full_means_that_any_in_line_message_fits(make: Make) -> None:
    q = make(ring_bytes=4096, inline_bytes=1024, arena_bytes=0)
    for sizes in ([1000, 1024, 1024], [1024, 1024, 1000], [8, 1024, 1024, 900], [500] * 7):
        for size in sizes:
            with contextlib.suppress(shmq.Full):
                q.put_nowait(b"x" * size)
        while q.qsize():
            if not q.full():
                q.put_nowait(b"y" * 1024)  # no Full
                s = q.stats()
                assert s.ring_used_bytes <= s.ring_bytes
                q.get_nowait()
            q.get_nowait()


def test_qsize_counts_every_kind(q: shmq.Queue) -> None:
    q.put_many([b"1", b"2"])
    q.put(np.zeros(3))
    q.put(np.zeros(3000))
    q.put({"a": np.zeros(9)})
    assert q.qsize() == 5
    kept = q.get_many(4)
    assert q.qsize() == 1
    assert not q.empty()
    q.get()
    assert q.empty()
    del kept


# ---- many ----


def test_put_many_get_many(q: shmq.Queue) -> None:
    messages = [b"%d" % i for i in range(100)]
    assert q.put_many(messages) == 100
    assert q.get_many(30) == messages[:30]
    assert q.get_many(10_000) == messages[30:]
    assert q.put_many([]) == 0
    assert q.empty()


@pytest.mark.parametrize("size", [1 << 12, 1 << 14, 1 << 16, 1 << 17])
def test_a_batch_copies_64_kib_out_and_no_more_than_one_message_beyond(make: Make, size: int) -> None:
    q = make(ring_bytes=1 << 20, arena_bytes=16 << 20)
    messages = [bytes([i]) * size for i in range(40)]
    q.put_many(messages)
    got: list[bytes] = []
    while len(got) < 40:
        batch = q.get_many(40)
        assert len(batch) == min(max(1, (1 << 16) // size), 40 - len(got))
        got += batch
    assert got == messages
    q.put_many([np.full(size, i, "u1") for i in range(8)])
    assert [int(array[-1]) for array in q.get_many(8)] == list(range(8))  # views copy nothing


@pytest.mark.parametrize("iterable", [list, tuple, iter, lambda m: (x for x in m), dict.fromkeys])
def test_put_many_takes_any_iterable(q: shmq.Queue, iterable: Callable[[list[Any]], Any]) -> None:
    messages = [b"1", b"x" * 20_000, "three", 4, None, b""]
    assert q.put_many(iterable(messages)) == 6
    assert q.get_many(6) == messages


def test_put_many_puts_nothing_where_the_iterable_raises(q: shmq.Queue) -> None:
    def broken() -> Any:
        yield b"1"
        raise RuntimeError("broken")

    with pytest.raises(RuntimeError, match="broken"):
        q.put_many(broken())
    assert q.empty()


@pytest.mark.parametrize("kind", ["bytes", "mixed", "arrays"])
def test_put_many_says_how_many_went_in(make: Make, kind: str) -> None:
    q = make(ring_bytes=4096, arena_bytes=1 << 20)
    message: dict[str, Callable[[int], Any]] = {
        "bytes": lambda i: b"x" * 90,
        "mixed": lambda i: "s" * 90 if i % 3 else b"x" * 90,
        "arrays": lambda i: np.zeros(50),
    }
    with pytest.raises(shmq.Full) as caught:
        q.put_many([message[kind](i) for i in range(200)], timeout=0.05)
    assert 0 < caught.value.done < 200
    assert q.qsize() == caught.value.done
    assert "ring" in str(caught.value)


def test_put_many_says_how_many_went_in_before_any_error(q: shmq.Queue) -> None:
    with pytest.raises(shmq.Unencodable) as caught:
        q.put_many([b"1", b"2", object(), b"3"])
    assert caught.value.done == 2  # type: ignore[attr-defined]
    assert q.get_many(9) == [b"1", b"2"]
    with pytest.raises(shmq.MessageTooLarge) as too_large:
        q.put_many([b"1", bytes(10 << 20), b"3"])
    assert too_large.value.done == 1  # type: ignore[attr-defined]


def test_put_many_goes_on_as_room_comes(make: Make) -> None:
    q = make(ring_bytes=4096)
    messages = [b"%06d" % i * 20 for i in range(2000)]
    got: list[bytes] = []

    def consume() -> None:
        while len(got) < 2000:
            got.extend(q.get_many(7, timeout=30))

    thread = threading.Thread(target=consume)
    thread.start()
    assert q.put_many(messages, timeout=30) == 2000
    thread.join(60)
    assert got == messages


def test_get_many_waits_for_the_first_only(q: shmq.Queue) -> None:
    threading.Timer(0.05, q.put, (b"only",)).start()
    assert q.get_many(1000, timeout=30) == [b"only"]


@pytest.mark.parametrize("n", [0, -1])
def test_get_many_of_none(q: shmq.Queue, n: int) -> None:
    with pytest.raises(ValueError, match="max_items"):
        q.get_many(n)


def test_get_many_of_mixed_kinds_keeps_order(q: shmq.Queue) -> None:
    messages = [b"1", 2, "3", np.arange(5), b"x" * 30_000, np.arange(5000), {"a": np.arange(700)}, None]
    q.put_many(messages)
    got = q.get_many(3) + q.get_many(100)
    assert len(got) == 8
    for a, b in zip(got, messages, strict=True):
        np.testing.assert_equal(a, b)


# ---- shutdown ----


def test_shutdown_drains(q: shmq.Queue) -> None:
    q.put_many([b"1", b"2", b"3"])
    q.shutdown()
    assert q.stats().shutdown == "draining"
    for attempt in (
        lambda: q.put(b"4"),
        lambda: q.put_nowait(b"4"),
        lambda: q.put([4], timeout=1),
        lambda: q.put(np.zeros(4)),
        lambda: q.put_many([b"4"]),
        lambda: q.loan(4, "u1"),
    ):
        with pytest.raises(shmq.ShutDown):
            attempt()
    assert q.get() == b"1"
    assert q.get_many(10) == [b"2", b"3"]
    for attempt in (q.get, q.get_nowait, lambda: q.get(timeout=5), lambda: q.get_many(4)):
        with pytest.raises(shmq.ShutDown):
            attempt()


def test_immediate_shutdown_stops_gets(q: shmq.Queue) -> None:
    q.put_many([b"1", b"2"])
    q.shutdown(immediate=True)
    assert q.stats().shutdown == "immediate"
    for attempt in (q.get, q.get_nowait, lambda: q.get_many(4), lambda: q.put(b"3")):
        with pytest.raises(shmq.ShutDown):
            attempt()


def test_shutdown_only_grows(make: Make) -> None:
    q = make()
    q.shutdown()
    q.shutdown(immediate=True)
    q.shutdown()
    assert make().stats().shutdown == "immediate"


@pytest.mark.parametrize("immediate", [False, True])
@pytest.mark.parametrize("many", [False, True])
def test_shutdown_wakes_a_blocked_get(make: Make, immediate: bool, many: bool) -> None:
    q = make()
    timer = threading.Timer(0.05, make().shutdown, (immediate,))
    timer.start()
    start = time.monotonic()
    with pytest.raises(shmq.ShutDown):
        q.get_many(3, timeout=30) if many else q.get(timeout=30)
    assert time.monotonic() - start < 20
    timer.join()


def test_shutdown_wakes_a_blocked_put(make: Make) -> None:
    q = make(ring_bytes=4096)
    fill(q, b"x" * 100)
    timer = threading.Timer(0.05, q.shutdown)
    timer.start()
    with pytest.raises(shmq.ShutDown):
        q.put(b"x" * 100, timeout=30)
    timer.join()


def test_a_loan_that_meets_a_shutdown(q: shmq.Queue) -> None:
    loan = q.loan(10, "u1")
    q.shutdown()
    with pytest.raises(shmq.ShutDown):
        loan.publish()
    loan.discard()
    assert q.stats().pages["loaned"] == 0


# ---- opening ----


def test_open_or_create(name: str, make: Make) -> None:
    first = make(ring_bytes=8192)
    second = make(ring_bytes=1 << 20)  # geometry counts only where it is created
    assert second.stats().ring_bytes == 8192
    assert first.stats().uuid == second.stats().uuid
    first.put(b"1")
    assert second.get() == b"1"


def test_strict_forms(name: str) -> None:
    with pytest.raises(shmq.SegmentNotFound, match=name):
        shmq.Queue.attach(name)
    with shmq.Queue.create(name, arena_bytes=1 << 20) as q:
        with pytest.raises(shmq.NameTaken, match=name):
            shmq.Queue.create(name, arena_bytes=1 << 20)
        with shmq.Queue.attach(name) as other:
            other.put(1)
            assert q.get() == 1
        q.unlink()
    with pytest.raises(shmq.SegmentNotFound):
        shmq.Queue.attach(name)


def test_attach_with_every_form_of_timeout(make: Make, name: str) -> None:
    make()
    for timeout in (0, 0.5, 5, float("inf"), None):
        shmq.Queue.attach(name, timeout=timeout).close()  # type: ignore[arg-type]


def test_attach_refuses_a_negative_timeout(make: Make, name: str) -> None:
    make()
    with pytest.raises(ValueError, match="timeout"):
        shmq.Queue.attach(name, timeout=-1)


def test_anonymous_queue_goes_with_its_creators_close() -> None:
    q = shmq.Queue(arena_bytes=1 << 20)
    assert Path(f"/dev/shm/shmq.{q.name}").exists()
    other = pickle.loads(pickle.dumps(q))
    other.put(b"1")
    other.close()
    assert q.get() == b"1"
    q.close()
    assert not Path(f"/dev/shm/shmq.{q.name}").exists()


def test_anonymous_queue_that_was_dropped_is_gone_when_the_process_ends(run: Callable[..., str]) -> None:
    name = run("import shmq\ndef make(): return shmq.Queue(arena_bytes=1 << 20).name\nprint(make())").strip()
    path = Path(f"/dev/shm/shmq.{name}")
    left = path.exists()
    path.unlink(missing_ok=True)
    assert not left


def test_a_view_keeps_no_anonymous_name() -> None:
    q = shmq.Queue(arena_bytes=1 << 20)
    q.put(np.arange(1000))
    view = q.get()
    q.close()
    assert not Path(f"/dev/shm/shmq.{q.name}").exists()
    assert view.sum() == 499500


@pytest.mark.parametrize("wrong", ["topic", "SPSC", 1])
def test_other_kinds_are_refused(name: str, wrong: Any) -> None:
    with pytest.raises(ValueError, match="kind"):
        shmq.Queue(name, kind=wrong)
    with pytest.raises(ValueError, match="kind"):
        shmq.Queue.create(name, kind=wrong)


def test_a_queue_of_another_kind_is_not_what_was_asked_for(make: Make, name: str, ring_kind: str) -> None:
    q = make()
    assert q.stats().kind == ring_kind
    other: Any = {"spsc": "mpmc", "mpmc": "spsc"}[ring_kind]
    with pytest.raises(shmq.WrongKind, match=rf"{ring_kind}.*{other}"):
        shmq.Queue(name, kind=other)
    with shmq.Queue(name) as same:  # whatever is there
        assert same.stats().kind == ring_kind
    assert [p.alive for p in q.peers()] == [True]


def test_the_default_kind(name: str) -> None:
    with shmq.Queue(name, arena_bytes=1 << 20) as q:
        q.unlink()
        assert q.stats().kind == "mpmc"
    with shmq.Queue.create(name, arena_bytes=1 << 20) as q:
        q.unlink()
        assert q.stats().kind == "mpmc"


@pytest.mark.parametrize(
    ("label", "value"),
    [
        ("ring_bytes", 0),
        ("ring_bytes", -1),
        ("ring_bytes", 1 << 40),
        ("arena_bytes", -1),
        ("arena_bytes", 1 << 60),
        ("inline_bytes", 0),
        ("inline_bytes", 1 << 19),
        ("max_peers", 0),
        ("max_peers", 4096),
        ("arrays", "jax"),
    ],
)
def test_arguments_out_of_range_are_named(name: str, label: str, value: Any) -> None:
    for opener in (shmq.Queue, shmq.Queue.create):
        with pytest.raises(ValueError, match=label):
            opener(name, **{label: value})
    assert not any(s.name == name for s in shmq.list_segments())


@pytest.mark.parametrize("label", ["ring_bytes", "arena_bytes", "inline_bytes", "max_peers"])
def test_arguments_of_the_wrong_type(name: str, label: str) -> None:
    for value in ("64", 64.0, None if label != "inline_bytes" else "8"):
        with pytest.raises(TypeError):
            shmq.Queue(name, **{label: value})
    assert not any(s.name == name for s in shmq.list_segments())


def test_sizes_are_what_was_asked_for(make: Make, ring_kind: str) -> None:
    q = make(ring_bytes=5000, arena_bytes=8 << 20, inline_bytes=100, max_peers=7)
    s = q.stats()
    assert s.ring_bytes == 8192
    assert s.inline_bytes == {"spsc": 100, "mpmc": 256 - 32}[ring_kind]  # of a slot: all of it
    assert s.max_peers == 7
    assert s.largest_message_bytes == 8 << 20
    assert s.arena_bytes == 10 << 20  # and a quarter as small pages
    assert s.arena_free_bytes == s.arena_bytes
    assert sum(s.pages.values()) == s.pages["free"] == 4 + 128


def test_one_message_may_be_as_large_as_the_arena(make: Make) -> None:
    q = make(arena_bytes=8 << 20)
    largest = q.stats().largest_message_bytes
    payload = b"0123456789abcdef" * (largest // 16)
    q.put(payload)
    assert q.get() == payload
    q.put(np.frombuffer(payload, np.uint8))
    assert q.get()[-1] == ord("f")
    with pytest.raises(shmq.MessageTooLarge):
        q.put(payload + b"x")


def test_without_an_arena_there_is_still_the_ring(make: Make) -> None:
    q = make(arena_bytes=0)
    limit = q.stats().inline_bytes
    q.put(b"x" * limit)
    assert q.get() == b"x" * limit
    with pytest.raises(shmq.MessageTooLarge) as caught:
        q.put(b"x" * (limit + 1))
    assert f"{limit:,}" in str(caught.value)


def test_default_inline_bytes_shrink_with_the_ring(make: Make, ring_kind: str) -> None:
    assert make(ring_bytes=4096).stats().inline_bytes == {"spsc": 1024, "mpmc": 480}[ring_kind]


def test_params_start_at_the_cursor(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shmq.handle.CURSOR_START", 2**64 - 2)
    assert _params("spsc", 4096, 0, 64, 1, None, False, {}).first_cursor == 2**64 - 2


# ---- closing ----


def test_context_manager_closes(name: str) -> None:
    with shmq.Queue(name, arena_bytes=1 << 20) as q:
        assert not q.closed
        q.unlink()
    assert q.closed
    q.close()  # again: nothing
    q.unlink()
    assert q.name == name


def test_context_manager_closes_on_errors(name: str) -> None:
    with pytest.raises(RuntimeError, match="mine"), shmq.Queue(name, arena_bytes=1 << 20) as q:  # noqa: PT012
        q.unlink()
        raise RuntimeError("mine")
    assert q.closed


def test_every_use_after_close_says_so(q: shmq.Queue) -> None:
    loan = q.loan(8, "u1")
    q.close()
    attempts: list[Callable[[], Any]] = [
        lambda: q.put(b"1"),
        lambda: q.put([1]),
        lambda: q.put(np.zeros(3)),
        lambda: q.put_nowait(b"1"),
        lambda: q.put_many([b"1"]),
        lambda: q.put_many([[1]]),
        q.get,
        q.get_nowait,
        lambda: q.get(timeout=1),
        lambda: q.get_many(3),
        lambda: q.loan(3, "u1"),
        q.qsize,
        q.empty,
        q.full,
        q.stats,
        q.peers,
        q.shutdown,
        lambda: pickle.dumps(q),
        loan.publish,
    ]
    for attempt in attempts:
        with pytest.raises(shmq.Closed, match=q.name):
            attempt()
    loan.discard()
    assert "closed" in repr(q)


@ONE_OF_EACH
def test_close_gives_up_the_roles(make: Make) -> None:
    a, b = make(), make()
    a.put(b"1")
    assert a.get() == b"1"
    for attempt in (lambda: b.put(b"2"), lambda: b.get(timeout=5)):
        with pytest.raises(shmq.RoleTaken, match=str(os.getpid())):
            attempt()
    a.close()
    b.put(b"2")
    assert b.get() == b"2"


def test_a_dropped_handle_gives_up_its_roles(make: Make, name: str) -> None:
    make()
    a = shmq.Queue.attach(name)
    a.put(b"1")
    del a
    make().put(b"2")


def test_roles_come_with_use_only(make: Make, ring_kind: str) -> None:
    a, b, c = make(), make(), make()
    a.put(b"1")
    b.get()
    assert c.qsize() == 0
    c.shutdown()
    s = c.stats()
    assert (s.producer, s.consumer) == {"spsc": (0, 1), "mpmc": (None, None)}[ring_kind]
    assert [p.roles for p in c.peers()] == [{"producer"}, {"consumer"}, set()]


def test_unlink_leaves_the_attached_alone(make: Make, name: str) -> None:
    a, b = make(), make()
    a.unlink()
    with pytest.raises(shmq.SegmentNotFound):
        shmq.Queue.attach(name)
    a.put(b"1")
    assert b.get() == b"1"
    a.unlink()  # again: nothing


def test_unlink_spares_a_successor_of_the_same_name(make: Make, name: str) -> None:
    a = make()
    a.unlink()
    b = make()
    a.unlink()
    a.close()
    assert b.stats().uuid == shmq.inspect(name).uuid


def test_unlink_by_name(make: Make, name: str) -> None:
    make()
    shmq.unlink(name)
    with pytest.raises(shmq.SegmentNotFound, match=name):
        shmq.unlink(name)


def test_reattach_of_ones_own_handle_does_no_harm() -> None:
    q = shmq.Queue(arena_bytes=1 << 20)
    q.put(b"1")
    q.reattach()
    assert q.get() == b"1"
    q.put(b"2")
    assert q.get() == b"2"
    assert len(q.peers()) == 1
    q.close()
    path = Path(f"/dev/shm/shmq.{q.name}")
    left = path.exists()  # it is still its creator, so the name goes
    path.unlink(missing_ok=True)
    assert not left


def test_reattach_does_not_open_what_was_closed(q: shmq.Queue) -> None:
    q.close()
    with pytest.raises(shmq.Closed):
        q.reattach()


# ---- telling ----


def test_repr(q: shmq.Queue) -> None:
    assert q.name in repr(q)
    assert "closed" not in repr(q)
    q.close()
    assert "closed" in repr(q)


def test_stats(make: Make, name: str, ring_kind: str) -> None:
    q = make(arena_bytes=1 << 20)
    before = q.stats()
    assert (before.name, before.kind, before.shutdown) == (name, ring_kind, "open")
    assert (before.messages_put, before.messages_got, before.qsize) == (0, 0, 0)
    assert (before.producer, before.consumer) == (None, None)
    assert before.ring_used_bytes == 0
    assert before.total_bytes == Path(f"/dev/shm/shmq.{name}").stat().st_size
    assert {"free", "loaned", "inflight", "leased", "cont"} <= set(before.pages)
    q.put_many([b"x" * 8] * 10)
    q.put(np.zeros(10_000))  # 80,000 bytes: 5 small pages
    between = q.stats()
    assert (between.messages_put, between.messages_got, between.qsize) == (11, 0, 11)
    assert between.ring_used_bytes == 11 * {"spsc": 16, "mpmc": 512}[ring_kind]
    assert (between.pages["inflight"], between.pages["cont"]) == (1, 4)
    assert between.arena_free_bytes == before.arena_bytes - 5 * (16 << 10)
    q.get_many(10)
    view = q.get()
    after = q.stats()
    assert (after.messages_put, after.messages_got, after.qsize) == (11, 11, 0)
    assert after.ring_used_bytes == 0
    assert (after.pages["inflight"], after.pages["leased"], after.pages["cont"]) == (0, 1, 4)
    del view
    assert q.stats().pages == before.pages


def test_peers(make: Make) -> None:
    a = make()
    before = time.time()
    b = make()
    a.put_many([b"12345678"] * 3)
    a.put(np.zeros(10_000))
    b.get_many(3)
    view = b.get()
    loan = a.loan(3, "u1")
    first, second = b.peers()
    assert (first.index, second.index) == (0, 1)
    assert (first.pid, second.pid) == (os.getpid(), os.getpid())
    assert first.comm == Path("/proc/self/comm").read_text().strip()
    assert first.alive is True
    assert second.alive is True
    assert (first.roles, second.roles) == ({"producer"}, {"consumer"})
    assert before - 5 < first.attached_at <= second.attached_at < time.time() + 5
    assert (first.messages_put, first.messages_got, first.bytes_put) == (4, 0, 80_024)
    assert (second.messages_put, second.messages_got, second.bytes_got) == (0, 4, 80_024)
    assert first.held_bytes == 16 << 10
    assert second.held_bytes == 5 * (16 << 10)
    del view
    loan.discard()
    assert [p.held_bytes for p in a.peers()] == [0, 0]
    epoch = second.epoch
    b.close()
    assert len(a.peers()) == 1
    assert make() is not None
    assert a.peers()[1].epoch == epoch + 1


def test_parks_and_wakes_are_counted(make: Make) -> None:
    a, b = make(), make()
    timer = threading.Timer(0.1, a.put, (b"1",))
    timer.start()
    b.get(timeout=30)
    timer.join()
    producer, consumer = a.peers()
    assert consumer.parks >= 1
    assert producer.wakes >= 1


def test_inspect_takes_no_slot(make: Make, name: str) -> None:
    q = make(max_peers=1)
    q.put(b"12")
    snapshot = shmq.inspect(name)
    assert snapshot.stats.qsize == 1
    assert [p.index for p in snapshot.peers] == [0]
    assert snapshot.creator_pid == os.getpid()
    assert snapshot.uuid == q.stats().uuid
    assert abs(snapshot.created_at - time.time()) < 60
    with pytest.raises(shmq.SegmentNotFound):
        shmq.inspect(name + "-not")


def test_peek_takes_nothing(make: Make, name: str) -> None:
    q = make()
    messages: list[Any] = [
        b"raw",
        "text",
        np.arange(3),
        np.arange(3000),
        {"a": np.arange(300)},
        b"x" * 20_000,
    ]
    q.put_many(messages)
    peeked = shmq.peek(name)
    assert [m.codec for m in peeked] == ["raw", "msgpack", "tensor", "tensor", "envelope", "raw"]
    assert [m.where for m in peeked] == ["inline", "inline", "inline", "block", "block", "block"]
    assert peeked[0].preview == repr(b"raw")
    assert peeked[1].preview == repr("text")
    assert "array" in peeked[2].preview
    assert [m.bytes for m in peeked][::5] == [3, 20_000]
    assert [m.position for m in peeked] == sorted(m.position for m in peeked)
    assert len(shmq.peek(name, 2)) == 2
    assert shmq.peek(name, 0) == []
    assert q.qsize() == 6
    assert len(q.get_many(10)) == 6
    assert shmq.peek(name) == []


def test_list_segments(make: Make, name: str) -> None:
    make()
    (found,) = [s for s in shmq.list_segments() if s.name == name]
    st = Path(found.path).stat()
    assert (found.bytes, found.uid, found.mode, found.state) == (st.st_size, os.getuid(), 0o600, "ready")
    assert found.mtime == pytest.approx(st.st_mtime)


def test_include_directory_has_the_header() -> None:
    assert (Path(shmq.get_include()) / "shmq.h").is_file()


# ---- pickles ----


def test_pickled_handle_is_another_handle(make: Make) -> None:
    q = make(allow_pickle=True, arrays="numpy")
    for again in (lambda: pickle.loads(pickle.dumps(q)), lambda: copy.copy(q), lambda: copy.deepcopy(q)):
        with again() as other:
            assert other.name == q.name
            assert len(q.peers()) == 2
            other.put(set)  # only pickle can: the options came along
            other.get()


def test_stale_pickles_are_refused(make: Make, name: str) -> None:
    first = make()
    frozen = pickle.dumps(first)
    first.unlink()
    with pytest.raises(shmq.SegmentNotFound):
        pickle.loads(frozen)
    second = make()
    with pytest.raises(shmq.StaleHandle, match=name):
        pickle.loads(frozen)
    assert len(second.peers()) == 1  # the refused one left


def test_errors_survive_pickling(q: shmq.Queue) -> None:
    for error in (
        shmq.Full("f"),
        shmq.Empty("e"),
        shmq.DecodeError("text", b"payload", 3),
        shmq.PickleRefused("text", b"payload", 4),
        shmq.OutOfSpace(28, "text"),
        shmq.SegmentNotFound(2, "text"),
    ):
        again = pickle.loads(pickle.dumps(error))
        assert type(again) is type(error)
        assert str(again) == str(error)
        assert vars(again) == vars(error)


def test_subclasses_stay_subclasses(name: str) -> None:
    with Mine.create(name, arena_bytes=1 << 20) as q, pickle.loads(pickle.dumps(q)) as other:
        assert type(other) is Mine
        q.unlink()


class Mine(shmq.Queue):
    pass


def test_reap_finds_nobody_among_the_living(make: Make) -> None:
    q = make()
    make()
    assert q.reap() == 0
    q.close()
    with pytest.raises(shmq.Closed):
        q.reap()
