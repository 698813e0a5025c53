"""Eclipse Zenoh, publish-subscribe between peers: payloads in shared memory, a Unix socket beside it.

Set so that nothing is lost: the publisher waits where the network is congested, and the subscriber's channel,
where it is full, holds up the network. Bytes go as they are: Zenoh itself moves larger ones to shared memory.
Arrays are written to a buffer of its shared memory and published there. Its wheel (1.10, for the ABI of
Python 3.9) has no view of such a buffer: it is filled from a `bytearray`, and what was received is read as
`bytes`. Both copies are what its users pay, so they are inside put and get here.
"""

from __future__ import annotations

import contextlib
import fcntl
import importlib
import importlib.util
import json
import secrets
from pathlib import Path
from typing import Any

import numpy as np

from ..endpoint import Endpoint, Side, Spec

NAME = "zenoh shm"
LAUNCH = "spawn"
POLLS = False

_SLACK_BYTES = 1 << 20
_PATIENCE_S = 30
_WAIT_US = 600_000_000
_SEGMENTS = Path("/dev/shm")


def missing() -> str | None:
    if importlib.util.find_spec("zenoh") is None:
        return "not installed (pip install eclipse-zenoh)"
    return None


def wire(spec: Spec) -> Any:
    """(endpoint, the segments that are there already)."""
    endpoint = f"unixsock-stream/{spec.directory}/zenoh-{secrets.token_hex(4)}"
    return endpoint, frozenset(_SEGMENTS.glob("*.zenoh"))


def unwire(wiring: Any) -> None:
    """Removes the segments that the workers left, which Zenoh would do when a program next starts it.

    Like Zenoh, only those that nobody has locked: every process that maps one holds a shared lock."""
    for segment in set(_SEGMENTS.glob("*.zenoh")) - wiring[1]:
        with contextlib.suppress(OSError), segment.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            segment.unlink()


def open_side(spec: Spec, wiring: Any, side: Side) -> Endpoint:
    zenoh = importlib.import_module("zenoh")
    session = _session(zenoh, wiring[0], side)
    other: Side = "b" if side == "a" else "a"
    end = Endpoint(close=session.close, as_array=lambda received: received)
    if side == "b" or spec.both_ways:
        _receive(zenoh, session, spec, other, end)
        token = session.liveliness().declare_token(f"ready/{side}/{session.zid()}")

        def close() -> None:
            token.undeclare()
            session.close()

        end.close = close
    if side == "a" or spec.both_ways:
        _await(session, f"ready/{other}/*", spec.readers if side == "a" else 1)
        _send(zenoh, session, spec, side, end)
    return end


def _session(zenoh: Any, endpoint: str, side: Side) -> Any:
    """Side a listens, each side b connects to it and to nobody else."""
    config = zenoh.Config()
    for key, value in {
        "listen/endpoints": [endpoint] if side == "a" else [],
        "connect/endpoints": [endpoint] if side == "b" else [],
        "connect/timeout_ms": _PATIENCE_S * 1000,
        "connect/exit_on_failure": True,
        "scouting/multicast/enabled": False,
        "scouting/gossip/enabled": False,
        "transport/shared_memory/mode": "init",
        "transport/link/tx/queue/congestion_control/block/wait_before_close": _WAIT_US,
    }.items():
        config.insert_json5(key, json.dumps(value))
    return zenoh.open(config)


def _await(session: Any, tokens: str, count: int) -> None:
    """A token is declared after the subscription, and what one peer declares arrives in order."""
    seen: set[str] = set()
    with session.liveliness().declare_subscriber(tokens, history=True) as ready:
        while len(seen) < count:
            seen.add(str(ready.recv().key_expr))


def _receive(zenoh: Any, session: Any, spec: Spec, sender: Side, end: Endpoint) -> None:
    subscriber = session.declare_subscriber(sender, zenoh.handlers.FifoChannel(spec.in_flight))
    recv, frombuffer, float32 = subscriber.recv, np.frombuffer, np.float32
    end.get = lambda: recv().payload.to_bytes()
    end.get_array = lambda: frombuffer(recv().payload.to_bytes(), float32)


def _send(zenoh: Any, session: Any, spec: Spec, sender: Side, end: Endpoint) -> None:
    publisher = session.declare_publisher(
        sender,
        congestion_control=zenoh.CongestionControl.BLOCK,
        express=spec.both_ways,  # not batched: a message by itself goes sooner, many go slower
    )
    room = (spec.in_flight + 1) * spec.max_bytes + _SLACK_BYTES
    alloc, put = zenoh.shm.ShmProvider.default_backend(room).alloc, publisher.put
    wait_for_room = zenoh.shm.BlockOn(zenoh.shm.GarbageCollect())

    staging = bytearray()

    def put_array(array: Any) -> None:
        nonlocal staging
        if len(staging) != array.nbytes:
            staging = bytearray(array.nbytes)  # kept: memory that is new each time costs page faults
        memoryview(staging)[:] = array.data.cast("B")
        buffer = alloc(array.nbytes, wait_for_room)
        buffer[:] = staging
        put(buffer)

    end.put, end.put_array = put, put_array
