"""``Handle``: a Python object over one C pointer, from attaching to closing.

Threads may share a handle: the steps of a C call are atomic under the GIL, waits and large copies release it.
"""

import atexit
import os
import secrets
import threading
import weakref
from collections.abc import Callable
from multiprocessing import util
from types import TracebackType
from typing import Any, ClassVar, Literal, Self, TypeVar

import numpy as np

from . import errors, segment, stats
from ._core import ffi, lib
from .stats import Peer, QueueStats
from .tensor import Arrays

T = TypeVar("T")

CURSOR_START = 0  # tests start near the wrap
KINDS = {"spsc": lib.SHMQ_KIND_SPSC, "mpmc": lib.SHMQ_KIND_MPMC, "topic": lib.SHMQ_KIND_TOPIC}
POLICIES = {"block": lib.SHMQ_BLOCK, "drop_oldest": lib.SHMQ_DROP_OLDEST, "evict": lib.SHMQ_EVICT}
INLINE_BYTES = {"spsc": 8192, "mpmc": 480, "topic": 480}
"""Where the caller names no length: a slot is as long as its longest payload."""
SLOT_HEADER_BYTES = 32
MAX_PEERS = {"spsc": 4095, "mpmc": 4095, "topic": 51}
DEFAULTS = {"ring_bytes": 1 << 20, "arena_bytes": 32 << 20, "max_peers": 64}

OnFull = Literal["block", "error", "drop_oldest", "drop_newest"]
MOST_KEYS = 1 << 16
"""That a queue can remember."""

Options = tuple[bool, Arrays, Any, OnFull]
"""allow_pickle, arrays, type, on_full: see ``Queue``."""

_open_handles: "weakref.WeakSet[Handle]" = weakref.WeakSet()
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


