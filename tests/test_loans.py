"""Loans: arrays that are written where they are read."""

import contextlib
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from sample_arrays import NATIVE, free

import shmq


@pytest.fixture
def ring_kind() -> str:
    return "spsc"  # what is tested here lies above the ring


Make = Callable[..., shmq.Queue]


# ---- loans ----


@pytest.mark.parametrize(
    "dtype", [*NATIVE, "bfloat16", "float8_e4m3fn", "float8_e5m2", np.float32, np.dtype("i2"), float, bool]
)
@pytest.mark.parametrize("order", ["C", "F"])
def test_loans_of_every_dtype(q: shmq.Queue, dtype: Any, order: str) -> None:
    with q.loan((3, 5), dtype, order=order) as loan:
        assert loan.array.shape == (3, 5)
        assert loan.array.flags.writeable
        loan.array[:] = np.arange(15).reshape(3, 5) % 2
        want = loan.array.copy()
    got = q.get()
    assert got.dtype == want.dtype
    assert got.flags.c_contiguous == (order == "C")
    assert got.tobytes() == want.tobytes()
    del got, loan
    assert free(q)


SHAPES = [(), 0, 7, np.int64(7), (0, 3), (1000, 100), [4, 5], (np.int64(3), 2)]


@pytest.mark.parametrize("shape", SHAPES, ids=repr)
def test_loans_of_every_shape(q: shmq.Queue, shape: Any) -> None:
    with q.loan(shape, "u1") as loan:
        loan.array[...] = 7
    got = q.get()
    assert got.shape == np.empty(shape).shape
    assert (got == 7).all()


def test_a_loan_is_the_memory_that_arrives(q: shmq.Queue) -> None:
    with q.loan(100, "i8") as loan:
        address = loan.array.ctypes.data
        loan.array[:] = 1
    assert q.get().ctypes.data == address


def test_an_exception_discards_the_loan(q: shmq.Queue) -> None:
    with pytest.raises(RuntimeError, match="mine"), q.loan(100, "i8"):
        raise RuntimeError("mine")
    assert q.empty()
    assert free(q)
    with pytest.raises(KeyboardInterrupt), q.loan(100, "i8"):
        raise KeyboardInterrupt
    assert q.empty()
    assert free(q)


def test_a_loan_is_published_once(q: shmq.Queue) -> None:
    loan = q.loan(100, "i8")
    loan.publish()
    for attempt in (loan.publish, lambda: loan.publish(timeout=0), loan.__enter__):
        with pytest.raises(shmq.Closed, match="loan"):
            attempt()
    loan.discard()  # nothing
    assert q.qsize() == 1
    with q.loan(100, "i8") as loan:
        loan.publish()
    assert q.qsize() == 2
    with q.loan(100, "i8") as loan:
        loan.discard()
    assert q.qsize() == 2
    with pytest.raises(shmq.Closed):
        loan.publish()
    q.get_many(2)
    assert free(q)


def test_a_published_loan_is_read_only_here(q: shmq.Queue) -> None:
    loan = q.loan(100, "i8")
    loan.array[:] = 5
    loan.publish()
    with pytest.raises(ValueError, match="read-only"):
        loan.array[0] = 6
    assert (q.get() == 5).all()


def test_a_dropped_loan_frees_its_pages(q: shmq.Queue) -> None:
    loan = q.loan(100, "i8")
    assert q.stats().pages["loaned"] == 1
    part = loan.array[5:]
    del loan
    assert q.stats().pages["loaned"] == 1  # someone may still write there
    part[:] = 1
    del part
    assert free(q)


def test_what_is_seen_of_a_published_loan_does_not_hold_pages(q: shmq.Queue) -> None:
    loan = q.loan(100, "i8")
    loan.publish()
    q.get()
    assert free(q)
    del loan
    assert free(q)


def test_full_at_publish_keeps_the_loan(make: Make) -> None:
    q = make(ring_bytes=4096)
    loan = q.loan(100, "i8")
    loan.array[:] = 3
    with pytest.raises(shmq.Full):
        q.put_many([b"x" * 100] * 100, timeout=0)
    with contextlib.suppress(shmq.Full):
        while True:
            q.put_nowait(b"")
    count = q.qsize()
    for timeout in (0, 0.02):
        with pytest.raises(shmq.Full, match="ring"):
            loan.publish(timeout=timeout)
    with pytest.raises(ValueError, match="timeout"):
        loan.publish(timeout=-1)
    assert loan.array.flags.writeable
    loan.array[0] = 4
    timer = threading.Timer(0.05, q.get)
    timer.start()
    loan.publish(timeout=30)
    timer.join()
    got = q.get_many(count + 1)
    assert got[-1].tolist() == [4] + [3] * 99


def test_a_full_ring_at_the_end_of_the_block_waits(make: Make) -> None:
    q = make(ring_bytes=4096)
    timer = threading.Timer(0.1, q.get)
    with q.loan(100, "i8"):
        with contextlib.suppress(shmq.Full):
            while True:
                q.put_nowait(b"x" * 10)
        timer.start()
    timer.join()


@pytest.mark.parametrize(
    ("shape", "dtype", "error"),
    [
        ((-1,), "i4", ValueError),
        ((2, -1), "i4", ValueError),
        ((1,) * 12, "i4", ValueError),
        ((2.5,), "i4", TypeError),
        ("34", "i4", (TypeError, ValueError)),
        (3, "O", shmq.Unencodable),
        (3, "M8[s]", shmq.Unencodable),
        (3, ">i4", shmq.Unencodable),
        (3, [("a", "i4")], shmq.Unencodable),
        (3, "no such dtype", TypeError),
        (3, "int4", (TypeError, shmq.Unencodable)),
        ((1 << 30,), "i4", shmq.MessageTooLarge),
        ((1 << 40, 1 << 40), "f8", shmq.MessageTooLarge),
        ((1 << 70,), "f8", shmq.MessageTooLarge),
    ],
    ids=str,
)
def test_loans_that_cannot_be(q: shmq.Queue, shape: Any, dtype: Any, error: Any) -> None:
    with pytest.raises(error):
        q.loan(shape, dtype)
    assert free(q)


def test_a_loan_of_unknown_order(q: shmq.Queue) -> None:
    with pytest.raises(ValueError, match="order"):
        q.loan(3, "i4", order="K")  # type: ignore[arg-type]
    assert free(q)


def test_loans_and_puts_keep_the_order_of_publishing(q: shmq.Queue) -> None:
    a, b = q.loan(1, "i8"), q.loan(1, "i8")
    a.array[:], b.array[:] = 1, 2
    q.put(np.array([0]))
    b.publish()
    a.publish()
    assert [x[0] for x in q.get_many(3)] == [0, 2, 1]


def test_a_loan_can_be_put_as_an_array(q: shmq.Queue) -> None:
    with q.loan((2, 2), "f4") as loan:
        loan.array[:] = 1
        q.put([loan])
    assert (q.get()[0] == 1).all()
    assert (q.get() == 1).all()
