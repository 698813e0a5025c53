"""Arrays in and out: every dtype, order and kind of array arrives as it was sent."""

import gc
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sample_arrays import (
    DESCRIBED,
    EXTENDED,
    NATIVE,
    PAGE,
    assert_same_array,
    check_round_trip,
    free,
    same_bytes,
    sample,
)
from shmq._core import lib

import shmq
from shmq import tensor


@pytest.fixture
def ring_kind() -> str:
    return "spsc"  # what is tested here lies above the ring


Make = Callable[..., shmq.Queue]


# ---- dtypes ----


@pytest.mark.parametrize("shape", [(), (0,), (1,), (3, 2), (40, 50)], ids=str)
@pytest.mark.parametrize("dtype", NATIVE + DESCRIBED, ids=str)
def test_every_dtype(q: shmq.Queue, dtype: Any, shape: tuple[int, ...]) -> None:
    for how in ("get", "many", "copy"):
        check_round_trip(q, sample(dtype, shape), how)
    inside = sample(dtype, shape)
    q.put({"x": [inside]})
    assert_same_array(q.get()["x"][0], inside)
    assert free(q)


@pytest.mark.parametrize("dtype", NATIVE + DESCRIBED, ids=str)
def test_every_dtype_in_every_layout(q: shmq.Queue, dtype: Any) -> None:
    base = sample(dtype, (6, 8, 5))
    for array in (
        np.asfortranarray(base),
        base.T,
        base[::2],
        base[:, ::-1],
        base[:, 1:3],
        base.transpose(1, 0, 2),
        np.broadcast_to(base[0, 0], (3, 5)),
    ):
        check_round_trip(q, array)
        q.put([array, array.T])
        a, b = q.get()
        assert_same_array(a, array)
        assert_same_array(b, array.T)
        del a, b
    assert free(q)


@pytest.mark.parametrize("shape", [(), (0,), (3,), (40, 50)], ids=str)
@pytest.mark.parametrize("which", EXTENDED)
def test_extension_dtypes(q: shmq.Queue, which: str, shape: tuple[int, ...]) -> None:
    ml_dtypes = pytest.importorskip("ml_dtypes")
    dtype = np.dtype(getattr(ml_dtypes, which))
    count = math.prod(shape)
    array = (np.arange(count * dtype.itemsize) % 256).astype("u1").view(dtype).reshape(shape)
    layouts = [array, array.T, np.asfortranarray(array), array[..., ::-1] if shape else array]
    for each in layouts:
        for message in (each, [each, 1]):
            q.put(message)
            got = q.get()
            assert_same_array(got if isinstance(message, np.ndarray) else got[0], each)
            del got
    assert free(q)


@pytest.mark.parametrize("which", ["int4", "uint2", "float8_e3m4", "float4_e2m1fn"])
def test_extension_dtypes_without_a_number_are_refused(q: shmq.Queue, which: str) -> None:
    ml_dtypes = pytest.importorskip("ml_dtypes")
    array = np.zeros(4, getattr(ml_dtypes, which))
    for message in (array, [array], array[:1].reshape(())):
        with pytest.raises(shmq.Unencodable, match=which):
            q.put(message)
    assert q.empty()


@pytest.mark.parametrize("which", EXTENDED)
def test_extension_scalars(q: shmq.Queue, which: str) -> None:
    ml_dtypes = pytest.importorskip("ml_dtypes")
    kind = getattr(ml_dtypes, which)
    for message in (kind(2), [kind(2)]):
        q.put(message)
        got = q.get()
        got = got[0] if isinstance(got, list) else got
        assert type(got) is kind
        assert float(got) == 2


@pytest.mark.parametrize(
    "dtype", [*NATIVE, "f16", "M8[s]", "m8[D]", "S4", "U4", [("a", "i4"), ("b", "M8[s]")]], ids=str
)
def test_numpy_scalars_stay_scalars(q: shmq.Queue, dtype: Any) -> None:
    scalar = sample(dtype, (1,))[0]
    for copy in (False, True):
        q.put([scalar])
        (got,) = q.get(copy=copy)
        assert type(got) is type(scalar)
        assert same_bytes(np.asarray(got), np.asarray(scalar))
        if not isinstance(scalar, bytes):  # bytes subclasses arrive as bytes
            q.put(scalar)
            got = q.get(copy=copy)
            assert type(got) is type(scalar)
            assert got.dtype == scalar.dtype
            assert same_bytes(np.asarray(got), np.asarray(scalar))


