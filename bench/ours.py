"""shmq itself, behind the interface that its rivals are measured through."""

from __future__ import annotations

import importlib
import importlib.util
from typing import Any

from .endpoint import Endpoint, Side, Spec

NAME = "shmq"
LAUNCH = "forkserver"
POLLS = False

RING_BYTES = 1 << 20
ARENA_BYTES = 32 << 20


def missing() -> str | None:
    if importlib.util.find_spec("shmq") is None:
        return "not importable"
    try:
        importlib.import_module("shmq").Queue  # noqa: B018  (the compiled part is there)
    except (ImportError, AttributeError) as error:
        return f"not built: {error}"
    return None


def _queue(spec: Spec, kind: str) -> Any:
    shmq: Any = importlib.import_module("shmq")
    arena = max(ARENA_BYTES, spec.in_flight * spec.max_bytes)
    return shmq.Queue(kind=kind, ring_bytes=RING_BYTES, arena_bytes=arena)


def wire(spec: Spec, kind: str = "spsc") -> Any:
    """Anonymous queues: unlinked when the harness closes them in `unwire`, or exits."""
    return _queue(spec, kind), _queue(spec, kind) if spec.both_ways else None


def unwire(wiring: Any) -> None:
    for queue in wiring:
        if queue is not None:
            queue.close()


def open_side(spec: Spec, wiring: Any, side: Side) -> Endpoint:
    shmq: Any = importlib.import_module("shmq")
    out, back = wiring if side == "a" else reversed(wiring)
    end = Endpoint()
    if out is not None:

        def loan(nbytes: int) -> tuple[Any, Any]:
            held = out.loan((nbytes // 4,), "float32")
            return held.array, held.publish

        end.put, end.put_many, end.put_array, end.loan = out.put, out.put_many, out.put, loan
        end.put_object = out.put
    if back is not None:
        get_nowait, empty = back.get_nowait, shmq.Empty

        def get_polling() -> Any:
            while True:
                try:
                    return get_nowait()
                except empty:
                    pass

        end.get, end.get_many, end.get_array = back.get, back.get_many, back.get
        end.get_polling, end.get_object = get_polling, back.get
        end.as_array = end.view = lambda received: received

    def close() -> None:
        for queue in (out, back):
            if queue is not None:
                queue.close()

    end.close = close
    return end
