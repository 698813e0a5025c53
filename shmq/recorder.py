"""Flight recorders: what a peer did last, and what the dead had in their hands."""

import time
from dataclasses import dataclass
from typing import Any

from . import errors
from ._core import ffi, lib

_OPS = {
    lib.SHMQ_OP_ATTACH: ("attach", ""),
    lib.SHMQ_OP_DETACH: ("detach", ""),
    lib.SHMQ_OP_ROLE: ("role", "{role}"),
    lib.SHMQ_OP_PUT: ("put", "position {cursor}"),
    lib.SHMQ_OP_PUT_MANY: ("put_many", "position {cursor}"),
    lib.SHMQ_OP_PUBLISH: ("publish", "position {cursor}"),
    lib.SHMQ_OP_GET: ("get", "position {cursor}"),
    lib.SHMQ_OP_GET_MANY: ("get_many", "position {cursor}"),
    lib.SHMQ_OP_LOAN: ("loan", "block {cursor}"),
    lib.SHMQ_OP_LEASE: ("lease", "block {cursor}"),
    lib.SHMQ_OP_RELEASE: ("release", "block {cursor}"),
    lib.SHMQ_OP_WAIT_PUT: ("wait_put", "room for {cursor} bytes"),
    lib.SHMQ_OP_WAIT_GET: ("wait_get", "a message"),
    lib.SHMQ_OP_REAP: ("reap", "peer {cursor}"),
    lib.SHMQ_OP_SHUTDOWN: ("shutdown", "{way}"),
    lib.SHMQ_OP_SUBSCRIBE: ("subscribe", "from position {cursor}"),
}
_ROLES = {1: "producer", 2: "consumer"}
_WAYS = {1: "no more puts", 2: "at once"}


@dataclass(frozen=True, slots=True)
class Event:
    """One entry of a flight recorder: an operation that a peer has done, or a wait that it began.

    ``cursor``: the message's position for puts and gets (of a batch, the last one's), the block's first page
    for loan, lease and release; ``what`` says it in words.  ``at``: Unix time, as of the kernel's last tick
    (1 to 10 ms).  Where ``exact`` is false it came then or later, but before the next event: of many puts and
    gets within a tick not each looks at the clock."""

    op: str
    cursor: int
    what: str
    at: float
    exact: bool


@dataclass(frozen=True, slots=True)
class DeadPeer:
    """A peer that died, for as long as its entry of the peer table is not needed by another.

    What it held is what the repair found; ``found_at`` and ``found_by`` (a pid) are None where nobody has
    repaired it yet.  ``slot_position``: of the slot that it was writing or reading.  ``holding_since``: it
    held one block or another from then on.  ``events``: its last operations, oldest first.  Times are Unix
    times."""

    index: int
    pid: int
    comm: str
    epoch: int
    roles: frozenset[str]
    attached_at: float
    found_at: float | None
    found_by: int | None
    messages_put: int
    messages_got: int
    held_bytes: int
    blocks_loaned: int
    blocks_leased: int
    holding_since: float | None
    slots_writing: int
    slots_reading: int
    slot_position: int | None
    events: list[Event]


def unix_time(monotonic_ns: int) -> float | None:
    """Of a CLOCK_MONOTONIC time, as the two clocks stand to each other now; None of 0."""
    return monotonic_ns / 1e9 + time.time() - time.monotonic() if monotonic_ns else None


def event(raw: Any) -> Event | None:
    """Of a shmq_event_info; None where there is none."""
    if raw.op == 0:
        return None
    op, text = _OPS.get(raw.op, (f"op {raw.op}", "{cursor}"))
    what = text.format(
        cursor=raw.cursor,
        role=_ROLES.get(raw.cursor, raw.cursor),
        way=_WAYS.get(raw.cursor, raw.cursor),
    )
    return Event(op, raw.cursor, what, unix_time(raw.time_ns) or 0.0, not raw.is_early)


def roles(raw: Any, of_topic: bool) -> frozenset[str]:
    """Of a shmq_peer_info."""
    names = ("publisher", "subscriber") if of_topic else ("producer", "consumer")
    both = zip(names, (raw.is_producer, raw.is_consumer), strict=True)
    return frozenset(role for role, has in both if has)


def slot_position(raw: Any) -> int | None:
    """Of a shmq_peer_info."""
    return int(raw.slot_position) if raw.writing or raw.reading else None


def read_events(c: Any, name: str, index: int) -> list[Event]:
    """Flight recorder of the peer ``index``, oldest event first."""
    raw = ffi.new("shmq_event_info[]", lib.SHMQ_EVENTS_MAX)
    count = ffi.new("uint32_t *")
    if status := lib.shmq_get_events(c, index, raw, lib.SHMQ_EVENTS_MAX, count):
        errors.raise_status(status, name)
    return [found for i in range(count[0]) if (found := event(raw[i]))]


def read_dead(c: Any, name: str, max_peers: int, of_topic: bool) -> list[DeadPeer]:
    """The dead of an open C handle, by index."""
    raw = ffi.new("shmq_peer_info[]", max_peers)
    count = ffi.new("uint32_t *")
    if status := lib.shmq_get_dead(c, raw, max_peers, count):
        errors.raise_status(status, name)
    found = (raw[i] for i in range(count[0]))
    return [_dead(peer, of_topic, read_events(c, name, peer.index)) for peer in found]


def _dead(raw: Any, of_topic: bool, events: list[Event]) -> DeadPeer:
    return DeadPeer(
        index=raw.index,
        pid=raw.pid,
        comm=ffi.string(raw.comm, 16).decode(errors="replace"),
        epoch=raw.epoch,
        roles=roles(raw, of_topic),
        attached_at=raw.attached_unix_ns / 1e9,
        found_at=unix_time(raw.reaped_ns),
        found_by=raw.reaped_by_pid or None,
        messages_put=raw.messages_put,
        messages_got=raw.messages_got,
        held_bytes=raw.held_bytes,
        blocks_loaned=raw.loaned,
        blocks_leased=raw.leased,
        holding_since=unix_time(raw.holding_since_ns) if raw.loaned or raw.leased else None,
        slots_writing=raw.writing,
        slots_reading=raw.reading,
        slot_position=slot_position(raw),
        events=events,
    )
