"""Arrays of every dtype, and what tests of arrays ask of them."""

import math
from typing import Any

import numpy as np

import shmq

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


def leased(q: shmq.Queue) -> int:
    return q.stats().pages["leased"]
