"""``Queue``: a handle with ``queue.Queue``'s verbs, from ``producer.py`` and ``consumer.py``."""

from typing import Any, ClassVar, Literal, Self

from . import errors
from .consumer import Consumer
from .handle import DEFAULTS, check_options, make_params
from .producer import Producer
from .tensor import Arrays

Kind = Literal["spsc", "mpmc"]


class Queue(Producer, Consumer):
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

    __slots__ = ()
    _kinds: ClassVar[tuple[str, ...]] = ("spsc", "mpmc")

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

        def check() -> None:
            found = self.stats().kind
            if kind is not None and found != kind:
                raise errors.WrongKind(
                    f"queue {name!r}: exists and is of kind {found!r}, not {kind!r}; leave out kind=, remove "
                    "it (shmq rm), or use another name"
                )

        self._open(name, params, check_options(allow_pickle, arrays, type), check)

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
        self._create(name, params, check_options(allow_pickle, arrays, type))
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
        self._attach(name, check_options(allow_pickle, arrays, type), timeout)
        return self

    def qsize(self) -> int:
        """Messages that wait.  Others may put and get at any moment."""
        return self.stats().qsize

    def empty(self) -> bool:
        """True if no message waits now."""
        return self.qsize() == 0

    def full(self) -> bool:
        """True if a message of ``inline_bytes`` would find no room in the ring now."""
        return self.stats().full


def _params(
    kind: Kind | None, ring_bytes: int, arena_bytes: int, inline_bytes: int | None, max_peers: int
) -> Any:
    if kind not in (None, "spsc", "mpmc"):
        raise ValueError(f"kind {kind!r}: must be one of 'spsc', 'mpmc'")
    return make_params(kind or "mpmc", ring_bytes, arena_bytes, inline_bytes, max_peers)
