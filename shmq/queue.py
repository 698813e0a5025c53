"""``Queue``: a thin handle over one C pointer, with ``queue.Queue``'s verbs.

A put is ``encode -> one C call``; a get is ``one C call -> decode``.  Only what did not go through at once
takes the slow path: try, wait in slices of at most 100 ms so that Python runs its signal handlers, try again.

Threads may share a handle: the steps of a C call are atomic under the GIL, waits and large copies release it.
Signals are served before a message is taken, so a handler that raises (KeyboardInterrupt) leaves it there.
"""

import atexit
import os
import secrets
import threading
import time
import weakref
from multiprocessing import util
from types import TracebackType
from typing import Any, Literal, Self

import numpy as np

from . import codec, errors, segment, stats
from ._core import ffi, lib
from .clock import deadline_ns, slice_end_ns
from .codec import Size
from .loan import Loan
from .stats import Peer, QueueStats
from .tensor import Arrays

CURSOR_START = 0  # tests start near the wrap
Kind = Literal["spsc", "mpmc"]
KINDS: dict[Kind, int] = {"spsc": lib.SHMQ_KIND_SPSC, "mpmc": lib.SHMQ_KIND_MPMC}
INLINE_BYTES: dict[Kind, int] = {"spsc": 8192, "mpmc": 480}
"""Where the caller names no length: an mpmc slot is as long as its longest payload."""
SLOT_HEADER_BYTES = 32
DEFAULTS = {"ring_bytes": 1 << 20, "arena_bytes": 32 << 20, "max_peers": 64}

_open_handles: "weakref.WeakSet[Queue]" = weakref.WeakSet()
_anonymous: dict[str, tuple[segment.Identity, int, util.Finalize]] = {}
"""Names that go with their creator: segment, pid, and what removes them at its end."""


class _Reattaching:
    """One thread at a time; a child that was forked in the middle of it starts with a free lock."""

    def __init__(self) -> None:
        self.renew()
        os.register_at_fork(after_in_child=self.renew)

    def renew(self) -> None:
        self.lock = threading.Lock()


_reattaching = _Reattaching()


