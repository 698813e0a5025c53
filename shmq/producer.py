"""``Producer``: what ``Queue`` and ``Topic`` share of putting.

A put is ``encode -> one C call``.  Only what did not go through at once takes the slow path: try, wait in
slices of at most 100 ms so that Python runs its signal handlers, try again.
"""

import time
from collections.abc import Iterator
from hashlib import blake2b
from typing import Any, Literal

import msgspec

from . import codec, errors, stats
from ._core import lib
from .clock import deadline_ns, slice_end_ns
from .codec import Size
from .handle import Handle
from .loan import Loan

LACKS = {
    lib.SHMQ_FULL: lib.SHMQ_LACKS_ROOM,
    lib.SHMQ_ARENA_FULL: lib.SHMQ_LACKS_PAGES,
    lib.SHMQ_KEYS_BUSY: lib.SHMQ_LACKS_TURN,
}
"""What a put waits for, by the status of its try."""

TURN_NS = 10_000_000
"""So long a put with a key waits for its turn, also one that does not wait for room."""

How = tuple[bool, int]
"""Whether it is urgent, and the hash of its key, or 0."""
PLAIN: How = (False, 0)

_encode_plain = msgspec.msgpack.Encoder().encode


class Producer(Handle):
    """The side of a handle that puts."""

    __slots__ = ()

    def put(
        self,
        obj: Any,
        block: bool = True,
        timeout: float | None = None,
        *,
        key: str | bytes | None = None,
        priority: bool = False,
    ) -> bool:
        """Puts ``obj``; waits for room up to ``timeout`` seconds (None: for ever) if ``block``.

        bytes, bytearray and memoryview travel as they are; None, bool, int, float, str, list, tuple, dict,
        dataclass and msgspec.Struct as msgpack; arrays (numpy, torch on the CPU, DLPack exporters), alone or
        anywhere inside those, beside it, copied once.  Dense arrays keep C or Fortran order, others arrive
        in C order.

        ``priority=True``, on a queue that was created with it: consumers take ``obj`` before whatever was put
        without, but for what is delivered again.  After 16 of these in a row a consumer takes one of the
        others, if one waits.

        ``key``, on a queue with ``dedupe=N``: drops ``obj`` if its key is among the last N that were put, by
        whichever process, dead or alive.  So a put whose outcome is not known, because its process died, is
        made again by whoever comes next, and the message is there once.  A str is its UTF-8 bytes.

        Returns whether it was put: False where it was a repeat, or ``on_full="drop_newest"`` dropped it.
        Raises ``Full`` (also where another process was stopped in a put with a key) or ``ArenaFull`` (which
        names who holds the most), ``MessageTooLarge``, ``Unencodable``, ``RoleTaken``, ``ShutDown``,
        ``Closed``.  The object was then not put."""
        if timeout is not None and block:
            deadline_ns(timeout)  # refuses nonsense also where nothing has to wait
        if key is not None or priority:
            return self._put_slow(obj, lib.PY_ENCODE, block, timeout, self._how(key, priority))
        status = self._put(obj)
        return status is None or self._put_slow(obj, status, block, timeout, PLAIN)

    def _put_slow(self, obj: Any, status: int, block: bool, timeout: float | None, how: How) -> bool:
        """Whatever is not bytes or a plain array, has a key, is urgent, or did not go through at once."""
        deadline = deadline_ns(timeout) if block else 0
        dropped: list[int] = []
        for lacking, size in self._tries(obj, status, how, dropped):
            self._wait_put(lacking, size, deadline)
        return not dropped

    def _how(self, key: str | bytes | None, priority: bool) -> How:
        return self._lane(priority), 0 if key is None else self._hash(key)

    def _lane(self, priority: bool) -> bool:
        """``priority`` where this queue has an urgent lane."""
        if priority and not self._has_priority:
            raise errors.WrongKind(
                f"queue {self.name!r}: has no urgent lane; create it with shmq.Queue(name, priority=True)"
            )
        return bool(priority)

    def _hash(self, key: str | bytes) -> int:
        """A key as the window has it: 64 bits, not 0.  With N keys in it a put is dropped by chance once in
        2**64 / N times."""
        if isinstance(key, str):
            key = key.encode()
        elif not isinstance(key, bytes):
            raise TypeError(f"key={key!r}: must be str or bytes")
        if not self._dedupe:
            raise errors.WrongKind(
                f"queue {self.name!r}: it remembers no keys; create it with kind='mpmc' and dedupe=N"
            )
        return int.from_bytes(blake2b(key, digest_size=8).digest(), "little") or 1

    def _tries(self, obj: Any, status: int, how: How, dropped: list[int]) -> Iterator[tuple[int, Size]]:
        """Tries until ``obj`` is put; before each further try, says what was lacking, and what it will take.

        Whoever drives this waits meanwhile: here as a thread, in ``aio.py`` as a task.  Where it is a repeat,
        or the handle is told to drop what finds no room, ``dropped`` gets the status: it was not put."""
        urgent, key = how
        send, args, count, keep = codec.encode(obj, self._options[0])
        if status == lib.PY_ENCODE:
            status = send(self._c, urgent, *args, key)
        while status:
            if status == lib.SHMQ_REPEAT:
                dropped.append(status)
                return
            if status in (lib.SHMQ_FULL, lib.SHMQ_ARENA_FULL) and self._options[3] != "block":
                way = self._make_way(status, urgent)
                if way == "drop":
                    dropped.append(status)
                    return
                if way == "wait":
                    yield status, count()._replace(urgent=urgent)
            elif status in LACKS or status == lib.SHMQ_NOT_READY:
                yield status, count()._replace(urgent=urgent)
            else:
                self._recover_or_raise(status, count().block_bytes)
            status = send(self._c, urgent, *args, key)
        del keep  # alive until here: the C side reads it

    def _make_way(self, status: int, urgent: bool) -> Literal["again", "drop", "wait"]:
        """What ``on_full`` says of an object that found no room."""
        raise NotImplementedError

    def _wait_put(self, status: int, size: Size, deadline: int) -> None:
        """Waits until a put that failed with ``status`` may succeed; raises once the deadline is over."""
        if status == lib.SHMQ_NOT_READY:
            return self._recover_or_raise(status, 0)
        now = time.monotonic_ns()
        if now >= deadline:
            if lib.py_look_around(self._c):
                return None
            if status == lib.SHMQ_KEYS_BUSY and self._await_turn(size, now + TURN_NS):
                return None
            self._raise_full(status, size, waited=deadline > 0)
        c = self._c
        pages = status == lib.SHMQ_ARENA_FULL
        needed = size.block_bytes if pages else size.record_bytes(self._inline_bytes)
        lib.py_wait_put(c, size.urgent, LACKS[status], needed, slice_end_ns(deadline))
        return None

    def _await_turn(self, size: Size, deadline: int) -> bool:
        """A turn lasts less than a microsecond, unless its holder has lost the processor, or was stopped."""
        status = lib.py_wait_put(self._c, size.urgent, lib.SHMQ_LACKS_TURN, 0, deadline)
        return bool(status == lib.SHMQ_OK)

    def _raise_full(self, status: int, size: Size, waited: bool) -> None:
        if status == lib.SHMQ_KEYS_BUSY:
            errors.raise_status(status, self.name, stats.explain_keys_busy(self._c, self.name))
        if not waited:  # whoever tries without waiting wants to know soon: no look at the peers
            errors.raise_status(status, self.name, self._full_text(status, size.urgent))
        if status == lib.SHMQ_FULL:
            errors.raise_status(status, self.name, stats.explain_full(self._c, self.name, size.urgent))
        errors.raise_status(status, self.name, stats.explain_arena_full(self._c, self.name, size.block_bytes))

    def _put_plain(self, obj: Any) -> bool:
        """One try of a message without arrays.  False: it was not put; ``put`` will find out why."""
        try:
            body = _encode_plain(obj)
        except Exception:
            return False
        return not lib.py_put_as(self._c, False, lib.SHMQ_MSGPACK, body, len(body), 0)

    def _full_text(self, status: int, urgent: bool) -> str:
        return self._full_texts[1 if status == lib.SHMQ_ARENA_FULL else 2 * urgent]

    def put_nowait(self, obj: Any, *, key: str | bytes | None = None, priority: bool = False) -> bool:
        """``put(obj, block=False, key=key, priority=priority)``."""
        return self.put(obj, block=False, key=key, priority=priority)

    def put_many(self, objs: Any, timeout: float | None = None) -> int:
        """Puts every object of an iterable, in order; runs of bytes are published together.

        Returns how many.  ``Full`` (and every other error) says in ``.done`` how many are in the queue."""
        items = objs if type(objs) is list else list(objs)
        deadline = deadline_ns(timeout)
        done = 0
        try:
            while done < len(items):
                sent = lib.py_put_many(self._c, id(items), done)
                if sent > 0:
                    done += sent
                elif sent == -lib.SHMQ_FULL and self._options[3] == "block":
                    n = len(items[done])
                    self._wait_put(lib.SHMQ_FULL, Size(n, n, is_array=False), deadline)
                else:
                    left = None if timeout is None else max(deadline - time.monotonic_ns(), 0) / 1e9
                    self.put(items[done], timeout=left)
                    done += 1
        except errors.ShmqError as e:
            e.done = done
            raise
        return done

    def loan(
        self, shape: int | tuple[int, ...], dtype: Any, *, order: Literal["C", "F"] = "C",
        timeout: float | None = None, priority: bool = False,
    ) -> Loan:  # fmt: skip
        """Lends an array of shared memory to write in place, so that sending it copies nothing.

        As a context manager it is published on a clean exit and discarded on an exception.  Waits up to
        ``timeout`` seconds for arena pages; its content is whatever lay there before.  ``priority``: as for
        ``put``."""
        return Loan(self, shape, dtype, order, deadline_ns(timeout), priority)
