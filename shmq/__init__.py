"""shmq: messages and tensors between the processes of one host, through shared memory.

import shmq
q = shmq.Queue("prefill")
q.put({"step": 7, "tokens": tokens})     # arrays anywhere inside, copied once
msg = q.get(timeout=1.0)                 # arrays are zero-copy views that own their memory
"""

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .calls import ClientStats
from .delivery import Message
from .errors import (
    AbiMismatch,
    ArenaFull,
    Cancelled,
    Closed,
    Corrupt,
    DeadLetterFull,
    DeadlineExceeded,
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
    RemoteError,
    RoleTaken,
    SegmentNotFound,
    ServerDied,
    ShmqError,
    ShutDown,
    StaleHandle,
    StaleLease,
    UnackedFull,
    Unencodable,
    WrongKind,
    WrongOwner,
)
from .jobs import ServerStats
from .loan import Loan
from .queue import Queue
from .recorder import DeadPeer, Event
from .rpc import Client, Request, Server, Stream
from .segment import SegmentInfo, list_segments, unlink
from .stats import PeekedMessage, Peer, QueueStats, Snapshot, inspect, peek
from .topic import Subscription, Topic

__version__: str

if TYPE_CHECKING:
    from . import aio as aio
else:  # or any name would pass for one of ours

    def __getattr__(name: str) -> Any:
        """``aio``, which brings asyncio, and ``__version__``, a tenth of an import: when asked for."""
        if name == "aio":
            return import_module(".aio", __name__)
        if name == "__version__":
            return import_module("importlib.metadata").version(__name__)
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def get_include() -> str:
    """Directory with ``shmq.h`` and the C sources: ``cc worker.c DIR/*.c -IDIR -pthread``."""
    package = Path(__file__).resolve().parent
    installed = package / "_csrc"
    return str(installed if installed.is_dir() else package.parent / "csrc")


__all__ = [
    "AbiMismatch",
    "ArenaFull",
    "Cancelled",
    "Client",
    "ClientStats",
    "Closed",
    "Corrupt",
    "DeadLetterFull",
    "DeadPeer",
    "DeadlineExceeded",
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
    "RemoteError",
    "Request",
    "RoleTaken",
    "SegmentInfo",
    "SegmentNotFound",
    "Server",
    "ServerDied",
    "ServerStats",
    "ShmqError",
    "ShutDown",
    "Snapshot",
    "StaleHandle",
    "StaleLease",
    "Stream",
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