class Queue:
    """A FIFO queue in shared memory, opened or created.

    ``name``: 1 to 200 characters of ``A-Z a-z 0-9 . _ -``; None makes an anonymous queue, which other
    processes reach through a pickled handle and whose name goes when its creator closes it or ends.
    ``kind``: "mpmc", any number of producers and consumers; or "spsc", one producer and one consumer at a
    time, which is faster and packs messages more tightly.  The default is what exists, else "mpmc";
    ``WrongKind`` where another exists than was asked for.  On "spsc" the first put of a handle claims the
    producer's role, the first get the consumer's; ``RoleTaken`` while another live handle has it.

    The sizes count only where this call creates the segment (they are reserved at once):
    ``ring_bytes`` holds the messages that wait: on "spsc" in-line ones whole, others as 16 bytes; on "mpmc"
    each one a slot of 32 bytes more than ``inline_bytes``, rounded up to 128;
    ``inline_bytes`` is the longest payload that lies in the ring ("spsc": 8,192, at most a quarter of the
    ring; "mpmc": 480, at most a slot of half of it);
    ``arena_bytes`` holds longer payloads and every array above 1 KiB, and is the largest message;
    ``max_peers`` is how many handles may be open at once (at most 4,095).

    On the receiving side: ``allow_pickle`` decodes pickled messages (which runs code that the sender chose);
    ``arrays`` is "auto" (as sent: numpy or torch), "numpy" or "torch"; ``type`` is what msgpack messages are
    decoded into (a dataclass, ``msgspec.Struct``, ...; see msgspec).

    Threads may share a handle.  Processes may not: pickle it (spawn, forkserver), or use it in a forked
    child, where it attaches anew on first use.
    """

    __slots__ = (
        "__weakref__",
        "_c",
        "_full_texts",
        "_identity",
        "_inline_bytes",
        "_options",
        "_owns_name",
        "_put",
        "_take",
        "_take_many",
        "_try_take",
        "_uuid",
        "name",
    )

    _c: Any
    name: str

    def __init__(
        self,
        name: str | None = None,
        *,
        kind: Kind | None = None,
        ring_bytes: int = DEFAULTS["ring_bytes"],
        arena_bytes: int = DEFAULTS["arena_bytes"],
        inline_bytes: int | None = None,
        max_peers: int = DEFAULTS["max_peers"],
        allow_pickle: bool = False,
        arrays: Arrays = "auto",
        type: Any = None,
    ) -> None:
        params = _params(kind, ring_bytes, arena_bytes, inline_bytes, max_peers)
        options = _check_options(allow_pickle, arrays, type)
        if name is None:
            self._create(f"anonymous-{os.getpid()}-{secrets.token_hex(6)}", params, options)
            self._owns_name = True
            # Runs at exit, also of a child of multiprocessing, which ends without atexit; and after its own
            # children were joined, which may still have to attach.
            finalizer = util.Finalize(None, _forget, args=(self.name,), exitpriority=-100)
            _anonymous[self.name] = self._identity, os.getpid(), finalizer
            return
        for _ in range(100):
            try:
                return self._attach_as(kind, name, options)
            except errors.SegmentNotFound:
                pass
            try:
                return self._create(name, params, options)
            except errors.NameTaken:  # made by another process meanwhile
                pass
        raise errors.NotReady(
            f"queue {name!r}: others create and remove it all the time; agree on one creator"
        )

    @classmethod
    def create(
        cls,
        name: str,
        *,
        kind: Kind | None = None,
        ring_bytes: int = DEFAULTS["ring_bytes"],
        arena_bytes: int = DEFAULTS["arena_bytes"],
        inline_bytes: int | None = None,
        max_peers: int = DEFAULTS["max_peers"],
        allow_pickle: bool = False,
        arrays: Arrays = "auto",
        type: Any = None,
    ) -> Self:
        """Makes the segment; ``NameTaken`` if there is one of this name.  Parameters as for ``Queue``.

        Raises ``OutOfSpace`` where its memory cannot be reserved; then no name is left behind."""
        self = cls.__new__(cls)
        params = _params(kind, ring_bytes, arena_bytes, inline_bytes, max_peers)
        self._create(name, params, _check_options(allow_pickle, arrays, type))
        return self

    @classmethod
    def attach(
        cls,
        name: str,
        *,
        allow_pickle: bool = False,
        arrays: Arrays = "auto",
        type: Any = None,
        timeout: float | None = 5.0,
    ) -> Self:
        """Opens what exists; ``SegmentNotFound`` if nothing does.

        Waits up to ``timeout`` seconds for a creator that is still initialising, then raises ``NotReady``."""
        self = cls.__new__(cls)
        self._attach(name, _check_options(allow_pickle, arrays, type), timeout)
        return self

    def _create(self, name: str, params: Any, options: tuple[bool, Arrays, Any]) -> None:
        handle, identity = segment.create(name, params)
        self._bind(name, handle, identity, options)

    def _attach_as(self, kind: Kind | None, name: str, options: tuple[bool, Arrays, Any]) -> None:
        self._attach(name, options, timeout=5.0)
        found = self.stats().kind
        if kind is not None and found != kind:
            self.close()
            raise errors.WrongKind(
                f"queue {name!r}: exists and is of kind {found!r}, not {kind!r}; leave out kind=, remove it "
                "(shmq rm), or use another name"
            )

    def _attach(self, name: str, options: tuple[bool, Arrays, Any], timeout: float | None) -> None:
        handle, identity = segment.attach(name, timeout)
        self._bind(name, handle, identity, options)

    def _bind(
        self, name: str, handle: Any, identity: segment.Identity, options: tuple[bool, Arrays, Any]
    ) -> None:
        self.name = name
        self._c = handle
        self._identity = identity
        self._options = options
        self._owns_name = False
        bound: list[Any] = []
        if lib.py_bind(handle, id(bound), id(np.ndarray), segment.check_name(name).encode()):
            raise MemoryError
        self._put, self._take, self._try_take, self._take_many = bound
        found = stats.read(handle, name)
        self._uuid, self._inline_bytes = found.uuid, found.inline_bytes
        self._full_texts = (
            f"the ring of {found.ring_bytes:,} bytes is full; consume faster, wait (timeout=...), or create "
            "the queue with a larger ring_bytes",
            f"the arena of {found.arena_bytes:,} bytes has no free run of pages that is long enough; drop "
            "views sooner, wait (timeout=...), or create the queue with a larger arena_bytes",
        )
        _open_handles.add(self)

    # ---- messages ----

    def put(self, obj: Any, block: bool = True, timeout: float | None = None) -> None:
        """Puts ``obj``; waits for room up to ``timeout`` seconds (None: for ever) if ``block``.

        bytes, bytearray and memoryview travel as they are; None, bool, int, float, str, list, tuple, dict,
        dataclass and msgspec.Struct as msgpack; arrays (numpy, torch on the CPU, DLPack exporters), alone or
        anywhere inside those, beside it, copied once.  Dense arrays keep C or Fortran order, others arrive
        in C order.

        Raises ``Full`` or ``ArenaFull`` (which names who holds the most), ``MessageTooLarge``,
        ``Unencodable``, ``RoleTaken``, ``ShutDown``, ``Closed``.  The object was then not put."""
        if timeout is not None and block:
            deadline_ns(timeout)  # refuses nonsense also where nothing has to wait
        status = self._put(obj)
        if status is not None:
            self._put_slow(obj, status, block, timeout)

    def _put_slow(self, obj: Any, status: int, block: bool, timeout: float | None) -> None:
        """Whatever is not bytes or a plain array, and whatever did not go through at once."""
        deadline = deadline_ns(timeout) if block else 0
        send, args, count, keep = codec.encode(obj, self._options[0])
        if status == lib.PY_ENCODE:
            status = send(self._c, *args)
        while status:
            if status in (lib.SHMQ_FULL, lib.SHMQ_ARENA_FULL):
                self._wait_put(status, count(), deadline)
            else:
                self._recover_or_raise(status, count().block_bytes)
            status = send(self._c, *args)
        del keep  # alive until here: the C side reads it

    def _wait_put(self, status: int, size: Size, deadline: int) -> None:
        """Waits until a put that failed with ``status`` may succeed; raises once the deadline is over."""
        if time.monotonic_ns() >= deadline:
            self._raise_full(status, size.block_bytes, waited=deadline > 0)
        c = self._c
        if status == lib.SHMQ_FULL:
            lib.py_wait_put(c, False, size.record_bytes(self._inline_bytes), slice_end_ns(deadline))
        else:
            lib.py_wait_put(c, True, size.block_bytes, slice_end_ns(deadline))

    def _raise_full(self, status: int, size: int, waited: bool) -> None:
        if not waited:  # whoever tries without waiting wants to know soon: no look at the peers
            errors.raise_status(status, self.name, self._full_texts[status == lib.SHMQ_ARENA_FULL])
        if status == lib.SHMQ_FULL:
            errors.raise_status(status, self.name, stats.explain_full(self._c, self.name))
        errors.raise_status(status, self.name, stats.explain_arena_full(self._c, self.name, size))

    def get(self, block: bool = True, timeout: float | None = None, copy: bool = False) -> Any:
        """Takes the next message; waits for one up to ``timeout`` seconds (None: for ever) if ``block``.

        Arrays come back as writable views of shared memory: no copy, and the memory returns to the arena when
        the last view dies (``copy=True`` detaches them).  The arrays of one message share one block.

        Raises ``Empty``, ``PeerDead`` (an spsc queue is empty and its producer died), ``DecodeError`` (the
        message's bytes are in its ``.payload``), ``RoleTaken``,
        ``ShutDown``, ``Closed``, ``Corrupt``."""
        if timeout is not None and block:
            deadline_ns(timeout)  # refuses nonsense also where nothing has to wait
        item = self._take() if block else self._try_take()
        if type(item) is bytes:
            return item
        if type(item) is int:
            item = self._await_message(item, 0, deadline_ns(timeout) if block else 0)
        return self._decode(item, copy)

    def _await_message(self, status: int, max_items: int, deadline: int) -> Any:
        """A message, or what ``_take_many(max_items)`` returns, once it is not a status."""
        item: Any = status
        while type(item) is int:
            if item == lib.SHMQ_EMPTY:
                if time.monotonic_ns() >= deadline:
                    errors.raise_status(lib.SHMQ_EMPTY, self.name)
                if lib.py_wait_get(self._c, slice_end_ns(deadline)) == lib.SHMQ_PEER_DEAD:
                    stats.raise_peer_dead(self._c, self.name)
            else:
                self._recover_or_raise(item, 0)
            # Looked up anew each time: reattach() binds other functions.
            item = self._take_many(max_items) if max_items else self._try_take()
        return item

    def _decode(self, item: Any, copy: bool) -> Any:
        allow_pickle, arrays, kind = self._options
        return codec.decode(item, arrays, allow_pickle, kind, copy)

    def put_nowait(self, obj: Any) -> None:
        """``put(obj, block=False)``."""
        self.put(obj, block=False)

    def get_nowait(self, copy: bool = False) -> Any:
        """``get(block=False)``."""
        return self.get(block=False, copy=copy)

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
                elif sent == -lib.SHMQ_FULL:
                    n = len(items[done])
                    self._wait_put(lib.SHMQ_FULL, Size(n, n, is_array=False), deadline)
                else:
                    left = None if timeout is None else max(deadline - time.monotonic_ns(), 0) / 1e9
                    self.put(items[done], timeout=left)
                    done += 1
        except errors.ShmqError as e:
            e.done = done  # type: ignore[attr-defined]
            raise
        return done

    def get_many(self, max_items: int, timeout: float | None = None, copy: bool = False) -> list[Any]:
        """Takes 1 to ``max_items`` messages; waits up to ``timeout`` seconds for the first only.

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

    def loan(
        self, shape: int | tuple[int, ...], dtype: Any, *, order: Literal["C", "F"] = "C",
        timeout: float | None = None,
    ) -> Loan:  # fmt: skip
        """Lends an array of shared memory to write in place, so that sending it copies nothing.

        As a context manager it is published on a clean exit and discarded on an exception.  Waits up to
        ``timeout`` seconds for arena pages; its content is whatever lay there before."""
        return Loan(self, shape, dtype, order, deadline_ns(timeout))

    # ---- state ----

    def qsize(self) -> int:
        """Messages that wait.  Others may put and get at any moment."""
        return self.stats().qsize

    def empty(self) -> bool:
        """True if no message waits now."""
        return self.qsize() == 0

    def full(self) -> bool:
        """True if a message of ``inline_bytes`` would find no room in the ring now."""
        return self.stats().full

    def stats(self) -> QueueStats:
        """A snapshot of counters, ring and arena."""
        return self._read(stats.read)  # type: ignore[no-any-return]

    def peers(self) -> list[Peer]:
        """Every handle that is attached, this one included, with what it holds."""
        return self._read(stats.read_peers)  # type: ignore[no-any-return]

    def _read(self, reader: Any) -> Any:
        try:
            return reader(self._c, self.name)
        except errors.ForkedHandle:
            self._recover_or_raise(lib.SHMQ_FORKED, 0)
            return reader(self._c, self.name)

    @property
    def closed(self) -> bool:
        """True after ``close()``."""
        return bool(lib.shmq_usable(self._c) == lib.SHMQ_CLOSED)

    def reap(self) -> int:
        """Repairs what dead processes left; returns how many of them.

        Whoever attaches, waits for longer than 100 ms or takes over does so anyway."""
        repaired = ffi.new("uint32_t *")
        if status := lib.shmq_reap(self._c, repaired):
            self._recover_or_raise(status, 0)
            lib.shmq_reap(self._c, repaired)
        return int(repaired[0])

    # ---- life ----

    def shutdown(self, immediate: bool = False) -> None:
        """Refuses puts from now on, for every process; gets go on until the queue is empty, or stop now.

        Waiting puts and gets wake up with ``ShutDown``.  It cannot be undone."""
        status = lib.shmq_shutdown(self._c, immediate)
        if status:
            self._recover_or_raise(status, 0)
            lib.shmq_shutdown(self._c, immediate)

    def close(self) -> None:
        """Ends the use of this handle and gives up its roles; again: nothing.

        Views that are alive stay valid; the memory is unmapped when the last one dies."""
        lib.shmq_close(self._c)
        if self._owns_name:
            _forget(self.name)

    def unlink(self) -> None:
        """Removes the name, if it is still this segment's.  Whoever is attached goes on."""
        segment.unlink_if(self.name, self._identity)

    def reattach(self) -> None:
        """In a forked child: replaces the parent's handle by one of this process's own; else nothing.

        Views that were inherited show the parent's memory and do not keep it from being reused."""
        with _reattaching.lock:
            status = lib.shmq_usable(self._c)
            if status == lib.SHMQ_FORKED:
                self._bind(self.name, segment.reattach(self.name, self._c), self._identity, self._options)
            elif status:
                errors.raise_status(status, self.name)

    def _recover_or_raise(self, status: int, size: int) -> None:
        """Returns where trying again makes sense: a forked handle that could attach anew, a role set free."""
        if status == lib.SHMQ_FORKED and lib.py_held(self._c) == 0:
            return self.reattach()
        if status == lib.SHMQ_NOT_READY:  # a dead process had the role, and is not repaired yet
            status = lib.py_settle_roles(self._c)
            if status == lib.SHMQ_OK:
                return None
        if status == lib.SHMQ_TOO_LARGE:
            largest = stats.read(self._c, self.name).largest_message_bytes
            errors.raise_status(
                status,
                self.name,
                f"a message of {size:,} bytes can never fit: the largest is {largest:,}; create the queue "
                f"with arena_bytes of at least {size:,}",
            )
        if status == lib.SHMQ_ROLE_TAKEN:
            errors.raise_status(status, self.name, stats.explain_role_taken(self._c, self.name))
        errors.raise_status(status, self.name)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __reduce__(self) -> tuple[Any, ...]:
        if self.closed:
            raise errors.Closed(f"queue {self.name!r}: a closed handle cannot be pickled")
        return _unpickle, (type(self), self.name, self._uuid, self._options)

    def __repr__(self) -> str:
        return f"<shmq.Queue {self.name!r}{' closed' if self.closed else ''}>"


