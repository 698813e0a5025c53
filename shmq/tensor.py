"""Arrays as messages: the dtype table, headers, and numpy/torch arrays over shared memory.

A tensor is a header (``struct shmq_tensor`` of ``csrc/shmq.h``) and dense data in C or Fortran order.
Nothing here copies: an outgoing array is described, and an incoming one is built over the buffer that owns
its lease.

Extension dtypes travel by name (bfloat16, the float8 family) and come back through ml_dtypes, or as torch
tensors where the sender had one.  dtypes that have no number in the table (datetime64, strings, structured,
other byte orders) travel by their description, see ``numpy.lib.format``.
"""

import struct
import sys
from functools import lru_cache
from math import prod
from typing import Any, Literal

import msgspec
import numpy as np
import numpy.typing as npt

from . import errors
from ._core import ffi, lib

Arrays = Literal["auto", "numpy", "torch"]
NdArray = npt.NDArray[Any]

META = struct.Struct("=BBBBI11Q")
assert META.size == ffi.sizeof("shmq_tensor")
MAX_META_DIMS = 11
ALIGNMENT = 64
FROM_TORCH: int = lib.SHMQ_FROM_TORCH
IS_SCALAR: int = lib.SHMQ_IS_SCALAR
DESCRIBED = 0  # dtype number of "by description"

_NATIVE: dict[np.dtype[Any], int] = {
    np.dtype(name): getattr(lib, "SHMQ_" + name.upper())
    for name in (
        *("bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"),
        *("float16", "float32", "float64", "complex64", "complex128"),
    )
}
_EXTENDED: dict[str, int] = {
    name: getattr(lib, "SHMQ_" + name.upper())
    for name in (
        *("bfloat16", "float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz", "float8_e5m2fnuz"),
        "float8_e8m0fnu",
    )
}
_BY_NUMBER = {number: dtype for dtype, number in _NATIVE.items()}
_EXTENDED_BY_NUMBER = {number: name for name, number in _EXTENDED.items()}


def extended_dtype(name: str) -> np.dtype[Any] | None:
    """The ml_dtypes dtype of that name, None where ml_dtypes is not installed or does not know it."""
    try:
        import ml_dtypes
    except ImportError:
        return None
    kind = getattr(ml_dtypes, name, None)
    return None if kind is None else np.dtype(kind)


def extended_name(number: int) -> str | None:
    """Name of an extended dtype; None for numpy's own."""
    return _EXTENDED_BY_NUMBER.get(number)


def carrier(number: int) -> np.dtype[Any]:
    """An unsigned integer dtype as wide as extended dtype ``number``."""
    return np.dtype(np.uint16 if number == lib.SHMQ_BFLOAT16 else np.uint8)


@lru_cache(maxsize=256)
def dtype_number(dtype: np.dtype[Any]) -> int:
    """Number in the table, ``DESCRIBED``, or ``Unencodable``."""
    number = _NATIVE.get(dtype) if dtype.isnative else None
    if number is not None:
        return number
    if dtype.hasobject:
        raise errors.Unencodable(
            f"arrays of dtype {dtype} hold Python objects, which have no place in shared memory; convert to "
            "a fixed-size dtype, or send a list"
        )
    if dtype.type.__module__.partition(".")[0] != "numpy":
        if dtype.name in _EXTENDED:
            return _EXTENDED[dtype.name]
        raise errors.Unencodable(
            f"extension dtype {dtype} is not in shmq's table; view it as an integer dtype"
        )
    try:
        _description(dtype)
    except ValueError as e:
        raise errors.Unencodable(
            f"dtype {dtype} cannot be described: {e}; use fields in order, without overlap"
        ) from None
    return DESCRIBED


def _description(dtype: np.dtype[Any]) -> bytes:
    """As ``numpy.lib.format.dtype_to_descr``, without its warning that metadata does not travel."""
    return msgspec.msgpack.encode(dtype.descr if dtype.names is not None else dtype.str)


def _tuples(descr: Any) -> Any:
    """msgpack's lists back to what ``descr_to_dtype`` reads: a list of field tuples."""
    if not isinstance(descr, list):
        return descr
    fields = []
    for field in descr:
        if not isinstance(field, list) or not 2 <= len(field) <= 3:
            raise ValueError("a field is (name, description[, shape])")
        name = tuple(field[0]) if isinstance(field[0], list) else field[0]
        shape = [tuple(field[2])] if len(field) == 3 else []
        fields.append((name, _tuples(field[1]), *shape))
    return fields


