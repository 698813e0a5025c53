"""Arrays in and out: dtypes, layouts, torch, DLPack, loans; and views own the memory that they show."""

import contextlib
import gc
import math
import threading
import time
import warnings
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from shmq._core import lib

import shmq
from shmq import tensor


@pytest.fixture
def ring_kind() -> str:
    return "spsc"  # what is tested here lies above the ring


Make = Callable[..., shmq.Queue]
PAGE = 16 << 10
LONG = (np.longdouble, np.clongdouble)

NATIVE = ["bool", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8", "c8", "c16"]
DESCRIBED = [
    *(
        order + kind
        for order in "<>"
        for kind in ["i2", "i4", "i8", "u2", "u4", "u8", "f2", "f4", "f8", "c8", "c16"]
    ),
    *("f16", ">f16", "c32", "longlong", "ulonglong", "intp"),
    *("M8", "M8[ns]", "M8[D]", ">M8[us]", "M8[25s]", "m8[ms]", ">m8[Y]", "m8"),
    *("S1", "S7", "U1", "U7", ">U3", "V1", "V9"),
    [("a", "i4"), ("b", "f8")],
    [("a", ">i2"), ("b", [("c", "M8[s]"), ("d", "S3")], (2, 3))],
    np.dtype([("a", "u1"), ("b", "f8")], align=True),
    np.dtype({"names": ["x", "y"], "formats": ["i2", "f4"], "offsets": [4, 12], "itemsize": 24}),
    [(("title", "a"), "i4")],
    np.dtype([]),
    [("tiny", "V0"), ("n", "i4")],
]
EXTENDED = [
    "bfloat16",
    "float8_e4m3fn",
    "float8_e5m2",
    "float8_e4m3fnuz",
    "float8_e5m2fnuz",
    "float8_e8m0fnu",
]


def sample(dtype: Any, shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    """An array whose bytes are random where any bytes are a value, else counts up."""
    dtype = np.dtype(dtype)
    count = math.prod(shape)
    if dtype.itemsize == 0:
        return np.zeros(shape, dtype)
    if dtype.kind in "US":
        return np.array([str(i) for i in range(count)], object).astype(dtype).reshape(shape)
    if dtype.type in LONG:  # any bytes are no value, and some of them are padding
        return (np.arange(count) + 0.5).astype(dtype).reshape(shape)
    if dtype.kind == "b":
        return (np.arange(count) % 2 == 0).reshape(shape)
    if dtype.names is not None:
        array = np.zeros(shape, dtype)
        for i, field in enumerate(dtype.names):
            array[field] = sample(dtype[field].base, array[field].shape, seed + i)
        return array
    raw = np.random.default_rng(seed).bytes(count * dtype.itemsize)
    return np.frombuffer(raw, dtype).reshape(shape).copy()


def assert_same_array(got: Any, want: np.ndarray) -> None:
    assert type(got) is np.ndarray
    assert got.dtype == want.dtype
    assert got.dtype.byteorder == want.dtype.byteorder
    assert got.shape == want.shape
    assert same_bytes(got, want)


def same_bytes(a: np.ndarray, b: np.ndarray) -> bool:
    """Equal bit by bit, except for padding."""
    if a.dtype.names is not None:
        return all(same_bytes(a[field], b[field]) for field in a.dtype.names)
    return bool((a == b).all()) if a.dtype.type in LONG else a.tobytes() == b.tobytes()


def check_round_trip(q: shmq.Queue, array: np.ndarray, how: str = "get") -> Any:
    q.put(array)
    if how == "many":
        (got,) = q.get_many(2)
    else:
        got = q.get(copy=how == "copy")
    assert_same_array(got, np.asarray(array))
    assert got.flags.writeable
    assert got.flags.aligned or not array.flags.aligned
    return got


def free(q: shmq.Queue) -> bool:
    """True if every page of the arena is free."""
    pages = q.stats().pages
    return pages["free"] == sum(pages.values())


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


def leased(q: shmq.Queue) -> int:
    return q.stats().pages["leased"]


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


# ---- torch ----

torch_dtypes = [
    "bool",
    "uint8",
    "uint16",
    "uint32",
    "uint64",
    "int8",
    "int16",
    "int32",
    "int64",
    "float16",
    "float32",
    "float64",
    "complex64",
    "complex128",
    "bfloat16",
    "float8_e4m3fn",
    "float8_e5m2",
    "float8_e4m3fnuz",
    "float8_e5m2fnuz",
    "float8_e8m0fnu",
]


@pytest.fixture(scope="module")
def torch() -> Any:
    return pytest.importorskip("torch")


def torch_sample(torch: Any, dtype: str, *shape: int) -> Any:
    kind = getattr(torch, dtype)
    if dtype == "bool":
        return torch.arange(math.prod(shape)).reshape(shape) % 2 == 0
    raw = torch.arange(math.prod(shape) * kind.itemsize, dtype=torch.int64).to(torch.uint8) % 120
    return raw.view(kind).reshape(shape)


def torch_bytes(torch: Any, tensor: Any) -> bytes:
    return (
        tensor.contiguous().view(torch.uint8).numpy().tobytes()
        if tensor.dim()
        else torch_bytes(torch, tensor[None])
    )


@pytest.mark.parametrize("shape", [(), (0,), (3, 2), (40, 50)], ids=str)
@pytest.mark.parametrize("dtype", torch_dtypes)
def test_torch_tensors_of_every_dtype(q: shmq.Queue, torch: Any, dtype: str, shape: tuple[int, ...]) -> None:
    if not hasattr(torch, dtype):
        pytest.skip(f"this torch has no {dtype}")
    sent = torch_sample(torch, dtype, *shape)
    for copy in (False, True):
        for message in (sent, {"x": [sent]}):
            q.put(message)
            got = q.get(copy=copy)
            got = got["x"][0] if isinstance(got, dict) else got
            assert isinstance(got, torch.Tensor)
            assert got.dtype == sent.dtype
            assert got.shape == sent.shape
            assert torch_bytes(torch, got) == torch_bytes(torch, sent)
            assert not got.requires_grad
            assert leased(q) == (math.prod(shape) * sent.dtype.itemsize > 1024 and not copy)
            del got
    assert free(q)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float8_e4m3fn"])
def test_torch_layouts(q: shmq.Queue, torch: Any, dtype: str) -> None:
    base = torch_sample(torch, dtype, 40, 30)
    for sent in (base.T, base[::2], base[:, 1:3], base[0].expand(4, 30), base.permute(1, 0)[3:]):
        q.put(sent)
        got = q.get()
        assert got.dtype == sent.dtype
        assert torch_bytes(torch, got) == torch_bytes(torch, sent)
        if sent.T.is_contiguous():
            assert got.stride() == sent.stride()
        del got
    assert free(q)


def test_torch_conjugates_and_negatives(q: shmq.Queue, torch: Any) -> None:
    z = torch.tensor([1 + 2j, 3 - 4j])
    for sent in (z.conj(), z.conj().imag, z.imag, z.real):
        q.put(sent)
        assert torch.equal(q.get(), sent.resolve_conj().resolve_neg())


def test_torch_gradients_and_parameters(q: shmq.Queue, torch: Any) -> None:
    for sent in (
        torch.ones(300, requires_grad=True),
        torch.nn.Parameter(torch.ones(3)),
        torch.ones(3, requires_grad=True) * 2,
    ):
        q.put(sent)
        got = q.get()
        assert type(got) is torch.Tensor
        assert not got.requires_grad
        assert torch.equal(got, sent.detach())


@pytest.mark.parametrize("layout", ["sparse", "csr", "meta", "quantized"])
def test_torch_tensors_that_do_not_travel(q: shmq.Queue, torch: Any, layout: str) -> None:
    dense = torch.eye(4)
    make_one: dict[str, tuple[Callable[[], Any], str]] = {
        "sparse": (dense.to_sparse, "to_dense"),
        "csr": (dense.to_sparse_csr, "to_dense"),
        "meta": (lambda: torch.empty(3, device="meta"), r"meta.*\.cpu\(\)"),
        "quantized": (lambda: torch.quantize_per_tensor(dense, 0.1, 0, torch.qint8), "travel"),
    }
    maker, word = make_one[layout]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch warns that some of these are beta
            sent = maker()
    except (RuntimeError, NotImplementedError) as e:
        pytest.skip(f"this torch makes none: {e}")
    for message in (sent, [sent]):
        with pytest.raises(shmq.Unencodable, match=word):
            q.put(message)
    assert q.empty()
    assert free(q)


def test_torch_tensors_of_a_gpu_do_not_travel(q: shmq.Queue, torch: Any) -> None:
    if not torch.cuda.is_available():
        pytest.skip("needs a GPU")
    with pytest.raises(shmq.Unencodable, match=r"cuda.*\.cpu\(\)"):
        q.put(torch.ones(3, device="cuda"))


@pytest.mark.parametrize("arrays", ["auto", "numpy", "torch"])
def test_what_arrays_arrive_as(make: Make, torch: Any, arrays: Any) -> None:
    q = make(arrays=arrays)
    kinds = {"auto": (np.ndarray, torch.Tensor), "numpy": (np.ndarray,) * 2, "torch": (torch.Tensor,) * 2}[
        arrays
    ]
    for size in (3, 3000):
        for message in (np.ones(size, "f4"), [np.ones(size, "f4")]):
            q.put(message)
            got = q.get()
            got = got[0] if isinstance(got, list) else got
            assert type(got) is kinds[0]
            del got
        q.put(torch.ones(size, dtype=torch.bfloat16))
        got = q.get()
        assert type(got) is kinds[1]
        assert "bfloat16" in str(got.dtype)
        del got
    assert free(q)


def test_a_dtype_that_torch_has_not_loses_nothing(make: Make, torch: Any) -> None:
    q = make(arrays="torch")
    want = np.array(["2024-01-01"], "M8[s]")
    for message in (want, [want]):
        q.put(message)
        with pytest.raises(shmq.DecodeError) as caught:
            q.get()
        assert want.tobytes() in caught.value.payload


def test_torch_views_own_their_lease(q: shmq.Queue, torch: Any) -> None:
    q.put(torch.ones(100, 100))
    got = q.get()
    part = got[5:7].T
    array = part.numpy()
    del got, part
    gc.collect()
    assert leased(q) == 1
    array[:] = 2
    del array
    gc.collect()
    assert free(q)


def test_torch_takes_numpy_views_and_the_other_way(q: shmq.Queue, torch: Any) -> None:
    q.put(np.ones((100, 100), "f4"))
    view = q.get()
    address = view.ctypes.data
    tensor = torch.from_dlpack(view)
    assert tensor.data_ptr() == address
    del view
    gc.collect()
    assert leased(q) == 1
    del tensor
    gc.collect()
    assert free(q)
    q.put(torch.ones(100, 100))
    array = np.from_dlpack(q.get())
    gc.collect()
    assert leased(q) == 1
    del array
    gc.collect()
    assert free(q)


@pytest.mark.parametrize("dtype", torch_dtypes)
@pytest.mark.parametrize("spelled", ["torch", "name"])
def test_torch_loans(q: shmq.Queue, torch: Any, dtype: str, spelled: str) -> None:
    if not hasattr(torch, dtype):
        pytest.skip(f"this torch has no {dtype}")
    kind = getattr(torch, dtype)
    with q.loan((30, 20), kind if spelled == "torch" else dtype) as loan:
        tensor = loan.torch()
        assert tensor.dtype == kind
        assert tensor.shape == (30, 20)
        assert tensor.data_ptr() == loan.array.ctypes.data
        tensor.copy_(torch_sample(torch, dtype, 30, 20))
        del tensor
    got = q.get()
    assert isinstance(got, torch.Tensor)
    assert got.dtype == kind
    assert torch_bytes(torch, got) == torch_bytes(torch, torch_sample(torch, dtype, 30, 20))


def test_torch_loans_come_as_torch_without_a_look(q: shmq.Queue, torch: Any) -> None:
    with q.loan(5, torch.float32) as loan:
        loan.array[:] = 1
    assert torch.equal(q.get(), torch.ones(5))
    with q.loan(5, "float32") as loan:
        loan.array[:] = 1
    assert type(q.get()) is np.ndarray


def test_a_model_writes_into_a_loan(q: shmq.Queue, torch: Any) -> None:
    a, b = torch.ones(20, 30), torch.ones(30, 40)
    with q.loan((20, 40), torch.float32) as loan:
        torch.matmul(a, b, out=loan.torch())
    assert torch.equal(q.get(), a @ b)


# ---- the table itself ----


def test_numbers_and_dtypes_are_one_to_one() -> None:
    numbers = [tensor.dtype_number(np.dtype(d)) for d in NATIVE]
    assert sorted(numbers) == list(range(lib.SHMQ_BOOL, lib.SHMQ_COMPLEX128 + 1))
    for number in range(1, 21):
        meta = tensor.pack_meta(number, "F", (2, 3), 1)
        spec = tensor.unpack_meta(meta)
        assert (spec.number, spec.order, spec.shape, spec.flags) == (number, "F", (2, 3), 1)
