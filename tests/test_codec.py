"""What travels, as what it arrives, what is refused; and nothing from the wire is executed."""

import dataclasses
import datetime
import decimal
import enum
import math
import os
import pickle
import re
import struct
import uuid
from collections import OrderedDict, defaultdict, deque, namedtuple
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any

import hypothesis
import hypothesis.extra.numpy as hnp
import msgspec
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from shmq._core import lib

import shmq
from shmq import codec


@pytest.fixture
def ring_kind() -> str:
    return "spsc"  # what is tested here lies above the ring


Make = Callable[..., shmq.Queue]

PICKLED, ENVELOPE, TENSOR, MSGPACK = lib.SHMQ_PICKLE, lib.SHMQ_ENVELOPE, lib.SHMQ_TENSOR, lib.SHMQ_MSGPACK


def put_as(q: shmq.Queue, codec: int, payload: bytes) -> None:
    """Puts a payload under any codec number, as a foreign or hostile producer could."""
    assert lib.py_put_as(q._c, False, codec, payload, len(payload), 0) == 0


@pytest.fixture(scope="module")
def wire() -> Iterator[shmq.Queue]:
    """One queue for a whole Hypothesis run: every example takes out what it put in."""
    with shmq.Queue(ring_bytes=1 << 16, arena_bytes=8 << 20) as q:
        yield q


def round_trip(q: shmq.Queue, obj: Any, **how: Any) -> Any:
    assert q.empty()
    q.put(obj, timeout=30)
    try:
        return q.get(timeout=30, **how)
    finally:
        while q.qsize():
            q.get()


def assert_same(got: Any, want: Any) -> None:
    """Equal in value and in type; arrays in dtype and shape as well; NaN equals NaN."""
    if isinstance(want, (np.ndarray, np.generic)):
        assert type(got) is type(want)
        assert got.dtype == want.dtype
        assert got.shape == want.shape
        assert got.tobytes() == np.asarray(want).tobytes()
    elif isinstance(want, float) and math.isnan(want):
        assert isinstance(got, float)
        assert math.isnan(got)
    elif isinstance(want, (list, tuple)):
        assert type(got) is list
        assert len(got) == len(want)
        for a, b in zip(got, want, strict=True):
            assert_same(a, b)
    elif isinstance(want, dict):
        assert type(got) is dict
        assert list(got) == list(want)
        for key in want:
            assert_same(got[key], want[key])
    elif isinstance(want, (bytes, bytearray, memoryview)):
        assert type(got) is bytes
        assert got == bytes(want)
    else:
        assert type(got) is type(want)
        assert got == want


# ---- every type ----

Point = namedtuple("Point", "x y")


class Colour(enum.Enum):
    RED = "red"


class Number(enum.IntEnum):
    ONE = 1


@dataclasses.dataclass
class Step:
    step: int
    tokens: Any
    note: str = ""


@dataclasses.dataclass(frozen=True, slots=True)
class Frozen:
    a: Any


class Job(msgspec.Struct):
    step: int
    tokens: Any
    note: str = ""


class Tagged(msgspec.Struct, tag=True, array_like=True):
    a: int


class Text(str):
    __slots__ = ()


class Bytes(bytes):
    pass


def label(value: Any) -> str:
    """For test ids: without an address, so that it is the same in every process."""
    return f"{type(value).__name__} {re.sub(' at 0x[0-9a-f]+', '', repr(value))[:30]}"