def _described(description: bytes) -> np.dtype[Any]:
    descr = _tuples(msgspec.msgpack.decode(description))
    dtype = np.dtype(np.lib.format.descr_to_dtype(descr))
    if dtype.hasobject:
        raise ValueError("a dtype that holds Python objects")
    return dtype


def bytes_alias(array: NdArray) -> NdArray:
    """A dense array's memory as a flat array of bytes, for dtypes that the buffer protocol refuses."""
    dense = array if array.flags.c_contiguous else array.T
    return dense.reshape(-1).view(np.uint8)


def order_of(array: NdArray) -> Literal["C", "F", ""]:
    """ "C" or "F" for a dense array, "" for one that must be gathered."""
    flags = array.flags
    return "C" if flags.c_contiguous else "F" if flags.f_contiguous else ""


def is_torch(obj: object) -> bool:
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(obj, torch.Tensor)


def from_torch(tensor: Any) -> tuple[NdArray, int]:
    """The CPU tensor's memory as a numpy array, and its dtype number (0: look at the array's dtype)."""
    import torch

    if tensor.layout is not torch.strided or tensor.is_quantized:
        raise errors.Unencodable(
            f"torch tensors of layout {tensor.layout} do not travel; call to_dense() first"
        )
    if tensor.device.type != "cpu":
        raise errors.Unencodable(
            f"a tensor on {tensor.device} does not lie in shared memory; call .cpu() first"
        )
    tensor = tensor.detach().resolve_conj().resolve_neg()
    number = _EXTENDED.get(str(tensor.dtype).removeprefix("torch."), 0)
    if number:
        tensor = tensor.view(torch.uint16 if number == lib.SHMQ_BFLOAT16 else torch.uint8)
    try:
        return tensor.numpy(), number
    except TypeError as e:
        raise errors.Unencodable(f"torch dtype {tensor.dtype} does not travel: {e}") from None


def as_array(obj: Any) -> tuple[NdArray, int, int] | None:
    """(array, dtype number, flags) of anything that is an array; None for anything else.

    No copy.  Raises ``Unencodable`` for arrays that cannot travel."""
    if type(obj) is np.ndarray:
        return obj, dtype_number(obj.dtype), 0
    if isinstance(obj, np.ma.MaskedArray):
        raise errors.Unencodable("a masked array's mask would be lost; send {'data': a.data, 'mask': a.mask}")
    if isinstance(obj, np.ndarray):
        return np.asarray(obj), dtype_number(obj.dtype), 0
    if isinstance(obj, np.generic):
        return np.asarray(obj), dtype_number(obj.dtype), IS_SCALAR
    if is_torch(obj):
        array, number = from_torch(obj)
        return array, number or dtype_number(array.dtype), FROM_TORCH
    if hasattr(obj, "__dlpack__"):
        try:
            array = np.from_dlpack(obj)
        except (BufferError, RuntimeError, TypeError, ValueError) as e:
            raise errors.Unencodable(
                f"DLPack exporter {type(obj).__name__}: {e}; it must lie in CPU memory"
            ) from e
        return array, dtype_number(array.dtype), 0
    if hasattr(obj, "__array_interface__"):
        array = np.asarray(obj)
        return array, dtype_number(array.dtype), 0
    return None


@lru_cache(maxsize=1024)
def pack_meta(number: int, order: str, shape: tuple[int, ...], flags: int) -> bytes:
    """Header of a message that is one array; ``shape`` has at most ``MAX_META_DIMS`` axes."""
    padding = (0,) * (MAX_META_DIMS - len(shape))
    return META.pack(number, ord(order), len(shape), flags, 0, *shape, *padding)


class Spec:
    """What a received array looks like; made once per distinct header, so not per message."""

    __slots__ = ("dtype", "flags", "nbytes", "number", "order", "plain", "shape")

    def __init__(
        self, number: int, order: int, shape: tuple[int, ...], flags: int, description: bytes
    ) -> None:
        if order not in (67, 70):
            raise ValueError(f"order {order} is neither 'C' nor 'F'")
        if number == DESCRIBED:
            self.dtype = _described(description)
        elif number in _BY_NUMBER:
            self.dtype = _BY_NUMBER[number]
        elif number in _EXTENDED_BY_NUMBER:
            self.dtype = carrier(number)
        else:
            raise ValueError(f"dtype number {number} is not in the table")
        self.number = number
        self.order: Literal["C", "F"] = "C" if order == 67 else "F"
        self.shape = shape
        self.flags = flags
        self.plain = number not in _EXTENDED_BY_NUMBER and not flags
        self.nbytes = prod(shape) * self.dtype.itemsize


