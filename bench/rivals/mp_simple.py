"""multiprocessing.SimpleQueue: pickle through a pipe, a lock on either end, no thread of its own."""

from __future__ import annotations

import multiprocessing
from typing import Any

from ..endpoint import Spec
from .mp_queue import LAUNCH, POLLS, missing, open_side, unwire

__all__ = ["LAUNCH", "NAME", "POLLS", "missing", "open_side", "unwire", "wire"]

NAME = "mp.SimpleQueue"


def wire(spec: Spec) -> Any:
    """It holds what the pipe holds, whatever `spec.in_flight` says."""
    context = multiprocessing.get_context("spawn")
    return tuple(context.SimpleQueue() for _ in range(2 if spec.both_ways else 1))
