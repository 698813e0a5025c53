"""Objects to messages and back: codec ids, and nothing that executes what it received.

    raw        bytes, bytearray, memoryview           as they are; arrive as bytes
    tensor     one array                              header + data
    msgpack    None, bool, int, float, str, list, dict, dataclass, msgspec.Struct ...
    envelope   the same with arrays anywhere inside   msgpack + table + the arrays, each 64-byte aligned
    pickle     anything else                          sender and receiver must both have asked for it

An envelope is ``u32 table bytes | u32 body bytes | table | body | pad to 64 | array | pad to 64 | ...``;
in the body an array is the msgpack extension ``EXT_ARRAY`` with its index.
"""

import pickle
import struct
from collections.abc import Callable
from functools import lru_cache
from typing import Any, NamedTuple, get_origin

import msgspec
import numpy as np

from . import errors, tensor
from ._core import ffi, lib
from .tensor import ALIGNMENT, Arrays, NdArray

EXT_ARRAY = 113
HEAD = struct.Struct("=II")
BODY_BYTES = 0xFFFF_FFFF
"""An envelope's msgpack body is at most this long, because HEAD says its length in 32 bits."""
NAMES = {
    lib.SHMQ_RAW: "raw",
    lib.SHMQ_MSGPACK: "msgpack",
    lib.SHMQ_TENSOR: "tensor",
    lib.SHMQ_ENVELOPE: "envelope",
    lib.SHMQ_PICKLE: "pickle",
}

Found = tuple[NdArray, int, int]
"""An array, its dtype number (or ``LATER``: not looked up yet), its tensor flags."""
LATER = -1

HANDLE_BYTES = 8
"""Payload of a record whose message lies in a block."""
ARRAY_INLINE_BYTES = 1024
"""Arrays of up to this many bytes lie in the ring (``_glue.h``)."""


class Size(NamedTuple):
    """What a message takes: in the ring if it lies there, or in the arena."""

    inline_bytes: int
    block_bytes: int
    is_array: bool
    urgent: bool = False

    def record_bytes(self, limit: int) -> int:
        """Payload of its ring record, where payloads of up to ``limit`` bytes lie in the ring."""
        if self.is_array:
            limit = min(limit, ARRAY_INLINE_BYTES + tensor.META.size)
        return self.inline_bytes if self.inline_bytes <= limit else HANDLE_BYTES


Send = Callable[..., int]
Encoded = tuple[Send, tuple[Any, ...], Callable[[], Size], Any]
"""A C call, its arguments between handle and lane, and key, what it will take, and what must stay alive
meanwhile."""


def _flat(size: int) -> Callable[[], Size]:
    return lambda: Size(size, size, False)


def _align(n: int) -> int:
    return (n + ALIGNMENT - 1) & -ALIGNMENT


def encode(obj: Any, allow_pickle: bool) -> Encoded:
    """How to put ``obj``.  Raises ``Unencodable``.  Copies no array."""
    if isinstance(obj, bytes):
        return lib.py_put_as, (lib.SHMQ_RAW, obj, len(obj)), _flat(len(obj)), None
    if isinstance(obj, (bytearray, memoryview)):
        return _encode_buffer(obj)
    try:
        if type(obj) not in _PLAIN and (found := tensor.as_array(obj)) is not None:
            return _encode_array(*found)
        return _encode_message(obj)
    except (errors.Unencodable, OverflowError, RecursionError, TypeError, ValueError) as e:
        if allow_pickle:
            return _encode_pickle(obj)
        if isinstance(e, errors.ShmqError):
            raise
        raise errors.Unencodable(f"cannot encode {type(obj).__name__}: {e}") from e


_PLAIN = frozenset({dict, list, tuple, str, int, float, bool, type(None)})
"""Types that are no arrays, without looking."""


