"""shmq: messages and tensors between the processes of one host, through shared memory.

import shmq
q = shmq.Queue("prefill")
q.put({"step": 7, "tokens": tokens})     # arrays anywhere inside, copied once
msg = q.get(timeout=1.0)                 # arrays are zero-copy views that own their memory
"""

from pathlib import Path
from typing import TYPE_CHECKING

from .delivery import Message
from .errors import (
    AbiMismatch,
    ArenaFull,
    Closed,
    Corrupt,
    DeadLetterFull,
    DecodeError,
    Empty,
    Evicted,
    ForkedHandle,
    Full,
    InvalidName,
    MessageTooLarge,
    NameTaken,
    NotASegment,
    NotReady,
    OutOfSpace,
    PeerDead,
    PeersFull,
    PickleRefused,
    RoleTaken,
    SegmentNotFound,
    ShmqError,
    ShutDown,
    StaleHandle,
    StaleLease,
    UnackedFull,
    Unencodable,
    WrongKind,
    WrongOwner,
)
from .loan import Loan
from .queue import Queue
from .recorder import DeadPeer, Event
from .segment import SegmentInfo, list_segments, unlink
from .stats import PeekedMessage, Peer, QueueStats, Snapshot, inspect, peek
from .topic import Subscription, Topic

__version__: str

if not TYPE_CHECKING:  # or any name would pass for one of ours

    def __getattr__(name: str) -> str:
        """``__version__``, when somebody asks: to look it up takes a tenth of all that an import takes."""
        if name != "__version__":
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from importlib.metadata import version

        return version(__name__)


def get_include() -> str:
    """Directory with ``shmq.h`` and the C sources: ``cc worker.c DIR/*.c -IDIR -pthread``."""
    package = Path(__file__).resolve().parent
    installed = package / "_csrc"
    return str(installed if installed.is_dir() else package.parent / "csrc")


__all__ = [
    "AbiMismatch",
    "ArenaFull",
    "Closed",
    "Corrupt",
    "DeadLetterFull",
    "DeadPeer",
    "DecodeError",
    "Empty",
    "Event",
    "Evicted",
    "ForkedHandle",
    "Full",
    "InvalidName",
    "Loan",
    "Message",
    "MessageTooLarge",
    "NameTaken",
    "NotASegment",
    "NotReady",
    "OutOfSpace",
    "PeekedMessage",
    "Peer",
    "PeerDead",
    "PeersFull",
    "PickleRefused",
    "Queue",
    "QueueStats",
    "RoleTaken",
    "SegmentInfo",
    "SegmentNotFound",
    "ShmqError",
    "ShutDown",
    "Snapshot",
    "StaleHandle",
    "StaleLease",
    "Subscription",
    "Topic",
    "UnackedFull",
    "Unencodable",
    "WrongKind",
    "WrongOwner",
    "get_include",
    "inspect",
    "list_segments",
    "peek",
    "unlink",
]
