"""``Queue``: a handle with ``queue.Queue``'s verbs, from ``producer.py`` and ``consumer.py``."""

import time
from typing import Any, ClassVar, Literal, Self

from . import delivery, errors
from ._core import lib
from .clock import deadline_ns, slice_end_ns
from .consumer import NOTHING_NOW, Consumer
from .delivery import Message
from .handle import DEFAULTS, MOST_KEYS, OnFull, Options, check_options, make_params
from .producer import Producer
from .segment import Identity
from .tensor import Arrays

Kind = Literal["spsc", "mpmc"]
Delivery = Literal["at_most_once", "at_least_once"]


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

    ``delivery="at_least_once"`` (with "mpmc"): a consumer leases a message and acknowledges it (``lease``);
    until then it is delivered again, flagged by ``Message.deliveries``, if its consumer dies, closes its
    handle or gives it back.  ``get`` leases and acknowledges in one.  ``max_unacked`` messages (1,024) may be
    leased, or wait to be delivered again, at a time; each takes a slot of memory beside the ring.
    ``visibility`` (None: for ever) is how many seconds a living consumer may take; what it holds longer is
    delivered again, as a copy.  What was delivered ``max_deliveries`` times (5; 0: no limit) in vain goes to
    the dead-letter queue, the queue ``<name>.dead``.

    ``dedupe=N`` (with "mpmc") remembers the last N keys (at most 65,536) that messages were put with
    (``put(obj, key=...)``), and drops a message whose key is among them; ``put`` then returns False, and
    ``stats().repeats`` counts it.

    ``priority=True`` (with "mpmc") adds an urgent lane for ``put(..., priority=True)``: it has an eighth of
    the ring's slots, 16 at least, beside ``ring_bytes``, and shares the arena.  Consumers take what is urgent
    first; after 16 urgent messages in a row each takes one of the others, if one waits, so neither starves.
    Each lane keeps its own order, and one that is full does not stop a put into the other.

    On the sending side ``on_full`` says what a put of this handle does that finds no room in ring or arena:
    "block", wait; "error", raise ``Full`` at once; "drop_newest", put nothing; "drop_oldest" (mpmc,
    at_most_once), take out what has waited longest until there is room (in its own lane; for room in the
    arena what is urgent last, and only for what is), and wait where nothing does.  What is
    dropped is counted in ``stats()``.  Loans wait in any case.

    On the receiving side: ``allow_pickle`` decodes pickled messages (which runs code that the sender chose);
    ``arrays`` is "auto" (as sent: numpy or torch), "numpy" or "torch"; ``type`` is what msgpack messages are
    decoded into (a dataclass, ``msgspec.Struct``, ...; see msgspec).

    Threads may share a handle.  Processes may not: pickle it (spawn, forkserver), or use it in a forked
    child, where it attaches anew on first use.
    """

    __slots__ = ("_acknowledged",)
    _kinds: ClassVar[tuple[str, ...]] = ("spsc", "mpmc")
    _acknowledged: delivery.Acknowledged | None

    def __init__(
        self,
        name: str | None = None,
        *,
        kind: Kind | None = None,
        ring_bytes: int = DEFAULTS["ring_bytes"],
        arena_bytes: int = DEFAULTS["arena_bytes"],
        inline_bytes: int | None = None,
        max_peers: int = DEFAULTS["max_peers"],
        delivery: Delivery | None = None,
        max_unacked: int | None = None,
        visibility: float | None = None,
        max_deliveries: int | None = None,
        dedupe: int | None = None,
        priority: bool = False,
        on_full: OnFull = "block",
        allow_pickle: bool = False,
        arrays: Arrays = "auto",
        type: Any = None,
    ) -> None:
        params = _params(
            kind, ring_bytes, arena_bytes, inline_bytes, max_peers,
            dedupe, priority, _acknowledgement(kind, delivery, max_unacked, visibility, max_deliveries),
        )  # fmt: skip

        def check() -> None:
            found = self.stats()
            for label, asked, is_there in (
                ("kind", kind, found.kind),
                ("delivery", delivery, found.delivery),
                ("priority", priority or None, found.priority),
            ):
                if asked is not None and asked != is_there:
                    raise errors.WrongKind(
                        f"queue {name!r}: exists and is of {label} {is_there!r}, not {asked!r}; leave out "
                        f"{label}=, remove it (shmq rm), or use another name"
                    )

        self._open(name, params, check_options(allow_pickle, arrays, type, on_full), check)

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
        delivery: Delivery | None = None,
        max_unacked: int | None = None,
        visibility: float | None = None,
        max_deliveries: int | None = None,
        dedupe: int | None = None,
        priority: bool = False,
        on_full: OnFull = "block",
        allow_pickle: bool = False,
        arrays: Arrays = "auto",
        type: Any = None,
    ) -> Self:
        """Makes the segment; ``NameTaken`` if there is one of this name.  Parameters as for ``Queue``.

        Raises ``OutOfSpace`` where its memory cannot be reserved; then no name is left behind."""
        self = cls.__new__(cls)
        params = _params(
            kind, ring_bytes, arena_bytes, inline_bytes, max_peers,
            dedupe, priority, _acknowledgement(kind, delivery, max_unacked, visibility, max_deliveries),
        )  # fmt: skip
        self._create(name, params, check_options(allow_pickle, arrays, type, on_full))
        return self

    @classmethod
    def attach(
        cls,
        name: str,
        *,
        on_full: OnFull = "block",
        allow_pickle: bool = False,
        arrays: Arrays = "auto",
        type: Any = None,
        timeout: float | None = 5.0,
    ) -> Self:
        """Opens what exists; ``SegmentNotFound`` if nothing does.

        Waits up to ``timeout`` seconds for a creator that is still initialising, then raises ``NotReady``."""
        self = cls.__new__(cls)
        self._attach(name, check_options(allow_pickle, arrays, type, on_full), timeout)
        return self

    def _bind(self, name: str, handle: Any, identity: Identity, options: Options) -> None:
        super()._bind(name, handle, identity, options)
        self._acknowledged = None
        if options[3] == "drop_oldest" and (self._is_spsc or self._max_unacked):
            self.close()
            raise ValueError(
                f"queue {name!r}: on_full='drop_oldest' needs kind='mpmc', since on 'spsc' only the consumer "
                "may take, and delivery='at_most_once', since it loses messages"
            )
        if self._max_unacked:
            taker = self._acknowledged = delivery.Acknowledged(self)
            self._take, self._try_take, self._take_many = taker.take, taker.try_take, taker.take_many

    def _make_way(self, status: int, urgent: bool) -> Literal["again", "drop", "wait"]:
        how = self._options[3]
        if how == "error":
            errors.raise_status(status, self.name, self._full_text(status, urgent))
        if how == "drop_oldest" and not self._drop_oldest(status, urgent):
            return "wait"  # what fills it is in others' hands
        lib.shmq_count_dropped(self._c, how == "drop_newest")
        return "drop" if how == "drop_newest" else "again"

    def _drop_oldest(self, status: int, urgent: bool) -> bool:
        if not self._has_priority:
            return type(self._try_take()) is not int
        full_lane = (urgent,) if status == lib.SHMQ_FULL else (False, True)[: 1 + urgent]
        return any(lib.py_drop_from(self._c, lane) == lib.SHMQ_OK for lane in full_lane)

    def lease(self, block: bool = True, timeout: float | None = None, copy: bool = False) -> Message:
        """Takes the next message of an at_least_once queue; waits as ``get`` does.

        Oldest first: what is to be delivered again comes before what was never delivered.  Raises like
        ``get``; ``UnackedFull`` (an ``Empty``) where ``max_unacked`` messages are not acknowledged;
        ``ArenaFull`` where one is to come again as a copy, for which there is no room; ``DeadLetterFull``.
        A message that cannot be decoded is given back; after ``max_deliveries`` it is in the dead-letter
        queue."""
        return self._message(*self._lease(deadline_ns(timeout) if block else 0), copy)

    def _lease(self, deadline: int) -> tuple[Any, Any]:
        """A message before it is decoded, and its ``shmq_delivery``."""
        taker = self._taker()
        lacking = lib.SHMQ_EMPTY
        while True:
            item, found = taker.lease()
            if found is not None:
                return item, found
            if item not in NOTHING_NOW:
                self._recover_or_raise(item, 0)
                continue
            lacking = item if item != lib.SHMQ_EMPTY else lacking  # it says EMPTY until it tries again
            if time.monotonic_ns() < deadline:
                lib.py_wait_get(self._c, slice_end_ns(deadline))
            elif not lib.py_look_around(self._c):
                delivery.raise_nothing(lacking, self.name)

    def _try_lease(self, copy: bool) -> Any:
        """A Message, or a status."""
        item, found = self._taker().lease()
        return item if found is None else self._message(item, found, copy)

    def _try_lease_undecoded(self) -> Any:
        """(item, its ``shmq_delivery``), or a status."""
        item, found = self._taker().lease()
        return item if found is None else (item, found)

    def _message(self, item: Any, found: Any, copy: bool) -> Message:
        try:
            return Message(self, found, item, copy)
        except BaseException:
            lib.shmq_nack(self._c, found, 0)
            raise

    def task_done(self) -> None:
        """Says that the work on a message that this handle got (``get``, ``get_many``) is done; for ``join``.

        ``ValueError`` where it is called more often than messages were got.  What was leased is done with its
        ``ack``; the tasks of a process that dies end with it."""
        self._taker()
        status = lib.shmq_end_task(self._c)
        if status == lib.SHMQ_INVALID:
            raise ValueError(f"queue {self.name!r}: task_done() called more often than get()")
        if status:
            errors.raise_status(status, self.name)

    def join(self, timeout: float | None = None) -> None:
        """Waits until every message of an at_least_once queue is acknowledged, and every task done.

        That is ``queue.Queue.join`` over all processes: see ``task_done``.

        Raises ``TimeoutError`` after ``timeout`` seconds."""
        self._taker()
        deadline = deadline_ns(timeout)
        while status := lib.py_join(self._c, slice_end_ns(deadline)):
            if status not in (lib.SHMQ_EMPTY, lib.SHMQ_INTERRUPTED):
                self._recover_or_raise(status, 0)
            elif time.monotonic_ns() >= deadline:
                found = self.stats()
                raise TimeoutError(
                    f"queue {self.name!r}: {found.qsize:,} messages wait, {found.unacked:,} are leased and "
                    f"not acknowledged, {found.waiting_again:,} wait to be delivered again; or a "
                    "task_done() is missing"
                )

    def dead_letters(self) -> "Queue":
        """The queue of what was delivered ``max_deliveries`` times in vain; made by the first who asks.

        Its sizes are this queue's.  The handle is this handle's own, and is closed with it."""
        taker = self._taker()
        if taker.dead is None or taker.dead.closed:
            found = self.stats()
            taker.dead = Queue(
                self.name + delivery.DEAD_SUFFIX,
                kind="mpmc",
                ring_bytes=found.ring_bytes,
                arena_bytes=found.arena_bytes,
                inline_bytes=found.inline_bytes,
                dedupe=min(2 * found.max_unacked, MOST_KEYS),
            )
        return taker.dead

    def close(self) -> None:
        """As ``Handle.close``.  What this handle leased and did not acknowledge is given back."""
        taker = self._acknowledged
        super().close()
        if taker is not None and taker.dead is not None:
            taker.dead.close()

    def _taker(self) -> delivery.Acknowledged:
        if self._acknowledged is None:
            raise errors.WrongKind(
                f"queue {self.name!r}: its messages are not acknowledged; create it with "
                "delivery='at_least_once'"
            )
        return self._acknowledged

    def qsize(self) -> int:
        """Messages that wait.  Others may put and get at any moment."""
        return self.stats().qsize

    def empty(self) -> bool:
        """True if no message waits now."""
        return self.qsize() == 0

    def full(self) -> bool:
        """True if a message of ``inline_bytes`` would find no room in the ring now."""
        return self.stats().full


def _acknowledgement(
    kind: Kind | None,
    delivery_: Delivery | None,
    max_unacked: int | None,
    visibility: float | None,
    max_deliveries: int | None,
) -> dict[str, Any]:
    if delivery_ not in (None, "at_most_once", "at_least_once"):
        raise ValueError(f"delivery={delivery_!r}: must be 'at_most_once' or 'at_least_once'")
    if delivery_ != "at_least_once":
        if (max_unacked, visibility, max_deliveries) != (None, None, None):
            raise ValueError("max_unacked, visibility and max_deliveries need delivery='at_least_once'")
        return {}
    if kind == "spsc":
        raise ValueError("delivery='at_least_once' needs kind='mpmc': what one consumer leaves, another gets")
    if max_unacked == 0:
        raise ValueError("max_unacked=0: must be between 1 and 1,048,576")
    return {
        "max_unacked": delivery.DEFAULT_MAX_UNACKED if max_unacked is None else max_unacked,
        "visibility": visibility,
        "max_deliveries": delivery.DEFAULT_MAX_DELIVERIES if max_deliveries is None else max_deliveries,
    }


def _params(
    kind: Kind | None,
    ring_bytes: int,
    arena_bytes: int,
    inline_bytes: int | None,
    max_peers: int,
    dedupe: int | None,
    priority: bool,
    acknowledgement: dict[str, Any],
) -> Any:
    if kind not in (None, "spsc", "mpmc"):
        raise ValueError(f"kind {kind!r}: must be one of 'spsc', 'mpmc'")
    if kind == "spsc" and dedupe is not None:
        raise ValueError("dedupe needs kind='mpmc'")
    if not isinstance(priority, bool):
        raise TypeError(f"priority={priority!r}: must be True or False")
    if priority and kind == "spsc":
        raise ValueError("priority=True needs kind='mpmc': an spsc ring is one lane")
    sizes = (ring_bytes, arena_bytes, inline_bytes, max_peers)
    return make_params(kind or "mpmc", *sizes, dedupe=dedupe, priority=priority, **acknowledgement)
