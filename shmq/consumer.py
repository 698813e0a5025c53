"""``Consumer``: what ``Queue`` and ``Subscription`` share of getting.

A get is ``one C call -> decode``.  Signals are served before a message is taken, so a handler that raises
(KeyboardInterrupt) leaves it there.
"""

import time
from typing import Any

from numpy import ndarray

from . import codec, errors, stats
from ._core import lib
from .clock import deadline_ns, slice_end_ns
from .handle import Handle

NOTHING_NOW = frozenset({lib.SHMQ_EMPTY, lib.SHMQ_UNACKED_FULL, lib.SHMQ_ARENA_FULL})
"""What a get may wait for; the last two on a queue whose messages are acknowledged."""


class Consumer(Handle):
    """The side of a handle that gets."""

    __slots__ = ()

    def get(self, block: bool = True, timeout: float | None = None, copy: bool = False) -> Any:
        """Takes the next message; waits for one up to ``timeout`` seconds (None: for ever) if ``block``.

        Arrays come back as writable views of shared memory: no copy, and the memory returns to the arena when
        the last view dies (``copy=True`` detaches them).  The arrays of one message share one block.

        Raises ``Empty``, ``PeerDead`` (an spsc queue is empty and its producer died), ``DecodeError`` (the
        message's bytes are in its ``.payload``), ``RoleTaken``,
        ``ShutDown``, ``Closed``, ``Corrupt``."""
        if timeout is not None and block:
            deadline_ns(timeout)  # refuses nonsense also where nothing has to wait
        item = self._take(timeout is None) if block else self._try_take()
        kind = type(item)
        if kind is bytes:
            return item
        if kind is int:
            item = self._await_message(item, 0, deadline_ns(timeout) if block else 0)
        elif kind is ndarray and not copy:
            return item
        return self._decode(item, copy)

    def _await_message(self, status: int, max_items: int, deadline: int) -> Any:
        """A message, or what ``_take_many(max_items)`` returns, once it is not a status."""
        item: Any = status
        while type(item) is int:
            if item in NOTHING_NOW:
                if time.monotonic_ns() >= deadline and not lib.py_look_around(self._c):
                    errors.raise_status(item, self.name)
                item = lib.py_wait_get(self._c, slice_end_ns(deadline))
            elif item not in (lib.SHMQ_OK, lib.SHMQ_PEER_DEAD):  # these: it has waited
                self._recover_or_raise(item, 0)
            if item == lib.SHMQ_PEER_DEAD:
                stats.raise_peer_dead(self._c, self.name)
            # Looked up anew each time: reattach() binds other functions.
            item = self._take_many(max_items) if max_items else self._try_take()
        return item

    def _decode(self, item: Any, copy: bool) -> Any:
        allow_pickle, arrays, kind, _ = self._options
        return codec.decode(item, arrays, allow_pickle, kind, copy)

    def get_nowait(self, copy: bool = False) -> Any:
        """``get(block=False)``."""
        return self.get(block=False, copy=copy)

    def get_many(self, max_items: int, timeout: float | None = None, copy: bool = False) -> list[Any]:
        """Takes 1 to ``max_items`` messages; waits up to ``timeout`` seconds for the first only.

        A batch also ends once 64 KiB of bytes were copied out of shared memory; views of arrays do not count.

        Raises like ``get``.  A ``DecodeError`` has the rest of the batch in ``.others``: nothing is lost."""
        if max_items < 1:
            raise ValueError(f"'max_items' must be at least 1, not {max_items}")
        if timeout is not None:
            deadline_ns(timeout)
        items = self._take_many(max_items)
        if type(items) is int:
            items = self._await_message(items, max_items, deadline_ns(timeout))
        return items if type(items) is list else self._decode_many(items[0], copy)

    def _decode_many(self, items: list[Any], copy: bool) -> list[Any]:
        failed: errors.DecodeError | None = None
        for i, item in enumerate(items):
            try:
                items[i] = self._decode(item, copy)
            except errors.DecodeError as e:
                items[i] = e
                failed = failed or e
        if failed is not None:
            failed.others = [item for item in items if item is not failed]
            raise failed
        return items
