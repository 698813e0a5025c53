"""``Loan``: an array of shared memory that is written in place and then becomes a message."""

import sys
from collections.abc import Iterable, Iterator
from math import prod
from operator import index
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Self

import numpy as np

from . import errors, tensor
from ._core import lib
from .clock import deadline_ns
from .codec import HANDLE_BYTES, Size

if TYPE_CHECKING:
    from .producer import Producer


def _axes(shape: Any) -> tuple[int, ...]:
    return tuple(map(index, shape)) if isinstance(shape, Iterable) else (index(shape),)


class Loan:
    """Made by ``Queue.loan`` and ``Topic.loan``.  One thread at a time.

    ``array`` is the memory: writable until published, then the consumer's (it is made read-only here;
    what views were taken of it before must not be written any more)."""

    __slots__ = (
        "_flags",
        "_lease",
        "_number",
        "_queue",
        "_send",
        "_storage",
        "_urgent",
        "array",
        "order",
        "shape",
    )

    def __init__(
        self,
        queue: "Producer",
        shape: int | tuple[int, ...],
        dtype: Any,
        order: Literal["C", "F"],
        deadline: int | None,
        urgent: bool = False,
    ) -> None:
        """``deadline`` None: the caller drives ``_borrow``."""
        storage, number = tensor.parse_dtype(dtype)
        self.shape = (shape,) if isinstance(shape, int) else _axes(shape)
        if min(self.shape, default=0) < 0 or len(self.shape) > tensor.MAX_META_DIMS:
            raise ValueError(
                f"shape {self.shape}: axes must not be negative, and there are at most {tensor.MAX_META_DIMS}"
            )
        if number == tensor.DESCRIBED:
            raise errors.Unencodable(
                f"a loan's dtype must be in shmq's table, which {storage} is not; put() such arrays instead"
            )
        if order not in ("C", "F"):
            raise ValueError(f"order {order!r}: must be 'C' or 'F'")
        self.order = order
        self._queue = queue
        self._urgent = queue._lane(urgent)
        self._number = number
        self._flags = tensor.FROM_TORCH if str(dtype).startswith("torch.") else 0
        self._lease = None
        self._storage = storage
        size = prod(self.shape) * storage.itemsize
        if size >= sys.maxsize or max(self.shape, default=0) >= sys.maxsize:
            errors.raise_status(lib.SHMQ_TOO_LARGE, queue.name)
        if deadline is not None:
            for lacking, need in self._borrow():
                queue._wait_put(lacking, need, deadline)

    def _borrow(self) -> Iterator[tuple[int, Size]]:
        """Tries until the memory is lent, as ``Producer._tries``."""
        box: list[Any] = []
        q = self._queue
        size = prod(self.shape) * self._storage.itemsize
        meta = tensor.pack_meta(self._number, self.order, self.shape, self._flags)
        while status := lib.py_loan(q._c, self._urgent, size, lib.SHMQ_TENSOR, meta, len(meta), id(box)):
            if status in (lib.SHMQ_ARENA_FULL, lib.SHMQ_NOT_READY):
                yield status, Size(size, size, is_array=True)
            else:
                q._recover_or_raise(status, size)
        self._lease, self._send = box
        self.array = np.ndarray(self.shape, self._storage, self._lease, 0, None, self.order)

    def torch(self) -> Any:
        """The memory as a torch tensor of the loan's shape and dtype; the message arrives as one."""
        self._check_open()
        self._flags |= tensor.FROM_TORCH
        meta = tensor.pack_meta(self._number, self.order, self.shape, self._flags)
        lib.py_describe(id(self._lease), meta, len(meta))
        name = tensor.extended_name(self._number)
        array = self.array.view(tensor.carrier(self._number)) if name else self.array
        return tensor.to_torch(array, name)

    def publish(self, timeout: float | None = None) -> None:
        """Sends it: no copy.  Waits up to ``timeout`` seconds for room in the ring.

        On ``Full`` the loan is still open: publish again, or discard."""
        status = self._send()  # first and alone: after a large fill nothing else is in the caches
        if status is not None:
            deadline = deadline_ns(timeout)
            for lacking, need in self._send_again(status):
                self._queue._wait_put(lacking, need, deadline)
        self._sent()

    def _send_again(self, status: int | None) -> Iterator[tuple[int, Size]]:
        self._check_open()
        while status is not None:
            if status != lib.SHMQ_FULL:
                errors.raise_status(status, self._queue.name)
            yield status, Size(HANDLE_BYTES, 0, is_array=True, urgent=self._urgent)
            status = self._send()

    def _sent(self) -> None:
        self._lease = None
        self.array.flags.writeable = False

    def discard(self) -> None:
        """Gives the pages back unpublished; again, or after publish: nothing."""
        if self._lease is not None:
            lib.py_discard(id(self._lease))
            self._lease = None
            self.array.flags.writeable = False

    def _check_open(self) -> None:
        if self._lease is None:
            raise errors.Closed(f"queue {self._queue.name!r}: this loan was published or discarded already")

    def __dlpack__(self, **arguments: Any) -> Any:
        return self.array.__dlpack__(**arguments)

    def __dlpack_device__(self) -> Any:
        return self.array.__dlpack_device__()

    def __enter__(self) -> Self:
        self._check_open()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None and self._lease is not None:
                self.publish()
        finally:
            self.discard()
