"""Read-only snapshots: statistics, peers, messages that wait, and texts that say who holds what."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, NoReturn

from . import codec, errors, recorder, segment
from ._core import ffi, lib
from .recorder import DeadPeer, Event
from .tensor import META

PAGE_STATES = ("free", "loaned", "inflight", "leased", "returned", "cont")
PREVIEW_BYTES = 1 << 16


@dataclass(slots=True)
class QueueStats:
    """One queue at one moment.  Sizes in bytes.

    ``kind`` is "spsc", "mpmc" or "topic".  ``pages`` counts arena pages by state; "cont" are the pages
    behind a block's first.  ``producer`` and ``consumer`` are indexes of peers, None where nobody has the
    role (mpmc: always None).  ``holds_up_put`` and ``holds_up_get``: of an mpmc queue, the peer at work in
    the very slot that is next; a moment's matter, unless that process is stopped.  Of a topic,
    ``holds_up_put`` is the slowest subscriber where publishers wait for it; ``messages_got`` is what every
    subscriber has, ``qsize`` what the slowest has not; ``policy``, ``history`` and ``subscribers`` are None
    for a queue. ``dropped_oldest`` and ``dropped_newest``: by producers that were told to where there was no
    room. ``unacked``: leased and not acknowledged; ``waiting_again``: to be delivered again, perhaps
    after a delay; ``qsize`` counts neither. ``dedupe``: how many keys are remembered, 0: none; ``repeats``:
    puts with a key that were dropped. ``full``: a message of ``inline_bytes`` would find no room in the
    ring. ``urgent``: of ``qsize``, those that were put with ``priority=True``, in a lane of ``urgent_slots``
    beside the ring (0: ``priority`` is False); ``ring_bytes``, ``ring_used_bytes`` and ``full`` are the
    others'."""

    name: str
    uuid: str
    kind: str
    messages_put: int
    messages_got: int
    dropped_oldest: int
    dropped_newest: int
    qsize: int
    urgent: int
    urgent_slots: int
    ring_bytes: int
    ring_used_bytes: int
    inline_bytes: int
    arena_bytes: int
    arena_free_bytes: int
    largest_free_bytes: int
    largest_message_bytes: int
    total_bytes: int
    pages: dict[str, int]
    max_peers: int
    producer: int | None
    consumer: int | None
    holds_up_put: int | None
    holds_up_get: int | None
    full: bool
    policy: str | None
    history: int | None
    subscribers: int | None
    priority: bool
    delivery: Literal["at_most_once", "at_least_once"]
    unacked: int
    waiting_again: int
    max_unacked: int
    max_deliveries: int
    visibility: float | None
    dedupe: int
    repeats: int
    shutdown: Literal["open", "draining", "immediate"]