def _encode_pickle(obj: Any) -> Encoded:
    try:
        body = pickle.dumps(obj, protocol=5)
    except Exception as e:  # what pickling raises is up to the object
        raise errors.Unencodable(f"cannot pickle {type(obj).__name__}: {e}") from e
    return lib.py_put_as, (lib.SHMQ_PICKLE, body, len(body)), _flat(len(body)), None


def _encode_buffer(obj: bytearray | memoryview) -> Encoded:
    view = memoryview(obj)
    if not view.c_contiguous:
        view = memoryview(view.tobytes())
    return lib.py_put_buffer, (lib.SHMQ_RAW, b"", 0, id(view)), _flat(view.nbytes), view


def _exportable(array: NdArray, number: int) -> NdArray:
    """A dense array itself, or its bytes where the buffer protocol has no name for its dtype."""
    return array if 0 < number <= lib.SHMQ_COMPLEX128 else tensor.bytes_alias(array)


def _encode_array(array: NdArray, number: int, flags: int) -> Encoded:
    if number == tensor.DESCRIBED or array.ndim > tensor.MAX_META_DIMS:
        return _encode_envelope(msgspec.msgpack.encode(_extension(0)), [(array, number, flags)])
    order = tensor.order_of(array)
    if not order and array.nbytes <= ARRAY_INLINE_BYTES:
        array, order = np.ascontiguousarray(array), "C"
    meta = tensor.pack_meta(number, order or "C", array.shape, flags)
    size = Size(len(meta) + array.nbytes, array.nbytes, True)
    if not order:
        return _gather, (lib.SHMQ_TENSOR, meta, b"", [array]), lambda: size, None
    array = _exportable(array, number)
    return lib.py_put_buffer, (lib.SHMQ_TENSOR, meta, len(meta), id(array)), lambda: size, array


@lru_cache(maxsize=1024)
def _extension(index: int) -> msgspec.msgpack.Ext:
    """What stands for an array in the body."""
    return msgspec.msgpack.Ext(EXT_ARRAY, index.to_bytes(4, "little"))


_NATIVE_CHARS = frozenset("?bBhHiIlLqQefdFD")
_SCALARS: tuple[Any, ...] = (str, bytes, int, float)


def _encode_message(obj: Any) -> Encoded:
    found: list[Found] = []

    def hook(part: Any) -> Any:
        if type(part) is np.ndarray and part.dtype.char in _NATIVE_CHARS:
            found.append((part, LATER, 0))
        elif (array := tensor.as_array(part)) is not None:
            found.append(array)
        else:
            return _base(part)
        return _extension(len(found) - 1)

    body = msgspec.msgpack.encode(obj, enc_hook=hook)
    if not found:
        return lib.py_put_as, (lib.SHMQ_MSGPACK, body, len(body)), _flat(len(body)), None
    if len(body) > BODY_BYTES:
        raise errors.MessageTooLarge(
            f"what lies around the arrays of a message is {len(body):,} bytes long and may be {BODY_BYTES:,};"
            " send it in several messages, or its long parts as arrays"
        )
    if body.count(_EXTENSION_MARK) != len(found):
        _check_extensions(body, len(found))

    def size() -> Size:
        head = HEAD.size + sum(8 + 8 * array.ndim for array, _, _ in found) + len(body)
        return _envelope_size(head, [array for array, _, _ in found])

    return _send_envelope, (body, found), size, None


def _base(part: Any) -> Any:
    """A subclass of a scalar as the scalar that it is."""
    for base in _SCALARS:
        if isinstance(part, base):
            return base.__getnewargs__(part)[0]
    raise errors.Unencodable(
        f"cannot encode {type(part).__name__} inside a message: use numbers, str, bytes, list, dict, "
        "dataclass, msgspec.Struct and arrays; or open sender and receiver with allow_pickle=True"
    )


_EXTENSION_MARK = bytes((0xD6, EXT_ARRAY))
"""How our extensions start: msgpack's "fixext 4", then the code."""


