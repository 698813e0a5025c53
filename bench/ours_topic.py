"""shmq's topic: the same put and get, but each side b gets every message."""

from __future__ import annotations

import importlib
from typing import Any

from .endpoint import Endpoint, Side, Spec
from .ours import ARENA_BYTES, POLLS, RING_BYTES, missing

__all__ = ["LAUNCH", "NAME", "POLLS", "missing", "open_side", "unwire", "wire"]

NAME = "shmq"
LAUNCH = "forkserver"


def wire(spec: Spec) -> Any:
    """Anonymous: unlinked when the harness closes it in `unwire`, or exits."""
    shmq: Any = importlib.import_module("shmq")
    return shmq.Topic(policy="block", ring_bytes=RING_BYTES, arena_bytes=ARENA_BYTES)


def unwire(wiring: Any) -> None:
    wiring.close()


def open_side(spec: Spec, wiring: Any, side: Side) -> Endpoint:
    if side == "a":
        return Endpoint(put=wiring.publish, put_array=wiring.publish, close=wiring.close)
    subscription = wiring.subscribe()
    wiring.close()
    return Endpoint(
        get=subscription.get,
        get_array=subscription.get,
        as_array=lambda received: received,
        close=subscription.close,
    )
