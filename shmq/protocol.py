"""What clients and servers say to each other, and how their logic waits.

    <name>                  requests: an mpmc queue, delivery="at_least_once"; acknowledged once answered
    <name>.<pid>-<token>    replies to one client, which made it
    <name>.cancelled        a topic: requests that nobody waits for any more

    request     [id, reply queue's suffix, deadline (CLOCK_MONOTONIC ns; 0: none), flags, payload]
    reply       [id, kind, n, payload]
    cancelled   b"<reply queue's suffix> <id>"

The logic of both sides (``calls.py``, ``jobs.py``) neither blocks nor awaits: it consists of generators that
yield a step where they have to wait, and are sent its result or thrown its exception.  ``rpc.py`` blocks in
these steps, ``aio_rpc.py`` awaits them.

    (PUT, queue, object, timeout)    puts; Full
    (GET, queue, timeout)            the next message; Empty
    (LEASE, queue, timeout)          a message that is not decoded yet, and its delivery; Empty
    (FOLLOW, event, timeout)         returns when the event is set, or the time is over
"""

import re
import secrets
import time
from collections.abc import Callable, Generator
from contextlib import suppress
from dataclasses import dataclass
from os import getpid
from typing import Any, NamedTuple

from . import errors
from .handle import Handle
from .limits import SHM
from .queue import Queue
from .segment import PREFIX, check_name, unlink, unlink_if
from .stats import inspect
from .tensor import Arrays
from .topic import Topic

PUT, GET, LEASE, FOLLOW = "put", "get", "lease", "follow"
Step = tuple[Any, ...]
Steps = Generator[Step, Any, Any]

STREAM = 1
"""A request's flag: its caller takes any number of answers."""
RESULT, CHUNK, END, ERROR, DIED = range(5)
"""Kinds of replies.  CHUNK: the n-th of a stream.  END: after n chunks.  DIED: of the server before."""

LOOK_NS = 125_000_000
"""How often one who waits looks at the other side's handles.  More than a slice (``doorbell.py``): so a wait
that is over by then takes no timer."""
DAY_NS = 86_400_000_000_000
NAME_CHARS = 170
_SUFFIX = re.compile(r"\d{1,10}-[0-9a-f]{12}")
_CANCELLED = re.compile(rb"(\d{1,10}-[0-9a-f]{12}) (\d{1,18})")


class Asked(NamedTuple):
    """A request, read and checked."""

    id: int
    suffix: str
    deadline: int
    streams: bool
    payload: Any


@dataclass(frozen=True, slots=True)
class Sizes:
    """Of the request queue, where it is made."""

    ring_bytes: int
    arena_bytes: int
    max_peers: int


@dataclass(frozen=True, slots=True)
class Settings:
    """How a client was made; enough to make the same in another process."""

    name: str
    sizes: Sizes
    reply_ring_bytes: int
    reply_arena_bytes: int
    arrays: Arrays


End = Callable[[Handle], None]
"""How a handle is closed: in an event loop, its tasks that wait are woken, too."""


def open_requests(name: str, sizes: Sizes, arrays: Arrays) -> Queue:
    """Opens or creates.  No dead letters: a request that is never answered is a server's to refuse."""
    check_name(name)
    if len(name) > NAME_CHARS:
        raise errors.InvalidName(f"service name {name!r}: at most {NAME_CHARS} characters")
    return Queue(
        name,
        kind="mpmc",
        ring_bytes=sizes.ring_bytes,
        arena_bytes=sizes.arena_bytes,
        max_peers=sizes.max_peers,
        delivery="at_least_once",
        max_deliveries=0,
        arrays=arrays,
    )


def open_cancelled(name: str) -> Topic:
    """Opens or creates it: 512 slots, of which the last 256 are kept for servers that come later."""
    return Topic(
        name + ".cancelled",
        policy="drop_oldest", history=256, ring_bytes=1 << 16, arena_bytes=0, inline_bytes=96,
    )  # fmt: skip


def unlink_cancelled(name: str) -> None:
    with suppress(errors.SegmentNotFound):
        unlink(name + ".cancelled")


def new_suffix() -> str:
    return f"{getpid()}-{secrets.token_hex(6)}"


def is_suffix(text: str) -> bool:
    """Of a reply queue: nobody makes a server write to, or remove, another segment."""
    return _SUFFIX.fullmatch(text) is not None


def read_request(value: Any) -> Asked | None:
    """None where it is none: anyone may put into a queue."""
    if not (isinstance(value, list) and len(value) == 5):
        return None
    number, suffix, deadline, flags, payload = value
    if type(number) is not int or type(deadline) is not int or type(flags) is not int:
        return None
    if type(suffix) is not str or not is_suffix(suffix):
        return None
    return Asked(number, suffix, deadline, bool(flags & STREAM), payload)


def cancellation(suffix: str, number: int) -> bytes:
    return f"{suffix} {number}".encode()


def read_cancellation(message: Any) -> tuple[str, int] | None:
    found = _CANCELLED.fullmatch(message) if type(message) is bytes else None
    return (found[1].decode(), int(found[2])) if found else None


def remove_orphans(name: str) -> None:
    """Reply queues of clients that died before any server knew them."""
    for path in SHM.glob(f"{PREFIX}{name}.*"):
        segment_name = path.name.removeprefix(PREFIX)
        if not is_suffix(segment_name[len(name) + 1 :]):
            continue
        with suppress(errors.ShmqError, OSError):
            found = path.stat()
            if not any(peer.alive is not False for peer in inspect(segment_name).peers):
                unlink_if(segment_name, (found.st_dev, found.st_ino))


def seconds_until(deadline: int, at_most: int) -> float:
    """From now, for a step; both in ns."""
    return max(0, min(deadline - time.monotonic_ns(), at_most)) / 1e9