def _check_extensions(body: bytes, expected: int) -> None:
    """The mark may stand in any bytes; only an extension of the user's with our code would be confused."""
    seen = 0

    def ext_hook(code: int, data: memoryview) -> None:
        nonlocal seen
        seen += code == EXT_ARRAY

    msgspec.msgpack.decode(body, ext_hook=ext_hook)
    if seen != expected:
        raise errors.Unencodable(
            f"msgpack extension code {EXT_ARRAY} stands for arrays in shmq; use another code"
        )


def _envelope_size(head_bytes: int, arrays: list[NdArray]) -> Size:
    at = head_bytes
    for array in arrays:
        at = _align(at) + array.nbytes
    return Size(at, at, True)


def _send_envelope(c: Any, urgent: bool, body: bytes, found: list[Found], key: int) -> int:
    """The C side makes the table where every array is plain."""
    arrays = [array for array, _, flags in found if flags == 0]
    if len(arrays) == len(found):
        status: int = lib.py_put_envelope(c, urgent, body, len(body), id(arrays), key)
        if status != lib.PY_ENCODE:
            return status
    send, args, _, keep = _encode_envelope(body, found)
    status = send(c, urgent, *args, key)
    del keep  # alive until here: the C side reads it
    return status


def _encode_envelope(body: bytes, found: list[Found]) -> Encoded:
    table = b""
    arrays = []
    dense = True
    for array, number, flags in found:
        if number == LATER:
            number = tensor.dtype_number(array.dtype)
        order = tensor.order_of(array)
        if not order and array.nbytes <= ARRAY_INLINE_BYTES:
            array, order = np.ascontiguousarray(array), "C"
        table += tensor.pack_entry(array, number, order or "C", flags)
        arrays.append(_exportable(array, number) if order else array)
        dense = dense and bool(order)
    head = HEAD.pack(len(table), len(body)) + table + body
    size = _envelope_size(len(head), arrays)
    if dense:
        return lib.py_put_described, (head, len(head), id(arrays)), lambda: size, arrays
    return _gather, (lib.SHMQ_ENVELOPE, b"", head, arrays), lambda: size, None


def _gather(
    c: Any, urgent: bool, codec: int, meta: bytes, head: bytes, arrays: list[NdArray], key: int
) -> int:
    """Puts arrays that are not dense: each is copied once, by numpy, from its strides into the block."""
    if key and lib.py_key_known(c, key):
        return lib.SHMQ_REPEAT  # type: ignore[no-any-return]
    size = _envelope_size(len(head), arrays).block_bytes
    box: list[Any] = []
    status: int = lib.py_loan(c, urgent, size, codec, meta, len(meta), id(box))
    if status:
        return status
    lease, _ = box
    memoryview(lease)[: len(head)] = head
    at = len(head)
    for array in arrays:
        at = _align(at)
        order = tensor.order_of(array) or "C"
        np.copyto(np.ndarray(array.shape, array.dtype, lease, at, None, order), array)
        at += array.nbytes
    return lib.py_publish_keyed(id(lease), key)  # type: ignore[no-any-return]


def decode(item: Any, arrays: Arrays, allow_pickle: bool, kind: Any, copy: bool) -> Any:
    """The object of a message as the C side delivers it (see ``_glue.h``).

    Raises ``DecodeError``, which carries the payload: a message that cannot be decoded is not lost."""
    kind_of_item = type(item)
    if kind_of_item is bytes:
        return item
    if kind_of_item is np.ndarray:  # built by the C side
        return detach(item) if copy else item
    codec, payload = item[0], item[1]
    try:
        if codec == lib.SHMQ_TENSOR:
            value = _decode_tensor(item, arrays)
        elif codec == lib.SHMQ_MSGPACK:
            return _unpack(payload, kind, None)
        elif codec == lib.SHMQ_ENVELOPE:
            return _decode_envelope(item, arrays, kind, copy)
        elif codec == lib.SHMQ_PICKLE:
            return _decode_pickle(payload, allow_pickle)
        else:
            raise ValueError(f"codec {codec} is unknown to this version")
    except errors.DecodeError:
        raise
    except Exception as e:  # a constructor of the user's type may raise anything
        raise errors.DecodeError(
            f"a {NAMES.get(codec, 'message')} message of {memoryview(payload).nbytes} bytes cannot be "
            f"decoded ({e}); its bytes are in this error's .payload",
            b"".join((*item[2:], payload)) if len(item) == 3 else bytes(payload),
            codec,
        ) from e
    return detach(value) if copy else value