class Handle:
    """What ``Queue``, ``Topic`` and ``Subscription`` have in common: a name, a C pointer, a life."""

    __slots__ = (
        "__weakref__",
        "_c",
        "_dedupe",
        "_full_texts",
        "_has_priority",
        "_identity",
        "_inline_bytes",
        "_is_spsc",
        "_max_deliveries",
        "_max_unacked",
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
    _kinds: ClassVar[tuple[str, ...]] = ()
    """Of the segments that it can be a handle of."""

    def _open(self, name: str | None, params: Any, options: Options, check: Callable[[], None]) -> None:
        """Attaches or creates.  ``check`` looks at what was attached, and raises."""
        if name is None:
            self._create(f"anonymous-{os.getpid()}-{secrets.token_hex(6)}", params, options)
            return self._own_name()
        for _ in range(100):
            try:
                self._attach(name, options, timeout=5.0)
                try:
                    return check()
                except errors.WrongKind:
                    self.close()
                    raise
            except errors.SegmentNotFound:
                pass
            try:
                return self._create(name, params, options)
            except errors.NameTaken:  # made by another process meanwhile
                pass
        raise errors.NotReady(
            f"queue {name!r}: others create and remove it all the time; agree on one creator"
        )

    def _own_name(self) -> None:
        """The name goes when this handle is closed, or at its process's end."""
        self._owns_name = True
        # Runs at exit, also of a child of multiprocessing, which ends without atexit; and after its own
        # children were joined, which may still have to attach.
        finalizer = util.Finalize(None, _forget, args=(self.name,), exitpriority=-100)
        _anonymous[self.name] = self._identity, os.getpid(), finalizer

    def _create(self, name: str, params: Any, options: Options) -> None:
        handle, identity = segment.create(name, params)
        self._bind(name, handle, identity, options)

    def _attach(self, name: str, options: Options, timeout: float | None) -> None:
        handle, identity = segment.attach(name, timeout)
        self._bind(name, handle, identity, options)

    def _bind(self, name: str, handle: Any, identity: segment.Identity, options: Options) -> None:
        found = stats.read(handle, name)
        if found.kind not in self._kinds:
            lib.shmq_close(handle)
            raise errors.WrongKind(
                f"queue {name!r}: exists and is "
                + ("a topic; open it with shmq.Topic" if found.kind == "topic" else "a queue, not a topic")
                + ", or use another name"
            )
        self.name = name
        self._c = handle
        self._identity = identity
        self._options = options
        self._owns_name = False
        bound: list[Any] = []
        ours = segment.check_name(name).encode()
        if lib.py_bind(handle, id(bound), id(np.ndarray), options[1] != "torch", ours):
            raise MemoryError
        self._put, self._take, self._try_take, self._take_many = bound
        self._uuid, self._inline_bytes = found.uuid, found.inline_bytes
        self._max_deliveries = found.max_deliveries
        self._max_unacked = found.max_unacked
        self._dedupe = found.dedupe
        self._is_spsc = found.kind == "spsc"
        self._has_priority = found.priority
        self._full_texts = (
            f"the ring of {found.ring_bytes:,} bytes is full; consume faster, wait (timeout=...), or create "
            "the queue with a larger ring_bytes",
            f"the arena of {found.arena_bytes:,} bytes has no free run of pages that is long enough; drop "
            "views sooner, wait (timeout=...), or create the queue with a larger arena_bytes",
            f"the urgent lane of {found.urgent_slots:,} messages is full; consume faster, wait "
            "(timeout=...), or create the queue with a larger ring_bytes, of which it has an eighth",
        )
        _open_handles.add(self)

    # ---- state ----

    def stats(self) -> QueueStats:
        """A snapshot of counters, ring and arena."""
        return self._read(stats.read)

    def peers(self) -> list[Peer]:
        """Every handle that is attached, this one included, with what it holds."""
        return self._read(stats.read_peers)

    def _read(self, reader: Callable[[Any, str], T]) -> T:
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

    def __reduce__(self) -> tuple[Any, ...]:
        if self.closed:
            raise errors.Closed(f"queue {self.name!r}: a closed handle cannot be pickled")
        return _unpickle, (type(self), self.name, self._uuid, self._options)

    def __repr__(self) -> str:
        return f"<shmq.{type(self).__name__} {self.name!r}{' closed' if self.closed else ''}>"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def make_params(
    kind: str,
    ring_bytes: int,
    arena_bytes: int,
    inline_bytes: int | None,
    max_peers: int,
    policy: int = 0,
    history: int = 0,
    max_unacked: int = 0,
    visibility: float | None = None,
    max_deliveries: int = 0,
    dedupe: int | None = None,
    priority: bool = False,
) -> Any:
    """Checked sizes as the C side takes them.  Raises TypeError and ValueError."""
    limits = [
        ("ring_bytes", ring_bytes, 32, 1 << 30),
        ("arena_bytes", arena_bytes, 0, 1 << 38),
        ("inline_bytes", INLINE_BYTES[kind] if inline_bytes is None else inline_bytes, 8, 1 << 28),
        ("max_peers", max_peers, 1, MAX_PEERS[kind]),
        ("history", history, 0, 1 << 23),
        ("max_unacked", max_unacked, 0, 1 << 20),
        ("max_deliveries", max_deliveries, 0, 1 << 31),
        ("dedupe", 1 if dedupe is None else dedupe, 1, MOST_KEYS),
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
    slot = -(-(inline_bytes + SLOT_HEADER_BYTES) // 128) * 128
    slots = 1 << (-(-ring // slot) - 1).bit_length()
    if history > slots // 2:
        raise ValueError(
            f"history={history:,}: must be at most {slots // 2:,}, half of the {slots:,} slots of "
            f"ring_bytes={ring:,}; choose a larger ring_bytes"
        )
    if visibility is not None and not 0.001 <= visibility <= 1e9:
        raise ValueError(f"visibility={visibility!r}: must be between 0.001 and 1e9 seconds, or None")
    return ffi.new(
        "shmq_params *",
        {
            "ring_bytes": ring,
            "arena_bytes": arena_bytes,
            "first_cursor": CURSOR_START,
            "inline_bytes": inline_bytes,
            "peers": max_peers,
            "kind": KINDS[kind],
            "policy": policy,
            "history": history,
            "max_unacked": max_unacked,
            "visibility_ns": int((visibility or 0) * 1e9),
            "max_deliveries": max_deliveries,
            "keys": dedupe or 0,
            "priority": priority,
        },
    )


def check_options(allow_pickle: bool, arrays: Arrays, kind: Any, on_full: OnFull = "block") -> Options:
    """What concerns the handle and not the segment, checked."""
    if arrays not in ("auto", "numpy", "torch"):
        raise ValueError(f"arrays={arrays!r}: must be 'auto', 'numpy' or 'torch'")
    if on_full not in ("block", "error", "drop_oldest", "drop_newest"):
        raise ValueError(f"on_full={on_full!r}: must be 'block', 'error', 'drop_oldest' or 'drop_newest'")
    return bool(allow_pickle), arrays, kind, on_full


def _unpickle(cls: type[Handle], name: str, uuid: str, options: Options) -> Handle:
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
