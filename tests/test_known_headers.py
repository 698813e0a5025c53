"""Plain arrays whose header was met before: the C side builds them (``shmq/_arrays.h``)."""

import itertools
import sys
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pytest
from shmq._core import lib

import shmq
from shmq import tensor

Make = Callable[..., shmq.Queue]
SIZES = (8, 2000)
"""One lies in the ring, one in a block."""


def _same(got: npt.NDArray[np.generic], sent: npt.NDArray[np.generic]) -> None:
    assert type(got) is np.ndarray
    assert got.dtype is sent.dtype
    assert got.flags.f_contiguous == sent.flags.f_contiguous
    np.testing.assert_array_equal(got, sent)


@pytest.mark.parametrize("size", SIZES)
def test_the_first_and_the_next_look_the_same(q: shmq.Queue, size: int) -> None:
    sent = np.asfortranarray(np.arange(2 * size, dtype="c8").reshape(2, size))
    for _ in range(3):
        q.put(sent)
        got = q.get()
        _same(got, sent)
        assert got.flags.writeable
        q.put(sent)
        private = q.get(copy=True)
        _same(private, sent)
        assert private.base is None


@pytest.mark.parametrize("dtype", ["u1", "u8"])
def test_many_headers_take_turns(q: shmq.Queue, dtype: str) -> None:
    """More than there are places for."""
    sizes = range(400, 1000)
    for n in itertools.chain(sizes, sizes):
        q.put(np.full(n, n % 256, dtype))
        got = q.get()
        assert got.shape == (n,)
        assert got[0] == n % 256
        assert got.dtype == dtype


def test_what_is_forgotten_is_freed(q: shmq.Queue) -> None:
    shape = (3, 5, 70001)
    before = sys.getrefcount(np.dtype("u1"))
    head = tensor.pack_meta(tensor.dtype_number(np.dtype("u1")), "C", shape, 0)
    for _ in range(1000):
        lib.py_remember_header(head, id(shape), id(np.dtype("u1")), id("C"))
    assert sys.getrefcount(shape) < 10
    assert sys.getrefcount(np.dtype("u1")) < before + 10


@pytest.mark.parametrize("size", SIZES)
def test_a_payload_that_is_too_short_for_a_known_header(q: shmq.Queue, size: int) -> None:
    q.put(np.zeros(size, "f8"))
    q.get()
    head = tensor.pack_meta(tensor.dtype_number(np.dtype("f8")), "C", (size,), 0)
    short = b"x" * (8 * size - 1)
    assert lib.py_put_buffer(q._c, False, lib.SHMQ_TENSOR, head, len(head), id(short), 0) == 0
    with pytest.raises(shmq.DecodeError, match="too small") as failed:
        q.get()
    assert failed.value.payload == head + short
    q.put(np.ones(size))
    _same(q.get(), np.ones(size))
    del failed  # its traceback holds the payload
    assert not lib.py_held(q._c)


@pytest.mark.parametrize("size", SIZES)
def test_scalars_and_extension_dtypes_are_no_plain_arrays(q: shmq.Queue, size: int) -> None:
    ml_dtypes = pytest.importorskip("ml_dtypes")
    for sent in (np.float32(1.5), np.ones(size, ml_dtypes.bfloat16)) * 2:
        q.put(sent)
        got = q.get()
        assert type(got) is type(sent)
        assert got.dtype == sent.dtype


@pytest.mark.parametrize("size", SIZES)
def test_a_handle_that_wants_torch_gets_torch(make: Make, name: str, size: int) -> None:
    torch = pytest.importorskip("torch", reason="pip install torch")
    q = make()
    q.put(np.ones(size))
    q.get()
    q.close()
    with shmq.Queue.attach(name, arrays="torch") as wants_torch:
        for _ in range(3):
            wants_torch.put(np.ones(size))
            assert isinstance(wants_torch.get(), torch.Tensor)


@pytest.mark.parametrize("size", SIZES)
def test_a_topic_s_arrays_are_read_only(name: str, size: int) -> None:
    with shmq.Topic(name) as topic, topic.subscribe() as subscription:
        for _ in range(3):
            topic.publish(np.ones(size))
            assert not subscription.get().flags.writeable
        topic.unlink()