def detach(array: Any) -> Any:
    """A private copy; arrays keep their order."""
    return array.clone() if tensor.is_torch(array) else array.copy("K")


def _decode_tensor(item: Any, arrays: Arrays) -> Any:
    payload = item[1]
    if len(item) == 3:  # in a block: the header lies beside it
        return _build(item[2], payload, 0, arrays)
    return _build(bytes(payload[: tensor.META.size]), payload, tensor.META.size, arrays)


def _build(meta: bytes, payload: Any, at: int, arrays: Arrays) -> Any:
    """A plain array's header is remembered by the C side, which builds the next one like it by itself."""
    spec = tensor.unpack_meta(meta)
    if spec.plain:
        lib.py_remember_header(meta, id(spec.shape), id(spec.dtype), id(spec.order))
    return tensor.build(spec, payload, at, arrays)


def _decode_envelope(item: Any, arrays: Arrays, kind: Any, copy: bool) -> Any:
    if len(item) != 5:
        raise ValueError("an envelope whose head is longer than itself")
    _, payload, table, body, start = item
    plain, specs = tensor.unpack_table(table)
    if plain and arrays != "torch":
        new = np.ndarray
        built = [new(s.shape, s.dtype, payload, start + at, None, s.order) for s, at in specs]
    else:
        built = [tensor.build(s, payload, start + at, arrays) for s, at in specs]
    if copy:
        built = [detach(array) for array in built]

    def ext_hook(code: int, data: memoryview) -> Any:
        if code == EXT_ARRAY:
            return built[data[0] | data[1] << 8 | data[2] << 16]
        return msgspec.msgpack.Ext(code, bytes(data))

    return _unpack(body, kind, ext_hook)


def _as_is(kind: Any, value: Any) -> Any:
    """msgspec's hook for types that it does not know: arrays are already what they are."""
    if isinstance(value, get_origin(kind) or kind):  # numpy.typing's hints are generic aliases
        return value
    raise TypeError(f"expected {kind}, got {type(value).__name__}")


def _unpack(body: Any, kind: Any, ext_hook: Callable[[int, memoryview], Any] | None) -> Any:
    if kind is None:
        return msgspec.msgpack.decode(body, ext_hook=ext_hook)
    return msgspec.msgpack.decode(body, type=kind, ext_hook=ext_hook, dec_hook=_as_is)


def _decode_pickle(payload: Any, allow_pickle: bool) -> Any:
    if not allow_pickle:
        raise errors.PickleRefused(
            "a pickled message arrived; unpickling runs code that the sender chose.  Open this handle with "
            "allow_pickle=True if you trust every producer; the bytes are in this error's .payload",
            bytes(payload),
            lib.SHMQ_PICKLE,
        )
    try:
        return pickle.loads(payload)
    except Exception as e:
        raise errors.DecodeError(f"unpickling failed: {e!r}", bytes(payload), lib.SHMQ_PICKLE) from e


def preview(item: Any) -> str:
    """A short text of a message for people; never unpickles."""
    try:
        text = repr(decode(item, "numpy", False, None, copy=False))
    except errors.DecodeError as e:
        text = e.payload.hex()
    return text if len(text) <= 200 else text[:197] + "..."


assert ffi.sizeof("shmq_tensor") == tensor.META.size
