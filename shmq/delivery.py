"""Delivery at least once: ``Message``, and taking from a queue whose messages are acknowledged.

A leased message is delivered again, to whoever leases next, unless it is acknowledged before its handle is
closed or its process dies.  ``csrc/pending.c`` has the algorithm (Redis Streams' pending entries list).
"""

import random
import weakref
from types import TracebackType
from typing import TYPE_CHECKING, Any, NoReturn, Self

from . import errors
from ._core import ffi, lib
from .errors import DeadLetterFull
from .producer import LACKS

if TYPE_CHECKING:
    from .queue import Queue

DEFAULT_MAX_UNACKED = 1024
DEFAULT_MAX_DELIVERIES = 5
DEAD_SUFFIX = ".dead"
DEAD_RETRY_NS = 500_000_000
"""How long a message waits that finds no room in the dead-letter queue."""


def raise_nothing(status: int, name: str) -> NoReturn:
    """Nothing came in time."""
    no_room = (
        "a message is to come again as a copy, because somebody still looks at its memory, and there is no "
        "room for one; drop views, or create the queue with a larger arena_bytes"
    )
    errors.raise_status(status, name, no_room if status == lib.SHMQ_ARENA_FULL else "")


def backoff(deliveries: int, first: float, factor: float, longest: float) -> float:
    """Seconds to wait after that many deliveries in vain: see ``Message.retry``."""
    if not (0 <= first <= 1e9 and 1 <= factor <= 1e9 and 0 <= longest <= 1e9):
        raise ValueError(
            f"first={first!r}, factor={factor!r}, longest={longest!r}: the times must be between 0 and 1e9 "
            "seconds, the factor between 1 and 1e9"
        )
    try:
        grown = first * float(factor) ** (deliveries - 1)
    except OverflowError:
        grown = longest if first else 0.0
    return min(grown, longest) * random.uniform(0.5, 1.0)


class Message:
    """A leased message.  Any thread of its process.

    As a context manager it is acknowledged on a clean exit and given back on an exception.  One that is
    dropped without either is given back at once.  Arrays in ``value`` are read-only views, since the message
    may have to be delivered again; they stay valid after ``ack()`` for as long as they live."""

    __slots__ = ("_delivery", "_queue", "_settled", "value")

    def __init__(self, queue: "Queue", delivery: Any, item: Any, copy: bool) -> None:
        self._queue = queue
        self._delivery = delivery
        self.value = queue._decode(item, copy)
        self._settled = False  # last: what could not be decoded is its caller's to give back

    @property
    def deliveries(self) -> int:
        """How often it was delivered, this time included.  Above 1: somebody may have worked on it."""
        return int(self._delivery.deliveries)

    def ack(self) -> None:
        """The message is done.

        ``StaleLease`` where it was delivered again meanwhile (``visibility``), or settled before."""
        self._settle(lib.shmq_ack, "acknowledged")

    def nack(self, delay: float = 0.0) -> None:
        """Gives it back: it is delivered again, after ``delay`` seconds.  ``StaleLease`` as for ``ack``."""
        if not 0 <= delay <= 1e9:
            raise ValueError(f"delay={delay!r}: must be between 0 and 1e9 seconds")
        self._settle(lib.shmq_nack, "given back", int(delay * 1e9))

    def retry(self, first: float = 0.1, factor: float = 2.0, longest: float = 60.0) -> float:
        """``nack`` with exponential backoff; returns the delay in seconds.

        That is between half of and the whole ``first * factor ** (deliveries - 1)``, at most ``longest``: at
        random, so that what failed together does not come again together.  After ``max_deliveries`` the
        message is in the dead-letter queue."""
        delay = backoff(self.deliveries, first, factor, longest)
        self.nack(delay)
        return delay

    def _settle(self, call: Any, how: str, *args: int) -> None:
        if self._settled:
            raise errors.StaleLease(
                f"queue {self._queue.name!r}: this message was settled before; it can be {how} once"
            )
        status = call(self._queue._c, self._delivery, *args)
        if status not in (lib.SHMQ_OK, lib.SHMQ_STALE):
            errors.raise_status(status, self._queue.name)
        self._settled = True
        if status:
            errors.raise_status(status, self._queue.name)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._settled:
            return
        if kind is None:
            self.ack()
        else:
            self._give_back()

    def _give_back(self) -> None:
        """Where nobody could be told: a closed handle gave everything back, a stale lease is another's."""
        self._settled = True
        lib.shmq_nack(self._queue._c, self._delivery, 0)

    def __del__(self) -> None:
        if not getattr(self, "_settled", True):
            self._give_back()

    def __repr__(self) -> str:
        return f"<shmq.Message of {self._queue.name!r}, delivery {self.deliveries}>"


