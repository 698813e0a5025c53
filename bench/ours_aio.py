"""shmq.aio, for the suite aio."""

from __future__ import annotations

import asyncio
import importlib
from typing import Any

from . import loops
from .endpoint import Endpoint, Side, Spec
from .ours import LAUNCH, POLLS, missing, unwire, wire

__all__ = ["LAUNCH", "NAME", "POLLS", "missing", "open_side", "unwire", "wire"]

NAME = "shmq"


def open_side(spec: Spec, wiring: Any, side: Side) -> Endpoint:
    aio: Any = importlib.import_module("shmq.aio")
    out, back = (aio.Queue.of(queue) for queue in (wiring if side == "a" else reversed(wiring)))
    runner = asyncio.Runner()

    def close() -> None:
        out.close()
        back.close()
        runner.close()

    return loops.endpoint(loops.Loop(runner.run, out.put, back.get, back.__aiter__), close)