@dataclass(frozen=True, slots=True)
class Peer:
    """A handle that is attached.  ``alive`` is the kernel's word; None where it could not be asked.

    ``pid`` and ``comm`` are for people: they may be of another PID namespace.  ``roles``: "producer" and
    "consumer", of a topic "publisher" and "subscriber".  ``holding_since``: it has held one block or another
    since then.  ``slot_position``: of a slot that it is at work in.  Of a subscriber ``lag`` is the number of
    messages before it, ``missed`` and ``evicted`` as in ``Subscription``.  ``last``: what it did last, or
    waits for.  Times are Unix times."""

    index: int
    pid: int
    comm: str
    alive: bool | None
    epoch: int
    roles: frozenset[str]
    attached_at: float
    messages_put: int
    messages_got: int
    bytes_put: int
    bytes_got: int
    parks: int
    wakes: int
    held_bytes: int
    lag: int
    missed: int
    evicted: bool
    blocks_loaned: int
    blocks_leased: int
    holding_since: float | None
    slots_writing: int
    slots_reading: int
    slot_position: int | None
    last: Event | None

    def __str__(self) -> str:
        state = {True: "alive", False: "dead", None: "not known"}[self.alive]
        return f"peer {self.index} (pid {self.pid}, {self.comm}, {state})"


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What ``inspect`` returns.  ``dead``: the repaired, too, while their entries are not needed."""

    stats: QueueStats
    peers: list[Peer]
    dead: list[DeadPeer]
    created_at: float
    creator_pid: int
    uuid: str


@dataclass(frozen=True, slots=True)
class PeekedMessage:
    """A message that waits.  ``position`` is the ring cursor of its record; 4 more in the urgent lane."""

    position: int
    bytes: int
    codec: str
    where: Literal["inline", "block"]
    preview: str


def _role(index: int) -> int | None:
    return None if index < 0 else index


def _read(c: Any, name: str) -> Any:
    raw = ffi.new("shmq_stats *")
    if status := lib.shmq_get_stats(c, raw):
        errors.raise_status(status, name)
    return raw


def read(c: Any, name: str) -> QueueStats:
    """Statistics of an open C handle."""
    raw = _read(c, name)
    kind = {1: "spsc", 2: "mpmc", 3: "topic"}.get(raw.kind, "unknown")
    topic = kind == "topic"
    return QueueStats(
        name=name,
        uuid=bytes(raw.uuid).hex(),
        kind=kind,
        messages_put=raw.messages_put,
        messages_got=raw.messages_got,
        dropped_oldest=raw.dropped_oldest,
        dropped_newest=raw.dropped_newest,
        qsize=max(raw.messages_put - raw.messages_got, 0),
        urgent=raw.urgent,
        urgent_slots=raw.urgent_slots,
        ring_bytes=raw.ring_bytes,
        ring_used_bytes=raw.ring_used_bytes,
        inline_bytes=raw.inline_bytes,
        arena_bytes=raw.arena_bytes,
        arena_free_bytes=raw.arena_free_bytes,
        largest_free_bytes=raw.largest_free_bytes,
        largest_message_bytes=raw.largest_message_bytes,
        total_bytes=raw.total_bytes,
        pages=dict(zip(PAGE_STATES, raw.pages, strict=True)),
        max_peers=raw.peers,
        producer=_role(raw.producer),
        consumer=_role(raw.consumer),
        holds_up_put=_role(raw.holds_up_put),
        holds_up_get=_role(raw.holds_up_get),
        full=bool(raw.full),
        policy=("block", "drop_oldest", "evict")[min(raw.policy, 2)] if topic else None,
        history=raw.history if topic else None,
        subscribers=raw.subscribers if topic else None,
        priority=raw.urgent_slots > 0,
        delivery="at_least_once" if raw.max_unacked else "at_most_once",
        unacked=raw.unacked,
        waiting_again=raw.waiting_again,
        max_unacked=raw.max_unacked,
        max_deliveries=raw.max_deliveries,
        visibility=raw.visibility_ns / 1e9 or None,
        dedupe=raw.keys,
        repeats=raw.repeats,
        shutdown=("open", "draining", "immediate")[min(raw.lifecycle, 2)],
    )


def read_peers(c: Any, name: str) -> list[Peer]:
    """Peers of an open C handle, by index."""
    stats = _read(c, name)
    capacity = stats.peers
    raw = ffi.new("shmq_peer_info[]", capacity)
    count = ffi.new("uint32_t *")
    if status := lib.shmq_get_peers(c, raw, capacity, count):
        errors.raise_status(status, name)
    of_topic = stats.kind == lib.SHMQ_KIND_TOPIC
    return [_peer(raw[i], of_topic) for i in range(count[0])]


def _peer(raw: Any, of_topic: bool) -> Peer:
    return Peer(
        index=raw.index,
        pid=raw.pid,
        comm=ffi.string(raw.comm, 16).decode(errors="replace"),
        alive={1: True, 0: False}.get(raw.alive),
        epoch=raw.epoch,
        roles=recorder.roles(raw, of_topic),
        attached_at=raw.attached_unix_ns / 1e9,
        messages_put=raw.messages_put,
        messages_got=raw.messages_got,
        bytes_put=raw.bytes_put,
        bytes_got=raw.bytes_got,
        parks=raw.parks,
        wakes=raw.wakes,
        held_bytes=raw.held_bytes,
        lag=raw.lag,
        missed=raw.missed,
        evicted=bool(raw.evicted),
        blocks_loaned=raw.loaned,
        blocks_leased=raw.leased,
        holding_since=recorder.unix_time(raw.holding_since_ns),
        slots_writing=raw.writing,
        slots_reading=raw.reading,
        slot_position=recorder.slot_position(raw),
        last=recorder.event(raw.last),
    )


def explain_full(c: Any, name: str, urgent: bool = False) -> str:
    """Text of ``Full`` after a wait: how full, and who should have made room."""
    s = read(c, name)
    peers = read_peers(c, name)
    if s.kind == "topic":
        slowest = next((p for p in peers if p.index == s.holds_up_put), None)
        who = f"{slowest} is {slowest.lag:,} messages behind" if slowest else "a publisher is at work"
        return (
            f"the ring of {s.ring_bytes:,} bytes is full: {who}. Read faster, wait longer, or create the "
            "topic with a larger ring_bytes, or with another policy"
        )
    consumers = " and ".join(str(p) for p in peers if "consumer" in p.roles) or "nobody yet"
    stuck = next(
        (f"; {p} is at work in the slot that is next" for p in peers if p.index == s.holds_up_put), ""
    )
    full = (
        f"urgent lane of {s.urgent_slots:,} messages is full with {s.urgent:,}"
        if urgent
        else f"ring of {s.ring_bytes:,} bytes is full with {s.qsize - s.urgent:,} messages"
    )
    return (
        f"the {full}; its consumer is {consumers}"
        f"{stuck}. Consume faster, wait longer, or create the queue with a larger ring_bytes"
    )


def explain_keys_busy(c: Any, name: str) -> str:
    """Text of ``Full`` where another producer puts with a key, and does not come to the end of it."""
    holder = _read(c, name).holds_up_keys
    who = next((str(p) for p in read_peers(c, name) if p.index == holder), "a process that has just ended it")
    return (
        f"puts with a key go one at a time, and {who} was in the middle of one: it is stopped, or was not "
        "given the processor. Wait longer, or let it go on"
    )


def raise_peer_dead(c: Any, name: str) -> NoReturn:
    """Says who died, and behind which message."""
    raw = _read(c, name)
    last = "last publisher" if raw.kind == lib.SHMQ_KIND_TOPIC else "producer"
    error = errors.PeerDead(
        f"queue {name!r}: its {last} (pid {raw.lost_pid}) died after message {raw.lost_messages:,}, and it "
        "is drained; start another and get again, or close this handle"
    )
    error.pid, error.messages = raw.lost_pid, raw.lost_messages
    raise error


def explain_role_taken(c: Any, name: str) -> str:
    """Text of ``RoleTaken``: who has the roles."""
    holders = [p for p in read_peers(c, name) if p.roles]
    dead = [p for p in holders if p.alive is False]
    held = "; ".join(f"{' and '.join(sorted(p.roles))}: {p}" for p in dead or holders)
    if dead:
        return (
            f"its role is a dead process's ({held}), and what that left could not be repaired: another "
            "process is at it, or this one has no file descriptor free (ulimit -n). Try again"
        )
    return (
        f"the queue has one producer and one consumer, and a live handle has this role ({held}). Let it "
        "close its handle first, or use another queue"
    )


def explain_arena_full(c: Any, name: str, size: int) -> str:
    """Text of ``ArenaFull``: what is free, and who holds the most."""
    s = read(c, name)
    holders = sorted((p for p in read_peers(c, name) if p.held_bytes), key=lambda p: -p.held_bytes)
    held = "; ".join(f"{p} holds {p.held_bytes:,}" for p in holders[:3]) or "no peer holds any"
    return (
        f"no free run of pages for {size:,} bytes: {s.arena_free_bytes:,} of {s.arena_bytes:,} are free, "
        f"{s.largest_free_bytes:,} in one run; {held}; the rest waits in the ring. Drop views sooner, get "
        "with copy=True, or create the queue with a larger arena_bytes"
    )


def inspect(name: str) -> Snapshot:
    """Looks at a segment from outside: maps it read-only and takes no entry in its peer table.

    Raises ``SegmentNotFound``, ``NotASegment``, ``NotReady``, ..."""
    c = segment.observe(name)
    with c:
        raw = _read(c, name)
        s = read(c, name)
        peers, dead = read_peers(c, name), recorder.read_dead(c, name, s.max_peers, s.kind == "topic")
        return Snapshot(s, peers, dead, raw.created_unix_ns / 1e9, raw.creator_pid, s.uuid)


def peek(name: str, n: int = 10) -> list[PeekedMessage]:
    """The first ``n`` messages that wait, without taking them.

    Nothing stops a consumer that is at work: what it takes meanwhile is left out, or shown damaged."""
    with segment.observe(name) as c:
        return list(_peek(c, name, n))


def _peek(c: Any, name: str, n: int) -> Iterator[PeekedMessage]:
    raw = ffi.new("shmq_peeked *")
    buffer = ffi.new("char[]", PREVIEW_BYTES)
    for i in range(n):
        status = lib.shmq_peek(c, i, buffer, PREVIEW_BYTES, raw)
        if status == lib.SHMQ_EMPTY:
            return
        if status:
            errors.raise_status(status, name)
        where: Literal["inline", "block"] = "block" if raw.in_block else "inline"
        yield PeekedMessage(
            raw.position, raw.bytes, codec.NAMES.get(raw.codec, str(raw.codec)), where, _preview(raw, buffer)
        )


def _preview(raw: Any, buffer: Any) -> str:
    data = bytearray(ffi.buffer(buffer, raw.copied_bytes))
    if raw.copied_bytes < raw.bytes:
        return f"{raw.bytes:,} bytes, starting {data[:32].hex()}"
    if raw.codec == lib.SHMQ_RAW:
        return codec.preview(bytes(data))
    if raw.meta_bytes == META.size:
        return codec.preview((raw.codec, data, bytes(ffi.buffer(ffi.addressof(raw, "tensor")))))
    return codec.preview((raw.codec, data))