@lru_cache(maxsize=1024)
def unpack_meta(meta: bytes) -> Spec:
    """Raises ValueError on garbage."""
    if len(meta) != META.size:
        raise ValueError(f"a tensor header has {META.size} bytes, not {len(meta)}")
    number, order, ndim, flags, _, *shape = META.unpack(meta)
    if ndim > MAX_META_DIMS or number == DESCRIBED:
        raise ValueError("a tensor header has a dtype number and at most 11 axes")
    return Spec(number, order, tuple(shape[:ndim]), flags, b"")


_ENTRY = struct.Struct("=BBBBI")


def pack_entry(array: NdArray, number: int, order: str, flags: int) -> bytes:
    """One array's line in an envelope's table: any number of axes, any dtype that can be described."""
    description = _description(array.dtype) if number == DESCRIBED else b""
    entry = _ENTRY.pack(number, ord(order), array.ndim, flags, len(description))
    return entry + struct.pack(f"={array.ndim}Q", *array.shape) + description


@lru_cache(maxsize=256)
def unpack_table(table: bytes) -> tuple[bool, tuple[tuple[Spec, int], ...]]:
    """The arrays of an envelope and where each starts, counted from the first; and if all are plain.

    Raises ValueError on garbage."""
    specs = []
    at = offset = 0
    while at < len(table):
        try:
            number, order, ndim, flags, length = _ENTRY.unpack_from(table, at)
            shape = struct.unpack_from(f"={ndim}Q", table, at + _ENTRY.size)
        except struct.error:
            raise ValueError("the table of arrays is cut short") from None
        at += _ENTRY.size + 8 * ndim + length
        spec = Spec(number, order, shape, flags, table[at - length : at])
        specs.append((spec, offset))
        offset += (spec.nbytes + ALIGNMENT - 1) & -ALIGNMENT
    return all(spec.plain for spec, _ in specs), tuple(specs)


def build(spec: Spec, buffer: Any, offset: int, arrays: Arrays) -> Any:
    """The array over ``buffer``, which it keeps alive: numpy checks that it lies within."""
    array: Any = np.ndarray(spec.shape, spec.dtype, buffer, offset, None, spec.order)
    return array if spec.plain and arrays != "torch" else _dress(array, spec, arrays)


class _Writable:
    """The same memory, which it keeps alive, without the mark that it is read-only."""

    def __init__(self, array: NdArray) -> None:
        self.array = array
        shared = array.__array_interface__
        self.__array_interface__ = {**shared, "data": (shared["data"][0], False)}


def to_torch(array: NdArray, name: str | None) -> Any:
    """No copy.  torch knows no read-only tensors: one over read-only memory must not be written to."""
    import torch

    tensor = torch.from_numpy(array if array.flags.writeable else np.asarray(_Writable(array)))
    return tensor.view(getattr(torch, name)) if name else tensor


def _dress(array: NdArray, spec: Spec, arrays: Arrays) -> Any:
    """What is not a plain numpy array: torch tensors, ml_dtypes, scalars."""
    name = _EXTENDED_BY_NUMBER.get(spec.number)
    if arrays == "torch" or (arrays == "auto" and spec.flags & FROM_TORCH):
        try:
            return to_torch(array, name)
        except ImportError:
            if arrays == "torch":
                raise
        except TypeError as e:
            raise ValueError(f"torch has no such dtype: {e}") from None
    if name is not None:
        dtype = extended_dtype(name)
        if dtype is None:
            raise ValueError(f"dtype {name} needs ml_dtypes: pip install ml_dtypes")
        array = array.view(dtype)
    return array[()] if spec.flags & IS_SCALAR and array.ndim == 0 else array


def parse_dtype(dtype: Any) -> tuple[np.dtype[Any], int]:
    """(storage dtype, number) of what a user calls a dtype: numpy's, a name, torch's."""
    name = dtype if isinstance(dtype, str) else str(dtype).removeprefix("torch.")
    if name in _EXTENDED and not isinstance(dtype, np.dtype):
        return extended_dtype(name) or carrier(_EXTENDED[name]), _EXTENDED[name]
    if str(dtype).startswith("torch."):
        dtype = name
    found = np.dtype(dtype)
    number = dtype_number(found)
    return found, number