class Acknowledged:
    """The three ways to take where messages are acknowledged: lease, and ack before the return."""

    def __init__(self, queue: "Queue") -> None:
        # Weakly: the handle has this object's methods, and is to end when nobody has it any more.
        self._weak_queue = weakref.ref(queue)
        self.dead: Queue | None = None

    @property
    def _queue(self) -> "Queue":
        queue = self._weak_queue()
        assert queue is not None, "its methods are called through it"
        return queue

    def lease(self) -> tuple[Any, Any]:
        """(item, its ``shmq_delivery``), or (a status, None).  What was delivered too often is put aside."""
        queue = self._queue
        while True:
            delivery = ffi.new("shmq_delivery *")
            box: list[Any] = []
            status = lib.py_lease(queue._c, delivery, id(box))
            if status:
                return status, None
            if not 0 < queue._max_deliveries < delivery.deliveries:
                return box[0], delivery
            self._put_aside(delivery, box[0])

    def _put_aside(self, delivery: Any, item: Any) -> None:
        """Into the dead-letter queue, by a key: who dies between put and ack has put it, and whoever is next
        does not put it again."""
        queue = self._queue
        try:
            put_undecoded(queue.dead_letters(), item, f"{queue._uuid}:{delivery.position}")
        except (errors.Full, DeadLetterFull) as e:
            lib.shmq_nack(queue._c, delivery, DEAD_RETRY_NS)
            raise DeadLetterFull(
                f"queue {queue.name!r}: a message was delivered {delivery.deliveries - 1} times, never "
                f"acknowledged, and does not get into the dead-letter queue; it comes again: {e}"
            ) from None
        except BaseException:
            lib.shmq_nack(queue._c, delivery, DEAD_RETRY_NS)
            raise
        lib.shmq_ack(queue._c, delivery)

    def try_take(self) -> Any:
        item, delivery = self.lease()
        if delivery is not None:
            lib.shmq_begin_task(self._queue._c)  # before the ack, so that join() sees one or the other
            lib.shmq_ack(self._queue._c, delivery)
        return item

    def take(self, wait: bool) -> Any:
        return self.try_take()

    def take_many(self, max_items: int) -> Any:
        items: list[Any] = []
        while len(items) < max_items:
            item = self.try_take()
            if type(item) is int:
                return (items,) if items else item
            items.append(item)
        return (items,)


def put_undecoded(queue: "Queue", item: Any, key: str) -> None:
    """Puts a message as ``py_lease`` delivers it (``_glue.h``), without waiting; a repeat is dropped."""
    hashed = queue._hash(key) if queue._dedupe else 0
    codec, payload, *meta = (lib.SHMQ_RAW, item) if type(item) is bytes else item
    head = meta[0] if meta and codec == lib.SHMQ_TENSOR else b""
    arguments = queue._c, False, codec, head, len(head), id(payload), hashed
    status = lib.py_put_buffer(*arguments)
    # Nobody waits there who would repair what the dead left in the way.
    if status in LACKS and lib.py_look_around(queue._c):
        status = lib.py_put_buffer(*arguments)
    if status not in (lib.SHMQ_OK, lib.SHMQ_REPEAT):
        errors.raise_status(status, queue.name)
