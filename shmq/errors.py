"""One class per thing that can go wrong, and one table from C status to class.

Each text says what was wrong, what the limit is, and what to do.  ``Full`` and ``Empty`` are the standard
library's, so code written for ``queue.Queue`` catches them.
"""

import errno
import os
import queue
from collections.abc import Sequence
from typing import Any, NoReturn

from ._core import ffi, lib


class ShmqError(Exception):
    """Base of every error that shmq raises on its own account.

    ``done`` is the number of objects that ``put_many`` had put before."""

    done: int = 0


class Full(ShmqError, queue.Full):
    """No room within the time given: the consumer is slower than the producer, stopped, or absent."""


class ArenaFull(Full):
    """No free run of arena pages within the time given: too many views or loans are alive."""


class Empty(ShmqError, queue.Empty):
    """No message within the time given."""


class Closed(ShmqError, ValueError):
    """This handle was closed.  Open a new one."""


# queue.ShutDown came with Python 3.13.
_QueueShutDown: type[Exception] = getattr(queue, "ShutDown", Exception)


class ShutDown(ShmqError, _QueueShutDown):  # type: ignore[valid-type, misc]
    """The queue was shut down: puts are refused, gets end when it is drained."""


class RoleTaken(ShmqError):
    """An SPSC queue has one producer and one consumer, and a live process has this role."""


class PeerDead(ShmqError):
    """The producer of an SPSC queue, or the last publisher of a topic, died; what was put is all taken,
    and nobody has taken its place.

    ``pid``: the dead producer's, for people.  ``messages``: how many had been put up to its death, by it and
    those before it.  Raised once for each death: the next get waits for a successor."""

    pid: int = 0
    messages: int = 0


class StaleLease(ShmqError):
    """The message was settled before, or was delivered again because it was not acknowledged in time."""


class UnackedFull(Empty):
    """So many messages are leased and not acknowledged that no further one can be."""


class DeadLetterFull(Full):
    """A message was delivered too often, and the dead-letter queue has no room for it."""


class Evicted(ShmqError):
    """A publisher ended this subscription because it was too far behind (a topic with policy "evict")."""


class DeadlineExceeded(ShmqError, TimeoutError):
    """A call has no answer within its timeout.  Its server learns the same from the request's deadline."""


class ServerDied(ShmqError, ConnectionError):
    """The server that had the request died, or no server is there any more.

    The request may have been executed, in part or whole; call again if that does no harm (``retries=``)."""


class Cancelled(ShmqError):
    """Raised in a server: nobody waits for this answer any more."""


class RemoteError(ShmqError):
    """A server's handler raised an exception.  Its traceback, as text, is a note of this one.

    Of the builtin types, and shmq's own, it is an instance, too: ``except KeyError`` catches a remote one.
    ``kind`` is the exact type's name.  Nothing that the server sent was executed."""

    kind: str = ""


class ForkedHandle(ShmqError):
    """This handle was inherited through fork with loans or views alive; they are the parent's."""


class Corrupt(ShmqError):
    """The segment contradicts itself: something else wrote into it."""


class MessageTooLarge(ShmqError, ValueError):
    """The message can never fit into this segment."""


class OutOfSpace(ShmqError, OSError):
    """/dev/shm, or the memory behind it, is too small for the segment."""


class SegmentNotFound(ShmqError, FileNotFoundError):
    """No segment of this name."""


class NameTaken(ShmqError, FileExistsError):
    """A segment of this name exists."""


class InvalidName(ShmqError, ValueError):
    """Not a name that a segment can have."""


class NotASegment(ShmqError, ValueError):
    """The name belongs to something that shmq did not make, or that was truncated."""


class AbiMismatch(ShmqError):
    """The segment was made by an incompatible build of shmq."""


class WrongOwner(ShmqError, PermissionError):
    """The segment is another user's, or open to other users; it is not believed."""


class NotReady(ShmqError, TimeoutError):
    """The creator has not finished within the time given, or died before it had."""


class WrongKind(ShmqError, ValueError):
    """The segment exists and is of another kind than was asked for."""


class StaleHandle(ShmqError):
    """The name now belongs to another segment than the one that this handle was pickled from."""


class PeersFull(ShmqError):
    """Every entry of the segment's peer table is in use."""


class Unencodable(ShmqError, TypeError):
    """The object cannot travel: no codec takes it."""


