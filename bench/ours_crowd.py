"""shmq's queue for several producers and several consumers, where it is the one that counts."""

from __future__ import annotations

from .ours import LAUNCH, POLLS, missing, open_side, unwire
from .ours_mpmc import wire

__all__ = ["LAUNCH", "NAME", "POLLS", "SHARED", "missing", "open_side", "unwire", "wire"]

NAME = "shmq"
SHARED = True