@pytest.mark.parametrize("ndim", [0, 1, 2, 10, 11, 12, 20, 32, 64])
@pytest.mark.parametrize("side", [1, 0])
def test_any_number_of_axes(q: shmq.Queue, ndim: int, side: int) -> None:
    try:
        array = np.full((1,) * max(ndim - 1, 0) + (side,) * min(ndim, 1), 7, "i2")
    except ValueError:
        pytest.skip(f"this numpy has no {ndim} axes")
    assert array.ndim == ndim
    check_round_trip(q, array)
    check_round_trip(q, array.T)
    q.put([array])
    assert_same_array(q.get()[0], array)


def test_many_axes_without_order(q: shmq.Queue) -> None:
    array = np.arange(2**13, dtype="u2").reshape((2,) * 13)
    for each in (array, array.T, array.transpose(3, 1, 0, 2, *range(4, 13)), array[..., ::-1]):
        check_round_trip(q, each)


@pytest.mark.parametrize("size", [1024 - 1, 1024, 1024 + 1, PAGE - 1, PAGE, PAGE + 1, 1 << 20])
def test_every_size(q: shmq.Queue, size: int) -> None:
    check_round_trip(q, sample("u1", (size,)))
    check_round_trip(q, np.repeat(sample("u1", (size,)), 2)[::2])
    assert free(q)


# ---- order ----


def test_dense_arrays_keep_their_order(q: shmq.Queue) -> None:
    for size in (3, 300):
        c = sample("f8", (size, 4))
        for copy in (False, True):
            for array, order in ((c, "C"), (np.asfortranarray(c), "F"), (c.T, "F"), (c[:, ::2], "C")):
                for message in (array, [array]):
                    q.put(message)
                    got = q.get(copy=copy)
                    got = got[0] if isinstance(got, list) else got
                    assert_same_array(got, array)
                    assert got.flags.c_contiguous == (order == "C"), (array.shape, order, copy)
                    assert got.flags.f_contiguous == (order == "F"), (array.shape, order, copy)
                    del got


# ---- kinds of arrays ----


def test_read_only_arrays(q: shmq.Queue) -> None:
    array = sample("f4", (50, 50))
    array.flags.writeable = False
    check_round_trip(q, array)
    check_round_trip(q, np.frombuffer(b"12345678" * 500, "f8"))
    check_round_trip(q, np.broadcast_to(np.float32(1), (40, 40)))


def test_unaligned_arrays(q: shmq.Queue) -> None:
    for size in (3, 3000):
        array = np.frombuffer(b"x" + bytes(8 * size), "f8", offset=1, count=size)
        assert not array.flags.aligned
        q.put(array)
        got = q.get()
        assert_same_array(got, array)
        assert got.flags.aligned


def test_memmap(q: shmq.Queue, tmp_path: Path) -> None:
    mapped = np.memmap(tmp_path / "file", "f8", "w+", shape=(100, 30))
    mapped[:] = sample("f8", (100, 30))
    for array in (mapped, mapped[::2], mapped[0], mapped.T):
        for message in (array, {"m": array}):
            q.put(message)
            got = q.get()
            assert_same_array(got["m"] if isinstance(got, dict) else got, np.asarray(array))


class Subclass(np.ndarray):
    pass


def test_subclasses_arrive_as_plain_arrays(q: shmq.Queue) -> None:
    base = sample("i4", (40, 10))
    for array in (base.view(Subclass), base.view(Subclass)[::2], base.view(Subclass).T):
        for message in (array, [array]):
            q.put(message)
            got = q.get()
            assert_same_array(got[0] if isinstance(got, list) else got, np.asarray(array))


def test_record_arrays_arrive_as_structured_arrays(q: shmq.Queue) -> None:
    records = np.rec.array([(1, 2.5), (3, 4.5)], dtype=[("a", "i4"), ("b", "f8")])
    for message in (records, [records], records[0], [records[1:]]):
        q.put(message)
        got = q.get()
        got = got[0] if isinstance(got, list) else got
        assert np.atleast_1d(got)["b"][-1] in (2.5, 4.5)
        assert got.dtype.names == ("a", "b")