ARRIVES: list[tuple[Any, Any]] = [
    (b"", b""),
    (b"\x00\xff" * 3, b"\x00\xff" * 3),
    (bytearray(b"abc"), b"abc"),
    (bytearray(), b""),
    (memoryview(b"abcdef"), b"abcdef"),
    (memoryview(b"abcdef")[::2], b"ace"),
    (memoryview(b"abcdef")[::-1], b"fedcba"),
    (memoryview(np.arange(4, dtype="i4")), np.arange(4, dtype="i4").tobytes()),
    (Bytes(b"sub"), b"sub"),
    (None, None),
    (True, True),
    (False, False),
    (0, 0),
    (-(2**63), -(2**63)),
    (2**64 - 1, 2**64 - 1),
    (1.5, 1.5),
    (-0.0, -0.0),
    (math.inf, math.inf),
    ("", ""),
    ("héllo \U0001f600 \x00", "héllo \U0001f600 \x00"),
    (Text("sub"), "sub"),
    ([], []),
    ((), []),
    ((1, (2, 3)), [1, [2, 3]]),
    (Point(1, 2), [1, 2]),
    ({}, {}),
    (
        {"a": 1, 2: "b", None: 3, b"k": 4, 1.5: 5, True: 6},
        {"a": 1, 2: "b", None: 3, b"k": 4, 1.5: 5, True: 6},
    ),
    (OrderedDict(b=1, a=2), {"b": 1, "a": 2}),
    (defaultdict(int, a=1), {"a": 1}),
    ([b"x", bytearray(b"y"), memoryview(b"z")], [b"x", b"y", b"z"]),
    (Step(1, [2, 3]), {"step": 1, "tokens": [2, 3], "note": ""}),
    (Frozen({"x": 1}), {"a": {"x": 1}}),
    (Job(1, None, "n"), {"step": 1, "tokens": None, "note": "n"}),
    (Tagged(4), ["Tagged", 4]),
    (
        [Step(1, Job(2, Frozen(3)))],
        [{"step": 1, "tokens": {"step": 2, "tokens": {"a": 3}, "note": ""}, "note": ""}],
    ),
    (Number.ONE, 1),
    (Colour.RED, "red"),
]


@pytest.mark.parametrize("many", [False, True], ids=["one", "many"])
@pytest.mark.parametrize(("sent", "arrives"), ARRIVES, ids=label)
def test_what_arrives(q: shmq.Queue, sent: Any, arrives: Any, many: bool) -> None:
    if many:
        q.put_many([sent, sent])
        got = q.get_many(5)
        assert len(got) == 2
        assert_same(got[0], arrives)
        assert_same(got[1], arrives)
    else:
        assert_same(round_trip(q, sent), arrives)