class DecodeError(ShmqError, ValueError):
    """A message arrived that cannot be decoded.  Nothing is lost: ``payload`` holds its bytes.

    After ``get_many``, ``others`` holds the rest of the batch in order, decoded, or errors like this one."""

    others: Sequence[Any] = ()

    def __init__(self, text: str, payload: bytes = b"", codec: int = -1) -> None:
        super().__init__(text)
        self.payload = payload
        self.codec = codec


class PickleRefused(DecodeError):
    """A pickled message arrived and this handle was not opened with ``allow_pickle=True``."""


_BY_STATUS: dict[int, tuple[type[ShmqError], str]] = {
    lib.SHMQ_FULL: (Full, "the ring is full"),
    lib.SHMQ_ARENA_FULL: (ArenaFull, "the arena has no free run of pages that is long enough"),
    lib.SHMQ_EMPTY: (Empty, "no message"),
    lib.SHMQ_TOO_LARGE: (
        MessageTooLarge,
        "the message can never fit; create the queue with a larger arena_bytes",
    ),
    lib.SHMQ_CLOSED: (Closed, "this handle is closed; open a new one"),
    lib.SHMQ_SHUT_DOWN: (ShutDown, "the queue was shut down"),
    lib.SHMQ_ROLE_TAKEN: (
        RoleTaken,
        "the queue has one producer and one consumer, and another live process has this role; "
        "let it close its handle first",
    ),
    lib.SHMQ_PEER_DEAD: (PeerDead, "its producer died"),
    lib.SHMQ_STALE: (
        StaleLease,
        "this message was delivered again meanwhile, because it was not acknowledged within the queue's "
        "visibility timeout; what was done for it may be done twice",
    ),
    lib.SHMQ_UNACKED_FULL: (
        UnackedFull,
        "as many messages as max_unacked allows wait for their acknowledgement, or to be delivered again; "
        "acknowledge some, or create the queue with a larger max_unacked",
    ),
    lib.SHMQ_KEYS_BUSY: (Full, "another process is in the middle of a put with a key; wait longer"),
    lib.SHMQ_EVICTED: (
        Evicted,
        "this subscription fell a whole ring behind, or held up the arena, and a publisher ended it; "
        "subscribe again, read faster, or create the topic with a larger ring_bytes, or with another policy",
    ),
    lib.SHMQ_FORKED: (
        ForkedHandle,
        "this handle was inherited through fork() with loans or views alive; call reattach() to get "
        "a handle of this process's own",
    ),
    lib.SHMQ_CORRUPT: (
        Corrupt,
        "its content contradicts itself, so something else wrote into it; remove it "
        "(shmq rm --force) and create it again",
    ),
    lib.SHMQ_NOT_A_SEGMENT: (
        NotASegment,
        "it was not made by shmq, or was truncated; remove it (shmq rm --force) or choose another name",
    ),
    lib.SHMQ_ABI_MISMATCH: (
        AbiMismatch,
        "it was made by an incompatible build of shmq; use one version of shmq on this host, or "
        "remove it (shmq rm --force)",
    ),
    lib.SHMQ_NOT_READY: (
        NotReady,
        "its creator has not finished initialising it, or died before it had; if no process is about "
        "to finish it, remove it (shmq rm --force)",
    ),
    lib.SHMQ_WRONG_OWNER: (
        WrongOwner,
        "it is not yours alone, so it is not believed: it must belong to you with mode 0600; use another "
        "name, or let its owner remove it",
    ),
    lib.SHMQ_PEERS_FULL: (
        PeersFull,
        "every entry of its peer table is in use; close handles, or create it with a larger max_peers",
    ),
    lib.SHMQ_OUT_OF_SPACE: (OutOfSpace, "out of memory"),
    lib.SHMQ_INVALID: (ShmqError, "an argument is out of its range"),
}


def raise_status(status: int, name: str, detail: str = "") -> NoReturn:
    """Raises the class of a C ``status`` (> 0).  ``detail`` replaces the general text."""
    if status == lib.SHMQ_SYSTEM:
        code = ffi.errno
        raise OSError(code, f"shmq segment {name!r}: {os.strerror(code)}")
    kind, text = _BY_STATUS.get(status, (ShmqError, f"unknown status {status}"))
    message = f"queue {name!r}: {detail or text}"
    if issubclass(kind, OSError):
        code = {OutOfSpace: errno.ENOSPC, WrongOwner: errno.EACCES}.get(kind, errno.EAGAIN)
        raise kind(code, message)
    raise kind(message)