def test_dtype_metadata_is_no_obstacle(q: shmq.Queue) -> None:
    """It does not travel, and no warning that speaks of .npy files comes of it."""
    for dtype in (">i4", "M8[s]", "i4"):
        q.put(np.zeros(3, np.dtype(dtype, metadata={"unit": "m"})))
        assert q.get().dtype == np.dtype(dtype)


def test_masked_and_object_arrays_are_refused(q: shmq.Queue) -> None:
    masked = np.ma.array([1, 2], mask=[0, 1])
    for message in (masked, [masked], {"a": {"b": masked}}):
        with pytest.raises(shmq.Unencodable, match="mask"):
            q.put(message)
    for array in (
        np.array([1, "a", None], object),
        np.zeros(2, [("a", "i4"), ("b", "O")]),
        np.array(["text"], getattr(np.dtypes, "StringDType", lambda: object)()),
    ):
        for message in (array, [array], array[::-1]):
            with pytest.raises(shmq.Unencodable, match="object"):
                q.put(message)
    assert q.empty()
    assert free(q)


def test_overlapping_fields_are_refused(q: shmq.Queue) -> None:
    overlapping = np.dtype({"names": ["a", "b"], "formats": ["i4", "i4"], "offsets": [0, 2]})
    for message in (np.zeros(3, overlapping), [np.zeros(3, overlapping)]):
        with pytest.raises(shmq.Unencodable, match="field"):
            q.put(message)


def test_zero_bytes_per_item(q: shmq.Queue) -> None:
    for dtype in ("V0", np.dtype([])):
        for shape in ((3,), (2, 3)):
            array = np.zeros(shape, dtype)
            for each in (array, array.T, array[::-1], [array]):
                q.put(each)
                got = q.get()
                got = got[0] if isinstance(got, list) else got
                assert got.shape == (each[0] if isinstance(each, list) else each).shape
                assert got.dtype == np.dtype(dtype)


class Exporter:
    """Not an array, but tells where one lies."""

    def __init__(self, array: np.ndarray) -> None:
        self.array = array

    @property
    def __array_interface__(self) -> dict[str, Any]:
        return self.array.__array_interface__


class DLPack:
    def __init__(self, array: np.ndarray) -> None:
        self.array = array

    def __dlpack__(self, **arguments: Any) -> Any:
        return self.array.__dlpack__(**arguments)

    def __dlpack_device__(self) -> Any:
        return self.array.__dlpack_device__()


class OnADevice:
    def __dlpack__(self, **arguments: Any) -> Any:
        raise BufferError("the data is on the moon")

    def __dlpack_device__(self) -> Any:
        return (2, 0)


@pytest.mark.parametrize("size", [3, 3000])
@pytest.mark.parametrize("exporter", [Exporter, DLPack])
def test_exporters(q: shmq.Queue, exporter: Any, size: int) -> None:
    array = sample("f4", (size, 2))
    for each in (array, array.T, array[::2]):
        for message in (exporter(each), {"x": [exporter(each)]}):
            q.put(message)
            got = q.get()
            assert_same_array(got["x"][0] if isinstance(got, dict) else got, each)
            del got


def test_exporters_elsewhere_are_refused(q: shmq.Queue) -> None:
    for message in (OnADevice(), [OnADevice()]):
        with pytest.raises(shmq.Unencodable, match=r"OnADevice.*CPU"):
            q.put(message)


def test_views_are_exported_through_dlpack(q: shmq.Queue) -> None:
    q.put(sample("f4", (100, 50)))
    view = q.get()
    other = np.from_dlpack(view)
    assert other.ctypes.data == view.ctypes.data
    del view
    gc.collect()
    assert q.stats().pages["leased"] == 1  # the capsule's consumer keeps the lease
    assert_same_array(other.copy(), sample("f4", (100, 50)))
    del other
    assert free(q)


# ---- the table itself ----


def test_numbers_and_dtypes_are_one_to_one() -> None:
    numbers = [tensor.dtype_number(np.dtype(d)) for d in NATIVE]
    assert sorted(numbers) == list(range(lib.SHMQ_BOOL, lib.SHMQ_COMPLEX128 + 1))
    for number in range(1, 21):
        meta = tensor.pack_meta(number, "F", (2, 3), 1)
        spec = tensor.unpack_meta(meta)
        assert (spec.number, spec.order, spec.shape, spec.flags) == (number, "F", (2, 3), 1)