@pytest.mark.parametrize("size", [0, 1, 7, 8, 9, 8191, 8192, 8193, 16383, 16384, 16385, 100_000, 1 << 20])
@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_bytes_of_every_size(q: shmq.Queue, size: int, kind: Any) -> None:
    payload = (b"0123456789abcdefg" * (size // 17 + 1))[:size]
    assert_same(round_trip(q, kind(payload)), payload)


def test_memoryview_arrives_as_bytes_of_it_do(q: shmq.Queue) -> None:
    for array in (np.arange(6, dtype="u1").reshape(2, 3), np.arange(24, dtype="i2").reshape(2, 3, 4)):
        for view in (memoryview(array), memoryview(np.asfortranarray(array)), memoryview(array.T)):
            assert round_trip(q, view) == bytes(view)


def test_what_was_put_may_change_afterwards(q: shmq.Queue) -> None:
    buffer = bytearray(b"a" * 10)
    large = bytearray(b"a" * 100_000)
    array = np.zeros(1000)
    for obj in (buffer, large, array, {"a": array}):
        q.put(obj)
    buffer[:] = b"b" * 10
    buffer.extend(b"no export is left")
    large[:] = b"b" * 100_000
    large.clear()
    array[:] = 1
    assert q.get() == b"a" * 10
    assert q.get() == b"a" * 100_000
    assert not q.get().any()
    assert not q.get()["a"].any()


# ---- nested messages with arrays anywhere ----

scalars = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats()
    | st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
    | st.binary(max_size=50)
    | st.binary(min_size=9000, max_size=9010)
)
dtypes = (
    hnp.boolean_dtypes()
    | hnp.integer_dtypes(endianness="?")
    | hnp.unsigned_integer_dtypes(endianness="?")
    | hnp.floating_dtypes(endianness="?")
    | hnp.complex_number_dtypes(endianness="?")
    | hnp.datetime64_dtypes(endianness="?")
    | hnp.timedelta64_dtypes(endianness="?")
    | hnp.byte_string_dtypes(min_len=1, max_len=5)
    | hnp.unicode_string_dtypes(min_len=1, max_len=5)
)


@st.composite
def arrays(draw: Any) -> np.ndarray:
    dtype = draw(dtypes | hnp.array_dtypes(dtypes, max_size=3))
    shape = draw(hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=6))
    count = math.prod(shape)
    data = draw(st.binary(min_size=count * dtype.itemsize, max_size=count * dtype.itemsize))
    if dtype.kind == "U" or dtype.names:  # any bytes are not any code points
        array = np.zeros(shape, dtype)
    else:
        array = np.frombuffer(data, dtype).reshape(shape) if dtype.itemsize else np.zeros(shape, dtype)
    how = draw(st.sampled_from(["C", "F", "T", "step", "back", "large"]))
    if how == "F":
        array = np.asfortranarray(array)
    elif how == "T":
        array = array.T
    elif how == "step" and array.ndim:
        array = np.repeat(array, 2, axis=0)[::2]
    elif how == "back" and array.ndim:
        array = array[..., ::-1]
    elif how == "large" and array.size:
        array = np.resize(array, (4096 // array.itemsize + 1, 3))
    return array


keys = st.text(st.characters(exclude_categories=["Cs"]), max_size=5) | st.integers(-5, 5)
messages = st.recursive(
    scalars | arrays(),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.tuples(inner, inner)
        | st.dictionaries(keys, inner, max_size=4)
        | st.builds(Frozen, inner)
    ),
    max_leaves=12,
)


def arrived(obj: Any) -> Any:
    """What a message is expected to arrive as."""
    if isinstance(obj, (list, tuple)):
        return [arrived(part) for part in obj]
    if isinstance(obj, dict):
        return {key: arrived(part) for key, part in obj.items()}
    if isinstance(obj, Frozen):
        return {"a": arrived(obj.a)}
    return obj


@given(message=messages, copy=st.booleans())
def test_any_message_round_trips(wire: shmq.Queue, message: Any, copy: bool) -> None:
    got = round_trip(wire, message, copy=copy)
    assert_same(got, arrived(message))
    del got
    assert wire.stats().pages["leased"] == 0


@hypothesis.settings(max_examples=hypothesis.settings().max_examples // 4)
@given(batch=st.lists(messages, min_size=1, max_size=5))
def test_any_batch_round_trips(wire: shmq.Queue, batch: list[Any]) -> None:
    assert wire.put_many(batch, timeout=30) == len(batch)
    got: list[Any] = []
    while len(got) < len(batch):
        got += wire.get_many(len(batch), timeout=30)
    assert wire.empty()
    for a, b in zip(got, batch, strict=True):
        assert_same(a, arrived(b))


def test_the_same_array_twice(q: shmq.Queue) -> None:
    array = np.arange(300)
    got = round_trip(q, {"a": array, "b": [array, array]})
    for part in (got["a"], *got["b"]):
        np.testing.assert_array_equal(part, array)


@pytest.mark.parametrize("count", [1, 2, 100, 2000])
def test_many_arrays_in_one_message(make: Make, count: int) -> None:
    q = make(arena_bytes=8 << 20)
    got = round_trip(q, [np.full(i % 7, i) for i in range(count)])
    assert [(len(a), set(a.tolist())) for a in got] == [
        (i % 7, {i} if i % 7 else set()) for i in range(count)
    ]


def test_arrays_in_a_message_are_aligned(q: shmq.Queue) -> None:
    for array in round_trip(q, [np.zeros(3, "u1"), np.zeros(700), np.zeros(1, "c16"), np.zeros(300, "f4")]):
        assert array.ctypes.data % 64 == 0
        assert array.flags.writeable


def test_user_extensions_beside_arrays(q: shmq.Queue) -> None:
    for code in (0, 5, -7, 112):
        ext = msgspec.msgpack.Ext(code, b"mine")
        for message in ([ext], [ext, np.arange(3)]):
            got = round_trip(q, message)
            assert (got[0].code, bytes(got[0].data)) == (code, b"mine")


def test_a_users_extension_is_never_taken_for_an_array(q: shmq.Queue) -> None:
    """Whatever number stands for arrays: a user's object arrives as it is, or is refused."""
    for code in {*range(-128, 128)} - {-1}:  # -1 is msgpack's own, the time
        ext = msgspec.msgpack.Ext(code, b"\x00\x00\x00\x00")
        try:
            q.put([ext, np.arange(3)])
        except shmq.Unencodable:
            continue
        got = q.get()
        assert isinstance(got[0], msgspec.msgpack.Ext), code
        assert (got[0].code, bytes(got[0].data)) == (code, b"\x00\x00\x00\x00")


# ---- typed ----


class WithArray(msgspec.Struct):
    step: int
    tokens: np.ndarray


class WithHint(msgspec.Struct):
    step: int
    tokens: npt.NDArray[np.int64]


class WithBounds(msgspec.Struct):
    step: Annotated[int, msgspec.Meta(ge=0)]
    tokens: np.ndarray | None = None


@dataclasses.dataclass
class TypedStep:
    step: int
    tokens: np.ndarray


@pytest.mark.parametrize("size", [3, 3000])
@pytest.mark.parametrize("kind", [WithArray, WithHint, WithBounds, TypedStep])
def test_typed_messages(make: Make, kind: Any, size: int) -> None:
    q = make(type=kind)
    got = round_trip(q, kind(7, np.arange(size)))
    assert type(got) is kind
    assert got.step == 7
    np.testing.assert_array_equal(got.tokens, np.arange(size))
    assert got.tokens.flags.writeable


@pytest.mark.parametrize(
    ("kind", "sent", "arrives"),
    [
        (list[Job], [Job(1, 2)], [Job(1, 2)]),
        (Job | None, None, None),
        (tuple[int, set[int]], (1, [2, 3]), (1, {2, 3})),
        (datetime.datetime, datetime.datetime(2024, 1, 2), datetime.datetime(2024, 1, 2)),
        (uuid.UUID, uuid.UUID(int=5), uuid.UUID(int=5)),
        (decimal.Decimal, decimal.Decimal("1.5"), decimal.Decimal("1.5")),
        (Colour, Colour.RED, Colour.RED),
        (Step, Step(1, [2]), Step(1, [2])),
    ],
    ids=repr,
)
def test_other_types(make: Make, kind: Any, sent: Any, arrives: Any) -> None:
    assert round_trip(make(type=kind), sent) == arrives


def test_typed_handles_still_get_bytes_and_arrays(make: Make) -> None:
    q = make(type=Job)
    assert round_trip(q, b"raw") == b"raw"
    np.testing.assert_array_equal(round_trip(q, np.arange(4)), np.arange(4))


class Raises(msgspec.Struct):
    a: int

    def __post_init__(self) -> None:
        raise {0: KeyError, 1: RuntimeError, 2: ValueError, 3: AssertionError, 4: AttributeError}[self.a](
            self.a
        )


@pytest.mark.parametrize("many", [False, True])
@pytest.mark.parametrize(
    "message", [{"step": "seven"}, [1], "text", None, {"step": 1, "tokens": np.arange(9)}]
)
def test_wrong_type_loses_nothing(make: Make, message: Any, many: bool) -> None:
    sender, receiver = make(), make(type=WithBounds)
    wrong = message if not isinstance(message, dict) or "tokens" not in message else {**message, "step": -1}
    sender.put(wrong)
    with pytest.raises(shmq.DecodeError) as caught:
        receiver.get_many(3) if many else receiver.get()
    assert caught.value.codec in (MSGPACK, ENVELOPE)
    if caught.value.codec == MSGPACK:
        assert_same(msgspec.msgpack.decode(caught.value.payload), wrong)
    else:
        assert np.arange(9).tobytes() in caught.value.payload
    assert "payload" in str(caught.value)
    assert receiver.empty()


@pytest.mark.parametrize("which", range(5))
@pytest.mark.parametrize("many", [False, True])
def test_a_constructor_that_raises_loses_nothing(make: Make, which: int, many: bool) -> None:
    """The message has left the queue when the user's type is built: every error must carry the payload."""
    sender, receiver = make(), make(type=Raises)
    sender.put({"a": which})
    with pytest.raises(shmq.DecodeError) as caught:
        receiver.get_many(3) if many else receiver.get()
    assert msgspec.msgpack.decode(caught.value.payload) == {"a": which}


def test_a_batch_with_a_bad_message_loses_nothing(make: Make) -> None:
    sender, receiver = make(), make(type=Job)
    sender.put_many([Job(1, 1), b"raw", {"step": "bad"}, Job(2, np.arange(3)), {"step": "worse"}, Job(3, 3)])
    with pytest.raises(shmq.DecodeError) as caught:
        receiver.get_many(10)
    first, raw, second, worse, third = caught.value.others
    assert (first, raw, third) == (Job(1, 1), b"raw", Job(3, 3))
    assert second.step == 2
    assert isinstance(worse, shmq.DecodeError)
    assert msgspec.msgpack.decode(caught.value.payload) == {"step": "bad"}
    assert msgspec.msgpack.decode(worse.payload) == {"step": "worse"}
    assert receiver.empty()


# ---- what cannot travel ----


class Unknown:
    pass


UNENCODABLE: list[Any] = [
    object(),
    Unknown(),
    Unknown,
    np.ndarray,
    lambda: 0,
    len,
    (x for x in ()),
    1j,
    2**64,
    -(2**63) - 1,
    [2**64],
    "\ud800",
    {"k": "\ud800"},
    [object()],
    {"a": [Unknown()]},
    {object(): 1},
    Frozen(object()),
    deque([1]),
    range(3),
    np.array([object()]),
    np.ma.array([1], mask=[1]),
    [np.array([object()])],
    {"a": np.ma.array([1], mask=[1])},
    np.array(["a"], dtype=object),
    np.zeros(2, [("a", "O")]),
]


@pytest.mark.parametrize("obj", UNENCODABLE, ids=label)
def test_what_cannot_travel_is_refused_whole(q: shmq.Queue, obj: Any) -> None:
    with pytest.raises(shmq.Unencodable) as caught:
        q.put(obj)
    assert len(str(caught.value)) > 20
    with pytest.raises(shmq.Unencodable) as counted:
        q.put_many([b"1", obj, b"2"])
    assert counted.value.done == 1  # type: ignore[attr-defined]
    assert q.get_many(5) == [b"1"]
    s = q.stats()
    assert s.pages["free"] == sum(s.pages.values())  # no page of it is left behind


def test_refusals_say_what_to_do(q: shmq.Queue) -> None:
    for obj, word in [
        (Unknown(), "Unknown"),
        (np.array([object()]), "object"),
        (np.ma.array([1], mask=[1]), "mask"),
        ([Unknown()], "allow_pickle"),
    ]:
        with pytest.raises(shmq.Unencodable, match=word):
            q.put(obj)


def test_nesting_without_end_is_an_error_and_no_crash(q: shmq.Queue) -> None:
    loop: list[Any] = []
    loop.append(loop)
    with pytest.raises(shmq.Unencodable):
        q.put(loop)
    nested: Any = 0
    for _ in range(100_000):
        nested = [nested]
    with pytest.raises(shmq.Unencodable):
        q.put(nested)
    put_as(q, MSGPACK, b"\x91" * 200_000 + b"\x00")
    with pytest.raises(shmq.DecodeError) as caught:
        q.get()
    assert len(caught.value.payload) == 200_001
    while nested:  # no recursion in the destructor either
        nested = nested.pop()


# ---- pickle: opt-in, by the receiver ----


class Executed:
    """Unpickling this makes a file."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (self.path,)


def test_pickle_needs_both_sides(make: Make) -> None:
    sender, receiver = make(allow_pickle=True), make(allow_pickle=True)
    for obj in (Unknown, 1j, 2**70, [{1j}], range(4), decimal.Decimal, slice(1, 2)):
        sender.put(obj)
        assert repr(receiver.get()) == repr(obj)


OBJECTS = [np.array([{"a": 1}]), [np.array([{"a": 1}])], np.ma.array([1, 2], mask=[0, 1])]


@pytest.mark.parametrize("obj", OBJECTS, ids=["objects", "nested", "masked"])
def test_with_pickle_on_both_sides_anything_else_travels(make: Make, obj: Any) -> None:
    sender, receiver = make(allow_pickle=True), make(allow_pickle=True)
    sender.put(obj)
    assert repr(receiver.get()) == repr(obj)


@pytest.mark.parametrize(
    "obj", [lambda: 0, (x for x in ()), [lambda: 0]], ids=["lambda", "generator", "nested"]
)
def test_what_pickle_refuses_is_unencodable_too(make: Make, obj: Any) -> None:
    q = make(allow_pickle=True)
    with pytest.raises(shmq.Unencodable):
        q.put(obj)
    assert q.empty()


def test_a_sender_that_pickles_convinces_nobody(make: Make, tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    sender, receiver = make(allow_pickle=True), make()
    sender.put(Executed(str(victim)))
    with pytest.raises(shmq.PickleRefused) as caught:
        receiver.get()
    assert not victim.exists()
    assert caught.value.codec == PICKLED
    assert b"mkdir" in caught.value.payload
    assert "allow_pickle" in str(caught.value)
    assert receiver.empty()  # it is in the error, not in the way


def test_no_payload_is_executed_under_any_codec_number(make: Make, tmp_path: Path, name: str) -> None:
    victim = tmp_path / "victim"
    body = pickle.dumps(Executed(str(victim)))
    q = make()
    # Every codec number and every flag a sender could set, and the same bytes as parts of other messages.
    disguises = [
        body,
        struct.pack("=II", 0, len(body)) + body,
        struct.pack("=II", len(body), 0) + body,
        bytes(96) + body,
        bytes([1, 67, 0, 254]) + bytes(92) + body,
        msgspec.msgpack.encode(msgspec.msgpack.Ext(113, body)),
        msgspec.msgpack.encode({"__reduce__": body, "$pickle": body}),
    ]
    for payload in disguises:
        for number in [*range(20), 255, 256, 0x7FFF, 0xFFFF]:
            put_as(q, number, payload)
            shmq.peek(name)
            try:
                got = q.get()
                assert not isinstance(got, Executed)
            except shmq.DecodeError as e:
                assert e.payload == payload  # noqa: PT017
                assert e.codec == number  # noqa: PT017
    assert not victim.exists()


def test_pickled_handles_carry_their_own_opt_in_only(make: Make, tmp_path: Path) -> None:
    """A handle says what its owner opted in to; the queue itself stores no such flag."""
    make(allow_pickle=True).put({1j})
    with pytest.raises(shmq.PickleRefused):
        pickle.loads(pickle.dumps(make())).get()


def test_broken_pickles_lose_nothing(make: Make) -> None:
    q = make(allow_pickle=True)
    for payload in (b"", b"garbage", pickle.dumps([1])[:-2], b"cno_such_module\nx\n."):
        put_as(q, PICKLED, payload)
        with pytest.raises(shmq.DecodeError) as caught:
            q.get()
        assert (caught.value.payload, caught.value.codec) == (payload, PICKLED)


# ---- what cannot be decoded ----


def test_unknown_codecs(q: shmq.Queue) -> None:
    for size in (0, 10, 100_000):
        put_as(q, 99, b"z" * size)
        with pytest.raises(shmq.DecodeError, match="99") as caught:
            q.get()
        assert (caught.value.payload, caught.value.codec) == (b"z" * size, 99)


def header(dtype: int, order: str, *shape: int, flags: int = 0) -> bytes:
    return struct.pack("=BBBBI11Q", dtype, ord(order), len(shape), flags, 0, *shape, *[0] * (11 - len(shape)))


@pytest.mark.parametrize(
    "head",
    [
        b"",
        b"x" * 95,
        header(0, "C", 4),
        header(200, "C", 4),
        header(12, "X", 4),
        header(12, "C", 1 << 40),
        header(12, "C", 1 << 62, 1 << 62),
        header(12, "C", 2**64 - 1),
        b"\x0cC\xff" + bytes(93),
        header(15, "C", 1 << 20),
    ],
    ids=lambda h: h[:12].hex(),
)
@pytest.mark.parametrize("arrays_as", ["auto", "numpy"])
def test_tensor_headers_that_lie(make: Make, head: bytes, arrays_as: str) -> None:
    q = make(arrays=arrays_as)
    payload = head + b"12345678" * 4
    put_as(q, TENSOR, payload)
    with pytest.raises(shmq.DecodeError) as caught:
        q.get()
    assert caught.value.payload == payload
    assert caught.value.codec == TENSOR


@pytest.mark.parametrize("head", [header(0, "C", 4), header(200, "C", 4), header(12, "C", 1 << 40)])
def test_tensor_headers_in_blocks_that_lie(q: shmq.Queue, head: bytes) -> None:
    data = np.frombuffer(b"12345678" * 1000, np.uint8)
    assert lib.py_put_buffer(q._c, False, TENSOR, head, 96, id(data), 0) == 0
    with pytest.raises(shmq.DecodeError) as caught:
        q.get()
    payload = caught.value.payload
    del caught  # its traceback holds the block
    assert q.stats().pages["leased"] == 0
    assert data.tobytes() in payload
    assert head in payload  # it lay beside the data; without it nobody can tell what the bytes are


@hypothesis.settings(max_examples=hypothesis.settings().max_examples * 3)
@given(codec=st.sampled_from([MSGPACK, TENSOR, ENVELOPE]), payload=st.binary(max_size=300), data=st.data())
def test_garbage_is_an_error_or_a_value(wire: shmq.Queue, codec: int, payload: bytes, data: Any) -> None:
    if codec == ENVELOPE and data.draw(st.booleans()):  # past the first check
        cut = data.draw(st.integers(0, len(payload)))
        payload = struct.pack("=II", cut, len(payload) - cut) + payload
    if codec == TENSOR and data.draw(st.booleans()):
        shape = data.draw(st.lists(st.integers(0, 2**64 - 1) | st.integers(0, 3), max_size=11))
        payload = header(data.draw(st.integers(0, 255)), data.draw(st.sampled_from("CFX")), *shape) + payload
    put_as(wire, codec, payload)
    try:
        wire.get()
    except shmq.DecodeError as e:
        assert (e.payload, e.codec) == (payload, codec)  # noqa: PT017
    assert wire.empty()


DESCRIPTIONS: list[Any] = [
    "O",
    "|O8",
    "not a dtype",
    "(2",
    "(2,",
    "i4,",
    "((((",
    "2)i4",
    "i4,(2,3f8",
    "",
    5,
    None,
    True,
    1.5,
    [],
    [[]],
    [["a"]],
    [["a", "O"]],
    [["a", "<i4"], ["a", "<i4"]],
    [["a", "<i4", [-1]]],
    [["a", "<i4", [1 << 40]]],
    [["a", "<i4", 3]],
    [["a", "<i4", "x"]],
    [[5, "<i4"]],
    [["", "|V4"]],
    {"names": ["a"], "formats": ["O"]},
    {"a": "<i4"},
    [[["t", "n"], "<i4"]],
    [[[], "<i4"]],
    "<i999999999999",
    "|S99999999999999999999",
    "|V-1",
    "M8[lightyears]",
    "\x00",
    "é",
    "<i4" * 1000,
]


@pytest.mark.parametrize("description", DESCRIPTIONS, ids=lambda d: repr(d)[:30])
def test_dtype_descriptions_that_lie(q: shmq.Queue, description: Any) -> None:
    text = msgspec.msgpack.encode(description)
    table = struct.pack("=BBBBIQ", 0, 67, 1, 0, len(text), 1) + text
    body = msgspec.msgpack.encode(msgspec.msgpack.Ext(113, bytes(4)))
    payload = struct.pack("=II", len(table), len(body)) + table + body + bytes(200)
    put_as(q, ENVELOPE, payload)
    try:
        got = q.get()
        assert isinstance(got, (np.ndarray, np.generic))
        assert not got.dtype.hasobject
    except shmq.DecodeError as e:
        assert e.payload == payload  # noqa: PT017
    assert q.empty()


def test_every_prefix_of_a_good_message_is_an_error(make: Make) -> None:
    sender, receiver = make(), make(type=int)  # expects another type, so the message's bytes are in the error
    sender.put({"a": np.arange(3), "b": [np.zeros(2, "M8[s]"), "text"]})
    with pytest.raises(shmq.DecodeError) as caught:
        receiver.get()
    receiver.close()
    good = caught.value.payload
    q = make(arrays="numpy")  # no damaged flag makes it import torch
    damaged = [good[:cut] for cut in range(len(good))]
    damaged += [
        good[:at] + bytes([good[at] ^ flip]) + good[at + 1 :] for at in range(len(good)) for flip in (1, 255)
    ]
    for payload in damaged:
        put_as(sender, ENVELOPE, payload)
        try:
            q.get()
        except shmq.DecodeError as e:
            assert e.payload == payload  # noqa: PT017
        else:
            # Padding was cut or changed, or a byte of data or text: what came is a message like any other.
            assert len(payload) == len(good) or not good[len(payload) :].strip(b"\0")
    assert q.empty()
    assert q.stats().pages["leased"] == 0


def test_a_body_that_its_length_field_cannot_say(q: shmq.Queue, monkeypatch: pytest.MonkeyPatch) -> None:
    """Four gigabytes in truth; here the limit is lowered to what a test can send."""
    assert codec.BODY_BYTES == (1 << 32) - 1
    monkeypatch.setattr(codec, "BODY_BYTES", 1000)
    with pytest.raises(shmq.MessageTooLarge, match=r"1,0\d\d bytes long and may be 1,000"):
        q.put(["x" * 1000, np.zeros(3)])
    assert q.empty()
    q.put(["x" * 900, np.zeros(3)])
    assert q.get()[0] == "x" * 900