def _params(
    kind: Kind | None, ring_bytes: int, arena_bytes: int, inline_bytes: int | None, max_peers: int
) -> Any:
    kind = kind or "mpmc"
    if kind not in KINDS:
        raise ValueError(f"kind {kind!r}: must be one of {', '.join(map(repr, KINDS))}")
    limits = [
        ("ring_bytes", ring_bytes, 32, 1 << 30),
        ("arena_bytes", arena_bytes, 0, 1 << 38),
        ("inline_bytes", INLINE_BYTES[kind] if inline_bytes is None else inline_bytes, 8, 1 << 28),
        ("max_peers", max_peers, 1, 4095),
    ]
    for label, value, low, high in limits:
        if isinstance(value, bool) or not hasattr(value, "__index__"):
            raise TypeError(f"{label}={value!r}: must be an int")
        if not low <= value <= high:
            raise ValueError(f"{label}={value:,}: must be between {low:,} and {high:,}")
    ring = max(4096, 1 << (ring_bytes - 1).bit_length())
    most = ring // 4 if kind == "spsc" else ring // 2 - SLOT_HEADER_BYTES
    if inline_bytes is None:
        inline_bytes = min(INLINE_BYTES[kind], most)
    elif inline_bytes > most:
        share = "a quarter of" if kind == "spsc" else "two slots must fit into"
        raise ValueError(
            f"inline_bytes={inline_bytes:,}: must be at most {most:,} ({share} ring_bytes={ring:,})"
        )
    return ffi.new(
        "shmq_params *", [ring, arena_bytes, CURSOR_START, inline_bytes, max_peers, KINDS[kind], 0]
    )


def _check_options(allow_pickle: bool, arrays: Arrays, kind: Any) -> tuple[bool, Arrays, Any]:
    if arrays not in ("auto", "numpy", "torch"):
        raise ValueError(f"arrays={arrays!r}: must be 'auto', 'numpy' or 'torch'")
    return bool(allow_pickle), arrays, kind


def _unpickle(cls: type[Queue], name: str, uuid: str, options: tuple[bool, Arrays, Any]) -> Queue:
    self = cls.__new__(cls)
    self._attach(name, options, timeout=5.0)
    if self._uuid != uuid:
        self.close()
        raise errors.StaleHandle(f"queue {name!r}: the name belongs to another segment now; open it anew")
    return self


def _forget(name: str) -> None:
    """Removes an anonymous queue's name, in the process that made it."""
    found = _anonymous.pop(name, None)
    if found is not None and found[1] == os.getpid():
        segment.unlink_if(name, found[0])
        found[2].cancel()


@atexit.register
def _close_all() -> None:
    # Daemon threads may be at work in a handle: closing it under them would print their tracebacks.  What is
    # not closed is what a death leaves, which the next one to attach or to wait repairs.
    if threading.active_count() == 1:
        for handle in list(_open_handles):
            lib.shmq_close(handle._c)
