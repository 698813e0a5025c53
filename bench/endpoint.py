"""The one interface through which shmq and every rival are measured.

A transport is a module (see `Transport`). The harness calls `wire` once, then each of two worker
processes calls `open_side` and gets an `Endpoint`: what it may send and receive with. Where one sends
to many (`Spec.readers`), there are several sides b, and each gets everything. A transport that is SHARED also
takes several sides a (`Spec.writers`), and each message then goes to one side b. The fields of
an endpoint are callables of the library itself wherever possible (`queue.put`, not a wrapper around
it), because a Python wrapper costs about as much as the fastest of these calls.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

Side = Literal["a", "b"]


class Unsuited(Exception):
    """Raised by `wire`: the transport is here but cannot carry what the spec asks for. The text says why."""


@dataclass(frozen=True)
class Spec:
    """What a pair of endpoints must be able to carry; pickled to both workers."""

    max_bytes: int
    """Largest payload."""
    in_flight: int
    """How many payloads of that size a transport that reserves memory should reserve room for."""
    both_ways: bool
    """Whether side b sends too. Side a always does."""
    directory: str
    """A private directory for sockets and the like, removed at the end."""
    readers: int = 1
    """How many sides b there are."""
    writers: int = 1
    """How many sides a there are."""


def _no_close() -> None:
    pass


@dataclass
class Endpoint:
    """One side of one transport: side a puts towards b and gets what b puts; b the other way.

    `None` means that the transport has no such call; the row is then shown without it.
    """

    put: Callable[[bytes], object] | None = None
    get: Callable[[], object] | None = None
    """Blocks until a message is there."""
    payload: Callable[[Any], bytes] = bytes
    """From the result of `get` to the bytes received; used in the verification pass only."""

    put_many: Callable[[list[bytes]], object] | None = None
    get_many: Callable[[int], Sequence[Any]] | None = None
    """At least one message, at most as many as asked for."""

    put_array: Callable[[Any], object] | None = None
    get_array: Callable[[], object] | None = None
    """The result is dropped at once by the timed loop: a view gives its memory back there."""
    as_array: Callable[[Any], Any] | None = None
    """From the result of `get_array` to a float32 array; used in the verification pass only."""

    view: Callable[[Any], Any] | None = None
    """Like `as_array`, where what `get_array` returns lies in the transport's memory: copied if kept."""

    put_object: Callable[[Any], object] | None = None
    """Lists and dicts of plain values. Without these two: msgpack around `put` and `get`."""
    get_object: Callable[[], Any] | None = None

    loan: Callable[[int], tuple[Any, Callable[[], object]]] | None = None
    """`loan(nbytes)` -> (writable float32 array in shared memory, call that publishes it)."""
    get_polling: Callable[[], object] | None = None
    """Like `get_array`, but never sleeps."""

    loop: Any = None
    """A `bench.loops.Loop`: the same as coroutines. Such a transport is in the suite aio alone."""

    service: Any = None
    """A `bench.services.Service`: plays the parts of request and reply, in the suite rpc alone."""

    close: Callable[[], object] = _no_close


class Transport(Protocol):
    """What a file in `rivals/` (and `ours.py`) provides, as module-level names."""

    NAME: str
    LAUNCH: Literal["spawn", "forkserver", "fork", "mpirun"]
    """The fork server is quicker for many processes."""
    POLLS: bool
    """Its blocking get never sleeps: it burns a core while it waits."""

    # SHARED: bool, optional: several may put and several get, and each message goes to one of them.

    def missing(self) -> str | None:
        """Why it cannot be measured here, or None."""

    def wire(self, spec: Spec) -> Any:
        """Makes what both sides must share; runs in the harness; is pickled while spawning.

        Raises `Unsuited` before it makes anything, for example where the payloads are too large for it."""

    def unwire(self, wiring: Any) -> None:
        """Takes it down again, after both workers have gone."""

    def open_side(self, spec: Spec, wiring: Any, side: Side) -> Endpoint:
        """Runs in the worker process of that side, after it was pinned."""
